//! A first load: the rows for an empty table are written into data files while the download runs, not after it.
//!
//! No reader sees the files before the commit. Which of their rows are superseded by other rows of the same export is
//! known only at the end, so the commit adds the files together with deletion vectors.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use arrow::array::RecordBatch;
use deltalake::DeltaTableError;
use tokio::runtime::Handle;

use crate::table::{
    change_set::entry::{ChunkIndex, RowLocation},
    data_file::deletion_vector::RowSet,
    data_file::rolling::{DataFiles, FileTarget},
    data_file::stored::StoredFile,
    data_file::{DataFile, forget},
    parallel::cores,
};

pub struct FirstLoad {
    target: FileTarget,
    writers: Vec<Mutex<LoadWriter>>,
    next_writer: AtomicUsize,
    next_chunk: AtomicU32,
    finished: Mutex<Vec<(ChunkIndex, StoredFile)>>,
}

/// Writes one file at a time.
#[derive(Default)]
struct LoadWriter {
    files: Option<DataFiles>,
    /// The indices of its files in the change set.
    chunks: Vec<ChunkIndex>,
}

impl FirstLoad {
    /// `memory_bytes` are divided among as many writers as there are cores, or fewer where each would get little. A
    /// writer uses half of its memory for a row group, the other half for rows that are buffered until the columns are
    /// known.
    pub fn new(target: FileTarget, memory_bytes: usize) -> Self {
        let writers = (memory_bytes / WRITER_BYTES).clamp(1, cores());
        let row_group_bytes = (memory_bytes / writers / 2).clamp(1, target.row_group_bytes);
        let target = FileTarget { row_group_bytes, ..target };
        let writers = (0..writers).map(|_| Mutex::default()).collect();
        let (next_writer, next_chunk) = (AtomicUsize::new(0), AtomicU32::new(0));
        Self { target, writers, next_writer, next_chunk, finished: Mutex::default() }
    }

    /// Writes the rows into one file, one after the other, and returns the location of the first. Blocks on the
    /// runtime, so it must not be called on one of the runtime's own threads.
    pub fn write(&self, rows: &RecordBatch) -> Result<RowLocation, DeltaTableError> {
        let free = self.writers.iter().find_map(|writer| writer.try_lock().ok());
        let mut writer = free.unwrap_or_else(|| {
            let next = self.next_writer.fetch_add(1, Ordering::Relaxed);
            self.writers[next % self.writers.len()].lock().unwrap_or_else(PoisonError::into_inner)
        });
        let LoadWriter { files, chunks } = &mut *writer;
        let files = files.get_or_insert_with(|| DataFiles::new(self.target.clone(), Vec::new(), BTreeSet::new()));
        let (file, row) = Handle::current().block_on(files.write(rows))?;
        while chunks.len() <= file {
            chunks.push(ChunkIndex(self.next_chunk.fetch_add(1, Ordering::Relaxed)));
        }
        let row = u32::try_from(row).map_err(|_| DeltaTableError::generic("a data file of more than 2^32 rows"))?;
        Ok(RowLocation { chunk: chunks[file], row })
    }

    /// Finishes the open files. Later rows begin new ones.
    pub async fn flush(&self) -> Result<(), DeltaTableError> {
        for writer in &self.writers {
            let LoadWriter { files, chunks } =
                std::mem::take(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(files) = files else { continue };
            let adds = files.finish().await?;
            let stored = adds.into_iter().map(|add| StoredFile {
                file: DataFile {
                    store: Arc::clone(&self.target.store),
                    path: add.path.as_str().into(),
                    size_bytes: u64::try_from(add.size).unwrap_or_default(),
                },
                add,
                dead: RowSet::new(),
                own: true,
            });
            self.finished.lock().unwrap_or_else(PoisonError::into_inner).extend(chunks.into_iter().zip(stored));
        }
        Ok(())
    }

    /// Deletes everything that was written.
    pub async fn abandon(&self) {
        if let Err(error) = self.flush().await {
            tracing::debug!(%error, "an unfinished data file was discarded");
        }
        let finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        for (_, stored) in finished {
            forget(self.target.store.as_ref(), &stored.file.path).await;
        }
    }

    /// The finished files, with their chunk indices.
    pub fn files(&self) -> Vec<(ChunkIndex, StoredFile)> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Fewer writers with larger row groups are better: the footer has an entry for each column of each row group.
const WRITER_BYTES: usize = 16 * 1024 * 1024;
/// With less memory than this, a first load would write tiny row groups; the rows then go into the spool.
pub const MIN_WRITER_BYTES: usize = 512 * 1024;
