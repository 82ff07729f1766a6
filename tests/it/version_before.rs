use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
};

use arrow::{
    array::{AsArray as _, BooleanArray},
    compute::filter_record_batch,
};
use fhir_sync::{demo::World, fhir::ResourceType};
use serde_json::json;
use tokio::process::Command;

use crate::{
    harness::{HOUR, Process, Setup},
    read_back,
};

/// The commit whose binary made the fixture.
const COMMIT: &str = "d59410f";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(COMMIT)
}

/// The tables of the fixture: the type, and the settings of its syncs. `Binary` has the fewest columns of all types and
/// the other tables have no typed columns, so that the fixture is small.
const TABLES: [(&str, &str); 3] = [
    ("Basic", "typed = false"),
    ("Binary", "typed = true"),
    ("Slot", "typed = false\nmerge = \"copy-on-write\"\nchange_data_feed = true"),
];

fn types() -> [ResourceType; 3] {
    TABLES.map(|(name, _)| name.parse().unwrap())
}

/// The data of the server at the first sync of the fixture.
fn first_data() -> World {
    let mut world = World::new();
    let [basic, binary, slot] = types();
    // Enough rows that a deletion vector is written: a file with many deleted rows is rewritten.
    for number in 1..=20 {
        world.put(basic, &format!("b{number}"), json!({"code": {"text": "referral"}, "created": "2025-12-01"}));
        world.put(binary, &format!("d{number}"), json!({"contentType": "text/plain", "data": "dGV4dA=="}));
        let minute = format!("2026-02-01T09:{number:02}:00Z");
        world.put(slot, &format!("s{number}"), json!({"status": "free", "start": minute}));
    }
    world.advance(HOUR);
    world
}

/// The changes before the second sync of the fixture: in each table one row is updated and one deleted. An hour later
/// no export reports these deletions again, so only their tombstones know them.
fn first_change(world: &mut World) {
    let [basic, binary, slot] = types();
    world.advance(HOUR);
    world.put(basic, "b2", json!({"code": {"text": "referral"}, "created": "2025-12-02"}));
    assert!(world.delete(basic, "b3"));
    world.put(binary, "d2", json!({"contentType": "text/html", "data": "PGI+dGV4dDwvYj4="}));
    assert!(world.delete(binary, "d3"));
    world.put(slot, "s2", json!({"status": "busy", "start": "2026-02-01T09:02:00Z"}));
    assert!(world.delete(slot, "s3"));
    world.advance(HOUR);
}

