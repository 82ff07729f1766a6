//! `query`: SQL over the tables, for people who look at a result.

use std::path::PathBuf;

use clap::Args;

use super::{
    config_path,
    exit::{CONFIGURATION, Exit, failed, misconfigured},
};
use crate::{
    config,
    fhir::{RESOURCE_TYPES, ResourceType},
    sync::{Location, Root, TablesConfig, chain},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// One statement; a table has the name of its resource type: 'SELECT count(birthDate) FROM Patient'
    sql: String,
    /// Configuration file, for its tables [default: `FHIR_SYNC_CONFIG`, else /etc/fhir-sync/fhir-sync.toml]
    #[arg(short, long, value_name = "FILE", conflicts_with = "delta_path")]
    config: Option<PathBuf>,
    /// Folder of the Delta tables
    #[arg(long, value_name = "FOLDER")]
    delta_path: Option<PathBuf>,
}

/// Needs no state file, so it works beside a running daemon.
pub async fn run(arguments: Arguments) -> Result<(), Exit> {
    telemetry::start(&telemetry::Config::quiet());
    let tables = match arguments.delta_path {
        None => config::check(&config_path(arguments.config)).map_err(misconfigured)?.0.tables,
        Some(folder) if folder.is_dir() => TablesConfig::new(Location::Folder(folder)),
        Some(folder) => {
            eprintln!("fhir-sync: {} is not a folder", folder.display());
            return Err(CONFIGURATION);
        }
    };
    let root = Root::new(tables).map_err(|error| failed(&chain(&error)))?;
    let answer = root.query(&named_types(&arguments.sql), &arguments.sql).await;
    say!("{}", answer.map_err(|error| failed(&chain(&error)))?);
    Ok(())
}

/// The types whose names occur in the statement: only their tables are opened.
fn named_types(sql: &str) -> Vec<ResourceType> {
    let words: Vec<_> = sql.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    RESOURCE_TYPES.iter().filter(|name| words.contains(*name)).filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tables_that_a_statement_names_are_opened() {
        let sql = "SELECT p.id FROM Patient p JOIN Observation o ON o.subject = p.id WHERE o.note = 'Encounters'";
        assert_eq!(named_types(sql), [ResourceType::OBSERVATION, ResourceType::PATIENT]);
    }
}
