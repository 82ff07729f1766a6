//! FHIR's data types as JSON text.

use chrono::{Datelike, NaiveDate, NaiveDateTime};

use crate::{
    demo::json_object::{JsonObject, text},
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
    JsonObject::from(members).to_string()
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

/// A `CodeableConcept` without text, as for a status.
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

/// A UCUM quantity; `value` is the text of the decimal.
pub(super) fn quantity(value: &str, unit: &str, ucum: &str) -> String {
    object([
        ("value", value.to_owned()),
        ("unit", text(unit)),
        ("system", text("http://unitsofmeasure.org")),
        ("code", text(ucum)),
    ])
}

/// The text of `units / 10^digits` with this many decimal places: `(630, 2)` is `6.30`.
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

/// A dateTime in US Eastern time; daylight saving time is taken to be April to October.
pub(super) fn date_time(moment: NaiveDateTime) -> String {
    text(&format!("{}{}", moment.format("%Y-%m-%dT%H:%M:%S"), offset(moment)))
}

/// An instant in the same time zone.
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
    fn a_decimal_keeps_its_trailing_zeros() {
        for (units, digits, expected) in
            [(700, 1, "70.0"), (630, 2, "6.30"), (5, 2, "0.05"), (-5, 1, "-0.5"), (7, 0, "7")]
        {
            assert_eq!(decimal(units, digits), expected);
        }
    }
}
