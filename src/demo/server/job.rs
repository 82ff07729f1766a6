//! A job: one export, from its kick-off to its DELETE. Its files are fixed at kick-off; later changes are not in them.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{altered::altered, narrowed::Narrowing};
use crate::{
    demo::{Alteration, Scenario, World, folder::NdjsonFile, world::instant},
    fhir::{Deletion, ResourceType},
};

/// A job, for assertions in tests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobView {
    /// The path of the kick-off, without the query.
    pub path: String,
    /// `_since` as it was sent.
    pub since: Option<String>,
    /// The requested types; empty: all.
    pub types: Vec<ResourceType>,
    /// `GET` or `POST`.
    pub method: String,
    /// All parameters, with their values as they were sent.
    pub parameters: Vec<(String, String)>,
    /// How often the status URL was requested, not counting further pages of the manifest.
    pub polls: u32,
    /// The client sent DELETE.
    pub deleted: bool,
}

/// The parameters of a kick-off.
#[derive(Debug)]
pub(super) struct ExportRequest {
    pub path: String,
    /// The URL of the request, for the manifest.
    pub request: String,
    pub since: Option<Since>,
    pub types: Vec<ResourceType>,
    /// The client reads partial manifests.
    pub allows_partial: bool,
    pub method: String,
    pub parameters: Vec<(String, String)>,
    pub narrowing: Narrowing,
    /// Files are organized by patients.
    pub is_organized: bool,
}

#[derive(Debug)]
pub(super) struct Since {
    pub at: DateTime<Utc>,
    pub sent: String,
}

/// Jobs are numbered from 1 and kept after their DELETE, without their files.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
    last: Option<Arc<Export>>,
}

#[derive(Debug)]
struct Job {
    request: ExportRequest,
    polls: u32,
    /// Requests for files by the links of the last manifest.
    link_requests: u32,
    result: Option<Arc<Export>>,
}

/// The result of a job.
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
    /// As the manifest lists it, if it does.
    pub type_name: Option<String>,
    /// The number of lines that the manifest states.
    pub count: u64,
    pub content: FileContent,
}

/// The list of the manifest that contains a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Section {
    Output,
    Deleted,
    Error,
}

#[derive(Debug)]
pub(super) enum FileContent {
    Lines(Vec<Arc<str>>),
    File(NdjsonFile),
}

impl FileContent {
    pub(super) fn lines(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.len() as u64,
            Self::File(file) => file.lines,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Lines(lines) => lines.iter().map(|line| line.len() as u64 + 1).sum(),
            Self::File(file) => file.bytes,
        }
    }
}

impl Jobs {
    /// How many jobs have not been deleted.
    pub(super) fn kept(&self) -> usize {
        self.jobs.iter().filter(|job| job.result.is_some()).count()
    }

    /// Returns the number of the new job.
    pub(super) fn add(&mut self, request: ExportRequest, export: Arc<Export>) -> usize {
        self.last = Some(Arc::clone(&export));
        self.jobs.push(Job { request, polls: 0, link_requests: 0, result: Some(export) });
        self.jobs.len()
    }

    /// The export of the last job, also if that was deleted.
    pub(super) fn last(&self) -> Option<Arc<Export>> {
        self.last.clone()
    }

    /// Counts a poll; returns the number of polls so far and the result. `None`: the job does not exist or was deleted.
    pub(super) fn poll(&mut self, number: usize) -> Option<(u32, Arc<Export>)> {
        let job = self.jobs.get_mut(number.checked_sub(1)?)?;
        let export = job.result.clone()?;
        job.polls = job.polls.saturating_add(1);
        job.link_requests = 0;
        Some((job.polls, export))
    }

    /// As [`Jobs::poll`], for a further page of the manifest.
    pub(super) fn polled(&self, number: usize) -> Option<(u32, Arc<Export>)> {
        let job = self.jobs.get(number.checked_sub(1)?)?;
        Some((job.polls, job.result.clone()?))
    }

    pub(super) fn allows_partial(&self, number: usize) -> bool {
        number.checked_sub(1).and_then(|index| self.jobs.get(index)).is_some_and(|job| job.request.allows_partial)
    }

    /// What signs the links of the manifest that was sent last.
    pub(super) fn signature(&self, number: usize) -> Option<String> {
        Some(self.jobs.get(number.checked_sub(1)?)?.polls.to_string())
    }

    /// Counts a request for a file by a link with this signature; `false` when the link has expired.
    pub(super) fn admits(&mut self, number: usize, signature: &str, limit: u32) -> bool {
        let is_last = self.signature(number).is_some_and(|last| last == signature);
        let job = number.checked_sub(1).and_then(|index| self.jobs.get_mut(index)).filter(|_| is_last);
        job.is_some_and(|job| {
            job.link_requests = job.link_requests.saturating_add(1);
            job.link_requests <= limit
        })
    }

