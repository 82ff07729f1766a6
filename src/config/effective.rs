//! The effective configuration: what the file, the environment and the defaults come to, as a file that says of each
//! value where it is from. Secrets are not in it.

use std::{fmt::Write as _, path::Path};

use config::{Value, ValueKind};

use super::{
    Findings, KeyFile, Mistakes, read,
    secrets::other_form,
    section::{Asked, Form},
    sources,
    values::without_secrets,
};

/// Of a file and the environment of the process. The private key may be missing.
pub fn effective(path: &Path) -> Result<String, Mistakes> {
    let (config, findings) = read(sources::of_file(path)?, &KeyFile::MayBeElsewhere);
    config?;
    Ok(rendered(&findings))
}

/// As TOML. Read as a file, without an environment, it means the same, but for the secrets.
pub fn rendered(findings: &Findings) -> String {
    let mut sections: Vec<(&str, Vec<&Asked>)> = Vec::new();
    for asked in &findings.asked {
        let (section, _) = asked.key.rsplit_once('.').unwrap_or(("", &asked.key));
        match sections.iter_mut().find(|(name, _)| *name == section) {
            Some((_, of_section)) => of_section.push(asked),
            None => sections.push((section, vec![asked])),
        }
    }
    // A section is before those within it.
    let top = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let order: Vec<_> = sections.iter().map(|(name, _)| top(name)).collect();
    sections.sort_by_key(|(name, _)| (order.iter().position(|first| *first == top(name)), *name));
    let mut text = String::new();
    for (name, of_section) in sections {
        // Writing to a String cannot fail.
        let _ = match name.strip_suffix(']').and_then(|name| name.rsplit_once('[')) {
            Some((array, _)) => writeln!(text, "{}[[{array}]]", if text.is_empty() { "" } else { "\n" }),
            None => writeln!(text, "{}[{name}]", if text.is_empty() { "" } else { "\n" }),
        };
        for asked in of_section {
            text.push_str(&line(asked, findings.secret.contains(&asked.key)));
        }
    }
    text
}

const ORIGIN_OF_ENVIRONMENT: &str = "the environment";

fn line(asked: &Asked, is_secret: bool) -> String {
    let key = asked.key.rsplit('.').next().unwrap_or_default();
    match (&asked.given, &asked.default) {
        (Some(_), _) if is_secret => format!("# {key} is set, and may be a secret\n"),
        (Some(value), _) => {
            let origin = match value.origin() {
                Some(ORIGIN_OF_ENVIRONMENT) => format!("environment: {}", variable(&asked.key)),
                Some(profile) if profile.starts_with("profile ") => profile.to_owned(),
                _ => "file".to_owned(),
            };
            format!("{key} = {}  # {origin}\n", shown(value, &asked.form))
        }
        (None, Some(default)) => format!("{key} = {}  # default\n", literal(default, &asked.form)),
        (None, None) if other_form(&asked.key).is_some() => String::new(),
        (None, None) => format!("# {key} is not set\n"),
    }
}

/// The variable that sets a key.
fn variable(key: &str) -> String {
    format!("FHIR_SYNC__{}", key.replace('.', "__").to_uppercase())
}

fn shown(value: &Value, form: &Form) -> toml::Value {
    match &value.kind {
        ValueKind::Array(values) => toml::Value::Array(values.iter().map(|value| shown(value, &Form::Text)).collect()),
        ValueKind::Table(table) => {
            let members = table.iter().map(|(name, value)| (name.clone(), shown(value, &Form::Text)));
            toml::Value::Table(members.collect())
        }
        ValueKind::Boolean(is_true) => toml::Value::Boolean(*is_true),
        ValueKind::I64(number) => toml::Value::Integer(*number),
        ValueKind::Float(number) => toml::Value::Float(*number),
        _ => literal(&value.clone().into_string().unwrap_or_default(), form),
    }
}

/// A text in the form that its key has.
fn literal(text: &str, form: &Form) -> toml::Value {
    let bare = match form {
        Form::Boolean => text.parse().ok().map(toml::Value::Boolean),
        Form::Number => {
            let whole = text.parse().ok().map(toml::Value::Integer);
            whole.or_else(|| text.parse().ok().map(toml::Value::Float))
        }
        _ => None,
    };
    bare.unwrap_or_else(|| {
        toml::Value::String(if text.contains("://") { without_secrets(text) } else { text.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SAMPLE, parse, schema::with_section_of_a_type};

    fn printed(text: &str, environment: &[(&str, &str)]) -> String {
        let (config, findings) = parse(text, environment);
        config.unwrap();
        rendered(&findings)
    }

    #[test]
    fn what_is_printed_means_the_same_as_what_was_read() {
        let environment = [
            ("FHIR_SYNC__HEALTH__MAX_AGE", "90m"),
            ("FHIR_SYNC__SYNC__PARALLEL_DOWNLOADS", "9"),
            ("FHIR_SYNC__SYNC__MAX_QUARANTINED_PERCENT", "2.5"),
            ("FHIR_SYNC__SERVER__TOKEN_ORIGINS", "https://a.example.org,https://b.example.org"),
            ("FHIR_SYNC__TABLES__CHANGE_DATA_FEED", "true"),
        ];
        let text = with_section_of_a_type();
        let printed = printed(&text, &environment);
        let [read, again] = [parse(&text, &environment), parse(&printed, &[])].map(|(config, _)| config.unwrap());
        assert_eq!(format!("{read:?}"), format!("{again:?}"), "{printed}");
    }

    #[test]
    fn each_value_says_where_it_is_from() {
        let printed =
            printed(SAMPLE, &[("FHIR_SYNC__HEALTH__MAX_AGE", "90m"), ("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "3")]);
        for line in [
            "url = \"https://ehr.example.org/fhir\"  # file",
            "max_age = \"90m\"  # environment: FHIR_SYNC__HEALTH__MAX_AGE",
            "parallel_upserts = 3  # environment: FHIR_SYNC__SYNC__PARALLEL_UPSERTS",
            "# key_id is not set",
            "[[export]]",
            "[server.poll]",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line}\nnot in\n{printed}");
        }
        let smallest =
            "[server]\nurl = \"https://a\"\n[tables]\nroot = \"/a\"\n[[export]]\nname = \"a\"\ntypes = [\"Patient\"]";
        let printed = self::printed(smallest, &[]);
        assert!(printed.contains("\nsource = \"fhir\"  # default\n"), "{printed}");
    }

    #[test]
    fn no_secret_is_printed() {
        let secrets = "[server]\nproxy = \"http://user:SECRET@proxy:3128\"\n";
        let text = SAMPLE.replace("[server]\n", secrets).replace("\nproxy = \"none\"", "");
        let options =
            "storage_options = { aws_access_key_id = \"AKIA\", aws_session_token_exec = [\"echo\", \"SECRET\"],";
        let text =
            text.replace("root = \"/srv/lake\"", "root = \"s3://lake\"").replacen("# storage_options = {", options, 1);
        let printed = printed(&text, &[("FHIR_SYNC__TABLES__STORAGE_OPTIONS__AWS_SECRET_ACCESS_KEY", "SECRET")]);
        assert!(!printed.contains("SECRET"), "{printed}");
        assert!(printed.contains("# aws_session_token_exec is set, and may be a secret"), "{printed}");
        assert!(printed.contains("proxy:3128"), "{printed}");
    }
}
