//! deltalake's own MERGE, where it is defined, gives the same rows as our upsert, column by column.

use deltalake::{
    DeltaTable,
    datafusion::{
        common::Column,
        logical_expr::Expr,
        prelude::{SessionContext, lit},
    },
};

use super::*;

/// What arrives for an id in one round. MERGE has no rule for duplicate rows, and no deletions or tombstones. So there
/// is at most one change for each id, and no id returns with a version older than its deletion.
#[derive(Clone, Copy, Debug)]
enum Received {
    Row(i32),
    Deletion,
}

const IDS: i32 = 8;
/// Versions of a round differ by less than this from its own.
const ROUND: i32 = 10;

type Round = BTreeMap<i32, Received>;

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let received = prop_oneof![5 => (-12..9).prop_map(Received::Row), 1 => Just(Received::Deletion)];
    proptest::collection::vec(proptest::collection::btree_map(0..IDS, received, 1..8), 1..5).prop_map(absolute)
}

/// Gives each version a number that counts from the first round, and leaves out versions that are older than a deletion
/// of their id.
fn absolute(rounds: Vec<Round>) -> Vec<Round> {
    let mut deleted = BTreeMap::new();
    let absolute = (1..).zip(rounds).map(|(number, round)| {
        let newest = number * ROUND + ROUND - 1;
        let received = round.into_iter().map(|(id, received)| match received {
            Received::Row(near) => (id, Received::Row((number * ROUND + near).max(1))),
            Received::Deletion => {
                deleted.insert(id, newest);
                (id, Received::Deletion)
            }
        });
        let received: Vec<_> = received.collect();
        let outlived =
            |id: &i32, received: &Received| matches!((received, deleted.get(id)), (Received::Row(version), Some(at)) if version <= at);
        received.into_iter().filter(|(id, received)| !outlived(id, received)).collect()
    });
    absolute.collect()
}

/// A row, or for MERGE a deletion, marked in `language`. The version is in a column of its own as well, which SQL can
/// compare.
fn text(id: i32, version: i32, language: &str) -> String {
    let meta = format!(r#"{{"versionId":"{version}","lastUpdated":"2026-01-01T00:00:{version:02}Z"}}"#);
    format!(
        r#"{{"resourceType":"Binary","id":"id{id}","meta":{meta},{language}"data":"AAAA","contentType":"text/{version:02}"}}"#
    )
}

fn changes(number: i32, round: &Round) -> Vec<Change> {
    let changes = round.iter().map(|(id, received)| match received {
        Received::Row(version) => Change::Line(text(*id, *version, "")),
        Received::Deletion => {
            let at = number * ROUND + ROUND - 1;
            deletion(&format!("id{id}"), Some(&format!("2026-01-01T00:00:{at:02}Z")))
        }
    });
    changes.collect()
}

fn of(table: &str, column: &str) -> Expr {
    Expr::Column(Column::new(Some(table), column))
}

impl Lake {
    async fn merge(&self, round: &Round, transaction_time: i64) {
        let lines = (1..).zip(round).map(|(number, (id, received))| {
            let text = match received {
                Received::Row(version) => text(*id, *version, ""),
                Received::Deletion => text(*id, 0, r#""language":"deleted","#),
            };
            Line { number, offset: 0, bytes: text.into_bytes().into() }
        });
        let rows = self.decoder(transaction_time).decode(&lines.collect::<Vec<_>>()).unwrap().rows;
        let names: Vec<_> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
        let source = SessionContext::new().read_batch(rows).unwrap();
        merge(self.table().await.delta, source, &names).await;
    }

    fn all_columns(&self) -> String {
        self.drawn(&[])
    }
}

async fn merge(delta: DeltaTable, source: deltalake::datafusion::prelude::DataFrame, names: &[String]) {
    let is_row = || of("source", "language").is_null();
    let is_newer = of("source", "contentType").gt(of("target", "contentType"));
    let merge = delta
        .merge(source, of("source", "id").eq(of("target", "id")))
        .with_source_alias("source")
        .with_target_alias("target")
        .when_matched_delete(|delete| delete.predicate(of("source", "language").eq(lit("deleted"))))
        .and_then(|merge| {
            merge.when_matched_update(|update| {
                let update = update.predicate(is_row().and(is_newer));
                names.iter().fold(update, |update, name| update.update(Column::from_name(name), of("source", name)))
            })
        })
        .and_then(|merge| {
            merge.when_not_matched_insert(|insert| {
                let insert = insert.predicate(is_row());
                names.iter().fold(insert, |insert, name| insert.set(Column::from_name(name), of("source", name)))
            })
        });
    merge.unwrap().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn an_upsert_leaves_the_same_rows_as_a_merge_by_deltalake(rounds in rounds(), copies in any::<bool>()) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = (Lake::of("Binary".parse().unwrap()), Lake::of("Binary".parse().unwrap()));
            let update_mode = if copies { UpdateMode::CopyOnWrite } else { UpdateMode::DeletionVectors };
            let ours = Lake { root: ours.root_with(update_mode), ..ours };
            for (number, round) in (1..).zip(&rounds).filter(|(_, round)| !round.is_empty()) {
                ours.upsert(&[changes(number, round)], number.into()).await;
                theirs.merge(round, number.into()).await;
                assert_eq!(ours.all_columns(), theirs.all_columns());
            }
        });
    }
}
