//! Altered files: what real servers make of an export. Pure: files become other files.

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::job::{FileContent, OutputFile, Section};
use crate::{demo::Alteration, fhir::ResourceType};

type Lines = Vec<Arc<str>>;

/// The files of an export after one alteration. Files of a folder stay as they are. `types` are those of the export;
/// it has deletions if it has a `since`.
pub(super) fn altered(
    files: Vec<OutputFile>,
    alteration: &Alteration,
    types: &BTreeSet<ResourceType>,
    has_since: bool,
) -> Vec<OutputFile> {
    match alteration {
        Alteration::OutcomeInsteadOf(of) => outcome_instead(files, *of),
        Alteration::MixedTypes => {
            let of = types.first().map(|of| of.as_str().to_owned());
            one_file(files, |lines| file("mixed.ndjson", of, lines))
        }
        Alteration::Organized => one_file(files, |lines| organized(&lines)),
        Alteration::Envelopes => each_output(files, |lines| vec![envelope(&lines)]),
        Alteration::PrettyPrinted => each_output(files, |lines| lines.iter().map(|line| pretty(line)).collect()),
        Alteration::WithoutId { of, lines } => without_id(files, *of, *lines),
        Alteration::UnknownType => {
            let line = Arc::from(r#"{"resourceType":"AidboxThing","id":"1"}"#);
            with(files, file("AidboxThing.1.ndjson", Some("AidboxThing".to_owned()), vec![line]))
        }
        Alteration::EmptyFiles => with_empty_files(files, types),
        Alteration::ForeignDeletions if has_since => with_deletions(files, &["AidboxThing/1", "Device?name=x"]),
        Alteration::ConditionalDeletion(of) if has_since => with_deletions(files, &[&format!("{of}?identifier=x")]),
        Alteration::ForeignDeletions | Alteration::ConditionalDeletion(_) => files,
        Alteration::ShortDeletions => short_deletions(files),
    }
}

fn file(name: &str, type_name: Option<String>, lines: Lines) -> OutputFile {
    let count = lines.len() as u64;
    OutputFile { name: name.to_owned(), section: Section::Output, type_name, count, content: FileContent::Lines(lines) }
}

fn with(mut files: Vec<OutputFile>, one_more: OutputFile) -> Vec<OutputFile> {
    files.push(one_more);
    files
}

fn is_of(file: &OutputFile, of: ResourceType) -> bool {
    file.section == Section::Output && file.type_name.as_deref() == Some(of.as_str())
}

/// The lines of a file under `output`; `None` of any other, and of a file of a folder.
fn output_lines(file: &mut OutputFile) -> Option<&mut Lines> {
    match &mut file.content {
        FileContent::Lines(lines) if file.section == Section::Output => Some(lines),
        _ => None,
    }
}

fn each_output(mut files: Vec<OutputFile>, change: impl Fn(Lines) -> Lines) -> Vec<OutputFile> {
    for lines in files.iter_mut().filter_map(output_lines) {
        *lines = change(std::mem::take(lines));
    }
    files
}

/// All lines under `output`, in one file in the place of theirs.
fn one_file(mut files: Vec<OutputFile>, make: impl FnOnce(Lines) -> OutputFile) -> Vec<OutputFile> {
    let lines: Lines = files.iter_mut().filter_map(output_lines).flat_map(std::mem::take).collect();
    files.retain(|file| file.section != Section::Output || matches!(file.content, FileContent::File(_)));
    if lines.is_empty() { files } else { with(files, make(lines)) }
}

fn outcome_instead(mut files: Vec<OutputFile>, of: ResourceType) -> Vec<OutputFile> {
    if !files.iter().any(|file| is_of(file, of)) {
        return files;
    }
    files.retain(|file| !is_of(file, of));
    let outcome = json!({
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": "exception", "diagnostics": "the file could not be made"}],
    });
    with(files, file(&format!("{of}.1.ndjson"), Some(of.as_str().to_owned()), vec![outcome.to_string().into()]))
}

/// At most this many resources follow a header.
const GROUP_LINES: usize = 10;

/// A header is not a resource: it does not count.
fn organized(lines: &[Arc<str>]) -> OutputFile {
    let header = json!({"resourceType": "Parameters", "parameter": [{"name": "header"}]}).to_string();
    let headed =
        lines.chunks(GROUP_LINES).flat_map(|lines| [Arc::from(header.as_str())].into_iter().chain(lines.to_vec()));
    OutputFile { count: lines.len() as u64, ..file("organized.ndjson", None, headed.collect()) }
}

fn envelope(lines: &[Arc<str>]) -> Arc<str> {
    let text: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    let data = STANDARD.encode(text);
    json!({"resourceType": "Binary", "contentType": "application/fhir+ndjson", "data": data}).to_string().into()
}

/// The same text over three lines, so that numbers stay as they are.
fn pretty(line: &str) -> Arc<str> {
    line.replacen('{', "{\n  ", 1).replacen(",\"id\":", ",\n  \"id\":", 1).into()
}

fn without_id(mut files: Vec<OutputFile>, of: ResourceType, mut left: usize) -> Vec<OutputFile> {
    for lines in files.iter_mut().filter(|file| is_of(file, of)).filter_map(output_lines) {
        for line in lines.iter_mut().take(left) {
            *line = line.replacen("\"id\":", "\"no-id\":", 1).into();
        }
        left = left.saturating_sub(lines.len());
    }
    files
}

fn with_empty_files(mut files: Vec<OutputFile>, types: &BTreeSet<ResourceType>) -> Vec<OutputFile> {
    for of in types {
        if !files.iter().any(|file| is_of(file, *of)) {
            files.push(file(&format!("{of}.1.ndjson"), Some(of.as_str().to_owned()), Vec::new()));
        }
    }
    files
}

fn deleted_file(files: &mut Vec<OutputFile>) -> Option<&mut Lines> {
    let index = files.iter().position(|file| file.section == Section::Deleted);
    let index = index.unwrap_or_else(|| {
        let empty = file("deleted.1.ndjson", Some("Bundle".to_owned()), Vec::new());
        files.push(OutputFile { section: Section::Deleted, ..empty });
        files.len() - 1
    });
    match &mut files.get_mut(index)?.content {
        FileContent::Lines(lines) => Some(lines),
        FileContent::File(_) => None,
    }
}

/// One bundle with these deletions is added to the file of deletions.
fn with_deletions(mut files: Vec<OutputFile>, urls: &[&str]) -> Vec<OutputFile> {
    let entries: Vec<_> = urls.iter().map(|url| json!({"request": {"method": "DELETE", "url": url}})).collect();
    if let Some(lines) = deleted_file(&mut files) {
        lines.push(json!({"resourceType": "Bundle", "type": "transaction", "entry": entries}).to_string().into());
    }
    for file in files.iter_mut().filter(|file| file.section == Section::Deleted) {
        file.count = file.content.lines();
    }
    files
}

/// Each deletion gets a line of its own; the last is counted and does not come.
fn short_deletions(mut files: Vec<OutputFile>) -> Vec<OutputFile> {
    for file in files.iter_mut().filter(|file| file.section == Section::Deleted) {
        let FileContent::Lines(lines) = &mut file.content else { continue };
        let entries = lines
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .flat_map(|mut bundle| bundle["entry"].as_array_mut().map(std::mem::take).unwrap_or_default());
        let bundle = |entry| json!({"resourceType": "Bundle", "type": "transaction", "entry": [entry]});
        *lines = entries.map(|entry| Arc::from(bundle(entry).to_string())).collect();
        file.count = lines.len() as u64;
        lines.pop();
    }
    files
}
