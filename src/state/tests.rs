use std::{fs, sync::Arc, time::Duration};

use object_store::{
    ObjectStore,
    memory::InMemory,
    throttle::{ThrottleConfig, ThrottledStore},
};
use proptest::prelude::*;

use super::*;
use crate::fhir::parse_instant;

fn sample(run: u64) -> State {
    let mut state = State { run, ..State::default() };
    let export = state.exports.entry("all".to_owned()).or_default();
    export.watermarks.insert("Patient".parse().unwrap(), TransactionTime::from_micros(1_700_000_000_000_001).unwrap());
    export.freshness.failures_in_a_row = u32::try_from(run).unwrap();
    export.jobs.push(JobInFlight {
        status_url: "https://ehr.example.org/status/1?secret=x".parse().unwrap(),
        server_time_at_kick_off: None,
        server_time_later: None,
        denied_since: None,
        kicked_off_locally_at: DateTime::UNIX_EPOCH,
        types: vec!["Patient".parse().unwrap()],
        since: parse_instant("2026-01-01T00:00:00Z").map(TransactionTime::from),
        full_refresh: false,
        asked: None,
        server: None,
        not_granted: BTreeMap::new(),
        settled: BTreeSet::new(),
        finished: BTreeMap::new(),
        patients: BTreeSet::new(),
    });
    state
}

fn opened(path: &Path) -> (State, Found) {
    let (open_state, found) = OpenState::open(path).unwrap();
    (open_state.state().clone(), found)
}

fn written(path: &Path, runs: &[u64]) {
    let (mut open_state, _) = OpenState::open(path).unwrap();
    for run in runs {
        open_state.update(|state| *state = sample(*run)).unwrap();
    }
}

#[test]
fn the_state_is_read_back_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/state.json");
    assert_eq!(opened(&path), (State::default(), Found::Nothing));
    written(&path, &[1, 2]);
    assert_eq!(opened(&path), (sample(2), Found::Whole));
}

/// (rule 136)
#[test]
fn a_second_process_is_refused_until_the_first_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let first = OpenState::open(&path).unwrap();
    assert!(matches!(OpenState::open(&path), Err(Error::Locked { .. })));
    drop(first);
    assert!(OpenState::open(&path).is_ok());
}

#[test]
fn the_old_one_field_form_is_accepted_and_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    fs::write(&path, r#"{"last_sync_time": "2026-11-20T03:00:00+01:00"}"#).unwrap();
    let (state, found) = opened(&path);
    assert_eq!(found, Found::Migrated);
    assert_eq!(state.last_sync_before_migration, parse_instant("2026-11-20T02:00:00Z"));
    assert!(state.exports.is_empty(), "no watermark follows from it");
}

/// (rule 136)
#[test]
fn a_broken_file_is_replaced_by_its_previous_generation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    written(&path, &[1, 2]);
    fs::write(&path, "").unwrap();
    assert_eq!(opened(&path), (sample(1), Found::Previous));
    written(&path, &[3]);
    fs::write(&path, "{").unwrap();
    assert_eq!(opened(&path), (sample(1), Found::Previous), "the broken file did not replace the good one");
}

#[test]
fn two_broken_generations_are_reported_and_a_copy_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    fs::write(&path, [0, 159, 146, 150]).unwrap();
    let kept_as = folder.path().join("state.json.broken").display().to_string();
    assert_eq!(opened(&path), (State::default(), Found::Broken { kept_as: kept_as.clone() }));
    assert_eq!(fs::read(kept_as).unwrap(), [0, 159, 146, 150]);
}

/// (rule 136)
#[test]
fn a_file_of_a_newer_format_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    fs::write(&path, r#"{"format": 2, "checksum": "", "state": {}}"#).unwrap();
    assert!(matches!(OpenState::open(&path), Err(Error::Newer { found: 2, .. })));
}

#[test]
fn the_since_of_a_job_is_stored_as_it_was_sent_and_a_text_that_is_no_instant_is_refused() {
    let job = sample(1).exports["all"].jobs[0].clone();
    let json = serde_json::to_value(&job).unwrap();
    assert_eq!(json["since"], "2026-01-01T00:00:00.000Z");
    assert_eq!(serde_json::from_value::<JobInFlight>(json.clone()).unwrap(), job);
    let with = |since: &str| {
        let mut json = json.clone();
        json["since"] = since.into();
        serde_json::from_value::<JobInFlight>(json).map(|job| job.kind())
    };
    // An overlap from before the first year of the calendar is still an increment.
    assert!(matches!(with("0000-12-31T23:55:00.000Z"), Ok(JobKind::Increment(_))));
    for text in ["", "2026-01-01", "yesterday"] {
        assert!(with(text).is_err(), "{text}");
    }
}

