//! A block: lines with the same plan, which become rows together, column by column.
//!
//! A column receives the values of all lines of a block, before the next column does. So a core works on few buffers at
//! a time, and does the same for each line.

use super::{
    issues::{IssueCode, Issues, path},
    known::PlannedLine,
    plan::{LinePlan, ValueNumber},
    walk::Batch,
};
use crate::resource::json::{OutlineValues, Tape, Value};

pub struct Block<'a> {
    pub lines: &'a [PlannedLine<'a>],
    /// Of all lines of the batch.
    pub values: &'a [Value],
    pub batch: &'a mut Batch,
    /// In the order of the columns.
    pub issues: Vec<ValueIssue>,
}

/// An issue of one line of a block.
pub struct ValueIssue {
    pub line: usize,
    pub code: IssueCode,
    pub value: ValueNumber,
    /// For what is derived from an element, the element; otherwise it is an issue of the value.
    pub derived_from: Option<&'static str>,
}

impl Block<'_> {
    /// The lines whose value is not of its type, in their order.
    pub fn invalid_lines(&self, value: ValueNumber) -> Vec<usize> {
        let is_it = |issue: &&ValueIssue| {
            (issue.value, issue.code) == (value, IssueCode::Invalid) && issue.derived_from.is_none()
        };
        self.issues.iter().filter(is_it).map(|issue| issue.line).collect()
    }

    /// The issues, line by line, and those of a line as the way by the names comes to them.
    pub fn issues(mut self, plan: &LinePlan) -> Vec<ValueIssue> {
        self.issues.sort_by_key(|issue| (issue.line, plan.turn(issue.value), issue.derived_from.is_some()));
        self.issues
    }
}

/// The texts of the issues of one line. Its values are looked for once more, because hardly any line has issues.
pub fn texts(line: &str, root: &str, of_line: &[ValueIssue], issues: &mut Issues) -> Vec<String> {
    let mut tape = Tape::default();
    let document = tape.read(line).ok();
    let values = document.map(OutlineValues::from);
    for issue in of_line {
        let value = values.as_ref().and_then(|values| values.token(issue.value));
        issues.add_at(issue.code, || match (issue.derived_from, document.zip(value)) {
            (None, Some((document, value))) => path(document, root, value),
            (name, _) => format!("{root}.{}", name.unwrap_or_default()),
        });
    }
    issues.take()
}
