//! The clients of the stores against a small S3 that keeps what it is sent, notes each request, and fails when told to.

mod credentials;
mod failures;
mod http;
mod settings;
mod uploads;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use object_store::ObjectStore;
use tokio::{net::TcpListener, task::JoinSet};

use super::{Options, Service, connect};
use crate::secret::Secret;

const URL: &str = "s3://lake/tables/";

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    method: Method,
    path: String,
    pub(crate) query: String,
    headers: HeaderMap,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What is done, as the documentation of S3 calls it.
    pub(crate) fn operation(&self) -> &'static str {
        let has = |name: &str| self.query.split('&').any(|pair| pair.split('=').next() == Some(name));
        match self.method.as_str() {
            "POST" if has("uploads") => "CreateMultipartUpload",
            "PUT" if has("partNumber") => "UploadPart",
            "POST" if has("uploadId") => "CompleteMultipartUpload",
            "DELETE" if has("uploadId") => "AbortMultipartUpload",
            "POST" if has("delete") => "DeleteObjects",
            "PUT" => "PutObject",
            "GET" if has("list-type") => "ListObjectsV2",
            "GET" => "GetObject",
            "HEAD" => "HeadObject",
            _ => "?",
        }
    }
}

/// What the server answers instead of doing what it is asked for.
type Fault = Box<dyn Fn(&Seen, usize) -> Option<Response> + Send + Sync>;

struct Inner {
    seen: Mutex<Vec<Seen>>,
    objects: Mutex<BTreeMap<String, Bytes>>,
    fault: Fault,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

/// It ends when it is dropped.
pub(crate) struct Server {
    endpoint: String,
    inner: Arc<Inner>,
    _listener: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::failing(|_, _| None).await
    }

