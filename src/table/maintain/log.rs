//! The log folder of a table: commits, checkpoints, and which of them are too old to be needed.
//!
//! A version is read from a checkpoint at or before it and from the commits after that. The commit of the checkpoint's
//! own version is always kept with it: Spark refuses a checkpoint without that commit, deltalake does not.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use deltalake::{ObjectMeta, ObjectStoreError, Path};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::table::{Amount, Error, Table};

pub(super) struct Log {
    files: Vec<LogFile>,
}

struct LogFile {
    /// The highest version that the file is about.
    version: u64,
    kind: LogFileKind,
    meta: ObjectMeta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogFileKind {
    Commit,
    /// One of this many parts.
    Checkpoint {
        parts: usize,
    },
    /// Checksums and compacted commits: useful, but never needed.
    Other,
}

impl Log {
    pub(super) async fn list(table: &Table) -> Result<Self, Error> {
        let log_store = table.delta.log_store();
        let store = log_store.object_store(None);
        let metas = store.list(Some(log_store.log_path()));
        let files = metas.try_filter_map(async |meta| Ok(log_file(meta)));
        Ok(Self { files: files.try_collect().await.map_err(|error| table.failed(error))? })
    }

    pub(super) fn newest_checkpoint(&self) -> Option<u64> {
        self.checkpoints().last().copied()
    }

    /// The versions whose commits were written at `instant` or later.
    pub(super) fn commits_since(&self, instant: DateTime<Utc>) -> Vec<u64> {
        let commits =
            self.files.iter().filter(|file| file.kind == LogFileKind::Commit && file.meta.last_modified >= instant);
        commits.map(|file| file.version).collect()
    }

    /// The files that no version needs that was current at `cutoff` or later. The table is at `version`.
    pub(super) fn expired(self, version: u64, cutoff: DateTime<Utc>) -> Expired {
        let young =
            self.files.iter().filter(|file| file.kind != LogFileKind::Other && file.meta.last_modified >= cutoff);
        // The version before the first young commit was still current at the cutoff.
        let first_needed = young.map(|file| file.version.saturating_sub(1)).min().unwrap_or(version);
        let Some(start) = self.checkpoints().range(..=first_needed).last().copied() else { return Expired::default() };
        let old = self.files.into_iter().filter(|file| file.version < start);
        let (checkpoints, others) = old.partition(|file| matches!(file.kind, LogFileKind::Checkpoint { .. }));
        Expired { checkpoints, others }
    }

    /// The versions of the checkpoints that have all their parts.
    fn checkpoints(&self) -> BTreeSet<u64> {
        let mut found: BTreeMap<(u64, usize), usize> = BTreeMap::new();
        for file in &self.files {
            if let LogFileKind::Checkpoint { parts } = file.kind {
                *found.entry((file.version, parts)).or_default() += 1;
            }
        }
        let whole = found.into_iter().filter(|((_, parts), count)| count >= parts);
        whole.map(|((version, _), _)| version).collect()
    }
}

/// Files of the log that may be deleted.
#[derive(Default)]
pub(super) struct Expired {
    checkpoints: Vec<LogFile>,
    others: Vec<LogFile>,
}

impl Expired {
    pub(super) fn amount(&self) -> Amount {
        self.checkpoints.iter().chain(&self.others).map(|file| file.meta.size).collect()
    }

