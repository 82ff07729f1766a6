//! The upsert into an object store that takes its time: a local folder where each request waits.
//!
//! A request is one that a client would send by HTTP: a range, a page of a listing, a part of an upload. Only waiting
//! is measured so; a store also sends fewer bytes in a second than a disk.

use std::{fmt, ops::Range, path::Path, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use fhir_sync::{
    fhir::ResourceType,
    store::cache,
    table::{Config, Location, Root},
};
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart, local::LocalFileSystem, path::Path as StorePath,
};
use tokio::time::sleep;

use super::{
    CHANGES,
    ours::{Bench, CHANGED, ids, shifted_ids},
    restored, table,
};
use crate::{
    Setup,
    child::{self, Row, Work},
    data,
};

const LATENCY_MS: &str = "20";
const CACHE_BYTES: u64 = 1024 * 1024 * 1024;

pub fn run(setup: &Setup) -> anyhow::Result<()> {
    let lines = data::observations(setup, setup.bytes)?;
    let lines = lines.to_str().context("the path is not UTF-8")?;
    let rows = setup.rows;
    let table = table(setup, lines, rows)?;
    println!("\nlatency: {CHANGES} changes, half of them updates, into {rows} Observations in a store");
    let (rows, changes) = (rows.to_string(), CHANGES.to_string());
    let measure = |step: &str, more: &[&str]| {
        restored(&table, |folder| child::measure(step, &[&[folder, lines, &rows, &changes], more].concat()))
    };
    let local = measure("upsert/ours", &[])?;
    let at_once = measure("upsert/store", &["0", "1"])?;
    let late = measure("upsert/store", &[LATENCY_MS, "1"])?;
    let twice_at_once = measure("upsert/store", &["0", "2"])?;
    let twice = measure("upsert/store", &[LATENCY_MS, "2"])?;
    child::print_table(&[
        Row { what: "a local folder", figures: local },
        Row { what: "a store, 0 ms", figures: at_once },
        Row { what: "a store, 20 ms", figures: late },
        Row { what: "a store, 0 ms, two upserts", figures: twice_at_once },
        Row { what: "a store, 20 ms, two upserts", figures: twice },
    ]);
    println!("\n20 ms for each request take {:.2} × the time of a folder", late.wall_seconds / local.wall_seconds);
    let second = twice.wall_seconds - late.wall_seconds;
    println!("for the second upsert of a process {:.2} ×", second / local.wall_seconds);
    Ok(())
}

/// Folder, lines, rows of the table, changes, milliseconds for each request, upserts.
pub fn upserts(arguments: &[String]) -> anyhow::Result<Work> {
    let [folder, lines, rows, changes, latency_ms, upserts] = arguments else { anyhow::bail!("six arguments") };
    let (rows, changes) = (rows.parse()?, changes.parse::<u64>()?);
    let folder = Path::new(folder).canonicalize()?;
    let client = Late { disk: Arc::new(LocalFileSystem::new()), latency: Duration::from_millis(latency_ms.parse()?) };
    let spool = tempfile::tempdir()?;
    let cache = cache::Settings { folder: spool.path().to_owned(), max_bytes: CACHE_BYTES };
    let location = Location::ObjectStore(format!("store://bench{}/", folder.display()).parse()?);
    let root = Root::over(Arc::new(client), Config { cache: Some(cache), ..Config::new(location) })?;
    let bench = Bench::over(root.clone())?;
    let mut last = None;
    let mut before = root.requests(ResourceType::OBSERVATION.into()).context("a folder")?;
    for number in 0..upserts.parse()? {
        let committed = if number == 0 {
            bench.upsert(Path::new(lines), CHANGED, ids(rows, changes))?
        } else {
            bench.upsert(Path::new(lines), CHANGED + number * 1_000_000, shifted_ids(rows, changes))?
        };
        ensure!(committed.counts.total() == changes, "{:?}", committed.counts);
        let requests = root.requests(ResourceType::OBSERVATION.into()).context("a folder")?;
        let of_upsert = requests - before;
        eprintln!(
            "upsert {number}: {of_upsert}, {:.1} MB read, {:.1} MB written",
            child::megabytes(of_upsert.bytes_read),
            child::megabytes(of_upsert.bytes_written)
        );
        before = requests;
        last = Some(committed);
    }
    Ok(bench.work(&last.context("nothing was done")?))
}

/// A local folder where each request waits.
#[derive(Debug)]
struct Late {
    disk: Arc<LocalFileSystem>,
    latency: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} after {:?}", self.disk, self.latency)
    }
}

/// What `async_trait` makes of an async function.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl Late {
    fn after<'a, T: 'a>(&self, answer: Answer<'a, T>) -> Answer<'a, T> {
        let latency = self.latency;
        Box::pin(async move {
            wait(latency).await;
            answer.await
        })
    }

    /// In the order of the names, as object stores do.
    fn listed(&self, listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        let latency = self.latency;
        let sorted = async move {
            wait(latency).await;
            let mut listed = listed.try_collect::<Vec<_>>().await?;
            listed.sort_by(|one, other| one.location.cmp(&other.location));
            Ok::<_, object_store::Error>(stream::iter(listed.into_iter().map(Ok)))
        };
        stream::once(sorted).try_flatten().boxed()
    }
}

async fn wait(latency: Duration) {
    if !latency.is_zero() {
        sleep(latency).await;
    }
}

impl ObjectStore for Late {
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
        self.after(self.disk.put_opts(to, payload, options))
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
        Box::pin(async move {
            wait(self.latency).await;
            let upload = self.disk.put_multipart_opts(to, options).await?;
            Ok(Box::new(LateUpload { upload, latency: self.latency }) as Box<dyn MultipartUpload>)
        })
    }

    fn get_opts<'a, 'b, 'c>(&'a self, from: &'b StorePath, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.after(self.disk.get_opts(from, options))
    }

    fn get_ranges<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b StorePath,
        ranges: &'d [Range<u64>],
    ) -> Answer<'c, Vec<bytes::Bytes>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.after(self.disk.get_ranges(from, ranges))
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<StorePath>>) -> BoxStream<'static, Result<StorePath>> {
        self.disk.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&StorePath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.disk.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&StorePath>,
        offset: &StorePath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.disk.list_with_offset(prefix, offset))
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b StorePath>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.after(self.disk.list_with_delimiter(prefix))
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
        self.after(self.disk.copy_opts(from, to, options))
    }
}

#[derive(Debug)]
struct LateUpload {
    upload: Box<dyn MultipartUpload>,
    latency: Duration,
}

impl MultipartUpload for LateUpload {
    fn put_part(&mut self, part: PutPayload) -> UploadPart {
        let (latency, put) = (self.latency, self.upload.put_part(part));
        Box::pin(async move {
            wait(latency).await;
            put.await
        })
    }

    fn complete<'a, 'c>(&'a mut self) -> Answer<'c, PutResult>
    where
        'a: 'c,
    {
        Box::pin(async move {
            wait(self.latency).await;
            self.upload.complete().await
        })
    }

    fn abort<'a, 'c>(&'a mut self) -> Answer<'c, ()>
    where
        'a: 'c,
    {
        self.upload.abort()
    }
}
