//! A job: one export, from its kick-off to its DELETE. Its files are fixed at kick-off; the world goes on without it.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::{
    demo::{Scenario, World, folder::Document, world::instant},
    fhir::{Deletion, ResourceType},
};

/// A job, as a test sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobView {
    /// Of the kick-off, without the query.
    pub path: String,
    /// As it was sent.
    pub since: Option<String>,
    /// As they were asked for; none: all.
    pub types: Vec<ResourceType>,
    /// How often the status URL was asked for the (first page of the) manifest.
    pub polls: u32,
    /// The client sent DELETE.
    pub deleted: bool,
}

/// What a kick-off asks for.
#[derive(Debug)]
pub(super) struct Order {
    pub path: String,
    /// The URL of the request, for the manifest.
    pub request: String,
    pub since: Option<Since>,
    pub types: Vec<ResourceType>,
}

#[derive(Debug)]
pub(super) struct Since {
    pub at: DateTime<Utc>,
    pub sent: String,
}

/// Jobs are numbered from 1 and never forgotten; of a deleted one only the order stays.
#[derive(Debug, Default)]
pub(super) struct Jobs(Vec<Job>);

#[derive(Debug)]
struct Job {
    order: Order,
    polls: u32,
    result: Option<Arc<Export>>,
}

/// What a job has to give.
#[derive(Debug)]
pub(super) struct Export {
    pub request: String,
    pub transaction_time: DateTime<Utc>,
    pub files: Vec<OutputFile>,
}

#[derive(Debug)]
pub(super) struct OutputFile {
    pub name: String,
    pub section: Section,
    pub resource_type: ResourceType,
    pub content: Content,
}

/// The list of the manifest in which a file stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Section {
    Output,
    Deleted,
    Error,
}

#[derive(Debug)]
pub(super) enum Content {
    Lines(Vec<Arc<str>>),
    Document(Document),
}

impl Content {
    pub(super) fn lines(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.len() as u64,
            Self::Document(document) => document.lines,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.iter().map(|line| line.len() as u64 + 1).sum(),
            Self::Document(document) => document.bytes,
        }
    }
}

impl Jobs {
    /// How many jobs have not been deleted.
    pub(super) fn kept(&self) -> usize {
        self.0.iter().filter(|job| job.result.is_some()).count()
    }

    /// The number of the new job.
    pub(super) fn add(&mut self, order: Order, export: Export) -> usize {
        self.0.push(Job { order, polls: 0, result: Some(Arc::new(export)) });
        self.0.len()
    }

    /// Counts a poll; how many there were, and what the job has to give. `None`: no such job any more.
    pub(super) fn poll(&mut self, number: usize) -> Option<(u32, Arc<Export>)> {
        let job = self.0.get_mut(number.checked_sub(1)?)?;
        let export = job.result.clone()?;
        job.polls = job.polls.saturating_add(1);
        Some((job.polls, export))
    }

    pub(super) fn export(&self, number: usize) -> Option<Arc<Export>> {
        self.0.get(number.checked_sub(1)?)?.result.clone()
    }

    /// `false`: there was no such job any more.
    pub(super) fn delete(&mut self, number: usize) -> bool {
        let job = number.checked_sub(1).and_then(|place| self.0.get_mut(place));
        job.is_some_and(|job| job.result.take().is_some())
    }

    pub(super) fn views(&self) -> Vec<JobView> {
        let view = |job: &Job| JobView {
            path: job.order.path.clone(),
            since: job.order.since.as_ref().map(|since| since.sent.clone()),
            types: job.order.types.clone(),
            polls: job.polls,
            deleted: job.result.is_none(),
        };
        self.0.iter().map(view).collect()
    }
}

impl Export {
    /// What the world has for an order, now.
    pub(super) fn of(world: &World, documents: &[Document], scenario: &Scenario, order: &Order) -> Self {
        let wanted = |resource_type: &ResourceType| order.types.is_empty() || order.types.contains(resource_type);
        let known = world.types().chain(documents.iter().map(|document| document.resource_type));
        let types: BTreeSet<ResourceType> = known.filter(wanted).collect();
        let since = order.since.as_ref().map(|since| since.at);
        let mut files = Vec::new();
        for resource_type in &types {
            let lines = world.lines(*resource_type, since);
            let parts = lines.chunks(scenario.lines_per_file.max(1)).map(|lines| Content::Lines(lines.to_vec()));
            let own = documents.iter().filter(|document| document.resource_type == *resource_type);
            let contents = parts.chain(own.cloned().map(Content::Document));
            files.extend(numbered(Section::Output, *resource_type, resource_type.as_str(), contents));
        }
        if let Some(since) = since {
            let deletions: Vec<_> = types.iter().flat_map(|of| world.deleted(*of, since)).collect();
            files.extend(lines_file(Section::Deleted, ResourceType::BUNDLE, "deleted", bundles(&deletions)));
        }
        let outcomes = scenario.outcomes.iter().map(|outcome| Arc::from(outcome.to_string())).collect();
        files.extend(lines_file(Section::Error, ResourceType::OPERATION_OUTCOME, "error", outcomes));
        Self { request: order.request.clone(), transaction_time: world.now(), files }
    }
}

fn lines_file(
    section: Section,
    of: ResourceType,
    stem: &'static str,
    lines: Vec<Arc<str>>,
) -> impl Iterator<Item = OutputFile> {
    let content = (!lines.is_empty()).then_some(Content::Lines(lines));
    numbered(section, of, stem, content.into_iter())
}

fn numbered(
    section: Section,
    resource_type: ResourceType,
    stem: &'static str,
    contents: impl Iterator<Item = Content>,
) -> impl Iterator<Item = OutputFile> {
    contents.zip(1..).map(move |(content, number)| OutputFile {
        name: format!("{stem}.{number}.ndjson"),
        section,
        resource_type,
        content,
    })
}

/// Entries of one bundle, at most.
const BUNDLE_ENTRIES: usize = 50;

/// Transactions of DELETEs; a bundle's `lastUpdated` is the time of all its deletions (rules 94 and 97).
fn bundles(deletions: &[Deletion]) -> Vec<Arc<str>> {
    let same_time = deletions.chunk_by(|a, b| a.at == b.at);
    let bundles = same_time.flat_map(|deletions| deletions.chunks(BUNDLE_ENTRIES));
    bundles.map(|deletions| Arc::from(bundle(deletions).to_string())).collect()
}

fn bundle(deletions: &[Deletion]) -> Value {
    let entry = |deletion: &Deletion| json!({"request": {"method": "DELETE", "url": format!("{}/{}", deletion.resource_type, deletion.id)}});
    let at = deletions.first().and_then(|deletion| deletion.at).map(instant);
    json!({
        "resourceType": "Bundle",
        "meta": {"lastUpdated": at},
        "type": "transaction",
        "entry": deletions.iter().map(entry).collect::<Vec<_>>(),
    })
}
