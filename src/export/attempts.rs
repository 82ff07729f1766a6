//! The requests for one file, until it is read to its end.
//!
//! What always holds: all of them share one patience, whether they begin at the first byte or go on after a cut. Other
//! downloads use the links of a manifest as well, and may use them up before this file has its turn. So a link that is
//! refused is replaced, until the server refuses one that nobody has used, or gives the same one again.

use std::time::Duration;

use reqwest::Response;
use tokio::time::Instant;

use super::{
    Client, Config, Error, File, Links,
    failure::{Failure, Fault},
    links::Link,
    range::Rest,
    retry::Retries,
};
use crate::telemetry::metrics::Endpoint;

/// How long a link is valid at least. Its request may have waited longer for other downloads.
const SURELY_VALID: Duration = Duration::from_secs(10);

pub struct Attempts<'a> {
    client: &'a Client,
    file: &'a File,
    links: &'a Links,
    link: Link,
    retries: Retries,
    requests: u32,
    refused_at: Option<Instant>,
    /// The link is that of a fresh manifest, which repeats the one that was refused.
    is_repeated: bool,
    /// A response with the file from its beginning that was received in the place of the rest.
    beginning: Option<Response>,
}

impl<'a> Attempts<'a> {
    pub async fn new(client: &'a Client, file: &'a File, links: &'a Links) -> Self {
        let (link, retries) = (links.of(file).await, Retries::new(&client.config.http, Endpoint::File));
        Self { client, file, links, link, retries, requests: 0, refused_at: None, is_repeated: false, beginning: None }
    }

    pub fn config(&self) -> &'a Config {
        &self.client.config
    }

    pub fn file_name(&self) -> &'a str {
        &self.file.name
    }

    /// The file from its first byte.
    pub async fn beginning(&mut self) -> Result<Response, Error> {
        match self.beginning.take() {
            Some(response) => Ok(response),
            None => self.response(None).await,
        }
    }

    /// The next reading begins with this response.
    pub fn begin_with(&mut self, response: Response) {
        self.beginning = Some(response);
    }

    /// A response with the file, or where a rest is asked for, maybe with that.
    pub async fn response(&mut self, rest: Option<&Rest>) -> Result<Response, Error> {
        loop {
            match self.attempt(rest).await {
                Ok(Some(response)) => return Ok(response),
                Ok(None) => {}
                Err(Failure::Retry(fault)) => self.retries.pause(&self.file.name, fault).await?,
                Err(Failure::Fatal(error)) => return Err(error),
            }
        }
    }

    /// `None` where the link was refused and there is another one now.
    async fn attempt(&mut self, rest: Option<&Rest>) -> Result<Option<Response>, Failure> {
        match self.request(rest).await {
            Err(Failure::Fatal(refusal)) if refusal.may_be_of_expired_link() => self.refused(refusal, rest).await,
            answer => answer.map(Some).map_err(|failure| self.conclusion(failure)),
        }
    }

    async fn request(&mut self, rest: Option<&Rest>) -> Result<Response, Failure> {
        if let Some(limit) = self.config().http.max_requests_per_file.filter(|limit| self.requests >= *limit) {
            return Err(Error::TooManyRequests { file: self.file.name.clone(), limit }.into());
        }
        self.requests += 1;
        self.client.request_file(self.file, &self.link, rest).await
    }

    /// Waits after a fault. A file that drips makes progress for ever, so what has arrived of it does not count.
    pub async fn failed(&mut self, fault: Fault, has_arrived: bool) -> Result<(), Error> {
        if has_arrived && !matches!(fault, Fault::TooSlow { .. }) {
            self.retries.reached();
            self.refused_at = None;
        }
        self.retries.pause(&self.file.name, fault).await
    }

    /// The file was read to its end.
    pub async fn ended(&self) {
        self.links.worked(&self.link).await;
    }

    /// Replaces a link that may have expired: at first by the one that all downloads share. Where that is refused too,
    /// by one that nobody else has, so that a file does not wait for ever while others use up each new link.
    async fn refused(&mut self, refusal: Error, rest: Option<&Rest>) -> Result<Option<Response>, Failure> {
        let is_newer = |at: Instant| self.link.fetched_at >= at;
        if self.is_repeated && self.refused_at.is_some_and(is_newer) {
            return Err(self.conclusion(refusal.into()));
        }
        let is_first = self.refused_at.replace(Instant::now()).is_none();
        if !is_first {
            return self.with_unused_link(refusal, rest).await;
        }
        let fresh = self.links.renewed(self.client, self.file, &self.link, refusal).await?;
        self.use_link(fresh);
        Ok(None)
    }

    async fn with_unused_link(&mut self, refusal: Error, rest: Option<&Rest>) -> Result<Option<Response>, Failure> {
        let links = self.links;
        let unused = links.unused(self.client, self.file, refusal).await?;
        self.use_link(unused.link.clone());
        match self.request(rest).await {
            Ok(response) => {
                unused.worked();
                Ok(Some(response))
            }
            Err(Failure::Fatal(refusal))
                if refusal.may_be_of_expired_link() && self.link.fetched_at.elapsed() > SURELY_VALID =>
            {
                Ok(None)
            }
            Err(failure) => Err(self.conclusion(failure)),
        }
    }

    fn use_link(&mut self, fresh: Link) {
        self.is_repeated = fresh.url == self.link.url;
        self.link = fresh;
    }

    /// A refusal that no other link changes.
    fn conclusion(&self, failure: Failure) -> Failure {
        match failure {
            // The server does not sign it again, so it opens nothing as long as the export exists.
            Failure::Fatal(Error::FileDenied { file, status, .. })
                if self.is_repeated && self.link.url.query().is_some() && !self.client.sends_token(&self.link) =>
            {
                Error::LinkExpired { file, status }.into()
            }
            failure => failure,
        }
    }
}
