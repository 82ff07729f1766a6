//! The quarantine: the table `_fhir_sync/quarantine`, a row for each line that is not a resource.
//!
//! A row is on the disk before the commit whose watermark passes its line. Each content has one row, whichever run it
//! arrived in first. The last column holds the line as it is kept; everything else can be read without it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use deltalake::{
    kernel::{Action, Add},
    protocol::DeltaOperation,
};
use futures::StreamExt as _;

use super::{
    Error, Root, Table, TableName,
    commit::{self, CommitOutcome, remove},
    data_file::rolling::DataFiles,
    data_file::stored::StoredFile,
    record::{Recorded as _, record},
    requirements::check_writable,
};

record! {
    /// A line that is not a resource.
    QuarantineRow {
        /// The SHA-256 of the line, in hexadecimal digits.
        id: String,
        export: String,
        /// The run in which it arrived first, and when that run began.
        run: u64,
        first_seen: Option<DateTime<Utc>>,
        /// Of its file; a file of deletions, or of several types, has none.
        resource_type: Option<String>,
        source: String,
        /// How far the export goes that brought it.
        transaction_time: Option<DateTime<Utc>>,
        /// For people: the URL of the file may be a secret.
        file: String,
        /// The first line of a file is 1.
        line: u64,
        /// Where the line begins in the decoded file.
        byte_offset: u64,
        /// Of the line.
        bytes: u64,
        /// A word.
        reason: String,
        /// The reason with the place in the line, never with content.
        detail: String,
        /// Since when the resource of the line is in its table: replayed, as it was or corrected.
        replayed_at: Option<DateTime<Utc>>,
        /// How the line is kept: `plain`, `encrypted` or `withheld`.
        form: String,
        /// The line; encrypted, its nonce, ciphertext and tag. None where it is withheld or was replayed.
        #[serde(skip)]
        content: Option<Vec<u8>>,
    }
}

impl QuarantineRow {
    pub const PLAIN: &str = "plain";
    pub const ENCRYPTED: &str = "encrypted";
    pub const WITHHELD: &str = "withheld";

    /// Whether the table has the line itself, in a row that was read without it.
    pub fn has_line(&self) -> bool {
        self.form != Self::WITHHELD && self.replayed_at.is_none()
    }
}

/// The column that only those read who want the line itself.
const CONTENT: &str = "content";

/// How often rows are changed because other writers commit at the same moment.
const MAX_ATTEMPTS: u32 = 10;

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuarantineFate {
    Stays,
    /// Its resource is in its table now. Of the line remains its hash, so that it is not kept again.
    Replayed {
        at: DateTime<Utc>,
    },
    Dropped,
}

impl Root {
    /// Appends rows in one commit, on the disk afterwards; the first creates the table. Encodes on the thread that it
    /// is called from.
    pub async fn append_to_quarantine(&self, rows: &[QuarantineRow]) -> Result<(), Error> {
        self.append(TableName::Quarantine, rows).await
    }

    /// All rows without their lines, the oldest first; none where there is no table.
    pub async fn quarantine(&self) -> Result<Vec<QuarantineRow>, Error> {
        let mut rows = match self.load(TableName::Quarantine).await? {
            Some(table) => all(&table).await?,
            None => Vec::new(),
        };
        rows.sort_by(|one, other| {
            let key = |row: &QuarantineRow| (row.first_seen, row.run, row.line);
            key(one).cmp(&key(other)).then_with(|| one.file.cmp(&other.file))
        });
        Ok(rows)
    }

    /// Gives each of these rows, with its line, to `take`. Some MiB of them are in memory at a time.
    pub async fn read_quarantine(
        &self,
        wanted: &BTreeSet<String>,
        take: &mut (dyn FnMut(QuarantineRow) + Send),
    ) -> Result<(), Error> {
        let Some(table) = self.load(TableName::Quarantine).await? else { return Ok(()) };
        for stored in table.stored_files().await? {
            let mut batches = table.rows(&stored).await?;
            while let Some(batch) = batches.next().await {
                let rows = QuarantineRow::of(&batch?).map_err(|error| table.failed(error))?;
                rows.into_iter().filter(|row| wanted.contains(&row.id)).for_each(&mut *take);
            }
        }
        Ok(())
    }

    /// Changes rows, in one commit that rewrites their files; returns how many. The files as they were are left to the
    /// vacuum.
    pub async fn change_quarantine(
        &self,
        fate: &(dyn Fn(&QuarantineRow) -> QuarantineFate + Sync),
    ) -> Result<u64, Error> {
        let Some(mut table) = self.load(TableName::Quarantine).await? else { return Ok(0) };
        change(&mut table, fate).await
    }
}

/// The rows without their lines.
async fn all(table: &Table) -> Result<Vec<QuarantineRow>, Error> {
    let mut rows = Vec::new();
    for stored in table.stored_files().await? {
        rows.extend(rows_of(table, &stored).await?);
    }
    Ok(rows)
}

async fn rows_of(table: &Table, stored: &StoredFile) -> Result<Vec<QuarantineRow>, Error> {
    let mut rows = Vec::new();
    let mut batches = Box::pin(stored.rows_except(CONTENT).await.map_err(|error| table.failed(error))?);
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| table.failed(error))?;
        rows.extend(QuarantineRow::of(&batch).map_err(|error| table.failed(error))?);
    }
    Ok(rows)
}

