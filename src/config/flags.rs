//! The drop-in flags: those of Pathling's synchronisation script become a configuration.

use std::path::PathBuf;

use config::{Map, Value, ValueKind};

use super::{Config, KeyFile, Mistakes, read, sources};

/// The drop-in flags of the sync script, of `fhir-sync sync` and the commands that look. They win over the environment.
pub struct Flags {
    pub fhir_endpoint: String,
    pub delta_path: String,
    pub state_file: PathBuf,
    pub resource_types: Vec<String>,
    pub group_id: Option<String>,
    /// The client id of SMART Backend Services, if it is not in the settings of the environment.
    pub client_id: Option<String>,
    pub key: Option<Key>,
}

pub enum Key {
    File(PathBuf),
    /// The text of the key itself, from the environment.
    Text(String),
}

impl Flags {
    pub fn load(self) -> Result<Config, Mistakes> {
        self.over(sources::of_environment()?)
    }

    /// Adds the flags to the settings of the environment. Mistakes name the flags.
    pub(super) fn over(self, settings: Map<String, Value>) -> Result<Config, Mistakes> {
        let key_flag = match self.key {
            Some(Key::Text(_)) => "FHIR_PRIVATE_KEY",
            Some(Key::File(_)) | None => "--auth-private-key",
        };
        self.read_over(settings).map_err(|Mistakes { lines, is_temporary }| {
            let lines = lines.into_iter().map(|mistake| by_flag(mistake, key_flag)).collect();
            Mistakes { lines, is_temporary }
        })
    }

    fn read_over(self, mut settings: Map<String, Value>) -> Result<Config, Mistakes> {
        set(&mut settings, "server", "url", self.fhir_endpoint);
        set(&mut settings, "tables", "root", self.delta_path);
        set(&mut settings, "state", "file", self.state_file.display().to_string());
        let mut export = Map::from_iter([
            ("name".to_owned(), Value::from("all")),
            ("level".to_owned(), if self.group_id.is_some() { "group" } else { "system" }.into()),
            ("types".to_owned(), self.resource_types.into()),
        ]);
        export.extend(self.group_id.map(|group| ("group".to_owned(), group.into())));
        settings.insert("export".to_owned(), vec![Value::from(export)].into());
        if let Some(client_id) = self.client_id {
            set(&mut settings, "server", "client_id", client_id);
        }
        let key_file = match self.key {
            None => KeyFile::MustExist,
            Some(Key::File(path)) => {
                set(&mut settings, "server", "private_key_file", path.display().to_string());
                KeyFile::MustExist
            }
            Some(Key::Text(text)) => KeyFile::Given(text.into()),
        };
        read(settings, &key_file).0
    }
}

/// The keys that the flags set.
const FLAGS: [(&str, &str); 6] = [
    ("server.url", "--fhir-endpoint"),
    ("tables.root", "--delta-path"),
    ("state.file", "--state-file"),
    ("export[0].types", "--resource-types"),
    ("export[0].group", "--group-id"),
    ("server.client_id", "--auth-client-id or FHIR_CLIENT_ID"),
];

/// Names the flag in the place of the key that it set.
fn by_flag(mistake: String, key_flag: &str) -> String {
    let flags = FLAGS.into_iter().chain([("server.private_key_file", key_flag)]);
    let mut flags = flags;
    let named = flags.find_map(|(key, flag)| {
        let what = mistake.strip_prefix(key)?.strip_prefix(':')?;
        Some(format!("{flag}:{what}"))
    });
    named.unwrap_or(mistake)
}

fn set(settings: &mut Map<String, Value>, section: &str, key: &str, value: String) {
    let table = settings.entry(section.to_owned()).or_insert_with(|| Value::from(Map::<String, Value>::new()));
    if let ValueKind::Table(table) = &mut table.kind {
        table.insert(key.to_owned(), value.into());
    }
}
