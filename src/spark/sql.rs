//! The statements.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};

use super::{
    declaration::declaration,
    names::{identifier, literal},
};
use crate::{
    fhir::TransactionTime,
    table::{OPERATION, SEEN_HASH, SEEN_TRANSACTION_TIME, Staged, TARGET_ID, TableDefinition},
};

/// How many commits of the history are read at first.
pub const RECENT_COMMITS: usize = 50;

pub fn detail(table: &str) -> String {
    format!("DESCRIBE DETAIL {table}")
}

/// All commits without a limit.
pub fn history(table: &str, limit: Option<usize>) -> String {
    let limit = limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default();
    format!("DESCRIBE HISTORY {table}{limit}")
}

pub fn columns(table: &str) -> String {
    format!("SELECT * FROM {table} LIMIT 0")
}

pub fn row_count(table: &str) -> String {
    format!("SELECT count(*) AS rows FROM {table}")
}

/// `None` where a column has a type that Spark does not.
pub fn create(table: &str, definition: &TableDefinition, properties: &[(&str, String)]) -> Option<String> {
    let columns: Option<Vec<_>> = definition.schema.fields().iter().map(|field| declaration(field)).collect();
    let columns = columns?.join(", ");
    let properties = pairs(properties);
    Some(format!("CREATE TABLE IF NOT EXISTS {table} ({columns}) USING DELTA TBLPROPERTIES ({properties})"))
}

/// The columns of the definition that `there` lacks.
pub fn missing_columns<'a>(definition: &'a TableDefinition, there: &'a Schema) -> impl Iterator<Item = &'a Field> {
    // Spark's names of columns are not case-sensitive.
    let known: BTreeSet<_> = there.fields().iter().map(|field| field.name().to_lowercase()).collect();
    let fields = definition.schema.fields().iter().map(AsRef::as_ref);
    fields.filter(move |field| !known.contains(&field.name().to_lowercase()))
}

/// `None` where nothing is missing, or where a column has a type that Spark does not.
pub fn add_columns(table: &str, definition: &TableDefinition, there: &Schema) -> Option<String> {
    let columns: Option<Vec<_>> = missing_columns(definition, there).map(declaration).collect();
    let columns = columns.filter(|columns| !columns.is_empty())?.join(", ");
    Some(format!("ALTER TABLE {table} ADD COLUMNS ({columns})"))
}

pub fn set_properties(table: &str, properties: &[(&str, String)]) -> String {
    format!("ALTER TABLE {table} SET TBLPROPERTIES ({})", pairs(properties))
}

fn pairs(properties: &[(&str, String)]) -> String {
    let pairs = properties.iter().map(|(name, value)| format!("{} = {}", literal(name), literal(value)));
    pairs.collect::<Vec<_>>().join(", ")
}

/// A table at one version, of which the rows of one source are read.
#[derive(Clone, Copy)]
pub struct AtVersion<'a> {
    pub table: &'a str,
    pub version: u64,
    pub source: &'a str,
}

