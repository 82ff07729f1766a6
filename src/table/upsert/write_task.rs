//! Write tasks: the chosen rows of a change set, divided among threads.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;

use crate::table::{
    Error,
    change_set::entry::ChunkIndex,
    data_file::partitioned::{PartitionFilter, PartitionedFiles},
    data_file::rolling::FileTarget,
    date_partition::{PartitionKey, keys},
    parallel::{cores, in_parallel},
    upsert::writer::Writer,
};

/// The rows that one thread writes: the chosen rows of these chunks, as far as they are in these partitions.
pub struct WriteTask {
    pub chunks: Vec<ChunkIndex>,
    pub partitions: BTreeSet<PartitionKey>,
}

impl WriteTask {
    /// Files for the rows of the task.
    pub fn files(&self, writer: &Writer<'_>, target: FileTarget) -> PartitionedFiles {
        PartitionedFiles::new(target, writer.changes.filled_columns(), PartitionFilter::Only(self.partitions.clone()))
    }
}

/// Fewer chunks than this are written by one thread, because two small files help nobody.
const MIN_CHUNKS_PER_TASK: usize = 8;
/// Partitions of one task; it writes a file of each at the same time.
const MAX_PARTITIONS_PER_TASK: usize = 16;

/// Tasks that together write all chosen rows, as many as are worth a thread. In a partitioned table each partition
/// belongs to one task; partitions that share chunks belong to the same task, up to [`MAX_PARTITIONS_PER_TASK`].
pub fn write_tasks(writer: &Writer<'_>) -> Result<Vec<WriteTask>, Error> {
    let chunks: Vec<_> = writer.decision.chosen.keys().copied().collect();
    if writer.table.partitioned_by().is_some() {
        return Ok(by_partition(chunks_of_partitions(writer, &chunks)?));
    }
    let threads = (chunks.len() / MIN_CHUNKS_PER_TASK).clamp(1, cores());
    let shares = chunks.chunks(chunks.len().div_ceil(threads).max(1));
    let task = |chunks: &[ChunkIndex]| WriteTask { chunks: chunks.to_vec(), partitions: BTreeSet::from([None]) };
    Ok(shares.map(task).collect())
}

fn by_partition(chunks_of: BTreeMap<PartitionKey, RoaringBitmap>) -> Vec<WriteTask> {
    let mut tasks: Vec<(BTreeSet<PartitionKey>, RoaringBitmap)> = Vec::new();
    for (partition, chunks) in chunks_of {
        let shares = |(partitions, of_task): &&mut (BTreeSet<_>, RoaringBitmap)| {
            partitions.len() < MAX_PARTITIONS_PER_TASK && !of_task.is_disjoint(&chunks)
        };
        match tasks.last_mut().filter(shares) {
            Some((partitions, of_task)) => {
                partitions.insert(partition);
                *of_task |= chunks;
            }
            None => tasks.push((BTreeSet::from([partition]), chunks)),
        }
    }
    let task = |(partitions, chunks): (_, RoaringBitmap)| WriteTask {
        chunks: chunks.iter().map(ChunkIndex).collect(),
        partitions,
    };
    tasks.into_iter().map(task).collect()
}

/// The chunks that have chosen rows of each partition, as a bitmap: partitions by day are many, and so are their
/// chunks.
fn chunks_of_partitions(
    writer: &Writer<'_>,
    chunks: &[ChunkIndex],
) -> Result<BTreeMap<PartitionKey, RoaringBitmap>, Error> {
    let keys_of = |chunk: &ChunkIndex| {
        if let Some(partitions) = writer.changes.partitions(*chunk) {
            return Ok((*chunk, partitions.into_iter().collect()));
        }
        let Some(chosen) = writer.decision.chosen.get(chunk) else { return Ok((*chunk, BTreeSet::new())) };
        let rows = writer.chosen_rows(*chunk, chosen)?;
        let keys = keys(&rows, writer.table.partitioned_by()).map_err(|error| writer.table.failed(error))?;
        Ok((*chunk, keys))
    };
    let mut chunks_of: BTreeMap<PartitionKey, RoaringBitmap> = BTreeMap::new();
    for (chunk, keys) in in_parallel(chunks, keys_of)? {
        for key in keys {
            chunks_of.entry(key).or_default().insert(chunk.0);
        }
    }
    Ok(chunks_of)
}
