//! The clinical resources: encounters with their conditions, observations and prescriptions.

use chrono::{Days, NaiveDateTime, TimeDelta};

use super::{
    Person,
    catalogue::{DRUGS, EncounterKind, FINDINGS, LABS, Measure, SMOKING, US_CORE, VITALS, loinc},
    element::{
        Coding, NamedResource, coding, concept, date, date_time, decimal, instant, list, named_reference, object,
        quantity, reference, status,
    },
    random::Random,
    world_start,
};
use crate::{
    demo::json_object::{JsonObject, text},
    fhir::ResourceType,
};

/// An encounter, with what its resources refer to.
#[derive(Debug)]
pub(super) struct Visit {
    pub id: String,
    pub start: NaiveDateTime,
    pub end: NaiveDateTime,
    pub practitioner: NamedResource,
}

/// Returns the end of the encounter and the resource.
pub(super) fn encounter(
    random: &mut Random,
    person: &Person,
    practitioner: &NamedResource,
    kinds: &[EncounterKind],
    start: NaiveDateTime,
) -> (NaiveDateTime, JsonObject) {
    // The minimum of two draws makes the first entries of the list more frequent.
    let kind = &kinds[random.index(kinds.len()).min(random.index(kinds.len()))];
    let end = start + TimeDelta::minutes(random.between(kind.minutes.0, kind.minutes.1));
    let period = object([("start", date_time(start)), ("end", date_time(end))]);
    let role = Coding {
        system: "http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
        code: "PPRF",
        display: "primary performer",
    };
    let participant = object([
        ("type", list([concept(&role)])),
        ("period", period.clone()),
        ("individual", named_reference(ResourceType::PRACTITIONER, practitioner)),
    ]);
    let patient = NamedResource { id: person.id.clone(), name: person.name.clone() };
    let resource = JsonObject::from([
        ("status", text("finished")),
        ("class", coding(&kind.class)),
        ("type", list([concept(&kind.reason)])),
        ("subject", named_reference(ResourceType::PATIENT, &patient)),
        ("participant", list([participant])),
        ("period", period),
        ("serviceProvider", named_reference(ResourceType::ORGANIZATION, &person.organization)),
    ]);
    (end, resource)
}

pub(super) fn condition(random: &mut Random, person: &Person, visit: &Visit) -> JsonObject {
    let finding = random.pick(&FINDINGS);
    let abated = visit.start.date() + Days::new(7 + random.below(21));
    let is_over = finding.passes && abated < world_start().date();
    let clinical = if is_over { "resolved" } else { "active" };
    let category = status("http://terminology.hl7.org/CodeSystem/condition-category", "encounter-diagnosis");
    let resource = JsonObject::from([
        ("clinicalStatus", status(CLINICAL, clinical)),
        ("verificationStatus", status("http://terminology.hl7.org/CodeSystem/condition-ver-status", "confirmed")),
        ("category", list([category])),
        ("code", concept(&finding.code)),
        ("subject", reference(ResourceType::PATIENT, &person.id)),
        ("encounter", reference(ResourceType::ENCOUNTER, &visit.id)),
        ("onsetDateTime", onset(random, visit.start)),
    ]);
    let resource = if is_over { resource.with("abatementDateTime", date(abated)) } else { resource };
    resource.with("recordedDate", date_time(visit.start))
}

/// The system of `Condition.clinicalStatus`.
pub(super) const CLINICAL: &str = "http://terminology.hl7.org/CodeSystem/condition-clinical";

pub(super) fn medication_request(random: &mut Random, person: &Person, visit: &Visit, condition: &str) -> JsonObject {
    let drug = random.pick(&DRUGS);
    let state = if random.percent(30) { "active" } else { "completed" };
    let sentence = format!("Take 1 by mouth, {} a day", drug.per_day);
    let repeat =
        object([("frequency", drug.per_day.to_string()), ("period", "1.0".to_owned()), ("periodUnit", text("d"))]);
    let dose = object([("doseQuantity", object([("value", "1".to_owned())]))]);
    let dosage = object([
        ("sequence", "1".to_owned()),
        ("text", text(&sentence)),
        ("timing", object([("repeat", repeat)])),
        ("doseAndRate", list([dose])),
    ]);
    let dispense = object([("numberOfRepeatsAllowed", random.below(6).to_string())]);
    JsonObject::from([
        ("status", text(state)),
        ("intent", text("order")),
        ("medicationCodeableConcept", concept(&drug.code)),
        ("subject", reference(ResourceType::PATIENT, &person.id)),
        ("encounter", reference(ResourceType::ENCOUNTER, &visit.id)),
        ("authoredOn", date_time(visit.end)),
        ("requester", named_reference(ResourceType::PRACTITIONER, &visit.practitioner)),
        ("reasonReference", list([reference(ResourceType::CONDITION, condition)])),
        ("dosageInstruction", list([dosage])),
        ("dispenseRequest", dispense),
    ])
}

