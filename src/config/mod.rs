//! The configuration: a file, the environment and flags become the typed settings of every room.
//!
//! It is read at the start, and again at a reload. All mistakes are reported at once, each with its key; an unknown key
//! is a mistake. `config/fhir-sync.toml` is the reference: a test compares it with what is read here.

mod authorization;
mod effective;
mod exports;
mod flags;
mod maintenance;
mod memory;
mod network;
mod notifications;
mod parameters;
mod partitions;
mod profile;
mod quarantine;
mod schema;
mod secrets;
mod section;
mod server;
mod sources;
mod spark;
mod stores;
mod values;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use chrono::TimeDelta;
use config::{Map, Value};

use self::{
    authorization::KeyFile,
    memory::MemoryLimit,
    section::Section,
    values::{
        address, boolean, bytes, bytes_or_none, code, count, duration, duration_text, line_bytes, location, name,
        number, parsed, path, percent, positive_duration, proxy, size_text, text, url, whole,
    },
};
pub use self::{
    effective::effective,
    flags::{Flags, Key},
    maintenance::Maintenance,
    schema::schema,
    section::Findings,
};
use crate::{
    export, notify,
    resource::{Layout, Options as ColumnOptions},
    schedule::Pattern,
    serve,
    state::{LeasedBy, StatePlace},
    store::{self, Location, cache},
    sync,
    table::{self, UpdateMode},
    telemetry,
};

/// Where the packages put the configuration, and where commands look for it unless they are told otherwise.
pub const DEFAULT_PATH: &str = "/etc/fhir-sync/fhir-sync.toml";

/// The reference: every key with its default and what it does.
pub const SAMPLE: &str = include_str!("../../config/fhir-sync.toml");

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: export::Config,
    pub tables: table::Config,
    pub state: StatePlace,
    pub health: serve::Config,
    pub notify: notify::Config,
    pub sync: sync::Config,
    pub exports: Vec<Scheduled>,
    pub maintenance: Maintenance,
    /// How long the daemon may take to stop.
    pub grace_period: Duration,
    /// How long work may show no progress before it counts as hanging.
    pub stall_timeout: Duration,
    pub log: telemetry::Config,
}

impl Config {
    /// The control socket has this path and the suffix `.socket`.
    pub fn control(&self) -> PathBuf {
        match &self.state {
            StatePlace::File(file) => file.clone(),
            StatePlace::Documents { .. } => self.sync.spool_folder.join(format!("fhir-sync-{}", self.state.digest())),
        }
    }

    /// Does the daemon have anything to do?
    pub fn has_schedule(&self) -> bool {
        self.exports.iter().any(Scheduled::has_schedule)
    }
}

/// An export and when it is synced.
#[derive(Clone, Debug)]
pub struct Scheduled {
    pub export: sync::Export,
    pub incremental: Vec<Pattern>,
    pub full_refresh: Vec<Pattern>,
    /// How old the data may be; without it two intervals of the schedule, and the longest of the last runs.
    pub max_age: Option<Duration>,
}

impl Scheduled {
    fn has_schedule(&self) -> bool {
        !(self.incremental.is_empty() && self.full_refresh.is_empty())
    }
}

/// All mistakes of a configuration, one line each.
#[derive(Debug)]
pub struct Mistakes {
    pub lines: Vec<String>,
    /// None of them is one of the configuration itself: what it names may answer later.
    pub is_temporary: bool,
}

