//! A store that notes each request: what an HTTP client would send, by kind and path.

use std::{fmt, pin::Pin, sync::Mutex as StdMutex};

use deltalake::ObjectStore;
use futures::{
    StreamExt as _, TryFutureExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, path::Path as StorePath,
};

use super::*;

/// What `async_trait` makes of an async function.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

#[derive(Debug, Clone)]
pub(super) struct Traced {
    store: Arc<dyn ObjectStore>,
    requests: Arc<StdMutex<Vec<String>>>,
}

impl Traced {
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, requests: Arc::default() }
    }

    /// The requests since the last call, in order: `get lake/Patient.parquet/…`.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    fn note(&self, kind: &str, path: &dyn fmt::Display) {
        self.requests.lock().unwrap().push(format!("{kind} {path}"));
    }

    /// In the order of the names, as object stores do.
    fn sorted(listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = listed.try_collect::<Vec<_>>().map_ok(|mut listed| {
            listed.sort_by(|one, other| one.location.cmp(&other.location));
            stream::iter(listed.into_iter().map(Ok))
        });
        stream::once(listed).try_flatten().boxed()
    }
}

impl fmt::Display for Traced {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "traced {}", self.store)
    }
}

impl ObjectStore for Traced {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        to: &'b StorePath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.note("put", to);
        self.store.put_opts(to, payload, options)
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        to: &'b StorePath,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.note("put-in-parts", to);
        self.store.put_multipart_opts(to, options)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, from: &'b StorePath, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => format!(" {range:?}"),
            _ => String::new(),
        };
        self.note(if options.head { "head" } else { "get" }, &format!("{from}{range}"));
        self.store.get_opts(from, options)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<StorePath>>) -> BoxStream<'static, Result<StorePath>> {
        let traced = self.clone();
        let note = move |path: &Result<StorePath>| {
            if let Ok(path) = path {
                traced.note("delete", path);
            }
        };
        self.store.delete_stream(paths.inspect(note).boxed())
    }

    fn list(&self, prefix: Option<&StorePath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.note("list", prefix.unwrap_or(&StorePath::default()));
        Self::sorted(self.store.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&StorePath>,
        offset: &StorePath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.note("list", &format!("after {offset}"));
        Self::sorted(self.store.list_with_offset(prefix, offset))
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b StorePath>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.note("list", prefix.unwrap_or(&StorePath::default()));
        self.store.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b StorePath,
        to: &'d StorePath,
        options: CopyOptions,
    ) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.note("copy", to);
        self.store.copy_opts(from, to, options)
    }
}
