//! One request to one URL: it is sent, and an answer or a fault is received.
//!
//! What always holds: each wait ends within `idle_timeout`; a body is read up to a limit; errors carry no URL. Which
//! origin receives a token is decided in `mod.rs`, again for every redirect.

use std::{sync::Arc, time::Duration};

use async_compression::tokio::bufread::GzipDecoder;
use futures::StreamExt;
use reqwest::{
    Method, RequestBuilder, Response,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout},
};
use url::Url;

use super::{
    Config, Error, Issues, Proxy, failure::Fault, measured, pace::Paces, range::Rest, redirect::is_loopback,
    retry::retry_after,
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

/// Sends and reads; no tokens, no redirects, no retries.
#[derive(Debug)]
pub struct Http {
    direct: reqwest::Client,
    /// Where there is a proxy.
    proxied: Option<reqwest::Client>,
    paces: Paces,
    idle_timeout: Duration,
}

impl Http {
    pub fn new(config: &Config) -> Result<Self, Error> {
        let unusable = |error: reqwest::Error| Error::Setup { source: error.into() };
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("fhir-sync/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                // In HTTP/2 a server can end a body early without an error, and the library takes that for the end
                // (rule 76).
                .http1_only()
                .connect_timeout(config.http.connect_timeout)
        };
        // Without `no_proxy` the library takes a proxy from the environment, and says nothing about it.
        let direct = builder().no_proxy().build().map_err(unusable)?;
        let proxied = match &config.proxy {
            Proxy::None => None,
            Proxy::Environment => Some(builder().build().map_err(unusable)?),
            Proxy::Url(url) => {
                let proxy = reqwest::Proxy::all(url.clone()).map_err(unusable)?;
                Some(builder().no_proxy().proxy(proxy).build().map_err(unusable)?)
            }
        };
        let paces = Paces::new(config.http.retry_wait, config.http.max_requests_per_minute);
        Ok(Self { direct, proxied, paces, idle_timeout: config.http.idle_timeout })
    }

    /// Requests that stay on this machine may be unencrypted, so none of them goes to a proxy (rule 1).
    fn client(&self, url: &Url) -> &reqwest::Client {
        match &self.proxied {
            Some(proxied) if !is_loopback(url) => proxied,
            _ => &self.direct,
        }
    }

    /// One request to one URL, when the pace of its origin allows it; any status is an answer.
    pub async fn send(
        &self,
        spec: &RequestSpec<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Fault> {
        let mut headers = HeaderMap::new();
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

    /// POST `application/x-www-form-urlencoded` to a token endpoint, without a token and without redirects.
    pub async fn post_form(&self, url: &Url, form: &[(&str, &str)]) -> Result<Response, Fault> {
        let request = self.client(url).post(url.clone()).header(ACCEPT, "application/json").form(form);
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
        let pass = self.paces.pass(url, endpoint.into()).await;
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
