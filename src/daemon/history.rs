//! History: what the status page shows of the ledger and of the logs of the tables. It is read in the background, at
//! the start and after a run that changed tables, so that no request and no run waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
};

use tokio::task::JoinSet;

use crate::{
    fhir::ResourceType,
    sync::{self, PastRuns, Report, Syncer, TypeReport, chain},
    telemetry::panics,
};

#[derive(Default)]
pub struct History {
    /// The last runs of each export.
    pub runs: BTreeMap<String, PastRuns>,
    /// How many rows the table of each type has.
    pub rows: BTreeMap<ResourceType, u64>,
    /// One task at a time counts rows; one reads the ledger, once.
    readings: JoinSet<Reading>,
    is_counting: bool,
    /// The types whose rows are to be counted next.
    to_count: BTreeSet<ResourceType>,
}

/// What a task has read.
enum Reading {
    Ledger(Result<BTreeMap<String, PastRuns>, sync::Error>),
    Rows(BTreeMap<ResourceType, u64>),
}

impl History {
    /// Begins to read the ledger, and to count the rows of these types.
    pub fn read(syncer: &Arc<Syncer>, types: BTreeSet<ResourceType>) -> Self {
        let mut history = Self { to_count: types, ..Self::default() };
        let reader = Arc::clone(syncer);
        history.readings.spawn(async move { Reading::Ledger(reader.past_runs().await) });
        history.count(syncer);
        history
    }

    /// A run has ended: it is the newest, and it may have changed tables.
    pub fn ended(&mut self, report: &Report, syncer: &Arc<Syncer>) {
        self.runs.entry(report.export.clone()).or_default().push(report);
        let of_types = report.types.iter().chain(report.instalments.iter().map(|(of, report)| (of, report)));
        self.to_count.extend(of_types.filter(|(_, of)| may_have_changed(of)).map(|(of, _)| *of));
        self.count(syncer);
    }

    /// Waits until something was read.
    pub async fn next(&mut self, syncer: &Arc<Syncer>) {
        match self.readings.join_next().await {
            None => pending().await,
            Some(Ok(Reading::Ledger(Ok(runs)))) => self.earlier(runs),
            Some(Ok(Reading::Ledger(Err(error)))) => {
                tracing::warn!(
                    error = chain(&error),
                    "the ledger could not be read; the status page lacks earlier runs"
                );
            }
            Some(Ok(Reading::Rows(rows))) => {
                self.rows.extend(rows);
                self.is_counting = false;
            }
            Some(Err(error)) => {
                let error = panics::of_task(&error);
                tracing::error!(error, "reading for the status page panicked; this is a bug in fhir-sync");
                self.is_counting = false;
            }
        }
        self.count(syncer);
    }

    /// Runs may have ended while the ledger was read.
    fn earlier(&mut self, runs: BTreeMap<String, PastRuns>) {
        for (export, mut runs) in runs {
            let known = self.runs.entry(export).or_default();
            runs.extend(known);
            *known = runs;
        }
    }

    fn count(&mut self, syncer: &Arc<Syncer>) {
        if self.is_counting || self.to_count.is_empty() {
            return;
        }
        let (syncer, types) = (Arc::clone(syncer), std::mem::take(&mut self.to_count).into_iter().collect());
        self.readings.spawn(async move { Reading::Rows(syncer.row_counts(types).await) });
        self.is_counting = true;
    }
}

/// Rows were written or removed, or maybe: a commit that failed may have landed.
fn may_have_changed(of: &TypeReport) -> bool {
    let counts = &of.counts;
    counts.inserted + counts.deleted + counts.removed > 0 || matches!(of.end, sync::TypeEnd::Failed(_))
}