#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    written(&path, &[1]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_folder_that_cannot_be_created_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = OpenState::open(&folder.path().join("file/state.json")).unwrap_err();
    assert!(error.to_string().contains("/file"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// (rule 136)
    #[test]
    fn damage_never_yields_another_state(position in 0usize..2000, damage in any::<u8>(), truncate in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        written(&path, &[1, 2]);
        let mut bytes = fs::read(&path).unwrap();
        let position = position % bytes.len();
        if truncate { bytes.truncate(position) } else { bytes[position] ^= damage }
        fs::write(&path, bytes).unwrap();
        match OpenState::open(&path) {
            Ok((open_state, _)) => prop_assert!([sample(1), sample(2)].contains(open_state.state())),
            Err(error) => prop_assert!(matches!(error, Error::Newer { .. }), "{}", error),
        }
    }
}

/// An object store that the next processes reach as well.
fn in_memory() -> Documents {
    documents_in(Arc::new(InMemory::new()))
}

fn documents_in(store: Arc<dyn ObjectStore>) -> Documents {
    Documents::in_store(store, &"memory:///fhir-sync/state".parse().unwrap())
}

/// As if the holder were on a host of which nobody here knows anything.
async fn on_another_host(documents: &Documents) {
    let lease = documents.document("lease.json");
    let stored = lease.read().await.unwrap().unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&stored.text).unwrap();
    record["process"] = serde_json::Value::Null;
    lease.put(record.to_string()).await.unwrap();
}

async fn read_documents(documents: &Documents) -> (State, Found) {
    let (held, state, found) = StateDocuments::open(documents.clone()).await.unwrap();
    held.lease.release().await;
    (state, found)
}

async fn written_documents(documents: &Documents, runs: &[u64]) {
    let (mut held, _, _) = StateDocuments::open(documents.clone()).await.unwrap();
    for run in runs {
        held.write(&sample(*run)).await.unwrap();
    }
    held.lease.release().await;
}

#[tokio::test]
async fn the_state_in_documents_is_read_by_the_next_process() {
    let documents = in_memory();
    assert_eq!(read_documents(&documents).await, (State::default(), Found::Nothing));
    written_documents(&documents, &[1, 2]).await;
    assert_eq!(read_documents(&documents).await, (sample(2), Found::Whole));
    assert_eq!(documents::peek(&documents).await.unwrap(), sample(2));
}

