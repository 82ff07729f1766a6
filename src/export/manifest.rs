//! The completion manifest: which files an export consists of.
//!
//! It is read in the form of every version of the guide, 1.0 to the ballot of 4.0, and as leniently as servers need
//! . An entry is never dropped: with a file without a usable URL it is not a manifest.

use std::{collections::BTreeMap, fmt};

use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{Issues, error::shown, origins::Rewrite};
use crate::fhir::{Issue, RESOURCE_TYPES, ResourceType, TransactionTime, parse_instant};

/// All pages of a complete export.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The server's time of the query: the next watermark. `None` where none can be read (rule 50);
    /// the earliest where pages differ (rule 69).
    pub transaction_time: Option<TransactionTime>,
    pub output: Vec<File>,
    /// Bundles of deletions (rule 94).
    pub deleted: Vec<File>,
    /// Files of `OperationOutcome`: `error` of 1.0 to 3.0, `outcome` of 4.0 (rule 58).
    pub outcomes: Vec<File>,
    /// What some servers report in the manifest itself.
    pub issues: Issues,
}

/// One file of an export.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub id: FileId,
    /// For people, such as "Patient file 3 of 12": a URL may be a secret (rule 63).
    pub name: String,
    /// What the manifest announces; each line says what it is (rule 79).
    pub kind: FileKind,
    pub url: Url,
    /// How many lines the file should have (rule 56).
    pub count: Option<u64>,
    pub requires_access_token: bool,
}

/// Which file of its export this is, whatever link to it the server gives (rule 61): the URL without user, query and
/// fragment, which may be secrets and signed again, and the number among the files with the same one. As text, it can
/// be stored.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(String);

impl fmt::Display for FileId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Gives each file its id, in the order of the manifest.
#[derive(Default)]
pub struct FileIds(BTreeMap<String, usize>);

impl FileIds {
    pub fn next(&mut self, url: &Url) -> FileId {
        let address = shown(url);
        let number = self.0.entry(address.clone()).or_default();
        *number += 1;
        FileId(format!("{address}#{number}"))
    }
}

/// Which resources a file should have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FileKind {
    Of(ResourceType),
    /// The manifest names one that FHIR does not know. It may be a word for a type that was asked for: the lines may be
    /// of any type as well.
    Unknown,
    /// The manifest names none: the lines may be of any type.
    Untyped,
}

impl FileKind {
    pub fn resource_type(self) -> Option<ResourceType> {
        match self {
            Self::Of(resource_type) => Some(resource_type),
            Self::Unknown | Self::Untyped => None,
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("File")
            .field("name", &self.name)
            .field("url", &shown(&self.url))
            .field("count", &self.count)
            .field("requires_access_token", &self.requires_access_token)
            .finish_non_exhaustive()
    }
}

/// The pages read so far.
#[derive(Default)]
pub struct Pages {
    /// For the URLs of a server that writes inner addresses.
    rewrite: Rewrite,
    time: Time,
    requires_access_token: Option<bool>,
    output: Vec<Entry>,
    deleted: Vec<Entry>,
    outcomes: Vec<Entry>,
    issues: Issues,
}

/// What the pages say about `transactionTime` together.
#[derive(Default, Clone, Copy)]
enum Time {
    #[default]
    Absent,
    At(TransactionTime),
    /// On at least one page: then none of them is trusted.
    Unreadable,
}

/// An entry with its absolute URL. Its name needs the number of all entries, so it gets it when all pages are read.
struct Entry {
    kind: FileKind,
    url: Url,
    count: Option<u64>,
    requires_access_token: Option<bool>,
}

impl Pages {
    pub fn of(rewrite: &Rewrite) -> Self {
        Self { rewrite: rewrite.clone(), ..Self::default() }
    }

    /// Adds one page that was received from `at`, after any redirects, and gives the URL of the next one. On an error
    /// nothing was added.
    ///
    /// # Errors
    /// Why this is not a manifest, without quoting it.
    pub fn add(&mut self, body: &[u8], at: &Url) -> Result<Option<Url>, String> {
        let page = Page::read(body)?;
        let requires_access_token = page.requires_access_token.as_ref().and_then(truth);
        let rewrite = &self.rewrite;
        let entries = |name: &str, files: Option<Vec<RawFile>>| {
            let files = files.unwrap_or_default().into_iter().enumerate();
            files
                .map(|(index, file)| {
                    file.entry(at, rewrite, requires_access_token)
                        .ok_or_else(|| format!("{name}[{index}] has no usable url"))
                })
                .collect::<Result<Vec<Entry>, String>>()
        };
        let output = entries("output", page.output)?;
        let deleted = entries("deleted", page.deleted)?;
        let mut outcomes = entries("error", page.error)?;
        for outcome in entries("outcome", page.outcome)? {
            // A server of two versions may list a file under both names.
            if outcomes.iter().all(|known| known.url != outcome.url) {
                outcomes.push(outcome);
            }
        }
        let next = match page.link.as_ref().and_then(next_link) {
            None => None,
            Some(link) => {
                let url = link.get("url").and_then(Value::as_str);
                Some(
                    url.and_then(|url| at.join(url.trim()).ok())
                        .map(|url| rewrite.meant(url, at))
                        .ok_or("its next page has no usable url")?,
                )
            }
        };
        self.time = self.time.and(page.transaction_time.as_ref());
        self.requires_access_token = self.requires_access_token.or(requires_access_token);
        self.output.extend(output);
        self.deleted.extend(deleted);
        self.outcomes.extend(outcomes);
        self.issues.0.extend(page.issues.as_ref().map(inline_issues).unwrap_or_default().0);
        Ok(next)
    }

