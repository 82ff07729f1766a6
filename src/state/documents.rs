//! The state in documents that several machines reach: one for what all exports share, and one per export.
//!
//! Each is replaced only by a process that has read what it replaces. A process claims every document when it opens the
//! state, by writing it again under its own name: what a former holder still has on its way then finds another
//! document, and is refused. So a process that was replaced never overwrites anything.

use std::{collections::BTreeMap, sync::Arc};

use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    Error, ExportState, Found, State,
    envelope::{Opened, opened, sealed},
};
use crate::{
    lease::{Holder, Lease, Subject},
    store::{Document, Documents, Stored, Swapped},
};

/// The documents of a state, and the lease of it.
#[derive(Debug)]
pub struct StateDocuments {
    documents: Documents,
    pub holder: String,
    pub lease: Arc<Lease>,
    /// Renews the lease as long as this exists.
    _keeper: JoinSet<()>,
    /// Each document as it was last read or written by us, by its name.
    known: BTreeMap<String, Stored>,
}

/// What all exports share: a [`State`] without exports.
pub(super) const SHARED: &str = "state.json";
pub(super) const LEASE: &str = "lease.json";
const EXPORTS: &str = "exports";

/// How often a document is read again that somebody else has replaced in the meantime: the lease is ours, so that is
/// one last write of its former holder.
pub(super) const MAX_CLAIMS: u32 = 5;

impl StateDocuments {
    /// Takes the lease, which may take a minute; then reads and claims every document.
    pub async fn open(documents: Documents) -> Result<(Self, State, Found), Error> {
        let holder = Uuid::new_v4().to_string();
        let us = Holder::ourselves(&holder);
        let lease = Arc::new(Lease::take(Subject::State, documents.document(LEASE), us, None).await?);
        if !lease.is_supported() {
            return Err(Error::Unconditional { place: documents.shown() });
        }
        let mut keeper = JoinSet::new();
        keeper.spawn(Lease::keep(Arc::downgrade(&lease)));
        let mut ours = Self { documents, holder, lease, _keeper: keeper, known: BTreeMap::new() };
        let (state, found) = ours.read().await?;
        Ok((ours, state, found))
    }

    async fn read(&mut self) -> Result<(State, Found), Error> {
        let (shared, mut found) = self.claimed::<State>(SHARED).await?;
        let mut state = State { exports: BTreeMap::new(), ..shared.unwrap_or_default() };
        for name in exports_in(&self.documents).await? {
            let (export, as_found) = self.claimed::<ExportState>(&document_of(&name)).await?;
            found = worse(found, as_found);
            state.exports.extend(export.map(|export| (name, export)));
        }
        Ok((state, found))
    }

    /// The content of a document, which is under our name now; a broken one that no previous generation replaces is
    /// left as it is.
    async fn claimed<T: DeserializeOwned>(&mut self, name: &str) -> Result<(Option<T>, Found), Error> {
        let document = self.documents.document(name);
        for _ in 0..MAX_CLAIMS {
            let Some(stored) = document.read().await? else { return Ok((None, Found::Nothing)) };
            let (body, content, found) = match open(&document, &stored.text)? {
                Some((body, content)) => (body, content, Found::Whole),
                None => match whole_previous(&self.documents, name).await? {
                    Some((body, content)) => (body, content, Found::Previous),
                    None => {
                        let broken = self.documents.document(&format!("{name}.broken"));
                        broken.put(stored.text.clone()).await?;
                        self.known.insert(name.to_owned(), stored);
                        return Ok((None, Found::Broken { kept_as: broken.shown() }));
                    }
                },
            };
            match document.swap(Some(&stored), sealed(&body, Some(&self.holder))).await? {
                Swapped::Done(stored) => {
                    self.known.insert(name.to_owned(), stored);
                    return Ok((Some(content), found));
                }
                Swapped::Overtaken => self.lease.check().await?,
                Swapped::Unsupported => return Err(Error::Unconditional { place: document.shown() }),
            }
        }
        Err(Error::TakenOver { place: document.shown() })
    }

    /// Writes every document whose content has changed.
    pub async fn write(&mut self, state: &State) -> Result<(), Error> {
        // A number of a run must not be given twice, so it is written before anything that has it.
        self.write_document(SHARED, &without_exports(state)?).await?;
        for (name, export) in &state.exports {
            self.write_document(&document_of(name), &serde_json::to_string_pretty(export)?).await?;
        }
        Ok(())
    }

    async fn write_document(&mut self, name: &str, body: &str) -> Result<(), Error> {
        let text = sealed(body, Some(&self.holder));
        let before = self.known.get(name);
        if before.is_some_and(|before| before.text == text) {
            return Ok(());
        }
        let mut before = before.cloned();
        let document = self.documents.document(name);
        for _ in 0..MAX_CLAIMS {
            match document.swap(before.as_ref(), text.clone()).await? {
                Swapped::Done(stored) => {
                    self.known.insert(name.to_owned(), stored);
                    keep_previous(&self.documents, name, before).await;
                    return Ok(());
                }
                // Somebody has replaced us, or a former holder created it after we had looked: the lease says which.
                Swapped::Overtaken => {
                    let found = document.read().await?;
                    self.lease.check().await?;
                    before = found;
                }
                Swapped::Unsupported => return Err(Error::Unconditional { place: document.shown() }),
            }
        }
        Err(Error::TakenOver { place: document.shown() })
    }
}