/// The vital signs and the laboratory results of a visit.
pub(super) fn observations(random: &mut Random, person: &Person, visit: &Visit) -> Vec<JsonObject> {
    let mut resources = vec![blood_pressure(random, person, visit)];
    for vital in &VITALS {
        resources.push(measured(random, person, visit, vital, "vital-signs"));
    }
    resources.extend(height_and_weight(random, person, visit));
    for _ in 0..=u64::from(random.percent(20)) {
        let lab = random.pick(&LABS);
        resources.push(measured(random, person, visit, lab, "laboratory"));
    }
    if random.percent(20) {
        resources.push(smoking(random, person, visit));
    }
    resources
}

fn blood_pressure(random: &mut Random, person: &Person, visit: &Visit) -> JsonObject {
    let systolic = random.between(98, 168);
    let diastolic = (systolic * 10 / 16).clamp(58, 104) + random.between(-4, 8);
    let component = |code: Coding, value: i64| {
        object([("code", concept(&code)), ("valueQuantity", quantity(&value.to_string(), "mm[Hg]", "mm[Hg]"))])
    };
    let panel = loinc("85354-9", "Blood pressure panel with all children optional");
    let components = list([
        component(loinc("8480-6", "Systolic blood pressure"), systolic),
        component(loinc("8462-4", "Diastolic blood pressure"), diastolic),
    ]);
    observation(random, person, visit, &panel, "vital-signs").with("component", components)
}

fn height_and_weight(random: &mut Random, person: &Person, visit: &Visit) -> [JsonObject; 2] {
    let age_years = (visit.start.date() - person.birth).num_days() / 365;
    // In millimetres; children grow until about eighteen.
    let height = (600 + age_years * 63).clamp(600, 1_690) + random.between(-60, 130);
    // In hundreds of grams, from a body mass index between 18 and 34.
    let weight = height * height * random.between(18, 34) / 100_000;
    let of = |random: &mut Random, code: Coding, value: i64, unit: &'static str| {
        let resource = observation(random, person, visit, &code, "vital-signs");
        resource.with("valueQuantity", quantity(&decimal(value, 1), unit, unit))
    };
    [
        of(random, loinc("8302-2", "Body height"), height, "cm"),
        of(random, loinc("29463-7", "Body weight"), weight, "kg"),
    ]
}

fn measured(random: &mut Random, person: &Person, visit: &Visit, measure: &Measure, category: &str) -> JsonObject {
    let value = random.between(measure.bounds.0, measure.bounds.1);
    let resource = observation(random, person, visit, &measure.code, category);
    resource.with("valueQuantity", quantity(&decimal(value, measure.digits), measure.unit, measure.ucum))
}

fn smoking(random: &mut Random, person: &Person, visit: &Visit) -> JsonObject {
    let code = loinc("72166-2", "Tobacco smoking status");
    let resource = observation(random, person, visit, &code, "social-history");
    let profile = object([("profile", list([text(&format!("{US_CORE}/us-core-smokingstatus"))]))]);
    resource.with("meta", profile).with("valueCodeableConcept", concept(random.pick(&SMOKING)))
}

/// An Observation without its value.
fn observation(random: &mut Random, person: &Person, visit: &Visit, code: &Coding, category: &str) -> JsonObject {
    let state = if random.percent(3) { "preliminary" } else { "final" };
    let category = status("http://terminology.hl7.org/CodeSystem/observation-category", category);
    let issued = visit.end + TimeDelta::milliseconds(random.between(0, 900_000));
    JsonObject::from([
        ("status", text(state)),
        ("category", list([category])),
        ("code", concept(code)),
        ("subject", reference(ResourceType::PATIENT, &person.id)),
        ("encounter", reference(ResourceType::ENCOUNTER, &visit.id)),
        ("effectiveDateTime", date_time(visit.start)),
        ("issued", instant(issued)),
        ("performer", list([reference(ResourceType::PRACTITIONER, &visit.practitioner.id)])),
    ])
}

/// A condition's onset, with a precision between a year and a second.
fn onset(random: &mut Random, start: NaiveDateTime) -> String {
    match random.below(10) {
        0 => text(&start.format("%Y").to_string()),
        1 => text(&start.format("%Y-%m").to_string()),
        2..=4 => date(start.date()),
        _ => date_time(start),
    }
}
