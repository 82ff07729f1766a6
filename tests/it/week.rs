//! A week in minutes: the daemon, hundreds of runs with changes, deletions and failures, and what must not grow.
//!
//! A run each second, on a server whose clock advances by ten minutes for each. Afterwards the medians of the second and
//! of the last fifth of the runs are compared: what a daemon holds, and what it leaves on the disk, is the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use chrono::Utc;
use fhir_sync::demo::{Alteration, Fault, Scenario, StatusCode, World};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{interval, timeout},
};

use crate::harness::{BINARY, OBSERVATION, PATIENT, Setup};

const PATIENTS: u64 = 300;
const OBSERVATIONS: u64 = 3_000;
/// Of the server's clock, for each run.
const STEP: Duration = Duration::from_mins(10);
/// The longest that a run may take, maintenance before it included.
const LIMIT: Duration = Duration::from_mins(3);

/// What is measured after each run, how it is printed, and how much the last fifth may be above the second: a factor,
/// and what is too little to tell.
const MEASURES: [(&str, f64, f64); 11] = [
    ("resident memory, MiB", 1.10, 8.0),
    ("open file descriptors", 1.0, 2.0),
    // As many as there were commits since the last checkpoint at most so far (docs/performance.md): a maintenance that
    // had its turn late raises it once.
    ("threads", 1.3, 4.0),
    ("files in the lake", 1.25, 20.0),
    ("of these in _fhir_sync", 1.25, 20.0),
    ("lake, KiB", 1.25, 256.0),
    ("all _delta_log, KiB", 1.25, 256.0),
    ("state file, bytes", 1.05, 64.0),
    ("log per run, bytes", 1.25, 256.0),
    ("CPU per run, ms", 1.25, 50.0),
    // It depends on what else the machine does.
    ("duration of a run, ms", f64::INFINITY, 0.0),
];

type Sample = [f64; MEASURES.len()];

