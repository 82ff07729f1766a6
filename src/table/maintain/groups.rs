//! Groups: which data files of a partition are rewritten together, and which stay as they are.

use crate::table::maintain::options::{MaintenanceOptions, MaintenanceStep};

/// A data file as the choice of groups sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CandidateFile {
    /// Its index among the table's files.
    pub index: usize,
    pub modified_millis: i64,
    pub bytes: u64,
    /// Deleted ones included.
    pub rows: u64,
    pub dead_rows: u64,
}

impl CandidateFile {
    pub fn live_rows(&self) -> u64 {
        self.rows.saturating_sub(self.dead_rows)
    }

    /// An estimate: the share of the file's bytes that its live rows take if all rows are of the same size.
    pub fn live_bytes(&self) -> u64 {
        let live = u128::from(self.bytes) * u128::from(self.live_rows()) / u128::from(self.rows.max(1));
        u64::try_from(live).unwrap_or(self.bytes)
    }

    fn dead_percent(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
        let percent = self.dead_rows as f64 * 100.0 / self.rows.max(1) as f64;
        percent
    }

    /// Are its deleted rows to be purged?
    fn needs_purge(&self, options: &MaintenanceOptions) -> bool {
        let wanted = options.steps.contains(&MaintenanceStep::Purge);
        wanted && self.dead_rows > 0 && self.dead_percent() >= options.purge_percent
    }
}

/// How many times larger than all smaller files of its group together a file of tombstones may be.
const MAX_FOLD_GROWTH: u64 = 2;
/// Files of tombstones that are open at the same time.
const MAX_FOLDED_FILES: usize = 32;

/// The groups of resource files that become one file each: small files, and files with many deleted rows. Files that
/// were written one after the other stay neighbours.
pub(super) fn groups_to_compact(
    mut files: Vec<CandidateFile>,
    options: &MaintenanceOptions,
) -> Vec<Vec<CandidateFile>> {
    let compacts = options.steps.contains(&MaintenanceStep::Compact);
    let is_small = |file: &CandidateFile| compacts && file.live_bytes() < options.target_file_bytes / 2;
    files.sort_by_key(|file| (file.modified_millis, file.index));
    let mut groups = Vec::new();
    let mut open: Vec<CandidateFile> = Vec::new();
    for file in files {
        if !is_small(&file) {
            if file.needs_purge(options) {
                groups.push(vec![file]);
            }
            continue;
        }
        let bytes: u64 = open.iter().map(CandidateFile::live_bytes).sum();
        if bytes + file.live_bytes() > options.target_file_bytes {
            groups.push(std::mem::take(&mut open));
        }
        open.push(file);
    }
    groups.push(open);
    groups.retain(|group| group.len() > 1 || group.iter().any(|file| file.needs_purge(options)));
    groups
}