impl AtVersion<'_> {
    fn from(self) -> String {
        format!("{} VERSION AS OF {} AS t", self.table, self.version)
    }

    fn of_source(self) -> String {
        format!("t.`_sync_source` = {}", literal(self.source))
    }

    /// The keys of the rows whose ids are staged, once for each row. The columns of the result: `id`, `hash`,
    /// `transaction_time`, and `last_updated`, `version_id` and `subsetted`, or `meta` as JSON, or both: of a row that
    /// has it, `meta` counts.
    pub fn stored_rows(self, there: &Schema, staged_ids: &str, portion: Portion) -> String {
        format!(
            "SELECT t.`id` AS id, t.`_sync_hash` AS hash, unix_micros(t.`_sync_transaction_time`) AS transaction_time, \
             {} FROM {} LEFT SEMI JOIN {staged_ids} AS k ON t.`id` = k.`id` WHERE {}{}",
            version(there),
            self.from(),
            self.of_source(),
            portion.condition()
        )
    }

    /// How many rows of the source the table has, as `rows`.
    pub fn stored_count(self) -> String {
        format!("SELECT count(*) AS rows FROM {} WHERE {}", self.from(), self.of_source())
    }

    /// How many rows the ids of [`Self::missing`] have, as `rows`.
    pub fn missing_count(self, staged_ids: Option<&str>, compared_until: Option<TransactionTime>) -> String {
        let ids = self.missing_ids(staged_ids, compared_until, "");
        format!("SELECT sum(copies) AS rows FROM (SELECT count(*) AS copies {ids})")
    }

    /// The ids that are not among the staged ids, without those of which a later export brought a row. Without staged ids
    /// all are missing. The columns of the result: `copies`, the number of rows, and what a single one has, `hash` and
    /// `transaction_time`; `id`.
    pub fn missing(
        self,
        staged_ids: Option<&str>,
        compared_until: Option<TransactionTime>,
        portion: Portion,
    ) -> String {
        format!(
            "SELECT count(*) AS copies, min(t.`_sync_hash`) AS hash, unix_micros(min(t.`_sync_transaction_time`)) AS \
             transaction_time, t.`id` AS id {}",
            self.missing_ids(staged_ids, compared_until, &portion.condition())
        )
    }

    fn missing_ids(self, staged_ids: Option<&str>, compared_until: Option<TransactionTime>, portion: &str) -> String {
        let newest = "max(t.`_sync_transaction_time`)";
        let or_earlier = compared_until.map(|at| format!(" OR unix_micros({newest}) <= {}", at.as_micros()));
        let or_earlier = or_earlier.unwrap_or_default();
        let others = staged_ids.map(|ids| format!(" LEFT ANTI JOIN {ids} AS k ON t.`id` = k.`id`")).unwrap_or_default();
        format!(
            "FROM {}{others} WHERE {} AND t.`id` IS NOT NULL{portion} GROUP BY t.`id` HAVING {newest} IS NULL{or_earlier}",
            self.from(),
            self.of_source()
        )
    }
}

/// One of several portions of the rows, by the hash of their id: no answer of Spark should be too large. All rows of an
/// id are in the same one.
#[derive(Clone, Copy)]
pub struct Portion {
    number: u64,
    of: u64,
}

impl Portion {
    /// As many as are needed for `rows` where each has about `max_rows`; at least one.
    pub fn all(rows: u64, max_rows: u64) -> impl Iterator<Item = Self> {
        let of = rows.div_ceil(max_rows.max(1)).max(1);
        (0..of).map(move |number| Self { number, of })
    }

    fn condition(self) -> String {
        if self.of == 1 { String::new() } else { format!(" AND pmod(xxhash64(t.`id`), {}) = {}", self.of, self.number) }
    }
}

/// What decides which copy of a resource is the newer one, as the columns of the table have it. Rows of before `typed`
/// have nothing in the columns that were added, but their line.
fn version(there: &Schema) -> String {
    let line = there.field_with_name("resource_json").is_ok().then_some("get_json_object(t.`resource_json`, '$.meta')");
    let meta = there.field_with_name("meta").map(Field::data_type);
    let Ok(DataType::Struct(fields)) = meta else {
        return format!("{} AS meta", line.unwrap_or("CAST(NULL AS STRING)"));
    };
    let of = |name: &str| fields.find(name).map(|(_, field)| field.data_type());
    let last_updated = match of("lastUpdated") {
        Some(DataType::Timestamp(TimeUnit::Microsecond, Some(_))) => "unix_micros(t.`meta`.`lastUpdated`)",
        _ => "CAST(NULL AS BIGINT)",
    };
    let version_id = if of("versionId").is_some() { "t.`meta`.`versionId`" } else { "CAST(NULL AS STRING)" };
    let subsetted = match of("tag") {
        Some(DataType::List(_)) => "exists(t.`meta`.`tag`, tag -> tag.`code` = 'SUBSETTED')",
        _ => "false",
    };
    let untyped = line.map(|line| format!(", CASE WHEN t.`meta` IS NULL THEN {line} END AS meta")).unwrap_or_default();
    format!("{last_updated} AS last_updated, {version_id} AS version_id, {subsetted} AS subsetted{untyped}")
}

/// What a MERGE fails with that finds another row than the one that was decided about.
pub const CHANGED: &str = "fhir-sync: the table has changed";

/// What a MERGE fails with that finds other staged files than were written for it: the next run removes what a killed
/// one has staged, and its MERGE may have begun.
pub const INCOMPLETE: &str = "fhir-sync: staged rows are missing";

