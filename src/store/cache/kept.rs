//! What is kept: parts of objects in an encrypted file on the local disk, up to a limit; the least recently used goes
//! first.
//!
//! It is a copy of what a store has. A part that cannot be read back is missing, and a disk that is full or broken ends
//! the keeping: nothing fails by it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    ops::Range,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use object_store::path::Path;

use super::pages::{PAGE_BYTES, Pages};
use crate::telemetry::metrics::{self, CacheLookup};

/// Which part of which object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Part {
    pub path: Path,
    /// What the store calls this content of the object; `None` for an object that is never replaced.
    pub e_tag: Option<String>,
    /// `None` for all of it.
    pub range: Option<Range<u64>>,
}

/// A folder and a limit: where parts are kept, and how much of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub folder: PathBuf,
    pub max_bytes: u64,
}

#[derive(Debug)]
pub struct Cache {
    settings: Settings,
    index: Mutex<Index>,
    /// The disk failed once.
    broken: AtomicBool,
}

#[derive(Default)]
struct Index {
    pages: Option<std::sync::Arc<Pages>>,
    entries: HashMap<Part, Entry>,
    /// The parts by their last use.
    by_use: BTreeMap<u64, Part>,
    uses: u64,
    free: Vec<u32>,
    /// How many pages the file has.
    in_file: u32,
    max_pages: u32,
    /// How many pages were sealed: the nonce of the next one.
    sealed: u64,
}

impl fmt::Debug for Index {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} parts in {} pages", self.entries.len(), self.in_file)
    }
}

struct Entry {
    pages: Vec<u32>,
    nonce: u64,
    bytes: usize,
    used: u64,
}

impl Cache {
    /// An empty one; its file is created when it is needed.
    pub fn new(settings: Settings) -> Self {
        Self { settings, index: Mutex::default(), broken: AtomicBool::new(false) }
    }

    /// A part of more bytes is not kept: it would push out too many others.
    pub fn max_part_bytes(&self) -> u64 {
        self.settings.max_bytes / 8
    }

    /// The part, if it is kept. Blocks on the disk.
    pub fn get(&self, part: &Part) -> Option<Bytes> {
        let found = self.look_up(part);
        metrics::cache_asked(if found.is_some() { CacheLookup::Hit } else { CacheLookup::Miss });
        found
    }