#[tokio::test]
#[ignore = "takes many minutes: just week"]
async fn over_hundreds_of_runs_nothing_grows_and_the_tables_equal_the_server() {
    let runs = env::var("WEEK_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(504);
    let setup = Setup::with_world(world(runs)).await;
    create_tables(&setup).await;
    let mut daemon = Daemon::start(&setup);
    let mut samples = Vec::new();
    for run in 1..=runs {
        happens(&setup, u64::from(run));
        let duration_ms = daemon.run_ended().await;
        samples.push(daemon.sample(&setup, duration_ms));
    }
    setup.server.scenario(|scenario| *scenario = Scenario::default());
    daemon.run_ended().await;
    let outcomes = daemon.outcomes.clone();
    daemon.stop().await;
    let csv = write_csv(&samples);
    println!("{runs} runs: {outcomes:?}\n{}\n{}\n{}", csv.display(), table(&samples), tables_of(&setup.lake()));

    let ended = setup.command(&["sync", "--full-refresh"], &SETTINGS).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    setup.assert_same_as_server().await;
    let ended = setup.command(&["verify"], &SETTINGS).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(["complete", "partial", "failed"].iter().all(|outcome| outcomes.contains_key(*outcome)), "{outcomes:?}");
    let grown = grown(&samples);
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}

/// A server whose clock is so far behind that it does not overtake ours, and not so far that it is distrusted.
#[expect(clippy::disallowed_methods, reason = "the daemon compares the server's clock with the local one")]
fn world(runs: u32) -> World {
    let mut world = World::new();
    let begin = Utc::now() - (STEP * (runs + 20)) - chrono::TimeDelta::hours(1);
    world.advance((begin - world.now()).to_std().unwrap());
    for number in 0..PATIENTS {
        world.put(PATIENT, &format!("p{number}"), json!({"gender": "female", "birthDate": "1970-01-01"}));
    }
    for number in 0..OBSERVATIONS {
        world.put(OBSERVATION, &format!("o{number}"), observation(number));
    }
    world.advance(STEP);
    world
}

fn observation(number: u64) -> Value {
    json!({
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
        "subject": {"reference": format!("Patient/p{}", number % PATIENTS)},
        "valueQuantity": {"value": number, "unit": "g/dL"},
    })
}

/// All tables, also those of tombstones and of the quarantine, whose properties ask for a retention as short as that of
/// the configuration.
async fn create_tables(setup: &Setup) {
    for run in [0, 10] {
        happens(setup, run);
        let ended = setup.command(&["sync"], &SETTINGS).await;
        assert!(matches!(ended.code, Some(0 | 3)), "{}", ended.output());
    }
    let logs: BTreeSet<_> = files(&setup.lake())
        .into_iter()
        .filter_map(|(path, _)| {
            let folder = path.parent()?;
            folder.ends_with("_delta_log").then(|| folder.to_owned())
        })
        .collect();
    assert_eq!(logs.len(), 5, "{logs:?}");
    for log in &logs {
        set_retention(log);
    }
}

/// A commit of another writer that sets two properties of the table.
fn set_retention(log: &Path) {
    let commit = |version: usize| log.join(format!("{version:020}.json"));
    let next = (0..usize::MAX).find(|version| !commit(*version).exists()).unwrap();
    let commits = (0..next).rev().map(|version| fs::read_to_string(commit(version)).unwrap());
    let actions = commits.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let mut actions = actions.map(|action| serde_json::from_str::<Value>(&action).unwrap());
    let mut metadata = actions.find(|action| !action["metaData"].is_null()).unwrap();
    for property in ["delta.deletedFileRetentionDuration", "delta.logRetentionDuration"] {
        metadata["metaData"]["configuration"][property] = "interval 30 seconds".into();
    }
    let info = json!({"commitInfo": {"timestamp": 1_700_000_000_000_i64, "operation": "SET TBLPROPERTIES"}});
    fs::write(commit(next), format!("{info}\n{metadata}\n")).unwrap();
}

/// What changes before a run, and how the server behaves in it. There are always as many resources.
fn happens(setup: &Setup, run: u64) {
    setup.server.world(|world| {
        world.advance(STEP);
        for number in run * 10..run * 10 + 5 {
            world.delete(OBSERVATION, &format!("o{number}"));
            world.put(OBSERVATION, &format!("o{}", number + OBSERVATIONS), observation(number));
            world.put(OBSERVATION, &format!("o{}", (number + 5) % OBSERVATIONS), observation(number + run));
        }
        world.put(PATIENT, &format!("p{}", run % PATIENTS), json!({"gender": "male", "multipleBirthInteger": run}));
    });
    setup.server.scenario(|scenario| {
        *scenario = Scenario::default();
        misbehave(scenario, run);
    });
}

/// One run in four meets something.
fn misbehave(scenario: &mut Scenario, run: u64) {
    let status = |path_contains: &str, status, times| Fault::Status {
        path_contains: path_contains.to_owned(),
        status,
        times,
        retry_after: None,
        body: String::new(),
    };
    match run % 20 {
        3 => scenario.faults = vec![status("$export", StatusCode::SERVICE_UNAVAILABLE, u32::MAX)],
        7 => {
            let path_contains = "/Observation.1".to_owned();
            scenario.faults = vec![Fault::CutAfter { path_contains, bytes: 50, times: 1 }];
        }
        10 => scenario.alterations = vec![Alteration::WithoutId { of: PATIENT, lines: 1 }],
        13 => scenario.faults = vec![status("/bulkstatus/", StatusCode::NOT_FOUND, 1)],
        17 => {
            let issue = json!({"severity": "error", "code": "processing"});
            scenario.outcomes = vec![json!({"resourceType": "OperationOutcome", "issue": [issue]})];
        }
        _ => {}
    }
}

/// A week of retention in a minute, and a maintenance each half minute.
const SETTINGS: [(&str, &str); 5] = [
    ("FHIR_SYNC__LOG__FILTER", "info"),
    ("FHIR_SYNC__MAINTENANCE__SCHEDULE", "20,50 * * * * *"),
    ("FHIR_SYNC__MAINTENANCE__VACUUM_RETENTION", "30s"),
    ("FHIR_SYNC__MAINTENANCE__LOG_RETENTION", "30s"),
    ("FHIR_SYNC__MAINTENANCE__QUARANTINE_RETENTION", "60s"),
];

struct Daemon {
    child: Child,
    output: PathBuf,
    /// Of the output, what was read.
    read_bytes: usize,
    bytes_of_run: usize,
    cpu_ms: u64,
    outcomes: BTreeMap<String, u32>,
}

impl Daemon {
    fn start(setup: &Setup) -> Self {
        let path = setup.folder.path().join("week.toml");
        let schedules = "incremental = \"* * * * * *\"\nfull_refresh = \"35 * * * * *\"\n";
        let (before, _) = setup.config().split_once("incremental = ").map(|(a, b)| (a.to_owned(), b.len())).unwrap();
        fs::write(&path, before + schedules).unwrap();
        let output = setup.folder.path().join("output");
        let program = env::var("WEEK_PROGRAM").unwrap_or_else(|_| BINARY.to_owned());
        let mut command = Command::new(program);
        command.args(["run", "--config", path.to_str().unwrap()]).env_clear().envs(SETTINGS);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&output).unwrap()).kill_on_drop(true);
        let child = command.spawn().unwrap();
        Self { child, output, read_bytes: 0, bytes_of_run: 0, cpu_ms: 0, outcomes: BTreeMap::new() }
    }

    /// Waits for the end of a run; returns how long it took.
    async fn run_ended(&mut self) -> u64 {
        let mut glances = interval(Duration::from_millis(20));
        let ended = async {
            loop {
                glances.tick().await;
                if let Some(duration_ms) = self.next_end() {
                    return duration_ms;
                }
            }
        };
        let Ok(ended) = timeout(LIMIT, ended).await else { panic!("no run ended within {LIMIT:?}") };
        ended
    }

    fn next_end(&mut self) -> Option<u64> {
        let output = fs::read(&self.output).unwrap();
        let mut read_bytes = self.read_bytes;
        for line in output[read_bytes..].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            read_bytes += line.len();
            let event: Value = serde_json::from_slice(line).unwrap();
            let message = event["message"].as_str().unwrap();
            assert!(!message.starts_with("a table was not maintained"), "{event}");
            let outcome = message.strip_prefix("sync ").filter(|word| *word != "begins");
            if let (Some(outcome), Some(duration_ms)) = (outcome, event["duration_ms"].as_u64()) {
                *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
                (self.bytes_of_run, self.read_bytes) = (read_bytes - self.read_bytes, read_bytes);
                return Some(duration_ms);
            }
        }
        None
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn sample(&mut self, setup: &Setup, duration_ms: u64) -> Sample {
        let process = PathBuf::from(format!("/proc/{}", self.child.id().unwrap()));
        let status = fs::read_to_string(process.join("status")).unwrap();
        let of_status = |name: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let cpu_ms_before = self.cpu_ms;
        self.cpu_ms = cpu_ms(&process);
        let lake = files(&setup.lake());
        let own = lake.iter().filter(|(path, _)| path.starts_with(setup.lake().join("_fhir_sync"))).count();
        let in_logs = lake.iter().filter(|(path, _)| path.iter().any(|part| part == "_delta_log"));
        let in_logs_bytes: u64 = in_logs.map(|(_, bytes)| bytes).sum();
        [
            of_status("VmRSS:") / 1024.0,
            fs::read_dir(process.join("fd")).unwrap().count() as f64,
            of_status("Threads:"),
            lake.len() as f64,
            own as f64,
            lake.iter().map(|(_, bytes)| bytes).sum::<u64>() as f64 / 1024.0,
            in_logs_bytes as f64 / 1024.0,
            fs::metadata(setup.state_file()).unwrap().len() as f64,
            self.bytes_of_run as f64,
            (self.cpu_ms - cpu_ms_before) as f64,
            duration_ms as f64,
        ]
    }

    async fn stop(mut self) {
        let id = self.child.id().unwrap();
        let kill = Command::new("sh").arg("-c").arg(format!("kill -TERM {id}")).status().await.unwrap();
        assert!(kill.success());
        let status = timeout(LIMIT, self.child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

/// What a process has used so far, user and kernel; the kernel counts in hundredths of a second.
fn cpu_ms(process: &Path) -> u64 {
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    // The name of the program, in parentheses, may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
    ticks.sum::<u64>() * 10
}

/// All files below a folder, with their sizes. One that is deleted meanwhile is left out.
fn files(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => found.push((entry.path(), metadata.len())),
                Err(_) => {}
            }
        }
    }
    found
}

