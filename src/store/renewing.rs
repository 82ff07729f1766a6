//! Credentials that change: made of the current texts of their secrets, and made again when a text has changed or the
//! store has refused what was made of it.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use object_store::CredentialProvider;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{sync::Mutex, time::Instant};

use super::failure::{Cause, Failure};
use crate::secret::Secret;

/// The texts of the secrets, by the names of their settings.
pub type Texts = BTreeMap<&'static str, Arc<SecretString>>;

/// Makes credentials of the texts.
pub type Make<C> = Box<dyn Fn(&Texts) -> Result<Made<C>, Failure> + Send + Sync>;

/// What hands out the credentials of a request.
pub type Provider<C> = Arc<dyn CredentialProvider<Credential = C>>;

/// What was made of some texts.
pub struct Made<C> {
    pub provider: Provider<C>,
    /// Whether the provider fetches tokens, so that another one may bring another token for the same texts.
    pub fetches: bool,
    /// When it must be made again at the latest, counted from now.
    pub lifetime: Option<Duration>,
}

pub struct Renewing<C> {
    secrets: BTreeMap<&'static str, Secret>,
    make: Make<C>,
    /// What is asked for tokens, for people.
    asked: &'static str,
    held: Mutex<Option<Held<C>>>,
    /// How often other credentials have replaced the first ones.
    replaced: AtomicU64,
}

struct Held<C> {
    /// Of the readings that it was made of.
    numbers: Vec<u64>,
    made: Made<C>,
    at: Instant,
}

/// A command is not run more often than this because what it printed ends soon.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// Credentials are renewed this long before they end: a request that is repeated is not signed again.
const EARLY: Duration = Duration::from_mins(5);

impl<C: 'static> Renewing<C> {
    pub fn new(secrets: BTreeMap<&'static str, Secret>, asked: &'static str, make: Make<C>) -> Self {
        Self { secrets, make, asked, held: Mutex::default(), replaced: AtomicU64::new(0) }
    }

    /// Changes with the credentials: whoever was refused says with which ones.
    pub fn number(&self) -> u64 {
        self.replaced.load(Ordering::SeqCst)
    }

    /// Reads the secrets again because the store has refused what was made of them. Whether other credentials are there
    /// now; of several that were refused at the same time the first renews for all.
    pub async fn renew(&self, refused: u64) -> bool {
        let mut held = self.held.lock().await;
        if self.number() != refused {
            return true;
        }
        for secret in self.secrets.values() {
            secret.forget();
        }
        let Ok((numbers, texts)) = self.read().await else { return false };
        let is_other = held.as_ref().is_none_or(|held| held.numbers != numbers || held.made.fetches);
        if !is_other {
            return false;
        }
        let Ok(made) = (self.make)(&texts) else { return false };
        *held = Some(Held { numbers, made, at: Instant::now() });
        self.replaced.fetch_add(1, Ordering::SeqCst);
        true
    }

    async fn current(&self) -> Result<Provider<C>, Failure> {
        let mut held = self.held.lock().await;
        let ends = |held: &Held<C>| {
            let age = held.at.elapsed();
            held.made.lifetime.is_some_and(|lifetime| age >= MIN_INTERVAL && age + EARLY >= lifetime)
        };
        let has_ended = held.as_ref().is_some_and(ends);
        if has_ended {
            for secret in self.secrets.values() {
                secret.forget();
            }
        }
        let (numbers, texts) = self.read().await?;
        match &*held {
            Some(held) if held.numbers == numbers && !has_ended => Ok(Arc::clone(&held.made.provider)),
            _ => {
                let made = (self.make)(&texts)?;
                let provider = Arc::clone(&made.provider);
                if held.is_some() {
                    self.replaced.fetch_add(1, Ordering::SeqCst);
                }
                *held = Some(Held { numbers, made, at: Instant::now() });
                Ok(provider)
            }
        }
    }

    async fn read(&self) -> Result<(Vec<u64>, Texts), Failure> {
        let (mut numbers, mut texts) = (Vec::new(), Texts::new());
        for (name, secret) in &self.secrets {
            let reading = secret.current().await;
            let reading = reading
                .map_err(|error| Failure::new(Cause::Missing(format!("{name}, {}, {error}", secret.place()))))?;
            numbers.push(reading.number);
            texts.insert(name, reading.text);
        }
        Ok((numbers, texts))
    }
}

impl<C> fmt::Debug for Renewing<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Renewing").field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl<C: Send + Sync + 'static> CredentialProvider for Renewing<C> {
    type Credential = C;

    fn get_credential<'a, 'b>(&'a self) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<C>>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let provider = self.current().await.map_err(of_credentials)?;
            let got = provider.get_credential().await;
            got.map_err(|error| {
                let failure = Failure::of(&error, self.asked);
                let why = match failure.cause {
                    Cause::Unreachable(what) => format!("no answer from {what}"),
                    Cause::Other(text) if !text.is_empty() => format!("{}: {text}", self.asked),
                    _ => format!("{} refused ({})", self.asked, failure.status.unwrap_or_default()),
                };
                of_credentials(Failure::new(Cause::Missing(why)))
            })
        })
    }
}

fn of_credentials(failure: Failure) -> object_store::Error {
    object_store::Error::Generic { store: "credentials", source: Box::new(failure) }
}

/// The text of one secret.
pub fn exposed<'a>(texts: &'a Texts, name: &str) -> Option<&'a str> {
    texts.get(name).map(|text| text.expose_secret())
}