/// Applies the rows that are staged in `place`. `columns` are all columns of the table that are ours, `staged` says which
/// of them staged rows have: the others are null in all of them. A row that is not the one that was decided about fails
/// the statement, and so does another number of staged rows.
pub fn merge(table: &str, source: &str, place: &str, columns: &[String], staged: &Staged) -> String {
    let Staged { rows, columns: staged, .. } = staged;
    let is_staged: BTreeSet<_> = staged.iter().collect();
    let set = columns.iter().map(|name| match (identifier(name), is_staged.contains(name)) {
        (name, true) => format!("t.{name} = s.{name}"),
        (name, false) => format!("t.{name} = NULL"),
    });
    let set = set.collect::<Vec<_>>().join(", ");
    let names = staged.iter().map(|name| identifier(name)).collect::<Vec<_>>();
    let values = names.iter().map(|name| format!("s.{name}")).collect::<Vec<_>>().join(", ");
    let (names, changed, source) = (names.join(", "), literal(CHANGED), literal(source));
    let incomplete = literal(INCOMPLETE);
    let operation = format!("s.`{OPERATION}`");
    format!(
        "MERGE INTO {table} AS t USING (SELECT * FROM {place} WHERE CASE WHEN (SELECT count(*) FROM {place}) = {rows} \
         THEN true ELSE CAST(raise_error({incomplete}) AS BOOLEAN) END) AS s \
         ON t.`id` = s.`{TARGET_ID}` AND t.`_sync_source` = {source} \
         WHEN MATCHED AND ({operation} = 'insert' OR ({operation} <> 'delete-all' \
         AND NOT (t.`_sync_hash` <=> s.`{SEEN_HASH}` \
         AND t.`_sync_transaction_time` <=> s.`{SEEN_TRANSACTION_TIME}`))) \
         THEN UPDATE SET t.`id` = raise_error({changed}) \
         WHEN MATCHED AND {operation} IN ('delete', 'delete-all') THEN DELETE \
         WHEN MATCHED THEN UPDATE SET {set} \
         WHEN NOT MATCHED AND {operation} <> 'insert' THEN INSERT (`id`) VALUES (raise_error({changed})) \
         WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"
    )
}

