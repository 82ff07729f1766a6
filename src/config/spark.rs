//! `tables.engine` and `[tables.spark]`: who writes the tables of resources.

use super::{
    Section, duration_text, positive_duration,
    secrets::{self, KeyedSecret},
    text,
};
use crate::spark::{Address, Config, IS_BUILT_IN, Tables};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Engine {
    Delta,
    Spark,
}

/// What each MERGE sets itself.
const OWN_CONFS: [&str; 4] = [
    "spark.databricks.delta.commitInfo.userMetadata",
    "spark.databricks.delta.write.txnAppId",
    "spark.databricks.delta.write.txnVersion",
    "spark.sql.session.timeZone",
];

/// The outer `None` is a mistake, which has been reported; the inner one is our own engine.
#[expect(clippy::option_option, reason = "a mistake and an engine without settings are different")]
pub(super) fn read(tables: &mut Section, mut section: Section, is_partitioned: bool) -> Option<Option<Config>> {
    let engine = tables.choice("engine", "delta", &[("delta", Engine::Delta), ("spark", Engine::Spark)]);
    let is_given = section.has("url");
    let config = read_section(&mut section, engine == Some(Engine::Spark) && !is_given);
    match engine? {
        Engine::Delta if is_given => {
            section.mistake(
                "url",
                "is set, and tables.engine is \"delta\"; set it to \"spark\", or remove [tables.spark]",
            );
            section.end();
            None
        }
        Engine::Delta => {
            section.end();
            Some(None)
        }
        Engine::Spark => {
            section.end();
            if !IS_BUILT_IN {
                let what = "is \"spark\", and this program was built without it; build it with \
                            cargo build --release --features spark";
                tables.mistake("engine", what);
                return None;
            }
            if is_partitioned {
                let what = "is \"spark\", and [tables.<type>] has partitions, which are for tables that fhir-sync writes \
                            itself; create the table with partitions or CLUSTER BY in Spark";
                tables.mistake("engine", what);
                return None;
            }
            config.map(Some)
        }
    }
}

fn read_section(section: &mut Section, is_missing: bool) -> Option<Config> {
    let address: Option<Address> = section.optional("url", str::parse);
    let token = secrets::read(section, "token");
    let schema = section.optional("schema", schema);
    let root = section.optional("root", text);
    section.is_secret("confs");
    let confs = section.texts("confs");
    let mut duration = |key, default| section.or(key, &duration_text(default), positive_duration);
    let connect_timeout = duration("connect_timeout", Config::DEFAULT_CONNECT_TIMEOUT);
    let statement_timeout = duration("statement_timeout", Config::DEFAULT_STATEMENT_TIMEOUT);
    let outage_patience = duration("outage_patience", Config::DEFAULT_OUTAGE_PATIENCE);
    for (name, _) in &confs {
        if OWN_CONFS.contains(&name.as_str()) {
            section.mistake("confs", &format!("has {name}, which each statement sets itself"));
            return None;
        }
    }
    let token = token.ok()?.map(|KeyedSecret { secret, .. }| secret);
    if is_missing {
        section.mistake("url", "is missing; it is the address of the Spark Connect server, sc://host:port");
    }
    let address = address?;
    if token.is_some() && !address.tls && !address.is_local() {
        section.mistake("url", "has no use_ssl=true, and a token is set: it would be sent in the clear");
        return None;
    }
    Some(Config {
        address,
        token,
        tables: Tables { root, schema },
        confs: confs.into_iter().collect(),
        connect_timeout: connect_timeout?,
        statement_timeout: statement_timeout?,
        outage_patience: outage_patience?,
    })
}

/// `schema` or `catalog.schema`.
fn schema(text: &str) -> Result<Vec<String>, String> {
    let parts: Vec<_> = text.split('.').map(str::to_owned).collect();
    let is_name = parts.len() <= 2 && parts.iter().all(|part| !part.is_empty() && part.trim() == part);
    is_name.then_some(parts).ok_or_else(|| format!("{text:?} is not of the form schema or catalog.schema"))
}
