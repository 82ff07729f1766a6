//! `[tables.<type>]`: the date by which the table of a type is partitioned, where a site wants that.

use std::collections::BTreeMap;

use super::section::Section;
use crate::{
    fhir::{RESOURCE_TYPES, ResourceType},
    resource::{Derived, Options, Shape},
    table::{DatePart, DatePartition},
};

/// `None` after a mistake. Every table that is left in `tables` must be named after a resource type.
pub(super) fn read(
    tables: &mut Section,
    columns: Option<(bool, Options)>,
) -> Option<BTreeMap<ResourceType, DatePartition>> {
    let mut partitions = Some(BTreeMap::new());
    for (name, section) in tables.named_sections() {
        let one = match resource_type(&name) {
            Ok(resource_type) => read_one(section, resource_type, columns).map(|one| (resource_type, one)),
            Err(what) => {
                tables.mistake(&name, &what);
                None
            }
        };
        partitions = partitions.zip(one).map(|(mut partitions, (resource_type, one))| {
            partitions.insert(resource_type, one);
            partitions
        });
    }
    partitions
}

/// Names from the environment are in lower case.
fn resource_type(name: &str) -> Result<ResourceType, String> {
    let known = RESOURCE_TYPES.iter().find(|known| known.eq_ignore_ascii_case(name));
    known.copied().unwrap_or(name).parse().map_err(|error| format!("is not a key, and {error}"))
}

fn read_one(
    mut section: Section,
    resource_type: ResourceType,
    columns: Option<(bool, Options)>,
) -> Option<DatePartition> {
    let parts = section.list("partition_by", |text| {
        let known = DatePart::ALL.into_iter().find(|part| part.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is not one of year, month, day"))
    });
    let (typed, options) = columns?;
    let shape = if typed { Shape::of(resource_type, options) } else { Shape::untyped(resource_type, options) };
    let date = section.required("partition_date", |text| match dates(&shape) {
        dates if dates.contains(&text) => Ok(text.to_owned()),
        _ if !typed => Err("needs a column for each FHIR element: tables.typed = true".to_owned()),
        dates if dates.is_empty() => Err(format!("{text:?}: {resource_type} has no date to be partitioned by")),
        dates => Err(format!("{text:?} is not a date of {resource_type}; it has {}", dates.join(", "))),
    });
    let finest = parts.as_ref().map(|parts| finest(parts));
    if finest == Some(None) {
        section.mistake("partition_by", "must be [\"year\"], [\"year\", \"month\"] or [\"year\", \"month\", \"day\"]");
    }
    section.end();
    Some(DatePartition { date: date?, finest: finest.flatten()? })
}

/// The last of year, month, day, where the list begins with the year and leaves none out.
fn finest(parts: &[DatePart]) -> Option<DatePart> {
    if DatePart::ALL.starts_with(parts) { parts.last().copied() } else { None }
}

/// The names of the dates that have columns of their own.
fn dates(shape: &Shape) -> Vec<&'static str> {
    let dates = shape.derived.iter().filter_map(|derived| match derived {
        Derived::Bounds { name, .. } => Some(*name),
        Derived::Reference { .. } => None,
    });
    dates.collect()
}
