//! `check`: the mistakes of a configuration, found without network, tables or key. With `--online` it also tries what a
//! sync will need.

use clap::Args;
use serde::Serialize;

use super::{
    ConfigFile,
    exit::{Exit, FAILED, misconfigured, of_mistakes},
    look,
    show::counted,
};
use crate::{
    config::{self, Config, Mistakes},
    sync::{self, Check, CheckVerdict},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Also try what a sync needs: server, token, groups, tables
    #[arg(long)]
    online: bool,
    /// With --online: request each export, and cancel it at once
    #[arg(long, requires = "online")]
    kick_off: bool,
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
    /// With `--online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<Vec<Tried>>,
}

#[derive(Serialize)]
struct Tried {
    what: String,
    verdict: &'static str,
    found: String,
}

/// Ends with 1 where something that was tried failed.
pub async fn run(arguments: &Arguments) -> Result<(), Exit> {
    let path = &arguments.config.path;
    // Of a token request and the like only the verdicts are of interest.
    telemetry::start(&telemetry::Config::quiet());
    let checked = if arguments.online { config::check_with_key(path) } else { config::check(path) };
    let tried = match &checked {
        Ok((config, _)) if arguments.online => Some(check(config, arguments).await),
        _ => None,
    };
    let has_failed = tried.iter().flatten().any(|tried| tried.verdict == word(CheckVerdict::Failed));
    if arguments.json {
        as_json(checked, tried)?;
    } else {
        let (config, remarks) = checked.map_err(misconfigured)?;
        for remark in remarks {
            say!("{remark}");
        }
        say!("{}: {}, no mistakes", path.display(), counted(config.exports.len() as u64, "export"));
        for Tried { what, verdict, found } in tried.iter().flatten() {
            say!("{verdict:<8}  {what}: {found}");
        }
    }
    if has_failed { Err(FAILED) } else { Ok(()) }
}

async fn check(config: &Config, arguments: &Arguments) -> Vec<Tried> {
    let exports: Vec<_> = config.exports.iter().map(|scheduled| scheduled.export.clone()).collect();
    let (server, tables, state) = (config.server.clone(), config.tables.clone(), &config.state);
    let checks = sync::check(server, tables, state, &config.sync, &exports, arguments.kick_off).await;
    let tried = |check: Check| Tried { what: check.what, verdict: word(check.verdict), found: check.found };
    checks.into_iter().map(tried).collect()
}

fn word(verdict: CheckVerdict) -> &'static str {
    match verdict {
        CheckVerdict::Good => "good",
        CheckVerdict::Doubtful => "doubtful",
        CheckVerdict::Failed => "failed",
    }
}

fn as_json(checked: Result<(Config, Vec<String>), Mistakes>, tried: Option<Vec<Tried>>) -> Result<(), Exit> {
    let (checked, exit) = match checked {
        Ok((config, remarks)) => {
            let exports = config.exports.into_iter().map(|scheduled| scheduled.export.name).collect();
            (Checked { exports, mistakes: Vec::new(), remarks, tried }, Ok(()))
        }
        Err(mistakes) => {
            let exit = of_mistakes(&mistakes);
            (Checked { exports: Vec::new(), mistakes: mistakes.lines, remarks: Vec::new(), tried }, Err(exit))
        }
    };
    look::print_json(&checked)?;
    exit
}
