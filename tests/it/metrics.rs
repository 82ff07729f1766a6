use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use fhir_sync::demo::{Fault, StatusCode};
use serde_json::json;

use crate::harness::{CONDITION, Daemon, PATIENT, Setup, eventually};

/// The series of one scrape, by name and labels as they are written.
struct Scrape {
    text: String,
    series: BTreeMap<String, f64>,
    /// The name of each family, with its type.
    families: BTreeMap<String, String>,
}

impl Scrape {
    async fn of(daemon: &Daemon) -> Self {
        let (status, text) = daemon.get("/metrics").await;
        assert_eq!(status, 200);
        Self::parse(text)
    }

    /// Fails for what the format 0.0.4 does not allow: a sample before its `HELP` and `TYPE` or apart from its family,
    /// a series twice, a label without quotes, a value that is not a number.
    fn parse(text: String) -> Self {
        let (mut series, mut families, mut helps) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        let mut family = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, sentence) = help.split_once(' ').unwrap();
                assert!(!sentence.is_empty() && helps.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(helps.contains(name), "no HELP before {line}");
                assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is there twice");
                name.clone_into(&mut family);
            } else {
                let (id, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = id.split_once('{').map_or((id, ""), |(name, labels)| (name, labels));
                let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} is not of {family}"));
                let is_histogram = families[&family] == "histogram";
                let suffixes: &[&str] = if is_histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&suffix), "{line}");
                assert!(labels.is_empty() || labels.ends_with("\"}"), "{line}");
                assert!(series.insert(id.to_owned(), value.parse().unwrap()).is_none(), "{id} is there twice");
            }
        }
        Self { text, series, families }
    }

    fn value(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// The sum over all series of a family with these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_meant = |id: &str| id.split('{').next() == Some(name) && labels.iter().all(|label| id.contains(label));
        self.series.iter().filter(|(id, _)| is_meant(id)).map(|(_, value)| value).sum()
    }
}

