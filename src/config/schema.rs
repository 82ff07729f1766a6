//! The schema: what a configuration file may hold, as JSON Schema, for editors.
//!
//! It is made from the keys that are read, and from the reference file, whose comments describe them: no key can be
//! missing.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{
    SAMPLE, parse,
    secrets::other_form,
    section::{Asked, Form},
};

/// Draft 2020-12. A value that only the environment sets is missing for the schema too.
pub fn schema() -> Value {
    let (_, findings) = parse(&with_section_of_a_type(), &[]);
    let descriptions = descriptions(SAMPLE);
    let mut root = object();
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "The configuration of fhir-sync".into();
    for asked in &findings.asked {
        let (section, key) = asked.key.rsplit_once('.').unwrap_or(("", &asked.key));
        let mut within = &mut root;
        for name in section.split('.').filter(|name| !name.is_empty()) {
            within = section_of(within, name);
        }
        within["properties"][key] = property(asked, descriptions.get(&asked.key));
        if asked.is_required
            && let Some(required) = within["required"].as_array_mut()
        {
            required.push(key.into());
        }
    }
    root
}

/// The reference, with the section of a type: these keys are only asked for where a type is named.
pub fn with_section_of_a_type() -> String {
    const OF_A_TYPE: [&str; 3] = ["[tables.Observation]", "partition_by", "partition_date"];
    OF_A_TYPE.into_iter().fold(SAMPLE.to_owned(), |text, line| text.replace(&format!("# {line}"), line))
}

fn object() -> Value {
    json!({"type": "object", "properties": {}, "required": [], "additionalProperties": false})
}

/// The schema of a section, which is made where it is missing.
fn section_of<'a>(within: &'a mut Value, name: &str) -> &'a mut Value {
    if let Some(name) = name.strip_suffix("[0]") {
        let several = entry(&mut within["properties"], name);
        if several.is_null() {
            *several = json!({"type": "array", "minItems": 1, "items": object()});
        }
        return &mut several["items"];
    }
    // The section of one type stands for those of all.
    let of_a_type = name.starts_with(|first: char| first.is_ascii_uppercase());
    let (place, name) = if of_a_type { ("patternProperties", "^[A-Z][A-Za-z]+$") } else { ("properties", name) };
    let section = entry(&mut within[place], name);
    if section.is_null() {
        *section = object();
    }
    section
}

fn entry<'a>(within: &'a mut Value, name: &str) -> &'a mut Value {
    if within.is_null() {
        *within = Value::Object(Map::new());
    }
    &mut within[name]
}

fn property(asked: &Asked, description: Option<&String>) -> Value {
    let mut property = match &asked.form {
        Form::Text => json!({"type": "string"}),
        Form::Boolean => json!({"type": "boolean"}),
        Form::Number => json!({"type": "number"}),
        Form::OneOf(words) => json!({"enum": words}),
        Form::List => json!({"type": ["string", "array"], "items": {"type": "string"}}),
        Form::Texts => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Form::Values => {
            let value = json!({"type": ["string", "boolean", "number", "array", "object"]});
            json!({"type": "object", "additionalProperties": value})
        }
    };
    if let Some(default) = &asked.default {
        property["default"] = match asked.form {
            Form::Boolean | Form::Number => serde_json::from_str(default).unwrap_or_default(),
            _ => default.as_str().into(),
        };
    }
    if let Some(description) = other_form(&asked.key) {
        property["description"] = description.into();
    }
    if let Some(description) = description.filter(|description| !description.is_empty()) {
        property["description"] = description.as_str().into();
    }
    property
}