/// A setup with the data as of the second sync of the fixture, whose tables and state file do not exist yet.
async fn setup() -> (Setup, Vec<(ResourceType, String)>) {
    let mut world = first_data();
    let [basic, binary, slot] = types();
    let deleted_lines = [(basic, "b3"), (binary, "d3"), (slot, "s3")]
        .map(|(resource_type, id)| (resource_type, world.line(resource_type, id).unwrap().to_owned()));
    first_change(&mut world);
    let mut setup = Setup::with_world(world).await;
    setup.export.types = types().to_vec();
    setup.export.reconciled = types().into_iter().collect();
    (setup, deleted_lines.to_vec())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
#[ignore = "makes the fixture; FHIR_SYNC_BEFORE is the binary of the version before"]
async fn the_version_before_makes_the_fixture() {
    let setup = Setup::with_world(first_data()).await;
    let program = env::var_os("FHIR_SYNC_BEFORE").expect("the path of the binary");
    let [basic, binary, slot] = types();
    let path = setup.folder.path().join("before.toml");
    for change in [|_: &mut World| {}, first_change] {
        setup.server.world(change);
        for (resource_type, settings) in TABLES {
            let config = format!(
                "[server]\nurl = \"{}\"\nname = \"hospital\"\n[tables]\nroot = \"{}\"\n{settings}\n[state]\nfile = \"{}\"\n\
                 [[export]]\nname = \"all\"\ntypes = [\"{resource_type}\"]\nincremental = \"{}\"\n",
                setup.server.url(),
                setup.lake().display(),
                setup.state_file().display(),
                setup.schedule,
            );
            fs::write(&path, config).unwrap();
            let mut command = Command::new(&program);
            command.args(["sync", "--config", path.to_str().unwrap()]);
            let ended = Process::spawn(command).end().await;
            assert_eq!(ended.code, Some(0), "{}", ended.output());
        }
    }
    for (table, has_vector) in [(basic, true), (binary, true), (slot, false)] {
        let log = setup.table_folder(table).join("_delta_log/00000000000000000002.json");
        assert_eq!(fs::read_to_string(log).unwrap().contains("\"deletionVector\":{"), has_vector, "{table}");
    }
    copy(&setup.lake(), &fixture().join("lake"));
    fs::create_dir_all(fixture().join("state")).unwrap();
    fs::copy(setup.state_file(), fixture().join("state/state.json")).unwrap();
}

/// Between the fixture and the next sync: in each table one row is updated, one created and one deleted, and the server
/// sends an old version of the resource that was deleted before.
fn second_change(world: &mut World, deleted_lines: &[(ResourceType, String)]) {
    let [basic, binary, slot] = types();
    world.put(basic, "b2", json!({"code": {"text": "referral"}, "created": "2025-12-03"}));
    world.put(basic, "b22", json!({"code": {"text": "consent"}}));
    assert!(world.delete(basic, "b4"));
    world.put(binary, "d2", json!({"contentType": "application/pdf"}));
    world.put(binary, "d22", json!({"contentType": "text/plain"}));
    assert!(world.delete(binary, "d4"));
    world.put(slot, "s2", json!({"status": "free", "start": "2026-02-01T09:02:00Z"}));
    world.put(slot, "s22", json!({"status": "free", "start": "2026-02-01T09:22:00Z"}));
    assert!(world.delete(slot, "s4"));
    for (resource_type, line) in deleted_lines {
        world.push_line(*resource_type, line.as_str());
    }
}

/// The columns of a table in the fixture; the next sync adds the typed columns.
fn columns(resource_type: ResourceType) -> Vec<String> {
    let table = fixture().join("lake").join(format!("{resource_type}.parquet"));
    let rows = read_back::read(&table, &[]).unwrap();
    rows.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// The rows that no sync after the fixture changes.
fn unchanged_rows(setup: &Setup, resource_type: ResourceType) -> String {
    let columns = columns(resource_type);
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows = read_back::read(&setup.table_folder(resource_type), &columns).unwrap();
    let ids = rows.column_by_name("id").unwrap().as_string::<i32>();
    let is_unchanged: BooleanArray = ids.iter().map(|id| id.map(|id| id.ends_with(['1', '5', '6']))).collect();
    let rows = filter_record_batch(&rows, &is_unchanged).unwrap();
    assert_eq!(rows.num_rows(), 6, "{resource_type}");
    read_back::draw(&rows)
}

fn tombstones(setup: &Setup) -> Vec<String> {
    let rows = read_back::read(&setup.lake().join("_fhir_sync/deleted"), &["id"]).unwrap();
    let mut ids: Vec<_> = rows.column(0).as_string::<i32>().iter().map(|id| id.unwrap().to_owned()).collect();
    ids.sort();
    ids
}

fn data_files(setup: &Setup) -> Vec<BTreeSet<String>> {
    types().map(|resource_type| setup.data_files(resource_type)).to_vec()
}

async fn assert_read_and_updated(setup: &Setup, deleted_lines: &[(ResourceType, String)]) {
    setup.assert_same_as_server().await;
    assert_eq!(tombstones(setup), ["b3", "d3", "s3"]);
    let before = types().map(|resource_type| unchanged_rows(setup, resource_type));

    setup.later(|world| second_change(world, deleted_lines));
    let report = setup.complete().await;
    let jobs = setup.server.jobs();
    assert_eq!((jobs.len(), jobs[0].types.as_slice()), (1, &types()[..]));
    assert_eq!(jobs[0].since.as_deref(), Some("2026-01-01T02:55:00.000Z"), "the watermark of the tables");
    for resource_type in types() {
        let counts = &report.types[&resource_type].counts;
        let found = (counts.inserted, counts.updated, counts.deleted, counts.stale);
        assert_eq!(found, (1, 1, 1, 1), "{resource_type}: {counts:?}");
    }
    setup.assert_same_as_server().await;
    assert_eq!(types().map(|resource_type| unchanged_rows(setup, resource_type)), before);
    assert_eq!(tombstones(setup), ["b3", "b4", "d3", "d4", "s3", "s4"]);

    let files = data_files(setup);
    let report = setup.complete().await;
    let bytes_written: u64 = report.types.values().map(|report| report.bytes_written).sum();
    assert_eq!((report.changed(), bytes_written), (0, 0));
    assert_eq!(data_files(setup), files);
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn tables_of_the_version_before_are_read_and_updated() {
    let (setup, deleted_lines) = setup().await;
    copy(&fixture(), setup.folder.path());
    assert_read_and_updated(&setup, &deleted_lines).await;
}

#[tokio::test]
async fn the_watermarks_of_the_version_before_are_read_from_its_tables() {
    let (setup, deleted_lines) = setup().await;
    copy(&fixture().join("lake"), &setup.lake());
    assert_read_and_updated(&setup, &deleted_lines).await;
}

#[tokio::test]
async fn the_watermarks_of_the_version_before_are_adopted_once() {
    let (mut setup, _) = setup().await;
    copy(&fixture(), setup.folder.path());
    setup.complete().await;
    assert!(setup.server.jobs()[0].since.is_some());
    // Without the state file nothing but the tables can say that the old watermarks are another group's.
    fs::remove_dir_all(setup.folder.path().join("state")).unwrap();
    setup.export.level = fhir_sync::export::Level::Group("another".to_owned());
    setup.complete().await;
    assert_eq!(setup.server.jobs()[1].since, None);
}
