//! Sources: the text of a file and the environment become one table, in which the environment wins.
//!
//! A text that cannot be read may hold a secret in any of its lines, and so may a variable: a message has the place and
//! what was expected there, and nothing of the text.

use std::{ffi::OsString, io, path::Path};

use config::{Config, ConfigError, Environment, File, FileFormat, Map, Value};

use super::Mistakes;

const PREFIX: &str = "FHIR_SYNC";
/// Between the parts of a setting.
const SEPARATOR: &str = "__";

/// The file, then the environment of the process, which wins over it: `FHIR_SYNC__SECTION__KEY`.
pub fn of_file(path: &Path) -> Result<Map<String, Value>, Mistakes> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Mistakes::of(match error.kind() {
            io::ErrorKind::NotFound => format!("{shown} does not exist"),
            io::ErrorKind::IsADirectory => format!("{shown} is a directory"),
            io::ErrorKind::PermissionDenied => format!("cannot read {shown}: permission denied"),
            _ => format!("cannot read {shown}: {error}"),
        })
    })?;
    of_text(&text, environment()).map_err(|what| Mistakes::of(format!("{shown}: {what}")))
}

/// A text as if it were a file. `given` replaces the environment of the process.
pub fn of_text_and(text: &str, given: &[(&str, &str)]) -> Result<Map<String, Value>, Mistakes> {
    let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    of_text(text, environment().source(Some(given))).map_err(Mistakes::of)
}

/// The environment of the process alone.
pub fn of_environment() -> Result<Map<String, Value>, Mistakes> {
    of_text("", environment()).map_err(Mistakes::of)
}

fn environment() -> Environment {
    // Without its own separator the prefix would take the one of the sections (config#291).
    Environment::with_prefix(PREFIX).prefix_separator(SEPARATOR).separator(SEPARATOR)
}

fn of_text(text: &str, environment: Environment) -> Result<Map<String, Value>, String> {
    let file = Config::builder().add_source(File::from_str(text, FileFormat::Toml));
    let settings = file.add_source(environment).build().and_then(|settings| settings.cache.into_table());
    settings.map_err(|error| match error {
        ConfigError::FileParse { cause, .. } => not_toml(text, cause.downcast_ref()),
        _ => of_variable(std::env::vars_os()),
    })
}

/// What the parser shows of the line would show the secret as well that somebody has written there.
fn not_toml(text: &str, error: Option<&toml::de::Error>) -> String {
    let Some(error) = error else {
        return "has a value that cannot be read, such as a number that is too large".to_owned();
    };
    let Some(span) = error.span() else { return error.message().to_owned() };
    let before = &text.as_bytes()[..span.start.min(text.len())];
    let line = before.split(|byte| *byte == b'\n').count();
    let in_line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let column = String::from_utf8_lossy(in_line).chars().count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

/// The variable that cannot be read, where it is one of those that it may be.
fn of_variable(variables: impl Iterator<Item = (OsString, OsString)>) -> String {
    let prefix = format!("{PREFIX}{SEPARATOR}");
    let is_ours = |name: &str| name.to_uppercase().starts_with(&prefix);
    let ours =
        variables.filter_map(|(name, value)| Some((name.into_string().ok().filter(|name| is_ours(name))?, value)));
    let unreadable = ours.into_iter().find(|(_, value)| value.to_str().is_none());
    unreadable.map_or_else(
        || format!("a variable {prefix}… of the environment has a name that cannot be read"),
        |(name, _)| format!("{name}: is not UTF-8"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    /// (rule 129)
    #[test]
    fn a_text_that_is_not_toml_is_refused_by_its_place_and_without_a_word_of_it() {
        for (text, place) in [
            ("[server]\nurl = \"https://a\"\nproxy = \"http://pu:SECRET@proxy\nsource = \"a\"\n", "line 3, column "),
            ("[server]\nclient_secret = SECRET\n", "line 2, column 17: "),
            ("[server]\nheaders = { \"x-api-key\" = \"SECRET\" \"b\" = 1 }\n", "line 2, column "),
            ("[server]\ntoken = 'SECRET\n", "line 2, column "),
            ("[server]\ntoken = \"\"\"SECRET\n", "line 3, column 1: "),
            ("[server]\nä = \"SECRET\\q\"\n", "line 2, column "),
            ("SECRET", "line 1, column "),
            ("[SECRET]\n[SECRET]\n", "line 2, column "),
            ("a.SECRET = 1\na.SECRET = 2\n", "line 2, column "),
            ("a = 123456789012345678901234567890\n", "has a value that cannot be read"),
        ] {
            let Mistakes { lines, .. } = of_text_and(text, &[]).unwrap_err();
            let [line] = lines.as_slice() else { panic!("{lines:?}") };
            assert!(line.starts_with(place), "{line}");
            assert!(!line.contains("SECRET") && line.len() > place.len(), "{line}");
        }
    }

    /// (rule 129)
    #[test]
    fn a_variable_that_cannot_be_read_is_named_without_its_text() {
        let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
        let variables = [("OTHER", &b"\xffSECRET"[..]), ("fhir_sync__server__token", b"SECRET\xff")];
        let mistake = of_variable(variables.into_iter().map(|(name, value)| (name.into(), bytes(value))));
        assert_eq!(mistake, "fhir_sync__server__token: is not UTF-8");
    }
}