/// The comment above each key of the reference, by the full key.
fn descriptions(reference: &str) -> HashMap<String, String> {
    let mut descriptions = HashMap::new();
    let (mut section, mut comment) = (String::new(), Vec::new());
    for line in reference.lines() {
        let text = line.strip_prefix("# ").unwrap_or(line);
        let name = text.trim_start_matches('[').trim_end_matches(']');
        if text.starts_with("[[") && text.ends_with("]]") {
            section = format!("{name}[0].");
        } else if text.starts_with('[') && text.ends_with(']') && !name.contains('"') {
            section = format!("{name}.");
        } else if let Some((key, _)) = text.split_once(" = ")
            && key.chars().all(|char| char.is_ascii_lowercase() || char == '_')
        {
            descriptions.insert(format!("{section}{key}"), comment.join(" "));
        } else if line.starts_with("# ") {
            comment.push(text);
            continue;
        }
        comment.clear();
    }
    descriptions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a value is one that the schema allows; as far as this schema goes.
    fn mistakes(value: &Value, schema: &Value, place: &str) -> Vec<String> {
        if let Some(words) = schema["enum"].as_array() {
            return if words.contains(value) { vec![] } else { vec![format!("{place}: {value}")] };
        }
        let is_of = |kind: &str| match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "number" => value.is_number(),
            _ => false,
        };
        let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
        if !kinds.iter().any(|kind| is_of(kind.as_str().unwrap())) {
            return vec![format!("{place}: {value} is not of type {}", schema["type"])];
        }
        let mut found = Vec::new();
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            found.extend(mistakes(item, &schema["items"], &format!("{place}[{index}]")));
        }
        for (key, member) in value.as_object().into_iter().flatten() {
            let of_type = key.starts_with(|first: char| first.is_ascii_uppercase());
            let of_member = [&schema["properties"][key], &schema["patternProperties"]["^[A-Z][A-Za-z]+$"]];
            let of_member = of_member[usize::from(of_type)];
            match (of_member.is_null(), &schema["additionalProperties"]) {
                (false, _) => found.extend(mistakes(member, of_member, &format!("{place}.{key}"))),
                (true, Value::Bool(false)) => found.push(format!("{place}.{key} is unknown")),
                (true, others) => found.extend(mistakes(member, others, &format!("{place}.{key}"))),
            }
        }
        for key in schema["required"].as_array().into_iter().flatten() {
            if value[key.as_str().unwrap()].is_null() {
                found.push(format!("{place}.{key} is missing"));
            }
        }
        found
    }

    fn as_json(text: &str) -> Value {
        serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap()
    }

    #[test]
    fn the_reference_file_is_valid_by_the_schema_also_with_every_optional_key() {
        let found = mistakes(&as_json(&with_section_of_a_type()), &schema(), "");
        assert_eq!(found, Vec::<String>::new());
        let is_setting =
            |line: &str| line.contains(" = ") && line.split(' ').nth(1).is_some_and(|word| !word.contains('.'));
        let named = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if is_setting(line) && rest.split(" = ").next().is_some_and(|key| !key.contains(' ')) => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let all: Vec<_> = with_section_of_a_type().lines().map(named).collect();
        let all = as_json(&all.join("\n"));
        assert!(all["server"]["client_id"].is_string(), "{all}");
        assert_eq!(mistakes(&all, &schema(), ""), Vec::<String>::new());
    }

    #[test]
    fn what_a_reader_refuses_is_invalid_by_the_schema() {
        for (line, replaced) in [
            ("update_mode = \"deletion-vectors\"", "update_mode = \"merge\""),
            ("typed = true", "typed = \"perhaps\""),
            ("typed = true", "typedd = true"),
            ("name = \"all\"", ""),
            ("parallel_upserts = 2", "parallel_upserts = [2]"),
        ] {
            let text = SAMPLE.replace(line, replaced);
            assert_ne!(text, SAMPLE);
            assert_eq!(mistakes(&as_json(&text), &schema(), "").len(), 1, "{replaced}");
            assert!(parse(&text, &[]).0.is_err(), "{replaced}");
        }
    }

    #[test]
    fn a_key_is_described_by_the_comment_above_it() {
        let schema = schema();
        let poll = &schema["properties"]["server"]["properties"]["poll"]["properties"];
        assert_eq!(poll["deadline"]["description"], "An export that takes longer is abandoned.");
        assert_eq!(poll["deadline"]["default"], "30days");
        assert_eq!(schema["properties"]["export"]["items"]["required"], json!(["name"]));
    }
}
