//! Files of other writers, as `OPTIMIZE` of Spark leaves them: the rows carry the hashes that we gave them, and nobody
//! knows whether they are still what they were.

use std::sync::atomic::Ordering;

use arrow::{
    array::{ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::Int64Type,
};
use deltalake::Path as StorePath;
use futures::TryStreamExt as _;
use object_store::ObjectStoreExt as _;
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use proptest::sample::Index;
use serde_json::json;

use super::{store_requests::StoredLake, *};
use crate::table::data_file::fill::fit;

/// The data files of the other writer.
const FILES: usize = 4;

impl Lake {
    /// Another writer moves all rows, in this order, into files of its own, and `change`s them.
    async fn moved_by_another_writer(
        &self,
        order: &[u32],
        row_group_rows: usize,
        change: impl Fn(RecordBatch) -> RecordBatch,
    ) {
        let table = self.table().await;
        let (columns, store) = (table.columns().unwrap(), table.delta.object_store());
        let (mut actions, mut rows) = (Vec::new(), Vec::new());
        for file in table.stored_files().await.unwrap() {
            let batches: Vec<_> = table.rows(&file).await.unwrap().try_collect().await.unwrap();
            rows.extend(batches.iter().map(|batch| fit(batch, &columns).unwrap()));
            actions.push(json!({"remove": {
                "path": file.add.path, "dataChange": false, "deletionTimestamp": 1_700_000_000_000_i64,
                "extendedFileMetadata": true, "partitionValues": {}, "size": file.add.size,
            }}));
        }
        let rows = concat_batches(&columns, &rows).unwrap();
        assert_eq!(rows.num_rows(), order.len());
        let rows = change(take_record_batch(&rows, &UInt32Array::from(order.to_vec())).unwrap());
        for (number, of_file) in order.chunks(order.len().div_ceil(FILES)).enumerate() {
            let first = number * order.len().div_ceil(FILES);
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(row_group_rows)).build();
            let mut writer = ArrowWriter::try_new(Vec::new(), columns.clone(), Some(properties)).unwrap();
            writer.write(&rows.slice(first, of_file.len())).unwrap();
            let bytes = writer.into_inner().unwrap();
            let path = format!("part-{number:05}-c000.snappy.parquet");
            actions.push(json!({"add": {
                "path": path, "partitionValues": {}, "size": bytes.len(), "modificationTime": 1_700_000_000_000_i64,
                "dataChange": false, "stats": json!({ "numRecords": of_file.len() }).to_string(),
            }}));
            store.put(&StorePath::from(path), bytes.into()).await.unwrap();
        }
        actions.push(json!({"commitInfo": {"timestamp": 1_700_000_000_000_i64, "operation": "OPTIMIZE"}}));
        let actions: Vec<_> = actions.iter().map(ToString::to_string).collect();
        let commit = StorePath::from(format!("_delta_log/{:020}.json", table.version() + 1));
        store.put(&commit, actions.join("\n").into()).await.unwrap();
    }

    /// A change set of one shard.
    fn in_one_shard(&self, files: &[Vec<Change>], transaction_time: i64) -> ChangeSet {
        let changes = ChangeSet::new(&self.shape().schema(), MemoryBudget::alone(64 << 20), self.folder.path());
        self.fill(&changes, files, transaction_time);
        changes
    }
}

fn person(id: usize, gender: &str) -> Change {
    Change::Line(format!(
        r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"1","lastUpdated":"2026-01-01T00:00:01Z"}},"gender":"{gender}","name":[{{"family":"Doe","given":["A","{id}"]}}]}}"#
    ))
}

/// Comparing the rows for each shard would read all files once for each, and a batch of received rows for each row.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_writer_and_received_rows_are_read_once_in_any_order_and_any_number_of_shards() {
    const ROWS: u32 = 200;
    let export: Vec<_> =
        (0..20).map(|file| (file * 10..file * 10 + 10).map(|id| person(id, "other")).collect()).collect();
    // Neighbours in a file are in different batches of the export.
    let order: Vec<_> = (0..ROWS).map(|row| row * 73 % ROWS).collect();
    let mut asked = Vec::new();
    for is_sharded in [false, true] {
        let StoredLake { lake, store } = StoredLake::without_cache();
        lake.upsert(&export, 1).await;
        lake.moved_by_another_writer(&order, ROWS as usize, |rows| rows).await;
        let changes = if is_sharded { lake.change_set(&export, 2) } else { lake.in_one_shard(&export, 2) };
        assert_eq!(changes.shards().count() > 10, is_sharded);
        let table = lake.table().await;
        store.take();
        let committed = table.upsert(&changes, &full_refresh(2, 100.0)).await.unwrap();
        assert_eq!(committed.counts, Counts { unchanged: ROWS.into(), ..Counts::default() });
        assert_eq!((committed.foreign, committed.bytes_written), (0, 0));
        assert_eq!(changes.decoded.load(Ordering::Relaxed), 20, "each batch once");
        let of_files =
            store.take().into_iter().filter(|request| request.starts_with("get") && request.contains("part-"));
        asked.push(of_files.count());
    }
    // For each file two requests for its footer, to see that it is not damaged, for ids and versions, and for all
    // columns; these in one request each. In one shard, ids and versions have a request of their own.
    assert_eq!(asked, [9 * FILES, 8 * FILES]);
}

