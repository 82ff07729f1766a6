//! Type facts: what is known of the types of an export before their commits.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Coverage, Run,
    absence::{Absence, absences},
    intake::Received,
    sources,
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    state::{JobInFlight, KnownTable},
    table::Upsert,
};

/// What is known of the types before their commits.
pub struct TypeFacts {
    /// Without a watermark.
    pub upsert: Upsert,
    pub held: BTreeSet<ResourceType>,
    pub is_only_source: bool,
    pub absences: BTreeMap<ResourceType, Absence>,
    /// Loaded in full: the table was restored or replaced since our last commit, or something else was asked.
    pub reload: BTreeSet<ResourceType>,
    /// The tables as the last sync left them.
    pub tables: BTreeMap<ResourceType, KnownTable>,
    /// The tables as the last instalments of the job left them.
    pub finished: BTreeMap<ResourceType, KnownTable>,
    /// How far the server's clock had gone before it was set back.
    pub set_back_from: BTreeMap<ResourceType, TransactionTime>,
    /// Types with rows of a time when it was too far ahead of ours, if the export is of the clock that is right.
    pub clock_was_ahead: BTreeSet<ResourceType>,
    /// Types with lines that are not resources in files of others; `None` if it is not known of which type.
    pub bad_in_other_files: BTreeSet<Option<ResourceType>>,
}

impl TypeFacts {
    pub async fn of(
        run: &Run<'_>,
        job: &JobInFlight,
        coverage: Coverage,
        received: &mut Received,
        held: BTreeSet<ResourceType>,
    ) -> Self {
        let is_only_source = sources::recorded(&run.syncer.root).await.is_ok_and(|sources| sources.len() <= 1);
        let state = run.syncer.export_state(run.export);
        let finished =
            state.jobs.into_iter().find(|known| known.status_url == job.status_url).map(|known| known.finished);
        Self {
            upsert: coverage.without_watermark(run),
            absences: absences(run, job, coverage, received, &held).await,
            held,
            is_only_source,
            reload: state.reload.into_keys().collect(),
            tables: state.tables,
            finished: finished.into_iter().flatten().map(|(of, finished)| (of, finished.table)).collect(),
            set_back_from: state.set_back_from,
            clock_was_ahead: coverage.after_a_clock_ahead(state.was_ahead_until, run.syncer.config.overlap),
            bad_in_other_files: std::mem::take(&mut received.other_files.bad),
        }
    }
}
