//! The parameters of an `[[export]]`: what is asked for besides types, checked before a server sees it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{section::Section, values::text};
use crate::{
    export::{ExportParameters, KickOffMethod},
    fhir::ResourceType,
};

pub fn read(
    section: &mut Section,
    level: Option<&str>,
    types: Option<&[ResourceType]>,
    kick_off: KickOffMethod,
) -> Option<ExportParameters> {
    let until = section.optional("until", instant);
    let filters = section.whole_list("type_filters", |text| filter(text, types));
    let elements = section.list("elements", |text| element(text, types));
    let patients = section.list("patients", patient);
    let include_associated_data = section.list("include_associated_data", token);
    let organize_output_by = section.optional("organize_output_by", resource_type);
    let raw = section.texts("parameters");
    for (name, value) in &raw {
        if let Err(what) = raw_parameter(name, value) {
            section.mistake("parameters", &what);
        }
    }
    let patients = set(patients?);
    if !patients.is_empty() && level == Some("system") {
        section
            .mistake("patients", "is set, but level is \"system\"; patients are named at the levels patient and group");
    }
    if !patients.is_empty() && kick_off == KickOffMethod::Get {
        section.mistake("patients", "is set, but server.kickoff is \"get\"; patients are named by POST only");
    }
    Some(ExportParameters {
        until,
        type_filters: set(filters),
        elements: set(elements?),
        patients,
        include_associated_data: set(include_associated_data?),
        organize_output_by,
        raw: raw.into_iter().collect::<BTreeMap<_, _>>(),
    })
}

fn set(values: Vec<String>) -> BTreeSet<String> {
    values.into_iter().collect()
}

