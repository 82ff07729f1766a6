//! Compaction and purge: groups of small files, and files with many dead rows, are written again as one file each.
//!
//! The rows keep their order of arrival. A group is one commit, which changes no data and says so; when another writer
//! was faster, the rest of the table is left for the next time.

use std::{
    collections::{BTreeSet, HashSet},
    num::NonZeroU64,
    pin::pin,
    sync::Arc,
};

use arrow::{
    array::{BooleanArray, RecordBatch},
    datatypes::SchemaRef,
};
use deltalake::{
    DeltaTableError,
    datafile::writer::{DeltaWriter, WriterConfig},
    kernel::{
        Action, Add, LogicalFileView,
        transaction::{CommitBuilder, CommitProperties},
    },
    protocol::DeltaOperation,
    table::config::TablePropertiesExt as _,
};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use super::{Amount, DryRun, Maintained, Maintenance, Step, Table};
use crate::table::{Error, decide::Columns, upsert::writer_properties};

/// A data file as the plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Weighed {
    /// Among the table's files.
    index: usize,
    modified_millis: i64,
    bytes: u64,
    /// `None` where the log does not say.
    rows: Option<u64>,
    dead_rows: u64,
}

impl Weighed {
    fn alive_bytes(&self) -> u64 {
        match self.rows {
            Some(rows) if rows > 0 => {
                let alive = u128::from(self.bytes) * u128::from(rows.saturating_sub(self.dead_rows)) / u128::from(rows);
                u64::try_from(alive).unwrap_or(self.bytes)
            }
            _ => self.bytes,
        }
    }

    fn is_dead(&self) -> bool {
        self.rows == Some(self.dead_rows)
    }

    fn dead_percent(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
        let percent = |rows: u64| self.dead_rows as f64 * 100.0 / rows.max(1) as f64;
        self.rows.map_or(0.0, percent)
    }
}

/// Which files are written again, by group. Neighbours in time stay neighbours.
fn groups(mut files: Vec<Weighed>, maintenance: &Maintenance) -> Vec<Vec<Weighed>> {
    let wants = |step| maintenance.steps.contains(&step);
    let is_small = |file: &Weighed| wants(Step::Compact) && file.alive_bytes() < maintenance.target_file_bytes / 2;
    let is_dying =
        |file: &Weighed| wants(Step::Purge) && file.dead_rows > 0 && file.dead_percent() >= maintenance.purge_percent;
    files.sort_by_key(|file| (file.modified_millis, file.index));
    let mut groups = Vec::new();
    let mut open: Vec<Weighed> = Vec::new();
    for file in files {
        if !is_small(&file) {
            if is_dying(&file) {
                groups.push(vec![file]);
            }
            continue;
        }
        let bytes: u64 = open.iter().map(Weighed::alive_bytes).sum();
        if bytes + file.alive_bytes() > maintenance.target_file_bytes {
            groups.push(std::mem::take(&mut open));
        }
        open.push(file);
    }
    groups.push(open);
    groups.retain(|group| group.len() > 1 || group.iter().any(is_dying));
    groups
}

impl Table {
    pub(super) async fn compact(
        &mut self,
        maintenance: &Maintenance,
        dry_run: DryRun,
        goes_on: &(dyn Fn() -> bool + Sync),
        done: &mut Maintained,
    ) -> Result<(), Error> {
        let files = self.files().await?;
        let weighed = files.iter().enumerate().map(|(index, file)| weigh(index, file)).collect();
        let mut groups = groups(weighed, maintenance).into_iter();
        // Our own commits move the version by one each; whatever else moves it has been done by others.
        let mut version = self.version();
        while let Some(group) = groups.next() {
            if dry_run == DryRun::No {
                if !goes_on() {
                    done.left = 1 + groups.len() as u64;
                    return Ok(());
                }
                if self.version() != version {
                    return Err(Error::Conflict { resource_type: self.resource_type, attempts: 1 });
                }
                let adds = self.rewrite_group(&files, &group, maintenance.target_file_bytes).await?;
                done.written.extend(adds.iter().map(bytes_of));
                self.commit_group(&files, &group, adds, maintenance.target_file_bytes).await?;
                version += 1;
            }
            done.rewritten.extend(group.iter().map(|file| file.bytes));
            done.purged_rows += group.iter().map(|file| file.dead_rows).sum::<u64>();
        }
        Ok(())
    }

