//! Evolution: a table gains the columns and properties that it lacks, in one commit that changes no row.
//!
//! Only whole columns are added; structs keep the fields that they have. A property that somebody has set stays as it
//! is.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::{FieldRef, Schema};
use deltalake::{
    kernel::{Action, Metadata, Protocol, StructField, StructType},
    operations::create::CreateBuilder,
    protocol::DeltaOperation,
};
use serde_json::{Value, json};

use super::{
    Error, Root, Table, TableDefinition, TableName, UpdateMode,
    commit::{self, CommitOutcome},
    properties::{ENABLE_CHANGE_DATA_FEED, ENABLE_DELETION_VECTORS, PARTITION_DATE},
    requirements::{check_features, check_partitions},
    root::{OWN_COLUMNS, columns, kernel_schema},
};
use crate::fhir::ResourceType;

/// How often a commit is tried because other writers commit at the same moment.
const MAX_ATTEMPTS: u32 = 5;

impl Root {
    /// The table of a resource type. If there is none, an empty first commit creates it.
    pub async fn open_or_create(
        &self,
        resource_type: ResourceType,
        definition: &TableDefinition,
    ) -> Result<Table, Error> {
        let name = TableName::from(resource_type);
        let place = self.place_of(&name.directory());
        let by = self.partitions.get(&resource_type);
        if let Some(by) = by
            && definition.schema.field_with_name(&by.source()).is_err()
        {
            return Err(Error::Unsupported {
                place,
                feature: format!("partitions by {}, for which it has no column", by.date),
                way_out: "tables have typed columns only if the server speaks R4; remove its [tables.<type>]",
            });
        }
        if let Some(table) = self.open(resource_type).await? {
            return evolve(table, definition).await;
        }
        let schema = columns(definition, by);
        let schema = kernel_schema(&schema, &place)?;
        let of_partition = by.map(|by| (PARTITION_DATE, Some(by.date.clone())));
        let create = CreateBuilder::new()
            .with_table_name(name.as_str())
            .with_columns(schema.fields().cloned())
            .with_partition_columns(by.iter().flat_map(|by| by.columns()))
            .with_configuration(self.properties(definition).into_iter().chain(of_partition));
        // Another process may have created it at the same moment, with fewer columns.
        evolve(self.create(name, create).await?, definition).await
    }
}

/// Adds what the table lacks of `definition` and of the properties that the configuration asks for.
pub(super) async fn evolve(table: Table, definition: &TableDefinition) -> Result<Table, Error> {
    // A table without our own columns was created by another writer, and is not ours to change.
    let there = table.columns()?;
    if !definition.schema.fields().iter().take(OWN_COLUMNS).all(|field| there.field_with_name(field.name()).is_ok()) {
        return Ok(table);
    }
    check_partitions(&table)?;
    gain(table, |table| Changes::of(table, definition)).await
}

/// Adds the columns that a table lacks which is not of resources.
pub(super) async fn with_columns(table: Table, columns: &Schema) -> Result<Table, Error> {
    gain(table, |table| {
        let there = table.columns()?;
        let is_missing = |field: &&FieldRef| there.field_with_name(field.name()).is_err();
        Ok(Changes {
            columns: columns.fields().iter().filter(is_missing).cloned().collect(),
            properties: BTreeMap::new(),
        })
    })
    .await
}

async fn gain(mut table: Table, changes: impl Fn(&Table) -> Result<Changes, Error>) -> Result<Table, Error> {
    for _ in 0..MAX_ATTEMPTS {
        let changes = changes(&table)?;
        if changes.is_empty() {
            return Ok(table);
        }
        check_features(&table)?;
        let (actions, operation) = changes.actions(&table)?;
        tracing::info!(
            table = %table.name, columns = changes.columns.len(), properties = ?changes.switched_on(),
            "the table gains columns or properties"
        );
        match commit::attempt(&mut table, actions, operation, Vec::new(), BTreeMap::new()).await? {
            CommitOutcome::Committed { .. } => return Ok(table),
            CommitOutcome::Overtaken => tracing::warn!(table = %table.name, "another writer was faster, trying again"),
        }
    }
    Err(Error::Conflict { table: table.name, attempts: MAX_ATTEMPTS })
}

/// What a table lacks.
struct Changes {
    columns: Vec<FieldRef>,
    properties: BTreeMap<String, String>,
}

