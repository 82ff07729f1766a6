//! An upload in parts. Nobody sees the file before it is complete.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures::FutureExt as _;
use object_store::{
    Error, MultipartId, MultipartUpload, ObjectStore, PutPayload, PutResult, Result, UploadPart,
    multipart::{MultipartStore, PartId},
    path::Path,
};

use super::client::{Answer, Client};

/// If it is dropped before it is complete, the client aborts it.
pub struct Upload<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> {
    client: Client<S, C>,
    path: Path,
    id: MultipartId,
    /// How many parts were begun.
    begun: usize,
    /// Those that the store has, in any order.
    stored: Arc<Mutex<Vec<(usize, PartId)>>>,
    is_open: bool,
}

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> Upload<S, C> {
    pub fn new(client: Client<S, C>, path: Path, id: MultipartId) -> Self {
        Self { client, path, id, begun: 0, stored: Arc::default(), is_open: true }
    }

    /// All parts in their order.
    fn parts(&self) -> Result<Vec<PartId>> {
        let mut parts = self.stored.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if parts.len() != self.begun {
            let source = format!("{} of {} parts were stored", parts.len(), self.begun).into();
            return Err(Error::Generic { store: "upload", source });
        }
        parts.sort_unstable_by_key(|(index, _)| *index);
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    }
}

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> MultipartUpload for Upload<S, C> {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let index = self.begun;
        self.begun += 1;
        let (client, path, id) = (self.client.clone(), self.path.clone(), self.id.clone());
        let stored = Arc::clone(&self.stored);
        async move {
            let part = client.ask(|| client.store().put_part(&path, &id, index, data.clone())).await?;
            stored.lock().unwrap_or_else(PoisonError::into_inner).push((index, part));
            Ok(())
        }
        .boxed()
    }

    fn complete<'a, 'b>(&'a mut self) -> Answer<'b, PutResult>
    where
        'a: 'b,
    {
        async move {
            let parts = self.parts()?;
            let store = self.client.store();
            let stored = self.client.ask(|| store.complete_multipart(&self.path, &self.id, parts.clone())).await?;
            self.is_open = false;
            Ok(stored)
        }
        .boxed()
    }

    fn abort<'a, 'b>(&'a mut self) -> Answer<'b, ()>
    where
        'a: 'b,
    {
        async move {
            self.client.ask(|| self.client.store().abort_multipart(&self.path, &self.id)).await?;
            self.is_open = false;
            Ok(())
        }
        .boxed()
    }
}

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> Drop for Upload<S, C> {
    fn drop(&mut self) {
        if self.is_open {
            self.client.abandon(std::mem::take(&mut self.path), std::mem::take(&mut self.id));
        }
    }
}

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> fmt::Debug for Upload<S, C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Upload").field("path", &self.path).field("begun", &self.begun).finish_non_exhaustive()
    }
}
