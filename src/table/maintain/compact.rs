//! Compaction and purge: groups of small files, and files with many dead rows, are written again as one file each.
//!
//! The rows keep their order of arrival, but for those of deletions, which are [folded](super::fold). A group is one
//! commit, which changes no data and says so; when another writer was faster, the rest of the table is left for the next
//! time.

use std::collections::{BTreeMap, BTreeSet};

use deltalake::{
    kernel::{Action, Add, Remove},
    protocol::DeltaOperation,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::{Amount, DryRun, Maintained, Maintenance, Step, Table, fold};
use crate::table::{
    Error, TableName,
    commit::{self, Outcome},
    data_file::rolling::{DataFiles, Target},
    data_file::stored::StoredFile,
    tombstones,
    upsert::write::remove,
};

/// A data file as the plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Weighed {
    /// Among the table's files.
    pub index: usize,
    pub modified_millis: i64,
    pub bytes: u64,
    /// Dead ones included.
    pub rows: u64,
    pub dead_rows: u64,
}

impl Weighed {
    fn alive_rows(&self) -> u64 {
        self.rows.saturating_sub(self.dead_rows)
    }

    pub fn alive_bytes(&self) -> u64 {
        let alive = u128::from(self.bytes) * u128::from(self.alive_rows()) / u128::from(self.rows.max(1));
        u64::try_from(alive).unwrap_or(self.bytes)
    }

    fn dead_percent(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
        let percent = self.dead_rows as f64 * 100.0 / self.rows.max(1) as f64;
        percent
    }
}

/// Are its dead rows to leave it?
pub(super) fn is_dying(file: &Weighed, maintenance: &Maintenance) -> bool {
    let wanted = maintenance.steps.contains(&Step::Purge);
    wanted && file.dead_rows > 0 && file.dead_percent() >= maintenance.purge_percent
}

