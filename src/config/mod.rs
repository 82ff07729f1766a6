//! The configuration: a file, the environment and flags become the typed settings of every room.
//!
//! Read once, at the start; afterwards nobody can. Every mistake is found at once and named by its key; an unknown key
//! is a mistake. `config/fhir-sync.toml` is the reference: a test holds it to what is read here.

mod flags;
mod maintenance;
mod partitions;
mod section;
mod server;

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
    time::Duration,
};

use chrono::TimeDelta;
use config::{Environment, File, FileFormat, Map, Value};
use url::Url;

use self::section::Section;
pub use self::{
    flags::{Flags, Key},
    maintenance::Maintenance,
    section::Findings,
};
use crate::{
    export::{
        self, Level,
        auth::{self, SigningKey},
    },
    resource::{Layout, Options},
    schedule::Pattern,
    serve, sync,
    table::{self, Location, OBJECT_STORES, UpdateMode},
    telemetry,
};

/// Everything that can be set.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: export::Config,
    pub tables: table::Config,
    pub state_file: PathBuf,
    pub health: serve::Config,
    pub sync: sync::Config,
    pub exports: Vec<Scheduled>,
    pub maintenance: Maintenance,
    /// How long a daemon that is asked to stop may take.
    pub grace_period: Duration,
    pub log: telemetry::Config,
}

/// An export and when it is synced.
#[derive(Clone, Debug)]
pub struct Scheduled {
    pub export: sync::Export,
    pub incremental: Vec<Pattern>,
    pub full_refresh: Vec<Pattern>,
}

