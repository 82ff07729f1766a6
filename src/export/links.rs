//! The links to the files of a complete export. They expire, and the status URL gives new ones (rule 61).
//!
//! What always holds: all who read files of the export share one request for a new manifest. Where others use up its
//! links before a file has its turn, that file gets a manifest of its own. A link is new only if it is from a manifest of
//! the same export, with the same files. Renewals that help nobody have a limit.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout},
};
use url::Url;

use super::{
    Client, Completed, Error, File, FileId,
    error::shown,
    manifest::{FileKind, Manifest},
};
use crate::{
    fhir::TransactionTime,
    telemetry::metrics::{self, Endpoint, RetryReason},
};

/// How many manifests in a row may be fetched that help no file.
const MAX_RENEWALS_IN_VAIN: u32 = 10;
/// How many parameters of a query are looked at for those that name the file.
const MAX_PARAMETERS: usize = 20;

/// The links to the files of one export, shared by those who read them.
pub struct Links {
    /// `None` while the server works on the export: its next partial manifest has the new links.
    completed: Option<Completed>,
    current: Mutex<Current>,
}

/// How a file is reached for the time being.
#[derive(Clone)]
pub struct Link {
    pub url: Url,
    pub requires_access_token: bool,
    generation: u32,
    pub fetched_at: Instant,
}

/// A link that nobody has used. While this exists, nobody else gets a link of its manifest.
pub struct Unused<'a> {
    pub link: Link,
    current: MutexGuard<'a, Current>,
}

struct Current {
    /// How many manifests have been fetched again.
    generation: u32,
    fetched_at: Instant,
    /// Empty as long as the links of the first manifest are in use.
    files: BTreeMap<FileId, File>,
    renewals_left: u32,
    ended: Option<Ended>,
}

/// Why there are no new links in this run any more.
enum Ended {
    /// The manifest is not that of the same export, or not complete.
    Changed(String),
    Unreachable(String),
    /// Like the files.
    Denied(String),
    /// The server has no answer that helps, or too many that do not.
    Refused,
}

impl Links {
    pub fn new(completed: Completed) -> Self {
        Self { completed: Some(completed), current: Mutex::new(Current::begin()) }
    }

    /// Of an export that is in progress: a link that is refused is not renewed.
    pub fn of_partial() -> Self {
        Self { completed: None, current: Mutex::new(Current { ended: Some(Ended::Refused), ..Current::begin() }) }
    }

    pub async fn of(&self, file: &File) -> Link {
        self.current.lock().await.link(file)
    }

    /// A link that is newer than the one that was refused with `refusal`. The first who asks fetches the manifest, the
    /// others wait for it.
    ///
    /// # Errors
    /// `refusal`, where the server has no other link; [`Error::ManifestChanged`], [`Error::LinkNotRenewed`].
    pub async fn renewed(&self, client: &Client, file: &File, refused: &Link, refusal: Error) -> Result<Link, Error> {
        let mut current = self.current.lock().await;
        if current.ended.is_none() && current.generation == refused.generation {
            metrics::retried(Endpoint::File, RetryReason::ExpiredLink);
            tracing::info!(file = file.name, "the link to the file was refused; the manifest is fetched again");
            current.ended = self.renew(client, &mut current).await.err();
        }
        current.link_after(file, refusal)
    }

    /// The same where others may have used up the link that was newer. The manifest is fetched in any case.
    pub async fn unused(&self, client: &Client, file: &File, refusal: Error) -> Result<Unused<'_>, Error> {
        let mut current = self.current.lock().await;
        if current.ended.is_none() {
            metrics::retried(Endpoint::File, RetryReason::ExpiredLink);
            tracing::info!(file = file.name, "a new link to the file was refused too; the manifest is fetched for it");
            current.ended = self.renew(client, &mut current).await.err();
        }
        let link = current.link_after(file, refusal)?;
        Ok(Unused { link, current })
    }

    /// A file was read to its end by this link.
    pub async fn worked(&self, link: &Link) {
        if link.generation > 0 {
            self.current.lock().await.renewals_left = MAX_RENEWALS_IN_VAIN;
        }
    }

    async fn renew(&self, client: &Client, current: &mut Current) -> Result<(), Ended> {
        current.renewals_left = current.renewals_left.checked_sub(1).ok_or(Ended::Refused)?;
        // The lock is held meanwhile: a status URL that says "later" about a complete export must not keep the run.
        let patience = client.config.http.outage_patience;
        let completed = self.completed.as_ref().ok_or(Ended::Refused)?;
        let again = timeout(patience, completed.job.clone().manifest_again(client)).await;
        let Ok(again) = again else {
            let patience = humantime::format_duration(patience);
            return Err(Ended::Unreachable(format!("the status URL had no manifest within {patience}")));
        };
        let manifest = match again {
            Ok(manifest) => manifest,
            Err(error @ Error::Unreachable { .. }) => return Err(Ended::Unreachable(error.to_string())),
            Err(error @ (Error::Denied { .. } | Error::TokenDenied { .. } | Error::ForeignOrigin { .. })) => {
                return Err(Ended::Denied(error.to_string()));
            }
            Err(error) => {
                tracing::warn!(%error, "the manifest could not be fetched again");
                return Err(Ended::Refused);
            }
        };
        let files = same_files(completed, manifest).map_err(|what| {
            tracing::warn!(what, "the manifest was fetched again and is not the same");
            Ended::Changed(what)
        })?;
        current.files = files;
        current.generation += 1;
        current.fetched_at = Instant::now();
        Ok(())
    }
}

