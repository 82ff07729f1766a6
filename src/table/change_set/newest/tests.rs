use std::collections::BTreeMap;

use super::*;
use crate::table::{
    change_set::candidates::{Candidate, Candidates},
    change_set::entry::{ChunkIndex, OutputIndex},
    data_file::stored::FileIndex,
};

const ROOMY: Limits = Limits { entries_bytes: 1 << 20, shard_bytes: 8 << 20 };
const TINY: Limits = Limits { entries_bytes: 400, shard_bytes: 3 * BYTES_PER_ID };

fn row(line: u64, last_updated_micros: Option<i64>) -> IndexEntry {
    let version = Version { last_updated_micros, ..Version::default() };
    IndexEntry::Row(RowEntry {
        version,
        hash: line,
        position: Position { output: OutputIndex(0), line },
        location: RowLocation { chunk: ChunkIndex(0), row: 0 },
    })
}

fn deletion(id: &str, deleted_at_micros: Option<i64>) -> IndexEntry {
    IndexEntry::Deletion { id: id.into(), at: deleted_at_micros.and_then(DateTime::from_timestamp_micros) }
}

/// All that is loaded of an index with these entries, by the hash of the row; a deletion is `None`.
fn load(limits: Limits, entries: &[(String, IndexEntry)]) -> (Vec<Shard>, BTreeMap<String, Option<u64>>) {
    let folder = tempfile::tempdir().unwrap();
    let (hasher, mut spool, mut index) = (IdHasher::new(), Spool::new(0, folder.path()), Index::new(limits));
    for (id, entry) in entries {
        index.push(&mut spool, hasher.of(id), entry).unwrap();
    }
    let loaded: Vec<_> = index.spans().iter().map(|span| index.load(&spool, &hasher, span).unwrap()).collect();
    let mut hashes = BTreeMap::new();
    for (id, _) in entries {
        let mut found = loaded.iter().filter_map(|newest| newest.get(id).map(|index| newest.winner(index)));
        let hash = match found.next() {
            Some(Winner::Row { hash, .. }) => Some(*hash),
            Some(Winner::Deleted { id: text, .. }) => {
                assert_eq!(&**text, id);
                None
            }
            None => panic!("{id} is in no shard"),
        };
        assert!(found.next().is_none(), "{id} is in two shards");
        hashes.insert(id.clone(), hash);
    }
    (loaded, hashes)
}

fn entries(of: &[(&str, IndexEntry)]) -> Vec<(String, IndexEntry)> {
    of.iter().map(|(id, entry)| ((*id).to_owned(), entry.clone())).collect()
}

#[test]
fn many_ids_are_loaded_by_several_threads_and_each_is_found_by_its_id_and_its_index() {
    let count = usize::try_from(MIN_PARALLEL_IDS).unwrap() + 1;
    let roomy = Limits { shard_bytes: 2 * count * BYTES_PER_ID, ..ROOMY };
    let rows: Vec<_> = (0..count).map(|number| (format!("id{number}"), row(number as u64, None))).collect();
    let (loaded, hashes) = load(roomy, &rows);
    assert_eq!((loaded.len(), hashes.len(), loaded[0].winners().count()), (1, count, count));
    for (index, winner) in loaded[0].winners() {
        assert_eq!(loaded[0].winner(index), winner);
    }
    for (number, (id, _)) in rows.iter().enumerate() {
        assert_eq!(hashes[id], Some(number as u64));
    }
}

#[test]
fn an_index_is_loaded_as_one_shard_if_it_fits_and_else_in_shards_that_fit() {
    let rows: Vec<_> = (0..1000).map(|number| (format!("id{}", number % 900), row(number, None))).collect();
    let (at_once, hashes) = load(ROOMY, &rows);
    assert_eq!(at_once.len(), 1);
    assert_eq!(hashes.len(), 900);
    assert_eq!(at_once[0].winners().count(), 900);
    assert_eq!(at_once[0].duplicate(), 100);
    let (sharded, the_same) = load(TINY, &rows);
    assert_eq!(the_same, hashes);
    assert_eq!(sharded.iter().map(Shard::duplicate).sum::<u64>(), 100);
    // About 15 ids of a shard fall into slices of 3 by chance, so now and then a few more are in one.
    assert!(sharded.len() >= 300 && sharded.iter().all(|newest| newest.winners().count() < 20), "{}", sharded.len());
}

#[test]
fn an_empty_index_is_loaded_once_and_covers_every_id() {
    let (hasher, spool, index) = (IdHasher::new(), Spool::new(0, std::path::Path::new("/")), Index::new(ROOMY));
    let spans = index.spans();
    assert_eq!(spans.len(), 1);
    let newest = index.load(&spool, &hasher, &spans[0]).unwrap();
    assert!(newest.winners().count() == 0 && newest.covers("any") && newest.covers("other"));
}

/// (rule 81, Q-49)
#[test]
fn of_two_rows_of_one_version_the_later_in_the_export_wins_in_any_order_of_arrival() {
    let (_, hashes) = load(TINY, &entries(&[("a", row(2, Some(1))), ("a", row(1, Some(1)))]));
    assert_eq!(hashes["a"], Some(2));
}

