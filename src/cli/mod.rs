//! The commands: the arguments become one of them, and each ends in an exit code.

// It panics where the reader has closed the pipe; `say!` and `look::print` do not.
#![deny(clippy::print_stdout)]

/// A line on the standard output. A reader that closes the pipe early, such as `head`, does not end the work.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod by_hand;
mod check;
mod columns;
mod demo;
mod exit;
mod file_or_flags;
mod healthcheck;
mod help;
mod job;
mod jwks;
mod keygen;
mod look;
mod maintain;
mod manual;
mod paint;
mod progress;
mod quarantine;
#[cfg(feature = "sql")]
mod query;
mod run;
mod runs;
mod settings;
mod show;
mod state;
mod status;
mod sync;
mod verify;
mod version;
mod views;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::LazyLock,
};

use clap::{Args, FromArgMatches as _, Parser, Subcommand};

use crate::{
    config::{self, Config},
    sync::Location,
    telemetry::panics,
};

/// Keeps a Delta Lake copy of a FHIR server.
#[derive(Parser, Debug)]
#[command(version = VERSION.as_str(), about, after_help = exit::HELP)]
pub struct Cli {
    /// Colours in the log, tables and helps; `auto`: on a terminal, unless `NO_COLOR` is set
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    color: paint::When,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Syncs synthetic patients from a built-in server into ./fhir-sync-demo and shows what changed
    Demo(demo::Arguments),
    /// Syncs once, then exits
    Sync(sync::Arguments),
    /// Runs as a daemon that syncs on a schedule
    Run(ConfigFile),
    /// Validates the configuration, and with --online tries what a sync needs
    Check(check::Arguments),
    /// Prints the effective configuration, the reference, or the schema of both
    #[command(subcommand)]
    Config(settings::ConfigCommand),
    /// Compacts and vacuums the tables
    Maintain(maintain::Arguments),
    /// Runs an SQL query over the tables and prints the result
    #[cfg(feature = "sql")]
    Query(query::Arguments),
    /// Runs an SQL query over the tables; this program was built without it
    #[cfg(not(feature = "sql"))]
    #[command(hide = true, disable_help_flag = true)]
    Query(WithoutQuery),
    /// Prints SQL that creates flat views over the tables, such as patient, encounter, condition and observation
    Views(views::Arguments),
    /// Shows the ledger: what each run brought, type by type
    Runs(runs::Arguments),
    /// Shows how each export and type stands, also beside a running daemon
    Status(status::Arguments),
    /// Shows or cancels the exports that the server works on for us
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Shows the state file, or lets the next sync ask for what changed since an earlier time
    #[command(subcommand)]
    State(state::StateCommand),
    /// Compares the tables with the ledger, and says what differs
    Verify(verify::Arguments),
    /// Shows, replays and purges the lines that are not resources
    Quarantine(quarantine::Arguments),
    /// Makes a key pair for SMART Backend Services and prints the public key to register
    Keygen(keygen::Arguments),
    /// Prints the public keys of the configuration, to be registered at the server
    Jwks(ConfigFile),
    /// Shows version, commit, features, and the versions of what the tables depend on
    Version(version::Arguments),
    /// Prints the completions of a shell
    Completions(manual::CompletionsArguments),
    /// Prints the manual page, or writes the pages of all commands
    Man(manual::ManArguments),
    /// Asks a running daemon whether its data are fresh
    Healthcheck(healthcheck::Arguments),
}

/// Whatever a query was to be.
#[cfg(not(feature = "sql"))]
#[derive(Args, Debug)]
struct WithoutQuery {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<String>,
}

#[cfg(not(feature = "sql"))]
fn built_without_query() -> exit::Exit {
    eprintln!(
        "fhir-sync: this program was built without `query`; build it with cargo build --release --features sql, or use \
         DuckDB, Polars or Spark (docs/tables.md)"
    );
    exit::CONFIGURATION
}

/// Where the configuration is.
#[derive(Args, Debug)]
struct ConfigFile {
    /// Configuration file
    #[arg(id = "config", short, long, value_name = "FILE", env = "FHIR_SYNC_CONFIG", default_value = config::DEFAULT_PATH)]
    path: PathBuf,
}

impl Cli {
    /// Of this process. Ends it after `--help`, `--version` and mistakes.
    pub fn of_process() -> Self {
        panics::log_places();
        let color = paint::When::of_help(std::env::args_os().filter_map(|word| word.into_string().ok()));
        let matches = help::command_for_terminal().color(color).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Does what the arguments say.
    pub async fn run(self) -> ExitCode {
        self.color.choose();
        let result = match self.command {
            Command::Demo(arguments) => demo::run(arguments).await,
            Command::Sync(arguments) => sync::run(arguments).await,
            Command::Run(config) => run::run(&config.path).await,
            Command::Check(arguments) => check::run(&arguments).await,
            Command::Config(command) => settings::run(command),
            Command::Maintain(arguments) => maintain::run(arguments).await,
            #[cfg(feature = "sql")]
            Command::Query(arguments) => query::run(arguments).await,
            #[cfg(not(feature = "sql"))]
            Command::Query(_) => Err(built_without_query()),
            Command::Views(arguments) => views::run(arguments),
            Command::Runs(arguments) => runs::run(arguments).await,
            Command::Status(arguments) => status::run(arguments).await,
            Command::Job(command) => job::run(command).await,
            Command::State(command) => state::run(command).await,
            Command::Keygen(arguments) => keygen::run(&arguments),
            Command::Jwks(config) => jwks::run(config).await,
            Command::Version(arguments) => version::run(&arguments),
            Command::Completions(arguments) => manual::completions(&arguments),
            Command::Man(arguments) => manual::man(&arguments),
            Command::Verify(arguments) => verify::run(arguments).await,
            Command::Quarantine(arguments) => quarantine::run(arguments).await,
            Command::Healthcheck(arguments) => healthcheck::run(arguments).await,
        };
        result.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
    }
}

/// The configuration file of a command that also works without one. clap's `env` and default would contradict the other
/// flags of such a command.
fn config_path(given: Option<PathBuf>) -> PathBuf {
    let of_environment = || std::env::var_os("FHIR_SYNC_CONFIG").map(PathBuf::from);
    given.or_else(of_environment).unwrap_or_else(|| config::DEFAULT_PATH.into())
}

/// The commit that the program was built from, where the build names it.
fn commit() -> Option<&'static str> {
    option_env!("FHIR_SYNC_COMMIT").filter(|commit| !commit.is_empty())
}

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = commit().map(|commit| format!(" ({commit})")).unwrap_or_default();
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
});

