//! One file of deletions. Each entry is judged by itself; one that is not understood holds the watermarks of the types
//! that it may concern, and is kept in the quarantine (rule 95).

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{
    Context, Holds, Remark,
    stream::{Reader, stream},
};
use crate::{
    export::File,
    fhir::ResourceType,
    resource::{BadLine, DeletedEntry, Line, Reason, deleted_entries},
    sync::{Error, chain},
};

/// The code of an entry that is not understood, in `sync.accept_reported_errors`.
const NOT_UNDERSTOOD: &str = "deletion-not-understood";

#[derive(Default)]
struct Deletions {
    entries: AtomicU64,
    /// Entries and lines that were not understood, by the type that they concern.
    not_understood: Mutex<Vec<Option<ResourceType>>>,
}

impl Reader for Deletions {
    fn take(&self, context: &Context, file: &File, lines: Vec<Line>) -> Result<(), Error> {
        let mut bad = Vec::new();
        for line in lines {
            let not_understood = match deleted_entries(&line) {
                Ok(entries) => self.apply(context, entries)?,
                Err(reason) => {
                    self.hold(context, file, None);
                    Some(Unclear { reason, concerns: vec![] })
                }
            };
            if let Some(Unclear { reason, concerns }) = not_understood {
                for concerns in concerns {
                    self.hold(context, file, concerns);
                }
                bad.push(BadLine { line, reason });
            }
        }
        context.quarantine(None, file, &bad)
    }

    /// Servers count Bundles, which are lines, or the entries in them. Where the entries are not exactly as many as
    /// announced, their number says nothing about a Bundle that is missing: each may have any number of them.
    fn counted(&self, lines: u64, announced: u64) -> u64 {
        let entries = self.entries.load(Ordering::Relaxed);
        if entries == announced { entries } else { lines }
    }
}

/// The part of a line that was not understood.
struct Unclear {
    reason: Reason,
    concerns: Vec<Option<ResourceType>>,
}

impl Deletions {
    /// Applies what is understood, and gives what is not.
    fn apply(&self, context: &Context, entries: Vec<DeletedEntry>) -> Result<Option<Unclear>, Error> {
        self.entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
        let mut unclear: Option<Unclear> = None;
        for (index, entry) in entries.into_iter().enumerate() {
            match entry {
                DeletedEntry::Deletion(deletion) => context.delete(deletion)?,
                DeletedEntry::UnknownType => {}
                // Nobody keeps this type.
                DeletedEntry::NotUnderstood { concerns: Some(of) } if !context.intakes.contains_key(&of) => {}
                DeletedEntry::NotUnderstood { concerns } => {
                    let first = || Unclear { reason: Reason::NoDeletion { entry: index }, concerns: vec![] };
                    unclear.get_or_insert_with(first).concerns.push(concerns);
                }
            }
        }
        Ok(unclear)
    }

    fn hold(&self, context: &Context, file: &File, concerns: Option<ResourceType>) {
        if !context.accepts(&file.name, NOT_UNDERSTOOD) {
            self.not_understood.lock().unwrap_or_else(PoisonError::into_inner).push(concerns);
        }
    }
}

pub async fn read(context: Arc<Context>, file: File) -> Vec<Remark> {
    let deletions = Arc::new(Deletions::default());
    let result = stream(&context, &file, Arc::clone(&deletions)).await;
    context.progress.update(|progress| progress.files_done += 1);
    let not_understood = std::mem::take(&mut *deletions.not_understood.lock().unwrap_or_else(PoisonError::into_inner));
    let mut remarks = Vec::new();
    if let Err(error) = result {
        // They may be of any type.
        let text = format!("deletions may be missing: {}", chain(&error));
        remarks.push(Remark::hold(Holds::Everything, text));
    }
    if !not_understood.is_empty() {
        let text = format!(
            "{}: {} entries are not the deletion of one resource; they are in quarantine, and the watermarks of the types \
             that they may concern stay; accept them with sync.accept_reported_errors = [\"{NOT_UNDERSTOOD}\"]",
            file.name,
            not_understood.len(),
        );
        let types: Option<_> = not_understood.into_iter().collect();
        remarks.push(Remark::hold(types.map_or(Holds::Everything, Holds::Types), text));
    }
    remarks
}
