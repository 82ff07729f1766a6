//! The tally of one type: its files that have ended, and the lines in them.

use std::ops::AddAssign;

use super::stream::Streamed;
use crate::{
    state::FinishedFiles,
    sync::{Error, QuarantineLimit, error::JobFate, recovery},
    table::LedgerFile,
};

/// The lines of a type's files that did not become its rows, and its rows that were in other files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// No resources: lines in quarantine.
    pub quarantined: u64,
    /// Resources of types that nobody asked for.
    pub not_wanted: u64,
    /// `OperationOutcome`s: what the server says about the file.
    pub outcomes: u64,
    /// Of the outcomes, those that say more than information.
    pub errors: u64,
    /// Rows of this type that were in files of other types, or of none.
    pub rerouted: u64,
    /// Of these rows, those in files without a type, in a manifest that states none for any.
    pub unfiled: u64,
}

impl LineCounts {
    /// Lines of the type's files that became no row of any type.
    pub fn without_row(&self) -> u64 {
        self.quarantined + self.not_wanted + self.outcomes
    }
}

impl AddAssign for LineCounts {
    fn add_assign(&mut self, other: Self) {
        self.quarantined += other.quarantined;
        self.not_wanted += other.not_wanted;
        self.outcomes += other.outcomes;
        self.errors += other.errors;
        self.rerouted += other.rerouted;
        self.unfiled += other.unfiled;
    }
}

/// What was read of the type before: by earlier instalments of this run, or by earlier runs of the same job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    pub files: u64,
    /// Lines and deletions in them.
    pub lines: u64,
    /// Of the lines.
    pub quarantined: u64,
}

impl Before {
    pub fn of(finished: &FinishedFiles) -> Self {
        Self { files: finished.files.len() as u64, lines: finished.lines, quarantined: finished.quarantined }
    }
}

/// A file that need not be read again once its rows are committed.
pub struct Finished {
    /// In the manifests of its job.
    pub identity: String,
    pub lines: u64,
    /// Of the lines.
    pub quarantined: u64,
}

/// What has ended since the last instalment.
#[derive(Default)]
pub struct Tally {
    pub before: Before,
    pub files: u64,
    /// Files that have neither been read to their end nor failed.
    pub files_left: u64,
    pub bytes: u64,
    pub file_list: Vec<LedgerFile>,
    pub lines: LineCounts,
    /// In what the server reports as deleted.
    pub deletions: u64,
    pub finished: Vec<Finished>,
    pub failure: Option<Error>,
}

impl Tally {
    /// One file has ended; returns whether it was the last.
    pub fn end(&mut self, checked: Result<Streamed, Error>, finished: Option<Finished>) -> bool {
        match checked {
            Ok(streamed) => {
                self.files += 1;
                self.bytes += streamed.bytes;
                self.finished.extend(finished);
                let Streamed { bytes, sha256, name, .. } = streamed;
                self.file_list.push(LedgerFile { name, bytes, sha256 });
            }
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
        self.files_left = self.files_left.saturating_sub(1);
        self.files_left == 0
    }

    /// Whether what has ended, and the rows of the change set, may be committed as an instalment. A server that cannot
    /// be reached any more does not change what has arrived; any other error, and too many lines in quarantine, may.
    pub fn may_be_committed(&self, rows: u64, limit: QuarantineLimit) -> bool {
        let keeps_job = |error: &Error| matches!(error, Error::Export(_)) && recovery(error).job == JobFate::Kept;
        let quarantined = self.before.quarantined + self.lines.quarantined;
        let lines = self.before.lines + rows + self.lines.without_row();
        !self.finished.is_empty()
            && self.failure.as_ref().is_none_or(keeps_job)
            && !limit.is_exceeded(quarantined, lines)
    }

    /// All that has ended is committed, with this many rows: takes it, and begins the next instalment.
    pub fn settle(&mut self, rows: u64) -> Self {
        let before = Before {
            files: self.before.files + self.files,
            lines: self.before.lines + rows + self.lines.without_row(),
            quarantined: self.before.quarantined + self.lines.quarantined,
        };
        let (files_left, failure) = (self.files_left, self.failure.take());
        std::mem::replace(self, Self { before, files_left, failure, ..Self::default() })
    }
}
