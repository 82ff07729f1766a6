//! The clocks: the server's, which says how far an export goes, and our own, which is for people and for `/health`. Of
//! data ours decides one thing: it may hold a watermark that is far ahead of it.

use chrono::{DateTime, TimeDelta, Utc};

use super::intake::{Holds, Remark};
use crate::{export::Manifest, fhir::TransactionTime};

#[expect(clippy::disallowed_methods, reason = "when a run began and ended is a matter of our own clock")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// How far an export goes, where that can be believed. A time of the future is no time at all: rows that carried it
/// would win over each later export.
pub fn watermark(manifest: &Manifest, bound: Option<TransactionTime>) -> Option<TransactionTime> {
    export_end(manifest, bound).filter(|end| clock_ahead(Some(*end), now()).is_none())
}

/// The manifest's transactionTime, but not beyond the server's own time at kick-off. Some servers state the end of the
/// job, or the time of the poll; what changed in between would never be asked for again.
pub fn export_end(manifest: &Manifest, bound: Option<TransactionTime>) -> Option<TransactionTime> {
    let transaction_time = manifest.transaction_time?;
    Some(bound.map_or(transaction_time, |bound| transaction_time.min(bound)))
}

/// How far the server's clock may be ahead of ours: no time zone is further, and a wrong clock of a day is no small
/// one.
const MAX_AHEAD: TimeDelta = TimeDelta::days(1);

/// A watermark of the future would hide what changes until then. Our clock never chooses a watermark; here it holds
/// one.
pub fn clock_ahead(watermark: Option<TransactionTime>, now: DateTime<Utc>) -> Option<Remark> {
    let watermark = watermark.filter(|watermark| watermark.instant() - now > MAX_AHEAD)?;
    let text = format!(
        "the export's transactionTime {watermark} is more than a day ahead of the local clock, {}: rows are written and \
         no watermark moves until the clocks agree; correct the wrong one of the two",
        TransactionTime::from(now)
    );
    Some(Remark { text, holds: Holds::Everything })
}
