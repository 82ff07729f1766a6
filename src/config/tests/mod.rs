//! What a configuration means, and which mistakes are reported of a wrong one.

mod spark;
mod state;

use std::collections::{BTreeMap, HashMap};

use super::{section::Asked, *};
use crate::{
    export::Level,
    fhir::ResourceType,
    table::{DatePart, DatePartition, MaintenanceStep},
};

const REFERENCE: &str = SAMPLE;

const SMALLEST: &str = r#"
    [server]
    url = "https://ehr.example.org/fhir"
    [tables]
    root = "/srv/lake"
    [[export]]
    name = "all"
    types = ["Patient", "Condition", "Observation", "Encounter"]
    incremental = "0 15 * * * *"
    full_refresh = "0 0 3 * * Sun"
"#;

fn mistakes(text: &str) -> Vec<String> {
    parse(text, &[]).0.unwrap_err().lines
}

/// `key = value` lines of a TOML text by their full key, those behind "# " included.
fn settings(text: &str) -> HashMap<String, String> {
    let mut settings = HashMap::new();
    let mut section = String::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            section = format!("{name}[0].");
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, value)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            settings.insert(format!("{section}{key}"), value.trim_matches('"').to_owned());
        }
    }
    settings
}

#[test]
fn the_reference_file_names_every_key_with_its_default() {
    let (config, findings) = parse(&schema::with_section_of_a_type(), &[]);
    assert_eq!(config.unwrap().tables.partitions.len(), 1);
    let settings = settings(REFERENCE);
    // The reference describes the other forms of a secret once, for all secrets.
    let asked: Vec<_> = findings.asked.iter().filter(|asked| secrets::other_form(&asked.key).is_none()).collect();
    for Asked { key, default, .. } in &asked {
        let written = settings.get(key).unwrap_or_else(|| panic!("{key} is missing in config/fhir-sync.toml"));
        if let Some(default) = default {
            assert_eq!(written, default, "{key}");
        }
    }
    assert_eq!(settings.len(), asked.len(), "the reference names a key that nobody reads");
}

