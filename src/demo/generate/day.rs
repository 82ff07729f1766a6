//! A day in the life of the world: what is corrected, what is new, what is deleted.

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
    random::Dice,
    visit,
};
use crate::{
    demo::{Body, World, json_object::text},
    fhir::ResourceType,
};

/// How many resources of each type a day created, updated and deleted; none of them is counted twice.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    pub created: BTreeMap<ResourceType, usize>,
    pub updated: BTreeMap<ResourceType, usize>,
    pub deleted: BTreeMap<ResourceType, usize>,
}

/// Lets a day go by, and changes data at its end. Days differ, even with the same seed. In a world that was not
/// generated only what can be understood changes.
pub fn next_day(world: &mut World, seed: u64) -> Changes {
    // By its instant each day has a stream of its own; stream 0 made the world.
    let mut dice = Dice::new(seed, world.now().timestamp().unsigned_abs());
    let today = world.now().date_naive();
    world.advance(Duration::from_hours(24));
    let mut changes = Changes::default();
    // Before anything is new, so that nothing is created and deleted on one day.
    delete(world, &mut dice, &mut changes, ResourceType::OBSERVATION, 3);
    delete(world, &mut dice, &mut changes, ResourceType::MEDICATION_REQUEST, 1);
    let patients = ids(world, ResourceType::PATIENT, |_| true);
    let moving = dice.choose(patients.clone(), (patients.len() / 20).max(1));
    update(world, &mut dice, &mut changes, ResourceType::PATIENT, &moving, |dice, body| {
        body.set("address", format!("[{}]", people::address(dice)));
    });
    finish_observations(world, &mut dice, &mut changes);
    resolve_conditions(world, &mut dice, &mut changes, today);
    let staff = staff(world);
    let visitors = dice.choose(patients.clone(), (patients.len() * 3 / 100).max(2));
    let mut people: Vec<Person> =
        visitors.iter().filter_map(|id| person(world.line(ResourceType::PATIENT, id)?)).collect();
    if !staff.organizations.is_empty() && !staff.practitioners.is_empty() {
        people.push(patient(world, &mut dice, &staff));
        count(&mut changes.created, ResourceType::PATIENT, 1);
        for person in people {
            let moment = NaiveDateTime::new(today, dice.office_hour());
            let visit = visit(world, &mut dice, &staff, &person, &ENCOUNTERS[..SAME_DAY], moment);
            count(&mut changes.created, ResourceType::ENCOUNTER, 1);
            let observations = observations(world, &mut dice, &person, &visit);
            count(&mut changes.created, ResourceType::OBSERVATION, observations);
        }
    }
    world.advance(Duration::from_secs(1));
    changes
}

fn delete(world: &mut World, dice: &mut Dice, changes: &mut Changes, resource_type: ResourceType, most: usize) {
    let chosen = dice.choose(ids(world, resource_type, |_| true), most);
    for id in &chosen {
        world.delete(resource_type, id);
    }
    count(&mut changes.deleted, resource_type, chosen.len());
}

/// What was preliminary becomes final.
fn finish_observations(world: &mut World, dice: &mut Dice, changes: &mut Changes) {
    let preliminary = ids(world, ResourceType::OBSERVATION, |line| line.contains("\"status\":\"preliminary\""));
    let most = (world.count(ResourceType::OBSERVATION) / 200).max(5);
    let chosen = dice.choose(preliminary, most);
    update(world, dice, changes, ResourceType::OBSERVATION, &chosen, |_, body| body.set("status", text("final")));
}

/// What was active has abated.
fn resolve_conditions(world: &mut World, dice: &mut Dice, changes: &mut Changes, today: NaiveDate) {
    let active = ids(world, ResourceType::CONDITION, |line| line.contains("\"code\":\"active\""));
    let chosen = dice.choose(active, (world.count(ResourceType::CONDITION) / 100).max(3));
    update(world, dice, changes, ResourceType::CONDITION, &chosen, |_, body| {
        body.set("clinicalStatus", status(CLINICAL, "resolved"));
        body.set("abatementDateTime", date(today));
    });
}

fn update(
    world: &mut World,
    dice: &mut Dice,
    changes: &mut Changes,
    resource_type: ResourceType,
    ids: &[String],
    mut change: impl FnMut(&mut Dice, &mut Body),
) {
    for id in ids {
        let Some(mut body) = world.line(resource_type, id).and_then(Body::read) else { continue };
        change(dice, &mut body);
        put(world, dice, resource_type, id, body);
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

/// The patient of a line, where it says everything that new resources refer to.
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
