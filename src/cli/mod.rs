//! The commands: arguments become one of a handful of things to do, and each ends in an exit code.

mod demo;
mod maintain;
mod show;
mod views;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    config::{self, Config, Flags, Key, Mistakes},
    daemon::{self, Ended, Signals},
    serve, state,
    sync::{self, Mode, Outcome, ProgressSender, Syncer, chain},
    telemetry,
};

/// Keeps a Delta Lake copy of a FHIR server.
#[derive(Parser, Debug)]
#[command(version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done; for a sync: complete
  1    failed
  2    the arguments are wrong
  3    partial: something was committed, something is missing or in quarantine
  11   another fhir-sync holds the state file
  78   the configuration is wrong
  130  stopped by a signal; the next start goes on";

#[derive(Subcommand, Debug)]
enum Command {
    /// Syncs synthetic patients from a server of its own into ./fhir-sync-demo, and shows what happened
    Demo(demo::Arguments),
    /// Syncs once, then exits
    Sync(SyncArguments),
    /// Syncs by the schedule until it is stopped
    Run {
        /// The configuration file
        #[arg(short, long, env = "FHIR_SYNC_CONFIG")]
        config: PathBuf,
    },
    /// Reads the configuration and says everything that is wrong with it; asks nobody
    Check {
        /// The configuration file
        #[arg(short, long, env = "FHIR_SYNC_CONFIG")]
        config: PathBuf,
    },
    /// Puts small files of the tables together and deletes what nobody needs; no other fhir-sync may hold the state file
    Maintain(maintain::Arguments),
    /// Prints SQL that makes flat views over the tables: patient, encounter, condition, observation and so on
    Views(views::Arguments),
    /// Asks a running daemon whether the data are fresh: exit code 0 or 1
    Healthcheck {
        /// Where its health listener is
        #[arg(long, default_value = "http://127.0.0.1:9187/health")]
        url: Url,
    },
}

#[derive(Args, Debug)]
struct SyncArguments {
    /// The configuration file; without it the flags below say what to sync
    // No `env` here: a variable that is there for the daemon would contradict the flags.
    #[arg(short, long, required_unless_present_all = ["fhir_endpoint", "delta_path"],
          conflicts_with_all = ["fhir_endpoint", "delta_path", "state_file", "resource_types", "group_id", "auth_client_id"])]
    config: Option<PathBuf>,
    /// Only this export of the configuration
    #[arg(long, requires = "config")]
    export: Option<String>,
    /// Ask for everything, not only for what changed
    #[arg(long)]
    full_refresh: bool,
    /// The base URL of the FHIR server
    #[arg(long, requires = "delta_path")]
    fhir_endpoint: Option<String>,
    /// The folder of the Delta tables
    #[arg(long, requires = "fhir_endpoint")]
    delta_path: Option<String>,
    /// The state file
    #[arg(long, default_value = "/var/lib/fhir-sync/state.json")]
    state_file: PathBuf,
    /// Resource types
    #[arg(long, num_args = 1.., default_values = ["Patient", "Condition", "Observation", "Encounter"])]
    resource_types: Vec<String>,
    /// Only the patients of this Group
    #[arg(long)]
    group_id: Option<String>,
    /// Client id for SMART Backend Services; without it `FHIR_CLIENT_ID`
    // Not clap's `env`: the variable of the script before us would count as a flag, and contradict --config.
    #[arg(long, requires = "fhir_endpoint")]
    auth_client_id: Option<String>,
    /// File with the private key; without it the key itself is taken from `FHIR_PRIVATE_KEY`
    #[arg(long, requires = "fhir_endpoint")]
    auth_private_key: Option<PathBuf>,
}

/// Something that ends a command, with its exit code. What went wrong has been said.
struct Ends(u8);

const FAILED: Ends = Ends(1);
const PARTIAL: Ends = Ends(3);
const LOCKED: Ends = Ends(11);
const CONFIGURATION: Ends = Ends(78);
const STOPPED: Ends = Ends(130);

