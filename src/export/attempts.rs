//! The requests for one file, until it is read to its end.
//!
//! What always holds: all of them share one patience, whether they begin at the first byte or go on after a cut; a link
//! that is refused is replaced, unless it is newer than the last refusal.

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
            if let Some(limit) = self.config().http.max_requests_per_file.filter(|limit| self.requests >= *limit) {
                return Err(Error::TooManyRequests { file: self.file.name.clone(), limit });
            }
            self.requests += 1;
            match self.client.request_file(self.file, &self.link, rest).await {
                Ok(response) => return Ok(response),
                Err(Failure::Retry(fault)) => self.retries.pause(&self.file.name, fault).await?,
                Err(Failure::Fatal(error)) => self.refused(error).await?,
            }
        }
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

    /// Replaces a link that may have expired. One that is refused although it is newer than a refusal has not.
    async fn refused(&mut self, refusal: Error) -> Result<(), Error> {
        if refusal.may_be_of_expired_link() && self.refused_at.is_none_or(|at| self.link.fetched_at < at) {
            self.refused_at = Some(Instant::now());
            let fresh = self.links.renewed(self.client, self.file, &self.link, refusal).await?;
            self.is_repeated = fresh.url == self.link.url;
            self.link = fresh;
            return Ok(());
        }
        match refusal {
            // The server does not sign it again, so it opens nothing as long as the export exists.
            Error::FileDenied { file, status, .. }
                if self.is_repeated && self.link.url.query().is_some() && !self.client.sends_token(&self.link) =>
            {
                Err(Error::LinkExpired { file, status })
            }
            refusal => Err(refusal),
        }
    }
}
