use std::{
    fmt,
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
};

use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutPayload,
    PutResult, Result, memory::InMemory,
};

use super::*;

/// A folder, and an object store.
fn both(folder: &Path) -> [Documents; 2] {
    let url = "memory:///some/prefix".parse().unwrap();
    [
        Documents::Folder { folder: folder.join("documents"), readers: Readers::Owner },
        Documents::in_store(Arc::new(InMemory::new()), &url),
    ]
}

fn done(swapped: Swapped) -> Stored {
    match swapped {
        Swapped::Done(stored) => stored,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_document_is_replaced_only_by_whoever_has_read_it() {
    let folder = tempfile::tempdir().unwrap();
    for documents in both(folder.path()) {
        let document = documents.document("leases/all.json");
        assert!(document.read().await.unwrap().is_none());
        let first = done(document.swap(None, "a".to_owned()).await.unwrap());
        let late = document.swap(None, "b".to_owned()).await.unwrap();
        assert!(matches!(late, Swapped::Overtaken), "{late:?}");
        let second = done(document.swap(Some(&first), "c".to_owned()).await.unwrap());
        let late = document.swap(Some(&first), "d".to_owned()).await.unwrap();
        assert!(matches!(late, Swapped::Overtaken), "{late:?}");
        done(document.swap(Some(&second), "e".to_owned()).await.unwrap());
        assert_eq!(document.read().await.unwrap().unwrap().text, "e");
    }
}

#[tokio::test]
async fn the_documents_of_a_folder_are_listed_without_those_below_it() {
    let folder = tempfile::tempdir().unwrap();
    for documents in both(folder.path()) {
        assert_eq!(documents.list("exports").await.unwrap(), Vec::<String>::new());
        for name in ["exports/a.json", "exports/b.json", "state.json"] {
            documents.document(name).put(String::new()).await.unwrap();
        }
        let mut names = documents.list("exports").await.unwrap();
        names.sort();
        assert_eq!(names, ["exports/a.json", "exports/b.json"]);
    }
}

/// A store whose next answers to puts are lost after the put was done.
#[derive(Debug)]
struct Lossy {
    store: InMemory,
    lost: AtomicU32,
    /// The client repeats a request without an answer, and meets its own first one.
    repeats: bool,
}

impl fmt::Display for Lossy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("lossy")
    }
}

/// What `async_trait` makes of an async function.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl ObjectStore for Lossy {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b StorePath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let put = self.store.put_opts(location, payload.clone(), options.clone()).await?;
            let is_lost = self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lost| lost.checked_sub(1));
            match is_lost {
                Ok(_) if self.repeats => self.store.put_opts(location, payload, options).await,
                Ok(_) => Err(object_store::Error::Generic { store: "lossy", source: "no answer".into() }),
                Err(_) => Ok(put),
            }
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b StorePath,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.store.put_multipart_opts(location, options)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, location: &'b StorePath, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.store.get_opts(location, options)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<StorePath>>) -> BoxStream<'static, Result<StorePath>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&StorePath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b StorePath>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.store.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'c, 'd>(
        &'a self,
        from: &'b StorePath,
        to: &'c StorePath,
        options: CopyOptions,
    ) -> Answer<'d, ()>
    where
        'a: 'd,
        'b: 'd,
        'c: 'd,
    {
        self.store.copy_opts(from, to, options)
    }
}

#[tokio::test]
async fn a_lost_answer_is_no_error_where_the_document_is_what_we_wrote() {
    for repeats in [false, true] {
        let store = Arc::new(Lossy { store: InMemory::new(), lost: AtomicU32::new(0), repeats });
        let url = "memory:///prefix".parse().unwrap();
        let document = Documents::in_store(Arc::<Lossy>::clone(&store), &url).document("state.json");
        store.lost.store(1, Ordering::Relaxed);
        let first = done(document.swap(None, "a".to_owned()).await.unwrap());
        store.lost.store(1, Ordering::Relaxed);
        let second = done(document.swap(Some(&first), "b".to_owned()).await.unwrap());
        let late = document.swap(Some(&first), "c".to_owned()).await.unwrap();
        assert!(matches!(late, Swapped::Overtaken), "{late:?}");
        done(document.swap(Some(&second), "d".to_owned()).await.unwrap());
    }
}
