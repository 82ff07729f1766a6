//! Mapped lines: lines with the same mapping, which become rows together, column by column.
//!
//! A column receives the values of all these lines before the next column does. So a core works on few buffers at
//! a time, and does the same for each line.

use super::{
    issues::IssueCode,
    learned::MappedLine,
    mapping::{LineMapping, ValueNumber},
    walk::Batch,
};
use crate::resource::json::Value;

pub struct MappedLines<'a> {
    pub lines: &'a [MappedLine<'a>],
    /// Of all lines with a mapping in one slice of the batch.
    pub values: &'a [Value],
    pub batch: &'a mut Batch,
    /// In the order of the columns.
    pub issues: Vec<ValueIssue>,
}

/// An issue of one of the lines.
pub struct ValueIssue {
    pub line: usize,
    pub code: IssueCode,
    pub value: ValueNumber,
    /// If it is an issue of what is derived from an element: which of [`LineMapping::derived`]. Otherwise it is one of
    /// the value.
    pub derived: Option<usize>,
}

impl MappedLines<'_> {
    /// The lines whose value is not of its type, in their order.
    pub fn invalid_lines(&self, value: ValueNumber) -> Vec<usize> {
        let is_it =
            |issue: &&ValueIssue| (issue.value, issue.code) == (value, IssueCode::Invalid) && issue.derived.is_none();
        self.issues.iter().filter(is_it).map(|issue| issue.line).collect()
    }

    /// The issues by line; within a line, in the order of decoding by member names.
    pub fn issues(mut self, mapping: &LineMapping) -> Vec<ValueIssue> {
        let order = |issue: &ValueIssue| mapping.values[issue.value].order;
        self.issues.sort_by_key(|issue| (issue.line, order(issue), issue.derived.is_some()));
        self.issues
    }
}

impl ValueIssue {
    pub fn path<'mapping>(&self, mapping: &'mapping LineMapping) -> &'mapping str {
        match self.derived {
            Some(derived) => &mapping.derived[derived].path,
            None => &mapping.values[self.value].path,
        }
    }
}
