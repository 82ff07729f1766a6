//! `sync`: one sync of each export, by a configuration file or by the drop-in flags.

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;

use super::{
    announce,
    by_hand::{self, ByHand},
    config_path,
    exit::{Exit, misconfigured},
    look, show,
};
use crate::{
    config::{self, Config, Flags, Key, Mistakes, Scheduled},
    control::{Answer, Work},
    fhir::ResourceType,
    sync::{Mode, Outcome},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// Configuration file [default: `FHIR_SYNC_CONFIG`, else /etc/fhir-sync/fhir-sync.toml]
    #[arg(short, long, value_name = "FILE", conflicts_with = "fhir_endpoint")]
    config: Option<PathBuf>,
    /// Sync only this export of the configuration
    #[arg(long, value_name = "NAME", conflicts_with = "fhir_endpoint")]
    export: Option<String>,
    /// Ask for all resources, not only for what changed
    #[arg(long)]
    pub full_refresh: bool,
    /// Remove all rows of these types that the full refresh lacks, even if none is left
    #[arg(long, value_name = "TYPE", num_args = 1.., requires = "full_refresh")]
    pub allow_empty: Vec<ResourceType>,
    /// The report of each export as a line of JSON, for programs
    #[arg(long)]
    json: bool,
    /// Base URL of the FHIR server; it takes the place of the configuration file, with the flags below
    #[arg(long, value_name = "URL", requires = "delta_path")]
    fhir_endpoint: Option<String>,
    /// Folder or URL of the Delta tables
    #[arg(long, value_name = "FOLDER", requires = "fhir_endpoint")]
    delta_path: Option<String>,
    /// State file
    #[arg(long, value_name = "FILE", requires = "fhir_endpoint", default_value = "/var/lib/fhir-sync/state.json")]
    state_file: PathBuf,
    /// Resource types
    #[arg(long, value_name = "TYPE", num_args = 1.., requires = "fhir_endpoint",
          default_values = ["Patient", "Condition", "Observation", "Encounter"])]
    pub resource_types: Vec<String>,
    /// Sync only the patients of this Group
    #[arg(long, value_name = "ID", requires = "fhir_endpoint")]
    group_id: Option<String>,
    /// Client id for SMART Backend Services; without it `FHIR_CLIENT_ID`
    // Not clap's `env`: the variable counts as a flag there, and would contradict --config.
    #[arg(long, value_name = "ID", requires = "fhir_endpoint")]
    auth_client_id: Option<String>,
    /// File with the private key; without it `FHIR_PRIVATE_KEY` holds the key itself
    // A PEM begins with a hyphen: given in the place of its file it must not be printed as an unknown argument.
    #[arg(long, value_name = "FILE", requires = "fhir_endpoint", allow_hyphen_values = true)]
    auth_private_key: Option<PathBuf>,
}

pub async fn run(arguments: Arguments) -> Result<(), Exit> {
    let mode = if arguments.full_refresh { Mode::FullRefresh } else { Mode::Incremental };
    let path = arguments.fhir_endpoint.is_none().then(|| config_path(arguments.config.clone()));
    let (only, as_json) = (arguments.export.clone(), arguments.json);
    let allow_empty: BTreeSet<_> = arguments.allow_empty.iter().copied().collect();
    let mut config = arguments.config().map_err(misconfigured)?;
    telemetry::start(&config.log);
    if let Some(only) = only {
        keep_only(&mut config, &only)?;
    }
    announce(&config, path.as_deref());
    let exports: Vec<_> = config.exports.iter().map(|scheduled| scheduled.export.clone()).collect();
    let own = |config| path.as_deref().map_or(Ok(config), by_hand::with_key);
    let by_hand = ByHand::open(config, own).await?;
    let mut worst = Outcome::Complete;
    for export in exports {
        let work = Work::Sync { export, mode, allow_empty: allow_empty.clone() };
        let Answer::Synced(report) = by_hand.work(work).await? else { return Err(by_hand::unexpected()) };
        if as_json {
            show::report_as_json(&report);
        } else {
            show::report(&report);
        }
        worst = worse(worst, report.outcome);
    }
    by_hand.close().await;
    Exit::of(worst)
}

fn keep_only(config: &mut Config, name: &str) -> Result<(), Exit> {
    let is_it = |scheduled: &Scheduled| scheduled.export.name == name;
    if !config.exports.iter().any(is_it) {
        return Err(look::no_such_export(name, config.exports.iter().map(|other| other.export.name.as_str())));
    }
    config.exports.retain(is_it);
    Ok(())
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

impl Arguments {
    fn config(self) -> Result<Config, Mistakes> {
        let Some(fhir_endpoint) = self.fhir_endpoint else {
            let is_given = self.config.is_some() || std::env::var_os("FHIR_SYNC_CONFIG").is_some();
            let path = config_path(self.config);
            if !is_given && matches!(path.try_exists(), Ok(false)) {
                let way_out = "give --config FILE, or --fhir-endpoint with --delta-path";
                return Err(Mistakes::of(format!("{} does not exist; {way_out}", path.display())));
            }
            // Where the service does the work, it has the key.
            return config::check(&path).map(|(config, _)| config);
        };
        let client_id = self.auth_client_id.or_else(|| std::env::var("FHIR_CLIENT_ID").ok());
        let key_text = || std::env::var("FHIR_PRIVATE_KEY").ok().map(Key::Text);
        let key = self.auth_private_key.map(Key::File).or_else(key_text);
        let flags = Flags {
            fhir_endpoint,
            delta_path: self.delta_path.unwrap_or_default(),
            state_file: self.state_file,
            resource_types: self.resource_types,
            group_id: self.group_id,
            client_id,
            key,
        };
        flags.load()
    }
}
