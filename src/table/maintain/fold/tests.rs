use std::{sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, TimestampMicrosecondArray},
    datatypes::{Field, Schema},
};
use proptest::{collection::vec, option::weighted, prelude::*};

use super::*;
use crate::table::{maintain::Retention, tombstones::Tombstones};

fn maintenance(target_file_bytes: u64) -> Maintenance {
    Maintenance {
        steps: Step::ALL.into(),
        target_file_bytes,
        purge_percent: 10.0,
        vacuum_retention: Retention::Checked(Duration::ZERO),
        log_retention: Duration::ZERO,
    }
}

/// The sizes of the files of each group.
fn groups_of(sizes_bytes: &[u64], target_file_bytes: u64) -> Vec<Vec<u64>> {
    let weigh =
        |(index, bytes): (usize, &u64)| Weighed { index, modified_millis: 0, bytes: *bytes, rows: 10, dead_rows: 0 };
    let files = sizes_bytes.iter().enumerate().map(weigh).collect();
    let sizes = |group: &Vec<Weighed>| group.iter().map(|file| file.bytes).collect();
    groups(files, &maintenance(target_file_bytes)).iter().map(sizes).collect()
}

#[test]
fn a_file_is_merged_with_others_unless_it_is_far_larger_than_they_are_together() {
    assert_eq!(groups_of(&[10, 10, 15, 71, 500, 510], 1020), [vec![10, 10, 15], vec![500, 510]]);
    assert_eq!(groups_of(&[35, 35, 40, 500], 1000), [vec![35, 35, 40]]);
    assert_eq!(groups_of(&[500, 125, 250], 1000), [vec![125, 250, 500]]);
}

#[test]
fn what_would_not_become_fewer_files_is_left_alone() {
    assert!(groups_of(&[], 1000).is_empty());
    assert!(groups_of(&[10], 1000).is_empty());
    assert!(groups_of(&[1010, 1010, 400], 1000).is_empty());
    assert!(groups_of(&[10, 10], 1).is_empty());
}

#[test]
fn never_more_than_some_files_are_open_at_the_same_time() {
    let groups = groups_of(&[10; 70], 1000);
    assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 6]);
}

#[test]
fn a_file_with_many_dead_rows_is_written_again_alone() {
    let file = |dead_rows| Weighed { index: 0, modified_millis: 0, bytes: 10, rows: 10, dead_rows };
    assert_eq!(groups(vec![file(1)], &maintenance(1000)).len(), 1);
    let stricter = Maintenance { purge_percent: 20.0, ..maintenance(1000) };
    assert!(groups(vec![file(1)], &stricter).is_empty());
}

/// When the server deleted it, the export that said so, and the run.
type Said = (Option<i64>, Option<i64>, i64);

fn said() -> impl Strategy<Value = Said> {
    (weighted(0.7, 0i64..4), weighted(0.9, 0i64..4), 0i64..4)
}

/// Rows of one resource.
fn rows(of: &[Said]) -> Vec<Row> {
    let instants =
        |micros: Vec<Option<i64>>| Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")) as ArrayRef;
    let same = |text: &str| Arc::new(StringArray::from(vec![text; of.len()])) as ArrayRef;
    let columns = [
        ("id", same("a")),
        ("_sync_source", same("hospital")),
        ("_sync_at", instants(of.iter().map(|said| Some(said.2)).collect())),
        ("_sync_transaction_time", instants(of.iter().map(|said| said.1).collect())),
        ("deleted_at", instants(of.iter().map(|said| said.0).collect())),
    ];
    let fields: Vec<_> = columns.iter().map(|(name, of)| Field::new(*name, of.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = Batch::try_new(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()).unwrap();
    let batch = Arc::new(batch);
    (0..of.len()).map(|place| Row { batch: Arc::clone(&batch), place }).collect()
}

fn fold(all: Vec<Row>) -> Vec<Row> {
    let (mut kept, mut gone) = (Vec::new(), 0);
    let count = all.len() as u64;
    for row in all {
        gone += keep(&mut kept, row);
    }
    assert_eq!(kept.len() as u64 + gone, count);
    kept
}

fn known(rows: &[Row]) -> Tombstones {
    rows.iter().fold(Tombstones::default(), |known, row| known.with(row.tombstone_row().tombstone))
}

proptest! {
    #[test]
    fn what_is_known_of_a_resource_is_the_same_before_and_after(all in vec(said(), 0..12)) {
        let all = rows(&all);
        let kept = fold(all.clone());
        prop_assert_eq!(known(&kept), known(&all));
        let places: Vec<_> = kept.iter().map(|row| row.place).collect();
        let again: Vec<_> = fold(kept).iter().map(|row| row.place).collect();
        prop_assert_eq!(again, places, "nothing goes the second time");
    }

    #[test]
    fn who_asks_for_what_was_written_since_a_run_hears_of_the_resource_as_before(all in vec(said(), 1..12), since in 0i64..4) {
        let all = rows(&all);
        let is_since = |row: &Row| row.tombstone_row().run_started_micros >= Some(since);
        let heard = all.iter().any(is_since);
        prop_assert_eq!(fold(all).iter().any(is_since), heard);
    }
}

#[test]
fn a_repeated_deletion_takes_the_place_of_the_one_before() {
    let times = rows(&[(Some(10), Some(10), 1), (Some(20), Some(20), 2), (Some(15), Some(15), 2)]);
    assert_eq!(fold(times).iter().map(|row| row.place).collect::<Vec<_>>(), [1]);
    let by_other_clocks = rows(&[(Some(10), Some(10), 1), (None, Some(20), 2)]);
    assert_eq!(fold(by_other_clocks).len(), 2);
    let neither = rows(&[(Some(11), Some(12), 1), (Some(5), Some(20), 2)]);
    assert_eq!(fold(neither).len(), 2);
}
