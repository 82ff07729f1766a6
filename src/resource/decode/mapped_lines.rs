//! A block: lines with the same plan, which become rows together, column by column.
//!
//! A column receives the values of all lines of a block, before the next column does. So a core works on few buffers at
//! a time, and does the same for each line.

use super::{
    issues::IssueCode,
    learned::PlannedLine,
    mapping::{LinePlan, ValueNumber},
    walk::Batch,
};
use crate::resource::json::Value;

pub struct Block<'a> {
    pub lines: &'a [PlannedLine<'a>],
    /// Of all lines with a plan in one part of the batch.
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
    /// If it is an issue of what is derived from an element: which of [`LinePlan::derived`]. Otherwise it is one of the
    /// value.
    pub derived: Option<usize>,
}

impl Block<'_> {
    /// The lines whose value is not of its type, in their order.
    pub fn invalid_lines(&self, value: ValueNumber) -> Vec<usize> {
        let is_it =
            |issue: &&ValueIssue| (issue.value, issue.code) == (value, IssueCode::Invalid) && issue.derived.is_none();
        self.issues.iter().filter(is_it).map(|issue| issue.line).collect()
    }

    /// The issues, line by line, and those of a line in the order in which decoding by member names comes to them.
    pub fn issues(mut self, plan: &LinePlan) -> Vec<ValueIssue> {
        let turn = |issue: &ValueIssue| plan.values[issue.value].turn;
        self.issues.sort_by_key(|issue| (issue.line, turn(issue), issue.derived.is_some()));
        self.issues
    }
}

impl ValueIssue {
    pub fn path<'plan>(&self, plan: &'plan LinePlan) -> &'plan str {
        match self.derived {
            Some(derived) => &plan.derived[derived].path,
            None => &plan.values[self.value].path,
        }
    }
}
