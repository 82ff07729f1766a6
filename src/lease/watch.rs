//! A watch over a lease of somebody else: a holder that is silent for long enough has ended.

use tokio::time::Instant;

use super::{Error, Holder, Liveness, Record, STALE_AFTER, readable, record};
use crate::store::{Document, Stored};

/// What was seen of a lease, from the first look on.
#[derive(Debug, Default)]
pub struct Watch {
    /// The document, and since when it has not changed.
    seen: Option<(String, Instant)>,
}

/// What the lease means for us.
pub(super) enum Look {
    Free,
    /// Its holder is alive.
    Held(Box<Record>),
    /// Nobody on this host can say whether its holder is alive. `is_new` at the first look.
    Silent {
        record: Box<Record>,
        is_new: bool,
    },
}

impl Watch {
    /// Looks at what was read just now. A holder of the name `ended` is known to have ended.
    pub(super) fn look(&mut self, stored: Option<&Stored>, us: &Holder, ended: Option<&str>) -> Look {
        let Some(stored) = stored else { return Look::Free };
        let found = Box::new(readable(Some(stored)));
        if let Some(record) = record(stored) {
            if record.released {
                return Look::Free;
            }
            // Of a group, others may be alive when one has ended.
            if record.group.is_none() {
                match record.holder.liveness(us) {
                    _ if ended == Some(record.holder.name.as_str()) => return Look::Free,
                    Liveness::Ended => return Look::Free,
                    Liveness::Alive => return Look::Held(found),
                    Liveness::Unknown => {}
                }
            }
        }
        match &self.seen {
            Some((text, since)) if *text == stored.text => {
                if since.elapsed() >= STALE_AFTER {
                    Look::Free
                } else {
                    Look::Silent { record: found, is_new: false }
                }
            }
            Some(_) => {
                self.see(stored);
                Look::Held(found)
            }
            None => {
                self.see(stored);
                Look::Silent { record: found, is_new: true }
            }
        }
    }

    /// Who holds the lease, as far as we can tell; `None` where it may be taken.
    pub async fn holder(&mut self, document: &Document, us: &Holder) -> Result<Option<String>, Error> {
        let stored = document.read().await?;
        Ok(match self.look(stored.as_ref(), us, None) {
            Look::Free => None,
            Look::Held(record) | Look::Silent { record, .. } => Some(record.holder.to_string()),
        })
    }

    fn see(&mut self, stored: &Stored) {
        self.seen = Some((stored.text.clone(), Instant::now()));
    }
}