/// Which files of a partition are written again, by group. Neighbours in time stay neighbours.
fn groups(mut files: Vec<Weighed>, maintenance: &Maintenance) -> Vec<Vec<Weighed>> {
    let wants = |step| maintenance.steps.contains(&step);
    let is_small = |file: &Weighed| wants(Step::Compact) && file.alive_bytes() < maintenance.target_file_bytes / 2;
    let is_dying = |file: &Weighed| is_dying(file, maintenance);
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
        // What other engines wrote is left to them: their rows may have been changed under an old `_sync_hash`, which is
        // trusted in files of our own.
        let files: Vec<_> = self.stored_files().await?.into_iter().filter(|file| file.own).collect();
        let mut weighed: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            weighed.entry(file.partition()).or_default().push(Weighed {
                index,
                modified_millis: file.add.modification_time,
                bytes: bytes_of(&file.add),
                rows: self.row_count(file).await?,
                dead_rows: file.dead.len(),
            });
        }
        let groups_of = match self.name {
            TableName::Resources(_) => groups,
            TableName::Deletions => fold::groups,
        };
        let groups: Vec<_> = weighed.into_values().flat_map(|weighed| groups_of(weighed, maintenance)).collect();
        let mut groups = groups.into_iter();
        // Our own commits move the version by one each; whatever else moves it has been done by others.
        let mut version = self.version();
        while let Some(group) = groups.next() {
            if dry_run == DryRun::No {
                if !goes_on() {
                    done.left = 1 + groups.len() as u64;
                    return Ok(());
                }
                if self.version() != version {
                    return Err(Error::Conflict { table: self.name, attempts: 1 });
                }
                let (adds, folded) = self.rewrite_group(&files, &group, maintenance.target_file_bytes).await?;
                done.folded_rows += folded;
                let written: Amount = adds.iter().map(bytes_of).collect();
                self.commit_group(&files, &group, adds, maintenance.target_file_bytes).await?;
                done.written.files += written.files;
                done.written.bytes += written.bytes;
                version += 1;
            }
            done.rewritten.extend(group.iter().map(|file| file.bytes));
            done.purged_rows += group.iter().map(|file| file.dead_rows).sum::<u64>();
        }
        Ok(())
    }

    /// The live rows of the group, in one file that has every column that any of them has; and how many rows of deletions
    /// others stand for. Never more than a batch of rows and a row group of the new file in memory.
    async fn rewrite_group(
        &self,
        files: &[StoredFile],
        group: &[Weighed],
        target_file_bytes: u64,
    ) -> Result<(Vec<Add>, u64), Error> {
        let alive: Vec<_> = group.iter().filter(|file| file.alive_rows() > 0).map(|file| &files[file.index]).collect();
        let Some(first) = alive.first() else { return Ok((Vec::new(), 0)) };
        let mut filled = BTreeSet::new();
        for file in &alive {
            let footer = file.footer().await.map_err(|error| self.failed(error))?;
            filled.extend(footer.schema().fields().iter().map(|field| field.name().clone()));
        }
        let target = match self.name {
            // A group fits into its file; the limit is for inputs that were packed better than we pack.
            TableName::Resources(_) => Target { file_bytes: target_file_bytes.saturating_mul(2), ..self.target()? },
            TableName::Deletions => Target { file_bytes: target_file_bytes, ..tombstones::target(self)? },
        };
        let mut written = DataFiles::new(target, first.partition(), filled);
        let copied = match self.name {
            TableName::Resources(_) => self.copy(&alive, &mut written).await.map(|()| 0),
            TableName::Deletions => self.fold(&alive, &mut written).await,
        };
        let folded = match copied {
            Ok(folded) => folded,
            Err(error) => {
                written.abort().await;
                return Err(error);
            }
        };
        let adds = written.finish().await.map_err(|error| self.failed(error))?;
        self.check_rows(group, &adds, folded).await?;
        Ok((adds.into_iter().map(|add| Add { data_change: false, ..add }).collect(), folded))
    }

    async fn copy(&self, files: &[&StoredFile], written: &mut DataFiles) -> Result<(), Error> {
        for file in files {
            let mut batches = self.rows(file).await?;
            while let Some(batch) = batches.next().await {
                let batch = batch?;
                if batch.num_rows() > 0 {
                    written.write(&batch).await.map_err(|error| self.failed(error))?;
                }
            }
        }
        Ok(())
    }

    /// What was written, and what others stand for, must be what the log says is alive; else nothing is committed.
    async fn check_rows(&self, group: &[Weighed], adds: &[Add], folded: u64) -> Result<(), Error> {
        let alive: u64 = group.iter().map(Weighed::alive_rows).sum();
        let stats = adds.iter().filter_map(|add| serde_json::from_str::<Value>(add.stats.as_deref()?).ok());
        let written: u64 = stats.filter_map(|stats| stats["numRecords"].as_u64()).sum();
        if alive == written + folded {
            return Ok(());
        }
        self.forget(adds.iter().map(|add| add.path.clone())).await;
        Err(Error::Unbalanced {
            table: self.name,
            counts: format!("{alive} rows to put together, {written} written, {folded} folded"),
        })
    }

    /// One commit that changes no data, at the version at which the files were listed or not at all.
    async fn commit_group(
        &mut self,
        files: &[StoredFile],
        group: &[Weighed],
        adds: Vec<Add>,
        target_file_bytes: u64,
    ) -> Result<(), Error> {
        let written: Vec<_> = adds.iter().map(|add| add.path.clone()).collect();
        let metadata = BTreeMap::from([("operationMetrics".to_owned(), metrics(group, &adds))]);
        let removes = group.iter().map(|file| match remove(&files[file.index]) {
            Action::Remove(remove) => Action::Remove(Remove { data_change: false, ..remove }),
            other => other,
        });
        let actions = removes.chain(adds.into_iter().map(Action::Add)).collect();
        let target_size = i64::try_from(target_file_bytes).unwrap_or(i64::MAX);
        let operation = DeltaOperation::Optimize { predicate: None, target_size };
        match commit::attempt(&mut self.delta, &self.place, actions, operation, Vec::new(), metadata).await? {
            Outcome::Committed { .. } => Ok(()),
            Outcome::Overtaken => {
                self.forget(written.into_iter()).await;
                Err(Error::Conflict { table: self.name, attempts: 1 })
            }
        }
    }
}

fn bytes_of(add: &Add) -> u64 {
    u64::try_from(add.size).unwrap_or_default()
}

/// Spark's names and its text values, so that DESCRIBE HISTORY shows them.
fn metrics(group: &[Weighed], adds: &[Add]) -> Value {
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
            rows: 100,
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
