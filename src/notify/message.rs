//! A message: what a webhook says about a run that ended. Counts and our own sentences; no id, no content of a resource,
//! and of a URL the origin alone, because its path is the server's word.

use std::{collections::BTreeMap, fmt::Write as _, str::FromStr};

use chrono::SecondsFormat;
use serde_json::{Map, Value, json};

use super::{SecretUrl, heartbeat::Ping};
use crate::sync::{Outcome, Report, TypeReport};

/// Where messages go, in which form, and after which runs.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub url: SecretUrl,
    pub format: WebhookFormat,
    pub on: WebhookOn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookFormat {
    /// All that is known, for programs.
    Json,
    /// A text for an incoming webhook of Slack
    /// (<https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>).
    Slack,
    /// An Adaptive Card for a workflow of Teams that begins with a webhook
    /// (<https://learn.microsoft.com/en-us/power-automate/create-flow-from-webhook>).
    Teams,
}

impl FromStr for WebhookFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "slack" => Ok(Self::Slack),
            "teams" => Ok(Self::Teams),
            _ => Err("is not one of json, slack, teams".to_owned()),
        }
    }
}

/// After which runs a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookOn {
    /// Where the outcome is another one than that of the run before. A run that was stopped says nothing about either.
    Change,
    /// After each that is partial or failed.
    NotComplete,
    EveryRun,
}

impl FromStr for WebhookOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "change" => Ok(Self::Change),
            "not-complete" => Ok(Self::NotComplete),
            "every-run" => Ok(Self::EveryRun),
            _ => Err("is not one of change, not-complete, every-run".to_owned()),
        }
    }
}

