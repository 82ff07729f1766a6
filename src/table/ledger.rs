//! The ledger: the table `_fhir_sync/runs`, a row for each commit of a run, and for each type without one: what was
//! asked, what arrived, what became of it.
//!
//! Rows are only appended, in one commit at the end of a run, and one for each instalment. No decision is made from
//! them: they are what people and `fhir-sync verify` go by.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray as _, ListArray, RecordBatch, StructArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field},
};
use chrono::{DateTime, Utc};

use super::{
    Error, Root, TableName,
    record::{Recorded as _, Value, record},
};

record! {
    /// A type in a run: its last commit, or why there is none; or an instalment, with what that one brought.
    LedgerRow {
        /// The number of the run; it starts again with a lost state file.
        run: u64,
        export: String,
        resource_type: String,
        source: String,
        /// `incremental` or `full refresh`.
        mode: String,
        /// `system`, `patient` or `group/<id>`.
        level: String,
        /// All types of the request, as one text.
        requested_types: Option<String>,
        /// `_since` as it was sent.
        since: Option<String>,
        started_at: Option<DateTime<Utc>>,
        ended_at: Option<DateTime<Utc>>,
        duration_ms: u64,
        /// Of the run; `running` for an instalment, `killed` for a commit that only the table's log knows of.
        outcome: String,
        /// Of the type: `committed`, `instalment`, `watermark held`, `failed`, `not reached`.
        end: String,
        /// Why the type, or the run, is not complete.
        cause: Option<String>,
        /// What else the operator should know of the run.
        notes: Option<String>,
        watermark_before: Option<DateTime<Utc>>,
        watermark_after: Option<DateTime<Utc>>,
        /// Of the table, after the commit.
        table_version: Option<u64>,
        /// In the manifest.
        files_announced: Option<u64>,
        /// The counts of the manifest, where all files have one.
        lines_announced: Option<u64>,
        files: u64,
        /// Decoded.
        bytes: u64,
        /// Lines and deletions.
        received: u64,
        inserted: u64,
        updated: u64,
        unchanged: u64,
        stale: u64,
        duplicate: u64,
        deleted: u64,
        removed: u64,
        missing: u64,
        quarantined: u64,
        /// Lines that were another wanted type's.
        rerouted: Option<u64>,
        /// Lines and deletions of types that nobody keeps.
        not_wanted: Option<u64>,
        /// Lines that are what the server says about its file.
        outcomes: Option<u64>,
        /// Versions that contradicted each other.
        conflicts: Option<u64>,
        /// Stored versions and tombstones that a full refresh overruled.
        overruled: Option<u64>,
        bytes_written: u64,
        /// Commits of other writers, since our last one, that changed rows.
        foreign_commits: u64,
        /// The files that were read to their end.
        file_list: Vec<LedgerFile>,
        /// Requests to the object store for the table of the type while the run went on; `NULL` in a folder.
        requests: Option<u64>,
        /// What these have read.
        bytes_read: Option<u64>,
    }
}

record! {
    /// A file of an export.
    LedgerFile {
        /// For people: its URL may be a secret.
        name: String,
        /// Decoded.
        bytes: u64,
        /// Of the decoded bytes, in hexadecimal digits, where `server.http.hash_files` asks for it.
        sha256: Option<String>,
    }
}

impl Value for Vec<LedgerFile> {
    fn data_type() -> DataType {
        DataType::List(Arc::new(Field::new("element", DataType::Struct(LedgerFile::schema().fields), true)))
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let lists: Vec<_> = values.collect();
        let offsets = OffsetBuffer::from_lengths(lists.iter().map(|files| files.len()));
        let files: Vec<_> = lists.into_iter().flatten().cloned().collect();
        let element = Field::new("element", DataType::Struct(LedgerFile::schema().fields), true);
        let files = StructArray::new(LedgerFile::schema().fields, LedgerFile::columns(&files), None);
        Arc::new(ListArray::new(Arc::new(element), offsets, Arc::new(files), None))
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        let column = column.as_list::<i32>();
        if column.is_null(row) {
            return Self::new();
        }
        let files = RecordBatch::from(column.value(row).as_struct());
        LedgerFile::of(&files).unwrap_or_default()
    }
}

impl Root {
    /// Appends rows in one commit; the first creates the table. Encodes on the thread that it is called from.
    pub async fn append_to_ledger(&self, rows: &[LedgerRow]) -> Result<(), Error> {
        self.append(TableName::Runs, rows).await
    }

    /// Gives each row to `take`, in no order. One batch of them is in memory at a time.
    pub async fn read_ledger(&self, take: &mut impl FnMut(LedgerRow)) -> Result<(), Error> {
        self.each_record(TableName::Runs, take).await
    }

    /// All rows, the oldest first; none where there is no table.
    pub async fn ledger(&self) -> Result<Vec<LedgerRow>, Error> {
        let mut all = self.records::<LedgerRow>(TableName::Runs).await?;
        all.sort_by(|one, other| {
            let key = |row: &LedgerRow| (row.started_at, row.run);
            let within = |row: &LedgerRow| (row.resource_type.clone(), row.ended_at);
            key(one).cmp(&key(other)).then_with(|| within(one).cmp(&within(other)))
        });
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Config, Location};

    fn row(run: u64, resource_type: &str) -> LedgerRow {
        LedgerRow {
            run,
            resource_type: resource_type.to_owned(),
            started_at: DateTime::from_timestamp_micros(1_800_000_000_000_000 + i64::try_from(run).unwrap()),
            since: (run > 1).then(|| "2026-01-01T00:00:00.000Z".to_owned()),
            table_version: Some(run),
            inserted: 7,
            file_list: vec![LedgerFile { name: "file 1".to_owned(), bytes: run, ..LedgerFile::default() }],
            ..LedgerRow::default()
        }
    }

    #[tokio::test]
    async fn rows_are_read_back_as_they_were_appended() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(Config::new(Location::Folder(folder.path().to_owned()))).unwrap();
        assert_eq!(root.ledger().await.unwrap(), []);
        root.append_to_ledger(&[row(1, "Patient"), row(1, "Observation")]).await.unwrap();
        root.append_to_ledger(&[row(2, "Patient")]).await.unwrap();
        let all = [row(1, "Observation"), row(1, "Patient"), row(2, "Patient")];
        assert_eq!(root.ledger().await.unwrap(), all);
    }

    #[tokio::test]
    async fn a_ledger_of_an_earlier_version_gains_the_columns_that_it_lacks() {
        record! {
            /// As it was before requests were counted.
            Earlier {
                run: u64,
                resource_type: String,
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(Config::new(Location::Folder(folder.path().to_owned()))).unwrap();
        let earlier = Earlier { run: 1, resource_type: "Patient".to_owned() };
        root.append(TableName::Runs, &[earlier]).await.unwrap();
        let with_requests = LedgerRow { requests: Some(7), bytes_read: Some(9), ..row(2, "Patient") };
        root.append_to_ledger(std::slice::from_ref(&with_requests)).await.unwrap();
        let before = LedgerRow { run: 1, resource_type: "Patient".to_owned(), ..LedgerRow::default() };
        assert_eq!(root.ledger().await.unwrap(), [before, with_requests]);
    }
}
