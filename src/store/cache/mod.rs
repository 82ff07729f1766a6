//! The cache of a store: a layer around a client that keeps parts of objects on the local disk.
//!
//! Two kinds of objects are kept. Files of a Delta log are never rewritten, but a table may be deleted and created
//! again at the same place. So a file of a log counts only as long as the newest listing of it shows the content that
//! was kept, by its entity tag. Data files and deletion vectors have names that nobody uses twice; of them those parts
//! are kept whose reader asks for it ([`Keep`]).

mod kept;
mod pages;

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use chrono::DateTime;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use tokio::task::JoinSet;

use self::kept::Part;
pub use self::kept::{Cache, Settings};
use super::metered::Answer;

/// Marks a request for a part of an object that is never replaced, and that is read again and again.
#[derive(Clone, Copy, Debug)]
pub struct Keep;

impl Keep {
    pub fn range(range: Range<u64>) -> GetOptions {
        Self::mark(GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() })
    }

    /// Of a small object.
    pub fn whole() -> GetOptions {
        Self::mark(GetOptions::default())
    }

    fn mark(mut options: GetOptions) -> GetOptions {
        options.extensions.insert(Self);
        options
    }
}

/// A client with a cache.
#[derive(Debug)]
pub struct Cached {
    client: Arc<dyn ObjectStore>,
    cache: Arc<Cache>,
    /// Files of logs, as this client has listed them.
    listed: Arc<Mutex<HashMap<Path, ObjectMeta>>>,
}

impl Cached {
    pub fn new(client: Arc<dyn ObjectStore>, cache: Arc<Cache>) -> Self {
        Self { client, cache, listed: Arc::default() }
    }

    /// The part that is asked for, if it may be kept, and what is known of its object.
    fn part(&self, path: &Path, options: &GetOptions) -> Option<(Part, Option<ObjectMeta>)> {
        let is_plain = options.if_match.is_none()
            && options.if_none_match.is_none()
            && options.if_modified_since.is_none()
            && options.if_unmodified_since.is_none()
            && options.version.is_none()
            && !options.head;
        let range = match &options.range {
            None => None,
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            Some(_) => return None,
        };
        if !is_plain {
            return None;
        }
        let path = path.clone();
        if options.extensions.get::<Keep>().is_some() {
            return Some((Part { path, e_tag: None, range }, None));
        }
        let meta = self.listed.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned()?;
        let e_tag = Some(plain(meta.e_tag.as_deref()?));
        Some((Part { path, e_tag, range }, Some(meta)))
    }

    fn noting(&self, listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let known = Arc::clone(&self.listed);
        let note = move |meta: &Result<ObjectMeta>| {
            if let Ok(meta) = meta
                && is_of_log(&meta.location)
            {
                known.lock().unwrap_or_else(PoisonError::into_inner).insert(meta.location.clone(), meta.clone());
            }
        };
        listed.inspect(note).boxed()
    }

    async fn get_part(&self, part: Part, meta: Option<ObjectMeta>, options: GetOptions) -> Result<GetResult> {
        let (cache, asked) = (Arc::clone(&self.cache), part.clone());
        if let Some(bytes) = on_a_blocking_thread(move || cache.get(&asked)).await.flatten() {
            return Ok(answer(&part, meta, bytes));
        }
        let got = self.client.get_opts(&part.path, options).await?;
        if got.range.end - got.range.start > self.cache.max_part_bytes() {
            return Ok(got);
        }
        let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let bytes = got.bytes().await?;
        // Between the listing and this answer the object may have been replaced.
        if part.e_tag.is_none() || part.e_tag == meta.e_tag.as_deref().map(plain) {
            self.keep(part, bytes.clone()).await;
        }
        Ok(GetResult { payload: payload(bytes), meta, range, attributes })
    }

    async fn keep(&self, part: Part, bytes: Bytes) {
        let cache = Arc::clone(&self.cache);
        on_a_blocking_thread(move || cache.insert(&part, &bytes)).await;
    }
}

/// A tag without its quotation marks: some stores have them in an answer and not in a listing.
fn plain(e_tag: &str) -> String {
    e_tag.trim_matches('"').to_owned()
}

/// Commits, checkpoints and what belongs to them: their names begin with a version. `_last_checkpoint` is replaced.
fn is_of_log(path: &Path) -> bool {
    let mut parts: Vec<_> = path.parts().collect();
    let name = parts.pop();
    parts.last().is_some_and(|folder| folder.as_ref() == "_delta_log")
        && name.is_some_and(|name| name.as_ref().starts_with(|first: char| first.is_ascii_digit()))
}

fn answer(part: &Part, meta: Option<ObjectMeta>, bytes: Bytes) -> GetResult {
    let bytes_in_part = bytes.len() as u64;
    let range = part.range.clone().unwrap_or(0..bytes_in_part);
    let meta = meta.unwrap_or_else(|| ObjectMeta {
        location: part.path.clone(),
        last_modified: DateTime::UNIX_EPOCH,
        size: range.end,
        e_tag: None,
        version: None,
    });
    GetResult { payload: payload(bytes), meta, range, attributes: object_store::Attributes::default() }
}

fn payload(bytes: Bytes) -> GetResultPayload {
    GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed())
}

/// `None` where the runtime is ending.
async fn on_a_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let mut thread = JoinSet::new();
    thread.spawn_blocking(work);
    thread.join_next().await?.ok()
}

impl fmt::Display for Cached {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(out)
    }
}

impl ObjectStore for Cached {
    fn put_opts<'a, 'b, 'c>(&'a self, to: &'b Path, payload: PutPayload, options: PutOptions) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            if !is_of_log(to) {
                return self.client.put_opts(to, payload, options).await;
            }
            let put = self.client.put_opts(to, payload.clone(), options).await?;
            if let Some(e_tag) = put.e_tag.as_deref().map(plain) {
                // The next listing shows this tag if nobody was faster.
                let part = Part { path: to.clone(), e_tag: Some(e_tag), range: None };
                self.keep(part, payload.into()).await;
            }
            Ok(put)
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        to: &'b Path,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.client.put_multipart_opts(to, options)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, from: &'b Path, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            match self.part(from, &options) {
                Some((part, meta)) => self.get_part(part, meta, options).await,
                None => self.client.get_opts(from, options).await,
            }
        })
    }

    // `get_ranges` stays the default, which joins ranges and asks for them with `get_opts`.

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.client.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.noting(self.client.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.noting(self.client.list_with_offset(prefix, offset))
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.client.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, from: &'b Path, to: &'d Path, options: CopyOptions) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.client.copy_opts(from, to, options)
    }
}

#[cfg(test)]
mod tests;
