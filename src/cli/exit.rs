//! Exit codes: how a command ends, for scripts and service managers. The reason is printed or logged before.

use std::{io::ErrorKind, process::ExitCode};

use tokio_util::sync::CancellationToken;

use crate::{
    config::Mistakes,
    daemon::{self, Signals},
    state,
    sync::{self, ExportError, Outcome, TableError, chain},
};

/// A command that did not succeed, by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(u8);

pub const FAILED: Exit = Exit(1);
pub const PARTIAL: Exit = Exit(3);
pub const LOCKED: Exit = Exit(11);
/// `EX_TEMPFAIL` of sysexits.h.
pub const TEMPORARY: Exit = Exit(75);
/// `EX_CONFIG` of sysexits.h.
pub const CONFIGURATION: Exit = Exit(78);
pub const STOPPED: Exit = Exit(130);

/// What `--help` says about them.
pub const HELP: &str = "\
Exit codes:
  0    success; of a sync: complete; of a healthcheck: healthy
  1    failed; of a healthcheck: unhealthy or no response; of verify: something
       differs; of status with --max-age: data are older
  2    invalid arguments
  3    partial: something was committed, something failed or was quarantined
  11   another fhir-sync holds the state file or the tables
  75   not possible now: an address is taken, a disk, folder or object store
       cannot be used, or the command of a secret fails; try again
  78   the configuration is wrong, and stays wrong until somebody corrects it
  130  stopped by a signal; the next run continues";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

impl Exit {
    /// Ends the process without waiting for threads that are still at work.
    pub fn at_once(self) -> ! {
        std::process::exit(i32::from(self.0))
    }

    /// How a sync ends that had this outcome.
    pub fn of(outcome: Outcome) -> Result<(), Self> {
        match outcome {
            Outcome::Complete => Ok(()),
            Outcome::Partial => Err(PARTIAL),
            Outcome::Failed => Err(FAILED),
            Outcome::Stopped => Err(STOPPED),
        }
    }
}

/// Prints why a command failed.
pub fn failed(reason: &str) -> Exit {
    eprintln!("fhir-sync: {reason}");
    FAILED
}

/// Prints the mistakes of a configuration. Where all of them are temporary, a service manager tries again.
#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err takes")]
pub fn misconfigured(mistakes: Mistakes) -> Exit {
    eprint!("fhir-sync: {mistakes}");
    of_mistakes(&mistakes)
}

pub const fn of_mistakes(mistakes: &Mistakes) -> Exit {
    if mistakes.is_temporary { TEMPORARY } else { CONFIGURATION }
}

/// Prints why nothing could be opened.
pub fn not_opened(error: sync::Error) -> Exit {
    eprintln!("fhir-sync: {}", chain(&error));
    of_start(&daemon::Error::Sync(error))
}

/// How a command ends that could not begin. There is no default: of each error it is decided here whether only a
/// corrected configuration helps (a service manager does not try again), or another attempt may succeed.
pub fn of_start(error: &daemon::Error) -> Exit {
    match error {
        daemon::Error::Sync(error) => of_opening(error),
        daemon::Error::NoSchedule => CONFIGURATION,
        // A port below 1024 stays closed to the user; an address that is taken is free when its holder has ended, and
        // one that is missing appears with its network.
        daemon::Error::Listen { source, .. } if source.kind() == ErrorKind::PermissionDenied => CONFIGURATION,
        daemon::Error::Listen { .. } => TEMPORARY,
        daemon::Error::Schedule(_) | daemon::Error::Notify(_) | daemon::Error::Signals(_) => FAILED,
    }
}

fn of_opening(error: &sync::Error) -> Exit {
    match error {
        sync::Error::State(error) => match error {
            state::Error::Locked { .. } | state::Error::InUse { .. } | state::Error::TakenOver { .. } => LOCKED,
            state::Error::Document(error) if error.is_of_configuration() => CONFIGURATION,
            state::Error::Io { .. } | state::Error::Document(_) => TEMPORARY,
            state::Error::Conflict { .. } => TEMPORARY,
            state::Error::NotHeld { .. } => FAILED,
            state::Error::Store(_) | state::Error::Unconditional { .. } => CONFIGURATION,
            // Somebody has to move or repair a file, not to change the configuration.
            state::Error::Newer { .. } | state::Error::Refused { .. } | state::Error::Json(_) => FAILED,
        },
        sync::Error::Table(error) | sync::Error::NotOpened { source: error, .. } => match error {
            TableError::InUse { .. } | TableError::LeaseLost { .. } => LOCKED,
            // Not mounted, read-only, full, or a store that does not answer.
            TableError::Root { .. }
            | TableError::NotWritable { .. }
            | TableError::DiskFull { .. }
            | TableError::Spool(_)
            | TableError::Delta { .. }
            | TableError::Conflict { .. }
            | TableError::Restored { .. }
            | TableError::Engine { is_transient: true, .. } => TEMPORARY,
            TableError::Store(_) | TableError::NotARoot { .. } => CONFIGURATION,
            TableError::StoreFailed { failure, .. } if failure.is_of_configuration() => CONFIGURATION,
            TableError::StoreFailed { .. } | TableError::Permissions { .. } => TEMPORARY,
            TableError::NotOurs { .. }
            | TableError::Unsupported { .. }
            | TableError::Rebuild { .. }
            | TableError::Retention { .. }
            | TableError::Damaged { .. }
            | TableError::LogLost { .. }
            | TableError::Engine { is_transient: false, .. }
            | TableError::Unbalanced { .. } => FAILED,
        },
        sync::Error::LeasedByOther { .. } => LOCKED,
        sync::Error::Lease(_) => TEMPORARY,
        sync::Error::SpoolFolder { .. } | sync::Error::TablesGone { .. } => TEMPORARY,
        // These change a key of the configuration.
        sync::Error::OtherServer { .. } | sync::Error::TwoServers { .. } => CONFIGURATION,
        sync::Error::Export(ExportError::Config { .. } | ExportError::Key { .. } | ExportError::UnusableUrl { .. }) => {
            CONFIGURATION
        }
        // The server is asked by a sync, never by a start.
        sync::Error::Export(_) => FAILED,
        sync::Error::BrokenState { .. } | sync::Error::BrokenDocument { .. } => FAILED,
        sync::Error::TableChanged { .. }
        | sync::Error::Quarantine(_)
        | sync::Error::NotEncrypted
        | sync::Error::QuarantineFull { .. }
        | sync::Error::TooFewLines { .. }
        | sync::Error::CutLine { .. }
        | sync::Error::LongLine { .. }
        | sync::Error::TooManyBadLines { .. }
        | sync::Error::Rows(_)
        | sync::Error::RunTime { .. } => FAILED,
        sync::Error::Stopped => STOPPED,
    }
}