    /// `fault` sees each request, and how many came before it.
    pub(crate) async fn failing(fault: impl Fn(&Seen, usize) -> Option<Response> + Send + Sync + 'static) -> Self {
        let inner = Arc::new(Inner {
            seen: Mutex::default(),
            objects: Mutex::default(),
            fault: Box::new(fault),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { endpoint, inner, _listener: task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    pub(crate) fn operations(&self) -> Vec<&'static str> {
        self.seen().iter().map(Seen::operation).collect()
    }

    pub(crate) fn count(&self, operation: &str) -> usize {
        self.operations().into_iter().filter(|seen| *seen == operation).count()
    }

    /// How many requests were there at the same time.
    pub(crate) fn most_in_flight(&self) -> usize {
        self.inner.most_in_flight.load(Ordering::SeqCst)
    }

    fn object(&self, key: &str) -> Option<Bytes> {
        self.inner.objects.lock().unwrap().get(&format!("/lake/{key}")).cloned()
    }

    /// Options that reach it, with these besides.
    pub(crate) fn options(&self, others: &[(&str, &str)]) -> Options {
        let own = [("aws_endpoint", self.endpoint.as_str()), ("allow_http", "true"), ("max_retries", "1")];
        let quick = [("backoff_config.init_backoff", "1ms"), ("backoff_config.max_backoff", "2ms")];
        options(Service::S3, own.iter().chain(&quick).chain(others))
    }

    pub(crate) fn with_keys(&self, others: &[(&str, &str)]) -> Arc<dyn ObjectStore> {
        connect(&URL.parse().unwrap(), &self.options_with_keys(others)).unwrap()
    }

    pub(crate) fn options_with_keys(&self, others: &[(&str, &str)]) -> Options {
        let mut options = self.options(&[("aws_access_key_id", "AKIAEXAMPLE")]);
        options.keep(Service::S3.find("aws_secret_access_key").unwrap(), Secret::given("s3cret-key"));
        for (name, text) in others {
            set(&mut options, Service::S3, name, text);
        }
        options
    }
}

fn set(options: &mut Options, service: Service, name: &str, text: &str) {
    let name = service.find(name).unwrap();
    if name.is_secret() {
        options.keep(name, Secret::given(text));
    } else {
        name.check(text).unwrap();
        options.set(name, text.to_owned());
    }
}

fn options<'a>(service: Service, texts: impl IntoIterator<Item = &'a (&'a str, &'a str)>) -> Options {
    let mut options = Options::default();
    for (name, text) in texts {
        set(&mut options, service, name, text);
    }
    options
}

/// An answer of S3 that says no.
pub(crate) fn refusal(status: u16, code: &str) -> Response {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message>\
         <StringToSign>x-amz-security-token:s3cret-token</StringToSign></Error>"
    );
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

async fn answer(State(server): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
    let seen = Seen { method: parts.method, path, query, headers: parts.headers };
    let before = {
        let mut all = server.seen.lock().unwrap();
        all.push(seen.clone());
        all.len() - 1
    };
    let now = server.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    server.most_in_flight.fetch_max(now, Ordering::SeqCst);
    let body = to_bytes(body, usize::MAX).await.unwrap();
    // Others may come meanwhile.
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let fault = (server.fault)(&seen, before);
    let answer = fault.unwrap_or_else(|| done(&server, &seen, &body));
    server.in_flight.fetch_sub(1, Ordering::SeqCst);
    answer
}

fn done(server: &Inner, seen: &Seen, body: &Bytes) -> Response {
    let mut objects = server.objects.lock().unwrap();
    let tag = [("etag", "\"1\"")];
    match seen.operation() {
        "PutObject" if seen.header("if-none-match") == "*" && objects.contains_key(&seen.path) => {
            refusal(412, "PreconditionFailed")
        }
        "PutObject" => {
            objects.insert(seen.path.clone(), body.clone());
            (tag, "").into_response()
        }
        "UploadPart" => {
            objects.insert(part(seen), body.clone());
            (tag, "").into_response()
        }
        "CreateMultipartUpload" => xml("<InitiateMultipartUploadResult><UploadId>u1</UploadId>\
             </InitiateMultipartUploadResult>"),
        "CompleteMultipartUpload" => {
            let of_upload = format!("{}?", seen.path);
            let parts: Vec<u8> = objects
                .iter()
                .filter(|(key, _)| key.starts_with(&of_upload))
                .flat_map(|(_, part)| part.to_vec())
                .collect();
            objects.insert(seen.path.clone(), parts.into());
            xml("<CompleteMultipartUploadResult><ETag>\"2\"</ETag></CompleteMultipartUploadResult>")
        }
        "AbortMultipartUpload" => StatusCode::NO_CONTENT.into_response(),
        "DeleteObjects" => {
            let text = String::from_utf8(body.to_vec()).unwrap();
            let mut deleted = Vec::new();
            for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
                objects.remove(&format!("/lake/{key}"));
                deleted.push(format!("<Deleted><Key>{key}</Key></Deleted>"));
            }
            xml(&format!("<DeleteResult>{}</DeleteResult>", deleted.concat()))
        }
        "ListObjectsV2" => listed(&objects, seen),
        "GetObject" | "HeadObject" => match objects.get(&seen.path) {
            Some(object) => {
                let modified = ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT");
                ([tag[0], modified], Body::from(object.clone())).into_response()
            }
            None => refusal(404, "NoSuchKey"),
        },
        other => panic!("{other}: {seen:?}"),
    }
}

/// Two files in each page.
fn listed(objects: &BTreeMap<String, Bytes>, seen: &Seen) -> Response {
    let query: BTreeMap<_, _> = url::form_urlencoded::parse(seen.query.as_bytes()).into_owned().collect();
    let text = |name: &str| query.get(name).cloned().unwrap_or_default();
    let after = text("continuation-token").max(text("start-after"));
    let keys = objects.keys().map(|key| key.trim_start_matches("/lake/"));
    let keys: Vec<_> = keys.filter(|key| key.starts_with(&text("prefix")) && *key > after.as_str()).collect();
    let entry = |key: &&str| {
        format!("<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>")
    };
    let page: String = keys.iter().take(2).map(entry).collect();
    let next = if keys.len() > 2 {
        format!("<NextContinuationToken>{}</NextContinuationToken>", keys[1])
    } else {
        String::new()
    };
    xml(&format!("<ListBucketResult>{page}{next}</ListBucketResult>"))
}

fn part(seen: &Seen) -> String {
    let number = seen.query.split('&').find_map(|pair| pair.strip_prefix("partNumber=")).unwrap();
    format!("{}?{:05}", seen.path, number.parse::<u32>().unwrap())
}

fn xml(body: &str) -> Response {
    body.to_owned().into_response()
}
