//! What other writers have changed, and what our own engine has left.

use super::*;

fn whole(app_id: &str, at: i64) -> Upsert {
    Upsert { app_id: app_id.to_owned(), extent: Extent::Whole { removes_returned: false }, ..upsert(at) }
}

impl Site {
    /// How many of the patients `a` and `b` are written again, by an export that brings these.
    async fn written_again(&self, upsert: &Upsert, ids: &[&str]) -> u64 {
        let at = upsert.watermark.time().unwrap().as_micros() - time(0).as_micros();
        let lines: Vec<_> = ids.iter().map(|id| patient(id, 1)).collect();
        let committed = self.upsert(&self.changes(&lines, &[], at), upsert).await.unwrap();
        assert_eq!(committed.counts.unchanged + committed.counts.updated, ids.len() as u64);
        committed.counts.updated
    }

    fn somebody_changes_all_lines(&self) {
        self.server.inner().warehouse.change_lines_by_somebody_else();
    }
}

#[tokio::test]
async fn a_full_refresh_of_one_export_does_not_make_the_hashes_of_another_right() {
    let site = Site::loaded().await;
    site.somebody_changes_all_lines();
    assert_eq!(site.written_again(&whole("of-a", 2), &["a"]).await, 1);
    assert_eq!(site.written_again(&whole("of-a", 3), &["a"]).await, 0);
    assert_eq!(site.written_again(&whole("of-b", 4), &["b"]).await, 1);
    site.assert_rows(&[("a", 1), ("b", 1)]);
    for (at, app_id) in [(5, "of-a"), (6, "of-b")] {
        assert_eq!(site.written_again(&whole(app_id, at), &["a", "b"]).await, 0, "{app_id}");
    }
}

#[tokio::test]
async fn a_full_refresh_with_a_gap_leaves_hashes_doubtful_until_one_is_whole() {
    let site = Site::loaded().await;
    site.somebody_changes_all_lines();
    let with_gap = Upsert { extent: Extent::WithGap, ..upsert(2) };
    assert_eq!(site.written_again(&with_gap, &["a"]).await, 1);
    assert_eq!(site.written_again(&whole(APP_ID, 3), &["a", "b"]).await, 2);
    site.assert_rows(&[("a", 1), ("b", 1)]);
    assert_eq!(site.written_again(&whole(APP_ID, 4), &["a", "b"]).await, 0);
}

#[tokio::test]
async fn a_table_that_nobody_else_has_changed_is_not_written_again_by_a_full_refresh() {
    let site = Site::loaded().await;
    assert_eq!(site.written_again(&whole(APP_ID, 2), &["a", "b"]).await, 0);
    assert_eq!(site.written_again(&whole("another", 3), &["a", "b"]).await, 0);
}

#[tokio::test]
async fn a_table_of_our_own_engine_is_handed_over_to_spark() {
    let site = Site::loaded().await;
    site.server.inner().warehouse.hand_over(APP_ID, 1_800_000_000_000_000);
    assert_eq!(site.watermark().await, None);
    let committed = site.sync(&[patient("a", 1), patient("b", 2)], &[], 2).await.unwrap();
    assert_eq!(committed.counts, Counts { unchanged: 1, updated: 1, ..Counts::default() });
    site.assert_rows(&[("a", 1), ("b", 2)]);
    assert_eq!((site.merges(), site.watermark().await), ((2, 1), Some(time(2))));
    site.table(&site.server.config()).await.set_watermark(APP_ID, time(1)).await.unwrap();
    assert_eq!(site.watermark().await, Some(time(1)));
}

/// (rule 98)
#[tokio::test]
async fn a_missing_row_that_another_writer_changes_before_the_merge_is_decided_about_again() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::Overtaken);
    let limits = Reconcile { max_missing: 1, max_missing_percent: 0.0, allow_empty: false };
    let refresh = Upsert { reconcile: Some(limits), ..whole(APP_ID, 2) };
    let committed = site.upsert(&site.changes(&[patient("b", 1)], &[], 2), &refresh).await.unwrap();
    assert_eq!((committed.counts.removed, committed.foreign), (1, 1));
    site.assert_rows(&[("b", 1)]);
    assert_eq!(site.merges(), (3, 2));
}

/// (rule 98)
#[tokio::test]
async fn a_doubled_row_is_not_missing_where_a_later_export_brought_one_of_its_copies() {
    let site = Site::loaded().await;
    site.server.inner().warehouse.double_the_first_row_later();
    let limits = Reconcile { max_missing: 1, max_missing_percent: 0.0, allow_empty: false };
    let refresh = Upsert { reconcile: Some(limits), ..whole(APP_ID, 2) };
    let committed = site.upsert(&site.changes(&[patient("b", 1)], &[], 2), &refresh).await.unwrap();
    assert_eq!(committed.counts, Counts { unchanged: 1, ..Counts::default() });
    assert_eq!(site.server.inner().warehouse.rows.len(), 3);
    assert_eq!(site.merges(), (2, 2));
}

/// The one lands, although rows are gone that its watermark stands for; the other finds another row, and would be
/// decided again. A table is often looked at long before its MERGE.
#[tokio::test]
async fn a_table_that_is_restored_before_the_merge_fails_whether_the_merge_lands_or_not() {
    for (id, commits) in [("b", 2), ("a", 1)] {
        let site = Site::loaded().await;
        site.server.fail("MERGE INTO", Fault::Restored);
        let restored = site.sync(&[patient(id, 2)], &[], 2).await;
        assert!(matches!(restored, Err(table::Error::Restored { .. })), "{restored:?}");
        assert_eq!(site.merges(), (2, commits), "{id}");
        assert!(!site.staging().exists());
    }
}

/// Those that were kept may have been changed by somebody else, and their hashes say nothing of it. (rule 98)
#[tokio::test]
async fn a_full_refresh_that_keeps_missing_rows_leaves_hashes_doubtful() {
    let site = Site::loaded().await;
    site.somebody_changes_all_lines();
    let keeping = Upsert { reconcile: Some(Reconcile::NONE), ..whole(APP_ID, 2) };
    assert_eq!(site.written_again(&keeping, &["a"]).await, 1);
    assert_eq!(site.written_again(&whole(APP_ID, 3), &["a", "b"]).await, 2);
    site.assert_rows(&[("a", 1), ("b", 1)]);
    assert_eq!(site.written_again(&whole(APP_ID, 4), &["a", "b"]).await, 0);
}
