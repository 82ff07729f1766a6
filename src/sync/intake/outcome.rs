//! What the server says about the export: the judgement of its `OperationOutcome`s, in files of their own or among the
//! resources. An error, or what cannot be read, holds the watermarks of the types that it concerns (rule 101), unless
//! the operator accepts its code.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Context, Holds, Remark,
    stream::{Reader, stream},
};
use crate::{
    export::File,
    fhir::{Issue, Judgement, ResourceType, Severity, judge},
    resource::Line,
    sync::{Error, chain},
};

/// Stand in `sync.accept_reported_errors` for an outcome that cannot be read, and for a file with fewer than announced.
const UNREADABLE: &str = "unreadable-outcome";
const MISSING: &str = "missing-outcome";
/// Lines of the log per file.
const MAX_LOGGED: u64 = 10;

/// From which severity on an issue holds a watermark.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// In a file of outcomes a warning is only noted.
    Errors,
    /// Among the resources, an outcome is in the place of one.
    Warnings,
}

/// What the server warns of, besides what holds watermarks.
#[derive(Default)]
pub struct Warnings {
    count: u64,
    first: Option<String>,
}

impl Warnings {
    fn add(&mut self, place: &str, issues: &[Issue]) {
        for issue in issues.iter().filter(|issue| issue.severity == Severity::Warning) {
            self.count += 1;
            self.first.get_or_insert_with(|| format!("{place}: {issue}"));
        }
    }

    /// One sentence, however many there are.
    pub fn note(&self) -> Option<String> {
        let first = self.first.as_ref()?;
        Some(format!(
            "the server warned about its export, {} times; the first is in {first}; the log has more",
            self.count
        ))
    }
}

/// The outcomes of one file that hold watermarks.
pub struct Outcomes {
    held_by: HeldBy,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    /// Issues, or outcomes that cannot be read.
    holding: u64,
    first: Option<String>,
    /// `None` as soon as one of them names no type.
    types: Option<BTreeSet<ResourceType>>,
    logged: u64,
}

impl Outcomes {
    pub fn new(held_by: HeldBy) -> Self {
        let found = Found { types: Some(BTreeSet::new()), ..Found::default() };
        Self { held_by, found: Mutex::new(found) }
    }

    /// Takes what was stated at `place`.
    pub fn add(&self, context: &Context, place: &str, judgement: Judgement) {
        let issues = match judgement {
            Judgement::Unreadable => return self.judge(context, place, UNREADABLE, UNREADABLE.to_owned(), &[]),
            Judgement::Information(issues) => return self.log(place, &issues),
            Judgement::Warning(issues) if self.held_by == HeldBy::Errors => {
                context.warned().add(place, &issues);
                return self.log(place, &issues);
            }
            Judgement::Warning(issues) | Judgement::Error(issues) => issues,
        };
        self.log(place, &issues);
        // An outcome of warnings alone holds by all of them, one with errors by its errors.
        let has_error = issues.iter().any(Issue::is_error);
        for issue in issues.iter().filter(|issue| issue.is_error() || !has_error) {
            self.judge(context, place, &issue.code, issue.to_string(), &issue.types);
        }
    }

    /// An error concerns the types of the job that it names. Where it names none of them, such as `Bundle`, it says
    /// nothing of what is missing.
    fn judge(&self, context: &Context, place: &str, code: &str, what: String, named: &[ResourceType]) {
        let concerned: BTreeSet<_> = named.iter().copied().filter(|of| context.is_of_job(*of)).collect();
        let concerned = Some(concerned).filter(|types| !types.is_empty());
        if context.accepts(place, code) {
            return self.accept(context, concerned);
        }
        let found = &mut *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.holding += 1;
        found.first.get_or_insert(what);
        found.types = found.types.take().zip(concerned).map(|(known, types)| &known | &types);
    }

    /// What the operator accepts as missing is no proof that the server has deleted it.
    fn accept(&self, context: &Context, concerned: Option<BTreeSet<ResourceType>>) {
        let accepted = &mut context.other_files().accepted;
        match (concerned, self.held_by) {
            (Some(types), _) => accepted.extend(types.into_iter().map(Some)),
            (None, HeldBy::Errors) => accepted.extend([None]),
            // The lines of the file count it.
            (None, HeldBy::Warnings) => {}
        }
    }

    fn log(&self, place: &str, issues: &[Issue]) {
        let found = &mut *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for issue in issues {
            found.logged += 1;
            match found.logged {
                ..MAX_LOGGED => tracing::warn!(file = place, %issue, "the server reported an issue"),
                MAX_LOGGED => tracing::warn!(file = place, %issue, "the server reported an issue, and … more"),
                _ => tracing::debug!(file = place, %issue, "the server reported an issue"),
            }
        }
    }

    /// What the outcomes hold: the types that they name, else those of the file. One in the place of a resource holds
    /// the type of its file in any case, whatever it refers to.
    pub fn remark(&self, place: &str, of: Option<ResourceType>) -> Option<Remark> {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        let first = found.first?;
        let text = format!("{place}: the server reported missing data: {} times, first {first}", found.holding);
        let holds = match (found.types, of) {
            (Some(types), of) => Holds::Types(types.into_iter().chain(of).collect()),
            (None, of) => Holds::of(of),
        };
        Some(Remark::hold(holds, text))
    }
}

impl Reader for Outcomes {
    fn take(&self, context: &Context, file: &File, lines: Vec<Line>) -> Result<(), Error> {
        for line in &lines {
            self.add(context, &file.name, judge(&line.bytes));
        }
        Ok(())
    }
}

/// What the server reports in the manifest itself.
pub fn in_manifest(context: &Context, issues: &[Issue]) -> Option<Remark> {
    let outcomes = Outcomes::new(HeldBy::Errors);
    let place = "manifest";
    if let Some(judgement) = Judgement::of(issues.to_vec()) {
        outcomes.add(context, place, judgement);
    }
    outcomes.remark(place, None)
}

pub async fn read(context: Arc<Context>, file: File) -> Vec<Remark> {
    let outcomes = Arc::new(Outcomes::new(HeldBy::Errors));
    let mut remarks = Vec::new();
    match stream(&context, &file, Arc::clone(&outcomes)).await {
        Ok(_) => {}
        Err(Error::TooFewLines { .. }) if context.accepts(&file.name, MISSING) => outcomes.accept(&context, None),
        Err(error) => {
            let text = format!("the server's messages about the export could not be read: {}", chain(&error));
            remarks.push(Remark::hold(Holds::Everything, text));
        }
    }
    remarks.extend(outcomes.remark(&file.name, None));
    remarks
}
