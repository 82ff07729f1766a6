//! A made export: a manifest and files exactly as a test writes them, for what the demo server never sends.

use fhir_sync::demo::{Fault, StatusCode};
use serde_json::{Value, json};

use super::Setup;

/// The files of an export, each with its type in the manifest, its count and its text.
#[derive(Default)]
pub struct Made {
    sections: [Vec<MadeFile>; 3],
}

struct MadeFile {
    of: Option<&'static str>,
    count: Option<u64>,
    /// One for each reading.
    texts: Vec<String>,
}

const SECTIONS: [&str; 3] = ["output", "deleted", "error"];

impl Made {
    pub fn output(self, of: impl Into<Option<&'static str>>, count: impl Into<Option<u64>>, text: &str) -> Self {
        self.file(0, of.into(), count.into(), vec![text.to_owned()])
    }

    /// A file that has another text at each reading; the last one stays.
    pub fn changing(self, of: &'static str, count: impl Into<Option<u64>>, texts: &[&str]) -> Self {
        self.file(0, Some(of), count.into(), texts.iter().map(|text| (*text).to_owned()).collect())
    }

    pub fn deleted(self, count: impl Into<Option<u64>>, text: &str) -> Self {
        self.file(1, Some("Bundle"), count.into(), vec![text.to_owned()])
    }

    pub fn error(self, count: impl Into<Option<u64>>, text: &str) -> Self {
        self.file(2, Some("OperationOutcome"), count.into(), vec![text.to_owned()])
    }

    fn file(mut self, section: usize, of: Option<&'static str>, count: Option<u64>, texts: Vec<String>) -> Self {
        self.sections[section].push(MadeFile { of, count, texts });
        self
    }

    /// The answer to the next poll, and the files behind it.
    pub fn serve(self, setup: &Setup) {
        let time = setup.server.world(|world| world.now().to_rfc3339());
        self.serve_at(setup, &time);
    }

    /// The same, with another `transactionTime`.
    pub fn serve_at(self, setup: &Setup, transaction_time: &str) {
        let url = setup.server.url();
        let mut manifest = json!({"transactionTime": transaction_time, "requiresAccessToken": false});
        let mut faults = Vec::new();
        for (name, files) in SECTIONS.iter().zip(self.sections) {
            let mut entries = Vec::new();
            for (index, MadeFile { of, count, texts }) in files.into_iter().enumerate() {
                let path = format!("bulkfiles/made/{name}.{index}.ndjson");
                let mut entry = json!({"url": format!("{}/{path}", url.as_str().trim_end_matches('/'))});
                let more = [("type", of.map(Value::from)), ("count", count.map(Value::from))];
                let members = entry.as_object_mut().unwrap();
                members.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
                entries.push(entry);
                let last = texts.len() - 1;
                faults.extend(texts.into_iter().enumerate().map(|(reading, body)| Fault::Status {
                    path_contains: path.clone(),
                    status: StatusCode::OK,
                    times: if reading == last { 100 } else { 1 },
                    retry_after: None,
                    body,
                }));
            }
            manifest[*name] = entries.into();
        }
        faults.push(Fault::NotAManifest { body: manifest.to_string(), times: 1 });
        setup.server.scenario(|scenario| scenario.faults = faults);
    }
}

/// The lines of a file.
pub fn ndjson<'a>(lines: impl IntoIterator<Item = &'a Value>) -> String {
    lines.into_iter().flat_map(|line| [line.to_string(), "\n".to_owned()]).collect()
}
