//! `check`: the mistakes of a configuration, found without network, tables or key.

use clap::Args;
use serde::Serialize;

use super::{
    ConfigFile,
    exit::{CONFIGURATION, Exit, misconfigured},
    look,
    show::counted,
};
use crate::config;

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Checked {
    /// The names of the exports; none where there are mistakes.
    exports: Vec<String>,
    mistakes: Vec<String>,
    remarks: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<(), Exit> {
    let path = &arguments.config.path;
    let checked = config::check(path);
    if arguments.json {
        return as_json(checked.map_err(|mistakes| mistakes.0));
    }
    let (config, remarks) = checked.map_err(misconfigured)?;
    for remark in remarks {
        say!("{remark}");
    }
    say!("{}: {}, no mistakes", path.display(), counted(config.exports.len() as u64, "export"));
    Ok(())
}

fn as_json(checked: Result<(config::Config, Vec<String>), Vec<String>>) -> Result<(), Exit> {
    let (checked, exit) = match checked {
        Ok((config, remarks)) => {
            let exports = config.exports.into_iter().map(|scheduled| scheduled.export.name).collect();
            (Checked { exports, mistakes: Vec::new(), remarks }, Ok(()))
        }
        Err(mistakes) => (Checked { exports: Vec::new(), mistakes, remarks: Vec::new() }, Err(CONFIGURATION)),
    };
    look::print_json(&checked)?;
    exit
}