#[test]
fn the_smallest_useful_file_means_the_same_as_the_reference_file() {
    let [smallest, reference] = [SMALLEST, REFERENCE].map(|text| format!("{:?}", parse(text, &[]).0.unwrap()));
    // The reference file sets the source, which the smallest leaves to its default.
    assert_eq!(smallest, reference.replace("source_chosen: ByOperator", "source_chosen: ByDefault"));
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_keys() {
    let found = mistakes(
        r#"
        colour = "red"
        [server]
        url = "ehr.example.org"
        client_id = "me"
        allow_http = "perhaps"
        [server.poll]
        max_interval = 300
        [tables]
        root = ["a"]
        [health]
        listen = "here"
        max_agee = "2h"
        [[export]]
        name = "a/b"
        level = "group"
        types = ["patient", "Patient"]
        incremental = "every hour"
        [[export]]
        name = "all"
        types = []
        [[export]]
        name = "all"
        level = "system"
        group = "g"
        types = "Patient"
        "#,
    );
    let expected = [
        "server.url: \"ehr.example.org\" is not a URL",
        "server.allow_http: \"perhaps\" is neither",
        "server.private_key_file: is missing",
        "server.poll.max_interval: \"300\" is not a duration",
        "tables.root: must be a single value",
        "health.listen: \"here\"",
        "health.max_agee: is not a key",
        "export[0].name: \"a/b\" is not a name",
        "export[0].types: \"patient\" is not a FHIR resource type; did you mean \"Patient\"?",
        "export[0].incremental: \"every hour\" has 2 fields;",
        "export[0].group: is missing",
        "export[1].types: must name at least one",
        "export[2].name: is also the name of another export",
        "export[2].group: is set, but level is not",
        "colour: is not a key",
    ];
    for expected in expected {
        assert!(found.iter().any(|mistake| mistake.starts_with(expected)), "{expected}\nnot in\n{}", found.join("\n"));
    }
    assert_eq!(found.len(), expected.len(), "{}", found.join("\n"));
}

#[test]
fn the_environment_wins_over_the_file_for_every_kind_of_value() {
    let config = parse(
        SMALLEST,
        &[
            ("FHIR_SYNC__HEALTH__MAX_AGE", "90m"),
            ("FHIR_SYNC__SERVER__ALLOW_HTTP", "true"),
            ("FHIR_SYNC__SERVER__POLL__MAX_INTERVAL", "7s"),
            ("FHIR_SYNC__SERVER__TOKEN_ORIGINS", "https://a.example.org, https://b.example.org"),
            ("FHIR_SYNC__SYNC__PARALLEL_DOWNLOADS", "9"),
            ("FHIR_SYNC__SYNC__MAX_LINE_SIZE", "1MiB"),
            ("FHIR_SYNC_LOG", "is not a setting"),
        ],
    );
    let config = config.0.unwrap();
    assert_eq!(config.exports[0].max_age, Some(Duration::from_mins(90)));
    assert!(config.server.allow_http);
    assert_eq!(config.server.poll.interval.max(), Duration::from_secs(7));
    assert_eq!(config.server.token_origins.len(), 2);
    assert_eq!(config.sync.parallel_downloads, 9);
    assert_eq!(config.sync.max_line_bytes, 1 << 20);
}

#[test]
fn maintenance_can_be_off_or_less_than_all_of_it() {
    let of = |settings: &str| parse(&format!("{SMALLEST}[maintenance]\n{settings}"), &[]).0;
    let usual = parse(SMALLEST, &[]).0.unwrap().maintenance;
    assert!(usual.schedule.is_some());
    assert_eq!(usual.of_tables.tables.steps, MaintenanceStep::ALL.into());
    assert!(of("schedule = \"off\"").unwrap().maintenance.schedule.is_none());
    let some = of("steps = [\"vacuum\", \"compact\"]").unwrap().maintenance;
    assert_eq!(some.of_tables.tables.steps, [MaintenanceStep::Compact, MaintenanceStep::Vacuum].into());
    let found = of("log_retention = \"6days\"\nsteps = [\"optimize\"]\nschedule = \"nightly\"").unwrap_err().lines;
    assert!(found.iter().any(|mistake| mistake.starts_with("maintenance.log_retention: is shorter")), "{found:?}");
    assert!(found.iter().any(|mistake| mistake.starts_with("maintenance.steps: \"optimize\": is not one of compact")));
    assert!(found.iter().any(|mistake| mistake.starts_with("maintenance.schedule: \"nightly\" has 1 field;")));
    assert_eq!(found.len(), 3);
}

#[test]
fn a_shortest_wait_above_the_longest_is_a_mistake() {
    let waits = "[server.poll]\nmin_interval = \"10m\"\n[server.http]\nretry_max_wait = \"500ms\"\n[tables]";
    assert_eq!(
        mistakes(&SMALLEST.replace("[tables]", waits)),
        [
            "server.poll.min_interval: is longer than max_interval",
            "server.http.retry_min_wait: is longer than retry_max_wait"
        ]
    );
}

#[test]
fn an_unknown_key_in_the_environment_is_a_mistake_too() {
    let found = parse(SMALLEST, &[("FHIR_SYNC__HEALTH__MAXAGE", "90m")]).0.unwrap_err().lines;
    assert_eq!(found, ["health.maxage: is not a key that fhir-sync knows; did you mean \"max_age\"?"]);
}

#[test]
fn a_key_or_a_word_with_a_slip_is_a_mistake_that_names_what_was_meant() {
    for (setting, expected) in [
        ("export.nmae = \"a\"", "export[0].nmae: is not a key that fhir-sync knows; did you mean \"name\"?"),
        ("helth.listen = \"a\"", "helth: is not a key that fhir-sync knows; did you mean \"health\"?"),
        ("server.poll.max_intervall = \"5m\"", "server.poll.max_intervall: is not a key that fhir-sync knows; did you"),
        ("export.level = \"System\"", "export[0].level: \"System\" is not one of system, patient, group; did you mean"),
        (
            "export.types = [\"Patients\"]",
            "export[0].types: \"Patients\" is not a FHIR resource type; did you mean \"Patient\"?",
        ),
        ("colour.red = 1", "colour: is not a key that fhir-sync knows"),
    ] {
        let (key, value) = setting.split_once(" = ").unwrap();
        let found = parse_with(key, value).0.unwrap_err().lines;
        assert!(found.len() == 1 && found[0].starts_with(expected), "{setting}: {}", found.join("\n"));
    }
}

#[test]
fn a_variable_with_one_underscore_is_remarked() {
    let names =
        ["FHIR_SYNC_HEALTH_MAX_AGE", "FHIR_SYNC__HEALTH__MAX_AGE", "FHIR_SYNC_CONFIG", "HOME"].map(str::to_owned);
    let remarks = with_one_underscore(names.into_iter());
    assert_eq!(remarks, ["FHIR_SYNC_HEALTH_MAX_AGE: is not read; between the parts of a setting are two underscores"]);
}

#[test]
fn a_key_that_was_renamed_is_a_mistake_that_names_the_new_key() {
    let old = "[sync]\nmax_line_bytes = \"64MiB\"\nmax_bad_lines = 20\nmax_bad_lines_percent = 1\nmax_gone = 20\n\
               max_gone_percent = 10\n[server.http]\nmax_file_bytes = \"1GiB\"\n";
    let old = SMALLEST.replace("[[export]]", &format!("{old}[[export]]"));
    let old = old.replace("[tables]", "name = \"fhir\"\n[tables]\nmerge = \"copy-on-write\"");
    let mut found = mistakes(&old);
    found.sort();
    assert_eq!(
        found,
        [
            "server.http.max_file_bytes: is now called server.http.max_file_size",
            "server.name: is now called server.source",
            "sync.max_bad_lines: is now called sync.max_quarantined",
            "sync.max_bad_lines_percent: is now called sync.max_quarantined_percent",
            "sync.max_gone: is now called sync.max_missing",
            "sync.max_gone_percent: is now called sync.max_missing_percent",
            "sync.max_line_bytes: is now called sync.max_line_size",
            "tables.merge: is now called tables.update_mode",
        ]
    );
}

#[test]
fn partitions_are_by_a_date_that_the_type_has() {
    let of = |settings: &str| parse(&format!("{SMALLEST}[tables.{settings}"), &[]).0;
    let partitions =
        of("Encounter]\npartition_by = [\"year\", \"month\"]\npartition_date = \"period\"").unwrap().tables.partitions;
    let expected = DatePartition { date: "period".to_owned(), finest: DatePart::Month };
    assert_eq!(partitions, BTreeMap::from([("Encounter".parse().unwrap(), expected)]));
    for (settings, expected) in [
        (
            "Observation]\npartition_by = \"year\"\npartition_date = \"birthDate\"",
            "tables.Observation.partition_date: \"birthDate\" is not a date of Observation; it has effective, issued",
        ),
        ("Observation]\npartition_by = \"year\"", "tables.Observation.partition_date: is missing"),
        ("Observation]\npartition_date = \"effective\"", "tables.Observation.partition_by: must be [\"year\"]"),
        (
            "Observation]\npartition_by = [\"month\", \"year\"]\npartition_date = \"effective\"",
            "tables.Observation.partition_by: must be [\"year\"]",
        ),
        (
            "Observation]\npartition_by = [\"week\"]\npartition_date = \"effective\"",
            "tables.Observation.partition_by: \"week\" is not one of year, month, day",
        ),
        (
            "Binary]\npartition_by = \"year\"\npartition_date = \"date\"",
            "tables.Binary.partition_date: \"date\": Binary has no",
        ),
        ("Observatoin]\npartition_by = \"year\"", "tables.Observatoin: is not a key, and \"Observatoin\" is not"),
        (
            "Observation]\npartition_by = \"year\"\npartition_date = \"issued\"\nbucket = 3",
            "tables.Observation.bucket: is not a key",
        ),
    ] {
        let found = of(settings).unwrap_err().lines;
        assert!(found.iter().any(|mistake| mistake.starts_with(expected)), "{expected}\nnot in\n{}", found.join("\n"));
    }
}

#[test]
fn partitions_need_typed_columns() {
    let text = format!("{SMALLEST}[tables.Observation]\npartition_by = \"year\"\npartition_date = \"effective\"")
        .replace("[tables]", "[tables]\ntyped = false");
    assert!(mistakes(&text)[0].contains("tables.typed = true"), "{:?}", mistakes(&text));
}

#[test]
fn partitions_can_come_from_the_environment() {
    let environment = [
        ("FHIR_SYNC__TABLES__MEDICATIONREQUEST__PARTITION_BY", "year,month,day"),
        ("FHIR_SYNC__TABLES__MEDICATIONREQUEST__PARTITION_DATE", "authoredOn"),
    ];
    let partitions = parse(SMALLEST, &environment).0.unwrap().tables.partitions;
    assert_eq!(partitions[&ResourceType::MEDICATION_REQUEST].finest, DatePart::Day);
}

#[test]
fn a_toml_error_is_reported_with_its_line() {
    assert!(mistakes("[server\nurl").concat().contains("line 1"), "{:?}", mistakes("[server\nurl"));
}

#[test]
fn an_object_store_that_was_not_built_in_is_named() {
    let found = mistakes(&SMALLEST.replace("/srv/lake", "ftp://lake/x"));
    assert!(found[0].starts_with("tables.root: \"ftp://lake/x\": this binary was not built for ftp://"), "{found:?}");
}

#[test]
fn the_drop_in_flags_mean_what_a_file_would() {
    let flags = |group_id: Option<&str>| Flags {
        fhir_endpoint: "https://ehr.example.org/fhir".to_owned(),
        delta_path: "/srv/lake".to_owned(),
        state_file: "/var/lib/fhir-sync/state.json".into(),
        resource_types: ["Patient", "Condition", "Observation", "Encounter"].map(str::to_owned).to_vec(),
        group_id: group_id.map(str::to_owned),
        client_id: None,
        key: None,
    };
    let none = Map::new;
    let config = flags(None).over(none()).unwrap();
    assert_eq!(config.exports[0].export, parse(SMALLEST, &[]).0.unwrap().exports[0].export);
    assert_eq!(flags(Some("g")).over(none()).unwrap().exports[0].export.level, Level::Group("g".to_owned()));
    let server = Map::from_iter([("allow_http".to_owned(), Value::from(true)), ("url".to_owned(), "http://x".into())]);
    let config = flags(None).over(Map::from_iter([("server".to_owned(), server.into())])).unwrap();
    assert!(config.server.allow_http, "the environment counts");
    assert_eq!(config.server.server.as_str(), "https://ehr.example.org/fhir", "and the flags win");
}

#[test]
fn a_check_does_not_need_the_private_key_but_a_start_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fhir-sync.toml");
    let key = "client_id = \"me\"\nprivate_key_file = \"/run/credentials/key\"\n[tables]";
    std::fs::write(&path, SMALLEST.replace("[tables]", key)).unwrap();
    let (_, remarks) = check(&path).unwrap();
    assert_eq!(remarks, ["server.private_key_file: cannot be read here; it is read when a sync starts"]);
    let found = load(&path).unwrap_err().lines;
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("server.private_key_file: /run/credentials/key: cannot be read"), "{found:?}");
}

