use std::sync::Arc;

use arrow::{
    array::{ArrayRef, TimestampMicrosecondArray},
    datatypes::{Field, Schema},
};
use proptest::{collection::vec, option::weighted, prelude::*};

use super::*;
use crate::table::tombstones::Tombstones;

/// When the server deleted it, the export that reported it, and the run.
type Reported = (Option<i64>, Option<i64>, i64);

fn reported() -> impl Strategy<Value = Reported> {
    (weighted(0.7, 0i64..4), weighted(0.9, 0i64..4), 0i64..4)
}

/// Rows of one resource.
fn rows(reported: &[Reported]) -> Vec<MergedRow> {
    let instants =
        |micros: Vec<Option<i64>>| Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")) as ArrayRef;
    let same = |text: &str| Arc::new(StringArray::from(vec![text; reported.len()])) as ArrayRef;
    let columns = [
        ("id", same("a")),
        ("_sync_source", same("hospital")),
        ("_sync_at", instants(reported.iter().map(|row| Some(row.2)).collect())),
        ("_sync_transaction_time", instants(reported.iter().map(|row| row.1).collect())),
        ("deleted_at", instants(reported.iter().map(|row| row.0).collect())),
    ];
    let fields: Vec<_> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = TombstoneBatch::try_new(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()).unwrap();
    let batch = Arc::new(batch);
    (0..reported.len()).map(|index| MergedRow { batch: Arc::clone(&batch), index }).collect()
}

fn fold(all: Vec<MergedRow>) -> Vec<MergedRow> {
    let (mut kept, mut dropped) = (Vec::new(), 0);
    let count = all.len() as u64;
    for row in all {
        dropped += keep(&mut kept, row);
    }
    assert_eq!(kept.len() as u64 + dropped, count);
    kept
}

fn known(rows: &[MergedRow]) -> Tombstones {
    rows.iter().fold(Tombstones::default(), |known, row| known.with(row.tombstone().tombstone))
}

proptest! {
    #[test]
    fn a_fold_does_not_change_what_is_known_of_a_resource(all in vec(reported(), 0..12)) {
        let all = rows(&all);
        let kept = fold(all.clone());
        prop_assert_eq!(known(&kept), known(&all));
        let indices: Vec<_> = kept.iter().map(|row| row.index).collect();
        let again: Vec<_> = fold(kept).iter().map(|row| row.index).collect();
        prop_assert_eq!(again, indices, "the second fold drops nothing");
    }

    #[test]
    fn a_fold_does_not_hide_deletions_from_readers_that_filter_by_sync_at(all in vec(reported(), 1..12), since in 0i64..4) {
        let all = rows(&all);
        let is_since = |row: &MergedRow| row.tombstone().run_started_micros >= Some(since);
        let is_seen = all.iter().any(is_since);
        prop_assert_eq!(fold(all).iter().any(is_since), is_seen);
    }
}

#[test]
fn a_repeated_deletion_replaces_the_one_before() {
    let times = rows(&[(Some(10), Some(10), 1), (Some(20), Some(20), 2), (Some(15), Some(15), 2)]);
    assert_eq!(fold(times).iter().map(|row| row.index).collect::<Vec<_>>(), [1]);
    let by_other_clocks = rows(&[(Some(10), Some(10), 1), (None, Some(20), 2)]);
    assert_eq!(fold(by_other_clocks).len(), 2);
    let neither = rows(&[(Some(11), Some(12), 1), (Some(5), Some(20), 2)]);
    assert_eq!(fold(neither).len(), 2);
}
