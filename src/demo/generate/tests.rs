//! What always holds for synthetic patients.

use std::{collections::HashSet, time::Instant};

use serde_json::Value;

use super::*;
use crate::demo::JsonObject;
use crate::fhir::parse_instant;

fn lines(world: &World) -> Vec<String> {
    let types: Vec<_> = world.types().collect();
    types.into_iter().flat_map(|of| world.lines(of, None)).map(|line| line.to_string()).collect()
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("reference").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn assert_that_references_resolve(world: &World) {
    let resources: Vec<Value> = lines(world).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let known: HashSet<String> = resources
        .iter()
        .map(|resource| format!("{}/{}", resource["resourceType"].as_str().unwrap(), resource["id"].as_str().unwrap()))
        .collect();
    let mut found = Vec::new();
    for resource in &resources {
        references(resource, &mut found);
    }
    assert!(found.len() > resources.len());
    for reference in found {
        assert!(known.contains(&reference), "{reference} does not resolve");
    }
}

#[test]
fn only_the_same_seed_gives_the_same_bytes() {
    let (mut one, mut same, mut other) = (world(5, 7), world(5, 7), world(5, 8));
    assert_eq!(lines(&one), lines(&same));
    assert_ne!(lines(&one), lines(&other));
    assert_eq!(next_day(&mut one, 1), next_day(&mut same, 1));
    next_day(&mut other, 2);
    assert_eq!(lines(&one), lines(&same));
}

/// A change of the generated data changes this number, and with it the data of the demo and of the benches.
#[test]
fn the_bytes_are_the_same_on_every_platform() {
    let mut fnv = 0xcbf2_9ce4_8422_2325_u64;
    for byte in lines(&world(3, 42)).join("\n").bytes() {
        fnv = (fnv ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    assert_eq!(fnv, 13_774_424_689_154_886_174, "fnv-1a of all lines");
}

#[test]
fn every_reference_resolves_before_and_after_a_day() {
    let mut world = world(12, 3);
    assert_that_references_resolve(&world);
    next_day(&mut world, 3);
    assert_that_references_resolve(&world);
}

#[test]
fn every_line_has_an_id_a_version_and_a_time_that_is_not_in_the_future() {
    let world = world(6, 1);
    for line in lines(&world) {
        let resource: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(resource["id"].as_str().map(str::len), Some(36));
        assert!(resource["meta"]["versionId"].as_str().unwrap().parse::<u64>().unwrap() > 0);
        let updated = parse_instant(resource["meta"]["lastUpdated"].as_str().unwrap()).unwrap();
        assert!(updated >= crate::demo::world::START && updated <= world.now(), "{updated}");
        let issued = resource["issued"].as_str().map(|issued| parse_instant(issued).unwrap());
        assert!(issued.is_none_or(|issued| issued <= world.now()));
    }
}

#[test]
fn a_hundred_patients_make_about_eight_thousand_resources_quickly() {
    let begun = Instant::now();
    let world = world(100, 1);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for (resource_type, min, max) in [
        (ResourceType::PATIENT, 100, 100),
        (ResourceType::ORGANIZATION, 5, 5),
        (ResourceType::PRACTITIONER, 10, 10),
        (ResourceType::ENCOUNTER, 750, 850),
        (ResourceType::CONDITION, 370, 470),
        (ResourceType::OBSERVATION, 5_500, 6_500),
        (ResourceType::MEDICATION_REQUEST, 430, 570),
    ] {
        let count = world.count(resource_type);
        assert!((min..=max).contains(&count), "{resource_type}: {count}");
    }
}

#[test]
fn some_decimals_have_trailing_zeros_and_some_dates_are_partial() {
    let lines = lines(&world(20, 1)).join("\n");
    let value = |wanted: &str| lines.contains(wanted);
    assert!(value("0,\"unit\":\"kg\""), "no decimal has a trailing zero");
    assert!(
        lines.lines().any(|line| JsonObject::read(line).unwrap().get("birthDate").is_some_and(|date| date.len() < 12))
    );
    assert!(value("\"system\":\"http://unitsofmeasure.org\",\"code\":\"mm[Hg]\""));
    assert!(value("us-core-race"));
}

#[test]
fn a_day_changes_exactly_what_it_reports() {
    let mut world = world(40, 9);
    let since = world.now();
    let changes = next_day(&mut world, 9);
    for resource_type in world.types() {
        let count = |counts: &std::collections::BTreeMap<ResourceType, usize>| {
            counts.get(&resource_type).copied().unwrap_or_default()
        };
        let sent = count(&changes.created) + count(&changes.updated);
        assert_eq!(world.lines(resource_type, Some(since)).len(), sent, "{resource_type}");
        assert_eq!(world.deleted(resource_type, since).len(), count(&changes.deleted), "{resource_type}");
    }
    assert_eq!(changes.created[&ResourceType::PATIENT], 1);
    assert_eq!(changes.deleted[&ResourceType::OBSERVATION], 3);
    assert_eq!(changes.deleted[&ResourceType::MEDICATION_REQUEST], 1);
    assert!(changes.updated.contains_key(&ResourceType::CONDITION));
    assert!(changes.updated.contains_key(&ResourceType::OBSERVATION));
    assert_ne!(next_day(&mut world, 9), Changes::default(), "another day, with the same seed");
}

#[test]
fn a_day_can_pass_in_a_world_that_was_not_generated() {
    let mut world = World::new();
    assert_eq!(next_day(&mut world, 1), Changes::default());
    world.put(ResourceType::PATIENT, "p1", JsonObject::default());
    assert_eq!(next_day(&mut world, 1).updated[&ResourceType::PATIENT], 1);
}
