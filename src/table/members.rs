//! Members: the table `_fhir_sync/members`, a row each time that a patient joins or leaves the group of an export.
//!
//! Rows are only appended. A patient is a member while the last row says so; that row is written when what the export
//! has of the patient is in the tables, so it is also what the next run compares the group with.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::{Error, Root, TableName, record::record};

record! {
    /// A patient has joined or left a group.
    MemberRow {
        export: String,
        /// `_sync_source` of the patient's rows.
        source: String,
        group: String,
        /// The logical id; empty where there was no patient to record.
        patient: String,
        /// `joined` or `left`.
        event: String,
        /// When we found it, by the local clock, and later than all rows before.
        at: Option<DateTime<Utc>>,
        run: u64,
    }
}

impl MemberRow {
    pub const JOINED: &str = "joined";
    pub const LEFT: &str = "left";
}

/// Who is a member, as far as was recorded.
#[derive(Debug)]
pub struct RecordedMembers {
    pub members: BTreeSet<String>,
    /// Of the last row.
    at: Option<DateTime<Utc>>,
}

impl Root {
    /// Appends a row like `row` for each patient, in one commit; the first creates the table. Without a patient it
    /// records that there was none. The time of the rows is later than that of all before, whatever the clock says.
    /// Encodes on the thread that it is called from.
    pub async fn append_members(&self, row: &MemberRow, patients: &BTreeSet<String>) -> Result<(), Error> {
        let recorded = self.members(&row.export, &row.source, &row.group).await?;
        let after = recorded.and_then(|recorded| recorded.at).map(|at| at + TimeDelta::microseconds(1));
        let row = MemberRow { at: row.at.max(after), ..row.clone() };
        let mut rows: Vec<_> =
            patients.iter().map(|patient| MemberRow { patient: patient.clone(), ..row.clone() }).collect();
        if rows.is_empty() {
            rows.push(MemberRow { event: MemberRow::LEFT.to_owned(), ..row });
        }
        self.append(TableName::Members, &rows).await
    }

    /// Who is a member of the group of this export; `None` where nothing was recorded.
    pub async fn members(&self, export: &str, source: &str, group: &str) -> Result<Option<RecordedMembers>, Error> {
        let mut last = BTreeMap::<String, (Option<DateTime<Utc>>, bool)>::new();
        self.each_record(TableName::Members, &mut |row: MemberRow| {
            if row.export != export || row.source != source || row.group != group {
                return;
            }
            let event = (row.at, row.event == MemberRow::JOINED);
            let known = last.entry(row.patient).or_insert(event);
            *known = event.max(*known);
        })
        .await?;
        let Some(at) = last.values().map(|(at, _)| *at).max() else { return Ok(None) };
        let members = last.into_iter().filter(|(_, (_, joined))| *joined).map(|(patient, _)| patient).collect();
        Ok(Some(RecordedMembers { members, at }))
    }
}