async fn complete_runs(daemon: &Daemon, at_least: f64) -> Scrape {
    eventually("a complete run in the metrics", async || {
        let scrape = Scrape::of(daemon).await;
        let runs = scrape.value(r#"fhir_sync_runs_total{export="all",outcome="complete"}"#);
        // The gauges follow the end of the run within a second.
        let is_idle = scrape.value(r#"fhir_sync_run_in_progress{export="all"}"#) < 0.5;
        let success = scrape.value(r#"fhir_sync_last_success_timestamp_seconds{export="all"}"#);
        (runs >= at_least && is_idle && success > 0.0).then_some(scrape)
    })
    .await
}

fn assert_equal(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 0.5, "{what}: {found} instead of {expected}");
}

#[tokio::test]
async fn every_series_is_there_before_the_first_run_has_ended() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    let before = Scrape::of(&daemon).await;
    for series in [
        r#"fhir_sync_last_success_timestamp_seconds{export="all"}"#,
        r#"fhir_sync_runs_total{export="all",outcome="complete"}"#,
        r#"fhir_sync_runs_total{export="all",outcome="failed"}"#,
        r#"fhir_sync_data_watermark_timestamp_seconds{export="all",resource_type="Patient"}"#,
        r#"fhir_sync_resources_received_total{resource_type="Observation"}"#,
        r#"fhir_sync_rows_total{resource_type="Patient",operation="inserted"}"#,
        r#"fhir_sync_resources_quarantined_total{resource_type="Patient"}"#,
        r#"fhir_sync_retries_total{endpoint="kick_off",reason="429"}"#,
        r#"fhir_sync_delta_commits_total{table="Patient",outcome="committed"}"#,
        r#"fhir_sync_download_bytes_total{stage="wire"}"#,
        r#"fhir_sync_step_duration_seconds_count{step="upserting"}"#,
        "fhir_sync_lease_shared",
        "fhir_sync_spool_bytes",
    ] {
        assert_equal(before.value(series), 0.0, series);
    }
    assert_equal(before.value("fhir_sync_lease_held"), 1.0, "the lease");
    for of in ["spool", "tables", "state"] {
        let free = async || {
            let scrape = Scrape::of(&daemon).await;
            (scrape.value(&format!("fhir_sync_spool_free_bytes{{of=\"{of}\"}}")) > 0.0).then_some(())
        };
        eventually("the free space of a disk", free).await;
    }
    assert_equal(before.sum("fhir_sync_build_info", &[]), 1.0, "the version");
    assert!(before.value("process_resident_memory_bytes") > 1e6);
    let waits = r#"fhir_sync_run_step{export="all",step="waiting"}"#;
    let waiting = async || Some(Scrape::of(&daemon).await).filter(|scrape| scrape.value(waits) > 0.5);
    let during = eventually("the run in the metrics", waiting).await;
    assert_equal(during.value(r#"fhir_sync_run_in_progress{export="all"}"#), 1.0, "a run");
    assert_equal(during.sum("fhir_sync_run_step", &[]), 1.0, "one step at a time");
    assert!(during.value(r#"fhir_sync_run_started_timestamp_seconds{export="all"}"#) > 1.7e9);
    setup.server.scenario(|scenario| scenario.hold = false);
    daemon.stop().await;
}

#[tokio::test]
async fn after_a_sync_the_counters_agree_with_what_arrived() {
    let setup = Setup::new().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let after = complete_runs(&daemon, 1.0).await;
    for (of, resources) in [("Patient", 5.0), ("Observation", 4.0)] {
        let of_type = format!("resource_type=\"{of}\"");
        assert_equal(after.sum("fhir_sync_resources_received_total", &[&of_type]), resources, of);
        assert_equal(after.sum("fhir_sync_rows_total", &[&of_type, "\"inserted\""]), resources, of);
        assert_equal(after.sum("fhir_sync_rows_total", &[&of_type]), resources, "nothing else became of them");
        let watermark = after.value(&format!("fhir_sync_data_watermark_timestamp_seconds{{export=\"all\",{of_type}}}"));
        let as_of = after.value(&format!("fhir_sync_data_as_of_timestamp_seconds{{export=\"all\",{of_type}}}"));
        assert!(watermark > 0.0 && as_of > 1.7e9, "{watermark} {as_of}");
        let committed = format!("fhir_sync_delta_commits_total{{table=\"{of}\",outcome=\"committed\"}}");
        assert!(after.value(&committed) >= 1.0);
        assert_equal(after.value(&format!("fhir_sync_delta_table_files{{table=\"{of}\"}}")), 1.0, "files");
    }
    let bytes = |stage| after.value(&format!("fhir_sync_download_bytes_total{{stage=\"{stage}\"}}"));
    assert!(bytes("wire") > 0.0 && bytes("decoded") > 0.0);
    assert_equal(
        after.value(r#"fhir_sync_download_files_total{outcome="complete"}"#),
        f64::from(u32::try_from(setup.file_requests()).unwrap()),
        "files",
    );
    for event in ["kicked_off", "completed", "deleted"] {
        assert_equal(after.sum("fhir_sync_export_jobs_total", &[event]), 1.0, event);
    }
    let kick_off = r#"fhir_sync_http_requests_total{endpoint="kick_off",code="2xx"}"#;
    assert_equal(after.value(kick_off), 1.0, "requests");
    assert_equal(after.sum("fhir_sync_http_request_duration_seconds_count", &["kick_off"]), 1.0, "durations");
    for step in ["planning", "kicking_off", "waiting", "streaming", "upserting", "settling"] {
        assert!(after.sum("fhir_sync_step_duration_seconds_count", &[step]) >= 1.0, "{step}");
    }
    assert!(after.value(r#"fhir_sync_last_success_timestamp_seconds{export="all"}"#) > 1.7e9);
    assert!(after.value(r#"fhir_sync_next_run_timestamp_seconds{export="all"}"#) > 1.7e9);
    assert!(after.value(r#"fhir_sync_state_writes_total{outcome="written"}"#) >= 3.0);
    assert_equal(after.sum("fhir_sync_run_step", &[]), 0.0, "no step");
    daemon.stop().await;
}

#[tokio::test]
async fn failures_retries_and_requests_that_were_denied_are_counted() {
    let mut setup = Setup::new().await;
    setup.schedule = "* * * * * *";
    let status = |status, times| Fault::Status {
        path_contains: "$export".to_owned(),
        status,
        times,
        retry_after: None,
        body: String::new(),
    };
    setup.server.scenario(|scenario| {
        scenario.faults = vec![status(StatusCode::SERVICE_UNAVAILABLE, 1), status(StatusCode::FORBIDDEN, 3)];
    });
    let daemon = Daemon::start(&setup, &[]).await;
    let after = complete_runs(&daemon, 1.0).await;
    assert!(after.value(r#"fhir_sync_runs_total{export="all",outcome="failed"}"#) >= 1.0);
    assert_equal(after.value(r#"fhir_sync_retries_total{endpoint="kick_off",reason="5xx"}"#), 1.0, "retries");
    assert_equal(after.value(r#"fhir_sync_http_requests_total{endpoint="kick_off",code="403"}"#), 3.0, "denied");
    assert_equal(after.value(r#"fhir_sync_consecutive_failures{export="all"}"#), 0.0, "the last run was complete");
    let (_, health) = daemon.health().await;
    assert_eq!(health["exports"]["all"]["failures_in_a_row"], json!(0));
    daemon.stop().await;
}

#[tokio::test]
async fn an_address_that_is_refused_is_counted_as_one_wherever_it_was_found() {
    let setup = Setup::new().await;
    let (time, port) = (setup.server.world(|world| world.now().to_rfc3339()), setup.server.url().port().unwrap());
    // The name has a loopback address, which the configuration does not name.
    let urls = ["https://169.254.169.254/latest".to_owned(), format!("http://localhost:{port}/bulkfiles/1")];
    let output = ["Patient", "Observation"].iter().zip(urls).map(|(of, url)| json!({"type": of, "url": url}));
    let output: Vec<_> = output.collect();
    let manifest =
        json!({"transactionTime": time, "requiresAccessToken": false, "output": output, "deleted": [], "error": []});
    let manifest = Fault::NotAManifest { body: manifest.to_string(), times: 1 };
    setup.server.scenario(|scenario| scenario.faults = vec![manifest]);
    let daemon = Daemon::start(&setup, &[]).await;
    let rejections = |reason| format!("fhir_sync_security_rejections_total{{reason=\"{reason}\"}}");
    let after = eventually("the end of the run", async || {
        let scrape = Scrape::of(&daemon).await;
        let ended = scrape.sum("fhir_sync_runs_total", &["export"]);
        (ended > 0.5).then_some(scrape)
    })
    .await;
    assert_equal(after.value(&rejections("address")), 2.0, "refused addresses");
    assert_equal(after.value(&rejections("scheme")), 0.0, "URLs");
    daemon.stop().await;
}

#[tokio::test]
async fn an_export_is_healthy_in_the_metrics_exactly_while_health_says_so() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    setup.server.world(|world| world.put(CONDITION, "c1", json!({})));
    setup.export.types.push(CONDITION);
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    let healthy = async || Scrape::of(&daemon).await.value(r#"fhir_sync_healthy{export="all"}"#);
    assert_eq!(daemon.health().await.0, 503);
    assert_equal(healthy().await, 0.0, "a type was never loaded");
    setup.server.scenario(|scenario| scenario.hold = false);
    daemon.eventually_health("the type", |status, _| status == 200).await;
    assert_equal(healthy().await, 1.0, "all data are fresh");
    daemon.stop().await;
    let other = setup.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__TABLES__ROOT", other.to_str().unwrap())]).await;
    let lost = Scrape::of(&daemon).await;
    assert_equal(lost.value(r#"fhir_sync_healthy{export="all"}"#), 0.0, "the tables are gone");
    assert!(lost.value(r#"fhir_sync_last_success_timestamp_seconds{export="all"}"#) > 1.7e9, "there was a sync");
    daemon.stop().await;
}

/// (rule 78)
#[tokio::test]
async fn what_a_server_that_complains_is_asked_for_is_in_the_metrics() {
    let mut setup = Setup::new().await;
    setup.schedule = "* * * * * *";
    let file_refused = |times| Fault::Status {
        path_contains: "/bulkfiles/".to_owned(),
        status: StatusCode::TOO_MANY_REQUESTS,
        times,
        retry_after: Some("1".to_owned()),
        body: String::new(),
    };
    let daemon = Daemon::start(&setup, &[]).await;
    let paused = |peer| format!("fhir_sync_requests_paused_until_timestamp_seconds{{peer=\"{peer}\"}}");
    let before = complete_runs(&daemon, 1.0).await;
    assert_equal(before.value(&paused("file_server")), 0.0, "a pause");
    setup.later(|world| _ = world.put(PATIENT, "p9", json!({"gender": "male"})));
    setup.server.scenario(|scenario| scenario.faults = vec![file_refused(1)]);
    let after = eventually("a pause in the metrics", async || {
        Some(Scrape::of(&daemon).await).filter(|scrape| scrape.value(&paused("file_server")) > 1.7e9)
    })
    .await;
    assert_equal(after.value(&paused("fhir_server")), 0.0, "only files were refused");
    assert_equal(after.value("fhir_sync_parallel_downloads_limit"), 1.0, "half of two");
    assert_equal(after.value(r#"fhir_sync_request_interval_seconds{peer="file_server"}"#), 0.0, "one is not a rate");
    daemon.stop().await;
}

#[tokio::test]
async fn the_maintenance_of_each_table_is_counted_by_its_end() {
    let setup = Setup::new().await;
    setup.complete().await;
    // Its log asks to keep removed files for longer than the maintenance does.
    let log = setup.table_folder(PATIENT).join("_delta_log/00000000000000000000.json");
    let text = std::fs::read_to_string(&log).unwrap();
    let kept = text.replacen(
        "\"configuration\":{",
        r#""configuration":{"delta.deletedFileRetentionDuration":"interval 30 days","#,
        1,
    );
    assert_ne!(kept, text);
    std::fs::write(&log, kept).unwrap();
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__MAINTENANCE__SCHEDULE", "* * * * * *")]).await;
    let of = |scrape: &Scrape, table, outcome| {
        scrape.value(&format!("fhir_sync_maintenance_total{{table=\"{table}\",outcome=\"{outcome}\"}}"))
    };
    let after = eventually("maintenance", async || {
        Some(Scrape::of(&daemon).await).filter(|scrape| of(scrape, "Patient", "failed") > 0.5)
    })
    .await;
    assert_equal(of(&after, "Patient", "maintained"), 0.0, "a vacuum that was refused");
    assert_equal(of(&after, "Observation", "failed"), 0.0, "the others are not concerned");
    eventually("the other table", async || {
        Some(Scrape::of(&daemon).await).filter(|scrape| of(scrape, "Observation", "maintained") > 0.5)
    })
    .await;
    daemon.stop().await;
}

/// The rows of the table in docs/metrics.md: name, type, labels with their words, meaning.
fn documented() -> Vec<[String; 4]> {
    let page = file("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `fhir_sync_"));
    let cells = |row: &str| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        <[String; 4]>::try_from(cells).unwrap_or_else(|cells| panic!("not four cells: {cells:?}"))
    };
    rows.map(cells).collect()
}

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The labels of a family in a scrape, each with its values, as the page writes them: those of the configuration have
/// no list.
fn labels_of(scrape: &Scrape, family: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let of_family = |id: &&String| id.split('{').next().is_some_and(|name| name.trim_end_matches("_count") == family);
    for id in scrape.series.keys().filter(of_family) {
        let pairs = id.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
        for (name, value) in pairs.split(',').filter_map(|pair| pair.split_once('=')) {
            let is_word = !["export", "resource_type", "table", "version"].contains(&name);
            let words = labels.entry(name.to_owned()).or_default();
            words.extend(is_word.then(|| value.trim_matches('"').to_owned()));
        }
    }
    labels
}

#[tokio::test]
async fn the_page_of_the_metrics_has_exactly_what_is_served() {
    let setup = Setup::new().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let scrape = Scrape::of(&daemon).await;
    daemon.stop().await;
    let page = documented();
    let names: BTreeSet<_> = page.iter().map(|[name, ..]| name.trim_matches('`')).collect();
    let served = scrape.families.keys().map(String::as_str).filter(|name| name.starts_with("fhir_sync_"));
    assert_eq!(names, served.collect());
    for [name, kind, labels, meaning] in &page {
        let name = name.trim_matches('`');
        assert_eq!(kind, &scrape.families[name], "{name}");
        assert!(scrape.text.contains(&format!("# HELP {name} {meaning}\n")), "{name}: {meaning}");
        let labels = labels.split("; ").filter(|label| !label.is_empty()).map(|label| {
            let (label, words) = label.split_once(": ").unwrap_or((label, ""));
            let words = words.split(", ").filter(|word| !word.is_empty()).map(str::to_owned).collect();
            (label.trim_matches('`').to_owned(), words)
        });
        assert_eq!(labels_of(&scrape, name), labels.collect(), "{name}");
    }
    let others: Vec<_> = scrape.families.keys().filter(|name| !name.starts_with("fhir_sync_")).collect();
    let prose = file("docs/metrics.md");
    assert!(others.iter().all(|name| prose.contains(&format!("`{name}`"))), "{others:?}");
}

/// The words of a text that begin with a prefix.
fn words<'a>(text: &'a str, prefix: &'static str) -> impl Iterator<Item = &'a str> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    words.filter(move |word| word.starts_with(prefix))
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_a_test() {
    let (alerts, tests, runbook) =
        (file("deploy/prometheus/alerts.yml"), file("deploy/prometheus/alerts_test.yml"), file("docs/runbook.md"));
    let named = |text: &str, before: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| Some(line.trim().strip_prefix(before)?.to_owned())).collect()
    };
    let names = named(&alerts, "- alert: ");
    assert!(names.len() > 10, "{names:?}");
    let mut sections = named(&runbook, "## ");
    sections.retain(|section| section.starts_with("FhirSync"));
    assert_eq!(names, sections);
    let links = names.iter().map(|name| format!("docs/runbook.md#{}", name.to_lowercase())).collect();
    assert_eq!(named(&alerts, "runbook_url: "), links);
    let tested = named(&tests, "- name: ");
    assert!(names.is_subset(&tested), "{:?}", names.difference(&tested));
}

#[tokio::test]
async fn what_alerts_dashboard_and_runbook_name_is_served() {
    let setup = Setup::new().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let scrape = Scrape::of(&daemon).await;
    daemon.stop().await;
    let dashboard = file("deploy/grafana/dashboard.json").replace("\\\"", "\"");
    for text in [file("deploy/prometheus/alerts.yml"), file("docs/runbook.md"), dashboard] {
        let named: BTreeSet<_> = words(&text, "fhir_sync_").chain(words(&text, "process_")).collect();
        assert!(!named.is_empty());
        for name in named {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_served = [Some(name), family].into_iter().flatten().any(|name| scrape.families.contains_key(name));
            assert!(is_served, "{name} is not served");
        }
        // The matchers of closed lists: `outcome="refused"`, `code=~"401|403"`.
        for label in ["outcome", "reason", "endpoint", "code", "event", "stage", "operation", "step", "peer", "kind"] {
            for matcher in ["=", "!=", "=~", "!~"].map(|operator| format!("{label}{operator}\"")) {
                let values = text.split(&matcher).skip(1).filter_map(|rest| rest.split('"').next());
                for value in values.flat_map(|values| values.split('|')) {
                    assert!(scrape.text.contains(&format!("{label}=\"{value}\"")), "{label}: no {value}");
                }
            }
        }
    }
}