#[test]
fn what_a_start_would_refuse_is_a_mistake_of_the_file() {
    for (setting, expected) in [
        ("server.url = \"http://ehr.example.org/fhir\"", "server.url: http://ehr.example.org/fhir "),
        ("server.url = \"https://user:secret@ehr.example.org/fhir\"", "server.url: must not hold a user or password"),
        ("server.url = \"https://ehr.example.org/fhir?a=b\"", "server.url: must be a FHIR base, without ? and #"),
        ("server.token_url = \"http://ehr.example.org/token\"", "server.token_url: http://ehr.example.org/token "),
        ("export.group = \"..\"", "export[0].group: \"..\" is not the id of a Group"),
        ("export.incremental = \"0 0 31 2 *\"", "export[0].incremental: \"0 0 31 2 *\" never fires"),
        ("health.max_age = \"0s\"", "health.max_age: \"0s\" is too short"),
        ("health.listen = \"localhost:9187\"", "health.listen: \"localhost:9187\" is not an IP address with a port"),
        ("server.poll.min_interval = \"0s\"", "server.poll.min_interval: \"0s\" is too short"),
        ("server.http.idle_timeout = \"0s\"", "server.http.idle_timeout: \"0s\" is too short"),
        ("maintenance.time_limit = \"0s\"", "maintenance.time_limit: \"0s\" is too short"),
        ("log.filter = \"inof\"", "log.filter: \"inof\" is not a level"),
        ("log.filter = \"loud===\"", "log.filter: \"loud===\""),
    ] {
        let (key, value) = setting.split_once(" = ").unwrap();
        let found = parse_with(key, value).0.unwrap_err().lines;
        assert_eq!(found.len(), 1, "{setting}: {}", found.join("\n"));
        assert!(found[0].starts_with(expected), "{setting}: {}", found[0]);
        assert!(!found[0].contains("secret"), "{}", found[0]);
    }
}

