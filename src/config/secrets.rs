//! Where a secret is kept: for each secret four keys, of which one is set. A text of the environment can take their
//! place, and the file of the configuration never holds a secret itself.

use secrecy::SecretString;

use super::{KeyFile, Section, path, text};
use crate::secret::{self, Place, Secret, is_secret_itself};

/// A secret, and the key that says where it is kept.
pub struct KeyedSecret {
    pub secret: Secret,
    pub key: String,
}

/// A mistake was found, and is reported.
pub struct Reported;

/// The forms besides `NAME_file`. The reference describes them once, for all secrets.
const OTHER_FORMS: [(&str, &str); 3] = [
    ("_credential", "the name of a credential of the systemd service (LoadCredential=)"),
    ("_env", "the name of a variable of the environment"),
    ("_exec", "a program and its arguments, which prints it"),
];

/// What a key of one of the other forms is, for the schema; `None` for all other keys.
pub fn other_form(key: &str) -> Option<String> {
    let (form, what) = OTHER_FORMS.into_iter().find(|(form, _)| key.ends_with(form))?;
    Some(format!("Instead of {}_file: {what}.", key.trim_end_matches(form)))
}

/// The place that one of `NAME_file`, `NAME_credential`, `NAME_env` and `NAME_exec` says.
pub fn read(section: &mut Section, name: &str) -> Result<Option<KeyedSecret>, Reported> {
    let keys = ["_file", "_credential", "_env", "_exec"].map(|form| format!("{name}{form}"));
    let is_set: Vec<_> = keys.iter().filter(|key| section.has(key)).cloned().collect();
    let inline = section.has(name);
    let [file, credential, variable, command] = &keys;
    section.is_secret(command);
    let file = section.optional(file, path_of_secret).map(Place::File);
    let credential = section.optional(credential, name_of_credential).map(Place::Credential);
    let variable = section.optional(variable, text).map(Place::Variable);
    let line = section.whole_list(command, text);
    let command = (!line.is_empty()).then_some(Place::Command(line));
    let given = section.of_environment(name);
    if let (Some(key), true) = (is_set.first(), given.is_some()) {
        section.mistake(key, &format!("is set, and {name} in the environment too; remove one of them"));
        return Err(Reported);
    }
    if let [one, other, ..] = is_set.as_slice() {
        section.mistake(other, &format!("is set, and {one} too; a secret has one place, remove one of them"));
        return Err(Reported);
    }
    if let Some(Place::Command(line)) = &command
        && let [only] = line.as_slice()
        && only.contains(char::is_whitespace)
    {
        section.mistake(&keys[3], "must be a list, such as [\"vault\", \"read\", …]: no shell reads it");
        return Err(Reported);
    }
    let place = file.or(credential).or(variable).or(command);
    match (is_set.into_iter().next(), place, given) {
        (_, _, Some(text)) => Ok(Some(KeyedSecret { secret: Secret::given(text), key: name.to_owned() })),
        (Some(key), Some(place), None) => Ok(Some(KeyedSecret { secret: Secret::at(place), key })),
        (None, None, None) if !inline => Ok(None),
        _ => Err(Reported),
    }
}

impl KeyedSecret {
    /// The text as it is now. `Ok(None)` where only who speaks to the server has it. Blocks, also on a command.
    pub fn text(&self, section: &Section, key_file: &KeyFile) -> Result<Option<SecretString>, Reported> {
        let may_be_elsewhere = matches!(key_file, KeyFile::MayBeElsewhere);
        if may_be_elsewhere && self.is_command() {
            section.remark(&self.key, "is not run here; it is run when a sync starts");
            return Ok(None);
        }
        match self.secret.read() {
            Ok(reading) => Ok(Some((*reading.text).clone())),
            Err(secret::Error::Absent(_)) if may_be_elsewhere => {
                section.remark(&self.key, "cannot be read here; it is read when a sync starts");
                Ok(None)
            }
            Err(error) => {
                let what = format!("{}: {error}", self.secret.place());
                match error {
                    secret::Error::NotNow(_) => section.temporary_mistake(&self.key, &what),
                    secret::Error::Absent(_) | secret::Error::Unusable(_) => section.mistake(&self.key, &what),
                }
                Err(Reported)
            }
        }
    }

    pub fn is_command(&self) -> bool {
        matches!(self.secret.place(), Place::Command(_))
    }
}

/// Somebody who sets the secret in the place of its file must not find it in the message.
fn path_of_secret(text: &str) -> Result<std::path::PathBuf, String> {
    let path = path(text)?;
    if is_secret_itself(&path) {
        let what = "is the secret itself; write it to a file that only its owner can read, and set the file's path";
        return Err(what.to_owned());
    }
    Ok(path)
}

fn name_of_credential(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && !text.contains('/') && !text.starts_with('.');
    is_name.then(|| text.to_owned()).ok_or_else(|| "is not the name of a credential of systemd".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Mistakes, parse};

    fn mistakes(settings: &str) -> Mistakes {
        let root = if settings.starts_with("storage_options") { "s3://lake" } else { "/srv/lake" };
        let text = format!(
            "[[export]]\nname = \"all\"\ntypes = [\"Patient\"]\n[server]\nurl = \"https://ehr.example.org/fhir\"\n\
             [tables]\nroot = \"{root}\"\n{settings}"
        );
        parse(&text, &[]).0.unwrap_err()
    }

    #[test]
    fn a_command_that_fails_may_answer_later_and_any_other_mistake_stays() {
        let webhook = |line: &str| format!("[notify]\nwebhook_url_exec = {line}\n");
        let key = |line: &str| format!("[sync.quarantine]\npolicy = \"encrypted\"\nkey_exec = {line}\n");
        let failing = webhook("[\"false\"]") + &key("[\"sh\", \"-c\", \"exit 2\"]");
        for (settings, lines, is_temporary) in [
            (webhook("[\"false\"]"), 1, true),
            (failing.clone(), 2, true),
            (failing + "[health]\nmax_age = \"a day\"\n", 3, false),
            (webhook("[\"echo\", \"not a URL\"]"), 1, false),
            (webhook("[\"/there/is/no/such/program\"]"), 1, false),
            (key("[\"true\"]"), 1, false),
        ] {
            let found = mistakes(&settings);
            assert_eq!((found.lines.len(), found.is_temporary), (lines, is_temporary), "{found:?}");
        }
    }

    #[cfg(feature = "s3")]
    #[test]
    fn the_credential_of_a_store_whose_command_fails_is_the_only_mistake() {
        let settings = "storage_options = { aws_access_key_id = \"a\", aws_secret_access_key_exec = [\"false\"] }\n";
        let found = mistakes(settings).lines;
        assert!(matches!(found.as_slice(), [only] if only.contains("aws_secret_access_key_exec")), "{found:?}");
    }
}
