//! The queue: which files of an export are read, and in which order.

use std::{collections::VecDeque, sync::Arc};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Context, Remark, deleted, instalments::Instalments, outcome, output};
use crate::{
    export::{File, FileKind, Manifest},
    sync::Error,
};

/// A file that is to be read.
pub enum Queued {
    /// With its number among the files of the export.
    Output(u32, File),
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
            FileKind::Unknown => false,
            FileKind::Untyped => true,
        };
        if !is_wanted {
            tracing::warn!(file = file.name, "the server sent a type that was not requested; it is ignored");
        }
        is_wanted
    };
    let output = output.into_iter().filter(|(_, file)| is_wanted(file) && !instalments.is_finished(file));
    let output = output.map(|(index, file)| Queued::Output(index, file.clone()));
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
    workers: usize,
    instalments: &mut Instalments<'_>,
    stop: &CancellationToken,
) -> Result<Vec<Remark>, Error> {
    let mut remarks = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() < workers
            && let Some(next) = queue.pop_front()
        {
            tasks.spawn(next.read(Arc::clone(context)).in_current_span());
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
            Some(Ok(of_file)) => remarks.extend(of_file),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => break,
        }
        instalments.commit_due(context).await;
    }
    instalments.commit_of_failed(context).await;
    Ok(remarks)
}

impl Queued {
    async fn read(self, context: Arc<Context>) -> Vec<Remark> {
        match self {
            Self::Output(index, file) => output::read(context, file, index).await,
            Self::Deleted(file) => deleted::read(context, file).await,
            Self::Outcomes(file) => outcome::read(context, file).await,
        }
    }
}