/// The smallest file with one more setting.
fn parse_with(key: &str, value: &str) -> (Result<Config, Mistakes>, Findings) {
    let mut file: toml::Table = SMALLEST.parse().unwrap();
    let value: toml::Table = format!("value = {value}").parse().unwrap();
    let mut section = &mut file;
    let mut keys: Vec<_> = key.split('.').collect();
    let last = keys.pop().unwrap();
    for key in keys {
        section = match section.entry(key).or_insert_with(|| toml::Table::new().into()) {
            toml::Value::Table(table) => table,
            toml::Value::Array(tables) => tables[0].as_table_mut().unwrap(),
            other => panic!("{key} is {other}"),
        };
    }
    section.insert(last.to_owned(), value["value"].clone());
    if last == "group" {
        section.insert("level".to_owned(), "group".into());
    }
    parse(&file.to_string(), &[])
}

#[test]
fn a_size_has_a_binary_or_a_decimal_unit() {
    let size = |text: &str| {
        parse_with("sync.max_quarantine_size", &format!("\"{text}\"")).0.map(|config| config.sync.max_quarantine_bytes)
    };
    for (text, bytes) in [
        ("64MiB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("10kB", 10_000),
        ("2.5MB", 2_500_000),
        ("1GB", 1_000_000_000),
        ("512", 512),
    ] {
        assert_eq!(size(text).unwrap(), bytes, "{text}");
    }
    for text in ["0", "0MiB", "-1MiB", "MiB", "64Mib/s", "1e3", "lots"] {
        assert!(size(text).unwrap_err().lines[0].starts_with("sync.max_quarantine_size: "), "{text}");
    }
}

#[test]
fn a_line_has_at_most_one_gibibyte() {
    let size = |text: &str| {
        parse_with("sync.max_line_size", &format!("\"{text}\"")).0.map(|config| config.sync.max_line_bytes)
    };
    assert_eq!(size("1GiB").unwrap(), 1 << 30);
    for text in ["1073741825", "1.1GiB", "2GiB"] {
        let mistakes = size(text).unwrap_err().lines.concat();
        assert!(mistakes.contains("sync.max_line_size: ") && mistakes.contains("more than 1GiB"), "{mistakes}");
    }
    assert!(size("0").is_err());
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("fhir-sync.toml");
    assert_eq!(load(&missing).unwrap_err().lines, [format!("{} does not exist", missing.display())]);
    assert_eq!(load(folder.path()).unwrap_err().lines, [format!("{} is a directory", folder.path().display())]);
    std::fs::write(&missing, "[server\nurl").unwrap();
    let found = load(&missing).unwrap_err().lines.concat();
    assert!(found.starts_with(&format!("{}: ", missing.display())) && found.contains("line 1"), "{found}");
}

#[test]
fn mistakes_of_the_drop_in_flags_name_the_flags() {
    let flags = Flags {
        fhir_endpoint: "ehr.example.org".to_owned(),
        delta_path: "ftp://lake".to_owned(),
        state_file: "state.json".into(),
        resource_types: vec!["patient".to_owned()],
        group_id: Some("..".to_owned()),
        client_id: None,
        key: None,
    };
    let found = flags.over(Map::new()).unwrap_err().lines;
    let named: Vec<_> = found.iter().map(|mistake| mistake.split(':').next().unwrap()).collect();
    assert_eq!(named, ["--fhir-endpoint", "--delta-path", "--resource-types", "--group-id"], "{found:?}");
}

#[test]
fn a_check_remarks_that_the_daemon_would_have_nothing_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fhir-sync.toml");
    let unscheduled = SMALLEST.lines().filter(|line| !line.contains("incremental") && !line.contains("full_refresh"));
    std::fs::write(&path, unscheduled.collect::<Vec<_>>().join("\n")).unwrap();
    let (_, remarks) = check(&path).unwrap();
    assert_eq!(remarks, ["export: none has a schedule, so `fhir-sync run` will refuse to start"]);
}