/// The first line of a log: what runs, and with what. `path` is the configuration file, where there is one.
fn announce(config: &Config, path: Option<&Path>) {
    let exports: Vec<_> = config.exports.iter().map(|scheduled| scheduled.export.name.as_str()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = commit(),
        config = path.map(|path| tracing::field::display(path.display())),
        server = config.server.server.origin().ascii_serialization(),
        tables = shown(&config.tables.root),
        state = config.state.shown(),
        exports = exports.join(", "),
        "fhir-sync starts"
    );
}

/// Of a URL the part that cannot hold a secret.
fn shown(root: &Location) -> String {
    match root {
        Location::Folder(folder) => folder.display().to_string(),
        Location::ObjectStore(url) => {
            format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::fhir::ResourceType;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_arguments_are_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_of_the_sync_script_are_understood() {
        let cron = "fhir-sync sync --fhir-endpoint https://ehr.example.org/fhir --delta-path /data/delta \
                    --state-file /var/lib/fhir-sync/state.json --resource-types Patient Condition --group-id g \
                    --full-refresh --auth-client-id me --auth-private-key /etc/key.jwk";
        let Command::Sync(arguments) = parse(cron).unwrap().command else { panic!("not a sync") };
        assert_eq!(arguments.from.resource_types, ["Patient", "Condition"]);
        let Command::Sync(arguments) = parse(&cron.replace("Patient Condition", "Patient,Condition")).unwrap().command
        else {
            panic!("not a sync")
        };
        assert_eq!(arguments.from.resource_types, ["Patient", "Condition"], "with a comma, too");
        assert!(arguments.full_refresh && arguments.allow_empty.is_empty());
        let emptied = format!("{cron} --allow-empty Patient");
        let Command::Sync(arguments) = parse(&emptied).unwrap().command else { panic!("not a sync") };
        assert_eq!(arguments.allow_empty, [ResourceType::PATIENT]);
        assert_eq!(parse("fhir-sync sync --config a.toml --allow-empty Patient").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_commands_that_look_take_the_flags_of_a_sync_without_a_file() {
        let flags = "--fhir-endpoint https://ehr.example.org/fhir --delta-path /data/delta --state-file /data/state.json \
                     --resource-types Patient --auth-client-id me --auth-private-key /etc/key.jwk";
        let looking =
            ["verify --online", "status", "runs --limit 5", "quarantine list", "job show", "state show --json"];
        for command in looking {
            assert!(parse(&format!("fhir-sync {command} {flags}")).is_ok(), "{command}");
            assert!(parse(&format!("fhir-sync {command} -c a.toml {flags}")).is_err(), "{command}");
        }
    }

    #[test]
    fn maintenance_and_a_rebuild_exclude_each_other() {
        assert!(parse("fhir-sync maintain --config a.toml").is_ok());
        assert!(parse("fhir-sync maintain --config a.toml --dry-run --force Patient Observation").is_ok());
        assert!(parse("fhir-sync maintain --config a.toml --rebuild Patient Observation").is_ok());
        assert_eq!(parse("fhir-sync maintain --config a.toml --dry-run --rebuild Patient").unwrap_err().exit_code(), 2);
        assert_eq!(parse("fhir-sync maintain --config a.toml patient").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_sync_takes_either_a_file_or_flags() {
        assert_eq!(parse("fhir-sync sync --config a.toml --group-id g").unwrap_err().exit_code(), 2);
        let both = parse("fhir-sync sync --config a.toml --fhir-endpoint https://a --delta-path b").unwrap_err();
        assert_eq!(both.exit_code(), 2);
        assert!(parse("fhir-sync sync").is_ok(), "the file is at its usual place");
        for flag in ["--group-id g", "--resource-types Patient", "--state-file s", "--auth-client-id me"] {
            let alone = parse(&format!("fhir-sync sync {flag}")).unwrap_err().to_string();
            assert!(alone.contains("--fhir-endpoint <URL>"), "{alone}");
        }
        let half = parse("fhir-sync sync --fhir-endpoint https://a").unwrap_err().to_string();
        assert!(half.contains("--delta-path <FOLDER>"), "{half}");
    }

    #[cfg(not(feature = "sql"))]
    #[test]
    fn a_query_that_was_not_built_names_its_feature_whatever_is_asked() {
        for line in ["fhir-sync query --help", "fhir-sync query --delta-path lake SELECT"] {
            let Command::Query(_) = parse(line).unwrap().command else { panic!("not a query") };
        }
        assert_eq!(built_without_query(), exit::CONFIGURATION);
    }
}