impl Cli {
    /// Does what the arguments say.
    pub async fn run(self) -> ExitCode {
        let ended = match self.command {
            Command::Demo(arguments) => demo::run(arguments).await,
            Command::Sync(arguments) => sync_once(arguments).await,
            Command::Run { config } => run(config).await,
            Command::Check { config } => check(&config),
            Command::Maintain(arguments) => maintain::run(arguments).await,
            Command::Views(arguments) => views::run(arguments),
            Command::Healthcheck { url } => healthcheck(&url),
        };
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(Ends(code)) => ExitCode::from(code),
        }
    }
}

async fn run(path: PathBuf) -> Result<(), Ends> {
    let config = config::load(&path).map_err(misconfigured)?;
    telemetry::start(&config.log);
    match daemon::run(config).await {
        Ok(Ended::Gracefully) => Ok(()),
        // Other threads may still be at work; the process does not wait for them.
        Ok(Ended::AtOnce) => std::process::exit(i32::from(STOPPED.0)),
        Err(daemon::Error::Sync(error)) => Err(did_not_start(&error)),
        Err(error) => {
            eprintln!("fhir-sync: {}", chain(&error));
            Err(match error {
                daemon::Error::NoSchedule | daemon::Error::Listen { .. } => CONFIGURATION,
                _ => FAILED,
            })
        }
    }
}

async fn sync_once(arguments: SyncArguments) -> Result<(), Ends> {
    let mode = if arguments.full_refresh { Mode::FullRefresh } else { Mode::Incremental };
    let only = arguments.export.clone();
    let mut config = arguments.config().map_err(misconfigured)?;
    telemetry::start(&config.log);
    config.exports.retain(|scheduled| only.as_ref().is_none_or(|only| *only == scheduled.export.name));
    if config.exports.is_empty() {
        eprintln!("fhir-sync: the configuration has no export {:?}", only.unwrap_or_default());
        return Err(CONFIGURATION);
    }
    let exports: Vec<_> = config.exports.into_iter().map(|scheduled| scheduled.export).collect();
    let (sender, progress) = ProgressSender::new();
    let syncer = Syncer::open(config.server, config.tables, &config.state_file, config.sync, &exports, sender)
        .await
        .map_err(|error| did_not_start(&error))?;
    let stop = CancellationToken::new();
    let mut worst = Outcome::Complete;
    for export in &exports {
        let run = show::with_progress(syncer.run(export, mode, &stop), progress.clone());
        let report = stoppable(run, &stop).await?;
        show::report(&report);
        worst = worse(worst, report.outcome);
    }
    match worst {
        Outcome::Complete => Ok(()),
        Outcome::Partial => Err(PARTIAL),
        Outcome::Failed => Err(FAILED),
        Outcome::Stopped => Err(STOPPED),
    }
}

/// Passes the first signal on as a wish to stop; the second ends the process.
async fn stoppable<T>(work: impl Future<Output = T>, stop: &CancellationToken) -> Result<T, Ends> {
    let mut signals = Signals::listen().map_err(|error| {
        eprintln!("fhir-sync: signals cannot be received: {error}");
        FAILED
    })?;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            name = signals.next() => {
                if stop.is_cancelled() {
                    std::process::exit(i32::from(STOPPED.0));
                }
                tracing::info!(signal = name, "stopping; a commit that has begun is finished");
                stop.cancel();
            }
        }
    }
}

