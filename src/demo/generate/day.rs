//! One day on the server: resources are created, updated and deleted.

use std::{collections::BTreeMap, time::Duration};

use chrono::{NaiveDate, NaiveDateTime};
use serde_json::Value;

use super::{
    Person,
    catalogue::{ENCOUNTERS, SAME_DAY},
    chart::CLINICAL,
    element::{NamedResource, date, status},
    observations, patient,
    people::{self, Staff},
    put,
    random::Random,
    visit,
};
use crate::{
    demo::{JsonObject, World, json_object::text},
    fhir::ResourceType,
};

/// How many resources of each type one day created, updated and deleted; no resource is counted twice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    pub created: BTreeMap<ResourceType, usize>,
    pub updated: BTreeMap<ResourceType, usize>,
    pub deleted: BTreeMap<ResourceType, usize>,
}

/// Moves the clock by a day and changes data at its end. Days differ, even with the same seed. In a world that was not
/// generated, resources that lack the expected elements are left unchanged.
pub fn next_day(world: &mut World, seed: u64) -> Changes {
    // The time of the day selects its stream of random numbers; stream 0 generated the world.
    let mut random = Random::new(seed, world.now().timestamp().unsigned_abs());
    let today = world.now().date_naive();
    world.advance(Duration::from_hours(24));
    let mut changes = Changes::default();
    // Deletions first, so that no resource is created and deleted on the same day.
    delete(world, &mut random, &mut changes, ResourceType::OBSERVATION, 3);
    delete(world, &mut random, &mut changes, ResourceType::MEDICATION_REQUEST, 1);
    let patients = ids(world, ResourceType::PATIENT, |_| true);
    let moving = random.choose(patients.clone(), (patients.len() / 20).max(1));
    update(world, &mut random, &mut changes, ResourceType::PATIENT, &moving, |random, resource| {
        resource.set("address", format!("[{}]", people::address(random)));
    });
    finish_observations(world, &mut random, &mut changes);
    resolve_conditions(world, &mut random, &mut changes, today);
    let staff = staff(world);
    let visitors = random.choose(patients.clone(), (patients.len() * 3 / 100).max(2));
    let mut people: Vec<Person> =
        visitors.iter().filter_map(|id| person(world.line(ResourceType::PATIENT, id)?)).collect();
    if !staff.organizations.is_empty() && !staff.practitioners.is_empty() {
        people.push(patient(world, &mut random, &staff));
        count(&mut changes.created, ResourceType::PATIENT, 1);
        for person in people {
            let moment = NaiveDateTime::new(today, random.office_hour());
            let visit = visit(world, &mut random, &staff, &person, &ENCOUNTERS[..SAME_DAY], moment);
            count(&mut changes.created, ResourceType::ENCOUNTER, 1);
            let observations = observations(world, &mut random, &person, &visit);
            count(&mut changes.created, ResourceType::OBSERVATION, observations);
        }
    }
    world.advance(Duration::from_secs(1));
    changes
}

fn delete(world: &mut World, random: &mut Random, changes: &mut Changes, resource_type: ResourceType, max: usize) {
    let chosen = random.choose(ids(world, resource_type, |_| true), max);
    for id in &chosen {
        world.delete(resource_type, id);
    }
    count(&mut changes.deleted, resource_type, chosen.len());
}

/// Preliminary observations become final.
fn finish_observations(world: &mut World, random: &mut Random, changes: &mut Changes) {
    let preliminary = ids(world, ResourceType::OBSERVATION, |line| line.contains("\"status\":\"preliminary\""));
    let max = (world.count(ResourceType::OBSERVATION) / 200).max(5);
    let chosen = random.choose(preliminary, max);
    update(world, random, changes, ResourceType::OBSERVATION, &chosen, |_, resource| {
        resource.set("status", text("final"));
    });
}

/// Active conditions are resolved.
fn resolve_conditions(world: &mut World, random: &mut Random, changes: &mut Changes, today: NaiveDate) {
    let active = ids(world, ResourceType::CONDITION, |line| line.contains("\"code\":\"active\""));
    let chosen = random.choose(active, (world.count(ResourceType::CONDITION) / 100).max(3));
    update(world, random, changes, ResourceType::CONDITION, &chosen, |_, resource| {
        resource.set("clinicalStatus", status(CLINICAL, "resolved"));
        resource.set("abatementDateTime", date(today));
    });
}

fn update(
    world: &mut World,
    random: &mut Random,
    changes: &mut Changes,
    resource_type: ResourceType,
    ids: &[String],
    mut change: impl FnMut(&mut Random, &mut JsonObject),
) {
    for id in ids {
        let Some(mut resource) = world.line(resource_type, id).and_then(JsonObject::read) else { continue };
        change(random, &mut resource);
        put(world, random, resource_type, id, resource);
        count(&mut changes.updated, resource_type, 1);
    }
}

fn count(counts: &mut BTreeMap<ResourceType, usize>, resource_type: ResourceType, more: usize) {
    if more > 0 {
        *counts.entry(resource_type).or_default() += more;
    }
}

fn ids(world: &World, resource_type: ResourceType, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let resources = world.resources(resource_type).filter(|(_, line)| wanted(line));
    resources.map(|(id, _)| id.to_owned()).collect()
}

fn staff(world: &World) -> Staff {
    let staff_of = |resource_type, name: fn(&Value) -> Option<String>| {
        let resources = world.resources(resource_type);
        let named = |(id, line): (&str, &str)| {
            Some(NamedResource { id: id.to_owned(), name: name(&serde_json::from_str(line).ok()?)? })
        };
        resources.filter_map(named).collect()
    };
    Staff {
        organizations: staff_of(ResourceType::ORGANIZATION, |resource| Some(resource["name"].as_str()?.to_owned())),
        practitioners: staff_of(ResourceType::PRACTITIONER, |resource| Some(format!("Dr. {}", full_name(resource)?))),
    }
}

/// The patient of a line; `None` if the line lacks an element that new resources refer to.
fn person(line: &str) -> Option<Person> {
    let resource: Value = serde_json::from_str(line).ok()?;
    let birth = resource["birthDate"].as_str()?;
    let birth = format!("{birth}{}", "-01-01".get(birth.len().checked_sub(4)?..)?).parse().ok()?;
    Some(Person {
        id: resource["id"].as_str()?.to_owned(),
        name: full_name(&resource)?,
        birth,
        practitioner: referenced(&resource["generalPractitioner"][0])?,
        organization: referenced(&resource["managingOrganization"])?,
    })
}

fn full_name(resource: &Value) -> Option<String> {
    let name = &resource["name"][0];
    Some(format!("{} {}", name["given"][0].as_str()?, name["family"].as_str()?))
}

fn referenced(reference: &Value) -> Option<NamedResource> {
    let (_, id) = reference["reference"].as_str()?.split_once('/')?;
    Some(NamedResource { id: id.to_owned(), name: reference["display"].as_str()?.to_owned() })
}
