//! Both writers, read back.

use std::collections::BTreeSet;

use proptest::{collection::btree_set, option, prelude::*};
use serde_json::Value as Json;

use super::*;

/// Names and values as a server understands them.
type Understood = BTreeSet<(String, String)>;

fn with(parameters: ExportParameters) -> ExportRequest {
    let types = ["Patient", "Observation"].map(|name| name.parse().unwrap()).to_vec();
    ExportRequest { parameters, ..ExportRequest::new(Level::Patient, types, Some("2026-11-20T08:00:00.000Z".into())) }
}

fn filtered(filters: &[&str]) -> ExportRequest {
    let type_filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
    with(ExportParameters { type_filters, ..ExportParameters::default() })
}

/// The values of one parameter as a server splits them that takes commas.
fn split(name: String, value: &str, lists: Lists) -> Vec<(String, String)> {
    let is_search = name == "_typeFilter";
    let is_list = ["_type", "_elements", "includeAssociatedData"].contains(&name.as_str());
    if lists == Lists::Repeated || !(is_list || (is_search && lists == Lists::AllJoined)) {
        return vec![(name, value.to_owned())];
    }
    let decoded = |part: &str| if is_search { part.replace("%2C", ",") } else { part.to_owned() };
    value.split(',').map(|part| (name.clone(), decoded(part))).collect()
}

fn of_query(query: &str, lists: Lists) -> Understood {
    let pairs = url::form_urlencoded::parse(query.as_bytes()).into_owned();
    pairs.flat_map(|(name, value)| split(name, &value, lists)).collect()
}

fn of_body(body: &str, lists: Lists) -> Understood {
    let body: Json = serde_json::from_str(body).unwrap();
    assert_eq!(body["resourceType"], "Parameters");
    let parameters = body["parameter"].as_array().unwrap().iter();
    let pair = |parameter: &Json| {
        let name = parameter["name"].as_str().unwrap().to_owned();
        let value = parameter.as_object().unwrap().iter().find(|(member, _)| member.starts_with("value")).unwrap();
        let text = match (value.0.as_str(), value.1) {
            ("valueReference", reference) => reference["reference"].as_str().unwrap().to_owned(),
            ("valueCoding", of) => format!("{}|{}", of["system"].as_str().unwrap(), of["code"].as_str().unwrap()),
            ("valueBoolean", of) => of.as_bool().unwrap().to_string(),
            (_, text) => text.as_str().unwrap().to_owned(),
        };
        (name, text)
    };
    parameters.map(pair).flat_map(|(name, value)| split(name, &value, lists)).collect()
}

/// Shows (rules 12, 18 and 28, Q-13).
#[test]
fn each_parameter_of_a_body_has_its_fhir_type() {
    let text = |text: &str| BTreeSet::from([text.to_owned()]);
    let request = ExportRequest {
        allow_partial_manifests: true,
        ..with(ExportParameters {
            until: Some("2026-12-01T00:00:00.000Z".to_owned()),
            type_filters: text("Observation?category=laboratory"),
            elements: text("id"),
            patients: text("p1"),
            include_associated_data: ["LatestProvenanceResources", "http://example.org|all"].map(str::to_owned).into(),
            organize_output_by: Some("Patient".to_owned()),
            raw: [("_outputFormat".to_owned(), "ndjson".to_owned())].into(),
        })
    };
    let body: Json = serde_json::from_str(&body(&request.parameters(), Lists::Repeated)).unwrap();
    let expected = serde_json::json!({"resourceType": "Parameters", "parameter": [
        {"name": "_type", "valueString": "Patient"},
        {"name": "_type", "valueString": "Observation"},
        {"name": "_since", "valueInstant": "2026-11-20T08:00:00.000Z"},
        {"name": "_until", "valueInstant": "2026-12-01T00:00:00.000Z"},
        {"name": "_typeFilter", "valueString": "Observation?category=laboratory"},
        {"name": "_elements", "valueString": "id"},
        {"name": "patient", "valueReference": {"reference": "Patient/p1"}},
        {"name": "includeAssociatedData", "valueString": "LatestProvenanceResources"},
        {"name": "includeAssociatedData", "valueCoding": {"system": "http://example.org", "code": "all"}},
        {"name": "organizeOutputBy", "valueString": "Patient"},
        {"name": "allowPartialManifests", "valueBoolean": true},
        {"name": "_outputFormat", "valueString": "ndjson"},
    ]});
    assert_eq!(body, expected);
}

