//! The quarantine of a run: lines that cannot become rows, kept with their place and the reason in the table
//! `_fhir_sync/quarantine` until somebody looks at them.
//!
//! Lines wait in memory, some MiB of them, and are on the disk before the commit that moves their type's watermark.
//! Each content is kept once, in whichever run it arrived first, and the table has a limit in bytes.

mod form;
mod replay;

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

pub use self::{
    form::{Policy, QuarantineKey},
    replay::{Purge, ReplayOf, Replayed},
};
use super::{
    Config, Error, Mode, Outcome, Run, chain,
    hex::{from_hex, hex},
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    resource::{BadLine, Line, LineTooLong},
    table::{self, QuarantineRow, Root, TableName},
};

pub struct Quarantine {
    root: Root,
    policy: Policy,
    max_bytes: u64,
    /// What all lines of the run have in common.
    of_run: QuarantineRow,
    /// Read with the first bad line.
    contents: Mutex<Option<Contents>>,
    /// Lines that should have been resources.
    resources: AtomicU64,
    has_lines: AtomicBool,
    /// The lines that an earlier run had kept, and this one has received again.
    again: Mutex<HashSet<ContentId>>,
}

/// What is in the table, and what will be.
#[derive(Default)]
struct Contents {
    lines: HashSet<ContentId>,
    bytes: u64,
    /// Not in the table yet.
    waiting: Vec<QuarantineRow>,
    waiting_bytes: u64,
}

/// The SHA-256 of a line.
type ContentId = [u8; 32];

/// A line that becomes no row of its type.
struct NotARow<'a> {
    id: ContentId,
    number: u64,
    offset: u64,
    bytes: u64,
    reason: &'static str,
    detail: String,
    /// Where it is known.
    line: Option<&'a Line>,
}

impl NotARow<'_> {
    /// Its row in the quarantine.
    fn row(self, policy: &Policy, of_file: &QuarantineRow) -> Result<QuarantineRow, Error> {
        let (form, content) = match self.line {
            Some(line) => policy.form(&of_file.file, line).map_err(|_| Error::NotEncrypted)?,
            None => (QuarantineRow::WITHHELD, None),
        };
        Ok(QuarantineRow {
            id: hex(&self.id),
            line: self.number,
            byte_offset: self.offset,
            bytes: self.bytes,
            reason: self.reason.to_owned(),
            detail: self.detail,
            form: form.to_owned(),
            content,
            ..of_file.clone()
        })
    }
}

impl Run<'_> {
    /// An increment does not bring again what was quarantined before it; a complete full refresh does.
    pub(super) async fn note_of_quarantine(&self) -> Option<String> {
        let has_quarantined = self.syncer.export_state(self.export).has_quarantined;
        let is_made_up_for = self.mode == Mode::FullRefresh && self.report.outcome == Outcome::Complete;
        if !has_quarantined || is_made_up_for {
            return None;
        }
        match self.quarantine.left(&self.export.types).await {
            Ok(0) => None,
            Ok(1) => Some(
                "1 line of these types is in quarantine: its row may be missing (fhir-sync quarantine list); replay it, or sync \
                 with --full-refresh when the server has mended it"
                    .to_owned(),
            ),
            Ok(lines) => Some(format!(
                "{lines} lines of these types are in quarantine: their rows may be missing (fhir-sync quarantine list); replay \
                 them, or sync with --full-refresh when the server has mended them"
            )),
            Err(error) => Some(format!("the quarantine could not be read: {}", chain(&error))),
        }
    }
}

/// More than this is not held back in memory until the type is committed.
const MAX_WAITING_BYTES: u64 = 8 * 1024 * 1024;
/// What a row takes besides its line.
const ROW_BYTES: u64 = 256;

impl Quarantine {
    /// The quarantine of one run. The table appears with the first bad line.
    pub fn new(root: &Root, config: &Config, export: &str, run: u64, started_at: DateTime<Utc>) -> Self {
        let of_run = QuarantineRow {
            export: export.to_owned(),
            run,
            first_seen: Some(started_at),
            source: config.source.to_string(),
            ..QuarantineRow::default()
        };
        Self {
            root: root.clone(),
            policy: config.quarantine_policy.clone(),
            max_bytes: config.max_quarantine_bytes,
            of_run,
            contents: Mutex::default(),
            resources: AtomicU64::new(0),
            has_lines: AtomicBool::new(false),
            again: Mutex::default(),
        }
    }

    /// What the operator should know of it.
    pub fn remark(&self) -> Option<String> {
        let lines = self.resources.load(Ordering::Relaxed);
        let place = self.root.place_of_table(TableName::Quarantine);
        match lines {
            0 => None,
            1 => Some(format!("1 line is not a resource; it is kept in {place}: `fhir-sync quarantine list` shows it")),
            _ => Some(format!(
                "{lines} lines are not resources; they are kept in {place}: `fhir-sync quarantine list` shows them"
            )),
        }
    }

    /// Did the run bring any line?
    pub fn has_lines(&self) -> bool {
        self.has_lines.load(Ordering::Relaxed)
    }

    /// The lines of earlier runs that were not replayed, of files of these types or of none, and that this run has not
    /// received again: those are its own. A line that several exports brought is kept for the first of them.
    async fn left(&self, types: &[ResourceType]) -> Result<u64, table::Error> {
        let (rows, again) = (self.root.quarantine().await?, self.again.lock().await);
        let is_again = |row: &QuarantineRow| from_hex(row.id.as_bytes()).is_some_and(|id| again.contains(&id));
        let is_left = |row: &&QuarantineRow| {
            let of = row.resource_type.as_ref();
            let is_of_types = of.is_none_or(|of| types.iter().any(|known| known.as_str() == of));
            let is_earlier = row.source == self.of_run.source && row.run != self.of_run.run;
            is_of_types && is_earlier && row.replayed_at.is_none() && !is_again(row)
        };
        Ok(rows.iter().filter(is_left).count() as u64)
    }

