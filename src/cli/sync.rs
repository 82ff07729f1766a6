//! `sync`: one sync of each export, by a configuration file or by the drop-in flags.

use std::collections::BTreeSet;

use clap::Args;

use super::{
    announce,
    by_hand::{self, ByHand},
    exit::{Exit, misconfigured},
    file_or_flags::FileOrFlags,
    look, show,
};
use crate::{
    config::{Config, Scheduled},
    control::{Answer, Work},
    fhir::ResourceType,
    sync::{Mode, Outcome},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub from: FileOrFlags,
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
}

pub async fn run(arguments: Arguments) -> Result<(), Exit> {
    let mode = if arguments.full_refresh { Mode::FullRefresh } else { Mode::Incremental };
    let path = arguments.from.path();
    let (only, as_json) = (arguments.export.clone(), arguments.json);
    let allow_empty: BTreeSet<_> = arguments.allow_empty.iter().copied().collect();
    // Where the service does the work, it has the key.
    let mut config = arguments.from.settings().map_err(misconfigured)?;
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