/// Waits for `work`. The first signal cancels `stop`, which ends the work at its next safe point; the second ends the
/// process at once.
pub async fn stoppable<T>(work: impl Future<Output = T>, stop: &CancellationToken) -> Result<T, Exit> {
    let mut signals = Signals::listen().map_err(|error| failed(&format!("signals cannot be received: {error}")))?;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            name = signals.next() => {
                if stop.is_cancelled() {
                    STOPPED.at_once();
                }
                tracing::info!(signal = name, "stopping; a commit that has begun is finished");
                stop.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::store::{Cause, Failure};

    #[test]
    fn only_a_wrong_configuration_ends_for_good_and_what_may_pass_is_tried_again() {
        let place = || "/srv/lake".to_owned();
        let io = |kind: ErrorKind| io::Error::from(kind);
        let listen =
            |kind| daemon::Error::Listen { listen: "127.0.0.1:9187".to_owned(), source: io::Error::from(kind) };
        let table = |error: TableError| daemon::Error::Sync(error.into());
        let store_failed = |cause| table(TableError::StoreFailed { place: place(), failure: Failure::new(cause) });
        let state = |error: state::Error| daemon::Error::Sync(error.into());
        let cases = [
            (listen(ErrorKind::AddrInUse), TEMPORARY),
            (listen(ErrorKind::AddrNotAvailable), TEMPORARY),
            (listen(ErrorKind::PermissionDenied), CONFIGURATION),
            (daemon::Error::NoSchedule, CONFIGURATION),
            (daemon::Error::Signals(io(ErrorKind::Other)), FAILED),
            (table(TableError::Root { place: place(), reason: "Read-only file system".to_owned() }), TEMPORARY),
            (table(TableError::NotWritable { place: place(), kind: ErrorKind::ReadOnlyFilesystem }), TEMPORARY),
            (table(TableError::DiskFull { place: place() }), TEMPORARY),
            (store_failed(Cause::Busy), TEMPORARY),
            (store_failed(Cause::Denied), TEMPORARY),
            (store_failed(Cause::Expired), TEMPORARY),
            (store_failed(Cause::Refused), CONFIGURATION),
            (store_failed(Cause::NoBucket), CONFIGURATION),
            (table(TableError::InUse { place: place(), holder: "process 7".to_owned() }), LOCKED),
            (state(state::Error::Locked { place: place() }), LOCKED),
            (state(state::Error::Io { place: place(), source: io(ErrorKind::StorageFull) }), TEMPORARY),
            (state(state::Error::Refused { place: place(), reason: "it is a FIFO".to_owned() }), FAILED),
            (state(state::Error::Newer { place: place(), found: 9 }), FAILED),
            (
                daemon::Error::Sync(sync::Error::SpoolFolder { place: place(), source: io(ErrorKind::StorageFull) }),
                TEMPORARY,
            ),
            (daemon::Error::Sync(sync::Error::BrokenState { place: place(), kept_as: place() }), FAILED),
            (
                daemon::Error::Sync(sync::Error::OtherServer {
                    name: "fhir".to_owned(),
                    recorded: "https://a".to_owned(),
                    configured: "https://b".to_owned(),
                }),
                CONFIGURATION,
            ),
            (
                daemon::Error::Sync(
                    ExportError::UnusableUrl { context: "server.url".to_owned(), reason: String::new() }.into(),
                ),
                CONFIGURATION,
            ),
            (daemon::Error::Sync(sync::Error::Stopped), STOPPED),
        ];
        for (error, expected) in cases {
            assert_eq!(of_start(&error), expected, "{error}");
        }
    }

    #[test]
    fn help_the_operator_s_page_and_the_readme_name_every_code() {
        let pages = [include_str!("../../docs/operations.md"), include_str!("../../README.md")];
        for exit in [FAILED, PARTIAL, LOCKED, TEMPORARY, CONFIGURATION, STOPPED] {
            assert!(HELP.contains(&format!("\n  {:<5}", exit.0)), "{exit:?}");
            assert!(pages.iter().all(|page| page.contains(&format!("\n| {} | ", exit.0))), "{exit:?}");
        }
    }
}