impl Mistakes {
    /// One that only somebody who corrects the configuration can end.
    pub fn of(line: String) -> Self {
        Self { lines: vec![line], is_temporary: false }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "the configuration cannot be used{}:", if self.is_temporary { " now" } else { "" })?;
        self.lines.iter().try_for_each(|mistake| writeln!(out, "  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// Reads a file, then the environment, which wins over it: `FHIR_SYNC__SECTION__KEY`.
pub fn load(path: &Path) -> Result<Config, Mistakes> {
    read(sources::of_file(path)?, &KeyFile::MustExist).0
}

/// As [`load`], on a machine where the private key may be missing: a systemd credential exists only while the service
/// runs. Also returns remarks: what is worth knowing and not a mistake.
pub fn check(path: &Path) -> Result<(Config, Vec<String>), Mistakes> {
    with_remarks(path, &KeyFile::MayBeElsewhere)
}

/// As [`load`], with the remarks of [`check`].
pub fn check_with_key(path: &Path) -> Result<(Config, Vec<String>), Mistakes> {
    with_remarks(path, &KeyFile::MustExist)
}

fn with_remarks(path: &Path, key_file: &KeyFile) -> Result<(Config, Vec<String>), Mistakes> {
    let (config, mut findings) = read(sources::of_file(path)?, key_file);
    let config = config?;
    if !config.has_schedule() {
        findings.remarks.push("export: none has a schedule, so `fhir-sync run` will refuse to start".to_owned());
    }
    findings.remarks.extend(profile::unseen_deletions(&findings.asked, &config.exports));
    findings.remarks.extend(with_one_underscore(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())));
    Ok((config, findings.remarks))
}

/// Variables that were probably meant to be settings.
fn with_one_underscore(names: impl Iterator<Item = String>) -> Vec<String> {
    let is_other = |name: &str| {
        let rest = name.strip_prefix("FHIR_SYNC_")?;
        (!rest.starts_with('_') && !matches!(rest, "CONFIG" | "COMMIT")).then_some(())
    };
    let remark = |name: String| format!("{name}: is not read; between the parts of a setting are two underscores");
    names.filter(|name| is_other(name).is_some()).map(remark).collect()
}

/// Only where the listener is, for those who ask it: a mistake in another section does not concern them.
pub fn health(path: &Path) -> Result<serve::Config, Mistakes> {
    let findings = Rc::new(RefCell::new(Findings::default()));
    let health = read_health(Section::root(sources::of_file(path)?, Rc::clone(&findings)).section("health"));
    health.map(|(config, _)| config).ok_or_else(|| findings.take().mistakes())
}

/// Reads a text as if it were a file. `environment_of` replaces the environment of the process.
pub fn parse(text: &str, environment_of: &[(&str, &str)]) -> (Result<Config, Mistakes>, Findings) {
    match sources::of_text_and(text, environment_of) {
        Ok(table) => read(table, &KeyFile::MustExist),
        Err(mistakes) => (Err(mistakes), Findings::default()),
    }
}

fn read(mut table: Map<String, Value>, key_file: &KeyFile) -> (Result<Config, Mistakes>, Findings) {
    let mut found = Findings::default();
    profile::apply(&mut table, &mut found);
    let findings = Rc::new(RefCell::new(found));
    let config = read_root(Section::root(table, Rc::clone(&findings)), key_file);
    let findings = findings.take();
    match config {
        Some(config) if findings.mistakes.is_empty() => (Ok(config), findings),
        _ => (Err(findings.mistakes()), findings),
    }
}

/// Reads every section before it fails, so that all mistakes are found.
fn read_root(mut root: Section, key_file: &KeyFile) -> Option<Config> {
    let mut server = root.section("server");
    server.renamed(&[("name", "source")]);
    let source_chosen = if server.has("source") { sync::Chosen::ByOperator } else { sync::Chosen::ByDefault };
    let source = server.or("source", "fhir", name).map(|source| (source, source_chosen));
    let overlap = server.or("since_overlap", "5m", duration);
    let supports_since = server.or("supports_since", "true", boolean);
    let drop_unsupported_types = server.or("drop_unsupported_types", "false", boolean);
    // What it sets was put in its place before.
    let _ = server.optional("profile", |name| Ok(name.to_owned()));
    let server = server::read(server, key_file);
    let kick_off = server.as_ref().map(|server| server.kick_off.method).unwrap_or_default();
    let mut tables = root.section("tables");
    let columns = read_columns(&mut tables);
    let (tables, spark) = read_tables(tables, columns, key_file);
    let mut daemon = root.section("daemon");
    let state = read_state(root.section("state"), tables.as_ref(), &mut daemon, key_file);
    let health = read_health(root.section("health"));
    if let (Some((serve::Config { serve_jwks: true, .. }, _)), Some(server)) = (&health, &server)
        && !matches!(server.auth, Some(export::auth::AuthConfig::Smart(_)))
    {
        root.mistake("health.serve_jwks", "is true, and server.auth is not \"smart\": there are no keys to serve");
    }
    let mut sync = root.section("sync");
    let quarantine_policy = quarantine::read(sync.section("quarantine"), key_file);
    let memory = memory::read(&mut sync);
    let sync = read_sync(sync, state.as_ref(), source, overlap, columns, quarantine_policy, memory);
    let sync = sync.zip(supports_since.zip(drop_unsupported_types)).zip(spark);
    let sync = sync.map(|((sync, (supports_since, drop_unsupported_types)), spark)| sync::Config {
        drop_unsupported_types,
        supports_since,
        spark,
        ..sync
    });
    let tables = tables.zip(sync.as_ref().zip(memory)).map(|(tables, (sync, memory))| within(tables, sync, memory));
    let grace_period = daemon.or("grace_period", "60s", duration);
    let stall_timeout = daemon.or("stall_timeout", "30m", positive_duration);
    daemon.end();
    let maintenance = maintenance::read(root.section("maintenance"));
    let log = read_log(root.section("log"));
    let mut heartbeats = BTreeMap::new();
    let max_age = health.as_ref().and_then(|(_, max_age)| *max_age);
    let exports = exports::read(&mut root, max_age, &mut heartbeats, key_file, kick_off);
    let notify = notifications::read(root.section("notify"), heartbeats, key_file);
    root.end();
    Some(Config {
        server: server?,
        tables: tables?,
        state: state?,
        health: health?.0,
        notify: notify?,
        sync: sync?,
        exports: exports?,
        maintenance: maintenance?,
        grace_period: grace_period?,
        stall_timeout: stall_timeout?,
        log: log?,
    })
}

/// The tables, and where Spark writes those of resources.
#[expect(clippy::option_option, reason = "a mistake and an engine without settings are different")]
fn read_tables(
    mut section: Section,
    columns: Option<(bool, ColumnOptions)>,
    key_file: &KeyFile,
) -> (Option<table::Config>, Option<Option<crate::spark::Config>>) {
    let root = section.required("root", location);
    section.renamed(&[("merge", "update_mode")]);
    let update_modes = UpdateMode::ALL.map(|mode| (mode.name(), mode));
    let update_mode = section.choice("update_mode", UpdateMode::default().name(), &update_modes);
    let change_data_feed =
        section.or("change_data_feed", &table::Config::DEFAULT_CHANGE_DATA_FEED.to_string(), boolean);
    let storage_options = stores::read(&mut section, root.as_ref(), key_file);
    let cache_bytes = section.or("cache_size", "1GiB", bytes_or_none);
    // Before the sections of types, one of which it would be.
    let spark = section.section("spark");
    let partitions = partitions::read(&mut section, columns);
    let is_partitioned = partitions.as_ref().is_some_and(|partitions| !partitions.is_empty());
    let spark = spark::read(&mut section, spark, is_partitioned);
    section.end();
    // Its folder is that of the spool, which is not known here.
    let cache = |max_bytes| cache::Settings { folder: PathBuf::new(), max_bytes };
    let tables = || {
        Some(table::Config {
            storage_options: storage_options?,
            cache: Some(cache_bytes?).filter(|bytes| *bytes > 0).map(cache),
            update_mode: update_mode?,
            change_data_feed: change_data_feed?,
            partitions: partitions?,
            ..table::Config::new(root?)
        })
    };
    (tables(), spark)
}

fn read_state(
    mut section: Section,
    tables: Option<&table::Config>,
    daemon: &mut Section,
    key_file: &KeyFile,
) -> Option<StatePlace> {
    let share_exports = daemon.or("share_exports", "false", boolean);
    let leased_by = if share_exports == Some(true) { LeasedBy::Several } else { LeasedBy::One };
    let has_file = section.has("file");
    let file = section.or("file", "/var/lib/fhir-sync/state.json", path);
    let url = section.optional("url", location);
    if has_file && url.is_some() {
        section.mistake("url", "and state.file are both set; the state is in one of them");
    }
    if url.is_none() && leased_by == LeasedBy::Several {
        daemon.mistake("share_exports", "is true, and state.url is not set: the processes have no state in common");
    }
    let has_options = section.has("storage_options");
    if url.is_none() && has_options {
        section.mistake("storage_options", "are for state.url, which is not set");
    }
    let of_tables = tables.map(|tables| tables.storage_options.clone());
    // Certificates and proxy are those of the tables.
    let base = of_tables.as_ref().map(store::Options::of_http).unwrap_or_default();
    let own = stores::read_options(&mut section, url.as_ref(), base, key_file);
    section.end();
    let Some(location) = url else { return file.map(StatePlace::File) };
    let options = if has_options || !is_same_service(&location, &tables?.root) { Some(own) } else { of_tables };
    Some(StatePlace::Documents { location, options: options?, leased_by })
}

fn is_same_service(one: &Location, other: &Location) -> bool {
    let service = |location: &Location| match location {
        Location::Folder(_) => None,
        Location::ObjectStore(url) => store::Service::of(url),
    };
    service(one) == service(other)
}

/// Where received rows wait, and the control socket is, unless the configuration says where.
fn folder_of_this_machine(state: &StatePlace) -> PathBuf {
    match state {
        // The parent of "state.json" is "", which is not a path that can be opened.
        StatePlace::File(file) => Path::new(".").join(file.parent().unwrap_or(Path::new(""))),
        // systemd names the folder of a service that has one.
        StatePlace::Documents { .. } => {
            std::env::var_os("CACHE_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from)
        }
    }
}

/// The cache of an object store is on the disk of the spool, and row groups are within the memory limit.
fn within(mut tables: table::Config, sync: &sync::Config, memory: MemoryLimit) -> table::Config {
    if let Some(cache) = &mut tables.cache {
        sync.spool_folder.clone_into(&mut cache.folder);
    }
    table::Config { row_groups_bytes: memory.row_groups() / sync.parallel_upserts.max(1), ..tables }
}

/// Whether tables are typed, and their columns.
fn read_columns(section: &mut Section) -> Option<(bool, ColumnOptions)> {
    let typed = section.or("typed", "true", boolean);
    let layout = section.choice("layout", "pathling", &[("pathling", Layout::Pathling), ("wide", Layout::Wide)]);
    let raw_json = section.or("raw_json", "true", boolean);
    Some((typed?, ColumnOptions { layout: layout?, raw_json: raw_json? }))
}

/// The listener, and the age of the exports that set none of their own.
fn read_health(mut section: Section) -> Option<(serve::Config, Option<Duration>)> {
    let listen = section.or("listen", "127.0.0.1:9187", address);
    let max_age = section.optional("max_age", positive_duration);
    let serve_jwks = section.or("serve_jwks", "false", boolean);
    section.end();
    Some((serve::Config { listen: listen?, serve_jwks: serve_jwks? }, max_age))
}

const RENAMED_IN_SYNC: [(&str, &str); 5] = [
    ("max_line_bytes", "max_line_size"),
    ("max_bad_lines", "max_quarantined"),
    ("max_bad_lines_percent", "max_quarantined_percent"),
    ("max_gone", "max_missing"),
    ("max_gone_percent", "max_missing_percent"),
];

fn read_sync(
    mut section: Section,
    state: Option<&StatePlace>,
    source: Option<(String, sync::Chosen)>,
    overlap: Option<Duration>,
    columns: Option<(bool, ColumnOptions)>,
    quarantine_policy: Option<sync::Policy>,
    memory: Option<MemoryLimit>,
) -> Option<sync::Config> {
    let parallel_downloads = section.or("parallel_downloads", "4", number);
    let parallel_upserts = section.or("parallel_upserts", "2", number);
    section.renamed(&RENAMED_IN_SYNC);
    let max_line_bytes = section.or("max_line_size", "64MiB", line_bytes);
    let (quarantine, reconcile) = read_limits(&mut section);
    let max_quarantine_bytes = section.or("max_quarantine_size", "1GiB", bytes);
    let accept_reported_errors = section.list("accept_reported_errors", code);
    let recheck_absent = section.or("recheck_absent", "24h", duration);
    let spool_folder = section.optional("spool_folder", path);
    let max_run_time = section.or("max_run_time", "30days", positive_duration);
    let instalment_bytes = section.or("instalment_size", "4GiB", bytes);
    let partial_interval = section.or("partial_interval", "15m", positive_duration);
    section.end();
    let of_state = state.map(folder_of_this_machine);
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (typed, columns) = columns?;
    let (source, source_chosen) = source?;
    Some(sync::Config {
        typed,
        columns,
        source: source.into(),
        source_chosen,
        overlap: TimeDelta::from_std(overlap?).ok()?,
        recheck_absent: TimeDelta::from_std(recheck_absent?).ok()?,
        parallel_downloads: parallel_downloads?,
        parallel_upserts: parallel_upserts?,
        max_line_bytes: size(max_line_bytes?),
        quarantine: quarantine?,
        reconcile: reconcile?,
        allow_empty: BTreeSet::new(),
        drop_unsupported_types: false,
        max_quarantine_bytes: max_quarantine_bytes?,
        quarantine_policy: quarantine_policy?,
        accept_reported_errors: accept_reported_errors?.into_iter().collect(),
        change_set_memory_bytes: memory?.change_sets(),
        decoding_memory_bytes: memory?.decoding(),
        spool_folder: spool_folder.or(of_state)?,
        instalment_bytes: instalment_bytes?,
        max_run_time: max_run_time?,
        partial_interval: partial_interval?,
        supports_since: true,
        spark: None,
    })
}

/// How many lines may be no resources, and how many rows a full refresh may remove.
fn read_limits(section: &mut Section) -> (Option<sync::QuarantineLimit>, Option<table::Reconcile>) {
    let max_quarantined = section.or("max_quarantined", "20", whole);
    let max_quarantined_percent = section.or("max_quarantined_percent", "1", percent);
    let max_missing = section.or("max_missing", "20", whole);
    let max_missing_percent = section.or("max_missing_percent", "10", percent);
    let quarantine = max_quarantined.zip(max_quarantined_percent).map(|(max_quarantined, max_quarantined_percent)| {
        sync::QuarantineLimit { max_quarantined, max_quarantined_percent }
    });
    let reconcile = max_missing.zip(max_missing_percent).map(|(max_missing, max_missing_percent)| table::Reconcile {
        max_missing,
        max_missing_percent,
        allow_empty: false,
    });
    (quarantine, reconcile)
}

fn read_log(mut section: Section) -> Option<telemetry::Config> {
    let formats =
        [("auto", telemetry::Format::Auto), ("pretty", telemetry::Format::Pretty), ("json", telemetry::Format::Json)];
    let format = section.choice("format", "auto", &formats);
    let filter = section.or("filter", "info", str::parse);
    section.end();
    Some(telemetry::Config { format: format?, filter: filter? })
}

#[cfg(test)]
mod tests;
