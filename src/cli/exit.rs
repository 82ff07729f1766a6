//! Exit codes: how a command ends, for scripts and service managers. The reason is printed or logged before.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::{
    config::Mistakes,
    daemon::Signals,
    sync::{self, Outcome, chain},
};

/// A command that did not succeed, by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(u8);

pub const FAILED: Exit = Exit(1);
pub const PARTIAL: Exit = Exit(3);
pub const LOCKED: Exit = Exit(11);
pub const CONFIGURATION: Exit = Exit(78);
pub const STOPPED: Exit = Exit(130);

/// What `--help` says about them.
pub const HELP: &str = "\
Exit codes:
  0    success; of a sync: complete; of a healthcheck: healthy
  1    failed; of a healthcheck: unhealthy or no response; of verify: something differs
  2    invalid arguments
  3    partial: something was committed, something failed or was quarantined
  11   another fhir-sync holds the state file or the tables
  78   the configuration is wrong, or a folder, file or address that it names cannot be used
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

/// Prints the mistakes of a configuration.
#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err takes")]
pub fn misconfigured(mistakes: Mistakes) -> Exit {
    eprint!("fhir-sync: {mistakes}");
    CONFIGURATION
}

/// Prints why nothing could be opened.
#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err takes")]
pub fn not_opened(error: sync::Error) -> Exit {
    eprintln!("fhir-sync: {}", chain(&error));
    of_opening(&error)
}

/// The same for a command that is given by hand, maybe beside the service.
pub fn not_opened_by_hand(error: sync::Error) -> Exit {
    let exit = not_opened(error);
    if exit == LOCKED {
        eprintln!("fhir-sync: stop the service first, such as by `systemctl stop fhir-sync`, and start it afterwards");
    }
    exit
}

/// Mostly a place cannot be used, which somebody has to change; a full disk may have room at the next attempt.
pub fn of_opening(error: &sync::Error) -> Exit {
    match error {
        error if error.is_held_by_another() => LOCKED,
        _ if is_full(error) => FAILED,
        _ => CONFIGURATION,
    }
}

fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull);
    io || error.source().is_some_and(is_full)
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
