//! A change set on the disk, encrypted and in many shards, gives the same table as one in memory.

use super::*;

const COUNT: u32 = 200;

/// Two files; every third row is repeated in a newer version, and every seventh in an older one.
fn export(version: u32) -> Vec<Vec<Change>> {
    let id = |number: u32| format!("id{number}");
    let first = (0..COUNT).map(|number| line(&id(number), version, "plain"));
    let newer = (0..COUNT).step_by(3).map(|number| line(&id(number), version + 1, "newer"));
    let older = (0..COUNT).step_by(7).map(|number| line(&id(number), version - 1, "older"));
    vec![first.collect(), newer.chain(older).collect()]
}

/// Half of the next export, and every fifth id deleted: some of them with rows of the same export.
fn update(version: u32) -> Vec<Vec<Change>> {
    let mut files = export(version);
    files[0].truncate(COUNT as usize / 2);
    files.push(
        (0..COUNT).step_by(5).map(|number| deletion(&format!("id{number}"), Some("2026-01-01T00:00:20Z"))).collect(),
    );
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_set_that_always_spills_gives_the_same_table() {
    let (spilled, held) = (Lake::new(), Lake::new());
    for (transaction_time, files) in [(5, export(10)), (6, update(15)), (7, update(15)), (8, export(9))] {
        let of_held = ChangeSet::new(&held.shape().schema(), MemoryBudget::alone(64 << 20), held.folder.path());
        held.fill(&of_held, &files, transaction_time);
        let of_spilled = spilled.change_set(&files, transaction_time);
        assert!(of_spilled.shards().count() > 10 && of_held.shards().count() == 1);
        let by_held = held.table().await.upsert(&of_held, &upsert(transaction_time)).await.unwrap();
        let by_spilled = spilled.table().await.upsert(&of_spilled, &upsert(transaction_time)).await.unwrap();
        assert_eq!(by_spilled.counts, by_held.counts);
        assert_eq!(spilled.rows().await, held.rows().await);
    }
}
