//! One request to one URL: it is sent, and an answer or a fault is received.
//!
//! What always holds: each wait ends within `idle_timeout`; a body is read up to a limit; errors carry no URL. Which
//! origin receives a token is decided in `mod.rs`, again for every redirect.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_compression::tokio::bufread::GzipDecoder;
use futures::StreamExt;
use reqwest::{
    Method, RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::{
    io::AsyncReadExt as _,
    task::JoinSet,
    time::{Instant, timeout},
};
use url::Url;

use super::{
    Config, Error, Issues, OwnHeaders,
    failure::Fault,
    measured,
    origins::Origins,
    pace::Paces,
    proxy::{Clients, Proxy},
    range::Rest,
    retry::retry_after,
    tls::{ShowCertificate, Tls, TlsFiles},
};
use crate::telemetry::metrics::Endpoint;

/// How a gzip stream begins.
pub const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// How much of an error's body is read.
pub const MAX_OUTCOME_BYTES: u64 = 64 * 1024;

/// What is to be requested, before tokens and redirects are known.
pub struct RequestSpec<'a> {
    /// For the metrics: what is requested.
    pub endpoint: Endpoint,
    pub method: Method,
    pub url: &'a Url,
    pub accept: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
    /// A FHIR resource.
    pub body: Option<&'a str>,
    /// Of a file whose transfer was cut.
    pub rest: Option<&'a Rest>,
    pub token: TokenUse,
    pub on_redirect: OnRedirect,
    /// For people: what is requested, and where.
    pub context: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TokenUse {
    /// Wherever the origin is allowed to have it.
    WhereAllowed,
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnRedirect {
    Follow,
    Refuse,
}

impl<'a> RequestSpec<'a> {
    /// A document at this address, with a token where it is allowed, wherever the server redirects to.
    pub fn get(endpoint: Endpoint, url: &'a Url, accept: &'static str, context: &'a str) -> Self {
        Self {
            endpoint,
            method: Method::GET,
            url,
            accept,
            headers: &[],
            body: None,
            rest: None,
            token: TokenUse::WhereAllowed,
            on_redirect: OnRedirect::Follow,
            context,
        }
    }
}

/// Sends and reads; no tokens, no redirects, no retries.
#[derive(Debug)]
pub struct Http {
    origins: Origins,
    proxy: Proxy,
    tls: Tls,
    headers: OwnHeaders,
    connections: RwLock<Connections>,
    connect_timeout: Duration,
    paces: Paces,
    idle_timeout: Duration,
}

/// The clients, each with a pool of its own: a connection on which the certificate was shown serves nobody else.
#[derive(Debug)]
struct Connections {
    files: TlsFiles,
    with_certificate: Clients,
    without: Clients,
}

impl Http {
    /// Blocks: it reads the files of `[server.tls]`.
    pub fn new(config: &Config, origins: Origins) -> Result<Self, Error> {
        let files = config.tls.read()?;
        let connect_timeout = config.http.connect_timeout;
        let connections = Connections::new(files, &config.tls, &config.proxy, &origins, connect_timeout)?;
        Ok(Self {
            origins,
            proxy: config.proxy.clone(),
            tls: config.tls.clone(),
            headers: config.headers.clone(),
            connections: RwLock::new(connections),
            connect_timeout,
            paces: Paces::new(config.http.retry_wait, config.http.max_requests_per_minute),
            idle_timeout: config.http.idle_timeout,
        })
    }

    /// Reads the files of `[server.tls]` again; where they have changed, connections are made with the new ones.
    pub async fn renew_certificates(&self) -> Result<(), Error> {
        if self.tls == Tls::default() {
            return Ok(());
        }
        let tls = self.tls.clone();
        let mut reading = JoinSet::new();
        reading.spawn_blocking(move || tls.read());
        let Some(Ok(files)) = reading.join_next().await else { return Ok(()) };
        let files = files?;
        let is_same = self.connections.read().unwrap_or_else(PoisonError::into_inner).files == files;
        if is_same {
            return Ok(());
        }
        let renewed = Connections::new(files, &self.tls, &self.proxy, &self.origins, self.connect_timeout)?;
        *self.connections.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        tracing::info!("the certificates of server.tls have changed and are used from now on");
        Ok(())
    }

    fn client(&self, url: &Url) -> reqwest::Client {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        let clients =
            if self.origins.may_see_certificate(url) { &connections.with_certificate } else { &connections.without };
        clients.of(url).clone()
    }

    /// Headers of one's own, for the origins that may have them.
    fn own_headers(&self, url: &Url) -> HeaderMap {
        if self.origins.may_have_token(url) { self.headers.map().clone() } else { HeaderMap::new() }
    }

    /// One request to one URL, when the pace of its origin allows it; any status is an answer.
    pub async fn send(
        &self,
        spec: &RequestSpec<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Fault> {
        let mut headers = self.own_headers(url);
        headers.insert(ACCEPT, HeaderValue::from_static(spec.accept));
        for (name, value) in spec.headers {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        headers.extend(spec.rest.into_iter().flat_map(Rest::headers));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        let mut request = self.client(url).request(spec.method.clone(), url.clone()).headers(headers);
        if let Some(body) = spec.body {
            request = request.header(CONTENT_TYPE, "application/fhir+json").body(body.to_owned());
        }
        self.in_pace(url, spec.endpoint, request).await
    }

    /// POST `application/x-www-form-urlencoded` to a token endpoint, without redirects; `authorization` is the client's
    /// own, if it has one (RFC 6749, 2.3.1).
    pub async fn post_form(
        &self,
        url: &Url,
        authorization: Option<HeaderValue>,
        form: &[(&str, &str)],
    ) -> Result<Response, Fault> {
        let mut headers = self.own_headers(url);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        let request = self.client(url).post(url.clone()).headers(headers).form(form);
        self.in_pace(url, Endpoint::Token, request).await
    }

    /// The whole body, unpacked, when it is no longer than `limit_bytes`; `None` when it is. A server may send gzip
    /// that nobody asked for (RFC 9110, 12.5.3), and some do so without a header.
    pub async fn read(&self, response: Response, limit_bytes: u64) -> Result<Option<Vec<u8>>, Fault> {
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = next_within(self.idle_timeout, &mut chunks).await? {
            if (body.len() + chunk.len()) as u64 > limit_bytes {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        if body.starts_with(&GZIP_MAGIC) { unpacked(&body, limit_bytes).await } else { Ok(Some(body)) }
    }

    /// The issues of an answer that is an `OperationOutcome`. None where reading it fails: the status says enough.
    pub async fn issues(&self, response: Response) -> Issues {
        Issues::read(&self.outcome(response).await)
    }

    /// The body of an answer that may be an `OperationOutcome`; empty where reading it fails.
    pub async fn outcome(&self, response: Response) -> Vec<u8> {
        self.read(response, MAX_OUTCOME_BYTES).await.ok().flatten().unwrap_or_default()
    }

    /// An answer with a transient status, as a fault.
    pub async fn fault(&self, response: Response) -> Fault {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        Fault::Status { status, retry_after, issues: self.issues(response).await }
    }

    /// The response carries its pass: a download ends when its body has been read, or is dropped.
    async fn in_pace(&self, url: &Url, endpoint: Endpoint, request: RequestBuilder) -> Result<Response, Fault> {
        let pass = self.paces.pass(url, endpoint).await;
        match self.measured(endpoint, request.send()).await {
            Ok(mut response) => {
                pass.answered(response.status(), retry_after(response.headers()));
                response.extensions_mut().insert(Arc::new(pass));
                Ok(response)
            }
            Err(fault) => {
                pass.failed(&fault);
                Err(fault)
            }
        }
    }

    async fn measured(
        &self,
        endpoint: Endpoint,
        send: impl Future<Output = Result<Response, reqwest::Error>>,
    ) -> Result<Response, Fault> {
        let sent = Instant::now();
        let answer = match timeout(self.idle_timeout, send).await {
            Ok(answer) => answer.map_err(Fault::from),
            Err(_) => Err(Fault::Idle(self.idle_timeout)),
        };
        measured::request(endpoint, &answer, sent.elapsed());
        answer
    }
}

impl Connections {
    fn new(
        files: TlsFiles,
        tls: &Tls,
        proxy: &Proxy,
        origins: &Origins,
        connect_timeout: Duration,
    ) -> Result<Self, Error> {
        let resolver = Arc::new(origins.addresses().clone());
        let clients = |shown| {
            let builder = || {
                let builder = reqwest::Client::builder()
                    .user_agent(concat!("fhir-sync/", env!("CARGO_PKG_VERSION")))
                    .redirect(reqwest::redirect::Policy::none())
                    .referer(false)
                    .retry(reqwest::retry::never())
                    // In HTTP/2 a server can end a body early without an error, and the library takes that for the
                    // end (rule 76).
                    .http1_only()
                    .dns_resolver(Arc::clone(&resolver))
                    .connect_timeout(connect_timeout);
                tls.apply(&files, shown, builder)
            };
            Clients::new(proxy, builder).map_err(|error| Error::Setup { source: error.into() })
        };
        let without = clients(ShowCertificate::No)?;
        let with_certificate = if files.has_identity() { clients(ShowCertificate::Yes)? } else { without.clone() };
        Ok(Self { files, with_certificate, without })
    }
}

/// What a gzip stream holds; `None` when that is longer than `limit_bytes`.
async fn unpacked(body: &[u8], limit_bytes: u64) -> Result<Option<Vec<u8>>, Fault> {
    let mut decoder = GzipDecoder::new(body);
    decoder.multiple_members(true);
    let mut unpacked = Vec::new();
    decoder.take(limit_bytes + 1).read_to_end(&mut unpacked).await.map_err(|_| Fault::GzipCut)?;
    Ok((unpacked.len() as u64 <= limit_bytes).then_some(unpacked))
}

/// The next chunk of a body, or a fault when none arrives in time.
pub async fn next_within<B>(
    idle_timeout: Duration,
    chunks: &mut (impl StreamExt<Item = Result<B, reqwest::Error>> + Unpin),
) -> Result<Option<B>, Fault> {
    let chunk = timeout(idle_timeout, chunks.next()).await.map_err(|_| Fault::Idle(idle_timeout))?;
    chunk.transpose().map_err(Fault::from)
}
