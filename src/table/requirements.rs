//! What a table asks of its writers. A demand that we cannot meet is named, with the way out, before anything is written.

use arrow::datatypes::SchemaRef;

use super::{
    Error, Table, TableName,
    date_partition::DatePartition,
    properties::{APPEND_ONLY, COLUMN_MAPPING_MODE, CONSTRAINT_PREFIX, PARTITION_DATE},
    tombstones,
};

/// What a writer must do for these, we do; or it asks for something only when a property or a column says so, which is
/// looked at below.
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
/// Of the old, numbered protocol, up to this version: the features above, and change data feed.
const NUMBERED: i32 = 4;

impl Table {
    /// May we write to this table as it is now? `columns` are those of the rows that are to be written.
    pub(super) fn check_writable(&self, columns: &SchemaRef) -> Result<(), Error> {
        let there = self.columns()?;
        if let Some(missing) = columns.fields().iter().find(|field| there.field_with_name(field.name()).is_err()) {
            return Err(Error::NotOurs {
                place: self.place.clone(),
                reason: format!("it has no column {}", missing.name()),
            });
        }
        self.check_partitions()?;
        self.check_features()
    }

    /// Is there no demand on writers that we cannot meet?
    pub(super) fn check_features(&self) -> Result<(), Error> {
        let there = self.columns()?;
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        if let Some(feature) = self.features()?.into_iter().find(|feature| !KNOWN.contains(&feature.as_str())) {
            return Err(self.unsupported(
                &format!("the table feature {feature}"),
                "drop it with ALTER TABLE … DROP FEATURE, or move the table away, so that it is made anew",
            ));
        }
        let properties = snapshot.metadata().configuration();
        let is = |name: &str, value: &str| properties.get(name).is_some_and(|found| found.eq_ignore_ascii_case(value));
        let unset = "unset that table property, or move the table away, so that it is made anew";
        if is(APPEND_ONLY, "true") {
            return Err(self.unsupported(APPEND_ONLY, unset));
        }
        if properties.get(COLUMN_MAPPING_MODE).is_some_and(|mode| mode != "none") {
            return Err(self.unsupported("column mapping", "move it away, so that it is made anew"));
        }
        if let Some(constraint) = properties.keys().find(|name| name.starts_with(CONSTRAINT_PREFIX)) {
            return Err(self.unsupported(constraint, "drop it with ALTER TABLE … DROP CONSTRAINT"));
        }
        let demanding = ["delta.invariants", "delta.generationExpression", "delta.identity.start"];
        let demand =
            |field: &&arrow::datatypes::FieldRef| demanding.iter().any(|key| field.metadata().contains_key(*key));
        match there.fields().iter().find(demand) {
            Some(field) => Err(self.unsupported(
                &format!("the column {}, which has an invariant or is generated", field.name()),
                "move it away, so that it is made anew",
            )),
            None => Ok(()),
        }
    }

    /// Is the table partitioned as the configuration says? Neither can follow the other: the rows would have to be written
    /// again, all of them.
    pub(super) fn check_partitions(&self) -> Result<(), Error> {
        let there = self.partition_columns()?;
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let date = snapshot.metadata().configuration().get(PARTITION_DATE);
        let of_dates = self.partitioned_by().into_iter().flat_map(DatePartition::columns);
        let of_deletions = (self.name == TableName::Tombstones).then_some(tombstones::PARTITION);
        let wanted: Vec<_> = of_deletions.into_iter().chain(of_dates).collect();
        if there == wanted && date == self.partitioned_by().map(|by| &by.date) {
            return Ok(());
        }
        let named = |columns: &[String], date: Option<&String>| match (columns, date) {
            ([], _) => "no partition columns".to_owned(),
            (columns, None) => format!("the partition columns {}", columns.join(", ")),
            (columns, Some(date)) => format!("the partition columns {} of {date}", columns.join(", ")),
        };
        let wanted: Vec<_> = wanted.into_iter().map(str::to_owned).collect();
        let feature = format!(
            "{} where the configuration says {}",
            named(&there, date),
            named(&wanted, self.partitioned_by().map(|by| &by.date))
        );
        let way_out = "set partition_by and partition_date of its [tables.<type>] to what it has, or move it away, so that it is made anew";
        Err(self.unsupported(&feature, way_out))
    }

    pub(super) fn has_feature(&self, name: &str) -> Result<bool, Error> {
        Ok(self.features()?.iter().any(|feature| feature == name))
    }

    /// What the table asks of writers, by the protocol's names.
    fn features(&self) -> Result<Vec<String>, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let protocol = snapshot.protocol();
        let features = protocol.writer_features().unwrap_or_default();
        let mut names: Vec<_> = features.iter().map(ToString::to_string).collect();
        if features.is_empty() && protocol.min_writer_version() > NUMBERED {
            names.push(format!("set of writer version {}", protocol.min_writer_version()));
        }
        Ok(names)
    }

    fn unsupported(&self, feature: &str, way_out: &'static str) -> Error {
        Error::Unsupported { place: self.place.clone(), feature: feature.to_owned(), way_out }
    }
}