/// (rule 136)
#[tokio::test]
async fn a_second_process_is_refused_by_the_lease_of_the_state_while_the_first_is_alive() {
    let documents = in_memory();
    let (first, _, _) = StateDocuments::open(documents.clone()).await.unwrap();
    let refused = StateDocuments::open(documents.clone()).await.map(|_| ());
    assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
    first.lease.release().await;
    StateDocuments::open(documents).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_replaced_never_overwrites_the_state() {
    let documents = in_memory();
    let (mut first, _, _) = StateDocuments::open(documents.clone()).await.unwrap();
    first.write(&sample(1)).await.unwrap();
    on_another_host(&documents).await;
    let (mut second, state, _) = StateDocuments::open(documents.clone()).await.unwrap();
    assert_eq!(state, sample(1));
    for _ in 0..2 {
        let refused = first.write(&sample(7)).await;
        assert!(matches!(refused, Err(Error::TakenOver { .. })), "{refused:?}");
    }
    second.write(&sample(2)).await.unwrap();
    assert_eq!(documents::peek(&documents).await.unwrap(), sample(2));
}

/// (rule 136)
#[tokio::test]
async fn a_broken_document_is_replaced_by_its_previous_generation_and_two_broken_ones_are_kept() {
    for name in ["exports/all.json", "state.json"] {
        let documents = in_memory();
        written_documents(&documents, &[1, 2]).await;
        documents.document(name).put("{".to_owned()).await.unwrap();
        let (state, found) = read_documents(&documents).await;
        assert_eq!(found, Found::Previous);
        assert!(state.exports.contains_key("all"));
        assert_eq!(read_documents(&documents).await, (state, Found::Whole), "it was replaced");
        for name in [name, &format!("{name}.previous")] {
            documents.document(name).put("garbage".to_owned()).await.unwrap();
        }
        let (_, found) = read_documents(&documents).await;
        assert_eq!(found, Found::Broken { kept_as: format!("memory:///fhir-sync/state/{name}.broken") });
        assert!(documents::peek(&documents).await.is_err(), "an empty state would be mistaken for the truth");
        let kept = documents.document(&format!("{name}.broken")).read().await.unwrap().unwrap();
        assert_eq!(kept.text, "garbage");
        assert_eq!(documents.document(name).read().await.unwrap().unwrap().text, "garbage", "it is not written over");
        written_documents(&documents, &[3]).await;
        assert_eq!(read_documents(&documents).await, (sample(3), Found::Whole));
    }
}

#[tokio::test]
async fn a_document_of_a_newer_format_stops_the_start() {
    let documents = in_memory();
    documents.document("state.json").put(r#"{"format": 2, "checksum": "", "state": {}}"#.to_owned()).await.unwrap();
    let refused = StateDocuments::open(documents).await.map(|_| ());
    assert!(matches!(refused, Err(Error::Newer { found: 2, .. })), "{refused:?}");
}

/// A store whose answers take a moment, so that others may write between the reading of a document and its swap.
fn with_slow_answers() -> Documents {
    let moment = Duration::from_millis(1);
    let config = ThrottleConfig { wait_get_per_call: moment, wait_put_per_call: moment, ..ThrottleConfig::default() };
    documents_in(Arc::new(ThrottledStore::new(InMemory::new(), config)))
}

async fn sharing(documents: &Documents) -> SharedState {
    SharedState::open(documents.clone()).await.unwrap().0
}

/// The state after one more run of this export.
fn later(before: &State, export: &str, run: u64) -> State {
    let mut state = before.clone();
    state.exports.entry(export.to_owned()).or_default().unrecorded_runs.insert(run);
    state
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_the_state_give_no_number_of_a_run_twice() {
    let documents = with_slow_answers();
    let processes = [sharing(&documents).await, sharing(&documents).await, sharing(&documents).await];
    let number = async |process: &SharedState| process.next_run().await.unwrap();
    let mut numbers = BTreeSet::new();
    for _ in 0..5 {
        let [one, two, three] = &processes;
        numbers.extend(<[u64; 3]>::from(tokio::join!(number(one), number(two), number(three))));
    }
    assert_eq!(numbers, (1..=15).collect());
}

#[tokio::test]
async fn of_processes_that_share_the_state_each_writes_what_it_has_claimed_and_nothing_else() {
    let documents = in_memory();
    let (mut first, mut second) = (sharing(&documents).await, sharing(&documents).await);
    let nothing = State::default();
    let refused = first.write(&nothing, &mut later(&nothing, "a", 1)).await;
    assert!(matches!(refused, Err(Error::NotHeld { .. })), "{refused:?}");
    first.claim("a").await.unwrap();
    second.claim("b").await.unwrap();
    first.write(&nothing, &mut later(&nothing, "a", 1)).await.unwrap();
    second.write(&nothing, &mut later(&nothing, "b", 2)).await.unwrap();
    let both = later(&later(&nothing, "a", 1), "b", 2);
    assert_eq!(documents::peek(&documents).await.unwrap(), both);
    assert_eq!(second.claim("a").await.unwrap(), both.exports["a"]);
    let refused = first.write(&both, &mut later(&both, "a", 3)).await;
    assert!(matches!(refused, Err(Error::TakenOver { .. })), "{refused:?}");
    second.write(&both, &mut later(&both, "a", 4)).await.unwrap();
    assert_eq!(documents::peek(&documents).await.unwrap(), later(&both, "a", 4));
}

#[tokio::test]
async fn what_all_exports_share_keeps_the_changes_of_every_process() {
    let documents = in_memory();
    let (mut first, mut second) = (sharing(&documents).await, sharing(&documents).await);
    let nothing = State::default();
    let at = parse_instant("2026-11-20T02:00:00Z");
    first.write(&nothing, &mut State { speaks_r4: Some(true), ..nothing.clone() }).await.unwrap();
    let mut written = State { maintained_at: at, ..nothing.clone() };
    second.write(&nothing, &mut written).await.unwrap();
    assert_eq!((written.speaks_r4, written.maintained_at), (Some(true), at));
    assert_eq!(documents::peek(&documents).await.unwrap(), written);
}
