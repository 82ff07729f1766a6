//! deltalake's own merge, with the same changes and the same condition.

use std::{path::Path, sync::Arc};

use deltalake::{
    DeltaTableBuilder,
    datafusion::prelude::{SessionContext, col},
};
use fhir_sync::{
    fhir::ResourceType,
    resource::{Layout, Options, Shape},
};

use super::ours::{Batches, decoder, ids};
use crate::child::Work;

/// Folder, lines, rows of the table, changes.
pub fn run(arguments: &[String]) -> anyhow::Result<Work> {
    let [folder, lines, rows, changes] = arguments else { anyhow::bail!("four arguments") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(merge(folder, lines, rows.parse()?, changes.parse()?))
}

async fn merge(folder: &str, lines: &str, rows: u64, changes: u64) -> anyhow::Result<Work> {
    const CHANGED: i64 = 1_800_000_001_000_000;
    let shape = Shape::of(ResourceType::OBSERVATION, Options { layout: Layout::Pathling, raw_json: true });
    let decoder = decoder(&shape, CHANGED);
    let mut batches = Batches { lines: Path::new(lines), reader: None, ids: ids(rows, changes), number: 0 };
    let mut source = Vec::new();
    loop {
        let (_, lines) = batches.next(CHANGED)?;
        if lines.is_empty() {
            break;
        }
        source.push(decoder.decode(&lines)?.rows);
    }
    let source = SessionContext::new().read_batches(source)?;
    let folder = Path::new(folder).join("Observation.parquet").canonicalize()?;
    let url = deltalake::ensure_table_uri(folder.display().to_string())?;
    let table = DeltaTableBuilder::from_url(url)?.load().await?;
    let names: Vec<_> = shape.schema().fields().iter().map(|field| field.name().clone()).collect();
    let quoted = |side: &str, name: &str| col(format!("{side}.\"{name}\""));
    let update = Arc::new(names.clone());
    let (_, metrics) = table
        .merge(source, quoted("target", "id").eq(quoted("source", "id")))
        .with_source_alias("source")
        .with_target_alias("target")
        .when_matched_update(|clause| {
            let clause = clause.predicate(quoted("target", "_sync_hash").not_eq(quoted("source", "_sync_hash")));
            update.iter().fold(clause, |clause, name| clause.update(format!("\"{name}\""), quoted("source", name)))
        })?
        .when_not_matched_insert(|clause| {
            names.iter().fold(clause, |clause, name| clause.set(format!("\"{name}\""), quoted("source", name)))
        })?
        .await?;
    let rows = (metrics.num_target_rows_inserted + metrics.num_target_rows_updated) as u64;
    Ok(Work { bytes_in: 0, bytes_out: 0, rows })
}