/// All mistakes of a configuration, one line each.
#[derive(Debug)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "the configuration cannot be used:")?;
        self.0.iter().try_for_each(|mistake| writeln!(out, "  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// Reads a file and lays the environment over it: `FHIR_SYNC__SECTION__KEY`.
pub fn load(path: &Path) -> Result<Config, Mistakes> {
    read(table(path)?, KeyFile::MustBeThere).0
}

/// As [`load`], on a machine where the secrets need not be: a credential is there only while its service runs. Also gives
/// what is worth saying and is no mistake.
pub fn check(path: &Path) -> Result<(Config, Vec<String>), Mistakes> {
    let (config, findings) = read(table(path)?, KeyFile::MayBeElsewhere);
    Ok((config?, findings.remarks))
}

fn table(path: &Path) -> Result<Map<String, Value>, Mistakes> {
    let file = File::from(path).format(FileFormat::Toml);
    let builder = config::Config::builder().add_source(file).add_source(environment());
    let settings = builder.build().map_err(|error| Mistakes(vec![error.to_string()]))?;
    settings.cache.into_table().map_err(|error| Mistakes(vec![error.to_string()]))
}

/// Whether the file of the private key is read, or may be on another machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyFile {
    MustBeThere,
    MayBeElsewhere,
}

/// Reads a text, as a file with that text would be. `environment` is what the process would have been given.
pub fn parse(text: &str, environment_of: &[(&str, &str)]) -> (Result<Config, Mistakes>, Findings) {
    let given = environment_of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let settings = config::Config::builder()
        .add_source(File::from_str(text, FileFormat::Toml))
        .add_source(environment().source(Some(given)))
        .build()
        .and_then(|settings| settings.cache.into_table());
    match settings {
        Ok(table) => read(table, KeyFile::MustBeThere),
        Err(error) => (Err(Mistakes(vec![error.to_string()])), Findings::default()),
    }
}

fn environment() -> Environment {
    // Without its own separator the prefix would take the one of the sections (config#291).
    Environment::with_prefix("FHIR_SYNC").prefix_separator("__").separator("__")
}

fn read(table: Map<String, Value>, key_file: KeyFile) -> (Result<Config, Mistakes>, Findings) {
    let findings = Rc::new(RefCell::new(Findings::default()));
    let config = read_root(Section::root(table, Rc::clone(&findings)), key_file);
    let findings = findings.take();
    match config {
        Some(config) if findings.mistakes.is_empty() => (Ok(config), findings),
        _ => (Err(Mistakes(findings.mistakes.clone())), findings),
    }
}

/// Reads every section before it gives up, so that every mistake is found.
fn read_root(mut root: Section, key_file: KeyFile) -> Option<Config> {
    let mut server = root.section("server");
    server.renamed(&[("name", "source")]);
    let source = server.or("source", "fhir", name);
    let overlap = server.or("since_overlap", "5m", duration);
    let server = read_server(server, key_file);
    let mut tables = root.section("tables");
    let columns = read_columns(&mut tables);
    let tables = read_tables(tables, columns);
    let mut state = root.section("state");
    let state_file = state.or("file", "/var/lib/fhir-sync/state.json", path);
    state.end();
    let health = read_health(root.section("health"));
    let sync = read_sync(root.section("sync"), state_file.as_deref(), source, overlap, columns);
    let mut daemon = root.section("daemon");
    let grace_period = daemon.or("grace_period", "60s", duration);
    daemon.end();
    let maintenance = maintenance::read(root.section("maintenance"));
    let log = read_log(root.section("log"));
    let exports = read_exports(&mut root);
    root.end();
    Some(Config {
        server: server?,
        tables: tables?,
        state_file: state_file?,
        health: health?,
        sync: sync?,
        exports: exports?,
        maintenance: maintenance?,
        grace_period: grace_period?,
        log: log?,
    })
}

fn read_server(mut section: Section, key_file: KeyFile) -> Option<export::Config> {
    let url = section.required("url", url);
    let allow_http = section.or("allow_http", "false", boolean);
    let auth = read_auth(&mut section, key_file);
    let token_origins = section.list("token_origins", self::url);
    let poll = server::read_poll(section.section("poll"));
    let http = server::read_http(section.section("http"));
    section.end();
    let (auth, url, (http, limits)) = (auth?, url?, http?);
    Some(export::Config {
        allow_http: allow_http?,
        auth,
        token_origins,
        poll: poll?,
        http,
        limits,
        ..export::Config::new(url)
    })
}

/// `None` for a mistake, `Some(None)` for a server without authorization.
#[expect(clippy::option_option, reason = "a mistake and an open server are two things")]
fn read_auth(section: &mut Section, key_file: KeyFile) -> Option<Option<auth::AuthConfig>> {
    let client_id = section.optional("client_id", text);
    let key_path = section.optional("private_key_file", path);
    let key_id = section.optional("key_id", text);
    let token_url = section.optional("token_url", url);
    let scopes = section.list("scopes", text);
    let (client_id, key_path) = match (client_id, key_path) {
        (Some(client_id), Some(key_path)) => (client_id, key_path),
        (Some(_), None) => {
            section.mistake("private_key_file", "is missing; a client_id goes with the file of its private key");
            return None;
        }
        (None, Some(_)) => {
            section.mistake("client_id", "is missing; it goes with private_key_file");
            return None;
        }
        (None, None) => return Some(None),
    };
    if key_file == KeyFile::MayBeElsewhere && !key_path.exists() {
        section.remark("private_key_file", "is not here now; it is read when a sync starts");
        return Some(None);
    }
    match SigningKey::read(&key_path) {
        Ok(mut key) => {
            key.kid = key_id.or(key.kid);
            Some(Some(auth::AuthConfig { client_id, key, token_url, scopes }))
        }
        Err(error) => {
            section.mistake("private_key_file", &said(&error));
            None
        }
    }
}

fn read_tables(mut section: Section, columns: Option<(bool, Options)>) -> Option<table::Config> {
    let root = section.required("root", location);
    section.renamed(&[("merge", "update_mode")]);
    let update_mode = section.or("update_mode", "deletion-vectors", |text| match text {
        "deletion-vectors" => Ok(UpdateMode::DeletionVectors),
        "copy-on-write" => Ok(UpdateMode::CopyOnWrite),
        _ => Err(format!("{text:?} is none of deletion-vectors, copy-on-write")),
    });
    let change_data_feed = section.or("change_data_feed", "false", boolean);
    let storage_options: HashMap<_, _> = section.texts("storage_options").into_iter().collect();
    let partitions = partitions::read(&mut section, columns);
    section.end();
    Some(table::Config {
        storage_options,
        update_mode: update_mode?,
        change_data_feed: change_data_feed?,
        partitions: partitions?,
        ..table::Config::new(root?)
    })
}

/// Whether tables are typed, and how.
fn read_columns(section: &mut Section) -> Option<(bool, Options)> {
    let typed = section.or("typed", "true", boolean);
    let layout = section.or("layout", "pathling", |text| match text {
        "pathling" => Ok(Layout::Pathling),
        "wide" => Ok(Layout::Wide),
        _ => Err(format!("{text:?} is none of pathling, wide")),
    });
    let raw_json = section.or("raw_json", "true", boolean);
    Some((typed?, Options { layout: layout?, raw_json: raw_json? }))
}

fn read_health(mut section: Section) -> Option<serve::Config> {
    let listen = section.or("listen", "127.0.0.1:9187", parsed::<SocketAddr>);
    let max_age = section.or("max_age", "2h", duration);
    section.end();
    Some(serve::Config { listen: listen?, max_age: max_age? })
}

/// Below this, every type would have its rows and their index in crumbs on the disk.
const LEAST_CHANGE_SET_MEMORY_BYTES: u64 = 16 * 1024 * 1024;

fn read_sync(
    mut section: Section,
    state_file: Option<&Path>,
    source: Option<String>,
    overlap: Option<Duration>,
    columns: Option<(bool, Options)>,
) -> Option<sync::Config> {
    let parallel_downloads = section.or("parallel_downloads", "4", number);
    let parallel_upserts = section.or("parallel_upserts", "2", number);
    section.renamed(&[
        ("max_line_bytes", "max_line_size"),
        ("max_bad_lines", "max_quarantined"),
        ("max_bad_lines_percent", "max_quarantined_percent"),
        ("max_gone", "max_missing"),
        ("max_gone_percent", "max_missing_percent"),
    ]);
    let max_line_bytes = section.or("max_line_size", "64MiB", bytes);
    let max_quarantined = section.or("max_quarantined", "20", whole);
    let max_quarantined_percent = section.or("max_quarantined_percent", "1", percent);
    let max_missing = section.or("max_missing", "20", whole);
    let max_missing_percent = section.or("max_missing_percent", "10", percent);
    let change_set_memory_bytes = section.or("change_set_memory", "256MiB", bytes);
    let spool_folder = section.optional("spool_folder", path);
    if change_set_memory_bytes.is_some_and(|bytes| bytes < LEAST_CHANGE_SET_MEMORY_BYTES) {
        section.mistake("change_set_memory", "is less than 16MiB; all types share it");
    }
    section.end();
    // "state.json" alone stands in the folder that is no text at all.
    let beside_state = state_file.and_then(Path::parent).map(|folder| Path::new(".").join(folder));
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (typed, columns) = columns?;
    Some(sync::Config {
        typed,
        columns,
        source: source?.into(),
        overlap: TimeDelta::from_std(overlap?).ok()?,
        parallel_downloads: parallel_downloads?,
        parallel_upserts: parallel_upserts?,
        max_line_bytes: size(max_line_bytes?),
        quarantine: sync::QuarantineLimit {
            max_quarantined: max_quarantined?,
            max_quarantined_percent: max_quarantined_percent?,
        },
        reconcile: table::Reconcile { max_missing: max_missing?, max_missing_percent: max_missing_percent? },
        change_set_memory_bytes: size(change_set_memory_bytes?),
        spool_folder: spool_folder.or(beside_state)?,
    })
}

fn read_log(mut section: Section) -> Option<telemetry::Config> {
    let format = section.or("format", "auto", parsed);
    let filter = section.or("filter", "info", text);
    section.end();
    Some(telemetry::Config { format: format?, filter: filter? })
}

fn read_exports(root: &mut Section) -> Option<Vec<Scheduled>> {
    let sections = root.sections("export");
    if sections.is_empty() {
        root.mistake("export", "is missing; say what to sync in [[export]]");
        return None;
    }
    let mut exports: Vec<Option<Scheduled>> = Vec::new();
    for mut section in sections {
        let name = section.required("name", name);
        if let Some(name) = &name
            && exports.iter().flatten().any(|other| other.export.name == *name)
        {
            section.mistake("name", "is the name of another export too; watermarks are kept by it");
        }
        exports.push(read_export(section, name));
    }
    let mut exports: Vec<Scheduled> = exports.into_iter().collect::<Option<_>>()?;
    keep_shared_types(&mut exports);
    Some(exports)
}

/// A row that one export lacks may be another's: a type of several exports is not reconciled.
fn keep_shared_types(exports: &mut [Scheduled]) {
    let all: Vec<_> = exports.iter().flat_map(|scheduled| scheduled.export.types.clone()).collect();
    for scheduled in exports {
        scheduled.export.reconciled.retain(|of| all.iter().filter(|other| *other == of).count() == 1);
    }
}

fn read_export(mut section: Section, name: Option<String>) -> Option<Scheduled> {
    let level = section.or("level", "system", one_of(&["system", "patient", "group"]));
    let group = section.optional("group", text);
    let mut types = section.list("types", parsed);
    types.sort_unstable();
    types.dedup();
    if types.is_empty() {
        section.mistake("types", "must name at least one resource type; without it servers send what they like");
    }
    let reconcile = section.optional("reconcile", boolean);
    let incremental = section.whole_list("incremental", Pattern::from_str);
    let full_refresh = section.whole_list("full_refresh", Pattern::from_str);
    let level = match (level.as_deref(), group) {
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
    };
    section.end();
    let (name, level) = (name?, level?);
    // Who leaves a group is still a patient: below the system level only the operator can say that rows may go (rule 112).
    let reconcile = reconcile.unwrap_or(level == Level::System);
    let reconciled = types.iter().copied().filter(|_| reconcile).collect();
    Some(Scheduled { export: sync::Export { name, level, types, reconciled }, incremental, full_refresh })
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Names stand in logs, in tables and in the names of files.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= 64 && text.chars().all(plain) && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name: up to 64 letters, digits, - _ and ."))
}

fn parsed<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

fn one_of(words: &'static [&'static str]) -> impl Fn(&str) -> Result<String, String> {
    move |text| {
        let known = words.contains(&text);
        known.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is none of {}", words.join(", ")))
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn number<T: TryFrom<u32>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| format!("{text:?} is no number from 1 to 1000"))
}

fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no whole number"))
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| format!("{text:?} is no number from 0 to 100"))
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is no duration such as \"90s\", \"5m\" or \"2h\""))
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 0,
    };
    let size = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| format!("{text:?} is no size such as \"64MiB\" or \"2GiB\""))
}

/// A duration as [`duration`] reads it.
fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A size as [`bytes`] reads it, in the largest unit that it is a multiple of.
fn size_text(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(size, _)| bytes.is_multiple_of(*size));
    unit.map_or(bytes.to_string(), |(size, name)| format!("{}{name}", bytes / size))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if matches!(url.scheme(), "http" | "https") { Ok(url) } else { Err(format!("{text:?} is no http or https URL")) }
}

/// A folder, `file://…`, or a place in an object store that this binary was built for.
fn location(text: &str) -> Result<Location, String> {
    let Some((scheme, _)) = text.split_once("://") else { return path(text).map(Location::Folder) };
    let url: Url = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if scheme == "file" {
        return url.to_file_path().map(Location::Folder).map_err(|()| format!("{text:?} names no folder"));
    }
    if OBJECT_STORES.contains(&scheme) {
        return Ok(Location::ObjectStore(url));
    }
    let built_for = if OBJECT_STORES.is_empty() { "none".to_owned() } else { OBJECT_STORES.join(", ") };
    Err(format!("{text:?}: this binary was not built for {scheme}:// (object stores built in: {built_for})"))
}

/// An error with its causes, in one line.
fn said(error: &dyn std::error::Error) -> String {
    sync::chain(error)
}

#[cfg(test)]
mod tests;
