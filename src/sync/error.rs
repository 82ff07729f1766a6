//! Errors: what can stop a run or fail a type, and the one place that decides what follows from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{export, fhir::ResourceType, lease, resource::LineTooLong, state, table};

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error(transparent)]
    Export(#[from] export::Error),
    #[error(transparent)]
    Table(#[from] table::Error),
    #[error(
        "the table of {resource_type} cannot be opened, and nothing is asked for this type; restore its folder, or move \
         it away: then the next sync loads the type in full"
    )]
    NotOpened { resource_type: ResourceType, source: table::Error },
    #[error(
        "the table changed while its export was in progress: {difference}; the watermark stays, and the next sync loads the \
         type in full"
    )]
    TableChanged { difference: String },
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("lines that are not resources could not be kept in the quarantine")]
    Quarantine(#[source] table::Error),
    #[error("a line could not be encrypted for the quarantine")]
    NotEncrypted,
    #[error(
        "the quarantine {place} has no room for another line; look at its lines (fhir-sync quarantine list) and purge \
         those that you do not need, or raise sync.max_quarantine_size ({max_bytes} bytes)"
    )]
    QuarantineFull { place: String, max_bytes: u64 },
    #[error(
        "no temporary file can be created in the folder {place}; check its owner, mode and free space, \
         or set sync.spool_folder"
    )]
    SpoolFolder { place: String, source: std::io::Error },
    #[error(
        "the state file {place} is broken (a copy is {kept_as}) and no table has a watermark; \
         delete {place} to start again with a full load"
    )]
    BrokenState { place: String, kept_as: String },
    #[error(
        "the rows of source {name:?} are from {recorded}, and server.url is {configured}; if that is the same server at \
         a new address, set server.source = {name:?}; if it is another server, give it a server.source or a \
         tables.root of its own"
    )]
    OtherServer { name: String, recorded: String, configured: String },
    #[error(
        "the source {name:?} moved from {configured} to {recorded}, and server.url is {configured} again; two servers \
         need two values of server.source. If it really moved back, delete {configured} from `earlier` in {place}"
    )]
    TwoServers { name: String, recorded: String, configured: String, place: String },
    #[error(
        "none of the tables of the last sync is in {root}; if its volume is not mounted, mount it; if the tables are \
         meant to be loaded again, or tables.root was changed, run fhir-sync sync --full-refresh once"
    )]
    TablesGone { root: String },
    #[error("{place} is broken; restore it, or delete it and check that server.url is the server of these tables")]
    BrokenDocument { place: String },
    #[error("{file}: {expected} lines were announced and {found} received; the next sync requests the type again")]
    TooFewLines { file: String, expected: u64, found: u64 },
    #[error("{file}: ends in the middle of a line; the next sync requests the type again")]
    CutLine { file: String },
    #[error("{file}")]
    LongLine { file: String, source: LineTooLong },
    #[error(
        "{bad} of {received} lines of {resource_type} are not resources, \
         more than `sync.max_quarantined` and `sync.max_quarantined_percent` allow"
    )]
    TooManyBadLines { resource_type: ResourceType, bad: u64, received: u64 },
    #[error("another fhir-sync, {holder}, works on the export {export}; give the command on its machine, or wait")]
    LeasedByOther { export: String, holder: String },
    #[error(transparent)]
    Lease(#[from] lease::Error),
    #[error("rows could not be built")]
    Rows(#[from] arrow::error::ArrowError),
    #[error(
        "the run was ended after {}, as sync.max_run_time says; the next sync continues with the same export",
        humantime::format_duration(*.limit)
    )]
    RunTime { limit: std::time::Duration },
    /// Asked to stop. Nothing is lost: the job is in the state file.
    #[error("stopped; the next sync continues with the same export")]
    Stopped,
}

impl Error {
    /// A table whose log cannot be read has a way out of its own; other errors say theirs.
    pub(super) fn of_opening(resource_type: ResourceType, error: table::Error) -> Self {
        match error {
            source @ table::Error::Delta { .. } => Self::NotOpened { resource_type, source },
            error => Self::Table(error),
        }
    }
}

/// What follows from an error. What to do is in the error's own sentence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recovery {
    pub acts: Actor,
    pub job: JobFate,
}

/// Who has to do something before a sync can succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Actor {
    /// Nobody: the next run tries again, and the cause may have passed.
    NextRun,
    Operator,
}

/// What becomes of the job in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JobFate {
    /// It may still succeed: the next run resumes it.
    Kept,
    /// It cannot succeed: the next run requests another export, with the old `_since`.
    Dropped,
}

impl fmt::Display for Actor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NextRun => "next run",
            Self::Operator => "operator",
        })
    }
}

impl fmt::Display for JobFate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Kept => "kept",
            Self::Dropped => "dropped",
        })
    }
}

