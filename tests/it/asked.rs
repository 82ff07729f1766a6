use std::time::Duration;

use fhir_sync::{
    demo::{Server, World},
    export::Level,
    fhir::ResourceType,
    state::{OpenState, peek},
    sync::{self, Chosen, Joiners, Mode, Outcome, Report},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{ANY_PORT, OBSERVATION, PATIENT, Process, Setup, eventually};

fn group(id: &str) -> Level {
    Level::Group(id.to_owned())
}

/// `_since` of each export that was requested.
fn since(setup: &Setup) -> Vec<Option<String>> {
    setup.server.jobs().into_iter().map(|job| job.since).collect()
}

/// A sync that is stopped while the server works on its export.
async fn stopped_while_waiting(setup: &Setup) {
    setup.server.scenario(|scenario| scenario.hold = true);
    let (syncer, stop) = (setup.open().await.unwrap(), CancellationToken::new());
    let jobs_before = setup.server.jobs().len();
    let polled = eventually("a poll", async || {
        let jobs = setup.server.jobs();
        (jobs.len() > jobs_before && jobs.last().unwrap().polls > 0).then(|| stop.cancel())
    });
    let (report, ()) = tokio::join!(syncer.run(&setup.export, Mode::Incremental, &stop), polled);
    assert_eq!(report.outcome, Outcome::Stopped);
    setup.server.scenario(|scenario| scenario.hold = false);
}

fn assert_says(report: &Report, what: &str) {
    assert!(report.notes.iter().any(|note| note.contains(what)), "{:?}", report.notes);
}

/// (rule 113)
#[tokio::test]
async fn another_group_is_loaded_in_full_and_the_report_says_why() {
    let mut setup = Setup::new().await;
    setup.export.level = group("a");
    setup.export.joiners = Joiners::Server;
    setup.complete().await;
    setup.export.level = group("b");
    let report = setup.complete().await;
    assert_says(&report, "Observation, Patient: loaded in full, because group changed from a to b");
    let report = setup.complete().await;
    assert_eq!(report.notes, Vec::<String>::new());
    let since = since(&setup);
    assert_eq!((since.len(), &since[1]), (3, &None));
    assert!(since[2].is_some(), "the watermark of group b");
    setup.assert_same_as_server().await;
}

/// Its watermark says nothing of what joiners had before. (rules 107 and 113)
#[tokio::test]
async fn a_type_that_comes_back_to_the_export_of_a_group_is_loaded_in_full() {
    for (level, joiners, loaded) in [
        (group("a"), Joiners::AskFor, true),
        (group("a"), Joiners::Server, false),
        (Level::System, Joiners::AskFor, false),
    ] {
        let mut setup = Setup::new().await;
        let member = |number| json!({"entity": {"reference": format!("Patient/p{number}")}});
        let members: Vec<_> = (1..=5).map(member).collect();
        let of_group = json!({"type": "person", "actual": true, "member": members});
        setup.server.world(|world| {
            world.put(ResourceType::GROUP, "a", of_group);
            world.put(OBSERVATION, "of-p1", json!({"status": "final", "subject": {"reference": "Patient/p1"}}));
        });
        (setup.export.level, setup.export.joiners) = (level, joiners);
        let both = setup.export.types.clone();
        setup.complete().await;
        setup.export.types = vec![PATIENT];
        setup.complete().await;
        setup.export.types = both;
        let report = setup.complete().await;
        let says =
            report.notes.iter().any(|note| note.contains("Observation: loaded in full, because it was not asked"));
        assert_eq!(says, loaded, "{:?}", report.notes);
        assert_eq!(setup.complete().await.notes, Vec::<String>::new());
    }
}

/// (rule 113)
#[tokio::test]
async fn another_level_is_loaded_in_full() {
    let mut setup = Setup::new().await;
    setup.export.level = Level::Patient;
    setup.complete().await;
    setup.export.level = Level::System;
    assert_says(&setup.complete().await, "level changed from patient to system");
    assert_eq!(since(&setup), [None, None]);
}

/// (rule 113)
#[tokio::test]
async fn back_at_the_first_group_everything_is_loaded_again() {
    let mut setup = Setup::new().await;
    for id in ["a", "b", "a"] {
        setup.export.level = group(id);
        setup.complete().await;
    }
    assert_eq!(since(&setup), [None, None, None], "what was removed for group b may be missing");
}

/// (rule 113)
#[tokio::test]
async fn without_a_state_file_another_group_is_loaded_in_full_too() {
    let mut setup = Setup::new().await;
    setup.export.level = group("a");
    setup.complete().await;
    std::fs::remove_dir_all(setup.folder.path().join("state")).unwrap();
    setup.export.level = group("b");
    setup.complete().await;
    assert_eq!(since(&setup), [None, None]);
}

/// (rules 105 and 113)
#[tokio::test]
async fn a_job_of_another_group_is_cancelled_and_requested_again() {
    let mut setup = Setup::new().await;
    setup.export.level = group("a");
    stopped_while_waiting(&setup).await;
    setup.export.level = group("b");
    setup.complete().await;
    let jobs = setup.server.jobs();
    assert_eq!((jobs.len(), jobs[0].deleted, jobs[0].polls > 2), (2, true, false), "{jobs:?}");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_job_that_is_given_up_does_not_wait_for_a_server_that_is_gone() {
    let mut setup = Setup::new().await;
    setup.config.source_chosen = Chosen::ByOperator;
    stopped_while_waiting(&setup).await;
    {
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        let gone = "http://127.0.0.1:9/fhir".parse().unwrap();
        let change = |job: &mut fhir_sync::state::JobInFlight| {
            job.server = Some(gone);
            job.status_url = "http://127.0.0.1:9/status/1".parse().unwrap();
        };
        open_state.update(|state| change(state.exports.get_mut("all").unwrap().jobs.first_mut().unwrap())).unwrap();
    }
    setup.complete().await;
    setup.assert_same_as_server().await;
}

async fn other_server() -> Server {
    let mut world = World::new();
    world.put(PATIENT, "of-another-hospital", json!({"gender": "male"}));
    world.advance(Duration::from_hours(2));
    Server::start(world, ANY_PORT).await.unwrap()
}

/// (rule 113)
#[tokio::test]
async fn another_server_under_the_same_tables_is_refused_before_any_request() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    let (first, other) = (setup.server.url(), other_server().await);
    setup.client.server = other.url();
    let error = setup.open().await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, sync::Error::OtherServer { .. }), "{text}");
    for part in [first.as_str().trim_end_matches('/'), other.url().as_str(), "set server.source = \"hospital\""] {
        assert!(text.contains(part.trim_end_matches('/')), "{text}");
    }
    assert!(other.requests().is_empty());
    // Another source is another server: both keep their rows.
    setup.config.source = "clinic".into();
    let before = setup.lines(PATIENT).await.len();
    setup.complete().await;
    assert_eq!(other.jobs()[0].since, None);
    setup.run(Mode::FullRefresh).await;
    assert_eq!(setup.lines(PATIENT).await.len(), before + 1);
}

