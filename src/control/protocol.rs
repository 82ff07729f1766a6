//! The protocol: lines of JSON. A connection carries one request, then events until the answer.
//!
//! A client that closes its side, or its half of it, withdraws the request: what has begun ends at its next safe point,
//! and the answer says how.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Answer, Error, Work};
use crate::sync::{Activity, Progress};

/// Counts the forms of the protocol. Both sides are mostly one program; after an upgrade of its file, until the restart
/// of the service, they are two.
pub const PROTOCOL: u32 = 1;

/// A request may hold a corrected resource.
pub const MAX_REQUEST_BYTES: u64 = 16 * 1024 * 1024;
/// An answer has a row for each type or line.
pub const MAX_EVENT_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
pub struct Request {
    pub protocol: u32,
    /// See [`super::place_of`].
    pub tables: String,
    /// Read only if the protocol is ours.
    pub work: serde_json::Value,
}

impl Request {
    pub fn new(tables: &str, work: &Work) -> Result<Self, Error> {
        let work = serde_json::to_value(work).map_err(|error| Error::Failed(error.to_string()))?;
        Ok(Self { protocol: PROTOCOL, tables: tables.to_owned(), work })
    }

    /// The work, if it is for these tables.
    pub fn work(self, tables: &str) -> Result<Work, Error> {
        let Self { protocol, tables: theirs, work } = self;
        if protocol != PROTOCOL {
            return Err(Error::Failed(format!(
                "the service speaks version {PROTOCOL} of the control protocol, and the command {protocol}; restart \
                 the service, so that both are of the same version of fhir-sync"
            )));
        }
        if theirs != tables {
            return Err(Error::OtherConfiguration(format!(
                "the service with this state file keeps the tables in {tables}, and the command means {theirs}; give \
                 the command the configuration of the service"
            )));
        }
        serde_json::from_value(work)
            .map_err(|error| Error::Failed(format!("the service cannot read the request: {error}")))
    }
}

#[derive(Serialize, Deserialize)]
pub enum Event {
    Progress(Vec<(Activity, Progress)>),
    Answer(Result<Answer, Error>),
}

/// One line; `None` where the other side has closed. A line that is longer than the limit is an error.
pub async fn read_line<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
    limit_bytes: u64,
) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(limit_bytes).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line is longer than {limit_bytes} bytes")));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

pub async fn write_line(to: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> io::Result<()> {
    to.write_all(&line(value)?).await
}

pub fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_read_whole_or_not_at_all() {
        let mut bytes: &[u8] = b"\"one\"\n\"two\"\n";
        assert_eq!(read_line::<String>(&mut bytes, 6).await.unwrap().as_deref(), Some("one"));
        assert_eq!(read_line::<String>(&mut bytes, 6).await.unwrap().as_deref(), Some("two"));
        assert_eq!(read_line::<String>(&mut bytes, 6).await.unwrap(), None);
        let mut long: &[u8] = b"\"three\"\n";
        let error = read_line::<String>(&mut long, 6).await.unwrap_err();
        assert_eq!(error.to_string(), "a line is longer than 6 bytes");
    }

    #[test]
    fn a_request_for_other_tables_or_of_another_version_is_refused() {
        let work = Work::CancelJobs { export: None, forget: false };
        let request = |tables: &str| Request::new(tables, &work).unwrap();
        assert!(matches!(request("/srv/lake").work("/srv/lake"), Ok(Work::CancelJobs { .. })));
        assert!(matches!(request("/srv/lake").work("/srv/other"), Err(Error::OtherConfiguration(_))));
        let of_later = Request { protocol: PROTOCOL + 1, ..request("/srv/lake") };
        assert!(
            matches!(of_later.work("/srv/lake"), Err(Error::Failed(reason)) if reason.contains("restart the service"))
        );
    }
}
