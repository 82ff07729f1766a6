//! Vacuum: files that no version within the retention needs are deleted.
//!
//! A file stays if it is active, if a commit within the retention removed it, or if it was written within the
//! retention: it may belong to a commit that is still to come. The same holds for change files and deletion vectors.
//! That is why this is not deltalake's own vacuum, which deletes a replaced vector by its age alone, while readers of
//! the version before still need it. No commit is made.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use deltalake::{
    ObjectMeta, Path,
    kernel::{Action, DeletionVectorDescriptor, StorageType},
    logstore::get_actions,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::table::{
    Amount, Error, Table, data_file::deletion_vector::file_of, maintain::log, maintain::options::DryRun,
};

/// Commits that are read at the same time.
const PARALLEL_READS: usize = 8;

/// Deletes the files that no version since `now - retention` needs.
pub(super) async fn vacuum(
    table: &Table,
    retention: Duration,
    dry_run: DryRun,
    now: DateTime<Utc>,
) -> Result<Amount, Error> {
    let cutoff = now - retention;
    let needed = needed_since(table, cutoff).await?;
    let store = table.delta.object_store();
    let old = store.list(None).try_filter(|file| {
        let is_unneeded = is_data(&file.location) && file.last_modified < cutoff && !needed.contains(&file.location);
        std::future::ready(is_unneeded)
    });
    let old: Vec<ObjectMeta> = old.try_collect().await.map_err(|error| table.failed(error))?;
    let unfinished = unfinished_uploads(table, cutoff)?;
    let mut amount = match dry_run {
        DryRun::Yes => old.iter().map(|file| file.size).collect(),
        DryRun::No => log::delete(table, old).await?,
    };
    for (path, bytes) in unfinished {
        if dry_run == DryRun::No {
            std::fs::remove_file(path).map_err(|error| table.failed(error))?;
        }
        amount.extend([bytes]);
    }
    Ok(amount)
}

/// The files of every version that was current at `cutoff` or later.
async fn needed_since(table: &Table, cutoff: DateTime<Utc>) -> Result<NeededFiles, Error> {
    let mut needed = NeededFiles::default();
    for file in table.files().await? {
        needed.keep(file.object_store_path(), file.deletion_vector_descriptor().as_ref());
    }
    let log_store = table.delta.log_store();
    let versions = log::Log::list(table).await?.commits_since(cutoff);
    let commits = versions.into_iter().map(|version| {
        let log_store = log_store.clone();
        async move {
            let commit = log_store.read_commit_entry(version).await?;
            commit.map_or_else(|| Ok(Vec::new()), |commit| get_actions(version, &commit))
        }
    });
    let mut commits = stream::iter(commits).buffer_unordered(PARALLEL_READS);
    while let Some(actions) = commits.next().await {
        for action in actions.map_err(|error| table.failed(error))? {
            match action {
                Action::Remove(remove) => needed.keep(path(&remove.path), remove.deletion_vector.as_ref()),
                Action::Cdc(file) => needed.keep(path(&file.path), None),
                _ => {}
            }
        }
    }
    Ok(needed)
}

/// The files that a killed process had not finished on a local disk: `….parquet#1`. Object stores do not list theirs; a
/// rule of the bucket removes them.
fn unfinished_uploads(table: &Table, cutoff: DateTime<Utc>) -> Result<Vec<(std::path::PathBuf, u64)>, Error> {
    let log_store = table.delta.log_store();
    let Ok(folder) = log_store.root_url().to_file_path() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        unfinished_in(&folder, cutoff, &mut folders, &mut found).map_err(|error| table.failed(error))?;
    }
    Ok(found)
}