/// The medians of a measure in the second and in the last fifth.
fn medians(samples: &[Sample], measure: usize) -> [f64; 2] {
    let fifth = samples.len() / 5;
    [&samples[fifth..2 * fifth], &samples[samples.len() - fifth..]].map(|part| {
        let mut values: Vec<_> = part.iter().map(|sample| sample[measure]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    })
}

fn grown(samples: &[Sample]) -> Vec<String> {
    let grown = MEASURES.iter().enumerate().filter_map(|(index, (name, factor, slack))| {
        let [second, last] = medians(samples, index);
        let limit = second * factor + slack;
        (last > limit)
            .then(|| format!("{name}: {last:.1} in the last fifth, {second:.1} in the second: above {limit:.1}"))
    });
    grown.collect()
}

/// As Markdown, for docs/performance.md.
fn table(samples: &[Sample]) -> String {
    let mut text = "| | second fifth | last fifth | highest |\n|---|--:|--:|--:|\n".to_owned();
    for (index, (name, ..)) in MEASURES.iter().enumerate() {
        let [second, last] = medians(samples, index);
        let highest = samples.iter().map(|sample| sample[index]).fold(0.0, f64::max);
        writeln!(text, "| {name} | {second:.0} | {last:.0} | {highest:.0} |").unwrap();
    }
    text
}

/// The files and bytes of each table at the end.
fn tables_of(lake: &Path) -> String {
    let mut tables: BTreeMap<PathBuf, (u64, u64)> = BTreeMap::new();
    for (path, bytes) in files(lake) {
        let within = path.strip_prefix(lake).unwrap();
        let depth = if within.starts_with("_fhir_sync") { 2 } else { 1 };
        let in_log = within.iter().any(|part| part == "_delta_log");
        let mut place: PathBuf = within.iter().take(depth).collect();
        if in_log {
            place.push("_delta_log");
        }
        let (count, size) = tables.entry(place).or_default();
        (*count, *size) = (*count + 1, *size + bytes);
    }
    let mut text = String::new();
    for (place, (count, bytes)) in tables {
        writeln!(text, "{}: {count} files, {} KiB", place.display(), bytes / 1024).unwrap();
    }
    text
}

fn write_csv(samples: &[Sample]) -> PathBuf {
    let mut text = MEASURES.map(|(name, ..)| name.replace(',', "")).join(",") + "\n";
    for sample in samples {
        text += &(sample.map(|value| format!("{value:.1}")).join(",") + "\n");
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("week.csv");
    fs::write(&path, text).unwrap();
    path
}
