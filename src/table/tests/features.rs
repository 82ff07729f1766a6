//! Tables that require more than we can do are refused before anything is written, with the name of the requirement.

use arrow::datatypes::DataType;
use serde_json::{Value, json};

use super::*;

impl Lake {
    fn log(&self, version: u64) -> std::path::PathBuf {
        self.folder.path().join(format!("lake/{}.parquet/_delta_log/{version:020}.json", self.resource_type))
    }

    /// The actions of a commit, in their order.
    pub(super) fn actions(&self, version: u64) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log(version)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Commits these actions by hand, as another writer.
    fn commit(&self, version: u64, actions: &[Value]) {
        let text: Vec<_> = actions.iter().map(ToString::to_string).collect();
        std::fs::write(self.log(version), text.join("\n")).unwrap();
    }

    /// The error of an upsert after one more commit of another writer.
    async fn refusal(&self, protocol: Option<Value>, change: impl Fn(&mut Value)) -> String {
        self.table().await;
        require(&self.table_folder(), protocol, change);
        let table = self.root.open(self.resource_type).await.unwrap().unwrap();
        let changes = self.change_set(&[vec![line("a", 1, "")]], 5);
        let error = table.upsert(&changes, &upsert(5)).await.unwrap_err();
        assert!(!self.log(2).exists());
        refused(&error)
    }
}

/// Another writer changes the metadata of a table, and its protocol where one is given, in the next commit.
fn require(table: &Path, protocol: Option<Value>, change: impl Fn(&mut Value)) {
    let log = |version: u64| table.join(format!("_delta_log/{version:020}.json"));
    let created = std::fs::read_to_string(log(0)).unwrap();
    let created = created.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut metadata = created.into_iter().find(|action| !action["metaData"].is_null()).unwrap();
    change(&mut metadata["metaData"]);
    let info = json!({"commitInfo": {"timestamp": 1_700_000_000_000_i64, "operation": "SET TBLPROPERTIES"}});
    let protocol = protocol.map(|protocol| json!({"protocol": protocol}));
    let actions = [Some(info), protocol, Some(metadata)].into_iter().flatten();
    let actions: Vec<_> = actions.map(|action| action.to_string()).collect();
    let next = (0..100).find(|version| !log(*version).exists()).unwrap();
    std::fs::write(log(next), actions.join("\n")).unwrap();
}

fn refused(error: &Error) -> String {
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    error.to_string()
}