    /// The live rows of the group, in one file that has every column that any of them has.
    async fn rewrite_group(
        &self,
        files: &[LogicalFileView],
        group: &[Weighed],
        target_file_bytes: u64,
    ) -> Result<Vec<Add>, Error> {
        let alive: Vec<_> = group.iter().filter(|file| !file.is_dead()).map(|file| &files[file.index]).collect();
        let mut filled = BTreeSet::new();
        for file in &alive {
            let there = self.read(file, Columns::All).await?.schema().clone();
            filled.extend(there.fields().iter().map(|field| field.name().clone()));
        }
        let schema = self.columns_of_file(&self.columns()?, |name| filled.contains(name))?;
        let mut writer = self.group_writer(&schema, target_file_bytes)?;
        let mut rows: u64 = 0;
        for file in alive {
            let mut batches = pin!(self.rows(file));
            while let Some(batch) = batches.next().await {
                let batch = batch?;
                rows += batch.num_rows() as u64;
                let all = BooleanArray::from(vec![true; batch.num_rows()]);
                writer = self.append(writer, &schema, &batch, &all).await?;
            }
        }
        let adds = writer.close().await.map_err(|error| self.failed(error))?;
        self.check_rows(group, rows)?;
        Ok(adds.into_iter().map(|add| Add { data_change: false, ..add }).collect())
    }

    /// What was written must be what the log says is there; else nothing is committed.
    fn check_rows(&self, group: &[Weighed], written: u64) -> Result<(), Error> {
        let stated: Option<u64> = group.iter().map(|file| file.rows?.checked_sub(file.dead_rows)).sum();
        match stated {
            Some(stated) if stated != written => Err(Error::Unbalanced {
                resource_type: self.resource_type,
                counts: format!("{stated} rows to put together, {written} written"),
            }),
            _ => Ok(()),
        }
    }

    /// The live rows of a file, in order, batch by batch.
    fn rows<'a>(&'a self, file: &'a LogicalFileView) -> impl Stream<Item = Result<RecordBatch, Error>> + 'a {
        let batches = stream::once(self.read(file, Columns::All));
        batches.map_ok(|batches| batches.map_err(|error| self.failed(error))).try_flatten()
    }

    /// A group fits into its file; the limit is for inputs that were packed better than we pack.
    fn group_writer(&self, schema: &SchemaRef, target_file_bytes: u64) -> Result<DeltaWriter, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let config = WriterConfig::new(
            Arc::clone(schema),
            Vec::new(),
            Some(writer_properties(schema, self.leading_columns()?)),
            NonZeroU64::new(target_file_bytes.saturating_mul(2)),
            None,
            snapshot.table_config().num_indexed_cols(),
            None,
        );
        Ok(DeltaWriter::new(self.delta.object_store(), config))
    }

    /// One commit that changes no data, at the version at which the files were listed or not at all.
    async fn commit_group(
        &mut self,
        files: &[LogicalFileView],
        group: &[Weighed],
        adds: Vec<Add>,
        target_file_bytes: u64,
    ) -> Result<(), Error> {
        let read_version = self.version();
        let added: HashSet<String> = adds.iter().map(|add| add.path.clone()).collect();
        let properties = CommitProperties::default()
            // deltalake's own retry would rebase over upserts that this group knows nothing of.
            .with_max_retries(0)
            .with_cleanup_expired_logs(Some(false))
            .with_metadata([
                ("operationMetrics".to_owned(), metrics(group, &adds)),
                ("readVersion".to_owned(), json!(read_version)),
                ("isBlindAppend".to_owned(), json!(false)),
            ]);
        let removes = group.iter().map(|file| Action::Remove(files[file.index].remove_action(false)));
        let actions = removes.chain(adds.into_iter().map(Action::Add)).collect();
        let target_size = i64::try_from(target_file_bytes).unwrap_or(i64::MAX);
        let operation = DeltaOperation::Optimize { predicate: None, target_size };
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?.snapshot().clone();
        let attempt = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(&snapshot), self.delta.log_store(), operation)
            .await;
        self.delta.load().await.map_err(|error| self.failed(error))?;
        let Err(error) = attempt else { return Ok(()) };
        let moved = self.version() > read_version;
        if moved && self.is_replaced(&added, files, group).await? {
            tracing::warn!(%error, version = self.version(), "the commit landed although its answer was lost");
            return Ok(());
        }
        if moved { Err(self.overtaken(&error)) } else { Err(self.failed(error)) }
    }

    /// Whether the group is gone from the table, and what was written for it is there. Names of files are never used twice.
    async fn is_replaced(
        &self,
        added: &HashSet<String>,
        files: &[LogicalFileView],
        group: &[Weighed],
    ) -> Result<bool, Error> {
        let now = self.files().await?;
        let now: HashSet<_> = now.iter().map(|file| file.path().into_owned()).collect();
        let all_added = added.iter().all(|path| now.contains(path));
        Ok(all_added && !group.iter().any(|file| now.contains(files[file.index].path().as_ref())))
    }

    fn overtaken(&self, error: &DeltaTableError) -> Error {
        tracing::info!(resource_type = %self.resource_type, %error, "another writer was faster; nothing was put together");
        Error::Conflict { resource_type: self.resource_type, attempts: 1 }
    }
}