/// Decides what follows from an error. There is no default: a new error must be decided here.
pub fn recovery(error: &Error) -> Recovery {
    use Actor::{NextRun, Operator};
    use JobFate::{Dropped, Kept};
    let (acts, job) = match error {
        Error::Export(error) => of_export(error),
        Error::Table(table::Error::Conflict { .. }) => (NextRun, Dropped),
        Error::Table(table::Error::Restored { .. }) | Error::TableChanged { .. } => (NextRun, Kept),
        Error::State(state::Error::Document(error)) if error.is_transient() => (NextRun, Kept),
        Error::Table(table::Error::StoreFailed { failure, .. }) if failure.is_transient() => (NextRun, Kept),
        Error::Table(table::Error::Engine { is_transient: true, .. }) => (NextRun, Kept),
        // Nothing of the export is used up: when somebody has made room, its files may still be there.
        Error::Table(_)
        | Error::NotOpened { .. }
        | Error::Lease(_)
        | Error::State(_)
        | Error::Quarantine(_)
        | Error::NotEncrypted
        | Error::QuarantineFull { .. }
        | Error::SpoolFolder { .. }
        | Error::BrokenState { .. }
        | Error::OtherServer { .. }
        | Error::TwoServers { .. }
        | Error::TablesGone { .. }
        | Error::BrokenDocument { .. } => (Operator, Kept),
        Error::LongLine { .. } | Error::TooManyBadLines { .. } | Error::Rows(_) => (Operator, Dropped),
        Error::TooFewLines { .. } | Error::CutLine { .. } => (NextRun, Dropped),
        Error::Stopped | Error::RunTime { .. } | Error::LeasedByOther { .. } => (NextRun, Kept),
    };
    Recovery { acts, job }
}

fn of_export(error: &export::Error) -> (Actor, JobFate) {
    use Actor::{NextRun, Operator};
    use JobFate::{Dropped, Kept};
    use export::Error as E;
    match error {
        E::Unreachable { source, .. } if source.is_final() => (Operator, Kept),
        E::Unreachable { .. } | E::Busy { .. } | E::TransferTime { .. } | E::LinkNotRenewed { .. } => (NextRun, Kept),
        E::JobLost { .. }
        | E::ExportFailed { .. }
        | E::NotAManifest { .. }
        | E::FileGone { .. }
        | E::LinkExpired { .. }
        | E::TooManyRequests { .. }
        | E::FileChanged { .. }
        | E::ManifestChanged { .. }
        | E::Corrupt { .. }
        | E::Abandoned { .. } => (NextRun, Dropped),
        // With a token where none belongs, stores of objects answer 400; otherwise it is about the request itself.
        E::FileDenied { status, .. } if status.as_u16() == 400 => (Operator, Dropped),
        E::Denied { .. }
        | E::FileDenied { .. }
        | E::ForeignOrigin { .. }
        | E::AuthorizationRequired { .. }
        | E::TokenDenied { .. }
        | E::NoTokenEndpoint { .. }
        | E::ForeignTokenEndpoint { .. } => (Operator, Kept),
        E::Config { .. } | E::Key { .. } | E::Setup { .. } | E::Algorithm { .. } => (Operator, Kept),
        E::UnusableUrl { .. }
        | E::RefusedAddress { .. }
        | E::PostRefused { .. }
        | E::TooManyRedirects { .. }
        | E::Refused { .. }
        | E::NoStatusUrl { .. }
        | E::Deadline { .. }
        | E::NotNdjson { .. }
        | E::DecompressionRatio { .. }
        | E::TooLarge { .. } => (Operator, Dropped),
    }
}

/// Does the server deny what is asked of a job? A store may say no more than that of a file that it has deleted.
pub fn is_denied(error: &Error) -> bool {
    matches!(error, Error::Export(export::Error::FileDenied { .. } | export::Error::Denied { .. }))
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
    without_numbers(&text.replace(['\n', '\r'], " "))
}

/// "Permission denied (os error 13)" says the same twice.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_busy_or_away_needs_nobody_and_one_that_denies_needs_the_operator() {
        use crate::store::{Cause, Failure};
        for (cause, acts) in [
            (Cause::Busy, Actor::NextRun),
            (Cause::Unreachable(String::new()), Actor::NextRun),
            (Cause::Expired, Actor::NextRun),
            (Cause::Denied, Actor::Operator),
            (Cause::NoBucket, Actor::Operator),
        ] {
            let failed = table::Error::StoreFailed { place: "s3://lake".to_owned(), failure: Failure::new(cause) };
            assert_eq!(recovery(&failed.into()), Recovery { acts, job: JobFate::Kept });
        }
    }

    #[test]
    fn a_chain_is_one_line_and_has_no_numbers_of_the_system() {
        let source = std::io::Error::from_raw_os_error(13);
        let error = Error::SpoolFolder { place: "/srv/spool".to_owned(), source };
        let text = chain(&error);
        assert!(text.ends_with(": Permission denied") && text.contains("/srv/spool"), "{text}");
        assert_eq!(without_numbers("a (os error 2); b (os error 13): c"), "a; b: c");
    }
}
