//! The chart: encounters, and what was found, measured and prescribed in them.

use chrono::{Days, NaiveDateTime, TimeDelta};

use super::{
    Person,
    catalogue::{DRUGS, EncounterKind, FINDINGS, LABS, Measure, SMOKING, US_CORE, VITALS, loinc},
    element::{
        Coding, NamedResource, coding, concept, date, date_time, decimal, instant, list, named_reference, object,
        quantity, reference, status,
    },
    random::Dice,
    world_start,
};
use crate::{
    demo::json_object::{Body, text},
    fhir::ResourceType,
};

/// An encounter, as what happens in it refers to it.
#[derive(Debug)]
pub(super) struct Visit {
    pub id: String,
    pub start: NaiveDateTime,
    pub end: NaiveDateTime,
    pub practitioner: NamedResource,
}

/// Its end and the resource.
pub(super) fn encounter(
    dice: &mut Dice,
    person: &Person,
    practitioner: &NamedResource,
    kinds: &[EncounterKind],
    start: NaiveDateTime,
) -> (NaiveDateTime, Body) {
    // The first of the list are the many.
    let kind = &kinds[dice.place(kinds.len()).min(dice.place(kinds.len()))];
    let end = start + TimeDelta::minutes(dice.between(kind.minutes.0, kind.minutes.1));
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
    let body = Body::from([
        ("status", text("finished")),
        ("class", coding(&kind.class)),
        ("type", list([concept(&kind.reason)])),
        ("subject", named_reference(ResourceType::PATIENT, &patient)),
        ("participant", list([participant])),
        ("period", period),
        ("serviceProvider", named_reference(ResourceType::ORGANIZATION, &person.organization)),
    ]);
    (end, body)
}

pub(super) fn condition(dice: &mut Dice, person: &Person, visit: &Visit) -> Body {
    let finding = dice.pick(&FINDINGS);
    let abated = visit.start.date() + Days::new(7 + dice.below(21));
    let is_over = finding.passes && abated < world_start().date();
    let clinical = if is_over { "resolved" } else { "active" };
    let category = status("http://terminology.hl7.org/CodeSystem/condition-category", "encounter-diagnosis");
    let body = Body::from([
        ("clinicalStatus", status(CLINICAL, clinical)),
        ("verificationStatus", status("http://terminology.hl7.org/CodeSystem/condition-ver-status", "confirmed")),
        ("category", list([category])),
        ("code", concept(&finding.code)),
        ("subject", reference(ResourceType::PATIENT, &person.id)),
        ("encounter", reference(ResourceType::ENCOUNTER, &visit.id)),
        ("onsetDateTime", onset(dice, visit.start)),
    ]);
    let body = if is_over { body.with("abatementDateTime", date(abated)) } else { body };
    body.with("recordedDate", date_time(visit.start))
}

/// The system of `Condition.clinicalStatus`.
pub(super) const CLINICAL: &str = "http://terminology.hl7.org/CodeSystem/condition-clinical";

pub(super) fn medication_request(dice: &mut Dice, person: &Person, visit: &Visit, condition: &str) -> Body {
    let drug = dice.pick(&DRUGS);
    let state = if dice.percent(30) { "active" } else { "completed" };
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
    let dispense = object([("numberOfRepeatsAllowed", dice.below(6).to_string())]);
    Body::from([
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

/// The vital signs of a visit, and what the laboratory found.
pub(super) fn observations(dice: &mut Dice, person: &Person, visit: &Visit) -> Vec<Body> {
    let mut bodies = vec![blood_pressure(dice, person, visit)];
    for vital in &VITALS {
        bodies.push(measured(dice, person, visit, vital, "vital-signs"));
    }
    bodies.extend(height_and_weight(dice, person, visit));
    for _ in 0..=u64::from(dice.percent(20)) {
        let lab = dice.pick(&LABS);
        bodies.push(measured(dice, person, visit, lab, "laboratory"));
    }
    if dice.percent(20) {
        bodies.push(smoking(dice, person, visit));
    }
    bodies
}

fn blood_pressure(dice: &mut Dice, person: &Person, visit: &Visit) -> Body {
    let systolic = dice.between(98, 168);
    let diastolic = (systolic * 10 / 16).clamp(58, 104) + dice.between(-4, 8);
    let component = |code: Coding, value: i64| {
        object([("code", concept(&code)), ("valueQuantity", quantity(&value.to_string(), "mm[Hg]", "mm[Hg]"))])
    };
    let panel = loinc("85354-9", "Blood pressure panel with all children optional");
    let components = list([
        component(loinc("8480-6", "Systolic blood pressure"), systolic),
        component(loinc("8462-4", "Diastolic blood pressure"), diastolic),
    ]);
    observation(dice, person, visit, &panel, "vital-signs").with("component", components)
}

fn height_and_weight(dice: &mut Dice, person: &Person, visit: &Visit) -> [Body; 2] {
    let age_years = (visit.start.date() - person.birth).num_days() / 365;
    // Millimetres: children grow until about eighteen.
    let height = (600 + age_years * 63).clamp(600, 1_690) + dice.between(-60, 130);
    // Hundreds of grams, from a body mass index between 18 and 34.
    let weight = height * height * dice.between(18, 34) / 100_000;
    let of = |dice: &mut Dice, code: Coding, value: i64, unit: &'static str| {
        let body = observation(dice, person, visit, &code, "vital-signs");
        body.with("valueQuantity", quantity(&decimal(value, 1), unit, unit))
    };
    [of(dice, loinc("8302-2", "Body height"), height, "cm"), of(dice, loinc("29463-7", "Body weight"), weight, "kg")]
}

fn measured(dice: &mut Dice, person: &Person, visit: &Visit, measure: &Measure, category: &str) -> Body {
    let value = dice.between(measure.bounds.0, measure.bounds.1);
    let body = observation(dice, person, visit, &measure.code, category);
    body.with("valueQuantity", quantity(&decimal(value, measure.digits), measure.unit, measure.ucum))
}

fn smoking(dice: &mut Dice, person: &Person, visit: &Visit) -> Body {
    let code = loinc("72166-2", "Tobacco smoking status");
    let body = observation(dice, person, visit, &code, "social-history");
    let profile = object([("profile", list([text(&format!("{US_CORE}/us-core-smokingstatus"))]))]);
    body.with("meta", profile).with("valueCodeableConcept", concept(dice.pick(&SMOKING)))
}

/// All of an Observation but its value.
fn observation(dice: &mut Dice, person: &Person, visit: &Visit, code: &Coding, category: &str) -> Body {
    let state = if dice.percent(3) { "preliminary" } else { "final" };
    let category = status("http://terminology.hl7.org/CodeSystem/observation-category", category);
    let issued = visit.end + TimeDelta::milliseconds(dice.between(0, 900_000));
    Body::from([
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

/// People remember the day of what began lately, and the year or the month of the rest.
fn onset(dice: &mut Dice, start: NaiveDateTime) -> String {
    match dice.below(10) {
        0 => text(&start.format("%Y").to_string()),
        1 => text(&start.format("%Y-%m").to_string()),
        2..=4 => date(start.date()),
        _ => date_time(start),
    }
}
