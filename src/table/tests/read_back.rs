//! Reads a table back with the Delta kernel's own reader, which shares no code with ours.

use std::{path::Path, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::{concat_batches, sort_to_indices, take_record_batch},
    datatypes::Schema,
    util::pretty::pretty_format_batches,
};
use buoyant_kernel::{
    DeltaResult, Engine, EngineData, Snapshot, engine::arrow_data::ArrowEngineData, table_changes::TableChanges,
};
use buoyant_kernel_engine::{DefaultEngineBuilder, storage::store_from_url};
use url::Url;

/// The rows of the newest version, in the order of the table, with these columns, or all of them where none is named.
/// `Err` where a column or the table is not there.
pub fn read(table: &Path, columns: &[&str]) -> DeltaResult<RecordBatch> {
    let (url, engine) = open(table)?;
    let snapshot = Snapshot::builder_for(url).build(engine.as_ref())?;
    let schema = if columns.is_empty() { snapshot.schema() } else { snapshot.schema().project(columns)? };
    let scan = snapshot.scan_builder().with_schema(schema).build()?;
    one_batch(scan.execute(engine)?)
}

/// The change data feed from `version` on, with these columns.
pub fn changes(table: &Path, version: u64, columns: &[&str]) -> DeltaResult<RecordBatch> {
    let (url, engine) = open(table)?;
    let changes = TableChanges::try_new(url, engine.as_ref(), version, None)?;
    let schema = changes.schema().project(columns)?;
    let scan = changes.into_scan_builder().with_schema(schema).build()?;
    one_batch(scan.execute(engine)?)
}

/// The rows ordered by their id, drawn as a table of text.
pub fn draw(rows: &RecordBatch) -> String {
    let Some(ids) = rows.column_by_name("id") else { return String::new() };
    let ordered = sort_to_indices(ids, None, None).and_then(|order| take_record_batch(rows, &order));
    pretty_format_batches(&[ordered.unwrap()]).unwrap().to_string()
}

fn open(table: &Path) -> DeltaResult<(Url, Arc<dyn Engine>)> {
    let url = Url::from_directory_path(table.canonicalize()?).unwrap();
    let engine = DefaultEngineBuilder::new(store_from_url(&url)?).build();
    Ok((url, Arc::new(engine)))
}

fn one_batch(rows: impl Iterator<Item = DeltaResult<Box<dyn EngineData>>>) -> DeltaResult<RecordBatch> {
    let batch = |rows: DeltaResult<_>| Ok(RecordBatch::from(ArrowEngineData::try_from_engine_data(rows?)?));
    let batches: Vec<RecordBatch> = rows.map(batch).collect::<DeltaResult<_>>()?;
    let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
    Ok(concat_batches(&schema, &batches)?)
}
