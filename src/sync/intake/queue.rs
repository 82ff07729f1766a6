//! The queue: which files of an export are read, and in which order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::{Context, Intake, Remark, deleted, instalments::Instalments, outcome, output};
use crate::{
    export::{File, FileKind, Manifest},
    fhir::ResourceType,
    sync::Error,
};

/// How many types arrive at the same time for tables that are empty. Each has data files open, with a row group of each
/// in memory: with four types the row groups would be half as large.
const MAX_FIRST_LOADS: usize = 2;

/// A file that is to be read.
pub enum Queued {
    Output {
        /// Its number among the files of the export.
        index: u32,
        file: File,
        /// Its type, if the table is empty.
        first_load: Option<ResourceType>,
    },
    Deleted(File),
    Outcomes(File),
}

/// The files to read. Those of one type are neighbours, so that at most as many types arrive at the same time as there
/// are workers: the memory of a change set that is complete goes to those that still arrive.
pub fn queue(context: &Context, manifest: &Manifest, instalments: &Instalments<'_>) -> VecDeque<Queued> {
    let mut output: Vec<_> = (0..).zip(&manifest.output).collect();
    output.sort_by_key(|(_, file)| file.kind);
    let is_wanted = |file: &File| {
        let is_wanted = match file.kind {
            FileKind::Of(resource_type) => context.intakes.contains_key(&resource_type),
            FileKind::Unknown | FileKind::Untyped => true,
        };
        if !is_wanted {
            tracing::warn!(file = file.name, "the server sent a type that was not requested; it is ignored");
        }
        if file.kind == FileKind::Unknown {
            tracing::warn!(file = file.name, "FHIR does not know the type of the file; its lines say what they are");
        }
        is_wanted
    };
    let output = output.into_iter().filter(|(_, file)| is_wanted(file) && !instalments.is_finished(file));
    let output = output.map(|(index, file)| {
        let first_load =
            file.kind.resource_type().filter(|of| context.intakes.get(of).is_some_and(Intake::is_first_load));
        Queued::Output { index, file: file.clone(), first_load }
    });
    let deleted = manifest.deleted.iter().cloned().map(Queued::Deleted);
    output.chain(deleted).chain(manifest.outcomes.iter().cloned().map(Queued::Outcomes)).collect()
}

/// Reads the files, as many at a time as there are workers; commits instalments in between.
///
/// # Errors
/// [`Error::Stopped`]: what had ended is committed, and nothing is taken any more.
pub async fn read_all(
    context: &Arc<Context>,
    mut queue: VecDeque<Queued>,
    instalments: &mut Instalments<'_>,
) -> Result<Vec<Remark>, Error> {
    let (workers, stop) = (instalments.syncer().config.parallel_downloads, instalments.stop());
    let mut remarks = Vec::new();
    let mut tasks = JoinSet::new();
    let mut first_loads = FirstLoads::default();
    loop {
        while tasks.len() < workers
            && let Some(place) = first_loads.next(queue.iter().map(Queued::first_load))
            && let Some(next) = queue.remove(place)
        {
            let of = next.first_load();
            first_loads.begin(of);
            let reading = next.read(Arc::clone(context));
            tasks.spawn(async move { (of, reading.await) }.in_current_span());
        }
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => {
                tasks.shutdown().await;
                instalments.commit_finished(context).await;
                context.close().await;
                return Err(Error::Stopped);
            }
            ended = tasks.join_next() => ended,
        };
        match ended {
            Some(Ok((of, of_file))) => {
                first_loads.end(of);
                remarks.extend(of_file);
            }
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => break,
        }
        instalments.commit_due(context).await;
    }
    instalments.commit_of_failed(context).await;
    Ok(remarks)
}

/// The types whose files are read for empty tables, and how many files of each.
#[derive(Default)]
struct FirstLoads(BTreeMap<ResourceType, usize>);

impl FirstLoads {
    /// The place of the first file that may be read now. `queue` has the type of each file that is for an empty table.
    fn next(&self, mut queue: impl Iterator<Item = Option<ResourceType>>) -> Option<usize> {
        let has_room = self.0.len() < MAX_FIRST_LOADS;
        queue.position(|of| of.is_none_or(|of| has_room || self.0.contains_key(&of)))
    }

    fn begin(&mut self, of: Option<ResourceType>) {
        if let Some(of) = of {
            *self.0.entry(of).or_default() += 1;
        }
    }

    fn end(&mut self, of: Option<ResourceType>) {
        let Some(of) = of else { return };
        let files = self.0.remove(&of).unwrap_or_default();
        if files > 1 {
            self.0.insert(of, files - 1);
        }
    }
}

impl Queued {
    /// How many lines the file should have.
    pub fn count(&self) -> Option<u64> {
        let (Self::Output { file, .. } | Self::Deleted(file) | Self::Outcomes(file)) = self;
        file.count
    }

    fn first_load(&self) -> Option<ResourceType> {
        match self {
            Self::Output { first_load, .. } => *first_load,
            Self::Deleted(_) | Self::Outcomes(_) => None,
        }
    }

    async fn read(self, context: Arc<Context>) -> Vec<Remark> {
        match self {
            Self::Output { index, file, .. } => output::read(context, file, index).await,
            Self::Deleted(file) => deleted::read(context, file).await,
            Self::Outcomes(file) => outcome::read(context, file).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_two_types_arrive_at_the_same_time_for_empty_tables_and_nothing_else_waits_for_them() {
        let [a, b, c] = ["Account", "Basic", "Condition"].map(|of| Some(of.parse::<ResourceType>().unwrap()));
        let mut first_loads = FirstLoads::default();
        assert_eq!(first_loads.next([a, a, b].into_iter()), Some(0));
        for of in [a, a, b] {
            first_loads.begin(of);
        }
        assert_eq!(first_loads.next([c, c].into_iter()), None);
        assert_eq!(first_loads.next([c, b].into_iter()), Some(1), "another file of a type that arrives");
        assert_eq!(first_loads.next([c, None].into_iter()), Some(1), "a file for a table with rows, or of deletions");
        first_loads.end(a);
        assert_eq!(first_loads.next([c].into_iter()), None, "one file of it is still being read");
        first_loads.end(a);
        assert_eq!(first_loads.next([c].into_iter()), Some(0));
    }
}
