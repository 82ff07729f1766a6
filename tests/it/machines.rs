use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use fastrand::Rng;
use fhir_sync::{
    state::LeasedBy,
    sync::{Mode, ReplayOf},
    table::LedgerRow,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{CONDITION, Ended, HOUR, OBSERVATION, PATIENT, Process, Setup, eventually};

/// Four exports, of which two write the same table, every second; maintenance every few seconds.
struct Site {
    setup: Setup,
    config: String,
    /// What the processes that have ended had printed.
    ended: Vec<Ended>,
}

const TYPES: [fhir_sync::fhir::ResourceType; 3] = [PATIENT, OBSERVATION, CONDITION];

impl Site {
    async fn new(schedule: &'static str) -> Self {
        let mut setup = Setup::new().await.with_state_leased_by(LeasedBy::Several);
        setup.schedule = schedule;
        setup.export.types = vec![PATIENT];
        let more = [("observations", OBSERVATION), ("conditions", CONDITION), ("again", CONDITION)].map(|(name, of)| {
            format!("[[export]]\nname = \"{name}\"\nlevel = \"system\"\ntypes = [\"{of}\"]\nincremental = \"{schedule}\"\n")
        });
        let config = setup.config().replace("\"trace\"", "\"info,fhir_sync=debug\"") + &more.concat();
        setup.export.types = TYPES.to_vec();
        Self { setup, config, ended: Vec::new() }
    }

    fn start(&self, machine: usize) -> Process {
        self.command("run", machine)
    }

    fn command(&self, command: &str, machine: usize) -> Process {
        self.command_with(command, machine, &[("FHIR_SYNC__MAINTENANCE__SCHEDULE", "*/3 * * * * *")])
    }

    fn command_with(&self, command: &str, machine: usize, settings: &[(&str, &str)]) -> Process {
        let folder = self.setup.folder.path().join(format!("machine-{machine}"));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("fhir-sync.toml");
        fs::write(&path, &self.config).unwrap();
        let settings = [&[("FHIR_SYNC__SYNC__SPOOL_FOLDER", folder.to_str().unwrap())], settings].concat();
        Process::start(&[command, "--config", path.to_str().unwrap()], &settings)
    }

    /// Another hour on the server, with changes of every kind.
    fn hour(&self, number: u64, rng: &mut Rng) {
        let ids: Vec<_> = (0..4).map(|_| rng.u32(0..12)).collect();
        self.setup.server.world(|world| {
            world.advance(HOUR);
            for (id, of) in ids.iter().zip([PATIENT, OBSERVATION, CONDITION, CONDITION]) {
                world.put(of, &format!("x{id}"), json!({"language": format!("v{number}")}));
            }
            world.delete(TYPES[rng.usize(0..3)], &format!("x{}", rng.u32(0..12)));
        });
    }

    /// Waits until the tables have what the server has.
    async fn settled(&self) {
        let is_settled = async || {
            for of in TYPES {
                let mut lines: Vec<String> =
                    self.setup.server.world(|world| world.resources(of).map(|(_, line)| line.to_owned()).collect());
                lines.sort();
                if self.setup.lines(of).await != lines {
                    return None;
                }
            }
            Some(())
        };
        eventually("the tables are as the server is", is_settled).await;
    }

    /// The numbers of the runs that began, of all processes that have ended.
    fn runs_begun(&self) -> Vec<u64> {
        let begun = self.ended.iter().flat_map(|ended| ended.logged("sync begins"));
        begun.map(|event| event["run"].as_u64().or_else(|| event["span"]["run"].as_u64()).unwrap()).collect()
    }
}

/// Each commit of a run is in the ledger once, and what the ledger says was committed is in a log.
async fn assert_ledger_has_each_commit_once(setup: &Setup, runs: &BTreeSet<u64>) {
    let root = setup.root();
    let mut recorded: BTreeMap<(String, u64, u64), u32> = BTreeMap::new();
    let ledger = root.ledger().await.unwrap();
    for LedgerRow { resource_type, run, table_version, .. } in ledger {
        if let Some(version) = table_version {
            *recorded.entry((resource_type, run, version)).or_default() += 1;
        }
    }
    for of in TYPES {
        let table = root.open(of).await.unwrap().unwrap();
        for commit in table.commits_of(runs).await.unwrap() {
            let times = recorded.get(&(of.to_string(), commit.run, commit.version)).copied();
            assert_eq!(times, Some(1), "{of}: the commit of run {} at version {}", commit.run, commit.version);
        }
    }
    let doubled: Vec<_> = recorded.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
}

#[tokio::test]
async fn three_processes_that_are_killed_at_random_lose_nothing_and_do_nothing_twice() {
    let seed = std::env::var("FHIR_SYNC_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(14);
    let mut rng = Rng::with_seed(seed);
    let mut site = Site::new("* * * * * *").await;
    let mut machines: Vec<_> = (0..3).map(|machine| site.start(machine)).collect();
    for hour in 0..8 {
        site.hour(hour, &mut rng);
        let wanted = site.setup.server.jobs().len() + rng.usize(1..5);
        eventually("another export", async || (site.setup.server.jobs().len() >= wanted).then_some(())).await;
        let machine = rng.usize(0..3);
        let started = site.start(machine);
        let killed = std::mem::replace(&mut machines[machine], started).killed().await;
        site.ended.push(killed);
    }
    site.settled().await;
    for machine in machines {
        machine.terminate().await;
        let ended = machine.end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.output());
        site.ended.push(ended);
    }
    // What was killed last has its commits in the ledger after one more run.
    let last = site.command("sync", 0).end().await;
    assert_eq!(last.code, Some(0), "{}", last.output());
    site.ended.push(last);
    let state = site.setup.state.peek().await.unwrap();
    let unrecorded: Vec<_> = state.exports.values().flat_map(|known| &known.unrecorded_runs).collect();
    assert!(unrecorded.is_empty(), "{unrecorded:?}");
    site.setup.assert_same_as_server().await;
    let begun = site.runs_begun();
    let runs: BTreeSet<_> = begun.iter().copied().collect();
    assert_eq!(runs.len(), begun.len(), "a number of a run was given twice: {begun:?}");
    assert!(runs.len() > 8, "{runs:?}");
    assert_ledger_has_each_commit_once(&site.setup, &runs).await;
    let at_work = site.ended.iter().filter(|ended| !ended.logged("sync begins").is_empty()).count();
    assert!(at_work > 3, "only {at_work} processes did something");
}

#[tokio::test]
async fn a_replay_has_a_number_that_no_run_of_another_process_has() {
    let setup = Setup::new().await.with_state_leased_by(LeasedBy::Several);
    setup.server.world(|world| world.push_line(PATIENT, json!({"resourceType": "Patient"}).to_string()));
    let (first, second) = (setup.open().await.unwrap(), setup.open().await.unwrap());
    let stop = CancellationToken::new();
    for process in [&second, &first, &second] {
        process.run(&setup.export, Mode::Incremental, &stop).await;
    }
    let exports = [setup.export.clone()];
    let corrected = json!({"resourceType": "Patient", "id": "x"}).to_string().into_bytes();
    let of = ReplayOf::Corrected { id: setup.quarantine().await.remove(0).id, text: corrected };
    let leases = first.take_leases(&["all".to_owned()]).await.unwrap();
    let replayed = leases.syncer.replay(&exports, of).await.unwrap();
    leases.release().await;
    assert_eq!(replayed.lines, 1, "{replayed:?}");
    let last = second.run(&setup.export, Mode::Incremental, &stop).await;
    let ledger = setup.root().ledger().await.unwrap();
    let of_replay: Vec<_> = ledger.iter().filter(|row| row.mode == "replay").map(|row| row.run).collect();
    assert_eq!((of_replay, last.run), (vec![4], 5), "{ledger:#?}");
}

#[tokio::test]
async fn an_export_that_one_process_works_on_is_shown_by_the_others_and_run_by_none_of_them() {
    let site = Site::new("0 0 5 29 2 *").await;
    site.setup.server.scenario(|scenario| scenario.hold = true);
    let first = site.start(0);
    eventually("all jobs", async || (site.setup.server.jobs().len() == 4).then_some(())).await;
    let second = site.start(1);
    let origin = second.health().await;
    let shown = async || {
        let body = reqwest::get(format!("{origin}/health")).await.unwrap().text().await.unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let now = body["exports"]["observations"]["now"].as_str().unwrap_or_default().to_owned();
        now.starts_with("at work in another fhir-sync, process ").then_some(())
    };
    eventually("who works on the export", shown).await;
    let status = site.command("status", 2).end().await;
    assert!(status.stdout.contains("fhir-sync works on it, process "), "{}", status.output());
    let by_hand = site.command("sync", 2).end().await;
    assert_eq!(by_hand.code, Some(1), "{}", by_hand.output());
    assert!(by_hand.output().contains("works on the export all"), "{}", by_hand.output());
    assert_eq!(site.setup.server.jobs().len(), 4);
    site.setup.server.scenario(|scenario| scenario.hold = false);
    site.settled().await;
    for process in [first, second] {
        process.terminate().await;
        assert_eq!(process.end().await.code, Some(0));
    }
    assert_eq!(site.setup.server.jobs().len(), 4, "each export was run once");
}

#[tokio::test]
async fn processes_that_share_the_exports_all_hold_the_lease_and_their_metrics_say_that_it_is_shared() {
    let site = Site::new("0 0 5 29 2 *").await;
    let processes = [site.start(0), site.start(1)];
    for process in &processes {
        let origin = process.health().await;
        let metrics = reqwest::get(format!("{origin}/metrics")).await.unwrap().text().await.unwrap();
        for series in ["fhir_sync_lease_held 1", "fhir_sync_lease_shared 1"] {
            assert!(metrics.lines().any(|line| line == series), "no {series} in\n{metrics}");
        }
    }
    site.settled().await;
    for process in processes {
        process.terminate().await;
        assert_eq!(process.end().await.code, Some(0));
    }
}

#[tokio::test]
async fn processes_that_share_the_exports_and_one_that_does_not_keep_each_other_away() {
    let mut site = Site::new("0 0 5 29 2 *").await;
    let sharing = site.start(0);
    site.settled().await;
    site.config = site.config.replace("share_exports = true", "share_exports = false");
    let alone = site.command("sync", 1).end().await;
    assert_eq!(alone.code, Some(11), "{}", alone.output());
    let elsewhere = site.setup.folder.path().join("other.json").display().to_string();
    let with_file = site.config.lines().map(|line| match line.strip_prefix("url = \"file://") {
        Some(_) => format!("file = \"{elsewhere}\"\n"),
        None => format!("{line}\n"),
    });
    site.config = with_file.collect();
    let alone = site.command("sync", 1).end().await;
    assert_eq!(alone.code, Some(11), "{}", alone.output());
    assert!(alone.stderr.contains("holds the tables"), "{}", alone.output());
    sharing.terminate().await;
    assert_eq!(sharing.end().await.code, Some(0));
}

#[tokio::test]
async fn maintenance_that_another_process_prevents_is_no_success() {
    let site = Site::new("0 0 5 29 2 *").await;
    site.setup.server.scenario(|scenario| scenario.hold = true);
    let syncs = site.command_with("run", 0, &[("FHIR_SYNC__MAINTENANCE__SCHEDULE", "0 0 5 29 2 *")]);
    eventually("all jobs", async || (site.setup.server.jobs().len() == 4).then_some(())).await;
    let maintains = site.command_with("maintain", 1, &[]);
    maintains.logged("another fhir-sync writes the table; later").await;
    let second = site.command_with("maintain", 2, &[]).end().await;
    assert_eq!(second.code, Some(75), "{}", second.output());
    assert!(second.stderr.contains("maintains the tables; wait until it has ended"), "{}", second.output());
    maintains.terminate().await;
    assert_eq!(maintains.end().await.code, Some(130));
    let limited = site.command_with("maintain", 2, &[("FHIR_SYNC__MAINTENANCE__TIME_LIMIT", "100ms")]).end().await;
    assert_eq!(limited.code, Some(1), "{}", limited.output());
    for of in TYPES {
        let row = format!("! {of}: another fhir-sync, process ");
        assert!(limited.stdout.lines().any(|line| line.starts_with(&row)), "{}", limited.output());
    }
    site.setup.server.scenario(|scenario| scenario.hold = false);
    syncs.terminate().await;
    assert_eq!(syncs.end().await.code, Some(0));
}
