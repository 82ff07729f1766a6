//! Checks: whether a configuration can sync, step by step, without syncing. It needs the server's key, and neither
//! lock nor lease: it can be done beside a daemon.

use std::{path::Path, time::Duration};

use chrono::TimeDelta;
use url::Url;

use super::{Config, Engine, Export, chain, clock::now, sources};
use crate::{
    export::{self, Check, Client, ExportRequest},
    fhir::TransactionTime,
    spark,
    state::StatePlace,
    table::{self, CLOSE_IT, Exclusive, Location, Root, try_spool_folder},
};

/// A person waits for the answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a kick-off asks for that is cancelled at once: little, in case that the server cannot cancel.
const ASKED_FOR: TimeDelta = TimeDelta::hours(1);

/// The server, the token, the groups, the tables and the folders; where `kick_off` says so, also whether each export is
/// accepted.
pub async fn check(
    server: export::Config,
    tables: table::Config,
    state: &StatePlace,
    config: &Config,
    exports: &[Export],
    kick_off: bool,
) -> Vec<Check> {
    let url = server.server.clone();
    let mut checks = of_server(server, exports, kick_off).await;
    checks.extend(of_tables(tables, config, &url).await);
    checks.extend(of_state(state));
    checks.extend(of_spool(&config.spool_folder, state));
    if let Some(config) = &config.spark {
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

/// The tables, and whether their rows are from this server.
async fn of_tables(tables: table::Config, config: &Config, server: &Url) -> Vec<Check> {
    let what = "tables";
    if let Location::Folder(folder) = &tables.root
        && matches!(folder.try_exists(), Ok(false))
    {
        return vec![of_missing_folder(what, folder)];
    }
    let storage_options = tables.storage_options.retrying_for(PATIENCE);
    let root = match Root::for_reading(table::Config { storage_options, ..tables }) {
        Ok(root) => root,
        Err(error) => return vec![Check::failed(what, chain(&error))],
    };
    if let Err(error) = root.refuse_a_table().await {
        return vec![Check::failed(what, chain(&error))];
    }
    let mut checks = vec![of_root(&root).await];
    checks.push(match sources::check(&root, config, server).await {
        Ok(()) => Check::good("source", format!("{} may be this server", config.source)),
        Err(error) => Check::failed("source", chain(&error)),
    });
    checks
}

async fn of_root(root: &Root) -> Check {
    let (what, place) = ("tables", root.place());
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

/// A folder that the first sync creates, if it may.
fn of_missing_folder(what: &str, folder: &Path) -> Check {
    let place = folder.display();
    let is_there = |folder: &&Path| !matches!(folder.try_exists(), Ok(false));
    let above = folder.ancestors().skip(1).find(is_there).filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    match tempfile::tempfile_in(above) {
        Ok(_) => Check::doubtful(what, format!("{place} does not exist yet; the first sync creates it")),
        Err(error) => {
            let (above, cause) = (above.display(), chain(&error));
            let way_out = format!("the first sync cannot create it in {above}: {cause}; create it, or choose another");
            Check::failed(what, format!("{place} does not exist, and {way_out}"))
        }
    }
}

/// The folder of the state, where it is in one.
fn of_state(state: &StatePlace) -> Option<Check> {
    let (what, folder) = ("state", state.folder()?);
    if matches!(folder.try_exists(), Ok(false)) {
        return Some(of_missing_folder(what, folder));
    }
    Some(match tempfile::tempfile_in(folder) {
        Ok(_) => Check::good(what, format!("{} can be written", folder.display())),
        Err(error) => {
            let way_out = "check its owner and mode, or choose another place (`state.file`, `state.url`)";
            Check::failed(what, format!("{} cannot be written: {}; {way_out}", folder.display(), chain(&error)))
        }
    })
}

/// The folder of received rows, where it is not that of the state: no other one is created.
fn of_spool(folder: &Path, state: &StatePlace) -> Option<Check> {
    if state.folder() == Some(folder) {
        return None;
    }
    let place = folder.display();
    Some(match try_spool_folder(folder) {
        Ok(_) => Check::good("spool", format!("{place} can be written")),
        Err(error) => {
            let way_out = "check its owner and mode, or set sync.spool_folder";
            Check::failed("spool", format!("{place} cannot be written: {}; {way_out}", chain(&error)))
        }
    })
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
