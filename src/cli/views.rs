//! `views`: SQL statements on the standard output, to be run in the engine.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    config_path,
    exit::{Exit, failed, misconfigured},
};
use crate::{
    config,
    sync::Location,
    views::{self, Dialect},
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// SQL dialect
    #[arg(long)]
    dialect: Dialect,
    /// Folder or URL of the tables, as the engine names it
    #[arg(long, value_name = "FOLDER", conflicts_with = "config")]
    root: Option<String>,
    /// Configuration file, for its tables [default: `FHIR_SYNC_CONFIG`, else /etc/fhir-sync/fhir-sync.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Reads no table: they need not exist yet.
pub fn run(arguments: Arguments) -> Result<(), Exit> {
    let root = match arguments.root {
        None => configured_root(&config_path(arguments.config))?,
        Some(root) if root.contains("://") => root,
        Some(root) => absolute(Path::new(&root))?,
    };
    let sql = views::views(arguments.dialect, &root);
    io::stdout()
        .write_all(sql.as_bytes())
        .map_err(|error| failed(&format!("the statements cannot be written to the standard output: {error}")))
}

fn configured_root(path: &Path) -> Result<String, Exit> {
    let (config, _) = config::check(path).map_err(misconfigured)?;
    match config.tables.root {
        Location::Folder(folder) => absolute(&folder),
        Location::ObjectStore(url) => Ok(url.into()),
    }
}

/// A view may be read from another working directory.
fn absolute(folder: &Path) -> Result<String, Exit> {
    let absolute = std::path::absolute(folder)
        .map_err(|error| failed(&format!("{} has no absolute path: {error}", folder.display())))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| failed(&format!("{} is not UTF-8, so no statement can name it", Path::new(&path).display())))
}
