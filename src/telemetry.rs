//! Telemetry: events become lines on stderr; stdout belongs to results.

use std::{fmt, io::IsTerminal as _, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub format: Format,
    /// Levels, also by module.
    pub filter: String,
}

impl Config {
    /// What holds before a configuration was read, and where there is none.
    pub fn quiet() -> Self {
        Self { format: Format::Auto, filter: "warn".to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    Pretty,
    Json,
}

impl FromStr for Format {
    type Err = NoFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(NoFormat),
        }
    }
}

#[derive(Debug)]
pub struct NoFormat;

impl fmt::Display for NoFormat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("is none of auto, pretty, json")
    }
}

/// What others log by default: their traces may hold URLs with queries, or data.
const OTHERS: &str = "hyper=warn,hyper_util=warn,h2=warn,rustls=warn,reqwest=warn,object_store=warn,datafusion=warn,\
                      deltalake_core=error,buoyant_kernel=warn,tokio_cron_scheduler=warn";

/// Sets up the log of the process. A filter that cannot be read falls back to "info", and says so.
pub fn start(config: &Config) {
    let (filter, unreadable) = match EnvFilter::try_new(format!("{OTHERS},{}", config.filter)) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(format!("{OTHERS},info")), Some(error)),
    };
    let terminal = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .with_span_events(FmtSpan::NONE);
    let started = match config.format {
        Format::Json => log.json().flatten_event(true).try_init(),
        Format::Auto if !terminal => log.json().flatten_event(true).try_init(),
        Format::Auto | Format::Pretty => log.try_init(),
    };
    // A second start in one process keeps the first log: nothing is lost by that.
    drop(started);
    if let Some(error) = unreadable {
        tracing::warn!(filter = config.filter, %error, "log.filter cannot be read; using \"info\"");
    }
}
