//! The verdict: what `/health` says, in words.

use std::time::Duration;

use super::words::{counted, duration, list};
use crate::{
    serve::{
        health::{ExportHealth, Health, TypeHealth},
        view::{ExportView, TypeView, View},
    },
    sync::Step,
};

/// How a thing stands; each has a colour, a shape and a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Good,
    Warning,
    /// The first load is in progress.
    Loading,
    Bad,
}

impl Standing {
    /// For the style sheet and the icon.
    pub fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Loading => "loading",
            Self::Bad => "bad",
        }
    }

    /// Beside the name of an export.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "fresh",
            Self::Warning => "fresh, with warnings",
            Self::Loading => "first load",
            Self::Bad => "not fresh",
        }
    }
}

/// A headline, and a sentence below it.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub standing: Standing,
    pub headline: String,
    pub detail: String,
}

/// What is known of the data of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    TooOld,
    /// Never loaded, or lost.
    NoData,
    /// The same, and it is being loaded for the first time.
    Loading,
    /// Nothing arrived, and it is unknown whether there is anything; it was asked for in time.
    Unconfirmed,
}

/// How a type of this export stands.
pub fn freshness(export: &ExportView, of: &TypeView, health: &TypeHealth) -> Freshness {
    match (health.status.is_healthy(), of.data.is_some()) {
        (true, true) => Freshness::Fresh,
        (true, false) => Freshness::Unconfirmed,
        (false, true) => Freshness::TooOld,
        (false, false) if is_first_load(export) => Freshness::Loading,
        (false, false) => Freshness::NoData,
    }
}

/// Nothing was complete yet, and a run is at work. A failure ends the patience with it.
fn is_first_load(export: &ExportView) -> bool {
    export.last_complete.is_none() && export.failures_in_a_row == 0 && export.progress.step != Step::Idle
}

pub fn of_export(export: &ExportView, health: &ExportHealth) -> Standing {
    if health.status.is_healthy() {
        return if export.warnings.is_empty() { Standing::Good } else { Standing::Warning };
    }
    let is_old = !named(export, health, Freshness::TooOld).is_empty();
    if is_first_load(export) && !is_old { Standing::Loading } else { Standing::Bad }
}

/// The types that stand so.
fn named(export: &ExportView, health: &ExportHealth, wanted: Freshness) -> Vec<String> {
    let stands =
        |of: &&TypeView| health.types.get(&of.name).is_some_and(|health| freshness(export, of, health) == wanted);
    export.types.iter().filter(stands).map(|of| of.name.clone()).collect()
}

/// `is_alive`: whether the daemon's loop has shown a sign of life, and what is at work advances.
pub fn of_all(view: &View, health: &Health, is_alive: bool) -> Verdict {
    if !is_alive {
        return Verdict {
            standing: Standing::Bad,
            headline: "The daemon hangs".to_owned(),
            detail: "Its event loop does not respond, or what is at work does not advance.".to_owned(),
        };
    }
    let exports: Vec<_> = view.exports.iter().filter_map(|of| Some((of, health.exports.get(&of.name)?))).collect();
    let standing = exports.iter().map(|(of, health)| of_export(of, health)).max().unwrap_or(Standing::Good);
    let all = |wanted| exports.iter().flat_map(|(of, health)| named(of, health, wanted)).collect::<Vec<_>>();
    let (headline, detail) = match standing {
        Standing::Good | Standing::Warning => (fresh(view), scope(view, health)),
        Standing::Loading => {
            let loading = exports.iter().filter(|(of, health)| of_export(of, health) == Standing::Loading);
            let names: Vec<_> = loading.map(|(of, _)| of.name.clone()).collect();
            let headline = "The first load is in progress".to_owned();
            (headline, format!("Of {}. Until it is complete, /health answers 503.", list(&names)))
        }
        Standing::Bad => not_fresh(&all(Freshness::TooOld), &all(Freshness::NoData)),
    };
    let detail = if view.ready { detail } else { format!("{detail} The daemon is starting or stopping.") };
    Verdict { standing, headline, detail }
}

fn fresh(view: &View) -> String {
    match view.exports.iter().map(|export| export.warnings.len() as u64).sum::<u64>() {
        0 => "All data are fresh".to_owned(),
        warnings => format!("All data are fresh, with {}", counted(warnings, "warning")),
    }
}

/// How much there is, and how old the oldest of it is.
fn scope(view: &View, health: &Health) -> String {
    let types: usize = view.exports.iter().map(|export| export.types.len()).sum();
    let (types, exports) = (counted(types as u64, "type"), counted(view.exports.len() as u64, "export"));
    let oldest = health.exports.values().filter_map(|export| export.data_age_seconds).max();
    let age = oldest.map(|seconds| format!(" The oldest data are {} old.", duration(Duration::from_secs(seconds))));
    format!("{types} in {exports}.{}", age.unwrap_or_default())
}

fn not_fresh(old: &[String], missing: &[String]) -> (String, String) {
    let has = |names: &[String]| if names.len() == 1 { "has" } else { "have" };
    let types = |names: &[String]| match names {
        [one] => one.clone(),
        several => counted(several.len() as u64, "type"),
    };
    let headline = match (old, missing) {
        (old, []) => format!("The data of {} are too old", types(old)),
        ([], missing) => format!("{} {} no data", types(missing), has(missing)),
        (old, missing) => {
            format!("The data of {} are too old, and {} {} no data", types(old), types(missing), has(missing))
        }
    };
    let too_old = (!old.is_empty()).then(|| format!("Too old: {}.", list(old)));
    let no_data = (!missing.is_empty()).then(|| format!("No data: {}.", list(missing)));
    (headline, [too_old, no_data].into_iter().flatten().collect::<Vec<_>>().join(" "))
}
