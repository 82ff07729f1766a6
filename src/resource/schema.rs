//! The columns of a resource type's table.
//!
//! Leading columns first: `delta.dataSkippingNumIndexedCols` counts from the left, and what stands there gets statistics
//! in the log. Nothing that could name a patient may stand there but the id.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// How many columns at the left carry statistics.
pub const LEADING_COLUMNS: usize = 4;

/// The schema of every resource type: the leading columns, `resourceType`, and the line itself in `resource_json`.
/// All columns are nullable, as every reader of Delta tables expects.
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let instant = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, true),
            Field::new("_sync_source", DataType::Utf8, true),
            Field::new("_sync_at", instant(), true),
            Field::new("_sync_transaction_time", instant(), true),
            Field::new("resourceType", DataType::Utf8, true),
            Field::new("resource_json", DataType::Utf8, true),
        ]))
    });
    Arc::clone(&SCHEMA)
}
