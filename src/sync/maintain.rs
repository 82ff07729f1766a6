//! Maintenance of all tables, one after the other. It sends no request to the server.
//!
//! It takes its turn at writing like an export, so it runs while exports wait for the server, and never while one
//! streams or commits. A table that fails does not stop the others.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Activity, Error, Step, Syncer,
    blocking::{blocking, now},
    chain, recovery,
};
use crate::{
    table::{self, DryRun, Maintained, TableName},
    telemetry::metrics,
};

/// One run of maintenance: what is done to the tables, and how long that may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceRun {
    pub tables: table::MaintenanceOptions,
    /// After this time no further files are rewritten; the next maintenance continues. What has begun is finished.
    pub time_limit: Duration,
}

/// The result for each table that exists.
pub type TablesMaintained = Vec<(TableName, Result<Maintained, Error>)>;

impl Syncer {
    /// Maintains these tables, until `stop` is cancelled. The time limit begins with its turn.
    pub async fn maintain(
        &self,
        tables: &[TableName],
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        stop: &CancellationToken,
    ) -> TablesMaintained {
        let progress = self.progress.of(Activity::Maintenance);
        let turn = self.turns.take(&progress, stop).await;
        let ends_at = Instant::now() + maintenance.time_limit;
        let mut done = Vec::new();
        for table in tables {
            if turn.is_err() || stop.is_cancelled() {
                tracing::info!("maintenance stopped; the next one continues");
                break;
            }
            progress.step(Step::Maintaining(*table));
            let result = self.maintain_table(*table, maintenance, dry_run, ends_at, stop).await;
            log(*table, dry_run, &result);
            if let (Ok(Some(_)), DryRun::No) = (&result, dry_run) {
                metrics::maintained(table.as_str(), now());
            }
            done.extend(result.transpose().map(|result| (*table, result)));
        }
        progress.end();
        done
    }

    async fn maintain_table(
        &self,
        table: TableName,
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        ends_at: Instant,
        stop: &CancellationToken,
    ) -> Result<Option<Maintained>, Error> {
        if matches!(table, TableName::Resources(_)) && self.engine.is_elsewhere() {
            tracing::info!(%table, "not maintained here: Spark writes the table, and whoever runs it maintains it");
            return Ok(None);
        }
        // A run that fails before its turn records its end all the same: without this, one of the two would give way.
        let _ledger = if table == TableName::Runs { Some(self.turns.ledger().await) } else { None };
        let (root, settings, stop) = (self.root.clone(), maintenance.tables.clone(), stop.clone());
        let runtime = Handle::current();
        let maintained = blocking(move || {
            let goes_on = || !stop.is_cancelled() && Instant::now() < ends_at;
            runtime.block_on(root.maintain(table, &settings, dry_run, now(), &goes_on))
        });
        Ok(maintained.await?)
    }
}

fn log(table: TableName, dry_run: DryRun, result: &Result<Option<Maintained>, Error>) {
    match result {
        Ok(None) => {}
        Ok(Some(done)) => tracing::info!(
            %table, dry_run = dry_run == DryRun::Yes, files_rewritten = done.rewritten.files,
            files_written = done.written.files, rows_purged = done.purged_rows, rows_folded = done.folded_rows,
            rows_expired = done.expired_rows,
            left = done.left, checkpoint = done.checkpoint, log_files_deleted = done.log_deleted.files,
            files_vacuumed = done.vacuumed.files, bytes_vacuumed = done.vacuumed.bytes, "table maintained"
        ),
        Err(error) => tracing::error!(
            %table, acts = %recovery(error).acts, error = chain(error),
            "a table was not maintained; it is unharmed, and the next maintenance tries again"
        ),
    }
}
