//! Errors of tables. Variants differ where the caller, or the operator, does something different about them.

use std::io::ErrorKind;

use buoyant_kernel::Error as KernelError;
use deltalake::DeltaTableError;

use super::TableName;
use crate::{
    lease,
    store::{self, Cause, DocumentError, Failure},
};

#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// Waiting does not help: the operator must change the folder, or the configuration.
    #[error("the tables folder {place} cannot be used: {reason}")]
    Root { place: String, reason: String },
    #[error(
        "`tables.root` {place} is {what}: it is the folder in which each type gets a table of its own. Choose the folder \
         above it, or a new one"
    )]
    NotARoot { place: String, what: &'static str },
    /// The settings of the object store say nothing that works.
    #[error("the object store of `tables.root`: {0}")]
    Store(#[from] store::Error),
    /// The object store did not do what it was asked for.
    #[error("{place}: {failure}")]
    StoreFailed { place: String, failure: Failure },
    #[error("{place}: the credentials may not {missing} files; docs/stores.md lists the permissions that are needed")]
    Permissions { place: String, missing: String },
    #[error(
        "the table at {place} was not written by fhir-sync ({reason}); move it away, or choose another `tables.root`"
    )]
    NotOurs { place: String, reason: String },
    #[error("the table at {place} uses {feature}, which this version cannot write to; {way_out}")]
    Unsupported { place: String, feature: String, way_out: &'static str },
    #[error("the disk under {place} is full; make room: nothing was lost, and the next run continues")]
    DiskFull { place: String },
    #[error("{place} cannot be written to ({kind}); check its owner and mode, and that it is not mounted read-only")]
    NotWritable { place: String, kind: ErrorKind },
    #[error(
        "another fhir-sync, {holder}, holds the tables ({place}); only one may write to them. It counts as ended \
         when its process has ended, or one minute after its last renewal"
    )]
    InUse { place: String, holder: String },
    #[error(
        "another fhir-sync, {holder}, has taken over the tables ({place}); this one writes nothing more. Stop one of \
         them, and start this one again if it is the one that should continue"
    )]
    LeaseLost { place: String, holder: String },
    /// Other writers committed to the table at the same moment, in each of our attempts.
    #[error("other writers changed the table {table} during each of {attempts} attempts to write to it")]
    Conflict { table: TableName, attempts: u32 },
    /// What the caller knew of its rows may no longer be true.
    #[error(
        "the table {table} was restored to an earlier version while it was written to; its watermark no longer counts, \
         and the next sync loads it in full"
    )]
    Restored { table: TableName },
    #[error("the table at {place} cannot be rebuilt: {reason}; it stays as it is")]
    Rebuild { place: String, reason: String },
    #[error(
        "the table at {place} asks to keep removed files for {stated}, longer than {asked}; raise maintenance.vacuum_retention, \
         or use `fhir-sync maintain --force`, after which readers of older versions may fail"
    )]
    Retention { place: String, stated: String, asked: String },
    /// Rows are lost; a full refresh writes them again.
    #[error(
        "rows of the table at {place} are lost: {what}. `fhir-sync sync --full-refresh` removes what is damaged and \
         writes the rows again; a rebuild cannot, because they are nowhere else"
    )]
    Damaged { place: String, what: String },
    /// Files of its log are left, and no commit among them.
    #[error(
        "the log of the table at {place} is lost: {left} is left in its _delta_log, and no commit. Restore \
         {place}/_delta_log from a backup, or move {place} away: then it is created again, and a table of resources is \
         loaded in full"
    )]
    LogLost { place: String, left: String },
    #[error("the temporary file of received rows failed")]
    Spool(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The engine that writes the tables in our place has failed.
    #[error("the table {place} could not be read or written by Spark")]
    Engine { place: String, is_transient: bool, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the table at {place} failed")]
    Delta { place: String, source: Box<DeltaTableError> },
    #[error("the counts of {table} do not add up: {counts}; this is a bug in fhir-sync, and nothing was committed")]
    Unbalanced { table: TableName, counts: String },
}

impl From<lease::Error> for Error {
    fn from(error: lease::Error) -> Self {
        match error {
            lease::Error::InUse { place, holder, .. } => Self::InUse { place, holder },
            lease::Error::Lost { place, holder, .. } => Self::LeaseLost { place, holder },
            lease::Error::Document(DocumentError::Io { place, source }) => Self::delta(&place, source),
            lease::Error::Document(DocumentError::Store { place, source }) => Self::delta(&place, source),
        }
    }
}

impl Error {
    pub(super) fn spool(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source = source.into();
        match io_kind(source.as_ref()) {
            Some(kind) => Self::io("the temporary folder", kind).unwrap_or(Self::Spool(source)),
            None => Self::Spool(source),
        }
    }

    /// What the spool has of ids is not what was put there.
    pub(super) fn unreadable_index() -> Self {
        Self::spool("what was kept of received rows cannot be read back")
    }

    /// Of a data file that is written while rows arrive.
    pub(super) fn first_load(source: DeltaTableError) -> Self {
        match Self::delta("a data file of the first load", source) {
            Self::Delta { source, .. } => Self::Spool(source),
            error => error,
        }
    }

    pub(super) fn delta(place: &str, source: impl Into<DeltaTableError>) -> Self {
        let source = source.into();
        match Failure::within(&source).or_else(|| within_kernel(&source)) {
            // A file that is not there, or that is there already, is a matter of the table.
            Some(Failure { cause: Cause::Other(_), .. }) | None => {}
            Some(failure) => return Self::StoreFailed { place: place.to_owned(), failure: failure.clone() },
        }
        io_kind(&source)
            .and_then(|kind| Self::io(place, kind))
            .unwrap_or_else(|| Self::Delta { place: place.to_owned(), source: Box::new(source) })
    }

    fn io(place: &str, kind: ErrorKind) -> Option<Self> {
        let place = place.to_owned();
        match kind {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(Self::DiskFull { place }),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::NotADirectory => {
                Some(Self::NotWritable { place, kind })
            }
            _ => None,
        }
    }
}

/// The failure of the store in an error of the Delta kernel, which does not give its cause as one.
fn within_kernel(error: &DeltaTableError) -> Option<&Failure> {
    let DeltaTableError::KernelError(error) = error else { return None };
    let mut error = error;
    while let KernelError::Backtraced { source, .. } = error {
        error = source;
    }
    match error {
        KernelError::ObjectStore(error) => Failure::within(error),
        _ => None,
    }
}

/// The kind of the operating system's error that is the cause of an error, if any. Object stores and Parquet wrap it
/// differently, and some keep only its text.
fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            if let Some(inner) = io.get_ref() {
                return io_kind(inner).or(Some(io.kind()));
            }
            return Some(io.kind());
        }
        next = error.source();
    }
    let text = error.to_string();
    if text.contains("os error 28") {
        return Some(ErrorKind::StorageFull);
    }
    text.contains("os error 13").then_some(ErrorKind::PermissionDenied)
}
