//! Patients, practitioners and organizations, with names and addresses.

use chrono::{Days, NaiveDate};

use super::{
    catalogue::{CITIES, FAMILY_NAMES, FEMALE_NAMES, HOUSES, MALE_NAMES, RACES, SPECIALTIES, STREETS, US_CORE},
    element::{NamedResource, coding, concept, date, identifier, list, named_reference, object, status},
    random::Random,
    world_start,
};
use crate::{
    demo::json_object::{JsonObject, text},
    fhir::ResourceType,
};

/// The organizations and practitioners of a world; neither list is empty.
#[derive(Debug)]
pub(super) struct Staff {
    pub organizations: Vec<NamedResource>,
    pub practitioners: Vec<NamedResource>,
}

/// The name and the resource.
pub(super) fn organization(random: &mut Random, number: usize) -> (String, JsonObject) {
    let (city, ..) = CITIES[number % CITIES.len()];
    let name = format!("{city} {}", HOUSES[number / CITIES.len() % HOUSES.len()]);
    let kind = status("http://terminology.hl7.org/CodeSystem/organization-type", "prov");
    let resource = JsonObject::from([
        ("identifier", list([npi(random)])),
        ("active", "true".to_owned()),
        ("type", list([kind])),
        ("name", text(&name)),
        ("telecom", list([phone(random, "work")])),
        ("address", list([address_in(random, number % CITIES.len())])),
    ]);
    (name, resource)
}

/// The name and the resource.
pub(super) fn practitioner(random: &mut Random) -> (String, JsonObject) {
    let (gender, given) = gender_and_name(random);
    let family = random.word(&FAMILY_NAMES);
    let email = format!("{given}.{family}@clinic.example").to_lowercase().replace(['\'', ' '], "");
    let name = object([
        ("use", text("official")),
        ("family", text(family)),
        ("given", list([text(given)])),
        ("prefix", list([text("Dr.")])),
    ]);
    let contact = object([("system", text("email")), ("value", text(&email)), ("use", text("work"))]);
    let qualification = object([("code", concept(random.pick(&SPECIALTIES)))]);
    let resource = JsonObject::from([
        ("identifier", list([npi(random)])),
        ("active", "true".to_owned()),
        ("name", list([name])),
        ("telecom", list([contact])),
        ("gender", text(gender)),
        ("qualification", list([qualification])),
    ]);
    (format!("Dr. {given} {family}"), resource)
}

/// The name, the day of birth and the resource.
pub(super) fn patient(
    random: &mut Random,
    practitioner: &NamedResource,
    organization: &NamedResource,
) -> (String, NaiveDate, JsonObject) {
    let (gender, given) = gender_and_name(random);
    let family = random.word(&FAMILY_NAMES);
    let birth = world_start().date() - Days::new(400 + random.below(90 * 365));
    let resource = JsonObject::from([
        ("meta", object([("profile", list([text(&format!("{US_CORE}/us-core-patient"))]))])),
        ("text", narrative(&format!("{given} {family}, {gender}, born {}", birth.format("%Y")))),
        ("extension", list([race(random), ethnicity(random)])),
        ("identifier", list(identifiers(random))),
        ("active", "true".to_owned()),
        ("name", list([official_name(random, family, given, gender)])),
        ("telecom", list([phone(random, "home")])),
        ("gender", text(gender)),
        ("birthDate", birth_date(random, birth)),
        ("address", list([address(random)])),
        ("maritalStatus", marital_status(random)),
        ("communication", list([language(random)])),
        ("generalPractitioner", list([named_reference(ResourceType::PRACTITIONER, practitioner)])),
        ("managingOrganization", named_reference(ResourceType::ORGANIZATION, organization)),
    ]);
    (format!("{given} {family}"), birth, resource)
}

/// An address in any city of the catalogue.
pub(super) fn address(random: &mut Random) -> String {
    let city = random.index(CITIES.len());
    address_in(random, city)
}

