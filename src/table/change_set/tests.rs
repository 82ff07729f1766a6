use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array as _, ArrayRef, AsArray, Int64Array, StringArray, StructArray},
    datatypes::{DataType, Field, Fields, Int64Type, Schema},
};
use proptest::prelude::*;

use super::*;
use crate::{fhir::Version, table::change_set::newest::Winner};

/// A row or a deletion, with its position in the export.
#[derive(Clone, Debug)]
enum Change {
    Row { id: u8, version: Version, file: u32, line: u64 },
    Delete { id: u8, deleted_at_micros: Option<i64> },
}

/// The newest of one id: the line of the row, or the time of the deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    Row(Version, u32, u64),
    Deleted(Option<i64>),
}

fn schema() -> SchemaRef {
    let child = Fields::from(vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)]);
    Arc::new(Schema::new(vec![
        Field::new("never", DataType::Utf8, true),
        Field::new("line", DataType::Int64, true),
        Field::new("struct", DataType::Struct(child), true),
        Field::new("sometimes", DataType::Utf8, true),
    ]))
}

/// The rows of some lines; `sometimes` is null on even ones.
fn rows(lines: &[u64]) -> RecordBatch {
    let numbers: ArrayRef = Arc::new(lines.iter().map(|line| line.cast_signed()).collect::<Int64Array>());
    let text = |line: &u64| (line % 2 == 1).then(|| format!("line {line}"));
    let sometimes: ArrayRef = Arc::new(lines.iter().map(text).collect::<StringArray>());
    let DataType::Struct(child) = schema().field(2).data_type().clone() else { unreachable!() };
    let nothing = Arc::new(StringArray::new_null(lines.len()));
    let nested = StructArray::new(child, vec![Arc::clone(&numbers), nothing.clone()], None);
    RecordBatch::try_new(schema(), vec![nothing, numbers, Arc::new(nested), sometimes]).unwrap()
}

/// Pushes neighbours of one file together, as a decoder does.
fn push(changes: &ChangeSet, all: &[Change]) {
    let file_of = |change: &Change| match change {
        Change::Row { file, .. } => Some(*file),
        Change::Delete { .. } => None,
    };
    for together in all.chunk_by(|a, b| file_of(a) == file_of(b)) {
        let (mut keys, mut lines) = (Vec::new(), Vec::new());
        for change in together {
            match *change {
                Change::Row { id, version, line, .. } => {
                    keys.push(RowKey { id: format!("id{id}"), version, line, hash: line });
                    lines.push(line);
                }
                Change::Delete { id, deleted_at_micros } => {
                    changes
                        .delete(format!("id{id}"), deleted_at_micros.and_then(DateTime::from_timestamp_micros))
                        .unwrap();
                }
            }
        }
        if let Some(file) = file_of(&together[0]) {
            changes.push(OutputIndex(file), keys, rows(&lines)).unwrap();
        }
    }
}

/// What the change set keeps of each id, with the rows read back by their places, and the number of duplicates.
fn read(changes: &ChangeSet) -> (HashMap<u8, Kept>, u64) {
    let (mut kept, mut duplicate) = (HashMap::new(), 0);
    for newest in changes.shards() {
        let newest = newest.unwrap();
        duplicate += newest.duplicate();
        for id in 0..IDS {
            let Some(index) = newest.get(&format!("id{id}")) else { continue };
            let what = match newest.winner(index) {
                Winner::Deleted { id: text, at } => {
                    assert_eq!(**text, format!("id{id}"));
                    Kept::Deleted(at.map(|at| at.timestamp_micros()))
                }
                Winner::Row { version, hash, location } => {
                    assert_eq!(line_at(changes, *location), *hash);
                    Kept::Row(*version, 0, *hash)
                }
            };
            assert!(kept.insert(id, what).is_none(), "id{id} is in two shards");
        }
    }
    (kept, duplicate)
}