/// A commit that changes no row.
pub fn merge_of_nothing(table: &str) -> String {
    format!(
        "MERGE INTO {table} AS t USING (SELECT CAST(NULL AS STRING) AS id WHERE false) AS s ON t.`id` = s.`id` \
         WHEN MATCHED THEN DELETE"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        fhir::ResourceType,
        resource::{Layout, Options, Shape},
        table::{Counts, Expected},
    };

    fn schema() -> Schema {
        let shape = Shape::of(ResourceType::PATIENT, Options { layout: Layout::Pathling, raw_json: true });
        shape.schema().as_ref().clone()
    }

    const AT: AtVersion<'_> = AtVersion { table: "delta.`/l/Patient.parquet`", version: 7, source: "o'hara" };

    fn portions<const N: usize>(rows: u64, max_rows: u64) -> [Portion; N] {
        Portion::all(rows, max_rows).collect::<Vec<_>>().try_into().ok().unwrap()
    }

    #[test]
    fn a_merge_changes_only_the_rows_that_were_decided_about() {
        let columns = ["id", "_sync_hash", "gender", "birthDate"].map(str::to_owned);
        let staged = Staged {
            rows: 3,
            columns: ["id", "_sync_hash", "gender"].map(str::to_owned).to_vec(),
            counts: Counts::default(),
            expected: Expected::default(),
        };
        let text = merge("`m`.`f`.`Patient`", "o'hara", "parquet.`/l/rows`", &columns, &staged);
        assert_eq!(
            text,
            "MERGE INTO `m`.`f`.`Patient` AS t USING (SELECT * FROM parquet.`/l/rows` WHERE CASE WHEN (SELECT \
             count(*) FROM parquet.`/l/rows`) = 3 THEN true ELSE CAST(raise_error('fhir-sync: staged rows are missing') \
             AS BOOLEAN) END) AS s ON t.`id` = s.`__staged_target_id` AND t.`_sync_source` = 'o\\'hara' WHEN MATCHED AND (s.`__staged_operation` = \
             'insert' OR (s.`__staged_operation` <> 'delete-all' AND NOT (t.`_sync_hash` <=> s.`__staged_seen_hash` AND \
             t.`_sync_transaction_time` <=> s.`__staged_seen_transaction_time`))) THEN UPDATE SET t.`id` = \
             raise_error('fhir-sync: the table has changed') WHEN MATCHED AND s.`__staged_operation` IN ('delete', \
             'delete-all') THEN DELETE WHEN MATCHED THEN UPDATE SET t.`id` = s.`id`, t.`_sync_hash` = s.`_sync_hash`, \
             t.`gender` = s.`gender`, t.`birthDate` = NULL WHEN NOT MATCHED AND s.`__staged_operation` <> 'insert' THEN \
             INSERT (`id`) VALUES (raise_error('fhir-sync: the table has changed')) WHEN NOT MATCHED THEN INSERT \
             (`id`, `_sync_hash`, `gender`) VALUES (s.`id`, s.`_sync_hash`, s.`gender`)"
        );
    }

    #[test]
    fn the_keys_of_stored_rows_are_read_from_the_columns_that_the_table_has() {
        let [all] = portions(5, 5);
        let typed = AT.stored_rows(&schema(), "parquet.`/l/ids`", all);
        assert_eq!(
            typed,
            "SELECT t.`id` AS id, t.`_sync_hash` AS hash, unix_micros(t.`_sync_transaction_time`) AS transaction_time, \
             unix_micros(t.`meta`.`lastUpdated`) AS last_updated, t.`meta`.`versionId` AS version_id, \
             exists(t.`meta`.`tag`, tag -> tag.`code` = 'SUBSETTED') AS subsetted, CASE WHEN t.`meta` IS NULL THEN \
             get_json_object(t.`resource_json`, '$.meta') END AS meta FROM delta.`/l/Patient.parquet` VERSION AS OF 7 AS t LEFT SEMI JOIN parquet.`/l/ids` AS k ON t.`id` = k.`id` WHERE t.`_sync_source` = \
             'o\\'hara'"
        );
        let lines = Schema::new(vec![Field::new("resource_json", DataType::Utf8, true)]);
        let untyped = AT.stored_rows(&lines, "parquet.`/l/ids`", all);
        assert!(untyped.contains("get_json_object(t.`resource_json`, '$.meta') AS meta"), "{untyped}");
        assert!(AT.stored_rows(&Schema::empty(), "x", all).contains("CAST(NULL AS STRING) AS meta"));
    }

    #[test]
    fn rows_that_a_later_export_brought_are_not_missing() {
        let at = TransactionTime::from_micros(5);
        let [all] = portions(0, 5);
        let some = AT.missing(Some("parquet.`/l/ids`"), at, all);
        assert!(some.contains("LEFT ANTI JOIN parquet.`/l/ids`") && some.ends_with("<= 5"), "{some}");
        let without_ids = AT.missing(None, None, all);
        let ends = without_ids.ends_with("HAVING max(t.`_sync_transaction_time`) IS NULL");
        assert!(!without_ids.contains("JOIN") && ends, "{without_ids}");
        let counted = AT.missing_count(Some("parquet.`/l/ids`"), at);
        assert!(counted.ends_with(&format!(" FROM {})", some.split_once(" FROM ").unwrap().1)), "{counted}");
    }

    #[test]
    fn rows_that_are_too_many_for_one_answer_are_asked_for_in_portions_by_their_ids() {
        let [first, second] = portions(6, 5);
        let of = |portion| AT.missing(None, None, portion);
        assert!(of(first).contains(" AND pmod(xxhash64(t.`id`), 2) = 0 GROUP BY "), "{}", of(first));
        assert!(AT.stored_rows(&schema(), "x", second).ends_with(" AND pmod(xxhash64(t.`id`), 2) = 1"));
    }

    #[test]
    fn a_table_is_created_with_all_columns_and_gains_those_that_it_lacks() {
        let definition =
            TableDefinition { schema: Arc::new(schema()), leading: 4, properties: vec![("p", "it's".to_owned())] };
        let text = create("t", &definition, &definition.properties).unwrap();
        assert!(text.starts_with("CREATE TABLE IF NOT EXISTS t (`id` STRING, `_sync_source` STRING"), "{text}");
        assert!(text.ends_with("USING DELTA TBLPROPERTIES ('p' = 'it\\'s')"));
        assert_eq!(add_columns("t", &definition, &schema()), None);
        let some = Schema::new(vec![Field::new("ID", DataType::Utf8, true)]);
        let text = add_columns("t", &definition, &some).unwrap();
        assert!(text.starts_with("ALTER TABLE t ADD COLUMNS (`_sync_source` STRING, `_sync_at` TIMESTAMP"), "{text}");
    }
}
