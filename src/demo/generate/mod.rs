//! Synthetic patients with their histories: the same seed gives the same bytes on every platform.
//!
//! Every reference in a generated world resolves, and every line has `id`, `meta.versionId` and `meta.lastUpdated`.
//! The people are invented; the codes and units are real (LOINC, SNOMED CT, `RxNorm`, UCUM), so that realistic queries
//! return rows.

mod catalogue;
mod chart;
mod day;
mod random;
mod element;
mod people;

use std::time::Duration;

use chrono::{Days, NaiveDate, NaiveDateTime};

pub use self::day::{Changes, next_day};
use self::{
    catalogue::{ENCOUNTERS, EncounterKind},
    chart::Visit,
    element::NamedResource,
    people::Staff,
    random::Random,
};
use super::World;
use crate::fhir::ResourceType;

/// A world of this many patients, each with about 8 encounters, 4 conditions, 60 observations and 5 medication
/// requests. Their `lastUpdated` are spread over [`SPREAD`]; the clock is at its end.
pub fn world(patients: usize, seed: u64) -> World {
    let mut world = World::new();
    let mut random = Random::new(seed, 0);
    let staff = staff(&mut world, &mut random, patients);
    let mean = SPREAD / u32::try_from(patients.max(1)).unwrap_or(u32::MAX);
    for _ in 0..patients {
        let before = world.now();
        let person = patient(&mut world, &mut random, &staff);
        history(&mut world, &mut random, &staff, &person);
        let left = mean.saturating_sub((world.now() - before).to_std().unwrap_or_default());
        // Whole milliseconds, as `lastUpdated` has them.
        world.advance(Duration::new(left.as_secs(), left.subsec_millis() * 1_000_000));
    }
    world
}

/// The time span of the changes in a new world.
pub const SPREAD: Duration = Duration::from_hours(24 * 30);

/// A patient, with what other resources refer to.
struct Person {
    id: String,
    name: String,
    birth: NaiveDate,
    practitioner: NamedResource,
    organization: NamedResource,
}

fn staff(world: &mut World, random: &mut Random, patients: usize) -> Staff {
    let mut organizations = Vec::new();
    for number in 0..(patients / 20).max(3) {
        let (id, (name, resource)) = (random.id(), people::organization(random, number));
        put(world, random, ResourceType::ORGANIZATION, &id, resource);
        organizations.push(NamedResource { id, name });
    }
    let mut practitioners = Vec::new();
    for _ in 0..(patients / 10).max(3) {
        let (id, (name, resource)) = (random.id(), people::practitioner(random));
        put(world, random, ResourceType::PRACTITIONER, &id, resource);
        practitioners.push(NamedResource { id, name });
    }
    Staff { organizations, practitioners }
}

fn patient(world: &mut World, random: &mut Random, staff: &Staff) -> Person {
    let (practitioner, organization) =
        (random.pick(&staff.practitioners).clone(), random.pick(&staff.organizations).clone());
    let id = random.id();
    let (name, birth, resource) = people::patient(random, &practitioner, &organization);
    if random.percent(10) {
        // Stored twice, as if the record was completed later.
        put(world, random, ResourceType::PATIENT, &id, resource.clone());
    }
    put(world, random, ResourceType::PATIENT, &id, resource);
    Person { id, name, birth, practitioner, organization }
}

/// The patient's encounters of the years before the world's clock starts.
fn history(world: &mut World, random: &mut Random, staff: &Staff, person: &Person) {
    let start = world_start();
    let youngest = start.date() - Days::new(30);
    let visits = 6 + random.below(5);
    let mut moments: Vec<NaiveDateTime> = (0..visits)
        .map(|_| {
            let days = (youngest - person.birth).num_days().clamp(30, 3_650).unsigned_abs();
            let day = start.date() - Days::new(8 + random.below(days));
            day.and_time(random.office_hour())
        })
        .collect();
    moments.sort_unstable();
    let mut conditions = Vec::new();
    for (number, moment) in moments.into_iter().enumerate() {
        let visit = visit(world, random, staff, person, &ENCOUNTERS, moment);
        observations(world, random, person, &visit);
        // Every second visit ends with a diagnosis, and prescriptions refer to one of the diagnoses so far.
        if number % 2 == 0 {
            conditions.push(condition(world, random, person, &visit));
        }
        if random.percent(62) {
            let reason = random.pick(&conditions);
            let (id, resource) = (random.id(), chart::medication_request(random, person, &visit, reason));
            put(world, random, ResourceType::MEDICATION_REQUEST, &id, resource);
        }
    }
}

fn visit(
    world: &mut World,
    random: &mut Random,
    staff: &Staff,
    person: &Person,
    kinds: &[EncounterKind],
    moment: NaiveDateTime,
) -> Visit {
    let practitioner =
        if random.percent(70) { person.practitioner.clone() } else { random.pick(&staff.practitioners).clone() };
    let id = random.id();
    let (end, resource) = chart::encounter(random, person, &practitioner, kinds, moment);
    put(world, random, ResourceType::ENCOUNTER, &id, resource);
    Visit { id, start: moment, end, practitioner }
}

fn observations(world: &mut World, random: &mut Random, person: &Person, visit: &Visit) -> usize {
    let resources = chart::observations(random, person, visit);
    let count = resources.len();
    for resource in resources {
        let id = random.id();
        put(world, random, ResourceType::OBSERVATION, &id, resource);
    }
    count
}

/// Returns the id of the condition.
fn condition(world: &mut World, random: &mut Random, person: &Person, visit: &Visit) -> String {
    let (id, resource) = (random.id(), chart::condition(random, person, visit));
    put(world, random, ResourceType::CONDITION, &id, resource);
    id
}

/// Moves the clock a little before each resource, so that most of them differ in `lastUpdated`.
fn put(world: &mut World, random: &mut Random, resource_type: ResourceType, id: &str, resource: super::JsonObject) {
    world.advance(Duration::from_millis(random.below(40)));
    world.put(resource_type, id, resource);
}

fn world_start() -> NaiveDateTime {
    super::world::START.naive_utc()
}

#[cfg(test)]
mod tests;
