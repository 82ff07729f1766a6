//! What an export asks of the server, and what its watermarks are therefore valid for.
//!
//! A watermark says that all rows up to it are in the table: all rows of this source that this level and this group
//! yield. If one of the three changes, the watermark says nothing (rule 113). So its name in the tables ends in a
//! fingerprint of these, and the state file keeps them in readable form.

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
}

/// Hexadecimal digits of a fingerprint. Exports have a handful of them over the years.
const FINGERPRINT_DIGITS: usize = 12;

impl Asked {
    /// The same for the same request in every later version.
    pub fn fingerprint(&self) -> String {
        // A new part is only added where it is set, so that it does not change the fingerprints of today. The names and
        // the line ends keep the parts apart: none of them holds a control character.
        let group = self.group.as_ref().map(|group| format!("group={group}\n")).unwrap_or_default();
        let mut digest = sha256(&format!("source={}\nlevel={}\n{group}", self.source, self.level));
        digest.truncate(FINGERPRINT_DIGITS);
        digest
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
            .collect();
        (!changes.is_empty()).then(|| changes.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(source: &str, level: &str, group: Option<&str>) -> Asked {
        Asked { source: source.to_owned(), level: level.to_owned(), group: group.map(str::to_owned) }
    }

    #[test]
    fn each_part_of_what_is_asked_changes_the_fingerprint() {
        let all = [
            asked("fhir", "system", None),
            asked("hospital", "system", None),
            asked("fhir", "patient", None),
            asked("fhir", "group", Some("a")),
            asked("fhir", "group", Some("b")),
        ];
        let fingerprints: std::collections::BTreeSet<_> = all.iter().map(Asked::fingerprint).collect();
        assert_eq!(fingerprints.len(), all.len());
    }

    #[test]
    fn a_fingerprint_is_the_same_in_every_version() {
        assert_eq!(asked("fhir", "system", None).fingerprint(), "c817564e506d");
        assert_eq!(asked("fhir", "group", Some("a")).fingerprint(), "ca1b5b1200bd");
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
