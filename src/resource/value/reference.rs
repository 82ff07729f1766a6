//! References: which resource a `Reference.reference` names.

use crate::fhir::ResourceType;

/// A resource of a known type by its logical id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReferenceTarget<'text> {
    pub resource_type: ResourceType,
    pub id: &'text str,
}

/// From `Type/id` or an absolute URL, both with or without `/_history/version`. `None` for `#contained`, `urn:`, a
/// search, and anything else that does not name exactly one resource.
pub fn target(reference: &str) -> Option<ReferenceTarget<'_>> {
    // Nearly all references, in one pass over the id.
    if let Some(slash) = reference.bytes().position(|byte| byte == b'/')
        && let (name, id) = (&reference[..slash], &reference[slash + 1..])
        && is_id(id)
    {
        return name.parse().ok().map(|resource_type| ReferenceTarget { resource_type, id });
    }
    if reference.starts_with("urn:") || reference.bytes().any(|byte| matches!(byte, b'#' | b'?')) {
        return None;
    }
    // Looking for one byte is cheap, and few ids have it.
    let versioned = if reference.contains('_') { reference.split_once("/_history/") } else { None };
    let path = versioned.map_or(reference, |(path, _)| path);
    let (rest, id) = path.rsplit_once('/')?;
    let resource_type = rest.rsplit('/').next()?.parse().ok()?;
    is_id(id).then_some(ReferenceTarget { resource_type, id })
}

/// Whether the text may be a logical id: 1 to 64 letters, digits, `-` and `.`, as FHIR defines
/// [`id`](https://hl7.org/fhir/R4/datatypes.html#id). `_` is allowed as well, which FHIR does not allow but some
/// servers use.
fn is_id(text: &str) -> bool {
    let may_be_in_id = |byte| matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_');
    // Without a branch for each byte, many of them are looked at together.
    (1..=64).contains(&text.len()) && text.bytes().fold(true, |all, byte| all & may_be_in_id(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_in_every_form_that_names_a_resource() {
        for reference in [
            "Patient/p1",
            "Patient/p1/_history/3",
            "https://ehr.example.org/fhir/Patient/p1",
            "https://ehr.example.org/fhir/Patient/p1/_history/3",
            "/Patient/p1",
        ] {
            let found = target(reference).unwrap();
            assert_eq!((found.resource_type.as_str(), found.id), ("Patient", "p1"), "{reference}");
        }
    }

    #[test]
    fn a_reference_that_does_not_name_one_resource_has_no_target() {
        for reference in [
            "#gp",
            "",
            "p1",
            "Patient/",
            "Patient",
            "urn:uuid:0b5b",
            "urn:oid:1.2/Patient/p1",
            "Patient?identifier=x",
            "Practitioner?identifier=http://hl7.org/fhir/sid/us-npi|Patient/9",
            "patient/p1",
            "Thing/p1",
            "Patient/p1#x",
            "Patient/p 1",
            "Patient/é",
        ] {
            assert_eq!(target(reference), None, "{reference}");
        }
    }
}