fn protocol(features: &[&str]) -> Value {
    let writer: Vec<_> = ["deletionVectors"].iter().chain(features).collect();
    json!({
        "minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors"], "writerFeatures": writer,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_table_feature_is_refused_by_name() {
    for feature in [
        "rowTracking",
        "domainMetadata",
        "clustering",
        "identityColumns",
        "icebergCompatV2",
        "allowColumnDefaults",
        "inCommitTimestamp",
        "futureFeature",
    ] {
        let features = if feature == "clustering" { vec![feature, "domainMetadata"] } else { vec![feature] };
        let error = Lake::new().refusal(Some(protocol(&features)), |_| {}).await;
        assert!(
            error.contains(feature) && error.contains("Patient.parquet") && error.contains("DROP FEATURE"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_property_that_cannot_be_respected_is_refused_by_name() {
    for (property, value, features) in [
        ("delta.appendOnly", "true", &["appendOnly"][..]),
        ("delta.constraints.adult", "birthDate IS NOT NULL", &["checkConstraints"]),
    ] {
        let change = |metadata: &mut Value| metadata["configuration"][property] = value.into();
        let error = Lake::new().refusal(Some(protocol(features)), change).await;
        assert!(error.contains(property), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_partitions_is_refused() {
    let error = Lake::new().refusal(None, |metadata| metadata["partitionColumns"] = json!(["gender"])).await;
    assert!(error.contains("partition columns"), "{error}");
}

/// Changes the metadata of the columns; the log holds the schema as text.
fn change_columns(metadata: &mut Value, change: impl Fn(usize, &mut Value)) {
    let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    let fields = schema["fields"].as_array_mut().unwrap();
    fields.iter_mut().enumerate().for_each(|(index, field)| change(index, field));
    metadata["schemaString"] = schema.to_string().into();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_with_an_invariant_or_a_generated_column_is_refused_by_name() {
    for (demand, value, feature) in [
        ("delta.invariants", r#"{"expression":{"expression":"gender = 'female'"}}"#, "invariants"),
        ("delta.generationExpression", "upper(id)", "generatedColumns"),
    ] {
        let change = |metadata: &mut Value| {
            change_columns(metadata, |_, field| {
                if field["name"] == "gender" {
                    field["metadata"][demand] = value.into();
                }
            });
        };
        let error = Lake::new().refusal(Some(protocol(&[feature])), change).await;
        assert!(error.contains("gender"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invariant_of_a_part_of_a_column_is_refused_by_the_name_of_the_column() {
    let change = |metadata: &mut Value| {
        change_columns(metadata, |_, field| {
            if field["name"] == "meta" {
                let invariant = r#"{"expression":{"expression":"meta.versionId IS NOT NULL"}}"#;
                field["type"]["fields"][1]["metadata"]["delta.invariants"] = invariant.into();
            }
        });
    };
    let error = Lake::new().refusal(Some(protocol(&["invariants"])), change).await;
    assert!(error.contains("column meta"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_are_not_added_to_a_table_that_requires_more_and_the_rows_of_the_deleted_stay() {
    let lake = Lake::new();
    let all = ["a", "b", "c"].map(|id| line(id, 1, "")).to_vec();
    lake.upsert(&[all], 5).await;
    lake.upsert(&[vec![deletion("a", None)]], 6).await;
    let deleted = lake.folder.path().join("lake").join(TableName::Tombstones.directory());
    require(&deleted, Some(protocol(&["rowTracking", "domainMetadata"])), |_| {});
    let files = |of: &Path| std::fs::read_dir(of).unwrap().count();
    let before = (files(&lake.table_folder()), files(&deleted.join("_delta_log")));
    let changes = lake.change_set(&[vec![deletion("b", None), line("c", 2, "")]], 7);
    let error = refused(&lake.table().await.upsert(&changes, &upsert(7)).await.unwrap_err());
    assert!(error.contains("rowTracking") && error.contains("_fhir_sync/deleted"), "{error}");
    assert_eq!((files(&lake.table_folder()), files(&deleted.join("_delta_log"))), before, "nothing is written");
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["b", "c"]);
    let without_deletions = lake.upsert(&[vec![line("c", 2, "")]], 8).await;
    assert_eq!(without_deletions.counts.updated, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_watermark_is_set_on_a_table_that_requires_more_also_not_after_another_writer_was_faster() {
    let lake = Lake::new();
    lake.upsert(&[], 5).await;
    let mut early = lake.table().await;
    require(&lake.table_folder(), Some(protocol(&["inCommitTimestamp"])), |_| {});
    let mut late = lake.root.open(patient()).await.unwrap().unwrap();
    for table in [&mut early, &mut late] {
        let error = refused(&table.set_watermark(APP_ID, time(2)).await.unwrap_err());
        assert!(error.contains("inCommitTimestamp"), "{error}");
    }
    assert!(!lake.log(3).exists());
}

/// What the error names, and the protocol and the change of the metadata that ask for it.
type Demand<'a> = (&'a str, Value, &'a dyn Fn(&mut Value));

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_requires_more_is_not_rebuilt() {
    let as_they_are = |metadata: &mut Value| map(metadata, &|name, _| name.to_owned());
    let append_only = |metadata: &mut Value| metadata["configuration"]["delta.appendOnly"] = "true".into();
    let demands: [Demand<'_>; 3] = [
        ("column mapping", mapped(), &as_they_are),
        ("delta.appendOnly", protocol(&["appendOnly"]), &append_only),
        ("rowTracking", protocol(&["rowTracking", "domainMetadata"]), &|_| {}),
    ];
    for (demand, protocol, change) in demands {
        let lake = Lake::new();
        lake.upsert(&[vec![line("a", 1, "")]], 5).await;
        require(&lake.table_folder(), Some(protocol), change);
        let table = lake.root.open(patient()).await.unwrap().unwrap();
        let decode = |_: Vec<Vec<u8>>| Err("nothing is to be decoded".to_owned());
        let error = refused(&rebuild(table, &definition_of(&shape()), &decode).await.unwrap_err());
        assert!(error.contains(demand), "{error}");
        assert!(!lake.log(3).exists());
    }
}

/// What a physical name is made of: the logical name, and the id.
type PhysicalName = dyn Fn(&str, u64) -> String;

/// Gives every column, also nested ones, a physical name; counts them from `next` on.
fn map_columns(of: &mut Value, next: &mut u64, physical: &PhysicalName) {
    for field in of.get_mut("fields").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = physical(field["name"].as_str().unwrap(), *next);
        field["metadata"]["delta.columnMapping.id"] = (*next).into();
        field["metadata"]["delta.columnMapping.physicalName"] = name.into();
        *next += 1;
        map_columns(&mut field["type"], next, physical);
    }
    for inner in ["elementType", "keyType", "valueType"] {
        if of.get(inner).is_some_and(Value::is_object) {
            map_columns(&mut of[inner], next, physical);
        }
    }
}

fn map(metadata: &mut Value, physical: &PhysicalName) {
    let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    let mut next = 1;
    map_columns(&mut schema, &mut next, physical);
    metadata["schemaString"] = schema.to_string().into();
    metadata["configuration"]["delta.columnMapping.mode"] = "name".into();
    metadata["configuration"]["delta.columnMapping.maxColumnId"] = next.to_string().into();
}

fn mapped() -> Value {
    json!({
        "minReaderVersion": 3, "minWriterVersion": 7,
        "readerFeatures": ["deletionVectors", "columnMapping"], "writerFeatures": ["deletionVectors", "columnMapping"],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_column_mapping_is_refused() {
    let error = Lake::new().refusal(Some(mapped()), |metadata| map(metadata, &|_, id| format!("col-{id}"))).await;
    assert!(error.contains("column mapping"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_numbered_protocol_is_read_as_the_features_that_it_implies() {
    let lake = Lake::new();
    let root = lake.root_with(UpdateMode::CopyOnWrite);
    let lake = Lake { root, ..lake };
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    let version_5 = json!({"minReaderVersion": 1, "minWriterVersion": 6});
    let info = json!({"commitInfo": {"timestamp": 1_700_000_000_000_i64, "operation": "UPGRADE PROTOCOL"}});
    lake.commit(2, &[info, json!({"protocol": version_5})]);
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    let error = table.upsert(&lake.change_set(&[], 6), &upsert(6)).await.unwrap_err().to_string();
    assert!(error.contains("writer version 6"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_deletion_vectors_switched_off_is_rewritten_instead() {
    for (stated, is_on) in [("false", false), ("TRUE", true)] {
        let lake = Lake::new();
        lake.upsert(&[(0..9).map(|id| line(&format!("id{id}"), 1, "")).collect()], 5).await;
        require(&lake.table_folder(), None, |metadata| {
            metadata["configuration"]["delta.enableDeletionVectors"] = stated.into();
        });
        let committed = lake.upsert(&[vec![line("id1", 2, "new")]], 6).await;
        assert_eq!(committed.counts.updated, 1);
        let actions = lake.actions(3);
        assert_eq!(actions.iter().any(|action| !action["add"]["deletionVector"].is_null()), is_on, "{stated}");
        assert_eq!(lake.rows().await.len(), 9);
    }
}

/// The definition without the field `period` of the names.
pub(super) fn without_periods_of_names() -> TableDefinition {
    let definition = definition_of(&shape());
    let fields = definition.schema.fields().iter().map(|field| {
        let DataType::List(item) = field.data_type() else { return Arc::clone(field) };
        let DataType::Struct(fields) = item.data_type() else { return Arc::clone(field) };
        if field.name() != "name" {
            return Arc::clone(field);
        }
        let fields = fields.iter().filter(|field| field.name() != "period").cloned().collect();
        let item = item.as_ref().clone().with_data_type(DataType::Struct(fields));
        Arc::new(field.as_ref().clone().with_data_type(DataType::List(Arc::new(item))))
    });
    TableDefinition { schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())), ..definition }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_whose_rows_come_in_another_order_is_refused() {
    let lake = Lake::new();
    let patient = |id: &str, more: &str| Change::Line(format!(r#"{{"resourceType":"Patient","id":"{id}"{more}}}"#));
    let born = r#","birthDate":"1970""#;
    lake.upsert(&[vec![patient("a", ""), patient("b", born), patient("c", ""), patient("d", born)]], 5).await;
    let decoded = |lines: Vec<Vec<u8>>| {
        let lines =
            (1..).zip(lines).map(|(number, bytes)| Line { number, offset: 0, bytes: bytes.into() }).collect::<Vec<_>>();
        lake.decoder(9).decode(&lines).unwrap().in_line_order().unwrap().rows
    };
    let reversed = |lines: Vec<Vec<u8>>| Ok(decoded(lines.into_iter().rev().collect()));
    let error = rebuild(lake.table().await, &definition_of(&shape()), &reversed).await.unwrap_err();
    assert!(error.to_string().contains("do not give the rows"), "{error}");
    let counts =
        rebuild(lake.table().await, &definition_of(&shape()), &|lines| Ok(decoded(lines))).await.unwrap().counts;
    assert_eq!(counts.updated, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_for_which_a_structure_of_the_table_has_no_place_fails_the_upsert_until_the_table_is_rebuilt() {
    let lake = Lake::new();
    lake.root.open_or_create(patient(), &without_periods_of_names()).await.unwrap();
    let named =
        |id: &str, name: &str| Change::Line(format!(r#"{{"resourceType":"Patient","id":"{id}","name":[{{{name}}}]}}"#));
    lake.upsert(&[vec![named("a", r#""text":"x""#)]], 5).await;
    let with_period = [vec![named("b", r#""text":"y","period":{"start":"2020"}"#)]];
    let changes = lake.change_set(&with_period, 6);
    let error = lake.table().await.upsert(&changes, &upsert(6)).await.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    assert!(text.contains("no place for period") && text.contains("maintain --rebuild"), "{text}");
    assert_eq!(lake.rows().await.len(), 1);
    let decode = |lines: Vec<Vec<u8>>| {
        let lines =
            (1..).zip(lines).map(|(number, bytes)| Line { number, offset: 0, bytes: bytes.into() }).collect::<Vec<_>>();
        Ok(lake.decoder(9).decode(&lines).unwrap().in_line_order().unwrap().rows)
    };
    rebuild(lake.table().await, &definition_of(&shape()), &decode).await.unwrap();
    lake.upsert(&with_period, 7).await;
    assert_eq!(lake.rows().await.len(), 2);
}
