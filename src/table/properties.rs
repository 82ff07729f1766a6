//! Table properties: their names in the log.

/// If true, deleted rows may be marked in deletion vectors.
pub(super) const ENABLE_DELETION_VECTORS: &str = "delta.enableDeletionVectors";
/// If true, writers record what a commit did to each row.
pub(super) const ENABLE_CHANGE_DATA_FEED: &str = "delta.enableChangeDataFeed";
/// How many columns, from the left, have statistics in the log.
pub(super) const INDEXED_COLUMNS: &str = "delta.dataSkippingNumIndexedCols";
/// After how many commits a writer makes a checkpoint.
pub(super) const CHECKPOINT_INTERVAL: &str = "delta.checkpointInterval";
/// If true, no row may be removed.
pub(super) const APPEND_ONLY: &str = "delta.appendOnly";
/// Whether columns have other names in the data files; `none` where not.
pub(super) const COLUMN_MAPPING_MODE: &str = "delta.columnMapping.mode";
/// Each property that begins so is an SQL condition that rows must meet.
pub(super) const CONSTRAINT_PREFIX: &str = "delta.constraints.";
/// The date whose parts are the partition columns; a property of our own.
pub(super) const PARTITION_DATE: &str = "fhirsync.partitionDate";