    /// Keeps bad lines of one file, each content once; a file of deletions has no type. They are on the disk after
    /// [`Quarantine::flush`].
    ///
    /// # Errors
    /// Nothing is kept where the table would exceed its limit: then the lines must be asked for again.
    pub async fn keep(
        &self,
        resource_type: Option<ResourceType>,
        file: &str,
        exported_at: Option<TransactionTime>,
        bad: &[BadLine],
    ) -> Result<(), Error> {
        let lines = bad.iter().map(|BadLine { line, reason }| NotARow {
            id: content_id(&line.bytes),
            number: line.number,
            offset: line.offset,
            bytes: line.bytes.len() as u64,
            reason: reason.code(),
            detail: reason.to_string(),
            line: Some(line),
        });
        self.add(resource_type, file, exported_at, lines.collect()).await
    }

    /// Keeps the places of lines of one file that are too long to be kept themselves.
    pub async fn keep_places(
        &self,
        resource_type: Option<ResourceType>,
        file: &str,
        exported_at: Option<TransactionTime>,
        too_long: &[LineTooLong],
    ) -> Result<(), Error> {
        let lines = too_long.iter().map(|line| NotARow {
            id: line.sha256,
            number: line.number,
            offset: line.offset,
            bytes: line.bytes,
            reason: "too-long",
            detail: format!("longer than {} bytes", line.limit_bytes),
            line: None,
        });
        self.add(resource_type, file, exported_at, lines.collect()).await
    }

    async fn add(
        &self,
        resource_type: Option<ResourceType>,
        file: &str,
        exported_at: Option<TransactionTime>,
        lines: Vec<NotARow<'_>>,
    ) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut contents = self.contents.lock().await;
        if contents.is_none() {
            *contents = Some(read(&self.root, &self.of_run.source).await?);
        }
        let Some(contents) = contents.as_mut() else { return Ok(()) };
        let mut again = self.again.lock().await;
        let (received, mut rows, mut bytes, mut new) = (lines.len() as u64, Vec::new(), 0, HashSet::new());
        let of_file = QuarantineRow {
            resource_type: resource_type.map(|of| of.to_string()),
            transaction_time: exported_at.and_then(|at| DateTime::from_timestamp_micros(at.as_micros())),
            file: file.to_owned(),
            ..self.of_run.clone()
        };
        for line in lines {
            if contents.lines.contains(&line.id) {
                again.insert(line.id);
                continue;
            }
            if !new.insert(line.id) {
                continue;
            }
            let row = line.row(&self.policy, &of_file)?;
            bytes += ROW_BYTES + row.content.as_ref().map_or(0, |content| content.len() as u64);
            rows.push(row);
        }
        if bytes > 0 && contents.bytes + bytes > self.max_bytes {
            let place = self.root.place_of_table(TableName::Quarantine);
            return Err(Error::QuarantineFull { place, max_bytes: self.max_bytes });
        }
        contents.bytes += bytes;
        contents.lines.extend(new);
        contents.waiting.append(&mut rows);
        contents.waiting_bytes += bytes;
        self.has_lines.store(true, Ordering::Relaxed);
        if resource_type.is_some() {
            self.resources.fetch_add(received, Ordering::Relaxed);
        }
        if contents.waiting_bytes > MAX_WAITING_BYTES { self.write(contents).await } else { Ok(()) }
    }

    /// Brings to the disk what waits, before the commit of a type. What cannot be written waits on, for the commits of
    /// other types and the end of the run.
    ///
    /// # Errors
    /// Lines of this type, or of a file without a type, could not be written.
    pub async fn flush(&self, resource_type: ResourceType) -> Result<(), Error> {
        let mut contents = self.contents.lock().await;
        let Some(contents) = contents.as_mut() else { return Ok(()) };
        let concerns = |row: &QuarantineRow| row.resource_type.as_ref().is_none_or(|of| of == resource_type.as_str());
        let is_concerned = contents.waiting.iter().any(concerns);
        match self.write(contents).await {
            Err(error) if is_concerned => Err(error),
            _ => Ok(()),
        }
    }

    /// Brings to the disk what still waits at the end of an export: lines of types that failed. The next export reads
    /// the table again, because another run may have written to it.
    pub async fn close(&self) -> Result<(), Error> {
        let mut of_export = self.contents.lock().await;
        if let Some(contents) = of_export.as_mut() {
            self.write(contents).await?;
        }
        *of_export = None;
        Ok(())
    }

    async fn write(&self, contents: &mut Contents) -> Result<(), Error> {
        self.root.append_to_quarantine(&contents.waiting).await.map_err(Error::Quarantine)?;
        (contents.waiting, contents.waiting_bytes) = (Vec::new(), 0);
        Ok(())
    }
}

/// What earlier runs have kept: the lines of this source, because the same line of another one is a line of its own, and
/// the bytes of all sources.
async fn read(root: &Root, source: &str) -> Result<Contents, Error> {
    let rows = root.quarantine().await.map_err(Error::Quarantine)?;
    let bytes = |row: &QuarantineRow| ROW_BYTES + if row.has_line() { row.bytes } else { 0 };
    let of_source = rows.iter().filter(|row| row.source == source);
    let lines = of_source.filter_map(|row| from_hex(row.id.as_bytes())).collect();
    Ok(Contents { lines, bytes: rows.iter().map(bytes).sum(), ..Contents::default() })
}

fn content_id(line: &[u8]) -> ContentId {
    let mut id = ContentId::default();
    id.copy_from_slice(digest(&SHA256, line).as_ref());
    id
}
