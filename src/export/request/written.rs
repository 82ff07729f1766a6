//! The two writers of one list of parameters: a query, and a `Parameters` resource (rules 11, 12).

use serde_json::json;

use super::parameters::{List, Parameter, Value};

/// How several values of one parameter are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lists {
    /// Joined with commas, but for searches, which may hold commas of their own.
    Joined,
    /// Joined with commas, searches too; the commas in them are percent-encoded once more (rule 14).
    AllJoined,
    /// The parameter is repeated.
    Repeated,
}

impl Lists {
    fn joins(self, list: List) -> bool {
        match (self, list) {
            (Self::Repeated, _) | (_, List::References) | (Self::Joined, List::Searches) => false,
            (Self::Joined | Self::AllJoined, List::Names) | (Self::AllJoined, List::Searches) => true,
        }
    }
}

/// The query of a GET, percent-encoded; `None` without parameters.
pub fn query(parameters: &[Parameter], lists: Lists) -> Option<String> {
    let mut pairs = Vec::new();
    for Parameter { name, values, list } in parameters {
        let values = values.iter().map(Value::text);
        if lists.joins(*list) {
            let values: Vec<_> = values.map(|value| encoded(&without_commas(value, *list))).collect();
            pairs.push(format!("{}={}", encoded(name), values.join(",")));
        } else {
            pairs.extend(values.map(|value| format!("{}={}", encoded(name), encoded(&value))));
        }
    }
    (!pairs.is_empty()).then(|| pairs.join("&"))
}

/// The body of a POST.
pub fn body(parameters: &[Parameter], lists: Lists) -> String {
    let mut written = Vec::new();
    for Parameter { name, values, list } in parameters {
        // One value keeps its type; but where searches are separated at commas, its own must not separate it.
        if lists.joins(*list) && (values.len() > 1 || *list == List::Searches) {
            let texts: Vec<_> = values.iter().map(|value| without_commas(value.text(), *list)).collect();
            written.push(json!({"name": name, "valueString": texts.join(",")}));
        } else {
            written.extend(values.iter().map(|value| value.parameter(name)));
        }
    }
    json!({"resourceType": "Parameters", "parameter": written}).to_string()
}

/// In a query, and in a joined list.
impl Value {
    fn text(&self) -> String {
        match self {
            Self::Instant(text) | Self::Text(text) => text.clone(),
            Self::Coding { system, code } => format!("{system}|{code}"),
            Self::Patient(id) => format!("Patient/{id}"),
            Self::Boolean(value) => value.to_string(),
        }
    }

    fn parameter(&self, name: &str) -> serde_json::Value {
        match self {
            Self::Instant(text) => json!({"name": name, "valueInstant": text}),
            Self::Text(text) => json!({"name": name, "valueString": text}),
            Self::Coding { system, code } => json!({"name": name, "valueCoding": {"system": system, "code": code}}),
            Self::Patient(_) => json!({"name": name, "valueReference": {"reference": self.text()}}),
            Self::Boolean(value) => json!({"name": name, "valueBoolean": value}),
        }
    }
}

/// A comma would end the value, so that of a search becomes what it is in a URL; names have none.
fn without_commas(value: String, list: List) -> String {
    if list == List::Searches { value.replace(',', "%2C") } else { value }
}

/// A space as `%20`: not every server reads `+` as one.
fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}
