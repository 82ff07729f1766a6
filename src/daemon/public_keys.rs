//! The public keys at `/jwks.json`. A key that is added for a rotation is served soon, without a restart: the server
//! must know it before it signs.

use std::time::Duration;

use tokio::{sync::watch, task::JoinSet, time::interval};

use crate::{config::Config, sync::chain};

/// How often the secret is looked at.
const READ_EVERY: Duration = Duration::from_mins(1);

/// The public keys as they are now, until the set is dropped. Always none where they are not served.
pub fn start(config: &Config) -> (watch::Receiver<Option<String>>, JoinSet<()>) {
    let (sender, keys) = watch::channel(None);
    let mut readers = JoinSet::new();
    let Some(auth) = config.server.auth.clone().filter(|_| config.health.serve_jwks) else { return (keys, readers) };
    readers.spawn(async move {
        let mut ticks = interval(READ_EVERY);
        let mut failed = false;
        loop {
            ticks.tick().await;
            match auth.public_jwks().await {
                Some(Ok(jwks)) => {
                    failed = false;
                    sender.send_replace(Some(jwks));
                }
                Some(Err(error)) => {
                    if !failed {
                        let error = chain(&error);
                        tracing::warn!(error, "the keys cannot be read; /jwks.json stays as it was");
                    }
                    failed = true;
                }
                None => return,
            }
        }
    });
    (keys, readers)
}
