//! Synthetic patients and what happens to them: the same seed gives the same bytes, on every platform.
//!
//! Every reference in a generated world resolves, and every line has `id`, `meta.versionId` and `meta.lastUpdated`. The
//! people are invented; codes and units are real (LOINC, SNOMED CT, `RxNorm`, UCUM), so that queries have something to find.

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
    random::Dice,
};
use super::World;
use crate::fhir::ResourceType;

/// A world of so many patients, each with about 8 encounters, 4 conditions, 60 observations and 5 medication requests.
/// Their `lastUpdated` spread over [`SPREAD`], and the clock stands behind it.
pub fn world(patients: usize, seed: u64) -> World {
    let mut world = World::new();
    let mut dice = Dice::new(seed, 0);
    let staff = staff(&mut world, &mut dice, patients);
    let mean = SPREAD / u32::try_from(patients.max(1)).unwrap_or(u32::MAX);
    for _ in 0..patients {
        let before = world.now();
        let person = patient(&mut world, &mut dice, &staff);
        history(&mut world, &mut dice, &staff, &person);
        let left = mean.saturating_sub((world.now() - before).to_std().unwrap_or_default());
        // Whole milliseconds, as `lastUpdated` has them.
        world.advance(Duration::new(left.as_secs(), left.subsec_millis() * 1_000_000));
    }
    world
}

/// Over so long a time the changes of a new world spread.
pub const SPREAD: Duration = Duration::from_hours(24 * 30);

/// A patient, as other resources speak of one.
struct Person {
    id: String,
    name: String,
    birth: NaiveDate,
    practitioner: NamedResource,
    organization: NamedResource,
}

fn staff(world: &mut World, dice: &mut Dice, patients: usize) -> Staff {
    let mut organizations = Vec::new();
    for number in 0..(patients / 20).max(3) {
        let (id, (name, body)) = (dice.id(), people::organization(dice, number));
        put(world, dice, ResourceType::ORGANIZATION, &id, body);
        organizations.push(NamedResource { id, name });
    }
    let mut practitioners = Vec::new();
    for _ in 0..(patients / 10).max(3) {
        let (id, (name, body)) = (dice.id(), people::practitioner(dice));
        put(world, dice, ResourceType::PRACTITIONER, &id, body);
        practitioners.push(NamedResource { id, name });
    }
    Staff { organizations, practitioners }
}

fn patient(world: &mut World, dice: &mut Dice, staff: &Staff) -> Person {
    let (practitioner, organization) =
        (dice.pick(&staff.practitioners).clone(), dice.pick(&staff.organizations).clone());
    let id = dice.id();
    let (name, birth, body) = people::patient(dice, &practitioner, &organization);
    if dice.percent(10) {
        // Registered by hand first, and completed later.
        put(world, dice, ResourceType::PATIENT, &id, body.clone());
    }
    put(world, dice, ResourceType::PATIENT, &id, body);
    Person { id, name, birth, practitioner, organization }
}

/// The years before the world's clock begins.
fn history(world: &mut World, dice: &mut Dice, staff: &Staff, person: &Person) {
    let start = world_start();
    let youngest = start.date() - Days::new(30);
    let visits = 6 + dice.below(5);
    let mut moments: Vec<NaiveDateTime> = (0..visits)
        .map(|_| {
            let days = (youngest - person.birth).num_days().clamp(30, 3_650).unsigned_abs();
            let day = start.date() - Days::new(8 + dice.below(days));
            day.and_time(dice.office_hour())
        })
        .collect();
    moments.sort_unstable();
    let mut conditions = Vec::new();
    for (number, moment) in moments.into_iter().enumerate() {
        let visit = visit(world, dice, staff, person, &ENCOUNTERS, moment);
        observations(world, dice, person, &visit);
        // Half of the visits find something; what is found is treated, then or later.
        if number % 2 == 0 {
            conditions.push(condition(world, dice, person, &visit));
        }
        if dice.percent(62) {
            let reason = dice.pick(&conditions);
            let (id, body) = (dice.id(), chart::medication_request(dice, person, &visit, reason));
            put(world, dice, ResourceType::MEDICATION_REQUEST, &id, body);
        }
    }
}

fn visit(
    world: &mut World,
    dice: &mut Dice,
    staff: &Staff,
    person: &Person,
    kinds: &[EncounterKind],
    moment: NaiveDateTime,
) -> Visit {
    let practitioner =
        if dice.percent(70) { person.practitioner.clone() } else { dice.pick(&staff.practitioners).clone() };
    let id = dice.id();
    let (end, body) = chart::encounter(dice, person, &practitioner, kinds, moment);
    put(world, dice, ResourceType::ENCOUNTER, &id, body);
    Visit { id, start: moment, end, practitioner }
}

fn observations(world: &mut World, dice: &mut Dice, person: &Person, visit: &Visit) -> usize {
    let bodies = chart::observations(dice, person, visit);
    let count = bodies.len();
    for body in bodies {
        let id = dice.id();
        put(world, dice, ResourceType::OBSERVATION, &id, body);
    }
    count
}

/// The id of the condition.
fn condition(world: &mut World, dice: &mut Dice, person: &Person, visit: &Visit) -> String {
    let (id, body) = (dice.id(), chart::condition(dice, person, visit));
    put(world, dice, ResourceType::CONDITION, &id, body);
    id
}

/// A resource takes its time, so that no two need have the same `lastUpdated`.
fn put(world: &mut World, dice: &mut Dice, resource_type: ResourceType, id: &str, body: super::Body) {
    world.advance(Duration::from_millis(dice.below(40)));
    world.put(resource_type, id, body);
}

fn world_start() -> NaiveDateTime {
    super::world::START.naive_utc()
}

#[cfg(test)]
mod tests;