/// (rule 113)
#[tokio::test]
async fn an_address_that_was_mistyped_before_anything_was_loaded_binds_nobody() {
    for chosen in [Chosen::ByDefault, Chosen::ByOperator] {
        let mut setup = Setup::new().await;
        setup.config.source_chosen = chosen;
        let right = setup.client.server.clone();
        setup.client.server = right.join("/fihr").unwrap();
        assert_eq!(setup.sync().await.outcome, sync::Outcome::Failed);
        setup.client.server = right.clone();
        setup.complete().await;
        setup.assert_same_as_server().await;
        setup.client.server = other_server().await.url();
        let moved = setup.open().await;
        let is_refused = matches!(moved.as_ref().err(), Some(sync::Error::OtherServer { recorded, .. })
            if *recorded == right.as_str().trim_end_matches('/'));
        assert_eq!(is_refused, chosen == Chosen::ByDefault, "what has brought rows is recorded");
    }
}

#[tokio::test]
async fn the_drop_in_flags_refuse_another_server_too() {
    let setup = Setup::new().await;
    let other = other_server().await;
    let sync = async |url: String, state: &str, environment: &[(&str, &str)]| {
        let (lake, state) = (setup.lake().display().to_string(), setup.folder.path().join(state).display().to_string());
        let flags = ["sync", "--fhir-endpoint", &url, "--delta-path", &lake, "--state-file", &state];
        let types = ["--resource-types", "Patient"];
        Process::start(&[&flags[..], &types[..]].concat(), environment).end().await
    };
    let first = sync(setup.server.url().to_string(), "a.json", &[]).await;
    assert_eq!(first.code, Some(0), "{}", first.output());
    let second = sync(other.url().to_string(), "b.json", &[]).await;
    assert_eq!(second.code, Some(78), "{}", second.output());
    assert!(second.stderr.contains("if that is the same server at a new address"), "{}", second.stderr);
    let of_its_own = sync(other.url().to_string(), "b.json", &[("FHIR_SYNC__SERVER__SOURCE", "clinic")]).await;
    assert_eq!(of_its_own.code, Some(0), "{}", of_its_own.output());
    assert_eq!(setup.lines(PATIENT).await.len(), 6);
}

#[tokio::test]
async fn a_server_that_has_moved_continues_from_its_watermarks_and_its_old_job_is_cancelled() {
    let mut setup = Setup::new().await;
    setup.config.source_chosen = Chosen::ByOperator;
    setup.complete().await;
    stopped_while_waiting(&setup).await;
    let moved = other_server().await;
    let first = std::mem::replace(&mut setup.client.server, moved.url());
    setup.sync().await;
    assert!(moved.jobs()[0].since.is_some());
    assert!(setup.server.jobs()[1].deleted, "the job at the old address");
    assert_eq!(peek(&setup.state_file()).unwrap().exports["all"].jobs, []);
    setup.client.server = first;
    let error = setup.open().await.err().unwrap();
    assert!(matches!(error, sync::Error::TwoServers { .. }), "{error}");
}