    pub(super) fn export(&self, number: usize) -> Option<Arc<Export>> {
        self.jobs.get(number.checked_sub(1)?)?.result.clone()
    }

    /// `false`: the job does not exist, or was deleted before.
    pub(super) fn delete(&mut self, number: usize) -> bool {
        let job = number.checked_sub(1).and_then(|index| self.jobs.get_mut(index));
        job.is_some_and(|job| job.result.take().is_some())
    }

    pub(super) fn views(&self) -> Vec<JobView> {
        let view = |job: &Job| JobView {
            path: job.request.path.clone(),
            since: job.request.since.as_ref().map(|since| since.sent.clone()),
            types: job.request.types.clone(),
            method: job.request.method.clone(),
            parameters: job.request.parameters.clone(),
            polls: job.polls,
            deleted: job.result.is_none(),
        };
        self.jobs.iter().map(view).collect()
    }
}

impl Export {
    /// The current data for a request.
    pub(super) fn of(world: &World, folder_files: &[NdjsonFile], scenario: &Scenario, request: &ExportRequest) -> Self {
        let wanted = |resource_type: &ResourceType| request.types.is_empty() || request.types.contains(resource_type);
        let known = world.types().chain(folder_files.iter().map(|file| file.resource_type));
        let types: BTreeSet<ResourceType> = known.filter(wanted).filter(|of| !scenario.left_out.contains(of)).collect();
        let since = request.since.as_ref().map(|since| since.at);
        let mut files = Vec::new();
        for resource_type in &types {
            let lines = world.lines(*resource_type, since.filter(|_| !scenario.ignores_since));
            let lines = request.narrowing.apply(*resource_type, lines, scenario.elements);
            let parts = lines.chunks(scenario.lines_per_file.max(1)).map(|lines| FileContent::Lines(lines.to_vec()));
            let own = folder_files.iter().filter(|file| file.resource_type == *resource_type);
            let contents = parts.chain(own.cloned().map(FileContent::File));
            files.extend(numbered(Section::Output, resource_type.as_str(), resource_type.as_str(), contents));
        }
        if let Some(since) = since {
            let deletions: Vec<_> = types.iter().flat_map(|of| world.deleted(*of, since)).collect();
            files.extend(lines_file(Section::Deleted, "Bundle", "deleted", bundles(&deletions)));
        }
        let outcomes = scenario.outcomes.iter().map(|outcome| Arc::from(outcome.to_string())).collect();
        files.extend(lines_file(Section::Error, "OperationOutcome", "error", outcomes));
        for alteration in &scenario.alterations {
            files = altered(files, alteration, &types, since.is_some());
        }
        if request.is_organized {
            files = altered(files, &Alteration::Organized, &types, since.is_some());
        }
        Self { request: request.request.clone(), transaction_time: world.now() + scenario.clock_offset, files }
    }
}

fn lines_file(
    section: Section,
    type_name: &'static str,
    stem: &'static str,
    lines: Vec<Arc<str>>,
) -> impl Iterator<Item = OutputFile> {
    let content = (!lines.is_empty()).then_some(FileContent::Lines(lines));
    numbered(section, type_name, stem, content.into_iter())
}

fn numbered(
    section: Section,
    type_name: &'static str,
    stem: &'static str,
    contents: impl Iterator<Item = FileContent>,
) -> impl Iterator<Item = OutputFile> {
    contents.zip(1..).map(move |(content, number)| OutputFile {
        name: format!("{stem}.{number}.ndjson"),
        section,
        type_name: Some(type_name.to_owned()),
        count: content.lines(),
        content,
    })
}

/// At most this many entries in one bundle.
const MAX_BUNDLE_ENTRIES: usize = 50;

/// Transaction bundles of DELETEs (rule 94), each entry with its own time (rule 97).
fn bundles(deletions: &[Deletion]) -> Vec<Arc<str>> {
    deletions.chunks(MAX_BUNDLE_ENTRIES).map(|deletions| Arc::from(bundle(deletions).to_string())).collect()
}

fn bundle(deletions: &[Deletion]) -> Value {
    let entry = |deletion: &Deletion| {
        json!({
            "request": {"method": "DELETE", "url": format!("{}/{}", deletion.resource_type, deletion.id)},
            "response": {"lastModified": deletion.at.map(instant)},
        })
    };
    json!({
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": deletions.iter().map(entry).collect::<Vec<_>>(),
    })
}