    /// Checkpoints first: if this is interrupted, no checkpoint has lost its commit.
    pub(super) async fn delete(self, table: &Table) -> Result<Amount, Error> {
        let mut amount = Amount::default();
        for files in [self.checkpoints, self.others] {
            let files = files.into_iter().map(|file| file.meta).collect();
            let deleted = delete(table, files).await?;
            amount.files += deleted.files;
            amount.bytes += deleted.bytes;
        }
        Ok(amount)
    }
}

/// Deletes files of a table; one that is missing already counts as deleted.
pub(super) async fn delete(table: &Table, files: Vec<ObjectMeta>) -> Result<Amount, Error> {
    let amount = files.iter().map(|file| file.size).collect();
    let locations = stream::iter(files).map(|file| Ok(file.location)).boxed();
    let mut deleted = table.delta.object_store().delete_stream(locations);
    while let Some(result) = deleted.next().await {
        match result {
            Ok(_) | Err(ObjectStoreError::NotFound { .. }) => {}
            Err(error) => return Err(table.failed(error)),
        }
    }
    Ok(amount)
}

fn log_file(meta: ObjectMeta) -> Option<LogFile> {
    let (version, kind) = read_name(&meta.location)?;
    Some(LogFile { version, kind, meta })
}

/// The version and the kind of a file; `None` if it is not a file of the log, or not of a version.
fn read_name(location: &Path) -> Option<(u64, LogFileKind)> {
    let path = location.as_ref().strip_prefix("_delta_log/")?;
    let (digits, rest) = path.split_once('.').filter(|_| !path.contains('/'))?;
    let version = version(digits)?;
    if rest == "json" {
        return Some((version, LogFileKind::Commit));
    }
    if let Some(rest) = rest.strip_prefix("checkpoint.") {
        // <part>.<parts>.parquet; all other names are of checkpoints in one file.
        let parts = rest.split('.').nth(1).and_then(|parts| parts.parse().ok()).unwrap_or(1);
        return Some((version, LogFileKind::Checkpoint { parts }));
    }
    if let Some(last) = rest.strip_suffix(".compacted.json") {
        return Some((self::version(last)?, LogFileKind::Other));
    }
    (rest == "crc").then_some((version, LogFileKind::Other))
}

fn version(digits: &str) -> Option<u64> {
    let is_version = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_version.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    /// Files of these names and ages in days.
    fn log(files: &[(&str, i64)]) -> Log {
        let meta = |name: &str, days| ObjectMeta {
            location: Path::from(format!("_delta_log/{name}")),
            last_modified: DateTime::UNIX_EPOCH - TimeDelta::days(days),
            size: 1,
            e_tag: None,
            version: None,
        };
        Log { files: files.iter().filter_map(|(name, days)| log_file(meta(name, *days))).collect() }
    }

    fn name(version: u64, rest: &str) -> String {
        format!("{version:020}.{rest}")
    }

    fn left(files: &[(String, i64)], version: u64, cutoff_days: i64) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|(name, days)| (name.as_str(), *days)).collect();
        let expired = log(&files).expired(version, DateTime::UNIX_EPOCH - TimeDelta::days(cutoff_days));
        let gone: BTreeSet<_> =
            expired.checkpoints.iter().chain(&expired.others).map(|file| &file.meta.location).collect();
        let is_left = |name: &&str| !gone.contains(&Path::from(format!("_delta_log/{name}")));
        files.iter().map(|(name, _)| *name).filter(is_left).map(str::to_owned).collect()
    }

    #[test]
    fn the_name_of_a_log_file_tells_its_version_and_kind() {
        let kind = |name: &str| read_name(&Path::from(format!("_delta_log/{name}")));
        assert_eq!(kind(&name(7, "json")), Some((7, LogFileKind::Commit)));
        assert_eq!(kind(&name(7, "checkpoint.parquet")), Some((7, LogFileKind::Checkpoint { parts: 1 })));
        let uuid = "checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.parquet";
        assert_eq!(kind(&name(7, uuid)), Some((7, LogFileKind::Checkpoint { parts: 1 })));
        let part = "checkpoint.0000000002.0000000003.parquet";
        assert_eq!(kind(&name(7, part)), Some((7, LogFileKind::Checkpoint { parts: 3 })));
        assert_eq!(kind(&name(7, "crc")), Some((7, LogFileKind::Other)));
        assert_eq!(kind(&name(7, &name(9, "compacted.json"))), Some((9, LogFileKind::Other)));
        for other in ["_last_checkpoint", "_sidecars/a.parquet", "7.json", "_commits/00000000000000000007.a.json"] {
            assert_eq!(kind(other), None, "{other}");
        }
    }

    #[test]
    fn the_commit_of_a_needed_checkpoint_stays_and_older_checkpoints_are_deleted_with_theirs() {
        let mut files: Vec<_> =
            (0..=6).map(|version| (name(version, "json"), 60 - 5 * i64::try_from(version).unwrap())).collect();
        files.push((name(2, "checkpoint.parquet"), 50));
        files.push((name(4, "checkpoint.parquet"), 40));
        files.push((name(4, "crc"), 40));
        files.push((name(3, "crc"), 45));
        // 5 is 35 days old and was current 30 days ago; it is read from the checkpoint at 4.
        let kept = [name(4, "json"), name(5, "json"), name(6, "json"), name(4, "checkpoint.parquet"), name(4, "crc")];
        assert_eq!(left(&files, 6, 31), kept);
        assert_eq!(left(&files, 6, 100).len(), files.len());
    }

    #[test]
    fn a_young_checkpoint_of_old_commits_keeps_them() {
        let files =
            [(name(0, "json"), 90), (name(1, "json"), 80), (name(1, "checkpoint.parquet"), 5), (name(2, "json"), 4)];
        assert_eq!(left(&files, 2, 30).len(), files.len());
    }

    #[test]
    fn nothing_is_deleted_without_a_complete_checkpoint() {
        let mut files: Vec<_> = (0..=6).map(|version| (name(version, "json"), 60)).collect();
        assert_eq!(left(&files, 6, 30).len(), files.len());
        files.push((name(5, "checkpoint.0000000001.0000000002.parquet"), 60));
        assert_eq!(left(&files, 6, 30).len(), files.len());
        files.push((name(5, "checkpoint.0000000002.0000000002.parquet"), 60));
        assert_eq!(left(&files, 6, 30).len(), 4);
    }
}
