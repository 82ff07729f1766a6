//! `check`: the mistakes of a configuration, found without network, tables or key.

use std::path::Path;

use super::{
    exit::{Exit, misconfigured},
    show::counted,
};
use crate::config;

pub fn run(path: &Path) -> Result<(), Exit> {
    let (config, remarks) = config::check(path).map_err(misconfigured)?;
    for remark in remarks {
        say!("{remark}");
    }
    say!("{}: {}, no mistakes", path.display(), counted(config.exports.len(), "export"));
    Ok(())
}
