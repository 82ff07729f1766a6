//! What a table requires of its writers. A requirement that we cannot meet is an error, with the way out, before
//! anything is written. A commit needs a [`WritableVersion`], so none is made on a version that was not checked.

use arrow::datatypes::{FieldRef, SchemaRef};
use buoyant_kernel::table_properties::TableProperties;
use deltalake::kernel::{EagerSnapshot, Metadata, Protocol, transaction::TableReference};
use serde_json::json;

use super::{
    Error, Table,
    data_file::fill::children,
    date_partition::DatePartition,
    properties::{APPEND_ONLY, COLUMN_MAPPING_MODE, CONSTRAINT_PREFIX, PARTITION_DATE},
};

/// Features that we support, and features that require something only if a property or a column says so, which is
/// checked below.
const KNOWN: [&str; 10] = [
    "appendOnly",
    "invariants",
    "checkConstraints",
    "changeDataFeed",
    "generatedColumns",
    "columnMapping",
    "deletionVectors",
    "v2Checkpoint",
    "timestampNtz",
    "checkpointProtection",
];
/// May we write to this table as it is now? `columns` are those of the rows that are to be written.
pub(super) fn check_writable(table: &Table, columns: &SchemaRef) -> Result<(), Error> {
    let there = table.columns()?;
    if let Some(missing) = columns.fields().iter().find(|field| there.field_with_name(field.name()).is_err()) {
        return Err(Error::NotOurs {
            place: table.place.clone(),
            reason: format!("it has no column {}", missing.name()),
        });
    }
    check_partitions(table)?;
    check_features(table)
}

/// Can we meet all requirements of writers?
pub(super) fn check_features(table: &Table) -> Result<(), Error> {
    let there = table.columns()?;
    let snapshot = table.snapshot()?;
    if let Some(feature) = table.features()?.into_iter().find(|feature| !KNOWN.contains(&feature.as_str())) {
        return Err(unsupported(
            table,
            &format!("the table feature {feature}"),
            "drop it with ALTER TABLE … DROP FEATURE, or move the table away, so that it is recreated",
        ));
    }
    let properties = snapshot.metadata().configuration();
    let unset = "unset that table property, or move the table away, so that it is recreated";
    if table.property_is_true(APPEND_ONLY)? {
        return Err(unsupported(table, APPEND_ONLY, unset));
    }
    if properties.get(COLUMN_MAPPING_MODE).is_some_and(|mode| mode != "none") {
        return Err(unsupported(table, "column mapping", "move it away, so that it is recreated"));
    }
    if let Some(constraint) = properties.keys().find(|name| name.starts_with(CONSTRAINT_PREFIX)) {
        return Err(unsupported(table, constraint, "drop it with ALTER TABLE … DROP CONSTRAINT"));
    }
    match there.fields().iter().find(|field| is_demanding(field)) {
        Some(field) => Err(unsupported(
            table,
            &format!("the column {}, which has an invariant or is generated", field.name()),
            "move it away, so that it is recreated",
        )),
        None => Ok(()),
    }
}

/// What the metadata of a column, or of a field of one, asks of writers.
const DEMANDS: [&str; 3] = ["delta.invariants", "delta.generationExpression", "delta.identity.start"];

fn is_demanding(field: &FieldRef) -> bool {
    DEMANDS.iter().any(|demand| field.metadata().contains_key(*demand))
        || children(field.data_type()).iter().any(is_demanding)
}

/// The version of a table that a commit follows: we can meet all that it requires of writers.
///
/// deltalake without DataFusion refuses every table with invariants or a change data feed, because it leaves both to
/// DataFusion. A commit of ours needs neither: so this shows deltalake a protocol that requires nothing.
pub(super) struct WritableVersion {
    snapshot: EagerSnapshot,
    protocol: Protocol,
}

impl WritableVersion {
    /// The version that the table is at.
    pub fn check(table: &Table) -> Result<Self, Error> {
        check_features(table)?;
        let protocol = serde_json::from_value(json!({"minReaderVersion": 1, "minWriterVersion": 1}));
        let protocol = protocol.map_err(|error| table.failed(error))?;
        Ok(Self { snapshot: table.snapshot()?.snapshot().clone(), protocol })
    }
}

impl TableReference for WritableVersion {
    fn config(&self) -> &TableProperties {
        self.snapshot.table_properties()
    }

    fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    fn metadata(&self) -> &Metadata {
        self.snapshot.metadata()
    }

    fn eager_snapshot(&self) -> &EagerSnapshot {
        &self.snapshot
    }
}

/// Is the table partitioned as the configuration says? If not, neither can follow the other, because all rows would
/// have to be rewritten.
pub(super) fn check_partitions(table: &Table) -> Result<(), Error> {
    let there = table.partition_columns()?;
    let date = table.property(PARTITION_DATE)?;
    let of_dates = table.partitioned_by().into_iter().flat_map(DatePartition::columns);
    let wanted: Vec<_> = table.name.partition_column().into_iter().chain(of_dates).collect();
    if there == wanted && date == table.partitioned_by().map(|by| by.date.as_str()) {
        return Ok(());
    }
    let named = |columns: &[String], date: Option<&str>| match (columns, date) {
        ([], _) => "no partition columns".to_owned(),
        (columns, None) => format!("the partition columns {}", columns.join(", ")),
        (columns, Some(date)) => format!("the partition columns {} of {date}", columns.join(", ")),
    };
    let wanted: Vec<_> = wanted.into_iter().map(str::to_owned).collect();
    let feature = format!(
        "{} where the configuration says {}",
        named(&there, date),
        named(&wanted, table.partitioned_by().map(|by| by.date.as_str()))
    );
    let way_out = "set partition_by and partition_date of its [tables.<type>] to what it has, \
                   or move it away, so that it is recreated";
    Err(unsupported(table, &feature, way_out))
}

fn unsupported(table: &Table, feature: &str, way_out: &'static str) -> Error {
    Error::Unsupported { place: table.place.clone(), feature: feature.to_owned(), way_out }
}
