//! `version`: what the program was built from, and the versions that matter to those who read its tables.

use clap::Args;
use serde::Serialize;

use super::{commit, exit::Exit, look};
use crate::{state, sync};

/// Of the definitions in the room `resource`.
const FHIR_RELEASE: &str = "4.0.1";

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Build {
    version: &'static str,
    /// `null` where the build did not name it.
    commit: Option<&'static str>,
    /// Cargo features that are built in.
    features: Vec<&'static str>,
    /// Architecture and operating system.
    target: String,
    /// The release of FHIR whose elements are the columns of the tables.
    fhir: &'static str,
    deltalake: &'static str,
    arrow: &'static str,
    state_file_format: u64,
}

impl Build {
    fn of_this_program() -> Self {
        let features = [
            ("s3", cfg!(feature = "s3")),
            ("azure", cfg!(feature = "azure")),
            ("gcs", cfg!(feature = "gcs")),
            ("sql", cfg!(feature = "sql")),
            ("spark", cfg!(feature = "spark")),
        ];
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            features: features.into_iter().filter_map(|(name, is_in)| is_in.then_some(name)).collect(),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            fhir: FHIR_RELEASE,
            deltalake: sync::deltalake_version(),
            arrow: arrow::ARROW_VERSION,
            state_file_format: state::FORMAT,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Exit> {
    let build = Build::of_this_program();
    if arguments.json {
        return look::print_json(&build);
    }
    let or = |text: &str, absent: &str| if text.is_empty() { absent.to_owned() } else { text.to_owned() };
    let (commit, features) = (or(build.commit.unwrap_or_default(), "unknown"), or(&build.features.join(", "), "none"));
    look::print(&format!(
        "fhir-sync {}\ncommit             {commit}\nfeatures           {features}\ntarget             {}\n\
         FHIR definitions   {}\ndeltalake          {}\narrow              {}\nstate file format  {}\n",
        build.version, build.target, build.fhir, build.deltalake, build.arrow, build.state_file_format
    ))
}
