use std::time::Duration;

use fhir_sync::{
    state::Outcome,
    sync::{Mode, recovery},
};
use tokio_util::sync::CancellationToken;

use crate::harness::Setup;

#[tokio::test]
async fn a_run_beyond_its_time_ends_and_names_the_setting_and_the_next_one_continues_with_the_same_export() {
    let mut setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    setup.config.max_run_time = Duration::from_secs(1);
    let syncer = setup.open().await.unwrap();
    let report = syncer.run(&setup.export, Mode::Incremental, &CancellationToken::new()).await;
    assert_eq!((report.outcome, setup.server.jobs().len()), (Outcome::Failed, 1), "{report:#?}");
    let limit = setup.config.max_run_time;
    let error = fhir_sync::sync::Error::RunTime { limit };
    assert_eq!(report.remarks, [error.to_string()]);
    assert!(error.to_string().contains("after 1s, as sync.max_run_time says"), "{error}");
    assert_eq!(recovery(&error), recovery(&fhir_sync::sync::Error::Stopped));
    syncer.close().await;
    drop(syncer);

    setup.server.scenario(|scenario| scenario.hold = false);
    setup.config.max_run_time = Duration::from_hours(1);
    setup.complete().await;
    assert_eq!(setup.server.jobs().len(), 1);
    setup.assert_same_as_server().await;
}
