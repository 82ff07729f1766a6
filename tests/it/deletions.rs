use fhir_sync::{
    demo::Fault,
    sync::{Outcome, TypeEnd},
};
use serde_json::{Value, json};

use crate::harness::{HOUR, Made, OBSERVATION, PATIENT, Setup, end_of, ndjson};

fn bundle(entries: &[Value]) -> String {
    ndjson([&json!({"resourceType": "Bundle", "type": "transaction", "entry": entries})])
}

fn delete(url: &str) -> Value {
    json!({"request": {"method": "DELETE", "url": url}})
}

/// Five patients and four observations are loaded; an hour later comes the next export.
async fn loaded() -> Setup {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|_| {});
    setup
}

/// (rule 95)
#[tokio::test]
async fn a_type_that_nobody_keeps_does_not_keep_the_other_deletions() {
    let setup = loaded().await;
    let entries = ["Patient/p1", "AidboxThing/1", "Practitioner/x", "Practitioner?name=x", "Patient/p2"].map(delete);
    Made::default().deleted(1, &bundle(&entries)).serve(&setup);
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].counts.deleted, setup.lines(PATIENT).await.len()), (2, 3));
}

/// (rule 95)
#[tokio::test]
async fn a_deletion_that_is_not_understood_holds_the_types_that_it_may_concern_and_the_others_are_applied() {
    for (odd, holds_all) in [
        (delete("Patient?name=x"), false),
        (json!({"request": {"method": "PURGE", "url": "Patient/p5"}}), false),
        (json!({"response": {"status": "404"}}), true),
    ] {
        let setup = loaded().await;
        let before = setup.watermark(PATIENT).await;
        Made::default().deleted(1, &bundle(&[delete("Patient/p1"), odd.clone(), delete("Patient/p2")])).serve(&setup);
        let report = setup.sync().await;
        assert_eq!((report.outcome, setup.lines(PATIENT).await.len()), (Outcome::Partial, 3), "{odd}");
        assert_eq!(setup.watermark(PATIENT).await, before, "{odd}");
        assert_eq!(setup.watermark(OBSERVATION).await == before, holds_all, "{odd}");
        assert_eq!(setup.quarantine().await.len(), 1, "{odd}");
    }
}

/// (rule 56)
#[tokio::test]
async fn fewer_deletions_than_announced_hold_every_watermark() {
    let setup = loaded().await;
    let before = setup.watermark(PATIENT).await;
    Made::default().deleted(2, &bundle(&[delete("Patient/p1")])).serve(&setup);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (before, 4));
}

/// (rule 56)
#[tokio::test]
async fn a_file_of_deletions_may_count_its_entries() {
    let setup = loaded().await;
    Made::default().deleted(2, &bundle(&[delete("Patient/p1"), delete("Patient/p2")])).serve(&setup);
    setup.complete().await;
    assert_eq!(setup.lines(PATIENT).await.len(), 3);
}

/// (rule 56)
#[tokio::test]
async fn a_missing_bundle_of_deletions_is_found_although_the_others_have_more_entries_than_bundles_were_announced() {
    let setup = loaded().await;
    let before = setup.watermark(PATIENT).await;
    let two = [["Patient/p1", "Patient/p2"], ["Patient/p3", "Patient/p4"]].map(|urls| bundle(&urls.map(delete)));
    Made::default().deleted(3, &two.concat()).serve(&setup);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (before, 1));
}

/// (rules 96 and 97)
#[tokio::test]
async fn the_time_of_a_bundle_is_not_the_time_of_its_deletions() {
    let setup = loaded().await;
    let (row_at, now) = setup.server.world(|world| ((world.now() - HOUR / 2).to_rfc3339(), world.now().to_rfc3339()));
    let row = json!({"resourceType": "Patient", "id": "p1", "meta": {"lastUpdated": row_at}, "active": true});
    let bundle = json!({"resourceType": "Bundle", "meta": {"lastUpdated": now}, "entry": [delete("Patient/p1")]});
    Made::default().output("Patient", 1, &ndjson([&row])).deleted(1, &ndjson([&bundle])).serve(&setup);
    setup.complete().await;
    assert!(setup.lines(PATIENT).await.iter().any(|line| line.contains("active")), "it was created again");
}

/// (rule 96)
#[tokio::test]
async fn an_entry_with_a_later_time_of_its_own_deletes_the_row_of_the_same_export() {
    let setup = loaded().await;
    let (row_at, now) = setup.server.world(|world| ((world.now() - HOUR / 2).to_rfc3339(), world.now().to_rfc3339()));
    let row = json!({"resourceType": "Patient", "id": "p1", "meta": {"lastUpdated": row_at}, "active": true});
    let mut entry = delete("Patient/p1");
    entry["response"] = json!({"lastModified": now});
    Made::default().output("Patient", 1, &ndjson([&row])).deleted(1, &bundle(&[entry])).serve(&setup);
    setup.complete().await;
    assert_eq!(setup.lines(PATIENT).await.len(), 4);
}

/// (rule 97)
#[tokio::test]
async fn a_deletion_is_never_later_than_its_export() {
    let setup = loaded().await;
    let mut entry = delete("Patient/p1");
    entry["response"] = json!({"lastModified": "2999-01-01T00:00:00Z"});
    Made::default().deleted(1, &bundle(&[entry])).serve(&setup);
    setup.complete().await;
    assert_eq!(setup.lines(PATIENT).await.len(), 4);
    setup.server.scenario(|scenario| scenario.faults = Vec::<Fault>::new());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
    });
    let report = setup.complete().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }));
    assert_eq!(setup.lines(PATIENT).await.len(), 5, "it was created again");
}

#[tokio::test]
async fn rows_and_deletions_of_a_run_carry_the_same_clock() {
    let setup = Setup::new().await;
    // Without lastUpdated only the times of the exports can be compared; the first is an hour ahead of the server's
    // Date.
    let row = json!({"resourceType": "Patient", "id": "p1"});
    let ahead = setup.server.world(|world| (world.now() + HOUR).to_rfc3339());
    Made::default().output("Patient", 1, &ndjson([&row])).serve_at(&setup, &ahead);
    setup.sync().await;
    assert_eq!(setup.lines(PATIENT).await.len(), 1);
    setup.server.world(|world| world.advance(HOUR / 2));
    Made::default().deleted(1, &bundle(&[delete("Patient/p1")])).serve(&setup);
    let report = setup.sync().await;
    assert_eq!((report.types[&PATIENT].counts.deleted, setup.lines(PATIENT).await.len()), (1, 0), "{report:#?}");
}