#[test]
fn an_age_belongs_to_an_export_or_to_all_and_one_that_the_schedule_cannot_keep_is_remarked() {
    let max_age = |of_all: &str, of_export: &str| {
        let text = format!("{SMALLEST}\n{of_export}\n[health]\n{of_all}\n");
        let (config, findings) = parse(&text, &[]);
        (config.unwrap().exports[0].max_age, findings.remarks)
    };
    assert_eq!(max_age("", ""), (None, Vec::new()));
    let [of_all, of_export] = ["max_age = \"3h\"", "max_age = \"4h\""];
    assert_eq!(max_age(of_all, ""), (Some(Duration::from_hours(3)), Vec::new()));
    assert_eq!(max_age(of_all, of_export), (Some(Duration::from_hours(4)), Vec::new()));
    let (_, remarks) = max_age("", "max_age = \"10m\"");
    assert_eq!(remarks, ["export[0].max_age: 10m is less than 1h between two syncs: /health is unhealthy in between"]);
    let by_hand = "[[export]]\nname = \"by-hand\"\ntypes = [\"Group\"]\n";
    let (_, remarks) = max_age("", by_hand);
    assert!(matches!(&remarks[..], [one] if one.starts_with("export[1].max_age: is not set, and")), "{remarks:?}");
    assert_eq!(max_age("", &format!("{by_hand}max_age = \"9d\"")).1, Vec::<String>::new());
}

