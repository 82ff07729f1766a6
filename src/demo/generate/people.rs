//! Who and where: patients, practitioners, organizations.

use chrono::{Days, NaiveDate};

use super::{
    catalogue::{CITIES, FAMILY_NAMES, FEMALE_NAMES, HOUSES, MALE_NAMES, RACES, SPECIALTIES, STREETS, US_CORE},
    element::{NamedResource, coding, concept, date, identifier, list, named_reference, object, status},
    random::Dice,
    world_start,
};
use crate::{
    demo::json_object::{Body, text},
    fhir::ResourceType,
};

/// Who works where; neither list is empty.
#[derive(Debug)]
pub(super) struct Staff {
    pub organizations: Vec<NamedResource>,
    pub practitioners: Vec<NamedResource>,
}

/// The name and the resource.
pub(super) fn organization(dice: &mut Dice, number: usize) -> (String, Body) {
    let (city, ..) = CITIES[number % CITIES.len()];
    let name = format!("{city} {}", HOUSES[number / CITIES.len() % HOUSES.len()]);
    let kind = status("http://terminology.hl7.org/CodeSystem/organization-type", "prov");
    let body = Body::from([
        ("identifier", list([npi(dice)])),
        ("active", "true".to_owned()),
        ("type", list([kind])),
        ("name", text(&name)),
        ("telecom", list([phone(dice, "work")])),
        ("address", list([address_in(dice, number % CITIES.len())])),
    ]);
    (name, body)
}

/// The name and the resource.
pub(super) fn practitioner(dice: &mut Dice) -> (String, Body) {
    let (gender, given) = gender_and_name(dice);
    let family = dice.word(&FAMILY_NAMES);
    let email = format!("{given}.{family}@clinic.example").to_lowercase().replace(['\'', ' '], "");
    let name = object([
        ("use", text("official")),
        ("family", text(family)),
        ("given", list([text(given)])),
        ("prefix", list([text("Dr.")])),
    ]);
    let contact = object([("system", text("email")), ("value", text(&email)), ("use", text("work"))]);
    let qualification = object([("code", concept(dice.pick(&SPECIALTIES)))]);
    let body = Body::from([
        ("identifier", list([npi(dice)])),
        ("active", "true".to_owned()),
        ("name", list([name])),
        ("telecom", list([contact])),
        ("gender", text(gender)),
        ("qualification", list([qualification])),
    ]);
    (format!("Dr. {given} {family}"), body)
}

/// The name, the day of birth and the resource.
pub(super) fn patient(
    dice: &mut Dice,
    practitioner: &NamedResource,
    organization: &NamedResource,
) -> (String, NaiveDate, Body) {
    let (gender, given) = gender_and_name(dice);
    let family = dice.word(&FAMILY_NAMES);
    let birth = world_start().date() - Days::new(400 + dice.below(90 * 365));
    let body = Body::from([
        ("meta", object([("profile", list([text(&format!("{US_CORE}/us-core-patient"))]))])),
        ("text", narrative(&format!("{given} {family}, {gender}, born {}", birth.format("%Y")))),
        ("extension", list([race(dice), ethnicity(dice)])),
        ("identifier", list(identifiers(dice))),
        ("active", "true".to_owned()),
        ("name", list([official_name(dice, family, given, gender)])),
        ("telecom", list([phone(dice, "home")])),
        ("gender", text(gender)),
        ("birthDate", birth_date(dice, birth)),
        ("address", list([address(dice)])),
        ("maritalStatus", marital_status(dice)),
        ("communication", list([language(dice)])),
        ("generalPractitioner", list([named_reference(ResourceType::PRACTITIONER, practitioner)])),
        ("managingOrganization", named_reference(ResourceType::ORGANIZATION, organization)),
    ]);
    (format!("{given} {family}"), birth, body)
}

/// A home anywhere in the catalogue's cities.
pub(super) fn address(dice: &mut Dice) -> String {
    let city = dice.place(CITIES.len());
    address_in(dice, city)
}

fn address_in(dice: &mut Dice, city: usize) -> String {
    let (city, state, postal_code) = CITIES[city];
    let line = format!("{} {}", 1 + dice.below(990), dice.word(&STREETS));
    object([
        ("line", list([text(&line)])),
        ("city", text(city)),
        ("state", text(state)),
        ("postalCode", text(postal_code)),
        ("country", text("US")),
    ])
}

fn gender_and_name(dice: &mut Dice) -> (&'static str, &'static str) {
    if dice.percent(51) { ("female", dice.word(&FEMALE_NAMES)) } else { ("male", dice.word(&MALE_NAMES)) }
}

fn official_name(dice: &mut Dice, family: &str, given: &str, gender: &str) -> String {
    let names = if gender == "female" { &FEMALE_NAMES } else { &MALE_NAMES };
    let middle = dice.percent(40).then(|| text(dice.word(names)));
    let given = list([text(given)].into_iter().chain(middle));
    object([("use", text("official")), ("family", text(family)), ("given", given)])
}

/// To the day, mostly; some only know the month or the year.
fn birth_date(dice: &mut Dice, birth: NaiveDate) -> String {
    match dice.below(20) {
        0 => text(&birth.format("%Y").to_string()),
        1 => text(&birth.format("%Y-%m").to_string()),
        _ => date(birth),
    }
}

fn identifiers(dice: &mut Dice) -> [String; 2] {
    let record = Body::from([
        ("use", text("usual")),
        ("type", status("http://terminology.hl7.org/CodeSystem/v2-0203", "MR")),
        ("system", text("urn:oid:2.999.1.1")),
        ("value", text(&format!("MRN-{}", dice.digits(8)))),
    ]);
    // Numbers that begin with 999 are given to nobody.
    let social = format!("999-{}-{}", dice.digits(2), dice.digits(4));
    [record.to_string(), identifier("http://hl7.org/fhir/sid/us-ssn", &social)]
}

fn npi(dice: &mut Dice) -> String {
    identifier("http://hl7.org/fhir/sid/us-npi", &format!("99{}", dice.digits(8)))
}

fn phone(dice: &mut Dice, used: &str) -> String {
    let number = format!("({}) 555-01{}", 201 + dice.below(700), dice.digits(2));
    object([("system", text("phone")), ("value", text(&number)), ("use", text(used))])
}

fn race(dice: &mut Dice) -> String {
    // As in a waiting room: the first of the list are the many.
    let place = dice.place(RACES.len()).min(dice.place(RACES.len()));
    let race = &RACES[place];
    let category = object([("url", text("ombCategory")), ("valueCoding", coding(race))]);
    extension("us-core-race", [category, text_extension(race.display)])
}

fn ethnicity(dice: &mut Dice) -> String {
    let (code, display) =
        if dice.percent(19) { ("2135-2", "Hispanic or Latino") } else { ("2186-5", "Not Hispanic or Latino") };
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

fn marital_status(dice: &mut Dice) -> String {
    status("http://terminology.hl7.org/CodeSystem/v3-MaritalStatus", dice.word(&["M", "S", "D", "W"]))
}

fn language(dice: &mut Dice) -> String {
    let language = if dice.percent(85) { "en-US" } else { "es" };
    object([("language", status("urn:ietf:bcp:47", language))])
}

fn narrative(summary: &str) -> String {
    let summary = summary.replace('&', "&amp;").replace('<', "&lt;");
    let div = format!("<div xmlns=\"http://www.w3.org/1999/xhtml\">{summary}</div>");
    object([("status", text("generated")), ("div", text(&div))])
}