/// How many rows would not stay.
pub(super) async fn count_changes(
    table: &Table,
    fate: &(dyn Fn(&QuarantineRow) -> QuarantineFate + Sync),
) -> Result<u64, Error> {
    Ok(all(table).await?.iter().filter(|row| fate(row) != QuarantineFate::Stays).count() as u64)
}

pub(super) async fn change(
    table: &mut Table,
    fate: &(dyn Fn(&QuarantineRow) -> QuarantineFate + Sync),
) -> Result<u64, Error> {
    for _ in 0..MAX_ATTEMPTS {
        let (mut affected, mut changed) = (Vec::new(), 0);
        for stored in table.stored_files().await? {
            let of_file = rows_of(table, &stored).await?;
            let of_file = of_file.iter().filter(|row| fate(row) != QuarantineFate::Stays).count();
            if of_file > 0 {
                affected.push(stored);
                changed += of_file as u64;
            }
        }
        if affected.is_empty() {
            return Ok(0);
        }
        let adds = rewrite(table, &affected, fate).await?;
        let written: Vec<_> = adds.iter().map(|add| add.path.clone()).collect();
        let removes = affected.iter().map(|stored| Action::Remove(remove(stored)));
        let actions = removes.chain(adds.into_iter().map(Action::Add)).collect();
        let operation = DeltaOperation::Update { predicate: None };
        match commit::attempt(table, actions, operation, Vec::new(), BTreeMap::new()).await? {
            CommitOutcome::Committed { .. } => return Ok(changed),
            CommitOutcome::Overtaken => {
                commit::discard(table, written.into_iter()).await;
                commit::give_way().await;
            }
        }
    }
    Err(Error::Conflict { table: table.name, attempts: MAX_ATTEMPTS })
}

/// The rows of these files that are not dropped, in new files.
async fn rewrite(
    table: &Table,
    affected: &[StoredFile],
    fate: &(dyn Fn(&QuarantineRow) -> QuarantineFate + Sync),
) -> Result<Vec<Add>, Error> {
    let columns = table.columns()?;
    check_writable(table, &columns)?;
    let mut files = DataFiles::new(table.target()?, Vec::new(), BTreeSet::new());
    for stored in affected {
        let mut batches = table.rows(stored).await?;
        while let Some(batch) = batches.next().await {
            let rows = QuarantineRow::of(&batch?).map_err(|error| table.failed(error))?;
            let kept: Vec<_> = rows.into_iter().filter_map(|row| changed(row, fate)).collect();
            if kept.is_empty() {
                continue;
            }
            let batch = QuarantineRow::batch(&kept, &columns).map_err(|error| table.failed(error))?;
            files.write(&batch).await.map_err(|error| table.failed(error))?;
        }
    }
    files.finish().await.map_err(|error| table.failed(error))
}

fn changed(row: QuarantineRow, fate: &(dyn Fn(&QuarantineRow) -> QuarantineFate + Sync)) -> Option<QuarantineRow> {
    match fate(&row) {
        QuarantineFate::Stays => Some(row),
        QuarantineFate::Replayed { at } => Some(QuarantineRow { replayed_at: Some(at), content: None, ..row }),
        QuarantineFate::Dropped => None,
    }
}

/// The types that the rows name.
pub(super) async fn types(table: &Table) -> Result<BTreeSet<String>, Error> {
    Ok(all(table).await?.into_iter().filter_map(|row| row.resource_type).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Config, Location};

    fn row(id: &str, run: u64) -> QuarantineRow {
        QuarantineRow {
            id: id.to_owned(),
            run,
            first_seen: DateTime::from_timestamp_micros(i64::try_from(run).unwrap()),
            content: Some(vec![0xff, 0, b'a']),
            ..QuarantineRow::default()
        }
    }

    async fn lines(root: &Root, ids: &[&str]) -> Vec<QuarantineRow> {
        let wanted = ids.iter().map(|id| (*id).to_owned()).collect();
        let mut read = Vec::new();
        root.read_quarantine(&wanted, &mut |row| read.push(row)).await.unwrap();
        read
    }

    fn ids(rows: &[QuarantineRow]) -> Vec<&str> {
        rows.iter().map(|row| row.id.as_str()).collect()
    }

    #[tokio::test]
    async fn rows_are_listed_without_their_lines_and_changed_without_touching_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(Config::new(Location::Folder(folder.path().to_owned()))).unwrap();
        assert_eq!(root.quarantine().await.unwrap(), []);
        root.append_to_quarantine(&[row("b", 2), row("a", 1)]).await.unwrap();
        root.append_to_quarantine(&[row("c", 3)]).await.unwrap();
        let listed = root.quarantine().await.unwrap();
        assert_eq!(ids(&listed), ["a", "b", "c"]);
        assert!(listed.iter().all(|row| row.content.is_none()));
        assert_eq!(lines(&root, &["b"]).await, [row("b", 2)]);
        let at = DateTime::from_timestamp_micros(9).unwrap();
        let fate = |row: &QuarantineRow| match row.id.as_str() {
            "a" => QuarantineFate::Replayed { at },
            "c" => QuarantineFate::Dropped,
            _ => QuarantineFate::Stays,
        };
        assert_eq!(root.change_quarantine(&fate).await.unwrap(), 2);
        let replayed = QuarantineRow { replayed_at: Some(at), content: None, ..row("a", 1) };
        assert_eq!(lines(&root, &["a", "b", "c"]).await, [row("b", 2), replayed]);
        assert_eq!(root.change_quarantine(&|_| QuarantineFate::Stays).await.unwrap(), 0);
    }
}