fn worse(a: Outcome, b: Outcome) -> Outcome {
    let rank = |outcome| match outcome {
        Outcome::Complete => 0,
        Outcome::Partial => 1,
        Outcome::Failed => 2,
        Outcome::Stopped => 3,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn check(path: &Path) -> Result<(), Ends> {
    let (config, remarks) = config::check(path).map_err(misconfigured)?;
    for remark in remarks {
        println!("{remark}");
    }
    println!("{}: {} exports, no mistakes", path.display(), config.exports.len());
    Ok(())
}

fn healthcheck(url: &Url) -> Result<(), Ends> {
    match serve::ask(url) {
        Ok((true, body)) => {
            println!("{body}");
            Ok(())
        }
        Ok((false, body)) => {
            println!("{body}");
            Err(FAILED)
        }
        Err(error) => {
            eprintln!("fhir-sync: {url} does not answer: {error}");
            Err(FAILED)
        }
    }
}

impl SyncArguments {
    fn config(self) -> Result<Config, Mistakes> {
        if let Some(path) = self.config {
            return config::load(&path);
        }
        let client_id = self.auth_client_id.or_else(|| std::env::var("FHIR_CLIENT_ID").ok());
        let auth = match (client_id, self.auth_private_key, std::env::var("FHIR_PRIVATE_KEY")) {
            (Some(client_id), Some(path), _) => Some((client_id, Key::File(path))),
            (Some(client_id), None, Ok(text)) => Some((client_id, Key::Text(text))),
            (Some(_), None, Err(_)) => {
                let way_out = "a client id needs --auth-private-key or the key in FHIR_PRIVATE_KEY";
                return Err(Mistakes(vec![way_out.to_owned()]));
            }
            (None, Some(_), _) => {
                let way_out = "--auth-private-key needs --auth-client-id, or the client id in FHIR_CLIENT_ID";
                return Err(Mistakes(vec![way_out.to_owned()]));
            }
            (None, None, _) => None,
        };
        let flags = Flags {
            fhir_endpoint: self.fhir_endpoint.unwrap_or_default(),
            delta_path: self.delta_path.unwrap_or_default(),
            state_file: self.state_file,
            resource_types: self.resource_types,
            group_id: self.group_id,
            auth,
        };
        flags.load()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it ends the mistakes")]
fn misconfigured(mistakes: Mistakes) -> Ends {
    eprint!("fhir-sync: {mistakes}");
    CONFIGURATION
}

/// What stands in the way of a start is mostly a place that cannot be used; only time mends a full disk.
fn did_not_start(error: &sync::Error) -> Ends {
    eprintln!("fhir-sync: {}", chain(error));
    match error {
        sync::Error::State(state::Error::Locked { .. }) => LOCKED,
        _ if is_full(error) => FAILED,
        _ => CONFIGURATION,
    }
}

fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull);
    io || error.source().is_some_and(is_full)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_of_the_script_before_us_are_understood() {
        let cron = "fhir-sync sync --fhir-endpoint https://ehr.example.org/fhir --delta-path /data/delta \
                    --state-file /var/lib/fhir-sync/state.json --resource-types Patient Condition --group-id g \
                    --full-refresh --auth-client-id me --auth-private-key /etc/key.jwk";
        let cli = Cli::try_parse_from(cron.split_whitespace()).unwrap();
        let Command::Sync(arguments) = cli.command else { panic!("not a sync") };
        assert_eq!(arguments.resource_types, ["Patient", "Condition"]);
        assert!(arguments.full_refresh);
    }

    #[test]
    fn maintenance_and_a_rebuild_are_two_things() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        assert!(parse("fhir-sync maintain --config a.toml").is_ok());
        assert!(parse("fhir-sync maintain --config a.toml --dry-run --force Patient Observation").is_ok());
        assert!(parse("fhir-sync maintain --config a.toml --rebuild Patient Observation").is_ok());
        assert_eq!(parse("fhir-sync maintain --config a.toml --dry-run --rebuild Patient").unwrap_err().exit_code(), 2);
        assert_eq!(parse("fhir-sync maintain --config a.toml patient").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn flags_and_a_file_together_are_a_contradiction() {
        let both = "fhir-sync sync --config a.toml --group-id g";
        assert_eq!(Cli::try_parse_from(both.split_whitespace()).unwrap_err().exit_code(), 2);
        assert_eq!(Cli::try_parse_from(["fhir-sync", "sync"]).unwrap_err().exit_code(), 2);
    }
}
