//! Granted scopes: whether they let us export a resource type (rules 124 and 126).
//!
//! Pure: a text of scopes and a type give an answer. Nothing is concluded from scopes that SMART does not define.

use crate::fhir::ResourceType;

/// Whether the granted scopes let us export a resource type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Granted {
    Yes,
    /// `missing` is the scope that would, in the form of those granted.
    No {
        missing: String,
    },
    /// The scopes do not tell: none was stated, they have another form, or a filter limits them.
    Unknown,
}

/// What one scope says about a type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Yes,
    No,
    Perhaps,
    /// Not a scope of a system.
    Nothing,
}

/// Compares the scopes of a token, separated by blanks, with a type: `system/*.read` and `system/Patient.read` of
/// version 1, `system/*.rs` and `system/Patient.rs` of version 2, wildcards in any place.
pub fn covers(granted: &str, resource_type: ResourceType) -> Granted {
    let said: Vec<_> = granted.split_whitespace().map(|scope| says(scope, resource_type.as_str())).collect();
    if said.contains(&Says::Yes) {
        return Granted::Yes;
    }
    if said.contains(&Says::Perhaps) || !said.contains(&Says::No) {
        return Granted::Unknown;
    }
    let is_version_1 = |scope: &str| scope.rsplit_once('.').is_some_and(|(_, permissions)| permissions == "read");
    let permissions = if granted.split_whitespace().any(is_version_1) { "read" } else { "rs" };
    Granted::No { missing: format!("system/{resource_type}.{permissions}") }
}

/// The requested scopes of single types that the granted ones do not cover, in whatever form. A requested wildcard may
/// be granted as a list: then nothing is missing here, and [`covers`] decides for each type of an export.
pub fn missing<'a>(requested: &'a str, granted: &str) -> Vec<&'a str> {
    let is_covered = |scope: &str| {
        let resource_type = scope.split_once('/').and_then(|(_, rest)| rest.split(['.', '?']).next());
        let covers = |of: &str| granted.split_whitespace().any(|granted| says(granted, of) == Says::Yes);
        granted.split_whitespace().any(|granted| granted == scope)
            || scope.starts_with("system/") && resource_type.is_some_and(covers)
    };
    requested.split_whitespace().filter(|scope| !scope.contains('*') && !is_covered(scope)).collect()
}

fn says(scope: &str, resource_type: &str) -> Says {
    let Some((context, rest)) = scope.split_once('/') else { return Says::Nothing };
    if !matches!(context, "system" | "*") {
        return Says::Nothing;
    }
    let (rest, filter) = rest.split_once('?').map_or((rest, ""), |(rest, filter)| (rest, filter));
    let (of, permissions) = rest.split_once('.').unwrap_or((rest, ""));
    if of != "*" && !of.eq_ignore_ascii_case(resource_type) {
        return Says::No;
    }
    match may_export(permissions) {
        Says::Yes if !filter.is_empty() => Says::Perhaps,
        says => says,
    }
}

/// An export reads and searches: `read` of version 1, `r` and `s` of version 2.
fn may_export(permissions: &str) -> Says {
    match permissions {
        "read" | "*" => Says::Yes,
        "write" => Says::No,
        letters if !letters.is_empty() && letters.chars().all(|letter| "cruds".contains(letter)) => {
            match (letters.contains('r'), letters.contains('s')) {
                (true, true) => Says::Yes,
                (false, false) => Says::No,
                // Servers differ in whether one of them is enough.
                _ => Says::Perhaps,
            }
        }
        _ => Says::Perhaps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (rules 124 and 126)
    #[test]
    fn granted_scopes_of_both_versions_are_compared_with_a_type() {
        let missing = |scope: &str| Granted::No { missing: scope.to_owned() };
        for (granted, expected) in [
            ("system/*.read", Granted::Yes),
            ("system/*.*", Granted::Yes),
            ("system/*.rs", Granted::Yes),
            ("system/*.cruds", Granted::Yes),
            ("*/*.read", Granted::Yes),
            ("system/Patient.read", Granted::Yes),
            ("system/Patient.*", Granted::Yes),
            ("system/Patient.rs", Granted::Yes),
            ("*/Patient.rs", Granted::Yes),
            ("openid system/Group.rs  system/Patient.rs", Granted::Yes),
            ("system/Patient.rs?active=true system/*.rs", Granted::Yes),
            ("system/Observation.rs", missing("system/Patient.rs")),
            ("system/Observation.read openid", missing("system/Patient.read")),
            ("system/*.write", missing("system/Patient.rs")),
            ("system/Patient.cud", missing("system/Patient.rs")),
            ("system/Patient.rs?active=true", Granted::Unknown),
            ("system/*.r", Granted::Unknown),
            ("system/Patient.s system/Observation.rs", Granted::Unknown),
            ("system/*", Granted::Unknown),
            ("system/Patient.export", Granted::Unknown),
            ("user/*.read patient/Patient.rs", Granted::Unknown),
            ("https://ehr.example.org/.default", Granted::Unknown),
            ("openid", Granted::Unknown),
            ("", Granted::Unknown),
        ] {
            assert_eq!(covers(granted, ResourceType::PATIENT), expected, "{granted}");
        }
    }

    #[test]
    fn a_requested_scope_is_missing_only_if_no_granted_one_covers_it() {
        for (requested, granted, expected) in [
            ("system/Patient.rs system/Group.rs", "system/*.rs", vec![]),
            ("system/Patient.read", "system/Patient.rs", vec![]),
            ("system/Patient.rs system/Group.rs", "system/Patient.read", vec!["system/Group.rs"]),
            ("system/*.rs", "system/Patient.rs system/Group.rs", vec![]),
            ("clientCreds", "clientCreds", vec![]),
            ("clientCreds", "other", vec!["clientCreds"]),
        ] {
            assert_eq!(missing(requested, granted), expected, "{requested} for {granted}");
        }
    }
}
