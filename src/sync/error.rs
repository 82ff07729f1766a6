//! What can stop a run or fail a type, and the one place that says what follows from it.

use crate::{export, fhir::ResourceType, resource::LineTooLong, state, table};

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error(transparent)]
    Export(#[from] export::Error),
    #[error(transparent)]
    Table(#[from] table::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("the quarantine {place} cannot be written; check the folder's owner, mode and free space")]
    Quarantine { place: String, source: std::io::Error },
    #[error(
        "the folder {place} takes no temporary file; check its owner, mode and free space, or set sync.spool_folder"
    )]
    SpoolFolder { place: String, source: std::io::Error },
    #[error(
        "the state file {place} is broken (a copy is {kept_as}) and no table carries a watermark; delete {place} to begin anew with a full load"
    )]
    BrokenState { place: String, kept_as: String },
    #[error("{file}: {expected} lines were announced and {found} came; the next run asks for the type again")]
    TooFewLines { file: String, expected: u64, found: u64 },
    #[error("{file}: it ends in the middle of a line; the next run asks for the type again")]
    CutLine { file: String },
    #[error("{file}")]
    LongLine { file: String, source: LineTooLong },
    #[error(
        "{bad} of {received} lines of {resource_type} are no resources, more than `sync.max_quarantined` and `sync.max_quarantined_percent` allow"
    )]
    TooManyBadLines { resource_type: ResourceType, bad: u64, received: u64 },
    #[error("rows could not be built")]
    Rows(#[from] arrow::error::ArrowError),
    /// Asked to stop. Nothing is lost: the job is in the state file.
    #[error("stopped; the next start goes on with the same export")]
    Stopped,
}

/// What to do with the job in flight after an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobFate {
    /// It may still come to a good end: the next run resumes it.
    Keep,
    /// It cannot: the next run starts another, with the old `_since`.
    Forget,
}

/// What an error means: who acts, and what becomes of the job. The sentence is the error's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Time mends it.
    NextRun(JobFate),
    /// Nothing changes until somebody does something.
    Operator(JobFate),
}

pub fn advice(error: &Error) -> Advice {
    use JobFate::{Forget, Keep};
    match error {
        Error::Export(error) => advice_on_export(error),
        Error::Table(table::Error::Conflict { .. }) => Advice::NextRun(Forget),
        // Nothing of the export is used up: when somebody has made room, its files may still be there.
        Error::Table(_)
        | Error::State(_)
        | Error::Quarantine { .. }
        | Error::SpoolFolder { .. }
        | Error::BrokenState { .. } => Advice::Operator(Keep),
        Error::LongLine { .. } | Error::TooManyBadLines { .. } | Error::Rows(_) => Advice::Operator(Forget),
        Error::TooFewLines { .. } | Error::CutLine { .. } => Advice::NextRun(Forget),
        Error::Stopped => Advice::NextRun(Keep),
    }
}

fn advice_on_export(error: &export::Error) -> Advice {
    use JobFate::{Forget, Keep};
    use export::Error as E;
    match error {
        E::Unreachable { .. } | E::Busy { .. } => Advice::NextRun(Keep),
        E::JobLost { .. }
        | E::ExportFailed { .. }
        | E::NotAManifest { .. }
        | E::FileGone { .. }
        | E::FileChanged { .. }
        | E::Corrupt { .. }
        | E::Abandoned { .. } => Advice::NextRun(Forget),
        E::Denied { .. } | E::AuthorizationRequired { .. } | E::TokenDenied { .. } | E::NoTokenEndpoint { .. } => {
            Advice::Operator(Keep)
        }
        E::Config { .. } | E::Key { .. } | E::KeyFile { .. } | E::Setup { .. } => Advice::Operator(Keep),
        E::UnusableUrl { .. }
        | E::ForeignOrigin { .. }
        | E::TooManyRedirects { .. }
        | E::Refused { .. }
        | E::NoStatusUrl { .. }
        | E::Deadline { .. }
        | E::NotNdjson { .. }
        | E::TooLarge { .. } => Advice::Operator(Forget),
    }
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        // Some libraries print their cause themselves.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text.replace(['\n', '\r'], " ")
}