impl WebhookOn {
    pub fn asks_for(self, outcome: Outcome, before: Option<Outcome>) -> bool {
        match self {
            Self::EveryRun => true,
            Self::NotComplete => matches!(outcome, Outcome::Partial | Outcome::Failed),
            Self::Change => outcome != Outcome::Stopped && Some(outcome) != before,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Message {
    export: String,
    pub outcome: Outcome,
    pub ping: Option<Ping>,
    warnings: Vec<String>,
    /// `None` for a run that panicked: nobody knows more of it.
    known: Option<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    run: u64,
    mode: String,
    started_at: String,
    ended_at: String,
    duration_seconds: i64,
    types: BTreeMap<String, TypeCounts>,
}

/// What a run brought of one type, its instalments included.
#[derive(Clone, Debug, Default)]
struct TypeCounts {
    end: &'static str,
    received: u64,
    inserted: u64,
    updated: u64,
    deleted: u64,
    removed: u64,
    unchanged: u64,
    quarantined: u64,
}

/// Enough to know where to look; the rest is in `/health` and the log.
const MAX_WARNINGS: usize = 10;
const MAX_WARNING_CHARS: usize = 300;

impl Message {
    pub fn of(report: &Report) -> Self {
        let at = |instant: chrono::DateTime<chrono::Utc>| instant.to_rfc3339_opts(SecondsFormat::Secs, true);
        let known = Known {
            run: report.run,
            mode: report.mode.to_string(),
            started_at: at(report.started_at),
            ended_at: at(report.ended_at),
            duration_seconds: (report.ended_at - report.started_at).num_seconds(),
            types: counts(report),
        };
        Self {
            export: report.export.clone(),
            outcome: report.outcome,
            ping: Ping::at_end(report),
            warnings: limited(report.warnings().iter().map(|warning| without_paths(warning)).collect()),
            known: Some(known),
        }
    }

    pub fn of_panic(export: &str) -> Self {
        Self {
            export: export.to_owned(),
            outcome: Outcome::Failed,
            ping: Some(Ping::Failure),
            warnings: vec!["the run panicked; this is a bug in fhir-sync. The next tick tries again".to_owned()],
            known: None,
        }
    }

    /// The body for the webhook.
    pub fn body(&self, format: WebhookFormat, before: Option<Outcome>) -> Value {
        match format {
            WebhookFormat::Json => self.json(before),
            WebhookFormat::Slack => json!({"text": escaped(&self.lines(before).join("\n"))}),
            WebhookFormat::Teams => self.card(before),
        }
    }

    fn json(&self, before: Option<Outcome>) -> Value {
        let outcome_before = before.map(|before| before.to_string());
        let mut body = json!({
            "message_type": "run_ended",
            "version": env!("CARGO_PKG_VERSION"),
            "export": self.export,
            "outcome": self.outcome.to_string(),
            "outcome_before": outcome_before,
            "warnings": self.warnings,
        });
        if let Some(known) = &self.known {
            body["run"] = json!(known.run);
            body["mode"] = json!(known.mode);
            body["started_at"] = json!(known.started_at);
            body["ended_at"] = json!(known.ended_at);
            body["types"] =
                known.types.iter().map(|(of, counts)| (of.clone(), counts.json())).collect::<Map<_, _>>().into();
        }
        body
    }

    /// For people: the outcome, the types that are not as they should be, and the warnings.
    fn lines(&self, before: Option<Outcome>) -> Vec<String> {
        let mut first = format!("fhir-sync {}: {}", self.export, self.outcome);
        if let Some(before) = before.filter(|before| *before != self.outcome) {
            let _ = write!(first, " (before: {before})");
        }
        let mut lines = vec![first];
        if let Some(known) = &self.known {
            let Known { run, mode, started_at, duration_seconds, types, .. } = known;
            let received: u64 = types.values().map(|counts| counts.received).sum();
            lines.push(format!(
                "Run {run}, {mode}, from {started_at}, {duration_seconds} s: {received} received, {} changed",
                types.values().map(TypeCounts::changed).sum::<u64>()
            ));
            let open: Vec<_> = types.iter().filter(|(_, counts)| counts.end != "committed").collect();
            let open: Vec<_> = open.iter().map(|(of, counts)| format!("{of} {}", counts.end)).collect();
            lines.extend((!open.is_empty()).then(|| format!("Types: {}", shortened(&open.join(", ")))));
        }
        lines.extend(self.warnings.iter().map(|warning| format!("- {warning}")));
        lines
    }

    fn card(&self, before: Option<Outcome>) -> Value {
        let block = |(index, text)| {
            let weight = if index == 0 { "Bolder" } else { "Default" };
            json!({"type": "TextBlock", "text": text, "wrap": true, "weight": weight})
        };
        let blocks: Vec<_> = self.lines(before).into_iter().enumerate().map(block).collect();
        let content = json!({
            "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
            "type": "AdaptiveCard",
            "version": "1.4",
            "body": blocks,
        });
        let attachment = json!({"contentType": "application/vnd.microsoft.card.adaptive", "content": content});
        json!({"type": "message", "attachments": [attachment]})
    }
}

impl TypeCounts {
    fn add(&mut self, report: &TypeReport) {
        let counts = &report.counts;
        self.received += report.received;
        self.inserted += counts.inserted;
        self.updated += counts.updated;
        self.deleted += counts.deleted;
        self.removed += counts.removed;
        self.unchanged += counts.unchanged;
        self.quarantined += report.quarantined;
    }

    /// Rows that a reader of the table sees differently than before.
    fn changed(&self) -> u64 {
        self.inserted + self.updated + self.deleted + self.removed
    }

    fn json(&self) -> Value {
        json!({
            "end": self.end,
            "received": self.received,
            "inserted": self.inserted,
            "updated": self.updated,
            "deleted": self.deleted,
            "removed": self.removed,
            "unchanged": self.unchanged,
            "quarantined": self.quarantined,
        })
    }
}

fn counts(report: &Report) -> BTreeMap<String, TypeCounts> {
    let mut types: BTreeMap<String, TypeCounts> = BTreeMap::new();
    let last = report.types.iter().map(|(of, report)| (*of, report));
    for (of, part) in report.instalments.iter().map(|(of, part)| (*of, part)).chain(last) {
        types.entry(of.to_string()).or_default().add(part);
    }
    for (of, report) in &report.types {
        types.entry(of.to_string()).or_default().end = report.end.word();
    }
    types
}

fn limited(mut warnings: Vec<String>) -> Vec<String> {
    let left_out = warnings.len().saturating_sub(MAX_WARNINGS);
    warnings.truncate(MAX_WARNINGS);
    let mut limited: Vec<_> = warnings.iter().map(|warning| shortened(warning)).collect();
    limited.extend((left_out > 0).then(|| format!("and {left_out} more; the log has them all")));
    limited
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_WARNING_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A sentence whose URLs are cut to their origins.
fn without_paths(text: &str) -> String {
    let mut short = String::new();
    let mut rest = text;
    while let Some(scheme_end) = rest.find("://") {
        let host = scheme_end + "://".len();
        let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>' | ')');
        let end = rest[host..].find(is_end).map_or(rest.len(), |end| host + end);
        let url = rest[host..end].trim_end_matches([',', ';', ':', '.']);
        let origin = url.find(['/', '?', '#']).unwrap_or(url.len());
        short.push_str(&rest[..host + origin]);
        if origin < url.len() {
            short.push_str("/…");
        }
        rest = &rest[host + url.len()..];
    }
    short + rest
}

/// As Slack writes these three (<https://docs.slack.dev/messaging/formatting-message-text>).
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_in_a_warning_is_cut_to_its_origin() {
        let cases = [
            (
                "kick-off at https://ehr.example.org/fhir/$export: refused",
                "kick-off at https://ehr.example.org/…: refused",
            ),
            ("a (https://a.example.org:8443/x/John), b http://b/y.", "a (https://a.example.org:8443/…), b http://b/…."),
            ("file https://a.example.org: gone", "file https://a.example.org: gone"),
            ("the disk is full", "the disk is full"),
        ];
        for (text, expected) in cases {
            assert_eq!(without_paths(text), expected);
        }
    }

    #[test]
    fn a_message_is_short_whatever_happened() {
        let limited = limited(vec!["é".repeat(1_000); 100]);
        assert_eq!(limited.len(), MAX_WARNINGS + 1);
        assert!(limited.iter().all(|warning| warning.chars().count() <= MAX_WARNING_CHARS + 1));
        assert_eq!(limited[MAX_WARNINGS], "and 90 more; the log has them all");
    }

    #[test]
    fn a_stopped_run_says_nothing_about_a_change() {
        use Outcome::{Complete, Failed, Partial, Stopped};
        let change = |outcome, before| WebhookOn::Change.asks_for(outcome, before);
        assert!(change(Complete, None) && change(Failed, Some(Partial)) && change(Complete, Some(Failed)));
        assert!(!change(Complete, Some(Complete)) && !change(Partial, Some(Partial)) && !change(Stopped, Some(Failed)));
        let not_complete = |outcome| WebhookOn::NotComplete.asks_for(outcome, Some(outcome));
        assert!(not_complete(Partial) && not_complete(Failed) && !not_complete(Complete) && !not_complete(Stopped));
        assert!(WebhookOn::EveryRun.asks_for(Stopped, Some(Stopped)));
    }
}
