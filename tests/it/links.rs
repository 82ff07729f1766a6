use chrono::TimeDelta;
use fhir_sync::{
    demo::{Fault, StatusCode},
    state::{OpenState, State},
    sync::{Mode, Outcome},
};

use crate::harness::{Made, OBSERVATION, PATIENT, Setup, failure};

/// (rule 61, Q-56)
#[tokio::test]
async fn a_sync_outlives_links_that_expire_while_files_are_downloaded() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.lines_per_file = 1;
        // The files that are left then fit into one manifest, however the four workers share its links.
        scenario.link_requests = Some(6);
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
    let requests = setup.server.requests();
    let refused = requests.iter().filter(|request| request.status == 403).count();
    let jobs = setup.server.jobs();
    assert!(refused > 0 && jobs.len() == 1 && jobs[0].deleted, "{jobs:?}");
    assert!(jobs[0].polls <= 2 + 4, "nine files, six for each manifest, four workers: {jobs:?}");
}

/// (rule 61)
#[tokio::test]
async fn four_workers_whose_links_expire_together_ask_once_for_another_manifest() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.lines_per_file = 3;
        scenario.faults = vec![Fault::Status {
            path_contains: "/bulkfiles/".to_owned(),
            status: StatusCode::FORBIDDEN,
            times: 4,
            retry_after: None,
            body: String::new(),
        }];
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
    let polls = setup.server.jobs()[0].polls;
    assert!((3..=4).contains(&polls), "one in progress, one manifest, one for all links: {polls}");
}

/// (rule 61)
#[tokio::test]
async fn a_manifest_that_is_another_one_when_it_is_fetched_again_fails_the_type_and_the_next_sync_loads_it() {
    let setup = Setup::new().await;
    let patient = "{\"resourceType\":\"Patient\",\"id\":\"n1\"}\n";
    Made::default().output("Patient", 1, patient).serve(&setup);
    setup.server.scenario(|scenario| {
        let gone = Fault::Status {
            path_contains: "/bulkfiles/made/output.0".to_owned(),
            status: StatusCode::GONE,
            times: 1,
            retry_after: None,
            body: String::new(),
        };
        scenario.faults.insert(0, gone);
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    let cause = failure(&report, PATIENT);
    assert!(cause.contains("the manifest is not the same any more"), "{cause}");
    assert_eq!(setup.watermark(PATIENT).await, None);
    assert!(setup.server.jobs()[0].deleted, "another export is asked for");

    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    setup.assert_same_as_server().await;
    assert_eq!(setup.lines(OBSERVATION).await.len(), 4);
}

/// A store may deny what it has deleted. (rule 61)
#[tokio::test]
async fn a_job_whose_files_are_denied_is_kept_for_the_operator_and_asked_for_anew_after_three_days() {
    for (days, jobs) in [(1, 1), (4, 2)] {
        let setup = Setup::new().await;
        setup.server.scenario(|scenario| {
            scenario.faults = vec![Fault::Status {
                path_contains: "/bulkfiles/".to_owned(),
                status: StatusCode::FORBIDDEN,
                times: 1000,
                retry_after: None,
                body: String::new(),
            }];
        });
        setup.sync().await;
        {
            let (mut open, _) = OpenState::open(&setup.state_file()).unwrap();
            let change = |state: &mut State| {
                let job = &mut state.exports.get_mut("all").unwrap().jobs[0];
                let since = job.denied_since.expect("the job is kept") - TimeDelta::days(days);
                job.denied_since = Some(since);
            };
            open.update(change).unwrap();
        }
        setup.sync().await;
        assert_eq!(setup.server.jobs().len(), 1, "the same job");
        setup.server.scenario(|scenario| scenario.faults.clear());
        setup.complete().await;
        setup.assert_same_as_server().await;
        assert_eq!(setup.server.jobs().len(), jobs, "after {days} days");
    }
}

/// What is in it is older than the full load: of an increment, and of a first load. (rule 52)
#[tokio::test]
async fn a_job_that_was_denied_is_not_followed_for_what_was_loaded_in_full_since() {
    for is_increment in [true, false] {
        let setup = Setup::new().await;
        if is_increment {
            setup.complete().await;
        }
        setup.later(|world| _ = world.put(PATIENT, "n1", serde_json::json!({})));
        let job = setup.server.jobs().len() + 1;
        let denied = Fault::Status {
            path_contains: format!("/bulkfiles/{job}/"),
            status: StatusCode::FORBIDDEN,
            times: 1000,
            retry_after: None,
            body: String::new(),
        };
        setup.server.scenario(|scenario| scenario.faults = vec![denied]);
        setup.sync().await;
        setup.later(|_| ());
        setup.run(Mode::FullRefresh).await;
        setup.server.scenario(|scenario| scenario.faults.clear());
        setup.later(|_| ());
        setup.complete().await;
        setup.assert_same_as_server().await;
        let jobs = setup.server.jobs();
        assert_eq!(jobs.len(), job + 2, "{jobs:?}");
        assert!(jobs.last().unwrap().since.is_some(), "no type is loaded in full again");
    }
}