/// What another writer did to a row that it moved.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Touch {
    Nothing,
    Gender,
    Line,
    Hash,
    LostHash,
}

fn touched(rows: &RecordBatch, touches: &[Touch]) -> RecordBatch {
    let texts = |name: &str, of: Touch| -> ArrayRef {
        let texts = rows.column_by_name(name).unwrap().as_string::<i32>().iter().zip(touches);
        Arc::new(texts.map(|(text, touch)| if *touch == of { Some("x") } else { text }).collect::<StringArray>())
    };
    let hashes = rows.column_by_name("_sync_hash").unwrap().as_primitive::<Int64Type>().iter().zip(touches);
    let hashes = hashes.map(|(hash, touch)| match touch {
        Touch::Hash => Some(7),
        Touch::LostHash => None,
        _ => hash,
    });
    let hashes: ArrayRef = Arc::new(hashes.collect::<Int64Array>());
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| match field.name().as_str() {
        "gender" => texts("gender", Touch::Gender),
        "resource_json" => texts("resource_json", Touch::Line),
        "_sync_hash" => Arc::clone(&hashes),
        _ => Arc::clone(column),
    });
    RecordBatch::try_new(rows.schema(), columns.collect()).unwrap()
}

/// What the export says of a resource.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Sent {
    Same,
    /// After another line of the same resource.
    SameAgain,
    Other,
    Deleted,
    Missing,
}

impl Sent {
    fn changes(self, id: usize) -> Vec<Change> {
        match self {
            Self::Same => vec![person(id, "female")],
            Self::SameAgain => vec![person(id, "male"), person(id, "female")],
            Self::Other => vec![person(id, "male")],
            Self::Deleted => vec![deletion(&id.to_string(), Some("2026-01-01T00:00:20Z"))],
            Self::Missing => Vec::new(),
        }
    }
}

fn row() -> impl Strategy<Value = (Touch, Sent)> {
    use Touch::{Gender, Hash, Line, LostHash, Nothing};
    let touch =
        prop_oneof![4 => Just(Nothing), 1 => Just(Gender), 1 => Just(Line), 1 => Just(Hash), 1 => Just(LostHash)];
    let sent = prop_oneof![
        4 => Just(Sent::Same), 1 => Just(Sent::SameAgain), 2 => Just(Sent::Other), 1 => Just(Sent::Deleted),
        1 => Just(Sent::Missing),
    ];
    (touch, sent)
}

/// Rows in files of ours, of which the second half was written after the other writer had moved the first half.
async fn lake_of_two_writers(rows: &[(Touch, Sent)], order: &[u32]) -> Lake {
    let lake = Lake::new();
    let half = |range: std::ops::Range<usize>| vec![range.map(|id| person(id, "female")).collect::<Vec<_>>()];
    lake.upsert(&half(0..order.len()), 1).await;
    let touches: Vec<_> = order.iter().map(|row| rows[*row as usize].0).collect();
    lake.moved_by_another_writer(order, 2, |rows| touched(&rows, &touches)).await;
    lake.upsert(&half(order.len()..rows.len()), 2).await;
    lake
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn rows_of_another_writer_are_decided_alike_in_one_shard_and_in_many(
        rows in proptest::collection::vec(row(), 8..40),
        swaps in proptest::collection::vec(any::<(Index, Index)>(), 20),
        is_full in any::<bool>(),
    ) {
        let moved = u32::try_from(rows.len() / 2).unwrap();
        let mut order: Vec<_> = (0..moved).collect();
        for (one, other) in swaps {
            order.swap(one.index(moved as usize), other.index(moved as usize));
        }
        let sent: Vec<_> = (0..).zip(&rows).map(|(id, (_, sent))| sent.changes(id)).collect();
        let upsert = if is_full { full_refresh(3, 100.0) } else { upsert(3) };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let [one, many] = [false, true].map(|is_sharded| {
            runtime.block_on(async {
                let lake = lake_of_two_writers(&rows, &order).await;
                let changes = if is_sharded { lake.change_set(&sent, 3) } else { lake.in_one_shard(&sent, 3) };
                assert!(is_sharded || changes.shards().count() == 1);
                let committed = lake.table().await.upsert(&changes, &upsert).await.unwrap();
                (committed.counts, lake.drawn(&["id", "gender", "name", "resource_json", "_sync_hash"]))
            })
        });
        prop_assert_eq!(&one, &many);
        let is_unchanged = |(id, (touch, sent)): &(u32, &(Touch, Sent))| {
            matches!(sent, Sent::Same | Sent::SameAgain) && (*touch == Touch::Nothing || *id >= moved)
        };
        let unchanged = (0..).zip(&rows).filter(is_unchanged).count();
        prop_assert_eq!(one.0.unchanged, unchanged as u64, "{:?}", one.0);
    }
}
