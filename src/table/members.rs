//! Members: the table `_fhir_sync/members`, a row each time that a patient joins or leaves the group of an export.
//!
//! Rows are only appended. A patient is a member while the last row says so; that row is written when what the export
//! has of the patient is in the tables, so it is also what the next run compares the group with.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use super::{Error, Root, TableName, record::record};

record! {
    /// A patient has joined or left a group.
    MemberRow {
        export: String,
        /// `_sync_source` of the patient's rows.
        source: String,
        group: String,
        /// The logical id.
        patient: String,
        /// `joined` or `left`.
        event: String,
        /// When we found it, by the local clock.
        at: Option<DateTime<Utc>>,
        run: u64,
    }
}

impl MemberRow {
    pub const JOINED: &str = "joined";
    pub const LEFT: &str = "left";
}

impl Root {
    /// Appends rows in one commit; the first creates the table. Encodes on the thread that it is called from.
    pub async fn append_members(&self, rows: &[MemberRow]) -> Result<(), Error> {
        self.append(TableName::Members, rows).await
    }

    /// Who is a member of the group of this export, as far as was recorded; `None` where nothing was.
    pub async fn members(&self, export: &str, source: &str, group: &str) -> Result<Option<BTreeSet<String>>, Error> {
        let mut last = BTreeMap::<String, (u64, Option<DateTime<Utc>>, bool)>::new();
        self.each_record(TableName::Members, &mut |row: MemberRow| {
            if row.export != export || row.source != source || row.group != group {
                return;
            }
            let joined = row.event == MemberRow::JOINED;
            let known = last.entry(row.patient).or_insert((row.run, row.at, joined));
            // Who leaves and joins in one run is a member.
            if (known.1, known.0, known.2) < (row.at, row.run, joined) {
                *known = (row.run, row.at, joined);
            }
        })
        .await?;
        let is_recorded = !last.is_empty();
        let members = last.into_iter().filter(|(_, (_, _, joined))| *joined).map(|(patient, _)| patient).collect();
        Ok(is_recorded.then_some(members))
    }
}
