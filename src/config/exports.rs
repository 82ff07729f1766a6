//! `[[export]]`: what is synced, and when.

use std::{collections::BTreeMap, str::FromStr as _, time::Duration};

use chrono::DateTime;

use super::{
    KeyFile, Scheduled,
    notifications::secret_url,
    parameters,
    section::Section,
    values::{boolean, duration_text, name, positive_duration, text},
};
use crate::{
    export::{KickOffMethod, Level},
    fhir::UnknownResourceType,
    notify::SecretUrl,
    schedule::{Pattern, longest_interval},
    sync::{self, Joiners, Leavers},
};

/// `max_age` is that of the exports that set none of their own. `heartbeats` gets those of single exports.
pub fn read(
    root: &mut Section,
    max_age: Option<Duration>,
    heartbeats: &mut BTreeMap<String, SecretUrl>,
    key_file: &KeyFile,
    kick_off: KickOffMethod,
) -> Option<Vec<Scheduled>> {
    let sections = root.sections("export");
    if sections.is_empty() {
        root.mistake("export", "is missing; name what to sync in [[export]]");
        return None;
    }
    let mut exports: Vec<Option<Scheduled>> = Vec::new();
    for mut section in sections {
        let name = section.required("name", name);
        if let Some(name) = &name
            && exports.iter().flatten().any(|other| other.export.name == *name)
        {
            section.mistake("name", "is also the name of another export; it names the watermarks");
        }
        let heartbeat = secret_url(&mut section, "heartbeat_url", key_file);
        heartbeats.extend(name.clone().zip(heartbeat));
        exports.push(read_export(section, name, max_age, kick_off));
    }
    let mut exports: Vec<Scheduled> = exports.into_iter().collect::<Option<_>>()?;
    keep_shared_types(&mut exports);
    remark_ages(root, &exports);
    Some(exports)
}

/// Beside exports that the daemon syncs, one that it does not sync is still watched.
fn remark_ages(root: &Section, exports: &[Scheduled]) {
    if !exports.iter().any(Scheduled::has_schedule) {
        return;
    }
    for (index, export) in exports.iter().enumerate() {
        if !export.has_schedule() && export.max_age.is_none() {
            let what =
                "is not set, and the export has no schedule: two hours after each sync by hand /health is unhealthy";
            root.remark(&format!("export[{index}].max_age"), what);
        }
    }
}

/// A row that is missing in one export may be in another: a type of several exports is not reconciled.
fn keep_shared_types(exports: &mut [Scheduled]) {
    let all: Vec<_> = exports.iter().flat_map(|scheduled| scheduled.export.types.clone()).collect();
    for scheduled in exports {
        scheduled.export.reconciled.retain(|of| all.iter().filter(|other| *other == of).count() == 1);
    }
}

fn read_export(
    mut section: Section,
    name: Option<String>,
    max_age: Option<Duration>,
    kick_off: KickOffMethod,
) -> Option<Scheduled> {
    let level = section.choice("level", "system", &["system", "patient", "group"].map(|word| (word, word)));
    let group = section.optional("group", text);
    let types = section.list("types", |text| text.parse().map_err(|error: UnknownResourceType| error.to_string()));
    if types.as_ref().is_some_and(Vec::is_empty) {
        section.mistake("types", "must name at least one resource type; without any, the server would choose");
    }
    let parameters = parameters::read(&mut section, level, types.as_deref(), kick_off);
    let initial_since = section.optional("initial_since", parameters::instant);
    let reconcile = section.optional_boolean("reconcile");
    let allow_partial_manifests = section.or("allow_partial_manifests", "false", boolean);
    let (joiners, leavers) = read_members(&mut section, level, reconcile);
    let incremental = section.whole_list("incremental", Pattern::from_str);
    let full_refresh = section.whole_list("full_refresh", Pattern::from_str);
    let max_age = section.optional("max_age", positive_duration).or(max_age);
    let patterns: Vec<_> = incremental.iter().chain(&full_refresh).cloned().collect();
    if let (Some(max_age), Some(interval)) = (max_age, longest_interval(&patterns, DateTime::UNIX_EPOCH))
        && max_age < interval
    {
        let (max_age, interval) = (duration_text(max_age), duration_text(interval));
        let remark = format!("{max_age} is less than {interval} between two syncs: /health is unhealthy in between");
        section.remark("max_age", &remark);
    }
    if let (Some(initial_since), Some(until)) = (&initial_since, parameters.as_ref().and_then(|of| of.until.as_ref()))
        && initial_since >= until
    {
        section.mistake("initial_since", "is not before until: the export would be empty");
    }
    let level = read_level(&section, level, group);
    section.end();
    let (name, level, mut types, parameters) = (name?, level?, types?, parameters?);
    let (allow_partial_manifests, joiners, leavers) = (allow_partial_manifests?, joiners?, leavers?);
    types.sort_unstable();
    types.dedup();
    // A person who leaves a group still exists, and so does a resource that leaves a filter (rule 25): the operator has
    // to allow removals there (rule 112).
    let is_everything = level == Level::System && !parameters.narrow() && initial_since.is_none();
    let reconcile = reconcile.unwrap_or(is_everything || leavers == Leavers::Remove);
    let reconciled = types.iter().copied().filter(|_| reconcile).collect();
    let export = sync::Export {
        reconciled,
        allow_partial_manifests,
        parameters,
        initial_since,
        joiners,
        leavers,
        ..sync::Export::new(&name, level, types)
    };
    Some(Scheduled { export, incremental, full_refresh, max_age })
}

/// What is done about those who join and leave a group.
fn read_members(
    section: &mut Section,
    level: Option<&str>,
    reconcile: Option<bool>,
) -> (Option<Joiners>, Option<Leavers>) {
    let joiners = [("ask-for", Joiners::AskFor), ("server", Joiners::Server)];
    let joiners = section.choice("joiners", "ask-for", &joiners);
    let leavers = [("keep", Leavers::Keep), ("flag", Leavers::Flag), ("remove", Leavers::Remove)];
    let leavers = section.choice("leavers", "keep", &leavers);
    let is_set =
        [("joiners", joiners == Some(Joiners::Server)), ("leavers", leavers.is_some_and(|of| of != Leavers::Keep))];
    for (key, _) in is_set.into_iter().filter(|(_, is_set)| *is_set && level.is_some_and(|level| level != "group")) {
        section.mistake(key, "is set, but level is not \"group\"");
    }
    if leavers == Some(Leavers::Remove) && reconcile == Some(false) {
        section.mistake("leavers", "is \"remove\", but reconcile is false; only a load that reconciles removes rows");
    }
    (joiners, leavers)
}

fn read_level(section: &Section, level: Option<&str>, group: Option<String>) -> Option<Level> {
    match (level, group) {
        // In a URL, these would name another resource.
        (Some("group"), Some(group)) if matches!(group.as_str(), "." | "..") => {
            section.mistake("group", &format!("{group:?} is not the id of a Group"));
            None
        }
        (Some("group"), Some(group)) => Some(Level::Group(group)),
        (Some("group"), None) => {
            section.mistake("group", "is missing; level = \"group\" needs the id of a Group");
            None
        }
        (Some(_), Some(_)) => {
            section.mistake("group", "is set, but level is not \"group\"");
            None
        }
        (Some("patient"), None) => Some(Level::Patient),
        (Some(_), None) => Some(Level::System),
        (None, _) => None,
    }
}
