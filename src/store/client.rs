//! The client of one bucket or container.
//!
//! What always holds: a request that was refused because of its credentials is sent once more, if there are others
//! now; every error says why in the words of [`Failure`]; a bucket that is not there is never taken for a file that is
//! not there; an upload that nobody completed is aborted before the next write.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, multipart::MultipartStore, path::Path,
};

use super::{
    failure::{Cause, Failure},
    renewing::Renewing,
    upload::Upload,
};

/// Copies are the same client.
pub struct Client<S, C>(Arc<Inner<S, C>>);

struct Inner<S, C> {
    store: S,
    credentials: Arc<Renewing<C>>,
    /// Where requests go, for people.
    endpoint: String,
    /// Uploads that were begun and then dropped.
    abandoned: Mutex<Vec<(Path, MultipartId)>>,
}

/// Between two conditional writes of one file that S3 takes for a conflict. It does not say which of them was done, and
/// asks to send the request again: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html>.
const CONFLICT_PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

fn is_conflict(error: &Error) -> bool {
    Failure::within(error).is_some_and(|failure| failure.code.as_deref() == Some("ConditionalRequestConflict"))
}

/// As many as one request can delete on S3.
const MAX_DELETED_TOGETHER: usize = 1000;

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> Client<S, C> {
    pub fn new(store: S, credentials: Arc<Renewing<C>>, endpoint: String) -> Self {
        Self(Arc::new(Inner { store, credentials, endpoint, abandoned: Mutex::default() }))
    }

    pub(super) fn store(&self) -> &S {
        &self.0.store
    }

    /// Sends a request, and once more if other credentials may be accepted.
    pub(super) async fn ask<T, Asking>(&self, request: impl Fn() -> Asking + Send) -> Result<T>
    where
        Asking: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let credentials = self.0.credentials.number();
        match request().await {
            Ok(answer) => Ok(answer),
            Err(error) if self.has_others(&error, credentials).await => {
                request().await.map_err(|error| self.explained(error))
            }
            Err(error) => Err(self.explained(error)),
        }
    }

    /// Whether there are other credentials than those that were refused.
    async fn has_others(&self, error: &Error, refused: u64) -> bool {
        Failure::of(error, &self.0.endpoint).is_of_credentials() && self.0.credentials.renew(refused).await
    }

    /// The same error with a [`Failure`] as its only cause.
    pub(super) fn explained(&self, error: Error) -> Error {
        let failure = Failure::of(&error, &self.0.endpoint);
        let is_bucket = failure.cause == Cause::NoBucket;
        let source = Box::new(failure);
        match error {
            // Callers take this for an absent file, and an absent log for a table that was never written.
            Error::NotFound { .. } if is_bucket => Error::Generic { store: "object store", source },
            Error::NotFound { path, .. } => Error::NotFound { path, source },
            Error::AlreadyExists { path, .. } => Error::AlreadyExists { path, source },
            Error::Precondition { path, .. } => Error::Precondition { path, source },
            Error::NotModified { path, .. } => Error::NotModified { path, source },
            Error::PermissionDenied { path, .. } => Error::PermissionDenied { path, source },
            Error::Unauthenticated { path, .. } => Error::Unauthenticated { path, source },
            error @ (Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. }
            | Error::JoinError { .. }) => error,
            _ => Error::Generic { store: "object store", source },
        }
    }

    pub(super) fn abandon(&self, path: Path, id: MultipartId) {
        self.abandoned().push((path, id));
    }

    fn abandoned(&self) -> std::sync::MutexGuard<'_, Vec<(Path, MultipartId)>> {
        self.0.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The parts of an upload cost money until it is aborted, and no list of files shows them.
    async fn abort_abandoned(&self) {
        let abandoned = std::mem::take(&mut *self.abandoned());
        for (path, id) in abandoned {
            let aborted = self.ask(|| self.store().abort_multipart(&path, &id)).await;
            if let Err(error) = aborted
                && !matches!(error, Error::NotFound { .. })
            {
                tracing::warn!(%error, %path, "an upload was left behind; a lifecycle rule of the bucket removes it");
            }
        }
    }

    async fn delete_together(&self, paths: Vec<Path>) -> Vec<Result<Path>> {
        let delete = || {
            let paths: Vec<_> = paths.iter().cloned().map(Ok).collect();
            self.store().delete_stream(stream::iter(paths).boxed()).collect::<Vec<_>>()
        };
        let credentials = self.0.credentials.number();
        let mut deleted = delete().await;
        let mut refused = None;
        for error in deleted.iter().filter_map(|deleted| deleted.as_ref().err()) {
            refused = refused.or(Failure::of(error, &self.0.endpoint).is_of_credentials().then_some(error));
        }
        if let Some(error) = refused
            && self.has_others(error, credentials).await
        {
            let again = delete().await;
            let paths = paths.iter().cloned().map(Some).chain(std::iter::repeat(None));
            // What the first request has deleted is not there any more.
            let absent = |(deleted, path)| match (deleted, path) {
                (Err(Error::NotFound { .. }), Some(path)) => Ok(path),
                (deleted, _) => deleted,
            };
            deleted = again.into_iter().zip(paths).map(absent).collect();
        }
        deleted.into_iter().map(|deleted| deleted.map_err(|error| self.explained(error))).collect()
    }

    /// Lists on from where it was when the credentials were refused: all these stores list in the order of names.
    fn listed(&self, prefix: Option<&Path>, offset: Option<Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let begun =
            Listing { client: self.clone(), prefix: prefix.cloned(), last: offset, at: None, is_renewed: false };
        stream::try_unfold(begun, Listing::next).boxed()
    }
}

