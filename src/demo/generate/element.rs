//! The data types of FHIR as JSON text, and times as FHIR writes them.

use chrono::{Datelike, NaiveDate, NaiveDateTime};

use crate::{
    demo::json_object::{Body, text},
    fhir::ResourceType,
};

/// A code of one of the systems of the catalogue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coding {
    pub system: &'static str,
    pub code: &'static str,
    pub display: &'static str,
}

/// A person or an organization that other resources refer to by name.
#[derive(Clone, Debug)]
pub(super) struct NamedResource {
    pub id: String,
    pub name: String,
}

pub(super) fn object<const N: usize>(members: [(&str, String); N]) -> String {
    Body::from(members).to_string()
}

pub(super) fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(","))
}

pub(super) fn coding(code: &Coding) -> String {
    object([("system", text(code.system)), ("code", text(code.code)), ("display", text(code.display))])
}

pub(super) fn concept(code: &Coding) -> String {
    object([("coding", list([coding(code)])), ("text", text(code.display))])
}

/// A `CodeableConcept` of a status, which has no text of its own.
pub(super) fn status(system: &str, code: &str) -> String {
    object([("coding", list([object([("system", text(system)), ("code", text(code))])]))])
}

pub(super) fn reference(resource_type: ResourceType, id: &str) -> String {
    object([("reference", text(&format!("{resource_type}/{id}")))])
}

pub(super) fn named_reference(resource_type: ResourceType, resource: &NamedResource) -> String {
    object([("reference", text(&format!("{resource_type}/{}", resource.id))), ("display", text(&resource.name))])
}

pub(super) fn identifier(system: &str, value: &str) -> String {
    object([("system", text(system)), ("value", text(value))])
}

/// A UCUM quantity; `value` is a decimal as it is to stand in the line.
pub(super) fn quantity(value: &str, unit: &str, ucum: &str) -> String {
    object([
        ("value", value.to_owned()),
        ("unit", text(unit)),
        ("system", text("http://unitsofmeasure.org")),
        ("code", text(ucum)),
    ])
}

/// So many units of the last digit as a decimal with that many digits: `(630, 2)` is `6.30`.
pub(super) fn decimal(units: i64, digits: u32) -> String {
    if digits == 0 {
        return units.to_string();
    }
    let whole = 10_u64.pow(digits);
    let sign = if units < 0 { "-" } else { "" };
    let units = units.unsigned_abs();
    format!("{sign}{}.{:0width$}", units / whole, units % whole, width = digits as usize)
}

pub(super) fn date(date: NaiveDate) -> String {
    text(&date.format("%Y-%m-%d").to_string())
}

/// A dateTime on the clocks of the East Coast, near enough: an hour ahead from April to October.
pub(super) fn date_time(moment: NaiveDateTime) -> String {
    text(&format!("{}{}", moment.format("%Y-%m-%dT%H:%M:%S"), offset(moment)))
}

/// An instant of the same clocks.
pub(super) fn instant(moment: NaiveDateTime) -> String {
    text(&format!("{}{}", moment.format("%Y-%m-%dT%H:%M:%S%.3f"), offset(moment)))
}

fn offset(moment: NaiveDateTime) -> &'static str {
    match moment.month() {
        4..=10 => "-04:00",
        _ => "-05:00",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_keeps_the_zeros_at_its_end() {
        for (units, digits, expected) in
            [(700, 1, "70.0"), (630, 2, "6.30"), (5, 2, "0.05"), (-5, 1, "-0.5"), (7, 0, "7")]
        {
            assert_eq!(decimal(units, digits), expected);
        }
    }
}