fn line_at(changes: &ChangeSet, location: RowLocation) -> u64 {
    let batch = changes.batch(location.chunk).unwrap();
    let row = location.row as usize;
    assert!(batch.column_by_name("never").is_none());
    let line = batch.column_by_name("line").unwrap().as_primitive::<Int64Type>().value(row);
    let nested = batch.column_by_name("struct").unwrap().as_struct();
    assert_eq!(nested.column(0).as_primitive::<Int64Type>().value(row), line);
    assert_eq!(nested.num_columns(), 1, "a field without values is left out");
    let sometimes = batch.column_by_name("sometimes").map(AsArray::as_string::<i32>);
    let sometimes = sometimes.filter(|column| column.is_valid(row)).map(|column| column.value(row).to_owned());
    assert_eq!(sometimes, (line % 2 == 1).then(|| format!("line {line}")));
    line.cast_unsigned()
}

const IDS: u8 = 12;

fn any_version() -> impl Strategy<Value = Version> {
    let values = (proptest::option::of(0i64..4), proptest::option::of(0u64..4), proptest::bool::weighted(0.2));
    values.prop_map(|(last_updated_micros, version_id, subsetted)| Version {
        last_updated_micros,
        version_id,
        transaction_time_micros: Some(7),
        subsetted,
    })
}

/// The number grows with the time: versions that contradict each other have no order.
fn complete_version() -> impl Strategy<Value = Version> {
    any_version().prop_map(|version| {
        let last_updated_micros = version.last_updated_micros.unwrap_or(4);
        let version_id = Some(last_updated_micros.cast_unsigned());
        Version { last_updated_micros: Some(last_updated_micros), version_id, subsetted: false, ..version }
    })
}

/// Changes in the order of the export and in another one.
fn changes(version: impl Strategy<Value = Version>) -> impl Strategy<Value = (Vec<Change>, Vec<Change>)> {
    let row = (0..IDS, version, 0u32..4).prop_map(|(id, version, file)| Change::Row { id, version, file, line: 0 });
    let delete = (0..IDS, proptest::option::of(0i64..5))
        .prop_map(|(id, deleted_at_micros)| Change::Delete { id, deleted_at_micros });
    let all = proptest::collection::vec(prop_oneof![4 => row, 1 => delete], 0..80);
    let placed = all.prop_map(|mut all| {
        for (number, change) in (0..).zip(&mut all) {
            if let Change::Row { line, .. } = change {
                *line = number;
            }
        }
        all
    });
    placed.prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
}

fn deletion_wins(deleted_at_micros: Option<i64>, row: &Version) -> bool {
    matches!((deleted_at_micros, row.last_updated_micros), (Some(at), Some(last_updated)) if at > last_updated)
}

fn row_wins(new: (Version, u32, u64), known: Kept) -> bool {
    match known {
        Kept::Row(known, ..) if new.0.subsetted != known.subsetted => known.subsetted,
        Kept::Row(known, file, line) => new.0.compare(&known).then((new.1, new.2).cmp(&(file, line))).is_gt(),
        Kept::Deleted(at) => !deletion_wins(at, &new.0),
    }
}

/// One after the other, each against what is known.
fn fold<'a>(all: impl Iterator<Item = &'a Change>) -> HashMap<u8, Kept> {
    let mut kept = HashMap::new();
    for change in all {
        match *change {
            Change::Row { id, version, file, line } => match kept.get(&id) {
                Some(known) if !row_wins((version, file, line), *known) => {}
                _ => drop(kept.insert(id, Kept::Row(version, file, line))),
            },
            Change::Delete { id, deleted_at_micros } => match kept.get(&id).copied() {
                Some(Kept::Row(row, ..)) if !deletion_wins(deleted_at_micros, &row) => {}
                Some(Kept::Deleted(known)) => drop(kept.insert(id, Kept::Deleted(known.max(deleted_at_micros)))),
                _ => drop(kept.insert(id, Kept::Deleted(deleted_at_micros))),
            },
        }
    }
    kept
}

