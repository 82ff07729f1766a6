//! A server that limits the rate, time sixty times as fast as in the world: a second stands for a minute.

use std::time::Duration;

use fhir_sync::{
    demo::{RateLimit, World},
    export::WaitRange,
};
use serde_json::json;

use crate::harness::{PATIENT, Setup};

const MINUTE: Duration = Duration::from_secs(1);
const FILES: usize = 1_000;

async fn setup() -> Setup {
    let mut world = World::new();
    for number in 1..=FILES {
        world.put(PATIENT, &format!("p{number}"), json!({"gender": "female"}));
    }
    let mut setup = Setup::with_world(world).await;
    setup.export.types = vec![PATIENT];
    setup.client.http.retry_wait = WaitRange::new(MINUTE / 60, MINUTE * 2).unwrap();
    setup.client.http.outage_patience = MINUTE * 30;
    setup
}

/// All files arrive, the job is deleted, and there are few requests more than that needs.
async fn assert_polite(setup: &Setup, limit: RateLimit) {
    setup.server.scenario(|scenario| {
        (scenario.lines_per_file, scenario.max_jobs, scenario.rate_limit) = (1, 1, Some(limit));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
    assert!(setup.server.jobs().iter().all(|job| job.deleted));
    let refusals: Vec<bool> = setup.server.requests().iter().map(|request| request.status == 429).collect();
    let refused = refusals.iter().filter(|is_refused| **is_refused).count();
    let in_a_row = refusals.split(|is_refused| !is_refused).map(<[bool]>::len).max().unwrap_or(0);
    let needed = refusals.len() - refused;
    assert!(needed <= FILES + 10, "{needed} requests were answered");
    assert!(refusals.len() * 10 <= needed * 12, "{refused} of {} requests were refused", refusals.len());
    assert!(in_a_row <= 12, "{in_a_row} requests in a row were refused");
    println!("{limit:?}: {} requests, {refused} refused, {in_a_row} in a row", refusals.len());
}

const fn limit(says_when: bool) -> RateLimit {
    RateLimit { requests: 60, window: MINUTE, says_when }
}

/// One export at a time, 60 requests a minute, and never a word about when to come again (rule 78, Q-3).
#[tokio::test]
async fn a_thousand_files_of_a_server_that_takes_sixty_requests_a_minute_need_hardly_more_than_a_thousand_requests() {
    assert_polite(&setup().await, limit(false)).await;
}

/// The same, where each refusal says when to come again (rule 78).
#[tokio::test]
async fn a_server_that_says_when_to_come_again_is_not_asked_before() {
    assert_polite(&setup().await, limit(true)).await;
}

/// The limit is in the configuration (rule 78).
#[tokio::test]
async fn a_server_whose_limit_is_configured_refuses_nothing() {
    let mut setup = setup().await;
    // A little less than the server takes: on a busy machine, requests may arrive closer together than they began.
    setup.client.http.max_requests_per_minute = Some(54 * 60);
    assert_polite(&setup, limit(false)).await;
    assert!(setup.server.requests().iter().all(|request| request.status != 429));
}