fn address_in(random: &mut Random, city: usize) -> String {
    let (city, state, postal_code) = CITIES[city];
    let line = format!("{} {}", 1 + random.below(990), random.word(&STREETS));
    object([
        ("line", list([text(&line)])),
        ("city", text(city)),
        ("state", text(state)),
        ("postalCode", text(postal_code)),
        ("country", text("US")),
    ])
}

fn gender_and_name(random: &mut Random) -> (&'static str, &'static str) {
    if random.percent(51) { ("female", random.word(&FEMALE_NAMES)) } else { ("male", random.word(&MALE_NAMES)) }
}

fn official_name(random: &mut Random, family: &str, given: &str, gender: &str) -> String {
    let names = if gender == "female" { &FEMALE_NAMES } else { &MALE_NAMES };
    let middle = random.percent(40).then(|| text(random.word(names)));
    let given = list([text(given)].into_iter().chain(middle));
    object([("use", text("official")), ("family", text(family)), ("given", given)])
}

/// Usually a full date; sometimes only the year or the month.
fn birth_date(random: &mut Random, birth: NaiveDate) -> String {
    match random.below(20) {
        0 => text(&birth.format("%Y").to_string()),
        1 => text(&birth.format("%Y-%m").to_string()),
        _ => date(birth),
    }
}

fn identifiers(random: &mut Random) -> [String; 2] {
    let record = JsonObject::from([
        ("use", text("usual")),
        ("type", status("http://terminology.hl7.org/CodeSystem/v2-0203", "MR")),
        ("system", text("urn:oid:2.999.1.1")),
        ("value", text(&format!("MRN-{}", random.digits(8)))),
    ]);
    // Social security numbers that begin with 999 are never assigned.
    let social = format!("999-{}-{}", random.digits(2), random.digits(4));
    [record.to_string(), identifier("http://hl7.org/fhir/sid/us-ssn", &social)]
}

fn npi(random: &mut Random) -> String {
    identifier("http://hl7.org/fhir/sid/us-npi", &format!("99{}", random.digits(8)))
}

fn phone(random: &mut Random, used: &str) -> String {
    let number = format!("({}) 555-01{}", 201 + random.below(700), random.digits(2));
    object([("system", text("phone")), ("value", text(&number)), ("use", text(used))])
}

fn race(random: &mut Random) -> String {
    // The minimum of two draws makes the first entries of the list more frequent.
    let index = random.index(RACES.len()).min(random.index(RACES.len()));
    let race = &RACES[index];
    let category = object([("url", text("ombCategory")), ("valueCoding", coding(race))]);
    extension("us-core-race", [category, text_extension(race.display)])
}

fn ethnicity(random: &mut Random) -> String {
    let (code, display) =
        if random.percent(19) { ("2135-2", "Hispanic or Latino") } else { ("2186-5", "Not Hispanic or Latino") };
    let system = RACES[0].system;
    let category = object([
        ("url", text("ombCategory")),
        ("valueCoding", object([("system", text(system)), ("code", text(code)), ("display", text(display))])),
    ]);
    extension("us-core-ethnicity", [category, text_extension(display)])
}

fn extension(name: &str, parts: [String; 2]) -> String {
    object([("extension", list(parts)), ("url", text(&format!("{US_CORE}/{name}")))])
}

fn text_extension(display: &str) -> String {
    object([("url", text("text")), ("valueString", text(display))])
}

fn marital_status(random: &mut Random) -> String {
    status("http://terminology.hl7.org/CodeSystem/v3-MaritalStatus", random.word(&["M", "S", "D", "W"]))
}

fn language(random: &mut Random) -> String {
    let language = if random.percent(85) { "en-US" } else { "es" };
    object([("language", status("urn:ietf:bcp:47", language))])
}

fn narrative(summary: &str) -> String {
    let summary = summary.replace('&', "&amp;").replace('<', "&lt;");
    let div = format!("<div xmlns=\"http://www.w3.org/1999/xhtml\">{summary}</div>");
    object([("status", text("generated")), ("div", text(&div))])
}
