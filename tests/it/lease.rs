use std::fs;

use fhir_sync::sync::{Mode, Outcome};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENT, Setup};

fn lease(setup: &Setup) -> Value {
    serde_json::from_slice(&fs::read(setup.lake().join("_fhir_sync/lease.json")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_second_process_with_another_state_file_on_the_same_tables_is_refused() {
    let setup = Setup::new().await;
    setup.complete().await;
    let first = setup.open().await.unwrap();
    let requests = setup.server.requests().len();
    let other = setup.folder.path().join("other/state.json");
    let second = setup.process(&[("FHIR_SYNC__STATE__FILE", other.to_str().unwrap())]).await;
    assert_eq!(second.code, Some(11), "{}", second.output());
    let sentence = format!("another fhir-sync, process {} on ", std::process::id());
    assert!(second.stderr.contains(&sentence), "{}", second.stderr);
    assert!(second.stderr.contains("only one may write to them"), "{}", second.stderr);
    assert_eq!(setup.server.requests().len(), requests, "nothing was asked");
    assert!(!other.exists(), "the refusal wrote a state file");
    first.close().await;
    let second = setup.process(&[("FHIR_SYNC__STATE__FILE", other.to_str().unwrap())]).await;
    assert_eq!(second.code, Some(0), "{}", second.output());
    assert_eq!(lease(&setup)["released"], true, "a process that ends gives the lease back");
}

#[tokio::test]
async fn the_lease_of_a_killed_process_is_taken_over_at_once_on_its_host() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let first = setup.start("sync", &[]);
    first.logged("export requested").await;
    let killed = lease(&setup);
    first.kill().await;
    setup.server.scenario(|scenario| scenario.hold = false);
    let other = setup.folder.path().join("other/state.json");
    let second = setup.process(&[("FHIR_SYNC__STATE__FILE", other.to_str().unwrap())]).await;
    assert_eq!(second.code, Some(0), "{}", second.output());
    assert_eq!(lease(&setup)["epoch"].as_u64(), killed["epoch"].as_u64().map(|epoch| epoch + 1));
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_holder_that_has_lost_the_lease_commits_nothing_more() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let before = setup.watermark(PATIENT).await;
    let syncer = setup.open().await.unwrap();
    let mut taken = lease(&setup);
    taken["epoch"] = (taken["epoch"].as_u64().unwrap() + 1).into();
    taken["name"] = "somebody else".into();
    taken["host"] = "elsewhere".into();
    fs::write(setup.lake().join("_fhir_sync/lease.json"), taken.to_string()).unwrap();
    let requests = setup.server.requests().len();
    let report = syncer.run(&setup.export, Mode::Incremental, &CancellationToken::new()).await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert!(report.remarks[0].contains("on elsewhere, has taken over the tables"), "{report:#?}");
    assert_eq!(setup.server.requests().len(), requests, "nothing was asked");
    assert_eq!(setup.watermark(PATIENT).await, before);
    drop(syncer);
    assert_eq!(lease(&setup), taken, "it left the lease of the other alone");
}
