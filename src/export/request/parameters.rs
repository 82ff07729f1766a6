//! The parameters of a kick-off: their names, their FHIR types, and which of them are lists (rule 12).

use std::borrow::Cow;

use super::{BTreeMap, BTreeSet, Deserialize, ExportRequest, Serialize};

/// What an operator may ask for besides types. Its values have been checked where they were read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ExportParameters {
    /// `_until`: an instant in UTC with milliseconds (rule 18).
    pub until: Option<String>,
    /// `_typeFilter`: searches such as `Observation?category=laboratory`, one of their types each (rule 22).
    pub type_filters: BTreeSet<String>,
    /// `_elements`, of the root of a resource (rule 26).
    pub elements: BTreeSet<String>,
    /// `patient`: logical ids (rule 27).
    pub patients: BTreeSet<String>,
    /// `includeAssociatedData`: a code, or `system|code`, which the draft of 4.0 wants (rule 28).
    pub include_associated_data: BTreeSet<String>,
    /// `organizeOutputBy`: a resource type.
    pub organize_output_by: Option<String>,
    /// Others by their names, with their values as they are.
    pub raw: BTreeMap<String, String>,
}

impl ExportParameters {
    /// The names that are not for `raw`: they have settings of their own, or are set by us.
    pub const NAMES: [&'static str; 9] = [
        "_type",
        "_since",
        "_until",
        "_typeFilter",
        "_elements",
        "patient",
        "includeAssociatedData",
        "organizeOutputBy",
        "allowPartialManifests",
    ];

    /// Those that decide which rows an export has, or what is in them, with their values. A watermark stands for them
    /// as well (rule 113). How the server arranges its files is not among them.
    pub fn deciding(&self) -> BTreeMap<String, Vec<String>> {
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>();
        let own = [
            ("_until", self.until.iter().cloned().collect()),
            ("_typeFilter", list(&self.type_filters)),
            ("_elements", list(&self.elements)),
            ("patient", list(&self.patients)),
            ("includeAssociatedData", list(&self.include_associated_data)),
        ];
        let own = own.into_iter().map(|(name, values)| (name.to_owned(), values));
        let raw = self.raw.iter().filter(|(name, _)| *name != "_outputFormat");
        let raw = raw.map(|(name, value)| (name.clone(), vec![value.clone()]));
        own.chain(raw).filter(|(_, values)| !values.is_empty()).collect()
    }

    /// Whether only some elements of this type are asked for.
    pub fn has_elements_of(&self, resource_type: &str) -> bool {
        self.elements.iter().any(|element| element.split_once('.').is_none_or(|(of, _)| of == resource_type))
    }

    /// Whether a full export of this kind may lack rows that the server has, or parts of them.
    pub fn narrow(&self) -> bool {
        self.deciding().keys().any(|name| name != "includeAssociatedData")
    }

    /// Whether a full export of this kind may lack resources of this type, of the patients that it is about.
    pub fn leaves_out(&self, resource_type: &str) -> bool {
        let is_of_type = |filter: &String| filter.split_once('?').is_none_or(|(of, _)| of == resource_type);
        let is_filtered = self.type_filters.iter().any(is_of_type);
        is_filtered || self.until.is_some() || self.raw.keys().any(|name| name != "_outputFormat")
    }
}

/// One parameter with all its values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parameter {
    pub name: Cow<'static, str>,
    pub values: Vec<Value>,
    pub list: List,
}

/// How several values are written where the server is not known to want it otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// Names, which hold no comma.
    Names,
    /// Searches, which may hold commas of their own.
    Searches,
    /// Never in one text.
    References,
}

/// A value by its FHIR type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Instant(String),
    Text(String),
    Coding {
        system: String,
        code: String,
    },
    /// To a patient, by its logical id.
    Patient(String),
    Boolean(bool),
}

/// The parameters of a request.
pub fn of(request: &ExportRequest) -> Vec<Parameter> {
    let ExportParameters { until, type_filters, elements, patients, include_associated_data, organize_output_by, raw } =
        &request.parameters;
    // BCDA answers 400 to a type that is named twice.
    let mut seen = BTreeSet::new();
    let types = request.types.iter().filter(|of| seen.insert(**of)).map(|of| text(of.as_str()));
    // Oracle refuses a filter of a type that is not asked for.
    let is_asked = |of: &str| request.types.is_empty() || request.types.iter().any(|asked| asked.as_str() == of);
    let filters = type_filters.iter().filter(|search| search.split_once('?').is_none_or(|(of, _)| is_asked(of)));
    let elements = elements.iter().filter(|name| name.split_once('.').is_none_or(|(of, _)| is_asked(of)));
    let partial = request.allow_partial_manifests.then_some(Value::Boolean(true));
    let own = [
        parameter("_type", List::Names, types),
        parameter("_since", List::Names, request.since.iter().cloned().map(Value::Instant)),
        parameter("_until", List::Names, until.iter().cloned().map(Value::Instant)),
        parameter("_typeFilter", List::Searches, filters.map(|search| text(search))),
        parameter("_elements", List::Names, elements.map(|name| text(name))),
        parameter("patient", List::References, patients.iter().cloned().map(Value::Patient)),
        parameter("includeAssociatedData", List::Names, include_associated_data.iter().map(|code| coded(code))),
        parameter("organizeOutputBy", List::Names, organize_output_by.iter().map(|of| text(of))),
        parameter("allowPartialManifests", List::Names, partial),
    ];
    let raw = raw.iter().map(|(name, value)| parameter(name.clone(), List::References, [text(value)]));
    own.into_iter().chain(raw).filter(|parameter| !parameter.values.is_empty()).collect()
}

fn parameter(name: impl Into<Cow<'static, str>>, list: List, values: impl IntoIterator<Item = Value>) -> Parameter {
    Parameter { name: name.into(), values: values.into_iter().collect(), list }
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

/// A token as searches write it: the draft of 4.0 has a Coding where earlier guides have a code.
fn coded(token: &str) -> Value {
    match token.split_once('|') {
        Some((system, code)) => Value::Coding { system: system.to_owned(), code: code.to_owned() },
        None => text(token),
    }
}
