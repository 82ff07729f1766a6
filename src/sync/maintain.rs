//! Maintenance of all tables, one after the other. The server is asked nothing.
//!
//! Never at the same time as a sync: who runs one holds the state file, and does one thing at a time. One failing table
//! does not stop the others.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Error, Step, Syncer, advice,
    blocking::{blocking, now},
    chain,
};
use crate::table::{self, DryRun, Maintained, TableName};

/// How the tables are maintained, and how long that may take.
#[derive(Clone, Debug, PartialEq)]
pub struct MaintenanceRun {
    pub tables: table::MaintenanceOptions,
    /// When this is over, no further files are put together; the next time goes on there. What has begun is finished.
    pub time_limit: Duration,
}

/// What became of each table that there is.
pub type TablesMaintained = Vec<(TableName, Result<Maintained, Error>)>;

impl Syncer {
    /// Maintains these tables; those that are left when `stop` is cancelled are left out.
    pub async fn maintain(
        &self,
        tables: &[TableName],
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        stop: &CancellationToken,
    ) -> TablesMaintained {
        let ends_at = Instant::now() + maintenance.time_limit;
        let mut done = Vec::new();
        for table in tables {
            if stop.is_cancelled() {
                tracing::info!("maintenance is stopped; the next one goes on");
                break;
            }
            self.progress.step(Step::Maintaining(*table));
            let result = self.maintain_table(*table, maintenance, dry_run, ends_at, stop).await;
            log(*table, dry_run, &result);
            done.extend(result.transpose().map(|result| (*table, result)));
        }
        self.progress.step(Step::Idle);
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
            files_written = done.written.files, rows_purged = done.purged_rows, rows_folded = done.folded_rows, left = done.left,
            checkpoint = done.checkpoint, log_files_deleted = done.log_deleted.files,
            files_vacuumed = done.vacuumed.files, bytes_vacuumed = done.vacuumed.bytes, "table maintained"
        ),
        Err(error) => tracing::error!(
            %table, advice = ?advice(error), error = chain(error),
            "a table was not maintained; it is whole, and the next maintenance tries again"
        ),
    }
}