/// Shows (rule 14).
#[test]
fn a_comma_in_a_filter_does_not_separate_filters() {
    let request = filtered(&["Observation?code=a,b", "Patient?active=true"]);
    let query = |lists| query(&request.parameters()[2..], lists).unwrap();
    let repeated = "_typeFilter=Observation%3Fcode%3Da%2Cb&_typeFilter=Patient%3Factive%3Dtrue";
    assert_eq!(query(Lists::Joined), repeated);
    assert_eq!(query(Lists::Repeated), repeated);
    assert_eq!(query(Lists::AllJoined), "_typeFilter=Observation%3Fcode%3Da%252Cb,Patient%3Factive%3Dtrue");
}

/// Shows (rule 13).
#[test]
fn types_are_joined_or_repeated() {
    let request = filtered(&[]);
    let of = |lists| query(&request.parameters()[..1], lists).unwrap();
    assert_eq!(of(Lists::Joined), "_type=Patient,Observation");
    assert_eq!(of(Lists::AllJoined), "_type=Patient,Observation");
    assert_eq!(of(Lists::Repeated), "_type=Patient&_type=Observation");
}

#[test]
fn a_filter_and_an_element_go_with_the_request_for_their_type() {
    let type_filters = ["Patient?active=true", "Observation?code=a"].map(str::to_owned).into();
    let elements = ["id", "Patient.name", "Observation.code"].map(str::to_owned).into();
    let all = with(ExportParameters { type_filters, elements, ..ExportParameters::default() });
    let request = ExportRequest { types: vec!["Patient".parse().unwrap()], since: None, ..all };
    let query = query(&request.parameters(), Lists::Joined).unwrap();
    assert_eq!(query, "_type=Patient&_typeFilter=Patient%3Factive%3Dtrue&_elements=Patient.name,id");
}

fn parameters() -> impl Strategy<Value = ExportParameters> {
    let search = "(Patient|Observation)\\?[a-z]{1,6}=[ -~äß]{0,12}".prop_filter("as it was encoded", |text| {
        // What is percent-encoded by the operator stays so; a comma must not be told from one that is.
        !text.contains('%')
    });
    let word = "[a-z]{1,8}";
    (
        option::of("2026-1[0-2]-0[1-9]T00:00:00.000Z"),
        btree_set(search, 0..3),
        btree_set(word, 0..3),
        btree_set("[A-Za-z0-9.-]{1,12}", 0..4),
        btree_set("[A-Za-z]{1,8}(\\|[a-z]{1,8})?", 0..3),
        option::of("(Patient|Group)"),
        proptest::collection::btree_map("_[a-z]{1,4}X", "[ -~äß]{0,12}", 0..3),
    )
        .prop_map(|(until, type_filters, elements, patients, include_associated_data, organize_output_by, raw)| {
            ExportParameters {
                until,
                type_filters,
                elements,
                patients,
                include_associated_data,
                organize_output_by,
                raw,
            }
        })
}

proptest! {
    /// Shows (rules 11 and 12).
    #[test]
    fn both_writers_carry_the_same_parameters(
        parameters in parameters(),
        lists in prop_oneof![Just(Lists::Joined), Just(Lists::AllJoined), Just(Lists::Repeated)],
        allow_partial_manifests: bool,
    ) {
        let request = ExportRequest { allow_partial_manifests, ..with(parameters) };
        let parameters = request.parameters();
        let query = of_query(&query(&parameters, lists).unwrap(), lists);
        prop_assert_eq!(&query, &of_body(&body(&parameters, lists), lists));
        let sent: usize = parameters.iter().map(|parameter| parameter.values.len()).sum();
        prop_assert_eq!(query.len(), sent, "nothing is lost, and nothing is split");
    }
}