/// An instant, as it is sent: in UTC, with milliseconds (rule 15).
pub fn instant(text: &str) -> Result<String, String> {
    let instant = DateTime::parse_from_rfc3339(text)
        .map_err(|_| format!("{text:?} is not an instant with a zone, such as 2026-01-01T00:00:00Z"))?;
    Ok(instant.with_timezone(&Utc).to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// They change what a search returns, not which resources it finds (rule 22).
const RESULT_PARAMETERS: [&str; 11] = [
    "_sort",
    "_count",
    "_include",
    "_revinclude",
    "_summary",
    "_total",
    "_elements",
    "_contained",
    "_containedType",
    "_score",
    "_format",
];

fn filter(text: &str, types: Option<&[ResourceType]>) -> Result<String, String> {
    let Some((of, search)) = text.split_once('?').filter(|(_, search)| search.contains('=')) else {
        return Err(format!("{text:?} is not a search such as \"Observation?category=laboratory\""));
    };
    let of: ResourceType = of.parse().map_err(|unknown| format!("{text:?}: {unknown}"))?;
    if types.is_some_and(|types| !types.contains(&of)) {
        return Err(format!("{text:?} is about {of}, which is not one of the types of this export"));
    }
    let names = search.split('&').map(|pair| pair.split(['=', ':']).next().unwrap_or_default());
    if let Some(name) = names.into_iter().find(|name| RESULT_PARAMETERS.contains(name)) {
        return Err(format!("{text:?} has {name}, which decides how results are returned and not which"));
    }
    printable(text)
}

/// An element of the root, of all types or of one (rule 26).
fn element(text: &str, types: Option<&[ResourceType]>) -> Result<String, String> {
    let name = match text.split_once('.') {
        Some((of, name)) => {
            let of: ResourceType = of.parse().map_err(|unknown| format!("{text:?}: {unknown}"))?;
            if types.is_some_and(|types| !types.contains(&of)) {
                return Err(format!("{text:?} is about {of}, which is not one of the types of this export"));
            }
            name
        }
        None => text,
    };
    let is_element = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_element.then(|| text.to_owned()).ok_or_else(|| {
        format!("{text:?} is not an element of the root, such as \"birthDate\" or \"Patient.birthDate\"")
    })
}

/// The logical id of a patient, with or without its type.
fn patient(text: &str) -> Result<String, String> {
    let id = text.strip_prefix("Patient/").unwrap_or(text);
    let is_id = (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    is_id.then(|| id.to_owned()).ok_or_else(|| "has a text that is not the logical id of a patient".to_owned())
}

/// A code, or `system|code`.
fn token(text: &str) -> Result<String, String> {
    let (system, code) = text.split_once('|').unwrap_or(("", text));
    let is_plain = |part: &str| !part.chars().any(|letter| letter.is_whitespace() || letter.is_control());
    let is_token = !code.is_empty() && !code.contains('|') && is_plain(system) && is_plain(code);
    is_token
        .then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is neither a code such as \"LatestProvenanceResources\" nor system|code"))
}

fn resource_type(text: &str) -> Result<String, String> {
    text.parse::<ResourceType>().map(|of| of.as_str().to_owned()).map_err(|unknown| unknown.to_string())
}

fn raw_parameter(name: &str, value: &str) -> Result<(), String> {
    if ExportParameters::NAMES.contains(&name) {
        return Err(format!("{name} has a setting of its own, or is set by fhir-sync"));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(format!("{name:?} is not the name of a parameter"));
    }
    printable(value).map(drop).map_err(|what| format!("{name} {what}"))
}

fn printable(value: &str) -> Result<String, String> {
    if value.chars().any(char::is_control) {
        return Err("holds a character that cannot be printed".to_owned());
    }
    text(value)
}

#[cfg(test)]
mod tests {
    use crate::{config, sync::Export};

    fn export(server: &str, keys: &str) -> Result<Export, Vec<String>> {
        let text = format!(
            "[server]\nurl = \"https://ehr.example.org/fhir\"\n{server}\n[tables]\nroot = \"/srv/lake\"\n[[export]]\n\
             name = \"all\"\ntypes = [\"Patient\", \"Observation\"]\n{keys}"
        );
        let config = config::parse(&text, &[]).0.map_err(|mistakes| mistakes.lines)?;
        Ok(config.exports.into_iter().next().unwrap().export)
    }

    #[test]
    fn every_parameter_can_be_set() {
        let keys = r#"
            level = "patient"
            type_filters = ["Observation?code=a,b", "Patient?active=true"]
            elements = ["birthDate", "Observation.value"]
            patients = ["123", "Patient/456", "123"]
            until = "2026-01-01T01:00:00+02:00"
            initial_since = "2020-02-13T00:00:00Z"
            include_associated_data = ["LatestProvenanceResources"]
            organize_output_by = "Patient"
            parameters = { _outputFormat = "application/fhir+ndjson" }
        "#;
        let export = export("", keys).unwrap();
        let set = &export.parameters;
        assert_eq!(set.patients, ["123", "456"].map(str::to_owned).into());
        assert_eq!(set.type_filters.len(), 2, "a comma does not end a filter");
        assert_eq!(set.until.as_deref(), Some("2025-12-31T23:00:00.000Z"));
        assert_eq!(export.initial_since.as_deref(), Some("2020-02-13T00:00:00.000Z"));
        assert_eq!(set.raw["_outputFormat"], "application/fhir+ndjson");
        assert_eq!((set.elements.len(), set.include_associated_data.len()), (2, 1));
        assert_eq!(set.organize_output_by.as_deref(), Some("Patient"));
    }

    /// Shows (rules 22 and 27).
    #[test]
    fn a_parameter_that_a_server_would_refuse_or_misread_is_a_mistake() {
        for (server, keys, mistake) in [
            ("", r#"type_filters = ["Observation?_sort=date"]"#, "has _sort, which decides how results are returned"),
            ("", r#"type_filters = ["Observation?code=a&_include:iterate=x"]"#, "has _include"),
            ("", r#"type_filters = ["Encounter?status=finished"]"#, "Encounter, which is not one of the types"),
            ("", r#"type_filters = ["code=a"]"#, "is not a search such as"),
            ("", r#"elements = ["Patient.name.family"]"#, "is not an element of the root"),
            ("", r#"elements = ["Encounter.status"]"#, "which is not one of the types of this export"),
            ("", r#"patients = ["123"]"#, "patients: is set, but level is \"system\""),
            ("", "level = \"patient\"\npatients = [\"a b\"]", "not the logical id of a patient"),
            ("kickoff = \"get\"", "level = \"patient\"\npatients = [\"1\"]", "server.kickoff is \"get\""),
            ("", r#"until = "2026-01-01""#, "is not an instant with a zone"),
            ("", r#"initial_since = "2026-01-01T00:00:00""#, "is not an instant with a zone"),
            ("", r#"organize_output_by = "Ward""#, "Ward"),
            ("", r#"parameters = { _type = "Patient" }"#, "_type has a setting of its own"),
            ("", r#"parameters = { "a b" = "1" }"#, "is not the name of a parameter"),
            ("", r#"include_associated_data = ["a b"]"#, "neither a code such as"),
        ] {
            let found = export(server, keys).unwrap_err();
            assert!(found.len() == 1 && found[0].contains(mistake), "{keys}: {found:?}");
        }
    }

    /// Shows (rule 25).
    #[test]
    fn only_an_export_of_everything_reconciles_unless_the_operator_says_so() {
        let reconciles = |keys: &str| !export("", keys).unwrap().reconciled.is_empty();
        assert!(reconciles(""));
        assert!(reconciles("include_associated_data = [\"x\"]"), "it brings more, not less");
        assert!(reconciles("organize_output_by = \"Patient\""));
        for narrowing in [
            "type_filters = [\"Patient?active=true\"]",
            "elements = [\"id\"]",
            "until = \"2026-01-01T00:00:00Z\"",
            "initial_since = \"2026-01-01T00:00:00Z\"",
            "parameters = { _x = \"1\" }",
            "level = \"patient\"\npatients = [\"1\"]",
        ] {
            assert!(!reconciles(narrowing), "{narrowing}");
            assert!(reconciles(&format!("{narrowing}\nreconcile = true")), "{narrowing}");
        }
    }
}