fn weigh(index: usize, file: &LogicalFileView) -> Weighed {
    let dead_rows = file.deletion_vector_descriptor().map_or(0, |vector| vector.cardinality);
    Weighed {
        index,
        modified_millis: file.modification_time(),
        bytes: u64::try_from(file.size()).unwrap_or_default(),
        rows: file.num_records().map(|rows| rows as u64),
        dead_rows: u64::try_from(dead_rows).unwrap_or_default(),
    }
}

fn bytes_of(add: &Add) -> u64 {
    u64::try_from(add.size).unwrap_or_default()
}

/// Spark's names and its text values, so that DESCRIBE HISTORY shows them.
fn metrics(group: &[Weighed], adds: &[Add]) -> serde_json::Value {
    let mut sizes: Vec<_> = adds.iter().map(bytes_of).collect();
    sizes.sort_unstable();
    let size_at =
        |quarters: usize| sizes.get((sizes.len().saturating_sub(1)) * quarters / 4).copied().unwrap_or_default();
    let removed: Amount = group.iter().map(|file| file.bytes).collect();
    json!({
        "numAddedFiles": sizes.len().to_string(),
        "numAddedBytes": sizes.iter().sum::<u64>().to_string(),
        "numRemovedFiles": removed.files.to_string(),
        "numRemovedBytes": removed.bytes.to_string(),
        "numDeletionVectorsRemoved": group.iter().filter(|file| file.dead_rows > 0).count().to_string(),
        "minFileSize": size_at(0).to_string(),
        "p25FileSize": size_at(1).to_string(),
        "p50FileSize": size_at(2).to_string(),
        "p75FileSize": size_at(3).to_string(),
        "maxFileSize": size_at(4).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::table::maintain::Retention;

    fn maintenance(steps: &[Step]) -> Maintenance {
        Maintenance {
            steps: steps.iter().copied().collect(),
            target_file_bytes: 100,
            purge_percent: 10.0,
            vacuum_retention: Retention::Checked(Duration::ZERO),
            log_retention: Duration::ZERO,
        }
    }

    /// Of (bytes, dead rows of a hundred), oldest first.
    fn groups_of(files: &[(u64, u64)], steps: &[Step]) -> Vec<Vec<usize>> {
        let weigh = |(index, (bytes, dead_rows)): (usize, &(u64, u64))| Weighed {
            index,
            modified_millis: i64::try_from(index).unwrap(),
            bytes: *bytes,
            rows: Some(100),
            dead_rows: *dead_rows,
        };
        let mut files: Vec<_> = files.iter().enumerate().map(weigh).collect();
        files.reverse();
        let groups = groups(files, &maintenance(steps));
        groups.iter().map(|group| group.iter().map(|file| file.index).collect()).collect()
    }

    #[test]
    fn small_files_are_put_together_up_to_the_target_in_their_order() {
        assert_eq!(groups_of(&[(40, 0), (40, 0), (80, 0), (40, 0), (10, 0)], &[Step::Compact]), [[0, 1], [3, 4]]);
        assert_eq!(groups_of(&[(40, 0), (40, 0), (40, 0)], &[Step::Compact]), [[0, 1]]);
    }

    #[test]
    fn a_small_file_alone_is_left_alone() {
        assert!(groups_of(&[(10, 0), (90, 0)], &[Step::Compact, Step::Purge]).is_empty());
        assert!(groups_of(&[], &Step::ALL).is_empty());
    }

    #[test]
    fn a_file_with_many_dead_rows_is_written_again_alone_or_with_the_small_ones() {
        let files = [(90, 9), (90, 10), (90, 60), (10, 0)];
        assert_eq!(groups_of(&files, &[Step::Purge]), [vec![1], vec![2]]);
        assert_eq!(groups_of(&files, &[Step::Compact, Step::Purge]), [vec![1], vec![2, 3]]);
        assert_eq!(groups_of(&[(90, 100)], &[Step::Purge]), [[0]]);
        assert!(groups_of(&files[..2], &[Step::Compact]).is_empty());
    }

    #[test]
    fn what_was_put_together_is_not_put_together_again() {
        assert!(groups_of(&[(80, 0), (60, 0), (40, 0)], &Step::ALL).is_empty());
    }
}
