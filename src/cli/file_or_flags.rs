//! Where a command has its settings from: a configuration file, or the drop-in flags of the sync script.

use std::path::PathBuf;

use clap::Args;

use super::config_path;
use crate::config::{self, Config, Flags, Key, Mistakes};

#[derive(Args, Clone, Debug)]
pub struct FileOrFlags {
    /// Configuration file [default: `FHIR_SYNC_CONFIG`, else /etc/fhir-sync/fhir-sync.toml]
    #[arg(short, long, value_name = "FILE", conflicts_with = "fhir_endpoint")]
    config: Option<PathBuf>,
    /// Base URL of the FHIR server; it takes the place of the configuration file, with the flags below
    #[arg(long, value_name = "URL", requires = "delta_path")]
    fhir_endpoint: Option<String>,
    /// Folder or URL of the Delta tables
    #[arg(long, value_name = "FOLDER", requires = "fhir_endpoint")]
    delta_path: Option<String>,
    /// State file
    #[arg(long, value_name = "FILE", requires = "fhir_endpoint", default_value = "/var/lib/fhir-sync/state.json")]
    state_file: PathBuf,
    /// Resource types, separated by spaces or commas
    #[arg(long, value_name = "TYPE", num_args = 1.., value_delimiter = ',', requires = "fhir_endpoint",
          default_values = ["Patient", "Condition", "Observation", "Encounter"])]
    pub resource_types: Vec<String>,
    /// Sync only the patients of this Group
    #[arg(long, value_name = "ID", requires = "fhir_endpoint")]
    group_id: Option<String>,
    /// Client id for SMART Backend Services; without it `FHIR_CLIENT_ID`
    // Not clap's `env`: the variable counts as a flag there, and would contradict --config.
    #[arg(long, value_name = "ID", requires = "fhir_endpoint")]
    auth_client_id: Option<String>,
    /// File with the private key; without it `FHIR_PRIVATE_KEY` holds the key itself
    // A PEM begins with a hyphen: given in the place of its file it must not be printed as an unknown argument.
    #[arg(long, value_name = "FILE", requires = "fhir_endpoint", allow_hyphen_values = true)]
    auth_private_key: Option<PathBuf>,
}

impl FileOrFlags {
    /// The file; `None` where flags take its place.
    pub fn path(&self) -> Option<PathBuf> {
        self.fhir_endpoint.is_none().then(|| config_path(self.config.clone()))
    }

    /// The settings; the private key of a file may be missing.
    pub fn settings(&self) -> Result<Config, Mistakes> {
        self.read(|path| config::check(path).map(|(config, _)| config))
    }

    /// The settings with the private key, for those who ask the server.
    pub fn settings_with_key(&self) -> Result<Config, Mistakes> {
        self.read(config::load)
    }

    fn read(&self, file: impl FnOnce(&std::path::Path) -> Result<Config, Mistakes>) -> Result<Config, Mistakes> {
        let Some(fhir_endpoint) = self.fhir_endpoint.clone() else {
            let is_given = self.config.is_some() || std::env::var_os("FHIR_SYNC_CONFIG").is_some();
            let path = config_path(self.config.clone());
            if !is_given && matches!(path.try_exists(), Ok(false)) {
                let way_out = "give --config FILE, or --fhir-endpoint with --delta-path";
                return Err(Mistakes::of(format!("{} does not exist; {way_out}", path.display())));
            }
            return file(&path);
        };
        let client_id = self.auth_client_id.clone().or_else(|| std::env::var("FHIR_CLIENT_ID").ok());
        let key_text = || std::env::var("FHIR_PRIVATE_KEY").ok().map(Key::Text);
        let flags = Flags {
            fhir_endpoint,
            delta_path: self.delta_path.clone().unwrap_or_default(),
            state_file: self.state_file.clone(),
            resource_types: self.resource_types.clone(),
            group_id: self.group_id.clone(),
            client_id,
            key: self.auth_private_key.clone().map(Key::File).or_else(key_text),
        };
        flags.load()
    }
}
