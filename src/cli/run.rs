//! `run`: the daemon, until it is stopped.

use std::path::Path;

use super::{
    announce,
    exit::{self, Exit, STOPPED, misconfigured},
};
use crate::{
    config,
    daemon::{self, Ended},
    sync::chain,
    telemetry,
};

pub async fn run(path: &Path) -> Result<(), Exit> {
    let config = config::load(path).map_err(misconfigured)?;
    telemetry::start(&config.log);
    announce(&config, Some(path));
    let log_format = config.log.format;
    let error = match daemon::run(config, path).await {
        Ok(Ended::Gracefully) => return Ok(()),
        // Other threads may still be at work; the process does not wait for them.
        Ok(Ended::AtOnce) => STOPPED.at_once(),
        Err(error) => error,
    };
    // In the log's own format: nothing else reads the stderr of a service.
    if log_format.is_json() {
        tracing::error!(error = chain(&error), "the daemon did not start");
    } else {
        eprintln!("fhir-sync: {}", chain(&error));
    }
    Err(exit::of_start(&error))
}
