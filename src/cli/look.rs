//! What the commands that only look have in common: they open the tables for reading, without key, lock or network, and
//! print text on a terminal and JSON for programs.

use std::{
    io::{self, ErrorKind, Write as _},
    path::Path,
};

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

pub use super::columns::columns;
use super::{
    exit::{CONFIGURATION, Exit, failed, misconfigured},
    file_or_flags::FileOrFlags,
};
use crate::{
    config::{self, Config},
    spelling::did_you_mean,
    sync::{Root, chain},
    telemetry,
};

/// What each of these commands takes.
#[derive(Args, Debug)]
pub struct Looking {
    #[command(flatten)]
    from: FileOrFlags,
    /// JSON with all columns, for programs
    #[arg(long)]
    pub json: bool,
}

impl Looking {
    pub fn configuration(&self) -> Result<Config, Exit> {
        telemetry::start(&telemetry::Config::quiet());
        self.from.settings().map_err(misconfigured)
    }

    /// The configuration with the private key, for those who ask the server.
    pub fn configuration_with_key(&self) -> Result<Config, Exit> {
        self.from.settings_with_key().map_err(misconfigured)
    }

    /// The configuration, and its tables for reading.
    pub fn open(&self) -> Result<(Config, Root), Exit> {
        let config = self.configuration()?;
        let root = Root::for_reading(config.tables.clone()).map_err(|error| failed(&chain(&error)))?;
        Ok((config, root))
    }
}

/// The configuration; the private key may be missing.
pub fn configuration(config: &Path) -> Result<Config, Exit> {
    telemetry::start(&telemetry::Config::quiet());
    let (config, _) = config::check(config).map_err(misconfigured)?;
    Ok(config)
}

/// Says that there is no export of this name, and which there are.
pub fn no_such_export<'a>(name: &str, configured: impl Iterator<Item = &'a str>) -> Exit {
    let configured: Vec<_> = configured.collect();
    let (meant, all) = (did_you_mean(name, configured.iter().copied()), configured.join(", "));
    eprintln!("fhir-sync: the configuration has no export {name:?}; it has {all}{meant}");
    CONFIGURATION
}

/// Prints text. A reader that closes the pipe early, such as `head`, is not an error.
pub fn print(text: &str) -> Result<(), Exit> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(failed(&format!("the result cannot be written to the standard output: {error}")))
        }
        _ => Ok(()),
    }
}

pub fn print_json(value: &impl Serialize) -> Result<(), Exit> {
    let text = serde_json::to_string_pretty(value).map_err(|error| failed(&error.to_string()))?;
    print(&format!("{text}\n"))
}

/// In UTC, to the second.
pub fn day_and_time(instant: Option<DateTime<Utc>>) -> String {
    instant.map_or_else(|| "-".to_owned(), |instant| instant.format("%Y-%m-%d %H:%M:%S").to_string())
}