/// The groups of tombstone files that are merged. From the smallest on, a file joins those before it unless it is far
/// larger than all of them together. So a row is rewritten only when many more have arrived, and few files remain.
pub(super) fn groups_to_fold(mut files: Vec<CandidateFile>, options: &MaintenanceOptions) -> Vec<Vec<CandidateFile>> {
    files.sort_by_key(|file| (file.live_bytes(), file.modified_millis, file.index));
    let mut groups: Vec<Vec<CandidateFile>> = Vec::new();
    let mut bytes = 0;
    for file in files {
        let joins = |group: &&mut Vec<CandidateFile>| {
            group.len() < MAX_FOLDED_FILES && file.live_bytes() <= bytes * MAX_FOLD_GROWTH
        };
        match groups.last_mut().filter(joins) {
            Some(group) => {
                bytes += file.live_bytes();
                group.push(file);
            }
            None => {
                bytes = file.live_bytes();
                groups.push(vec![file]);
            }
        }
    }
    let become_fewer = |group: &[CandidateFile]| {
        let bytes: u64 = group.iter().map(CandidateFile::live_bytes).sum();
        options.steps.contains(&MaintenanceStep::Compact)
            && bytes.div_ceil(options.target_file_bytes.max(1)) < group.len() as u64
    };
    groups.retain(|group| become_fewer(group) || group.iter().any(|file| file.needs_purge(options)));
    groups
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::table::maintain::options::Retention;

    fn options(steps: &[MaintenanceStep], target_file_bytes: u64) -> MaintenanceOptions {
        MaintenanceOptions {
            steps: steps.iter().copied().collect(),
            target_file_bytes,
            purge_percent: 10.0,
            vacuum_retention: Retention::Checked(Duration::ZERO),
            log_retention: Duration::ZERO,
            quarantine_retention: Duration::MAX,
        }
    }

    /// The indices in each group, of files given as (bytes, deleted rows of a hundred), the oldest first.
    fn compacted(files: &[(u64, u64)], steps: &[MaintenanceStep]) -> Vec<Vec<usize>> {
        let candidate = |(index, (bytes, dead_rows)): (usize, &(u64, u64))| CandidateFile {
            index,
            modified_millis: i64::try_from(index).unwrap(),
            bytes: *bytes,
            rows: 100,
            dead_rows: *dead_rows,
        };
        let mut files: Vec<_> = files.iter().enumerate().map(candidate).collect();
        files.reverse();
        let groups = groups_to_compact(files, &options(steps, 100));
        groups.iter().map(|group| group.iter().map(|file| file.index).collect()).collect()
    }

    #[test]
    fn small_files_are_compacted_up_to_the_target_size_in_their_order() {
        let compact = [MaintenanceStep::Compact];
        assert_eq!(compacted(&[(40, 0), (40, 0), (80, 0), (40, 0), (10, 0)], &compact), [[0, 1], [3, 4]]);
        assert_eq!(compacted(&[(40, 0), (40, 0), (40, 0)], &compact), [[0, 1]]);
    }

    #[test]
    fn a_single_small_file_is_left_alone() {
        assert!(compacted(&[(10, 0), (90, 0)], &[MaintenanceStep::Compact, MaintenanceStep::Purge]).is_empty());
        assert!(compacted(&[], &MaintenanceStep::ALL).is_empty());
    }

    #[test]
    fn a_file_with_many_deleted_rows_is_rewritten_alone_or_with_the_small_ones() {
        let files = [(90, 9), (90, 10), (90, 60), (10, 0)];
        assert_eq!(compacted(&files, &[MaintenanceStep::Purge]), [vec![1], vec![2]]);
        assert_eq!(compacted(&files, &[MaintenanceStep::Compact, MaintenanceStep::Purge]), [vec![1], vec![2, 3]]);
        assert_eq!(compacted(&[(90, 100)], &[MaintenanceStep::Purge]), [[0]]);
        assert!(compacted(&files[..2], &[MaintenanceStep::Compact]).is_empty());
    }

    #[test]
    fn compacted_files_are_not_compacted_again() {
        assert!(compacted(&[(80, 0), (60, 0), (40, 0)], &MaintenanceStep::ALL).is_empty());
    }

    fn tombstones(bytes: u64, dead_rows: u64) -> CandidateFile {
        CandidateFile { index: 0, modified_millis: 0, bytes, rows: 10, dead_rows }
    }

    /// The sizes of the files of each group.
    fn folded(sizes_bytes: &[u64], target_file_bytes: u64) -> Vec<Vec<u64>> {
        let files = sizes_bytes.iter().map(|bytes| tombstones(*bytes, 0)).collect();
        let sizes = |group: &Vec<CandidateFile>| group.iter().map(|file| file.bytes).collect();
        groups_to_fold(files, &options(&MaintenanceStep::ALL, target_file_bytes)).iter().map(sizes).collect()
    }

    #[test]
    fn a_file_of_tombstones_joins_smaller_ones_unless_it_is_far_larger_than_they_are_together() {
        assert_eq!(folded(&[10, 10, 15, 71, 500, 510], 1020), [vec![10, 10, 15], vec![500, 510]]);
        assert_eq!(folded(&[35, 35, 40, 500], 1000), [vec![35, 35, 40]]);
        assert_eq!(folded(&[500, 125, 250], 1000), [vec![125, 250, 500]]);
    }

    #[test]
    fn files_of_tombstones_that_would_not_become_fewer_are_left_alone() {
        assert!(folded(&[], 1000).is_empty());
        assert!(folded(&[10], 1000).is_empty());
        assert!(folded(&[1010, 1010, 400], 1000).is_empty());
        assert!(folded(&[10, 10], 1).is_empty());
    }

    #[test]
    fn a_fold_opens_a_limited_number_of_files_at_the_same_time() {
        let groups = folded(&[10; 70], 1000);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 6]);
    }

    #[test]
    fn a_file_of_tombstones_with_many_deleted_rows_is_rewritten_alone() {
        let options = options(&MaintenanceStep::ALL, 1000);
        assert_eq!(groups_to_fold(vec![tombstones(10, 1)], &options).len(), 1);
        let stricter = MaintenanceOptions { purge_percent: 20.0, ..options };
        assert!(groups_to_fold(vec![tombstones(10, 1)], &stricter).is_empty());
    }
}