impl Changes {
    fn of(table: &Table, definition: &TableDefinition) -> Result<Self, Error> {
        let there = table.columns()?;
        let is_missing = |field: &&FieldRef| there.field_with_name(field.name()).is_err();
        let columns: Vec<_> = definition.schema.fields().iter().filter(is_missing).cloned().collect();
        let mut properties = BTreeMap::new();
        if !columns.is_empty() {
            properties.extend(definition.properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        }
        let snapshot = table.snapshot()?;
        let undecided = |property: &str| !snapshot.metadata().configuration().contains_key(property);
        // Dropping the feature leaves `checkpointProtection` behind.
        let wants_vectors = table.root.update_mode == UpdateMode::DeletionVectors;
        if wants_vectors && undecided(ENABLE_DELETION_VECTORS) && !table.has_feature("checkpointProtection")? {
            properties.insert(ENABLE_DELETION_VECTORS.to_owned(), "true".to_owned());
        }
        if table.root.change_data_feed && undecided(ENABLE_CHANGE_DATA_FEED) {
            properties.insert(ENABLE_CHANGE_DATA_FEED.to_owned(), "true".to_owned());
        }
        Ok(Self { columns, properties })
    }

    fn is_empty(&self) -> bool {
        self.columns.is_empty() && self.properties.is_empty()
    }

    fn switched_on(&self) -> Vec<&str> {
        self.properties.keys().map(String::as_str).filter(|name| name.starts_with("delta.")).collect()
    }

    /// The new metadata, the new protocol if it changes, and the operation that DESCRIBE HISTORY shows.
    fn actions(&self, table: &Table) -> Result<(Vec<Action>, DeltaOperation), Error> {
        let added = kernel_schema(&Schema::new(self.columns.clone()), &table.place)?;
        let added: Vec<StructField> = added.fields().cloned().collect();
        let snapshot = table.snapshot()?;
        let mut actions = vec![Action::Metadata(self.metadata(snapshot.metadata(), &added, table)?)];
        if let Some(protocol) = self.protocol(snapshot.protocol(), table)? {
            actions.push(Action::Protocol(protocol));
        }
        let operation = if added.is_empty() {
            DeltaOperation::SetTableProperties { properties: self.properties.clone().into_iter().collect() }
        } else {
            DeltaOperation::AddColumn { fields: added }
        };
        Ok((actions, operation))
    }

    // deltalake's builders for these two actions are not public.

    fn metadata(&self, before: &Metadata, added: &[StructField], table: &Table) -> Result<Metadata, Error> {
        let failed = |error: serde_json::Error| table.failed(error);
        let columns = before.parse_schema().map_err(|error| table.failed(error))?;
        let columns =
            StructType::try_new(columns.fields().chain(added).cloned()).map_err(|error| table.failed(error))?;
        let mut metadata = serde_json::to_value(before).map_err(failed)?;
        metadata["schemaString"] = serde_json::to_string(&columns).map_err(failed)?.into();
        for (name, value) in &self.properties {
            metadata["configuration"][name] = value.as_str().into();
        }
        serde_json::from_value(metadata).map_err(failed)
    }

    fn protocol(&self, before: &Protocol, table: &Table) -> Result<Option<Protocol>, Error> {
        let has = |property: &str| self.properties.contains_key(property);
        let (vectors, feed) = (has(ENABLE_DELETION_VECTORS), has(ENABLE_CHANGE_DATA_FEED));
        let protocol = serde_json::to_value(before).map_err(|error| table.failed(error))?;
        let after = with_features(&protocol, vectors, feed);
        if after == protocol {
            return Ok(None);
        }
        serde_json::from_value(after).map(Some).map_err(|error| table.failed(error))
    }
}

/// What each version of the numbered protocol requires of writers in addition to the version before.
/// <https://github.com/delta-io/delta/blob/master/PROTOCOL.md#valid-feature-names-in-table-features>
const NUMBERED: [(i64, &[&str]); 3] =
    [(2, &["appendOnly", "invariants"]), (3, &["checkConstraints"]), (4, &["changeDataFeed", "generatedColumns"])];

/// Deletion vectors need a protocol with named features; then all features that the version implied are named. The
/// change data feed alone does not need it.
fn with_features(protocol: &Value, vectors: bool, feed: bool) -> Value {
    let names = |key: &str| -> BTreeSet<String> {
        let features = protocol[key].as_array().into_iter().flatten();
        features.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
    };
    let version = protocol["minWriterVersion"].as_i64().unwrap_or_default();
    if version < 7 && !vectors {
        let mut protocol = protocol.clone();
        if feed && version < 4 {
            protocol["minWriterVersion"] = 4.into();
        }
        return protocol;
    }
    let (mut readers, mut writers) = (names("readerFeatures"), names("writerFeatures"));
    if version < 7 {
        let meant = NUMBERED.iter().filter(|(since, _)| *since <= version).flat_map(|(_, features)| *features);
        writers.extend(meant.map(|feature| (*feature).to_owned()));
    }
    if vectors {
        readers.insert("deletionVectors".to_owned());
        writers.insert("deletionVectors".to_owned());
    }
    if feed {
        writers.insert("changeDataFeed".to_owned());
    }
    let mut after = json!({
        "minReaderVersion": protocol["minReaderVersion"], "minWriterVersion": 7, "writerFeatures": writers,
    });
    if !readers.is_empty() {
        after["minReaderVersion"] = 3.into();
        after["readerFeatures"] = json!(readers);
    }
    // Compared as sets: the protocol does not order features.
    let unchanged = version >= 7 && names("readerFeatures") == readers && names("writerFeatures") == writers;
    if unchanged { protocol.clone() } else { after }
}
