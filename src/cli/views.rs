//! The views command: statements for the standard output, to be run in the engine.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Ends, FAILED, misconfigured};
use crate::{
    config,
    table::Location,
    views::{self, Dialect},
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// Whose SQL
    #[arg(long)]
    dialect: Dialect,
    /// The folder or URL of the tables, as the engine names it
    #[arg(long, required_unless_present = "config", conflicts_with = "config")]
    root: Option<String>,
    /// The configuration file, for its `tables.root`
    // No `env` here: a variable that is there for the daemon would contradict the root.
    #[arg(short, long)]
    config: Option<PathBuf>,
}

/// Asks nobody: the tables need not be there yet.
pub fn run(arguments: Arguments) -> Result<(), Ends> {
    let root = match (arguments.config, arguments.root.unwrap_or_default()) {
        (Some(path), _) => configured_root(&path)?,
        (None, root) if root.contains("://") => root,
        (None, root) => absolute(Path::new(&root))?,
    };
    let sql = views::views(arguments.dialect, &root);
    io::stdout().write_all(sql.as_bytes()).map_err(|error| {
        eprintln!("fhir-sync: the statements cannot be written to the standard output: {error}");
        FAILED
    })
}

fn configured_root(path: &Path) -> Result<String, Ends> {
    let (config, _) = config::check(path).map_err(misconfigured)?;
    match config.tables.root {
        Location::Folder(folder) => absolute(&folder),
        Location::ObjectStore(url) => Ok(url.into()),
    }
}

/// A view is read from other working directories than this one.
fn absolute(folder: &Path) -> Result<String, Ends> {
    let absolute = std::path::absolute(folder).map_err(|error| {
        eprintln!("fhir-sync: {} has no absolute path: {error}", folder.display());
        FAILED
    })?;
    absolute.into_os_string().into_string().map_err(|path| {
        eprintln!("fhir-sync: {} is not UTF-8, and statements are", Path::new(&path).display());
        FAILED
    })
}
