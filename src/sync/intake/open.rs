//! Opening: each type gets a change set and its share of the memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, RwLock},
};

use super::{Intake, Provenance, Tally, instalments::Instalments};
use crate::{
    export::{File, FileKind, Manifest},
    fhir::ResourceType,
    resource::Shape,
    sync::{Error, ResourceTable, RowsGo, columns},
    table::{self, ChangeSet, MemoryBudget, MemoryDemand},
};

/// An intake for each type. Their change sets share the memory.
pub async fn intakes(
    instalments: &Instalments<'_>,
    types: &[ResourceType],
    manifest: &Manifest,
    provenance: &Provenance,
) -> Result<BTreeMap<ResourceType, Intake>, Error> {
    let syncer = instalments.syncer();
    let mut opened = Vec::new();
    // A file without a type may hold lines of any.
    let has_mixed = manifest.output.iter().any(|file| file.kind.resource_type().is_none());
    let mut demand = MemoryDemand {
        types: types.len(),
        waiting: 0,
        first_loads: 0,
        at_once: syncer.config.parallel_downloads,
        read_at_once: syncer.config.parallel_upserts,
    };
    for resource_type in types {
        let shape = syncer.shape(*resource_type).await?;
        let is_read = |file: &&File| file.kind == FileKind::Of(*resource_type) && !instalments.is_finished(file);
        let files = manifest.output.iter().filter(is_read).count();
        // Without files there is nothing to write before the commit, which will open the table, or create it.
        let table =
            if files == 0 && !has_mixed { None } else { Some(table(instalments, *resource_type, &shape).await) };
        match &table {
            Some(Ok((_, RowsGo::IntoDataFiles))) => demand.first_loads += 1,
            Some(Ok((_, RowsGo::IntoSpool)) | Err(_)) => demand.waiting += 1,
            None => {}
        }
        opened.push((*resource_type, shape, files as u64, table));
    }
    let budget = MemoryBudget::of(syncer.config.change_set_memory_bytes, demand);
    let spool_folder = &syncer.config.spool_folder;
    let mut intakes = BTreeMap::new();
    for (resource_type, shape, files_left, table) in opened {
        let schema = shape.schema();
        let changes = match table {
            Some(Ok((table, rows_go))) => table.change_set(rows_go, &schema, budget, spool_folder),
            Some(Err(error)) => Err(error),
            None => Ok(ChangeSet::new(&schema, MemoryBudget { waiting_bytes: 0, ..budget }, spool_folder)),
        };
        let (changes, failure) = match changes {
            Ok(changes) => (changes, None),
            Err(error) => (ChangeSet::new(&schema, budget, spool_folder), Some(error.into())),
        };
        let before = instalments.before(resource_type);
        let tally = Mutex::new(Tally { before, files_left, failure, ..Tally::default() });
        let decoder = provenance.decoder(shape);
        let (changes, spool_folder) = (RwLock::new(Some(changes)), spool_folder.clone());
        let is_member_list = resource_type == ResourceType::PATIENT && instalments.is_of_group();
        let patients = is_member_list.then(Mutex::default);
        intakes.insert(resource_type, Intake { decoder, changes, budget, spool_folder, tally, patients });
    }
    Ok(intakes)
}

/// Opens the table. If it has no rows, or none but those of earlier instalments of its first load, rows become data files
/// while they arrive.
async fn table(
    instalments: &Instalments<'_>,
    resource_type: ResourceType,
    shape: &Shape,
) -> Result<(ResourceTable, RowsGo), table::Error> {
    let engine = &instalments.syncer().engine;
    let table = engine.open_or_create(resource_type, &columns::definition(shape)).await?;
    let rows_go = table.rows_go(instalments.continues_first_load(resource_type)).await?;
    Ok((table, rows_go))
}
