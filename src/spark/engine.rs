//! The engine: tables of resources, opened and created by a Spark server.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arrow::datatypes::{Schema, SchemaRef};

use super::{
    config::Config,
    connect::{Client, Session},
    error::Error,
    history::History,
    names::Names,
    results::{numbers, texts},
    sql,
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    table::{self, Root, RunCommit, TableDefinition},
};

/// A Spark server, and the root whose tables of resources it writes.
#[derive(Clone, Debug)]
pub struct Spark {
    pub(super) client: Client,
    pub(super) names: Names,
    pub(super) root: Root,
    pub(super) answers: AnswerRows,
    known: Arc<Mutex<Known>>,
}

/// About how many rows an answer may have, whatever the table has. The server keeps an answer in its memory, and refuses
/// one of more than `spark.driver.maxResultSize`, which is 1 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerRows {
    /// Keys of stored rows, which are taken as they arrive.
    pub stored_rows: u64,
    /// Ids of missing rows, which are in memory at the same time.
    pub missing_rows: u64,
}

const ANSWER_ROWS: AnswerRows = AnswerRows { stored_rows: 1_000_000, missing_rows: 250_000 };

/// The tables that were looked at, and when.
type Known = BTreeMap<ResourceType, (Instant, Looked)>;

/// How long what was seen of a table is used again. A run looks at each table several times, and each look costs the
/// server two statements. A table that has changed meanwhile is noticed by the MERGE.
const LOOK_LIFETIME: Duration = Duration::from_mins(1);

/// What was seen of a table.
#[derive(Clone, Debug)]
struct Looked {
    detail: Detail,
    history: History,
    columns: SchemaRef,
}

/// One table, as its history was when it was opened.
#[derive(Debug)]
pub struct SparkTable {
    pub(super) spark: Spark,
    pub(super) of: ResourceType,
    /// In the words of Spark SQL; for people as well.
    pub(super) name: String,
    pub(super) history: History,
    pub(super) columns: SchemaRef,
    detail: Detail,
}

/// What DESCRIBE DETAIL says.
#[derive(Clone, Debug)]
struct Detail {
    id: String,
    is_empty: bool,
}

impl Spark {
    /// Connects with the first statement.
    pub fn new(config: &Config, root: &Root) -> Result<Self, Error> {
        Ok(Self {
            client: Client::new(config)?,
            names: Names::new(&config.tables, &root.place()),
            root: root.clone(),
            answers: ANSWER_ROWS,
            known: Arc::default(),
        })
    }

    /// The same for work on `root`, which has the leases that this work needs. Other processes may have written before
    /// they were taken, so each table is looked at again.
    #[must_use]
    pub fn on(&self, root: &Root) -> Self {
        Self { root: root.clone(), known: Arc::default(), ..self.clone() }
    }

    /// Asks the server for its version. Needs no tables.
    pub async fn version(config: &Config) -> Result<String, Error> {
        let session = Client::new(config)?.session(&[]).await?;
        let answered = session.query("its version", "SELECT version() AS version".to_owned()).await;
        session.close().await;
        let version = answered?.iter().find_map(|batch| texts(batch, "version").ok()?.into_iter().next()?);
        // The rest of it is a hash.
        Ok(version.unwrap_or_default().split_whitespace().next().unwrap_or("unknown").to_owned())
    }

