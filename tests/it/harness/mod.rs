//! A setup: a real server with a small world, and a folder for the state file and the tables.
//!
//! Each sync opens state file and tables again, so that it knows only what is on the disk.

mod daemon;
mod made;
mod process;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use arrow::array::AsArray as _;
use chrono::TimeDelta;
use fhir_sync::{
    demo::{Server, World},
    export::{self, Level, WaitRange},
    fhir::{ResourceType, TransactionTime},
    resource::{Layout, Options},
    state::{LeasedBy, StatePlace},
    sync::{self, Export, Mode, Outcome, ProgressBoard, Report, Syncer, TypeEnd},
    table::{self, Location, QuarantineRow, Reconcile, Root},
};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::read_back;

pub use self::{
    daemon::Daemon,
    made::{Made, ndjson},
    process::{BINARY, Ended, Process, RARELY, json_of},
};

pub const PATIENT: ResourceType = ResourceType::PATIENT;
pub const OBSERVATION: ResourceType = ResourceType::OBSERVATION;
pub const CONDITION: ResourceType = ResourceType::CONDITION;
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
pub const HOUR: Duration = Duration::from_hours(1);

/// The longest that a test waits for anything.
pub const LIMIT: Duration = Duration::from_secs(40);

pub struct Setup {
    pub server: Server,
    pub folder: TempDir,
    pub export: Export,
    /// The export's settings of a sync in this process; another process reads [`Setup::config`].
    pub client: export::Config,
    pub config: sync::Config,
    pub state: StatePlace,
    /// The schedule of a daemon.
    pub schedule: &'static str,
}

impl Setup {
    /// Five patients and four observations of midnight. It is one o'clock now, so that the overlap of the next sync
    /// does not include them.
    pub async fn new() -> Self {
        let mut world = World::new();
        for number in 1..=5 {
            world.put(PATIENT, &format!("p{number}"), json!({"gender": "female", "birthDate": "1970-01-01"}));
        }
        for number in 1..=4 {
            world.put(OBSERVATION, &format!("o{number}"), json!({"status": "final", "valueInteger": number}));
        }
        world.advance(HOUR);
        Self::with_world(world).await
    }

    pub async fn with_world(world: World) -> Self {
        install_crypto();
        let folder = TempDir::new().unwrap();
        let server = Server::start(world, ANY_PORT).await.unwrap();
        let client = client(&server);
        let config = sync::Config {
            source: "hospital".into(),
            source_chosen: sync::Chosen::ByDefault,
            overlap: TimeDelta::minutes(5),
            recheck_absent: TimeDelta::hours(24),
            drop_unsupported_types: false,
            parallel_downloads: 4,
            parallel_upserts: 2,
            max_line_bytes: 1 << 20,
            quarantine: sync::QuarantineLimit { max_quarantined: 0, max_quarantined_percent: 1.0 },
            reconcile: Reconcile { max_missing: 0, max_missing_percent: 10.0, allow_empty: false },
            allow_empty: BTreeSet::new(),
            max_quarantine_bytes: 1 << 20,
            quarantine_policy: sync::Policy::Plain,
            accept_reported_errors: BTreeSet::new(),
            change_set_memory_bytes: 1 << 20,
            decoding_memory_bytes: 96 << 20,
            spool_folder: folder.path().join("state"),
            instalment_bytes: 1 << 30,
            supports_since: true,
            max_run_time: Duration::from_hours(1),
            partial_interval: Duration::ZERO,
            typed: true,
            columns: Options { layout: Layout::Pathling, raw_json: true },
            spark: None,
        };
        let types = vec![OBSERVATION, PATIENT];
        let export = Export::new("all", Level::System, types);
        let state = StatePlace::File(folder.path().join("state/state.json"));
        Self { server, folder, export, client, config, state, schedule: RARELY }
    }

    pub fn state_file(&self) -> PathBuf {
        self.folder.path().join("state/state.json")
    }

    /// Keeps the state in documents of a folder that several machines could share.
    pub fn with_state_in_documents(self) -> Self {
        self.with_state_leased_by(LeasedBy::One)
    }

    pub fn with_state_leased_by(mut self, leased_by: LeasedBy) -> Self {
        fs::create_dir(self.folder.path().join("state")).unwrap();
        let location = Location::Folder(self.folder.path().join("shared"));
        let options = fhir_sync::store::Options::default();
        self.state = StatePlace::Documents { location, options, leased_by };
        self
    }