/// Adds the unfinished files of one folder to `found`, and its folders of partitions and change files to `folders`.
fn unfinished_in(
    folder: &std::path::Path,
    cutoff: DateTime<Utc>,
    folders: &mut Vec<std::path::PathBuf>,
    found: &mut Vec<(std::path::PathBuf, u64)>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if entry.file_type()?.is_dir() {
            let holds_data = name == "_change_data" || (name.contains('=') && !name.starts_with(['_', '.']));
            folders.extend(holds_data.then(|| entry.path()));
            continue;
        }
        let Some((_, number)) = name.split_once(".parquet#") else { continue };
        let meta = entry.metadata()?;
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && meta.is_file() && DateTime::<Utc>::from(meta.modified()?) < cutoff {
            found.push((entry.path(), meta.len()));
        }
    }
    Ok(())
}

fn path(stated: &str) -> Path {
    Path::parse(stated).unwrap_or_else(|_| Path::from(stated))
}

/// The files that must stay.
#[derive(Default)]
struct NeededFiles {
    data: HashSet<Path>,
    vectors: HashSet<String>,
}

impl NeededFiles {
    fn keep(&mut self, data: Path, vector: Option<&DeletionVectorDescriptor>) {
        self.data.insert(data);
        self.vectors.extend(vector.and_then(vector_name));
    }

    fn contains(&self, location: &Path) -> bool {
        self.data.contains(location) || location.filename().is_some_and(|name| self.vectors.contains(name))
    }
}

/// Data files, change files and deletion vectors. The log, and any other file that somebody put there, is left alone.
fn is_data(location: &Path) -> bool {
    let is_hidden = |(depth, name): (usize, &str)| {
        name.starts_with('.') || (name.starts_with('_') && !(depth == 0 && name == "_change_data"))
    };
    let hidden = location.parts().enumerate().any(|(depth, part)| is_hidden((depth, part.as_ref())));
    let name = location.filename().unwrap_or_default();
    let is_vector = name.starts_with("deletion_vector_") && location.extension() == Some("bin");
    !hidden && (is_vector || location.extension() == Some("parquet"))
}

/// The name of the file that a deletion vector is in. It has a UUID, so its folder does not matter. `None` for a vector
/// in the log itself.
fn vector_name(vector: &DeletionVectorDescriptor) -> Option<String> {
    match vector.storage_type {
        StorageType::AbsolutePath => vector.path_or_inline_dv.rsplit('/').next().map(str::to_owned),
        StorageType::Inline | StorageType::UuidRelativePath => file_of(vector)?.filename().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(storage_type: StorageType, path_or_inline_dv: &str) -> Option<String> {
        let path_or_inline_dv = path_or_inline_dv.to_owned();
        let vector = DeletionVectorDescriptor {
            storage_type,
            path_or_inline_dv,
            offset: Some(1),
            size_in_bytes: 1,
            cardinality: 1,
        };
        vector_name(&vector)
    }

    #[test]
    fn the_file_name_of_a_deletion_vector_follows_the_protocol() {
        // The example of the Delta protocol, section "Deletion Vectors".
        let name = Some("deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin".to_owned());
        assert_eq!(vector(StorageType::UuidRelativePath, "ab^-aqEH.-t@S}K{vb[*k^"), name);
        assert_eq!(vector(StorageType::UuidRelativePath, "^-aqEH.-t@S}K{vb[*k^"), name);
        let absolute = "s3://bucket/table/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin";
        assert_eq!(vector(StorageType::AbsolutePath, absolute), name);
        for broken in ["", "short", "äöüäöüäöüäöüäöüäöüäöü"] {
            assert_eq!(vector(StorageType::UuidRelativePath, broken), None, "{broken}");
        }
        assert_eq!(vector(StorageType::Inline, "^-aqEH.-t@S}K{vb[*k^"), None);
    }

    #[test]
    fn only_data_is_ever_deleted() {
        for data in ["part-1.parquet", "a=1/part-1.parquet", "deletion_vector_x.bin", "_change_data/cdc-1.parquet"] {
            assert!(is_data(&Path::from(data)), "{data}");
        }
        for other in ["_delta_log/1.checkpoint.parquet", "README.md", "x.bin", ".hidden/a.parquet", "_other/a.parquet"]
        {
            assert!(!is_data(&Path::from(other)), "{other}");
        }
    }
}
