//! Sources: the server of each `_sync_source` whose rows are below the root, in the document `sources.json`.
//!
//! A watermark of one server says nothing about another one, and a full refresh of one removes what the other has. So a
//! source is one server. It moves to another address only where the operator has chosen the source's name, and never
//! back: two servers that take turns under one name are two servers (decision 13). A server is recorded when it has
//! accepted an export: a mistyped address has brought no rows, and binds nobody.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{Chosen, Config, Error};
use crate::table::Root;

const DOCUMENT: &str = "sources.json";

#[derive(Serialize, Deserialize, Default)]
struct Sources {
    sources: BTreeMap<String, Source>,
}

#[derive(Serialize, Deserialize, PartialEq, Clone)]
struct Source {
    /// The FHIR base URL.
    server: String,
    /// The addresses that it had earlier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<String>,
}

/// The sources whose rows are below the root.
pub async fn recorded(root: &Root) -> Result<Vec<String>, Error> {
    Ok(read(root).await?.sources.into_keys().collect())
}

async fn read(root: &Root) -> Result<Sources, Error> {
    match root.read_document(DOCUMENT).await? {
        None => Ok(Sources::default()),
        Some(text) => {
            serde_json::from_slice(&text).map_err(|_| Error::BrokenDocument { place: root.place_of_document(DOCUMENT) })
        }
    }
}

/// Refuses a server that is not that of the source.
pub async fn check(root: &Root, config: &Config, server: &Url) -> Result<(), Error> {
    new_record(&read(root).await?, root, config, server).map(drop)
}

/// Records the server of the source, or refuses it.
pub async fn claim(root: &Root, config: &Config, server: &Url) -> Result<(), Error> {
    let mut sources = read(root).await?;
    let Some(of_now) = new_record(&sources, root, config, server)? else { return Ok(()) };
    if let Some(before) = of_now.earlier.last() {
        tracing::warn!(
            source = &*config.source,
            before,
            now = of_now.server,
            "the source has moved to another address"
        );
    }
    let same = sources.sources.iter().find(|(_, other)| other.server == of_now.server);
    if let Some((name, _)) = same {
        tracing::warn!(
            source = &*config.source,
            other = name,
            "rows of this server are also kept under another source; both are in the tables, and each has its own rows"
        );
    }
    sources.sources.insert(config.source.to_string(), of_now);
    let text = serde_json::to_vec_pretty(&sources).map_err(crate::state::Error::from)?;
    Ok(root.write_document(DOCUMENT, text.into()).await?)
}

/// What is to be recorded of the source; `None` where that is recorded.
fn new_record(sources: &Sources, root: &Root, config: &Config, server: &Url) -> Result<Option<Source>, Error> {
    let server = server.as_str().trim_end_matches('/').to_owned();
    match sources.sources.get(&*config.source).cloned() {
        Some(known) if known.server == server => Ok(None),
        Some(known) => moved(root, config, known, server).map(Some),
        None => Ok(Some(Source { server, earlier: Vec::new() })),
    }
}

fn moved(root: &Root, config: &Config, known: Source, server: String) -> Result<Source, Error> {
    let name = config.source.to_string();
    if config.source_chosen == Chosen::ByDefault {
        return Err(Error::OtherServer { name, recorded: known.server, configured: server });
    }
    if known.earlier.contains(&server) {
        let place = root.place_of_document(DOCUMENT);
        return Err(Error::TwoServers { name, recorded: known.server, configured: server, place });
    }
    let mut earlier = known.earlier;
    earlier.push(known.server);
    Ok(Source { server, earlier })
}
