//! Issues: what the typed columns do not hold of a line, and at which path of the resource.
//!
//! An issue names a path, never a value. A line has a limited number of issues; those beyond the limit are counted.

use std::{borrow::Cow, fmt::Write};

/// Why a value is only in the line; the codes of `_sync_issues`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IssueCode {
    /// FHIR does not know the element.
    Unmapped,
    /// Not a value of its type, a second value where one is allowed, or a list where none is allowed.
    Invalid,
    /// The column has fewer digits after the point.
    DecimalRounded,
    /// The nesting limit leaves no column for it.
    TooDeep,
    /// An extension's value of a type that is not among the open types.
    ExtensionType,
    ModifierExtension,
}

impl IssueCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unmapped => "unmapped",
            Self::Invalid => "invalid",
            Self::DecimalRounded => "decimal-rounded",
            Self::TooDeep => "too-deep",
            Self::ExtensionType => "extension-type",
            Self::ModifierExtension => "modifier-extension",
        }
    }
}

/// The way from the root to a value: `Patient.name[0].given`.
#[derive(Clone, Default, Debug)]
pub struct ElementPath {
    steps: Vec<PathStep>,
}

#[derive(Clone, Copy, Debug)]
enum PathStep {
    Member(&'static str),
    Item(usize),
}

impl ElementPath {
    pub fn of(root: &'static str) -> Self {
        let mut steps = Vec::with_capacity(16);
        steps.push(PathStep::Member(root));
        Self { steps }
    }

    pub fn enter(&mut self, member: &'static str) {
        self.steps.push(PathStep::Member(member));
    }

    pub fn enter_item(&mut self, index: usize) {
        self.steps.push(PathStep::Item(index));
    }

    pub fn leave(&mut self) {
        self.steps.pop();
    }

    /// The path as text; `member` is one more step, with a name from the line.
    pub fn text(&self, member: Option<&str>) -> String {
        let mut text = String::with_capacity(64);
        for step in &self.steps {
            match step {
                PathStep::Member(name) if text.is_empty() => text.push_str(name),
                PathStep::Member(name) => {
                    text.push('.');
                    text.push_str(name);
                }
                PathStep::Item(index) => {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "[{index}]");
                }
            }
        }
        if let Some(member) = member {
            text.push('.');
            text.push_str(&shortened(member));
        }
        text
    }
}

/// The issues of one line.
#[derive(Default, Debug)]
pub struct Issues {
    texts: Vec<String>,
    beyond: u64,
}

impl Issues {
    const MAX_ISSUES: usize = 1000;

    pub fn add(&mut self, code: IssueCode, path: &ElementPath, member: Option<&str>) {
        self.add_at(code, || path.text(member));
    }

    pub fn add_at(&mut self, code: IssueCode, path: impl FnOnce() -> String) {
        if self.texts.len() < Self::MAX_ISSUES {
            self.texts.push(format!("{}: {}", code.as_str(), path()));
        } else {
            self.beyond += 1;
        }
    }

    /// Takes all issues, in the order of the line. If some were beyond the limit, the last one is `more: <count>`.
    pub fn take(&mut self) -> Vec<String> {
        let beyond = std::mem::take(&mut self.beyond);
        let mut texts = std::mem::take(&mut self.texts);
        texts.extend((beyond > 0).then(|| format!("more: {beyond}")));
        texts
    }
}

/// A name from the line may have any length.
fn shortened(member: &str) -> Cow<'_, str> {
    const MAX_CHARACTERS: usize = 100;
    match member.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &member[..end])),
        None => Cow::Borrowed(member),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issue_names_its_path() {
        let mut path = ElementPath::of("Patient");
        path.enter("name");
        path.enter_item(2);
        assert_eq!(path.text(None), "Patient.name[2]");
        path.leave();
        let mut issues = Issues::default();
        issues.add(IssueCode::Unmapped, &path, Some("colour"));
        assert_eq!(issues.take(), ["unmapped: Patient.name.colour"]);
        assert!(issues.take().is_empty());
    }

    #[test]
    fn a_line_has_a_limited_number_of_issues_of_limited_length() {
        let (path, mut issues) = (ElementPath::of("Patient"), Issues::default());
        for _ in 0..1005 {
            issues.add(IssueCode::Invalid, &path, Some(&"é".repeat(100_000)));
        }
        let texts = issues.take();
        assert_eq!((texts.len(), texts[1000].as_str()), (1001, "more: 5"));
        assert!(texts[0].len() < 300);
    }
}