impl Unused<'_> {
    /// A request by the link was answered with the file.
    pub fn worked(mut self) {
        self.current.renewals_left = MAX_RENEWALS_IN_VAIN;
    }
}

impl Current {
    fn begin() -> Self {
        Self {
            generation: 0,
            fetched_at: Instant::now(),
            files: BTreeMap::new(),
            renewals_left: MAX_RENEWALS_IN_VAIN,
            ended: None,
        }
    }

    /// The link to a file after a refusal, or why there is none.
    fn link_after(&self, file: &File, refusal: Error) -> Result<Link, Error> {
        match &self.ended {
            None => Ok(self.link(file)),
            Some(Ended::Refused) => Err(refusal),
            Some(Ended::Denied(_)) if matches!(refusal, Error::FileDenied { .. }) => Err(refusal),
            Some(Ended::Changed(what)) => Err(Error::ManifestChanged { file: file.name.clone(), what: what.clone() }),
            Some(Ended::Unreachable(cause) | Ended::Denied(cause)) => {
                Err(Error::LinkNotRenewed { file: file.name.clone(), cause: cause.clone() })
            }
        }
    }

    fn link(&self, file: &File) -> Link {
        let File { url, requires_access_token, .. } = self.files.get(&file.id).unwrap_or(file);
        Link {
            url: url.clone(),
            requires_access_token: *requires_access_token,
            generation: self.generation,
            fetched_at: self.fetched_at,
        }
    }
}

/// The files of the fresh manifest under the ids of the known ones; or what differs.
fn same_files(known: &Completed, fresh: Manifest) -> Result<BTreeMap<FileId, File>, String> {
    // Where a server states the time of the poll, the watermark ends at its time at the kick-off all the same.
    let reach = |time: Option<TransactionTime>| {
        time.map(|time| known.server_time.map_or(time, |server_time| time.min(server_time)))
    };
    if reach(known.manifest.transaction_time) != reach(fresh.transaction_time) {
        return Err("it has another transactionTime".to_owned());
    }
    let lists = [
        ("output", &known.manifest.output, fresh.output),
        ("deleted", &known.manifest.deleted, fresh.deleted),
        ("error", &known.manifest.outcomes, fresh.outcomes),
    ];
    let mut files = BTreeMap::new();
    for (name, known, fresh) in lists {
        let places = places(known, &fresh).ok_or_else(|| format!("the files of its {name} are others"))?;
        let mut fresh: Vec<Option<File>> = fresh.into_iter().map(Some).collect();
        for (known, place) in known.iter().zip(places) {
            let file = fresh.get_mut(place).and_then(Option::take).ok_or("it names a file twice")?;
            files.insert(known.id.clone(), file);
        }
    }
    Ok(files)
}

/// What two manifests must agree on, for each file.
type Announced = (FileKind, Option<u64>);

/// For each known file the place of the same file in the fresh list. What names a file is what the manifest announces of
/// it, together with every part of the URL that is the same in both lists; signatures and times differ, so they drop
/// out. No place without a name of its own for each file, or where two parts contradict each other: the order of a list
/// says nothing, and a file under the name of another one is rows that are lost.
fn places(known: &[File], fresh: &[File]) -> Option<Vec<usize>> {
    let parts: Vec<_> = parts(known).into_iter().filter(|part| part.is_same(known, fresh)).collect();
    let name = |file: &File| (announced(file), parts.iter().map(|part| part.of(&file.url)).collect::<Vec<_>>());
    let names: BTreeMap<_, _> = fresh.iter().enumerate().map(|(place, file)| (name(file), place)).collect();
    let places: Option<Vec<usize>> = known.iter().map(|file| names.get(&name(file)).copied()).collect();
    let is_for_each = |places: &Vec<usize>| places.iter().collect::<BTreeSet<_>>().len() == fresh.len();
    places.filter(|places| known.len() == fresh.len() && is_for_each(places))
}

fn announced(file: &File) -> Announced {
    (file.kind, file.count)
}

/// A part of the URLs that may name the file.
enum Part {
    Address,
    LastOfPath,
    Parameter(String),
}

fn parts(files: &[File]) -> Vec<Part> {
    let names = files.iter().flat_map(|file| file.url.query_pairs().map(|(name, _)| name.into_owned()));
    let mut parameters = BTreeSet::new();
    for name in names {
        if parameters.len() == MAX_PARAMETERS {
            break;
        }
        parameters.insert(name);
    }
    [Part::Address, Part::LastOfPath].into_iter().chain(parameters.into_iter().map(Part::Parameter)).collect()
}

impl Part {
    fn of(&self, url: &Url) -> Vec<String> {
        match self {
            Self::Address => vec![shown(url)],
            Self::LastOfPath => url.path_segments().and_then(Iterator::last).map(str::to_owned).into_iter().collect(),
            Self::Parameter(name) => {
                url.query_pairs().filter(|(of, _)| of == name).map(|(_, value)| value.into_owned()).collect()
            }
        }
    }

    /// Whether the files of each kind have the same values in both lists, in whatever order.
    fn is_same(&self, known: &[File], fresh: &[File]) -> bool {
        let values = |files: &[File]| {
            let mut values: Vec<_> = files.iter().map(|file| (file.kind, self.of(&file.url))).collect();
            values.sort_unstable();
            values
        };
        values(known) == values(fresh)
    }
}
