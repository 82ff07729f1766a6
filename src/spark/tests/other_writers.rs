//! What other writers have changed, and what our own engine has left.

use super::*;

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