    /// `token_by_default` is for servers that do not say whether files require a token.
    pub fn manifest(self, token_by_default: bool) -> Manifest {
        let default = self.requires_access_token.unwrap_or(token_by_default);
        let mut ids = FileIds::default();
        Manifest {
            transaction_time: match self.time {
                Time::At(time) => Some(time),
                Time::Absent | Time::Unreadable => None,
            },
            output: named(self.output, default, &mut ids, |kind| match kind {
                FileKind::Of(resource_type) => format!("{resource_type} file"),
                FileKind::Unknown => "file of an unknown type".to_owned(),
                FileKind::Untyped => "file".to_owned(),
            }),
            issues: self.issues,
            deleted: named(self.deleted, default, &mut ids, |_| "deleted file".to_owned()),
            outcomes: named(self.outcomes, default, &mut ids, |_| "outcome file".to_owned()),
        }
    }
}

impl Time {
    fn and(self, text: Option<&Value>) -> Self {
        let Some(text) = text else { return self };
        match (self, text.as_str().and_then(parse_instant).map(TransactionTime::from)) {
            (Self::Unreadable, _) | (_, None) => Self::Unreadable,
            (Self::Absent, Some(time)) => Self::At(time),
            (Self::At(known), Some(time)) => Self::At(known.min(time)),
        }
    }
}

fn named(
    entries: Vec<Entry>,
    token_by_default: bool,
    ids: &mut FileIds,
    noun: impl Fn(FileKind) -> String,
) -> Vec<File> {
    let mut totals = BTreeMap::new();
    for entry in &entries {
        *totals.entry(noun(entry.kind)).or_insert(0_usize) += 1;
    }
    let mut numbers = BTreeMap::new();
    let file = |entry: Entry| {
        let noun = noun(entry.kind);
        let total = totals.get(&noun).copied().unwrap_or_default();
        let number: &mut usize = numbers.entry(noun.clone()).or_default();
        *number += 1;
        File {
            id: ids.next(&entry.url),
            name: format!("{noun} {number} of {total}"),
            kind: entry.kind,
            url: entry.url,
            count: entry.count,
            requires_access_token: entry.requires_access_token.unwrap_or(token_by_default),
        }
    };
    entries.into_iter().map(file).collect()
}

/// One page as received. Unknown members are ignored (rule 60); null and absent are the same.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    resource_type: Option<Value>,
    transaction_time: Option<Value>,
    requires_access_token: Option<Value>,
    output: Option<Vec<RawFile>>,
    deleted: Option<Vec<RawFile>>,
    error: Option<Vec<RawFile>>,
    outcome: Option<Vec<RawFile>>,
    link: Option<Value>,
    issues: Option<Value>,
}

#[derive(Deserialize)]
struct RawFile {
    r#type: Option<Value>,
    url: Option<Value>,
    count: Option<Value>,
}

impl Page {
    fn read(body: &[u8]) -> Result<Self, String> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii();
        if body.is_empty() {
            return Err("the body is empty".to_owned());
        }
        match body[0] {
            b'{' => {}
            b'<' => return Err("the body is HTML or XML, not JSON".to_owned()),
            _ => return Err("the body is not a JSON object".to_owned()),
        }
        // The parser's message may quote the body; line and column do not.
        let page: Self = serde_json::from_slice(body)
            .map_err(|error| format!("JSON that does not fit at line {}, column {}", error.line(), error.column()))?;
        if page.resource_type.as_ref().and_then(Value::as_str) == Some("OperationOutcome") {
            return Err(format!("it is an OperationOutcome, {}", Issues::read(body)));
        }
        if page.output.is_none() && page.transaction_time.is_none() {
            return Err("it has neither output nor transactionTime".to_owned());
        }
        Ok(page)
    }
}

impl RawFile {
    fn entry(self, at: &Url, rewrite: &Rewrite, requires_access_token: Option<bool>) -> Option<Entry> {
        let url = self.url?;
        let url = url.as_str().filter(|url| !url.trim().is_empty())?;
        Some(Entry {
            kind: self.r#type.as_ref().map_or(FileKind::Untyped, kind),
            url: rewrite.meant(at.join(url.trim()).ok()?, at),
            count: self.count.as_ref().and_then(count),
            requires_access_token,
        })
    }
}

/// A name in another case is meant: a file that somebody waits for must not count as unknown.
fn kind(name: &Value) -> FileKind {
    let name = match name {
        Value::String(name) if !name.trim().is_empty() => name.trim(),
        Value::Null | Value::String(_) => return FileKind::Untyped,
        _ => return FileKind::Unknown,
    };
    let known = RESOURCE_TYPES.iter().find(|known| known.eq_ignore_ascii_case(name));
    known.and_then(|known| known.parse().ok()).map_or(FileKind::Unknown, FileKind::Of)
}

/// The link to the next page, in a list of links or as the only one.
fn next_link(link: &Value) -> Option<&Value> {
    let is_next = |link: &&Value| link.get("relation").and_then(Value::as_str) == Some("next");
    match link {
        Value::Array(links) => links.iter().find(is_next),
        link => Some(link).filter(is_next),
    }
}

/// A list of issues, as an `OperationOutcome` has it. Those that cannot be read count as an error: they are no
/// all-clear.
fn inline_issues(issues: &Value) -> Issues {
    let list = match issues {
        Value::Null => return Issues::default(),
        Value::Array(list) if list.is_empty() => return Issues::default(),
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    let outcome = json!({"resourceType": "OperationOutcome", "issue": list}).to_string();
    let issues = Issues::read(outcome.as_bytes());
    if issues.0.is_empty() {
        return Issues(vec![Issue::unreadable()]);
    }
    issues
}

/// `true`, or `"true"` as Oracle Soarian writes it.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::String(text) if text.trim().eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.trim().eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| number.to_string().strip_suffix(".0")?.parse().ok()),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}