    fn look_up(&self, part: &Part) -> Option<Bytes> {
        let (file, pages, nonce, bytes) = {
            let mut index = self.index();
            let (pages, nonce, bytes) = index.used(part)?;
            (index.pages.clone()?, pages, nonce, bytes)
        };
        match file.read(&pages, nonce, bytes) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                let mut index = self.index();
                // The pages may have been given to another part in the meantime, which is no fault.
                if index.entries.get(part).is_some_and(|entry| entry.nonce == nonce) {
                    index.remove(part);
                    drop(index);
                    self.warn(&error);
                }
                None
            }
        }
    }

    /// Keeps a part. Blocks on the disk.
    pub fn insert(&self, part: &Part, bytes: &[u8]) {
        if self.broken.load(Ordering::Relaxed) || bytes.is_empty() || bytes.len() as u64 > self.max_part_bytes() {
            return;
        }
        if let Err(error) = self.try_insert(part, bytes) {
            self.broken.store(true, Ordering::Relaxed);
            let mut index = self.index();
            // The disk may be the spool's, which needs the space more.
            if let Some(Err(error)) = index.pages.take().map(|pages| pages.clear()) {
                tracing::debug!(%error, "the cache of the object store did not give its space back");
            }
            let sealed = index.sealed;
            *index = Index { sealed, ..Index::default() };
            drop(index);
            self.warn(&error);
        }
        metrics::cache_size(self.kept_bytes());
    }

    fn try_insert(&self, part: &Part, bytes: &[u8]) -> io::Result<()> {
        let wanted = u32::try_from(bytes.len().div_ceil(PAGE_BYTES)).map_err(io::Error::other)?;
        let (file, pages, nonce) = {
            let mut index = self.index();
            if index.entries.contains_key(part) {
                return Ok(());
            }
            let file = match &index.pages {
                Some(pages) => std::sync::Arc::clone(pages),
                None => {
                    let pages = std::sync::Arc::new(Pages::new(&self.settings.folder)?);
                    index.max_pages = self.max_pages();
                    std::sync::Arc::clone(index.pages.insert(pages))
                }
            };
            let Some(pages) = index.take(wanted) else { return Ok(()) };
            let nonce = index.sealed;
            // Counted before the write, which may fail: a nonce must never be used twice with one key.
            index.sealed += u64::from(wanted);
            (file, pages, nonce)
        };
        file.write(&pages, nonce, bytes)?;
        self.index().add(part, Entry { pages, nonce, bytes: bytes.len(), used: 0 });
        Ok(())
    }

    /// The limit, but never more than half of what is free on the disk.
    fn max_pages(&self) -> u32 {
        let free = rustix::fs::statvfs(&self.settings.folder)
            .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize) / 2);
        u32::try_from(self.settings.max_bytes.min(free) / PAGE_BYTES as u64).unwrap_or(u32::MAX)
    }

    /// How much of the disk is in use.
    pub fn kept_bytes(&self) -> u64 {
        let index = self.index();
        (index.in_file as usize - index.free.len().min(index.in_file as usize)) as u64 * PAGE_BYTES as u64
    }

    /// Once; afterwards the store is asked.
    fn warn(&self, error: &io::Error) {
        static WARNED: AtomicBool = AtomicBool::new(false);
        if !WARNED.swap(true, Ordering::Relaxed) {
            let folder = self.settings.folder.display();
            tracing::warn!(%error, %folder, "the local cache of the object store failed; the store is asked instead");
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// Notes the use of a part; where it is.
    fn used(&mut self, part: &Part) -> Option<(Vec<u32>, u64, usize)> {
        let entry = self.entries.get_mut(part)?;
        self.uses += 1;
        if let Some(part) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.uses, part);
        }
        entry.used = self.uses;
        Some((entry.pages.clone(), entry.nonce, entry.bytes))
    }

    fn add(&mut self, part: &Part, entry: Entry) {
        self.uses += 1;
        let entry = Entry { used: self.uses, ..entry };
        // Two threads may have read the same part.
        self.remove(part);
        self.by_use.insert(self.uses, part.clone());
        self.entries.insert(part.clone(), entry);
    }

    fn remove(&mut self, part: &Part) {
        if let Some(entry) = self.entries.remove(part) {
            self.by_use.remove(&entry.used);
            self.free.extend(entry.pages);
        }
    }

    /// Free pages; parts that were not used for long give theirs.
    fn take(&mut self, wanted: u32) -> Option<Vec<u32>> {
        let wanted = wanted as usize;
        while self.free.len() < wanted && self.in_file < self.max_pages {
            self.free.push(self.in_file);
            self.in_file += 1;
        }
        while self.free.len() < wanted {
            let (_, oldest) = self.by_use.pop_first()?;
            let entry = self.entries.remove(&oldest)?;
            self.free.extend(entry.pages);
        }
        Some(self.free.split_off(self.free.len() - wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str) -> Part {
        Part { path: Path::from(name), e_tag: None, range: Some(0..7) }
    }

    fn cache(folder: &std::path::Path, pages: u64) -> Cache {
        Cache::new(Settings { folder: folder.to_owned(), max_bytes: pages * PAGE_BYTES as u64 })
    }

    #[test]
    fn a_part_is_read_back_as_it_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 64);
        let bytes: Vec<u8> = (0..PAGE_BYTES * 3 + 17).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        cache.insert(&part("a"), &bytes);
        cache.insert(&part("b"), b"short");
        assert_eq!(cache.get(&part("a")).unwrap(), bytes);
        assert_eq!(cache.get(&part("b")).unwrap(), b"short".as_slice());
        assert_eq!(cache.get(&Part { range: Some(0..8), ..part("a") }), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn the_least_recently_used_part_goes_first_and_the_limit_holds() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 8);
        let page = vec![1; PAGE_BYTES];
        for name in ["0", "1", "2", "3", "4", "5", "6", "7"] {
            cache.insert(&part(name), &page);
        }
        assert!(cache.get(&part("0")).is_some());
        cache.insert(&part("8"), &page);
        assert_eq!((cache.get(&part("1")), cache.kept_bytes()), (None, 8 * PAGE_BYTES as u64));
        for name in ["0", "2", "3", "4", "5", "6", "7", "8"] {
            assert_eq!(cache.get(&part(name)).unwrap(), page, "{name}");
        }
    }

    #[test]
    fn a_part_whose_pages_were_changed_is_missing_and_never_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path(), 64);
        cache.insert(&part("a"), b"ids of patients");
        let pages = cache.index().pages.clone().unwrap();
        pages.write(&[0], 1_000, b"ids of nobody..").unwrap();
        assert_eq!(cache.get(&part("a")), None);
        cache.insert(&part("a"), b"ids of patients");
        assert_eq!(cache.get(&part("a")).unwrap(), b"ids of patients".as_slice());
    }

    #[test]
    fn a_folder_that_cannot_be_written_ends_the_keeping_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(&folder.path().join("gone"), 64);
        cache.insert(&part("a"), b"x");
        assert_eq!(cache.get(&part("a")), None);
    }

    #[test]
    fn the_file_on_the_disk_does_not_show_what_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let pages = Pages::new(folder.path()).unwrap();
        pages.write(&[0], 0, &[b'p'; 1000]).unwrap();
        assert_eq!(pages.read(&[0], 0, 1000).unwrap(), vec![b'p'; 1000]);
        assert!(pages.read(&[0], 1, 1000).is_err());
    }
}