    /// The table of a type as it is now; `None` where there is none.
    pub async fn open(&self, of: ResourceType) -> Result<Option<SparkTable>, table::Error> {
        if let Some(looked) = self.looked(of) {
            return Ok(Some(self.table(of, looked)));
        }
        let opened = async {
            let session = self.client.session(&[]).await?;
            let opened = self.open_in(&session, of).await;
            session.close().await;
            opened
        };
        opened.await.map_err(|error: Error| error.of_table(&self.names.table(of)))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen of a table a moment ago.
    fn looked(&self, of: ResourceType) -> Option<Looked> {
        let known = self.known();
        let (at, looked) = known.get(&of)?;
        (at.elapsed() < LOOK_LIFETIME).then(|| looked.clone())
    }

    /// The table is looked at again: it may have changed.
    pub(super) fn forget(&self, of: ResourceType) {
        self.known().remove(&of);
    }

    fn table(&self, of: ResourceType, looked: Looked) -> SparkTable {
        let Looked { detail, history, columns } = looked;
        SparkTable { spark: self.clone(), of, name: self.names.table(of), history, columns, detail }
    }

    async fn open_in(&self, session: &Session, of: ResourceType) -> Result<Option<SparkTable>, Error> {
        let name = self.names.table(of);
        let detail = session.query("DESCRIBE DETAIL", sql::detail(&name)).await;
        let detail = match detail {
            Err(error) if error.is_no_table() => return Ok(None),
            detail => detail?,
        };
        let Some(detail) = first_detail(&detail)? else {
            let reason = "it is not a Delta table".to_owned();
            return Err(table::Error::NotOurs { place: name, reason }.into());
        };
        let (history, columns) = (history(session, &name).await?, columns(session, &name).await?);
        let looked = Looked { detail, history, columns };
        self.known().insert(of, (Instant::now(), looked.clone()));
        Ok(Some(self.table(of, looked)))
    }

    /// The same; a table that is not there is created, and columns that it lacks are added.
    pub async fn open_or_create(
        &self,
        of: ResourceType,
        definition: &TableDefinition,
    ) -> Result<SparkTable, table::Error> {
        let name = self.names.table(of);
        let opened = async {
            let session = self.client.session(&[]).await?;
            let opened = self.open_or_create_in(&session, of, &name, definition).await;
            session.close().await;
            opened
        };
        opened.await.map_err(|error: Error| error.of_table(&name))
    }

    async fn open_or_create_in(
        &self,
        session: &Session,
        of: ResourceType,
        name: &str,
        definition: &TableDefinition,
    ) -> Result<SparkTable, Error> {
        let opened = match self.looked(of) {
            Some(looked) => Some(self.table(of, looked)),
            None => self.open_in(session, of).await?,
        };
        let unsupported = || table::Error::Unsupported {
            place: name.to_owned(),
            feature: "a column of a type that Spark does not have".to_owned(),
            way_out: "this is a bug in fhir-sync",
        };
        let change = match &opened {
            None => Some(
                sql::create(name, definition, &self.root.properties_elsewhere(definition)).ok_or_else(unsupported)?,
            ),
            Some(table) => {
                table.check_is_ours()?;
                sql::add_columns(name, definition, &table.columns)
            }
        };
        let Some(change) = change else { return opened.ok_or_else(|| unsupported().into()) };
        self.root.check_lease().await?;
        session.command("the columns of a table", change).await?;
        if opened.is_some() && !definition.properties.is_empty() {
            session.command("the properties of a table", sql::set_properties(name, &definition.properties)).await?;
        }
        tracing::info!(table = %of, is_new = opened.is_none(), "the table gains columns");
        self.open_in(session, of).await?.ok_or_else(|| Error::Lost { class: "TABLE_IS_GONE".to_owned() })
    }
}

/// The newest commits; all of them where none of the recent ones is ours.
pub(super) async fn history(session: &Session, name: &str) -> Result<History, Error> {
    let what = "DESCRIBE HISTORY";
    for limit in [Some(sql::RECENT_COMMITS), None] {
        let batches = session.query(what, sql::history(name, limit)).await?;
        let history = History::of(&batches).map_err(|source| Error::Answer { what, source })?;
        if limit.is_none_or(|limit| history.is_enough(limit)) {
            return Ok(history);
        }
    }
    Ok(History { commits: Vec::new() })
}

async fn columns(session: &Session, name: &str) -> Result<SchemaRef, Error> {
    let batches = session.query("the columns of a table", sql::columns(name)).await?;
    Ok(batches.first().map_or_else(|| Arc::new(Schema::empty()), arrow::array::RecordBatch::schema))
}

fn first_detail(batches: &[arrow::array::RecordBatch]) -> Result<Option<Detail>, Error> {
    let read = || {
        let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
        let (ids, formats, files) = (texts(batch, "id")?, texts(batch, "format")?, numbers(batch, "numFiles")?);
        let is_delta = formats[0].as_deref() == Some("delta");
        let id = ids[0].clone().filter(|_| is_delta);
        Ok(id.map(|id| Detail { id, is_empty: files[0] == Some(0) }))
    };
    read().map_err(|source| Error::Answer { what: "DESCRIBE DETAIL", source })
}

/// `id` and the columns of the sync itself: a table with rows and without one of them is of another writer.
const OWN_COLUMNS: [&str; 4] = ["id", "_sync_source", "_sync_at", "_sync_transaction_time"];

impl SparkTable {
    pub fn version(&self) -> u64 {
        self.history.version()
    }

    pub fn id(&self) -> &str {
        &self.detail.id
    }

    /// Somebody may have written rows since it was opened.
    pub(super) fn forget_that_it_is_empty(&mut self) {
        self.detail.is_empty = false;
    }

    /// Has it no data file?
    pub fn is_empty(&self) -> bool {
        self.detail.is_empty
    }

    /// How far the export with this application id has brought the table.
    pub fn watermark(&self, app_id: &str) -> Option<TransactionTime> {
        self.history.watermark(app_id)
    }

    /// Was the table restored to an earlier version after this version?
    pub fn restored_since(&self, version: u64) -> bool {
        self.history.restored_since(version)
    }

    /// What these runs committed, as far as the recent history has it.
    pub fn commits_of(&self, runs: &BTreeSet<u64>) -> Vec<RunCommit> {
        self.history.commits_of(runs)
    }

    pub fn columns(&self) -> SchemaRef {
        Arc::clone(&self.columns)
    }

    pub async fn row_count(&self) -> Result<Option<u64>, table::Error> {
        let read = async {
            let session = self.spark.client.session(&[]).await?;
            let rows = count(&session, "the number of rows", sql::row_count(&self.name)).await;
            session.close().await;
            rows
        };
        read.await.map(Some).map_err(|error: Error| error.of_table(&self.name))
    }

    fn check_is_ours(&self) -> Result<(), table::Error> {
        let missing = OWN_COLUMNS.iter().find(|name| self.columns.field_with_name(name).is_err());
        match missing.filter(|_| !self.is_empty()) {
            None => Ok(()),
            Some(name) => Err(table::Error::NotOurs {
                place: self.name.clone(),
                reason: format!("it has rows and no column {name}"),
            }),
        }
    }
}

/// The number in the column `rows` of the first row.
pub(super) async fn count(session: &Session, what: &'static str, statement: String) -> Result<u64, Error> {
    let batches = session.query(what, statement).await?;
    let mut rows = batches.iter().filter_map(|batch| numbers(batch, "rows").ok()).flatten().flatten();
    Ok(rows.next().and_then(|rows| u64::try_from(rows).ok()).unwrap_or_default())
}
