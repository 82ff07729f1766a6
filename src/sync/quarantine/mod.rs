//! The quarantine: lines that cannot become rows, kept with file, line number and reason until somebody looks at them.
//!
//! One file per run, one JSON object per line, readable by its owner only: it is as confidential as the tables. A line
//! is on the disk before the commit that moves its type's watermark. Each content is kept once, in whichever run it
//! arrived first, and the folder has a limit in bytes.

use std::{
    collections::HashSet,
    fs::{DirBuilder, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::json;

use super::Error;
use crate::{fhir::ResourceType, resource::BadLine};

pub struct Quarantine {
    folder: PathBuf,
    /// The file of this run.
    path: PathBuf,
    max_bytes: u64,
    /// Read with the first bad line.
    kept: Mutex<Option<Kept>>,
    /// Lines that should have been resources.
    resources: AtomicU64,
}

/// What is in the folder.
struct Kept {
    contents: HashSet<Sha256>,
    bytes: u64,
    file: Option<File>,
}

type Sha256 = String;

impl Quarantine {
    /// The quarantine of one run; its file appears with the first bad line that no earlier run has kept.
    pub fn new(state_folder: &Path, export: &str, run: u64, max_bytes: u64) -> Self {
        let folder = state_folder.join("quarantine");
        let path = folder.join(format!("{export}-{run:08}.ndjson"));
        Self { folder, path, max_bytes, kept: Mutex::new(None), resources: AtomicU64::new(0) }
    }

    /// What the operator should know of it.
    pub fn remark(&self) -> Option<String> {
        let lines = self.resources.load(Ordering::Relaxed);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let has_file = kept.as_ref().is_some_and(|kept| kept.file.is_some());
        let place = if has_file { &self.path } else { &self.folder }.display();
        (lines > 0).then(|| format!("{lines} lines are not resources; they are kept in {place}"))
    }

    /// Keeps bad lines of one file, each content once; a file of deletions has no type. They are on the disk when it
    /// returns. Blocks.
    ///
    /// # Errors
    /// Nothing is kept where the folder would exceed its limit: then the lines must be asked for again.
    pub fn keep(&self, resource_type: Option<ResourceType>, file_name: &str, bad: &[BadLine]) -> Result<(), Error> {
        if bad.is_empty() {
            return Ok(());
        }
        let failed = |source| Error::Quarantine { place: self.path.display().to_string(), source };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            *kept = Some(read(&self.folder).map_err(failed)?);
        }
        let Some(kept) = kept.as_mut() else { return Ok(()) };
        let mut records = String::new();
        let mut contents = HashSet::new();
        for BadLine { line, reason } in bad {
            let sha256 = sha256(&line.bytes);
            if kept.contents.contains(&sha256) || !contents.insert(sha256.clone()) {
                continue;
            }
            // Bytes that are not text are kept as well: a line is kept whole.
            let base64 = std::str::from_utf8(&line.bytes).is_err().then(|| STANDARD.encode(&line.bytes));
            let record = json!({
                "resource_type": resource_type,
                "file": file_name,
                "line": line.number,
                "reason": reason.code(),
                "detail": reason.to_string(),
                "sha256": sha256,
                "base64": base64,
                "text": String::from_utf8_lossy(&line.bytes),
            });
            records.push_str(&record.to_string());
            records.push('\n');
        }
        if !records.is_empty() {
            let bytes = kept.bytes + records.len() as u64;
            if bytes > self.max_bytes {
                let place = self.folder.display().to_string();
                return Err(Error::QuarantineFull { place, max_bytes: self.max_bytes });
            }
            let file = match &mut kept.file {
                Some(file) => file,
                none => none.insert(create(&self.path).map_err(failed)?),
            };
            file.write_all(records.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)?;
            kept.bytes = bytes;
            kept.contents.extend(contents);
        }
        if resource_type.is_some() {
            self.resources.fetch_add(bad.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What earlier runs have kept. A record of an earlier version has no hash, and may be kept once more.
fn read(folder: &Path) -> std::io::Result<Kept> {
    #[derive(Deserialize)]
    struct Record {
        sha256: Sha256,
    }
    let mut kept = Kept { contents: HashSet::new(), bytes: 0, file: None };
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(kept),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        kept.bytes += entry.metadata()?.len();
        for line in BufReader::new(File::open(entry.path())?).split(b'\n') {
            kept.contents.extend(serde_json::from_slice::<Record>(&line?).map(|record| record.sha256));
        }
    }
    Ok(kept)
}

fn sha256(bytes: &[u8]) -> Sha256 {
    digest(&SHA256, bytes).as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(hex).collect()
}

fn hex(digit: u8) -> Option<char> {
    char::from_digit(u32::from(digit), 16)
}

fn create(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
