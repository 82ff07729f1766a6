//! `config`: the configuration that is in force, and what may be written into one.

use clap::Subcommand;

use super::{
    ConfigFile,
    exit::{Exit, misconfigured},
    look,
};
use crate::config;

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Prints the effective configuration as TOML, with the origin of each value and without secrets
    Print(ConfigFile),
    /// Prints the reference configuration: every key with its default and its description
    Sample,
    /// Prints the JSON Schema of configuration files, for editors
    Schema,
}

pub(super) fn run(command: ConfigCommand) -> Result<(), Exit> {
    match command {
        ConfigCommand::Print(file) => look::print(&config::effective(&file.path).map_err(misconfigured)?),
        ConfigCommand::Sample => look::print(config::SAMPLE),
        ConfigCommand::Schema => look::print_json(&config::schema()),
    }
}
