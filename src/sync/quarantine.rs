//! The quarantine: lines that cannot become rows, kept with file, line number and reason until somebody looks at them.
//!
//! One file per run, one JSON object per line, readable by its owner only: it is as confidential as the tables. A line
//! is on the disk before the commit that moves its type's watermark.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::json;

use super::Error;
use crate::{fhir::ResourceType, resource::BadLine};

pub struct Quarantine {
    path: PathBuf,
    file: Mutex<Option<File>>,
    /// Lines that should have been resources.
    resources: AtomicU64,
}

impl Quarantine {
    /// The quarantine of one run; its file appears with the first bad line.
    pub fn new(folder: &Path, export: &str, run: u64) -> Self {
        let path = folder.join("quarantine").join(format!("{export}-{run:08}.ndjson"));
        Self { path, file: Mutex::new(None), resources: AtomicU64::new(0) }
    }

    /// What the operator should know of it.
    pub fn remark(&self) -> Option<String> {
        let lines = self.resources.load(Ordering::Relaxed);
        let place = self.path.display();
        (lines > 0).then(|| format!("{lines} lines are not resources; they are kept in {place}"))
    }

    /// Keeps bad lines of one file; a file of deletions has no type. They are on the disk when it returns. Blocks.
    pub fn keep(&self, resource_type: Option<ResourceType>, file_name: &str, bad: &[BadLine]) -> Result<(), Error> {
        if bad.is_empty() {
            return Ok(());
        }
        let failed = |source| Error::Quarantine { place: self.path.display().to_string(), source };
        let mut records = String::new();
        for BadLine { line, reason } in bad {
            let record = json!({
                "resource_type": resource_type,
                "file": file_name,
                "line": line.number,
                "reason": reason.code(),
                "detail": reason.to_string(),
                "text": String::from_utf8_lossy(&line.bytes),
            });
            records.push_str(&record.to_string());
            records.push('\n');
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = Some(create(&self.path).map_err(failed)?);
        }
        let Some(file) = file.as_mut() else { return Ok(()) };
        file.write_all(records.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)?;
        if resource_type.is_some() {
            self.resources.fetch_add(bad.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
