//! The envelope of what is kept: the format of its content, and a checksum that detects a torn or damaged one.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::sha256;

/// Of the content. A newer version of fhir-sync may write one that this version cannot read.
pub const FORMAT: u64 = 1;

#[derive(Deserialize)]
struct Envelope<'text> {
    format: u64,
    checksum: String,
    #[serde(borrow)]
    state: &'text RawValue,
}

/// What an envelope holds.
pub enum Opened<T> {
    Whole(T),
    /// Of a newer format than ours.
    Newer(u64),
    Broken,
}

/// `by` names the process that writes it, where several may.
pub fn sealed(body: &str, by: Option<&str>) -> String {
    let by = by.map(|by| format!("\"by\": \"{by}\",\n")).unwrap_or_default();
    format!("{{\n\"format\": {FORMAT},\n{by}\"checksum\": \"{}\",\n\"state\": {body}\n}}\n", checksum(body))
}

pub fn opened<T: DeserializeOwned>(text: &str) -> Opened<T> {
    let Ok(envelope) = serde_json::from_str::<Envelope>(text) else { return Opened::Broken };
    if envelope.format > FORMAT {
        return Opened::Newer(envelope.format);
    }
    let is_whole = envelope.checksum == checksum(envelope.state.get());
    match serde_json::from_str(envelope.state.get()) {
        Ok(content) if is_whole => Opened::Whole(content),
        _ => Opened::Broken,
    }
}

fn checksum(text: &str) -> String {
    format!("sha256:{}", sha256(text))
}