/// The same result, in an order that does not depend on the order of arrival: without the rows that a deletion
/// certainly follows, the deletions first, then the rows in the order of the export.
fn fold_in_order(all: &[Change]) -> HashMap<u8, Kept> {
    let mut last_deletion = HashMap::new();
    for change in all {
        if let Change::Delete { id, deleted_at_micros } = change {
            let at = last_deletion.entry(*id).or_insert(*deleted_at_micros);
            *at = (*at).max(*deleted_at_micros);
        }
    }
    let mut ordered: Vec<_> = all.iter().collect();
    ordered.retain(|change| match change {
        Change::Row { id, version, .. } => !deletion_wins(last_deletion.get(id).copied().flatten(), version),
        Change::Delete { .. } => true,
    });
    ordered.sort_by_key(|change| match change {
        Change::Delete { .. } => (0, 0, 0),
        Change::Row { file, line, .. } => (1, *file, *line),
    });
    fold(ordered.into_iter())
}

fn without_file(kept: HashMap<u8, Kept>) -> HashMap<u8, Kept> {
    let without = |kept| match kept {
        Kept::Row(version, _, line) => Kept::Row(version, 0, line),
        deleted @ Kept::Deleted(_) => deleted,
    };
    kept.into_iter().map(|(id, kept)| (id, without(kept))).collect()
}

fn spilled(all: &[Change]) -> (HashMap<u8, Kept>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let changes = ChangeSet::tiny(&schema(), folder.path());
    push(&changes, all);
    assert_eq!(changes.received(), all.len() as u64);
    assert_eq!(changes.is_empty(), all.is_empty());
    let first = read(&changes);
    assert_eq!(read(&changes), first, "as often as asked");
    first
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// (rule 81)
    #[test]
    fn any_order_and_any_spilling_keep_the_same_newest_change_of_each_id(
        (all, shuffled) in changes(any_version()),
    ) {
        let expected = without_file(fold_in_order(&all));
        let duplicate = (all.len() - expected.len()) as u64;
        prop_assert_eq!(spilled(&shuffled), (expected, duplicate));
    }

    #[test]
    fn with_complete_versions_the_result_equals_a_pairwise_comparison(
        (_, shuffled) in changes(complete_version()),
    ) {
        let expected = without_file(fold(shuffled.iter()));
        let duplicate = (shuffled.len() - expected.len()) as u64;
        prop_assert_eq!(spilled(&shuffled), (expected, duplicate));
    }
}

#[test]
fn workers_push_and_read_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ChangeSet::tiny(&schema(), folder.path());
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let changes = &changes;
            scope.spawn(move || {
                for line in 0..50 {
                    let version = Version { version_id: Some(u64::from(worker)), ..Version::default() };
                    push(changes, &[Change::Row { id: IDS - 1, version, file: worker, line }]);
                    assert!(changes.batch(ChunkIndex(0)).unwrap().num_rows() > 0);
                }
            });
        }
    });
    assert_eq!(changes.received(), 200);
    let (kept, duplicate) = read(&changes);
    let version = Version { version_id: Some(3), ..Version::default() };
    assert_eq!(kept[&(IDS - 1)], Kept::Row(version, 0, 49));
    assert_eq!(duplicate, 199);
}

#[test]
fn only_columns_with_values_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ChangeSet::new(&schema(), MemoryBudget::alone(1 << 20), folder.path());
    let even = Change::Row { id: 1, version: Version::default(), file: 0, line: 2 };
    push(&changes, &[even]);
    assert_eq!(changes.batch(ChunkIndex(0)).unwrap().num_columns(), 2);
    assert_eq!(Vec::from_iter(changes.filled_columns()), ["line", "struct"]);
    let odd = Change::Row { id: 2, version: Version::default(), file: 0, line: 3 };
    push(&changes, &[odd]);
    assert_eq!(Vec::from_iter(changes.filled_columns()), ["line", "sometimes", "struct"]);
    assert_eq!(changes.shards().count(), 1);
    assert!(changes.batch(ChunkIndex(2)).is_err());
}

#[test]
fn rows_of_another_schema_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ChangeSet::new(&schema(), MemoryBudget::alone(1 << 20), folder.path());
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let other = RecordBatch::try_from_iter([("sometimes", numbers)]).unwrap();
    let key = RowKey { id: "a".to_owned(), version: Version::default(), line: 1, hash: 1 };
    assert!(changes.push(OutputIndex(0), vec![key], other).is_err());
    assert!(changes.is_empty());
}
