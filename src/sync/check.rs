//! Checks: whether a configuration can sync, step by step, without syncing. It needs the server's key, and neither
//! lock nor lease: it can be done beside a daemon.

use std::time::Duration;

use chrono::TimeDelta;

use super::{Engine, Export, chain, clock::now};
use crate::{
    export::{self, Check, Client, ExportRequest},
    fhir::TransactionTime,
    spark,
    table::{self, CLOSE_IT, Exclusive, Location, Root},
};

/// A person waits for the answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a kick-off asks for that is cancelled at once: little, in case that the server cannot cancel.
const ASKED_FOR: TimeDelta = TimeDelta::hours(1);

/// The server, the token, the groups and the tables; where `kick_off` says so, also whether each export is accepted.
pub async fn check(
    server: export::Config,
    tables: table::Config,
    spark: Option<&spark::Config>,
    exports: &[Export],
    kick_off: bool,
) -> Vec<Check> {
    let mut checks = of_server(server, exports, kick_off).await;
    checks.push(of_tables(tables).await);
    if let Some(config) = spark {
        checks.push(of_spark(config.clone()).await);
    }
    checks
}

async fn of_spark(mut config: spark::Config) -> Check {
    let (what, place) = ("spark", config.address.place());
    config.outage_patience = PATIENCE;
    match Engine::server_version(&config).await {
        Ok(Some(version)) => Check::good(what, format!("{place} answers, Spark {version}")),
        Ok(None) => Check::failed(what, "this program was built without it".to_owned()),
        Err(error) => Check::failed(what, chain(&error)),
    }
}

async fn of_server(mut server: export::Config, exports: &[Export], kick_off: bool) -> Vec<Check> {
    server.http.outage_patience = PATIENCE;
    server.poll.kick_off_deadline = Duration::ZERO;
    let client = match Client::new(server) {
        Ok(client) => client,
        Err(error) => return vec![Check::failed("server", chain(&error))],
    };
    let asked: Vec<_> = exports.iter().map(|export| (export.level.clone(), export.types.clone())).collect();
    let mut checks = client.check(&asked).await;
    let is_reached = checks.iter().all(|check| check.verdict != export::CheckVerdict::Failed);
    for export in exports.iter().filter(|_| kick_off && is_reached) {
        checks.extend(of_export(&client, export).await);
    }
    checks
}

/// All types at once; where the server refuses that, each of them, so that the one it does not export is known.
async fn of_export(client: &Client, export: &Export) -> Vec<Check> {
    let request = |types| ExportRequest {
        parameters: export.parameters.clone(),
        ..ExportRequest::new(
            export.level.clone(),
            types,
            Some(TransactionTime::from(now()).since(ASKED_FOR).as_since()),
        )
    };
    let all = client.check_export(&export.name, &request(export.types.clone())).await;
    let is_refused = all.verdict == export::CheckVerdict::Failed && export.types.len() > 1;
    let mut checks = vec![all];
    for of in export.types.iter().filter(|_| is_refused) {
        checks.push(client.check_export(&format!("{}, {of} alone", export.name), &request(vec![*of])).await);
    }
    checks
}

async fn of_tables(config: table::Config) -> Check {
    let what = "tables";
    if let Location::Folder(folder) = &config.root
        && matches!(folder.try_exists(), Ok(false))
    {
        let found = format!("{} does not exist yet; the first sync creates it", folder.display());
        return Check::doubtful(what, found);
    }
    let storage_options = config.storage_options.retrying_for(PATIENCE);
    let root = match Root::for_reading(table::Config { storage_options, ..config }) {
        Ok(root) => root,
        Err(error) => return Check::failed(what, chain(&error)),
    };
    let place = root.place();
    match root.try_permissions().await {
        Ok(Exclusive::Held) if root.is_open_to_all() => {
            Check::doubtful(what, format!("every user of this machine may enter {place}; {CLOSE_IT}"))
        }
        Ok(Exclusive::Held) => Check::good(what, format!("{place} can be written, and no file is created twice")),
        Ok(Exclusive::Ignored) => Check::failed(
            what,
            format!(
                "{place} creates the same file twice: two writers would overwrite each other's commits; use a store with conditional writes"
            ),
        ),
        Err(error) => Check::failed(what, chain(&error)),
    }
}

#[cfg(feature = "spark")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::{export::CheckVerdict, spark::tests::server};

    #[tokio::test]
    async fn spark_is_asked_before_any_sync_has_created_the_folder_of_the_tables() {
        let server = server().await;
        let check = of_spark(server.config()).await;
        assert_eq!(check.verdict, CheckVerdict::Good, "{}", check.found);
        assert!(check.found.ends_with("answers, Spark 4.1.4"), "{}", check.found);
    }
}