    pub fn lake(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    /// Moves the server's clock by an hour, then changes its data.
    pub fn later(&self, change: impl FnOnce(&mut World)) {
        self.server.world(|world| {
            world.advance(HOUR);
            change(world);
        });
    }

    /// Opens everything, as a process does when it starts.
    pub async fn open(&self) -> Result<Syncer, sync::Error> {
        self.open_with(std::slice::from_ref(&self.export)).await
    }

    /// The same with these exports.
    pub async fn open_with(&self, exports: &[Export]) -> Result<Syncer, sync::Error> {
        let (client, config) = (self.client.clone(), self.config.clone());
        Syncer::open(client, self.tables(), &self.state, config, exports, ProgressBoard::new().0).await
    }

    /// An incremental sync with any outcome.
    pub async fn sync(&self) -> Report {
        self.run(Mode::Incremental).await
    }

    /// An incremental sync that must be complete.
    pub async fn complete(&self) -> Report {
        let report = self.sync().await;
        assert_eq!(report.outcome, Outcome::Complete, "{report:#?}");
        report
    }

    /// A sync in this process. Checks in every test that all received resources are accounted for.
    pub async fn run(&self, mode: Mode) -> Report {
        let report = self.open().await.unwrap().run(&self.export, mode, &CancellationToken::new()).await;
        for (resource_type, of) in &report.types {
            let is_written = matches!(of.end, TypeEnd::Committed { .. } | TypeEnd::WatermarkHeld { .. });
            let is_balanced = of.received == of.accounted();
            assert!(!is_written || is_balanced, "{resource_type}: {of:#?}");
        }
        report
    }

    /// The tables hold exactly the lines of the server, each once.
    pub async fn assert_same_as_server(&self) {
        for resource_type in &self.export.types {
            let mut expected: Vec<String> =
                self.server.world(|world| world.resources(*resource_type).map(|(_, line)| line.to_owned()).collect());
            expected.sort();
            assert_eq!(self.lines(*resource_type).await, expected, "{resource_type}");
        }
    }

    /// All stored lines of a type, sorted; none if there is no table.
    pub async fn lines(&self, of: ResourceType) -> Vec<String> {
        let root = self.root();
        if root.open(of).await.unwrap().is_none() {
            return Vec::new();
        }
        let rows = read_back::read(&self.table_folder(of), &["resource_json"]).unwrap();
        let Some(lines) = rows.column_by_name("resource_json") else { return Vec::new() };
        let lines = arrow::compute::cast(lines, &arrow::datatypes::DataType::Utf8).unwrap();
        let mut lines: Vec<_> = lines.as_string::<i32>().iter().map(|line| line.unwrap().to_owned()).collect();
        lines.sort();
        lines
    }

    pub async fn watermark(&self, of: ResourceType) -> Option<TransactionTime> {
        let table = self.root().open(of).await.unwrap()?;
        table.watermark(&self.export.app_id(&self.config.source)).await.unwrap()
    }

    pub fn table_folder(&self, of: ResourceType) -> PathBuf {
        self.lake().join(format!("{of}.parquet"))
    }

    /// The names of a table's Parquet files.
    pub fn data_files(&self, of: ResourceType) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.table_folder(of)) else { return BTreeSet::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".parquet")).collect()
    }

    /// The names of the Parquet files that commits have added to a table.
    pub fn data_files_of_the_log(&self, of: ResourceType) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.table_folder(of).join("_delta_log")) else { return BTreeSet::new() };
        let commits = entries.map(|entry| entry.unwrap().path());
        let commits = commits.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let texts: Vec<String> = commits.map(|path| fs::read_to_string(path).unwrap()).collect();
        let actions = texts
            .iter()
            .flat_map(|text| text.lines())
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        actions.filter_map(|action| Some(action["add"]["path"].as_str()?.to_owned())).collect()
    }

    /// The quarantined lines, oldest run first.
    pub async fn quarantine(&self) -> Vec<QuarantineRow> {
        let rows = self.root().quarantine().await.unwrap();
        let mut lines = HashMap::new();
        let wanted = rows.iter().map(|row| row.id.clone()).collect();
        let mut take = |row: QuarantineRow| {
            lines.insert(row.id, row.content);
        };
        self.root().read_quarantine(&wanted, &mut take).await.unwrap();
        rows.into_iter().map(|row| QuarantineRow { content: lines.remove(&row.id).unwrap(), ..row }).collect()
    }

    /// The number of requests for files so far.
    pub fn file_requests(&self) -> usize {
        self.server.requests().iter().filter(|request| request.path.contains("/bulkfiles/")).count()
    }

    pub fn root(&self) -> Root {
        Root::new(self.tables()).unwrap()
    }

    fn tables(&self) -> table::Config {
        table::Config::new(Location::Folder(self.lake()))
    }
}

/// The default settings, with waits that suit a test.
pub fn client(server: &Server) -> export::Config {
    let wait = WaitRange::new(Duration::from_millis(10), Duration::from_millis(50)).unwrap();
    let mut config = export::Config::new(server.url());
    config.poll.interval = wait;
    config.http.retry_wait = wait;
    config.http.outage_patience = Duration::from_millis(300);
    config.poll.believed_after = Duration::from_millis(100);
    config
}

/// How a type ended.
pub fn end_of(report: &Report, of: ResourceType) -> &TypeEnd {
    &report.types[&of].end
}

/// The reason why a type failed. Panics if it did not fail.
pub fn failure(report: &Report, of: ResourceType) -> &str {
    match end_of(report, of) {
        TypeEnd::Failed(failure) => &failure.cause,
        other => panic!("{of} did not fail: {other:?}"),
    }
}

/// Calls `look` every 10 ms until it returns something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut glances = tokio::time::interval(Duration::from_millis(10));
    let found = async {
        loop {
            glances.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    let Ok(found) = tokio::time::timeout(LIMIT, found).await else { panic!("not within {LIMIT:?}: {what}") };
    found
}

fn install_crypto() {
    // An error means that another test of this binary has installed it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
