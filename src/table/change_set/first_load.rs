//! A first load: the rows for an empty table are written into data files while the download runs, not after it.
//!
//! No reader sees the files before the commit. Which of their rows are superseded by other rows of the same export is
//! known only at the end, so the commit adds the files together with deletion vectors.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use arrow::array::RecordBatch;
use deltalake::{DeltaTableError, Path};
use tokio::runtime::Handle;

use crate::table::{
    Error,
    change_set::entry::{ChunkIndex, RowLocation},
    data_file::deletion_vector::RowSet,
    data_file::rolling::{DataFiles, FileTarget},
    data_file::stored::StoredFile,
    data_file::{DataFile, forget},
    parallel::{cores, in_parallel},
};

pub struct FirstLoad {
    target: FileTarget,
    writers: Vec<Mutex<LoadWriter>>,
    next_writer: AtomicUsize,
    next_chunk: AtomicU32,
    finished: Mutex<Vec<(ChunkIndex, StoredFile)>>,
    /// The first error. Rows were lost with the file that could not be written.
    failed: OnceLock<Error>,
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
        Self { target, writers, next_writer, next_chunk, finished: Mutex::default(), failed: OnceLock::new() }
    }

    /// Writes the rows into one file, one after the other, and returns the location of the first. Blocks on the
    /// runtime, so it must not be called on one of the runtime's own threads.
    ///
    /// # Errors
    /// After the first error there are only errors, the same ones: rows of earlier batches may have been lost with their
    /// file.
    pub fn write(&self, rows: &RecordBatch) -> Result<RowLocation, Error> {
        self.unless_failed(|| self.try_write(rows))
    }

    fn unless_failed<T>(&self, step: impl FnOnce() -> Result<T, DeltaTableError>) -> Result<T, Error> {
        if let Some(error) = self.failed.get() {
            return Err(again(error));
        }
        step().map_err(Error::first_load).inspect_err(|error| {
            self.failed.get_or_init(|| again(error));
        })
    }

    fn try_write(&self, rows: &RecordBatch) -> Result<RowLocation, DeltaTableError> {
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

    /// Finishes the open files, in parallel. Later rows begin new ones. Blocks, in the context of a runtime.
    ///
    /// # Errors
    /// As those of [`Self::write`]: nothing of it can be committed then.
    pub fn flush(&self) -> Result<(), Error> {
        let runtime = Handle::current();
        let finish = |writer: &_| self.unless_failed(|| self.finish(writer, &runtime));
        in_parallel(&self.writers, finish)?;
        Ok(())
    }

    fn finish(&self, writer: &Mutex<LoadWriter>, runtime: &Handle) -> Result<(), DeltaTableError> {
        let LoadWriter { files, chunks } = std::mem::take(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(files) = files else { return Ok(()) };
        let adds = runtime.block_on(files.finish())?;
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
        Ok(())
    }

    /// Deletes everything that was written.
    pub async fn abandon(&self) {
        let mut paths = Vec::new();
        for writer in &self.writers {
            let LoadWriter { files, .. } = std::mem::take(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(files) = files else { continue };
            paths.extend(files.abort().await.into_iter().map(|add| Path::from(add.path)));
        }
        let finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        paths.extend(finished.into_iter().map(|(_, stored)| stored.file.path));
        for path in paths {
            forget(self.target.store.as_ref(), &path).await;
        }
    }

    /// The finished files, with their chunk indices.
    pub fn files(&self) -> Vec<(ChunkIndex, StoredFile)> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The error for those who come later; what decides whether a later run may succeed is the same.
fn again(error: &Error) -> Error {
    match error {
        Error::StoreFailed { place, failure } => Error::StoreFailed { place: place.clone(), failure: failure.clone() },
        Error::DiskFull { place } => Error::DiskFull { place: place.clone() },
        Error::NotWritable { place, kind } => Error::NotWritable { place: place.clone(), kind: *kind },
        other => Error::spool(other.to_string()),
    }
}

/// Fewer writers with larger row groups are better: the footer has an entry for each column of each row group.
const WRITER_BYTES: usize = 16 * 1024 * 1024;
/// With less memory than this, a first load would write tiny row groups; the rows then go into the spool.
pub const MIN_WRITER_BYTES: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, StringArray};
    use object_store::memory::InMemory;

    use super::*;

    fn rows(ids: &[&str]) -> RecordBatch {
        let ids: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
        RecordBatch::try_from_iter([("id", ids)]).unwrap()
    }

    /// Its location would be that of rows that were lost with the open file.
    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_write_that_failed_no_row_is_taken_and_nothing_is_finished() {
        let target = FileTarget::new(Arc::new(InMemory::new()), rows(&[]).schema(), None, 1);
        // Each batch goes to the file at once.
        let first_load = FirstLoad::new(FileTarget { row_group_bytes: 1, ..target }, 1);
        tokio::task::block_in_place(|| {
            first_load.write(&rows(&["a"])).unwrap();
            let not_ids: ArrayRef = Arc::new(arrow::array::StructArray::new_empty_fields(1, None));
            first_load.write(&RecordBatch::try_from_iter([("id", not_ids)]).unwrap()).unwrap_err();
            first_load.write(&rows(&["b"])).unwrap_err();
            first_load.flush().unwrap_err();
        });
        assert_eq!(first_load.files().len(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_files_that_are_open_are_finished_and_keep_their_numbers() {
        let target = FileTarget::new(Arc::new(InMemory::new()), rows(&[]).schema(), None, 1);
        let first_load =
            FirstLoad { writers: vec![Mutex::default(), Mutex::default()], ..FirstLoad::new(target, 1 << 20) };
        tokio::task::block_in_place(|| {
            let busy = first_load.writers[0].lock().unwrap();
            let locations = [first_load.write(&rows(&["a", "b"])).unwrap(), first_load.write(&rows(&["c"])).unwrap()];
            assert_eq!(locations.map(|of| (of.chunk.0, of.row)), [(0, 0), (0, 2)]);
            drop(busy);
            assert_eq!(first_load.write(&rows(&["d"])).unwrap().chunk, ChunkIndex(1));
            first_load.flush().unwrap();
        });
        let mut counts = Vec::new();
        for (chunk, stored) in first_load.files() {
            counts.push((chunk.0, stored.row_count().await.unwrap()));
        }
        counts.sort_unstable();
        assert_eq!(counts, [(0, 3), (1, 1)]);
    }
}