#[test]
fn settings_of_groups_and_times_that_contradict_each_other_are_mistakes() {
    let config = |export: &str| {
        format!(
            "[server]\nurl = \"https://a\"\n[tables]\nroot = \"/a\"\n[[export]]\nname = \"a\"\n\
             types = [\"Patient\"]\n{export}"
        )
    };
    let group = "level = \"group\"\ngroup = \"1\"\n";
    for (export, mistake) in [
        ("leavers = \"remove\"".to_owned(), "export[0].leavers: is set, but level is not \"group\""),
        ("level = \"patient\"\njoiners = \"server\"".to_owned(), "export[0].joiners: is set, but level is not"),
        (format!("{group}leavers = \"remove\"\nreconcile = false"), "export[0].leavers: is \"remove\", but reconcile"),
        (
            "initial_since = \"2026-01-02T00:00:00Z\"\nuntil = \"2026-01-01T00:00:00Z\"".to_owned(),
            "export[0].initial_since: is not before until",
        ),
    ] {
        let mistakes = parse(&config(&export), &[]).0.unwrap_err().lines;
        assert!(mistakes.iter().any(|found| found.starts_with(mistake)), "{mistake}: {mistakes:?}");
    }
    assert!(parse(&config(&format!("{group}leavers = \"remove\"")), &[]).0.is_ok());
}
