//! Maintenance of all tables, one after the other. It sends no request to the server.
//!
//! It takes its turn at writing like an export, so it runs while exports wait for the server, and never while one
//! streams or commits. Where several processes share the exports, one of them maintains at a time. For each table it
//! takes the leases of the exports that write it. A table that fails does not stop the others.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Activity, Error, ProgressSender, Step, Syncer, blocking::blocking, chain, clock::now, recovery};
use crate::{
    table::{self, DryRun, Maintained, TableName},
    telemetry::metrics::{self, MaintenanceOutcome},
};

/// One run of maintenance: what is done to the tables, and how long that may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceRun {
    pub tables: table::MaintenanceOptions,
    /// After this time no further files are rewritten; the next maintenance continues. What has begun is finished.
    pub time_limit: Duration,
}

/// The result for each table that exists, and for each that another process did not leave to this one.
pub type TablesMaintained = Vec<(TableName, Result<Maintained, Error>)>;

impl Syncer {
    /// Maintains these tables, until `stop` is cancelled. The time limit begins with its turn.
    ///
    /// # Errors
    /// [`Error::LeasedByOther`] where another process maintains; and where it cannot be known whether one does.
    pub async fn maintain(
        &self,
        tables: &[TableName],
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        stop: &CancellationToken,
    ) -> Result<TablesMaintained, Error> {
        let leases = self.take_lease_of_maintenance().await.inspect_err(|error| match error {
            Error::LeasedByOther { holder, .. } => tracing::info!(holder, "another fhir-sync maintains the tables"),
            error => tracing::error!(error = chain(error), "maintenance could not begin; the next one tries again"),
        })?;
        let begun_at = now();
        let done = leases.syncer.maintain_leased(tables, maintenance, dry_run, stop).await;
        if self.shares_exports() && dry_run == DryRun::No && !stop.is_cancelled() {
            self.remember_maintenance(begun_at).await;
        }
        leases.release().await;
        Ok(done)
    }

    /// So that no other process does it for the same tick.
    async fn remember_maintenance(&self, begun_at: DateTime<Utc>) {
        if let Err(error) = self.remember(move |state| state.maintained_at = Some(begun_at)).await {
            tracing::warn!(error = chain(&error), "another process may maintain the tables once more");
        }
    }

    async fn maintain_leased(
        &self,
        tables: &[TableName],
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        stop: &CancellationToken,
    ) -> TablesMaintained {
        let progress = self.progress.of(Activity::Maintenance);
        // Alone, nobody else writes from the first table to the last; the limit does not count the wait for that.
        let turn = if self.shares_exports() { None } else { Some(self.turns.take(&progress, stop).await) };
        let ends_at = Instant::now() + maintenance.time_limit;
        let mut done = Vec::new();
        let mut left: VecDeque<_> = tables.iter().copied().collect();
        let mut leased_by_others = 0;
        while let Some(table) = left.pop_front() {
            if matches!(turn, Some(Err(_))) || stop.is_cancelled() {
                tracing::info!("maintenance stopped; the next one continues");
                break;
            }
            progress.step(Step::Maintaining(table));
            let result = match self.maintain_in_turn(table, maintenance, dry_run, ends_at, stop, &progress).await {
                Err(Error::Stopped) => break,
                Err(Error::LeasedByOther { export, holder }) if Instant::now() < ends_at => {
                    tracing::debug!(%table, export, holder, "another fhir-sync writes the table; later");
                    left.push_back(table);
                    leased_by_others += 1;
                    if leased_by_others >= left.len() {
                        leased_by_others = 0;
                        // A step that waits for others does not hang.
                        progress.step(Step::WaitingForTurn);
                        wait(LOOKED_AT_EVERY.min(ends_at.saturating_duration_since(Instant::now())), stop).await;
                    }
                    continue;
                }
                Err(Error::LeasedByOther { export, holder }) => {
                    tracing::info!(%table, holder, "another fhir-sync writes the table; the next maintenance tries again");
                    done.push((table, Err(Error::LeasedByOther { export, holder })));
                    continue;
                }
                result => result,
            };
            leased_by_others = 0;
            log(table, dry_run, &result);
            let outcome = match &result {
                Ok(done) => done.as_ref().map(|_| MaintenanceOutcome::Maintained),
                Err(_) => Some(MaintenanceOutcome::Failed),
            };
            if let (Some(outcome), DryRun::No) = (outcome, dry_run) {
                metrics::maintained(table.as_str(), outcome, now());
            }
            done.extend(result.transpose().map(|result| (table, result)));
        }
        progress.end();
        done
    }

    /// Where exports are shared, each table needs its exports and a turn of its own.
    async fn maintain_in_turn(
        &self,
        table: TableName,
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        ends_at: Instant,
        stop: &CancellationToken,
        progress: &ProgressSender,
    ) -> Result<Option<Maintained>, Error> {
        if !self.shares_exports() {
            return self.maintain_table(table, maintenance, dry_run, ends_at, stop).await;
        }
        let leases = match table {
            TableName::Resources(of) => self.take_leases_of_writers(of).await?,
            // All processes append to these; a commit of ours that is overtaken is not made.
            TableName::Tombstones | TableName::Runs | TableName::Quarantine | TableName::Members => {
                self.take_leases(&[]).await?
            }
        };
        let turn = self.turns.take(progress, stop).await;
        let done = match turn {
            Ok(_turn) => leases.syncer.maintain_table(table, maintenance, dry_run, ends_at, stop).await,
            Err(error) => Err(error),
        };
        leases.release().await;
        match done {
            Err(Error::Table(table::Error::Conflict { .. })) if !matches!(table, TableName::Resources(_)) => {
                tracing::info!(%table, "other processes wrote to the table; the next maintenance tries again");
                Ok(None)
            }
            done => done,
        }
    }

    async fn maintain_table(
        &self,
        table: TableName,
        maintenance: &MaintenanceRun,
        dry_run: DryRun,
        ends_at: Instant,
        stop: &CancellationToken,
    ) -> Result<Option<Maintained>, Error> {
        if matches!(table, TableName::Resources(_)) && self.engine.is_spark() {
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

/// How often a table is tried again whose export another process holds.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(15);

async fn wait(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
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
