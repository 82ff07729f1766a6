//! What an export asks of the server, and what its watermarks are therefore valid for.
//!
//! A watermark says that all rows up to it are in the table: all rows of this source that this level, this group and
//! these parameters yield. If one of them changes, the watermark says nothing (rule 113). So its name in the tables ends
//! in a fingerprint of these, and the state file keeps them: the parameters as digests, because a filter or a patient
//! is not for everybody's eyes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::sha256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// `_sync_source` of the rows.
    pub source: String,
    /// `system`, `patient` or `group`.
    pub level: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// A digest of the values of each parameter that is set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
}

/// Hexadecimal digits of a fingerprint. Exports have a handful of them over the years.
const FINGERPRINT_DIGITS: usize = 12;

impl Asked {
    /// `parameters` are those that decide which rows are asked for, with their values in an order that does not
    /// change.
    pub fn new(source: &str, level: &str, group: Option<String>, parameters: &BTreeMap<String, Vec<String>>) -> Self {
        let digest = |values: &Vec<String>| short_digest(&values.join("\n"));
        let parameters = parameters.iter().map(|(name, values)| (name.clone(), digest(values))).collect();
        Self { source: source.to_owned(), level: level.to_owned(), group, parameters }
    }

    /// The same for the same request in every later version.
    pub fn fingerprint(&self) -> String {
        // A new part is only added where it is set, so that it does not change the fingerprints of today. The names and
        // the line ends keep the parts apart: none of them holds a control character.
        let group = self.group.as_ref().map(|group| format!("group={group}\n")).unwrap_or_default();
        let parameters = self.parameters.iter().map(|(name, digest)| format!("parameter {name}={digest}\n"));
        let parameters: String = parameters.collect();
        short_digest(&format!("source={}\nlevel={}\n{group}{parameters}", self.source, self.level))
    }

    /// What is different now, for people; `None` where nothing is.
    pub fn change_to(&self, now: &Self) -> Option<String> {
        let group = |asked: &Self| asked.group.clone().unwrap_or_else(|| "none".to_owned());
        let parts = [
            ("source", self.source.clone(), now.source.clone()),
            ("level", self.level.clone(), now.level.clone()),
            ("group", group(self), group(now)),
        ];
        let changes: Vec<_> = parts
            .into_iter()
            .filter(|(_, before, now)| before != now)
            .map(|(what, before, now)| format!("{what} changed from {before} to {now}"))
            .chain(self.changed_parameters(now))
            .collect();
        (!changes.is_empty()).then(|| changes.join(", "))
    }

    fn changed_parameters(&self, now: &Self) -> Vec<String> {
        let names: BTreeSet<_> = self.parameters.keys().chain(now.parameters.keys()).collect();
        let change = |name: &String| match (self.parameters.get(name), now.parameters.get(name)) {
            (None, Some(_)) => Some(format!("{name} was added")),
            (Some(_), None) => Some(format!("{name} was removed")),
            (before, now) => (before != now).then(|| format!("{name} has changed")),
        };
        names.into_iter().filter_map(change).collect()
    }
}

fn short_digest(text: &str) -> String {
    let mut digest = sha256(text);
    digest.truncate(FINGERPRINT_DIGITS);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(source: &str, level: &str, group: Option<&str>) -> Asked {
        Asked::new(source, level, group.map(str::to_owned), &BTreeMap::new())
    }

    fn with(of: &[(&str, &[&str])]) -> Asked {
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let parameters = of.iter().map(|(name, of)| ((*name).to_owned(), values(of))).collect();
        Asked::new("fhir", "system", None, &parameters)
    }

    /// (rule 113)
    #[test]
    fn each_part_of_what_is_asked_changes_the_fingerprint() {
        let all = [
            asked("fhir", "system", None),
            asked("hospital", "system", None),
            asked("fhir", "patient", None),
            asked("fhir", "group", Some("a")),
            asked("fhir", "group", Some("b")),
            with(&[("_typeFilter", &["Patient?active=true"])]),
            with(&[("_typeFilter", &["Patient?active=false"])]),
            with(&[("_typeFilter", &["Patient?active=true", "Patient?active=false"])]),
            with(&[("_elements", &["id"])]),
            with(&[("_elements", &["id"]), ("_until", &["2026-01-01T00:00:00.000Z"])]),
        ];
        let fingerprints: std::collections::BTreeSet<_> = all.iter().map(Asked::fingerprint).collect();
        assert_eq!(fingerprints.len(), all.len());
    }

    #[test]
    fn a_fingerprint_is_the_same_in_every_version() {
        assert_eq!(asked("fhir", "system", None).fingerprint(), "c817564e506d");
        assert_eq!(asked("fhir", "group", Some("a")).fingerprint(), "ca1b5b1200bd");
        assert_eq!(with(&[("_elements", &["id", "name"])]).fingerprint(), "48b6faf9e01d");
    }

    #[test]
    fn a_change_of_a_parameter_is_described_without_its_values() {
        let (a, b) = (with(&[("patient", &["4711"])]), with(&[("patient", &["4712"]), ("_elements", &["id"])]));
        assert_eq!(a.change_to(&b).as_deref(), Some("_elements was added, patient has changed"));
        assert_eq!(b.change_to(&with(&[])).as_deref(), Some("_elements was removed, patient was removed"));
        assert!(!serde_json::to_string(&a).unwrap().contains("4711"), "nor does the state file have them");
    }

    #[test]
    fn a_change_is_described_in_words() {
        let (a, b) = (asked("fhir", "group", Some("a")), asked("fhir", "group", Some("b")));
        assert_eq!(a.change_to(&b).as_deref(), Some("group changed from a to b"));
        assert_eq!(a.change_to(&a), None);
        let all = asked("fhir", "system", None);
        assert_eq!(
            a.change_to(&all).as_deref(),
            Some("level changed from group to system, group changed from a to none")
        );
    }
}