/// Files that are being listed.
struct Listing<S, C> {
    client: Client<S, C>,
    prefix: Option<Path>,
    last: Option<Path>,
    /// The answer, and the credentials of its first request.
    at: Option<(BoxStream<'static, Result<ObjectMeta>>, u64)>,
    is_renewed: bool,
}

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> Listing<S, C> {
    async fn next(mut self) -> Result<Option<(ObjectMeta, Self)>> {
        loop {
            let (mut files, credentials) = self.at.take().unwrap_or_else(|| self.begin());
            match files.next().await {
                None => return Ok(None),
                Some(Ok(file)) => {
                    self.last = Some(file.location.clone());
                    self.at = Some((files, credentials));
                    return Ok(Some((file, self)));
                }
                Some(Err(error)) if !self.is_renewed && self.client.has_others(&error, credentials).await => {
                    self.is_renewed = true;
                }
                Some(Err(error)) => return Err(self.client.explained(error)),
            }
        }
    }

    fn begin(&self) -> (BoxStream<'static, Result<ObjectMeta>>, u64) {
        let (store, prefix) = (self.client.store(), self.prefix.as_ref());
        let files = match &self.last {
            Some(last) => store.list_with_offset(prefix, last),
            None => store.list(prefix),
        };
        (files, self.client.0.credentials.number())
    }
}

impl<S, C> Clone for Client<S, C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: fmt::Display, C> fmt::Display for Client<S, C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.store.fmt(out)
    }
}

impl<S: fmt::Display, C> fmt::Debug for Client<S, C> {
    /// The client of `object_store` shows its credentials.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Client({})", self.0.store)
    }
}

pub(super) use super::metered::Answer;

impl<S: ObjectStore + MultipartStore, C: Send + Sync + 'static> ObjectStore for Client<S, C> {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            self.abort_abandoned().await;
            let put = || self.ask(|| self.store().put_opts(location, payload.clone(), options.clone()));
            for pause in CONFLICT_PAUSES {
                match put().await {
                    Err(error) if is_conflict(&error) => tokio::time::sleep(pause).await,
                    done => return done,
                }
            }
            put().await
        }
        .boxed()
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            self.abort_abandoned().await;
            if options != PutMultipartOptions::default() {
                let what = "an upload in parts with attributes or tags";
                return Err(Error::NotSupported { source: what.into() });
            }
            let id = self.ask(|| self.store().create_multipart(location)).await?;
            Ok(Box::new(Upload::new(self.clone(), location.clone(), id)) as Box<dyn MultipartUpload>)
        }
        .boxed()
    }

    fn get_opts<'a, 'b, 'c>(&'a self, location: &'b Path, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        async move {
            let mut got = self.ask(|| self.store().get_opts(location, options.clone())).await?;
            let client = self.clone();
            got.payload = match got.payload {
                GetResultPayload::Stream(bytes) => {
                    GetResultPayload::Stream(bytes.map_err(move |error| client.explained(error)).boxed())
                }
                // No store of this room has files of this host.
                file @ GetResultPayload::File(..) => file,
            };
            Ok(got)
        }
        .boxed()
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let client = self.clone();
        let together = locations.try_chunks(MAX_DELETED_TOGETHER).then(move |paths| {
            let client = client.clone();
            async move {
                match paths {
                    Ok(paths) => client.delete_together(paths).await,
                    Err(error) => vec![Err(error.1)],
                }
            }
        });
        together.flat_map(stream::iter).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, Some(offset.clone()))
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Path>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.ask(move || self.store().list_with_delimiter(prefix)).boxed()
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, from: &'b Path, to: &'d Path, options: CopyOptions) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.ask(move || self.store().copy_opts(from, to, options.clone())).boxed()
    }
}
