//! Metering: how many requests a client sends to an object store, and how many bytes they carry.
//!
//! A layer around the client of one table counts them. What the client repeats by itself after an error counts once;
//! ranges that it joins are one request, and each page of a listing and each part of an upload is one.

use std::{
    collections::BTreeMap,
    fmt,
    ops::{AddAssign, Sub},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart, path::Path,
};

use crate::telemetry::metrics::{self, StoreRequest};

/// Requests to an object store, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Reads of an object or a part of it, and of what is known about it.
    pub get: u64,
    /// Writes: an object, or a step of an upload in parts.
    pub put: u64,
    pub list: u64,
    /// Each deleted object; a store may take many in one request.
    pub delete: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl Requests {
    pub fn total(&self) -> u64 {
        self.get + self.put + self.list + self.delete
    }

    fn map(self, other: Self, of_both: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            get: of_both(self.get, other.get),
            put: of_both(self.put, other.put),
            list: of_both(self.list, other.list),
            delete: of_both(self.delete, other.delete),
            bytes_read: of_both(self.bytes_read, other.bytes_read),
            bytes_written: of_both(self.bytes_written, other.bytes_written),
        }
    }
}

impl Sub for Requests {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.map(earlier, u64::saturating_sub)
    }
}

impl AddAssign for Requests {
    fn add_assign(&mut self, other: Self) {
        *self = self.map(other, u64::saturating_add);
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { get, put, list, delete, .. } = self;
        write!(out, "{} requests ({get} get, {put} put, {list} list, {delete} delete)", self.total())
    }
}

/// What was requested since the process began, for one table.
#[derive(Debug, Default)]
pub struct Meter {
    get: AtomicU64,
    put: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Meter {
    pub fn read(&self) -> Requests {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Requests {
            get: of(&self.get),
            put: of(&self.put),
            list: of(&self.list),
            delete: of(&self.delete),
            bytes_read: of(&self.bytes_read),
            bytes_written: of(&self.bytes_written),
        }
    }

    fn count(&self, kind: StoreRequest) {
        let count = match kind {
            StoreRequest::Get => &self.get,
            StoreRequest::Put => &self.put,
            StoreRequest::List => &self.list,
            StoreRequest::Delete => &self.delete,
        };
        count.fetch_add(1, Ordering::Relaxed);
        metrics::store_requested(kind);
    }

    fn read_bytes(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        metrics::store_read(bytes);
    }

    fn put_bytes(&self, bytes: usize) {
        self.count(StoreRequest::Put);
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics::store_written(bytes as u64);
    }
}

/// The meters of all tables below a root, by the folder of the table.
#[derive(Debug, Default)]
pub struct Meters(Mutex<BTreeMap<String, Arc<Meter>>>);

impl Meters {
    pub fn of(&self, folder: &str) -> Arc<Meter> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(meters.entry(folder.to_owned()).or_default())
    }
}

/// A client whose requests are counted.
#[derive(Debug)]
pub struct Metered {
    client: Arc<dyn ObjectStore>,
    meter: Arc<Meter>,
}

impl Metered {
    pub fn new(client: Arc<dyn ObjectStore>, meter: Arc<Meter>) -> Self {
        Self { client, meter }
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(out)
    }
}

/// What `async_trait` makes of an async function.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// How many objects a store lists in one answer.
const OBJECTS_PER_PAGE: usize = 1000;

impl ObjectStore for Metered {
    fn put_opts<'a, 'b, 'c>(&'a self, to: &'b Path, payload: PutPayload, options: PutOptions) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.meter.put_bytes(payload.content_length());
        self.client.put_opts(to, payload, options)
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
        Box::pin(async move {
            self.meter.count(StoreRequest::Put);
            let upload = self.client.put_multipart_opts(to, options).await?;
            Ok(Box::new(MeteredUpload { upload, meter: Arc::clone(&self.meter) }) as Box<dyn MultipartUpload>)
        })
    }

    fn get_opts<'a, 'b, 'c>(&'a self, from: &'b Path, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.meter.count(StoreRequest::Get);
            let is_head = options.head;
            let got = self.client.get_opts(from, options).await?;
            if !is_head {
                self.meter.read_bytes(got.range.end - got.range.start);
            }
            Ok(got)
        })
    }

    // `get_ranges` stays the default, which joins ranges and asks for them with `get_opts`.

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let meter = Arc::clone(&self.meter);
        self.client.delete_stream(paths.inspect(move |_| meter.count(StoreRequest::Delete)).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counted(self.client.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.counted(self.client.list_with_offset(prefix, offset))
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.meter.count(StoreRequest::List);
        self.client.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, from: &'b Path, to: &'d Path, options: CopyOptions) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.meter.count(StoreRequest::Put);
        self.client.copy_opts(from, to, options)
    }
}

impl Metered {
    /// One request for each page.
    fn counted(&self, listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let meter = Arc::clone(&self.meter);
        meter.count(StoreRequest::List);
        let count = move |(index, listed): (usize, _)| {
            if index > 0 && index % OBJECTS_PER_PAGE == 0 {
                meter.count(StoreRequest::List);
            }
            listed
        };
        listed.enumerate().map(count).boxed()
    }
}

/// An upload in parts; beginning it was counted.
#[derive(Debug)]
struct MeteredUpload {
    upload: Box<dyn MultipartUpload>,
    meter: Arc<Meter>,
}

impl MultipartUpload for MeteredUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        self.meter.put_bytes(part.content_length());
        self.upload.put_part(part)
    }

    fn complete<'a, 'c>(&'a mut self) -> Answer<'c, PutResult>
    where
        'a: 'c,
    {
        self.meter.count(StoreRequest::Put);
        self.upload.complete()
    }

    fn abort<'a, 'c>(&'a mut self) -> Answer<'c, ()>
    where
        'a: 'c,
    {
        self.meter.count(StoreRequest::Put);
        self.upload.abort()
    }
}