/// (rule 96)
#[test]
fn a_row_that_is_certainly_older_than_a_deletion_loses_in_any_order_of_arrival() {
    let (before, without_time, after) = (row(1, Some(10)), row(2, None), row(3, Some(30)));
    let deleted = deletion("a", Some(20));
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let all = [("a", before.clone()), ("a", without_time.clone()), ("a", after.clone()), ("a", deleted.clone())];
        let all: Vec<_> = order.map(|at| all[at].clone()).to_vec();
        assert_eq!(load(TINY, &entries(&all)).1["a"], Some(3), "{order:?}");
        let without_after: Vec<_> = all.iter().filter(|(_, entry)| *entry != after).cloned().collect();
        assert_eq!(load(TINY, &entries(&without_after)).1["a"], Some(2), "{order:?}");
        let only_before: Vec<_> = without_after.into_iter().filter(|(_, entry)| *entry != without_time).collect();
        assert_eq!(load(TINY, &entries(&only_before)).1["a"], None, "{order:?}");
    }
}

/// (rules 81 and 82)
#[test]
fn rows_whose_versions_lack_values_have_the_same_newest_in_any_order() {
    // Each of these is newer than the one before, and the first is newer than the last: by time, by number, by place.
    let version = |last_updated_micros, version_id| Version { last_updated_micros, version_id, ..Version::default() };
    let versions = [version(Some(0), Some(9)), version(Some(1), None), version(None, Some(5))];
    let rows: Vec<_> = (1..)
        .zip(versions)
        .map(|(line, version)| {
            IndexEntry::Row(RowEntry {
                version,
                hash: line,
                position: Position { output: OutputIndex(0), line },
                location: RowLocation { chunk: ChunkIndex(0), row: 0 },
            })
        })
        .collect();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let all = order.map(|at| ("a".to_owned(), rows[at].clone()));
        assert_eq!(load(TINY, &all).1["a"], Some(3), "{order:?}");
    }
}

#[test]
fn of_two_deletions_the_later_one_wins() {
    let all = entries(&[("a", deletion("a", Some(5))), ("a", deletion("a", None)), ("a", deletion("a", Some(3)))]);
    let (loaded, _) = load(TINY, &all);
    let winners: Vec<_> = loaded[0].winners().map(|(_, winner)| winner.clone()).collect();
    assert_eq!(winners, [Winner::Deleted { id: "a".into(), at: DateTime::from_timestamp_micros(5) }]);
    assert_eq!(loaded[0].duplicate(), 2);
}

#[test]
fn an_id_takes_as_much_memory_as_the_documentation_of_the_module_says() {
    assert_eq!(size_of::<Winner>(), 72);
    assert_eq!(BYTES_PER_ID, 145);
}

#[test]
fn entries_that_the_disk_refuses_stay_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let (hasher, mut spool, mut index) = (IdHasher::new(), Spool::new(0, &gone), Index::new(TINY));
    let refused =
        (0..50).filter(|n| index.push(&mut spool, hasher.of(&n.to_string()), &row(*n, None)).is_err()).count();
    assert!(refused > 0);
    assert_eq!(index.buckets.all().iter().map(|bucket| bucket.count).sum::<u64>(), 50);
    std::fs::create_dir(gone).unwrap();
    index.push(&mut spool, hasher.of("50"), &row(50, None)).unwrap();
    let loaded: Vec<_> = index.spans().iter().map(|span| index.load(&spool, &hasher, span).unwrap()).collect();
    assert_eq!(loaded.iter().map(|newest| newest.winners().count()).sum::<usize>(), 51);
}

/// One that says no to an id of the change set would make an update a second row of it.
#[test]
fn a_filter_lets_every_id_pass_that_was_pushed_and_few_others_as_long_as_it_has_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (hasher, mut spool, mut index) = (IdHasher::new(), Spool::new(0, folder.path()), Index::new(TINY));
    for number in 0..5_000 {
        let entry = if number % 9 == 0 { deletion(&number.to_string(), None) } else { row(number, None) };
        index.push(&mut spool, hasher.of(&number.to_string()), &entry).unwrap();
    }
    for (max_bytes, most) in [(1 << 20, 250), (5_000, 5_000), (0, 5_000)] {
        let filter = index.filter(&spool, &hasher, max_bytes).unwrap();
        let passed =
            |ids: std::ops::Range<u64>| ids.filter(|number| filter.pass(&number.to_string()).is_some()).count();
        assert_eq!(passed(0..5_000), 5_000);
        assert!(passed(5_000..10_000) <= most, "{max_bytes}: {}", passed(5_000..10_000));
    }
}

#[test]
fn each_candidate_is_in_exactly_one_shard_and_as_it_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (hasher, mut spool, mut index) = (IdHasher::new(), Spool::new(0, folder.path()), Index::new(TINY));
    for number in 0..1_000 {
        index.push(&mut spool, hasher.of(&number.to_string()), &row(number, None)).unwrap();
    }
    let filter = index.filter(&spool, &hasher, 1 << 20).unwrap();
    let candidates = Candidates::new(filter, spool.beside(), 300);
    let candidate = |number: u64| Candidate {
        id_hash: hasher.of(&(number % 1_500).to_string()),
        file: FileIndex(u32::try_from(number % 7).unwrap()),
        row: number << 40,
        version: Version {
            version_id: number.is_multiple_of(2).then_some(number),
            subsetted: number.is_multiple_of(3),
            ..Version::default()
        },
        hash: (!number.is_multiple_of(5)).then_some(number),
    };
    let all: Vec<_> = (0..2_000).map(candidate).collect();
    all.chunks(100).for_each(|some| candidates.keep(some).unwrap());
    let kept = candidates.all().unwrap();
    let mut found = Vec::new();
    for span in index.spans() {
        let shard = index.load(&spool, &hasher, &span).unwrap();
        kept.read(&shard, |candidate| found.push(candidate)).unwrap();
    }
    found.sort_by_key(|of| of.row);
    assert_eq!(found, all);
}
