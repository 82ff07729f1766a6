//! What the parameters of a kick-off leave of the lines of a type. Pure: lines become fewer or shorter lines.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{demo::scenario::Elements, fhir::ResourceType};

/// The parameters that narrow an export; empty lists do not.
#[derive(Debug, Default)]
pub(super) struct Narrowing {
    /// `Patient?gender=female`: equality of elements of the root, alternatives with commas.
    pub type_filters: Vec<String>,
    pub elements: Vec<String>,
    /// `Patient/p1`.
    pub patients: Vec<String>,
    /// Of the group, in the same form; `None` where its resources are not those of some patients.
    pub members: Option<Vec<String>>,
}

impl Narrowing {
    pub(super) fn apply(&self, of: ResourceType, lines: Vec<Arc<str>>, elements: Elements) -> Vec<Arc<str>> {
        let filters: Vec<_> = self.type_filters.iter().filter_map(|filter| search(filter, of)).collect();
        // With the name of a type, an element is about this type alone.
        let is_about = |element: &String| element.split_once('.').is_none_or(|(of_type, _)| of_type == of.as_str());
        let is_shortened = self.elements.iter().any(is_about) && elements != Elements::Ignored;
        if filters.is_empty() && self.patients.is_empty() && self.members.is_none() && !is_shortened {
            return lines;
        }
        let kept = lines.into_iter().filter_map(|line| {
            let resource: Value = serde_json::from_str(&line).ok()?;
            let is_found = filters.is_empty() || filters.iter().any(|search| matches(&resource, search));
            let is_kept = is_found && self.is_of_patients(of, &resource);
            let shortened = || Arc::from(self.shortened(of, resource.clone(), elements).to_string());
            is_kept.then(|| if is_shortened { shortened() } else { line })
        });
        kept.collect()
    }

    fn is_of_patients(&self, of: ResourceType, resource: &Value) -> bool {
        let own = format!("{of}/{}", resource["id"].as_str().unwrap_or_default());
        let references = ["subject", "patient"].map(|name| resource[name]["reference"].as_str());
        let is_of = |patients: &[String]| {
            let is_named = |reference: &str| patients.iter().any(|patient| patient == reference);
            is_named(&own) || references.into_iter().flatten().any(is_named)
        };
        let is_of_members = self.members.as_deref().is_none_or(is_of);
        is_of_members && (self.patients.is_empty() || is_of(&self.patients))
    }

    /// The elements that were asked for, and those that every resource has.
    fn shortened(&self, of: ResourceType, mut resource: Value, elements: Elements) -> Value {
        let is_asked = |name: &str| {
            let named = self.elements.iter().map(|element| element.split_once('.').unwrap_or((of.as_str(), element)));
            named.into_iter().any(|(of_type, element)| of_type == of.as_str() && element == name)
        };
        if let Some(members) = resource.as_object_mut() {
            members.retain(|name, _| matches!(name.as_str(), "resourceType" | "id" | "meta") || is_asked(name));
        }
        if elements == Elements::Tagged {
            resource["meta"]["tag"] = json!([{"code": "SUBSETTED"}]);
        }
        resource
    }
}

/// The conditions of a filter of this type.
fn search(filter: &str, of: ResourceType) -> Option<Vec<(String, String)>> {
    let query = filter.strip_prefix(of.as_str())?.strip_prefix('?')?;
    Some(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
}

fn matches(resource: &Value, search: &[(String, String)]) -> bool {
    let text = |name: &str| match &resource[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    search.iter().all(|(name, values)| values.split(',').any(|value| text(name) == value))
}
