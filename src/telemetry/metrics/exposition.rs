//! The exposition: all series of the process as text, in Prometheus' format 0.0.4.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use super::{
    catalogue::{ALL, BUILD_INFO, Disk, Kind, Label, Metric, Values},
    record::Labels,
};
use crate::fhir::ResourceType;

/// Of [`Exposition::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the configuration says of the labels' values.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The exports, each with its types.
    pub exports: Vec<(String, Vec<ResourceType>)>,
    /// The names of all tables.
    pub tables: Vec<String>,
    /// What is in local folders.
    pub disks: Vec<Disk>,
}

/// The series of this process. It exists once; all copies show the same.
#[derive(Clone)]
pub struct Exposition {
    handle: PrometheusHandle,
    process: Collector,
}

/// The recorder of the process.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

impl Exposition {
    /// From now on what is recorded is kept. Every series is there at once, with the value 0: a rate sees the first
    /// event, and an alert can tell "never" from "not scraped".
    pub fn start(scope: &Scope) -> Self {
        let handle = RECORDER.get_or_init(install).clone();
        for metric in ALL {
            describe(metric);
            for labels in combinations(metric.labels, scope) {
                metric.create(labels);
            }
        }
        BUILD_INFO.set(1.0, vec![("version", env!("CARGO_PKG_VERSION").into())]);
        let process = Collector::default();
        process.describe();
        Self { handle, process }
    }

    /// All series. Reads a few files of `/proc`.
    pub fn text(&self) -> String {
        self.process.collect();
        self.handle.render()
    }

    /// Takes the values of histograms out of the buffer in which they wait for a scrape; without it the buffer of a
    /// process that nobody scrapes would grow.
    pub fn drain(&self) {
        self.handle.run_upkeep();
    }
}

fn install() -> PrometheusHandle {
    let mut builder = PrometheusBuilder::new();
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            let matcher = Matcher::Full(metric.name.to_owned());
            // An error is an empty list of buckets, which there is not.
            builder = builder.set_buckets_for_metric(matcher, buckets.seconds()).unwrap_or_default();
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("this process has another recorder of metrics; /metrics has no figures");
    }
    handle
}

fn describe(metric: &Metric) {
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
        Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
        Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
    }
}

/// All values that the labels of a metric may have together.
fn combinations(labels: &[Label], scope: &Scope) -> Vec<Labels> {
    let mut all: Vec<Labels> = vec![Vec::new()];
    for label in labels {
        let with = |before: &Labels| {
            values(label, before, scope)
                .into_iter()
                .map(|value| {
                    let mut labels = before.clone();
                    labels.push((label.name, value.into()));
                    labels
                })
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

/// The values of a label. The types of an export are its own, where the metric has both labels.
fn values(label: &Label, before: &Labels, scope: &Scope) -> Vec<String> {
    match label.values {
        Values::Words(words) => words.iter().map(|word| (*word).to_owned()).collect(),
        Values::Exports => scope.exports.iter().map(|(name, _)| name.clone()).collect(),
        Values::Tables => scope.tables.clone(),
        Values::Disks => scope.disks.iter().map(|disk| disk.word().to_owned()).collect(),
        Values::ResourceTypes => {
            let export = before.iter().find(|(name, _)| *name == "export").map(|(_, export)| export);
            let exports = scope.exports.iter().filter(|(name, _)| export.is_none_or(|export| export == name));
            let mut types: Vec<_> = exports.flat_map(|(_, types)| types).map(ToString::to_string).collect();
            types.sort();
            types.dedup();
            types
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::catalogue::{DISK_FREE, RECEIVED, RUNS, WATERMARK};

    fn series(metric: &Metric) -> Vec<String> {
        let types = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let exports = vec![("a".to_owned(), types(&["Patient"])), ("b".to_owned(), types(&["Patient", "Group"]))];
        let scope = Scope { exports, tables: vec!["Patient".to_owned()], disks: vec![Disk::Spool] };
        let text =
            |labels: Labels| labels.into_iter().map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(" ");
        combinations(metric.labels, &scope).into_iter().map(text).collect()
    }

    #[test]
    fn every_series_is_created_and_an_export_has_its_own_types_only() {
        assert_eq!(series(&WATERMARK), ["a Patient", "b Group", "b Patient"]);
        assert_eq!(series(&RECEIVED), ["Group", "Patient"]);
        assert_eq!(series(&RUNS).len(), 8);
        assert_eq!(series(&DISK_FREE), ["spool"], "the disk of a store would be full for ever");
    }
}
