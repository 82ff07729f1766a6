//! Telemetry: events become lines on stderr, figures become [`metrics`]; stdout belongs to results.

pub mod advance;
pub mod color;
pub mod metrics;
pub mod panics;
mod progress_line;

use std::{io::IsTerminal as _, str::FromStr, sync::OnceLock};

use tracing::Metadata;
use tracing_indicatif::IndicatifLayer;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::{FilterFn, LevelFilter},
    fmt::format::FmtSpan,
    layer::SubscriberExt as _,
    reload,
    util::SubscriberInitExt as _,
};

pub use self::progress_line::ProgressLine;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub format: Format,
    pub filter: Filter,
}

impl Config {
    /// For commands that print their results for people.
    pub fn quiet() -> Self {
        Self { format: Format::Auto, filter: Filter("warn".to_owned()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    Pretty,
    Json,
}

impl Format {
    /// Whether each event is a JSON object on a line of its own.
    pub fn is_json(self) -> bool {
        match self {
            Self::Auto => !std::io::stderr().is_terminal(),
            Self::Pretty => false,
            Self::Json => true,
        }
    }
}

/// Which events are logged: a level, also by module (`info,fhir_sync::export=debug`). It was read once, so it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The library takes a word that is not a level for a module, which would silence everything else.
        let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
        let unknown = text.split(',').map(str::trim).find(|word| !word.contains(['=', '[', ':']) && !is_level(word));
        if let Some(word) = unknown {
            return Err(format!("{word:?} is not a level; use error, warn, info, debug, trace or off"));
        }
        EnvFilter::try_new(text).map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Self(text.to_owned()))
    }
}

impl Filter {
    fn with_other_crates(&self) -> EnvFilter {
        EnvFilter::new(format!("{OTHER_CRATES},{}", self.0))
    }
}

/// The least severe events of other crates that are logged unless `log.filter` names the crate: what they trace may
/// hold URLs with queries, or data. A name also stands for all that begin with it, such as `aws` for `aws_sdk_s3`.
const OTHER_CRATES: &str = "aws=warn,buoyant_kernel=warn,datafusion=warn,delta_kernel=warn,deltalake=error,h2=warn,\
                            hyper=warn,object_store=warn,quinn=warn,reqwest=warn,rustls=warn,\
                            rustls_platform_verifier=off,tokio_cron_scheduler=warn,tower=warn";

/// Sets up the log of the process.
pub fn start(config: &Config) {
    let (filter, handle) = reload::Layer::new(config.filter.with_other_crates());
    let progress = IndicatifLayer::new();
    let log = tracing_subscriber::fmt::layer()
        // It takes the lines of progress away while it writes.
        .with_writer(progress.get_stderr_writer())
        .with_ansi(color::is_on(std::io::stderr().is_terminal()))
        .with_span_events(FmtSpan::NONE);
    let log = if config.format.is_json() {
        // A run has one span: the list of spans would say the same again.
        log.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed()
    } else {
        log.with_filter(filter).boxed()
    };
    let is_progress = |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == progress_line::TARGET;
    // Without the hint, the filter of the log could no longer tell other crates early that nobody listens.
    let only_progress = FilterFn::new(is_progress).with_max_level_hint(LevelFilter::ERROR);
    let started = tracing_subscriber::registry().with(log).with(progress.with_filter(only_progress)).try_init();
    // A second start in one process keeps the first log: nothing is lost by that.
    if started.is_ok() {
        drop(FILTER.set(handle));
    }
}

/// The filter of the log that was started.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Which events are logged from now on.
pub fn set_filter(filter: &Filter) {
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(filter.with_other_crates())
    {
        tracing::error!(%error, "log.filter could not be changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_list_of_levels_also_by_module() {
        for filter in ["info", "off", "WARN", "info,fhir_sync::export=debug", "fhir_sync::sync", "debug,hyper=trace"] {
            assert!(filter.parse::<Filter>().is_ok(), "{filter}");
        }
        for filter in ["", "inof", "info,loud", "loud===", "info,"] {
            assert!(filter.parse::<Filter>().is_err(), "{filter}");
        }
    }

    #[test]
    fn the_levels_of_other_crates_are_valid() {
        assert!(OTHER_CRATES.parse::<Filter>().is_ok());
    }
}