/// Keeps what was replaced, if it was whole. Afterwards: only the process that has replaced it may say so.
pub(super) async fn keep_previous(documents: &Documents, name: &str, before: Option<Stored>) {
    let is_whole = |before: &Stored| matches!(opened::<serde_json::Value>(&before.text), Opened::Whole(_));
    let Some(before) = before.filter(is_whole) else { return };
    let previous = documents.document(&previous(name));
    if let Err(error) = previous.put(before.text).await {
        tracing::warn!(%error, "the previous generation of the state could not be kept");
    }
}

/// Reads the documents without the lease, for commands that change nothing.
pub async fn peek(documents: &Documents) -> Result<State, Error> {
    let shared = peek_at::<State>(documents, SHARED).await?;
    let mut state = State { exports: BTreeMap::new(), ..shared.unwrap_or_default() };
    for name in exports_in(documents).await? {
        let export = peek_at(documents, &document_of(&name)).await?;
        state.exports.extend(export.map(|export| (name, export)));
    }
    Ok(state)
}

/// As [`peek`], without the documents of exports that are broken: whoever takes their lease recreates them.
pub async fn read_whole(documents: &Documents) -> Result<State, Error> {
    let shared = peek_at::<State>(documents, SHARED).await?;
    let mut state = State { exports: BTreeMap::new(), ..shared.unwrap_or_default() };
    for name in exports_in(documents).await? {
        match peek_at(documents, &document_of(&name)).await {
            Ok(export) => state.exports.extend(export.map(|export| (name, export))),
            Err(Error::Refused { .. }) => tracing::warn!(export = name, "the state of an export is broken"),
            Err(error) => return Err(error),
        }
    }
    Ok(state)
}

async fn peek_at<T: DeserializeOwned>(documents: &Documents, name: &str) -> Result<Option<T>, Error> {
    let document = documents.document(name);
    let Some(stored) = document.read().await? else { return Ok(None) };
    if let Some((_, content)) = open(&document, &stored.text)? {
        return Ok(Some(content));
    }
    match whole_previous(documents, name).await? {
        Some((_, content)) => Ok(Some(content)),
        None => Err(Error::twice_broken(document.shown())),
    }
}

pub(super) async fn whole_previous<T: DeserializeOwned>(
    documents: &Documents,
    name: &str,
) -> Result<Option<(String, T)>, Error> {
    let document = documents.document(&previous(name));
    match document.read().await? {
        Some(stored) => open(&document, &stored.text),
        None => Ok(None),
    }
}

/// The body of an envelope, and what it says; `None` where it is broken.
pub(super) fn open<T: DeserializeOwned>(document: &Document, text: &str) -> Result<Option<(String, T)>, Error> {
    let body = match opened::<Box<serde_json::value::RawValue>>(text) {
        Opened::Whole(body) => body.get().to_owned(),
        Opened::Newer(found) => return Err(Error::Newer { place: document.shown(), found }),
        Opened::Broken => return Ok(None),
    };
    Ok(serde_json::from_str(&body).ok().map(|content| (body, content)))
}

/// The names of the exports that have a document.
async fn exports_in(documents: &Documents) -> Result<Vec<String>, Error> {
    let found = documents.list(EXPORTS).await?;
    let name = |path: &String| {
        let name = path.strip_prefix(EXPORTS)?.strip_prefix('/')?.strip_suffix(".json")?;
        Some(name.to_owned())
    };
    Ok(found.iter().filter_map(name).collect())
}

pub(super) fn document_of(export: &str) -> String {
    format!("{EXPORTS}/{export}.json")
}

fn previous(name: &str) -> String {
    format!("{name}.previous")
}

pub(super) fn without_exports(state: &State) -> Result<String, Error> {
    let State { run, speaks_r4, maintained_at, last_sync_before_migration, exports: _ } = *state;
    let shared = State { run, speaks_r4, maintained_at, last_sync_before_migration, exports: BTreeMap::new() };
    Ok(serde_json::to_string_pretty(&shared)?)
}

/// A broken document is worse than one that was replaced by its previous generation, and that than a whole one.
fn worse(found: Found, other: Found) -> Found {
    match (&found, &other) {
        (Found::Broken { .. }, _) => found,
        (_, Found::Broken { .. }) => other,
        (Found::Previous, _) | (_, Found::Nothing) => found,
        (_, Found::Previous) => other,
        // An export has a document, so the state was there, and what all exports share was lost.
        (Found::Nothing, _) => Found::Nothing,
        _ => found,
    }
}
