use std::{collections::BTreeSet, time::Duration};

use fhir_sync::{
    demo::{
        Registered, generate,
        named::{self, Begins, Heals, NAMED, Named, Promise},
    },
    export::auth::Smart,
    fhir::ResourceType,
    secret::Secret,
    sync::{Mode, Outcome},
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::{OBSERVATION, Process, Setup};

const PATIENTS: usize = 2;
const SEED: u64 = 1;
const ENCOUNTER: ResourceType = ResourceType::ENCOUNTER;

/// A small generated world behind authorization.
async fn setup() -> Setup {
    let mut setup = Setup::with_world(generate::world(PATIENTS, SEED)).await;
    let client = Registered::new("warehouse").unwrap();
    setup.server.scenario(|scenario| scenario.auth = Some(client.auth()));
    setup.client.auth = Some(Smart::new("warehouse", Secret::given(client.private_jwk.clone())).into());
    // What passes must pass on a busy machine, too.
    setup.client.http.outage_patience = Duration::from_secs(3);
    setup.export.types = vec![ENCOUNTER, OBSERVATION];
    setup.export.reconciled = setup.export.types.iter().copied().collect();
    // As in the reference file; but a restored backup takes a large part of so small a world away.
    (setup.config.quarantine.max_quarantined, setup.config.reconcile.max_missing) = (20, 200);
    setup
}

/// What the tables hold, by type; white space between members does not count.
async fn is_same_as_server(setup: &Setup) -> bool {
    let read = |line: &str| serde_json::from_str::<Value>(line).unwrap().to_string();
    for resource_type in &setup.export.types {
        let mut stored: Vec<_> = setup.lines(*resource_type).await.iter().map(|line| read(line)).collect();
        let mut on_server: Vec<_> =
            setup.server.world(|world| world.resources(*resource_type).map(|(_, line)| read(line)).collect());
        stored.sort();
        on_server.sort();
        if stored != on_server {
            return false;
        }
    }
    true
}

/// Plays a scenario from its beginning to the tables that are equal to the server.
async fn play(named: &'static Named) {
    let setup = setup().await;
    let before = setup.server.world(|world| world.clone());
    for number in [Begins::FirstSync, Begins::SecondSync, Begins::ThirdSync] {
        if number == named.begins {
            named.begin(&setup.server, &before);
        }
        if number == Begins::SecondSync {
            setup.server.world(|world| generate::next_day(world, SEED));
        }
        let report = setup.sync().await;
        if number != named.begins {
            assert_eq!(report.outcome, Outcome::Complete, "{}: {report:#?}", named.name);
            continue;
        }
        let promised = if named.promise == Promise::Complete { Outcome::Complete } else { Outcome::Partial };
        assert_eq!(report.outcome, promised, "{}: {report:#?}", named.name);
        let is_named = !report.warnings().is_empty() || report.failed_types().next().is_some();
        assert!(is_named || promised == Outcome::Complete, "{}: {report:#?}", named.name);
        break;
    }
    named::end(&setup.server);
    assert!(heals(named, &setup).await, "{}: {:#?}", named.name, setup.server.jobs());
}

async fn heals(named: &Named, setup: &Setup) -> bool {
    let modes = match named.heals {
        Heals::NextSyncs => [Mode::Incremental; 2].as_slice(),
        Heals::FullRefresh => &[Mode::FullRefresh],
    };
    for mode in modes {
        let report = setup.run(*mode).await;
        if report.outcome == Outcome::Complete && is_same_as_server(setup).await {
            return true;
        }
    }
    false
}

/// (rules 21, 34, 36, 44, 50, 52, 56, 61, 74, 76 to 80, 86, 89, 95, 101 and 126, Q-1, Q-3, Q-29, Q-41, Q-50, Q-64,
///
#[tokio::test(flavor = "multi_thread")]
async fn each_named_scenario_ends_as_promised_and_the_tables_become_equal_to_the_server() {
    let mut plays = JoinSet::new();
    let mut waiting = NAMED.iter();
    for named in waiting.by_ref().take(4) {
        plays.spawn(play(named));
    }
    while let Some(played) = plays.join_next().await {
        played.unwrap();
        waiting.next().map(|named| plays.spawn(play(named)));
    }
}

#[tokio::test]
async fn a_demo_that_keeps_serving_does_so_after_a_sync_that_was_not_complete() {
    let folder = tempfile::TempDir::new().unwrap();
    let (data, dir) = (folder.path().join("data"), folder.path().join("demo"));
    std::fs::create_dir(&data).unwrap();
    let lines = "{\"resourceType\":\"Patient\",\"id\":\"1\"}\n{\"resourceType\":\"Patient\"}\n";
    std::fs::write(data.join("Patient.ndjson"), lines).unwrap();
    let arguments = ["demo", "--data", data.to_str().unwrap(), "--dir", dir.to_str().unwrap(), "--keep-serving"];
    let demo = Process::start(&arguments, &[]);
    let printed = demo.printed("The server runs at").await;
    assert!(printed.contains("partial after"), "{printed}");
    demo.terminate().await;
    assert_eq!(demo.end().await.code, Some(3));
}

#[test]
fn no_two_scenarios_have_the_same_name() {
    let names: BTreeSet<_> = NAMED.iter().map(|named| named.name).collect();
    assert_eq!(names.len(), NAMED.len());
}

#[tokio::test]
async fn the_demo_lists_its_scenarios_and_plays_one() {
    let listed = Process::start(&["demo", "--list-scenarios"], &[]).end().await;
    let folder = tempfile::TempDir::new().unwrap();
    for named in NAMED {
        assert!(listed.stdout.contains(named.name) && listed.stdout.contains(named.client), "{}", named.name);
    }
    let dir = folder.path().join("demo");
    let arguments = ["demo", "--patients", "2", "--scenario", "cut-file", "--dir", dir.to_str().unwrap()];
    let played = Process::start(&arguments, &[]).end().await;
    assert_eq!(played.code, Some(0), "{}", played.output());
    for said in ["== cut-file", "As promised: complete.", "The tables are equal to the server:"] {
        assert!(played.stdout.contains(said), "{}", played.output());
    }
    let unknown = Process::start(&["demo", "--scenario", "weather"], &[]).end().await;
    assert!(unknown.code == Some(2) && unknown.stderr.contains("--list-scenarios"), "{}", unknown.output());
}
