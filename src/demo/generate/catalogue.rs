//! The lists that the generator draws from: names, cities, and codes of LOINC, SNOMED CT, `RxNorm` and HL7.

use super::element::Coding;

pub(super) const LOINC: &str = "http://loinc.org";
pub(super) const SNOMED: &str = "http://snomed.info/sct";
pub(super) const RXNORM: &str = "http://www.nlm.nih.gov/research/umls/rxnorm";
pub(super) const ACT_CODE: &str = "http://terminology.hl7.org/CodeSystem/v3-ActCode";
pub(super) const US_CORE: &str = "http://hl7.org/fhir/us/core/StructureDefinition";

const RACE: &str = "urn:oid:2.16.840.1.113883.6.238";

pub(super) const fn loinc(code: &'static str, display: &'static str) -> Coding {
    Coding { system: LOINC, code, display }
}

pub(super) const fn snomed(code: &'static str, display: &'static str) -> Coding {
    Coding { system: SNOMED, code, display }
}

const fn rxnorm(code: &'static str, display: &'static str) -> Coding {
    Coding { system: RXNORM, code, display }
}

const fn race(code: &'static str, display: &'static str) -> Coding {
    Coding { system: RACE, code, display }
}

const fn act(code: &'static str, display: &'static str) -> Coding {
    Coding { system: ACT_CODE, code, display }
}

pub(super) const RACES: [Coding; 5] = [
    race("2106-3", "White"),
    race("2054-5", "Black or African American"),
    race("2028-9", "Asian"),
    race("1002-5", "American Indian or Alaska Native"),
    race("2076-8", "Native Hawaiian or Other Pacific Islander"),
];

/// A kind of encounter: class, reason, and the shortest and longest duration in minutes.
#[derive(Debug)]
pub(super) struct EncounterKind {
    pub class: Coding,
    pub reason: Coding,
    pub minutes: (i64, i64),
}

const AMBULATORY: Coding = act("AMB", "ambulatory");

/// The first [`SAME_DAY`] kinds end on the day on which they start.
pub(super) const ENCOUNTERS: [EncounterKind; 6] = [
    EncounterKind { class: AMBULATORY, reason: snomed("185349003", "Encounter for check up"), minutes: (15, 45) },
    EncounterKind { class: AMBULATORY, reason: snomed("185345009", "Encounter for symptom"), minutes: (10, 30) },
    EncounterKind { class: AMBULATORY, reason: snomed("390906007", "Follow-up encounter"), minutes: (10, 30) },
    EncounterKind {
        class: act("VR", "virtual"),
        reason: snomed("390906007", "Follow-up encounter"),
        minutes: (10, 20),
    },
    EncounterKind {
        class: act("EMER", "emergency"),
        reason: snomed("50849002", "Emergency room admission"),
        minutes: (60, 600),
    },
    EncounterKind {
        class: act("IMP", "inpatient encounter"),
        reason: snomed("32485007", "Hospital admission"),
        minutes: (1_440, 10_080),
    },
];

pub(super) const SAME_DAY: usize = 4;

/// A diagnosis; one that passes is resolved some weeks later.
#[derive(Debug)]
pub(super) struct Finding {
    pub code: Coding,
    pub passes: bool,
}

const fn lasting(code: &'static str, display: &'static str) -> Finding {
    Finding { code: snomed(code, display), passes: false }
}

const fn passing(code: &'static str, display: &'static str) -> Finding {
    Finding { code: snomed(code, display), passes: true }
}

pub(super) const FINDINGS: [Finding; 14] = [
    lasting("38341003", "Hypertensive disorder, systemic arterial"),
    lasting("44054006", "Diabetes mellitus type 2"),
    lasting("55822004", "Hyperlipidemia"),
    lasting("195967001", "Asthma"),
    lasting("396275006", "Osteoarthritis"),
    lasting("235595009", "Gastroesophageal reflux disease"),
    lasting("35489007", "Depressive disorder"),
    lasting("40930008", "Hypothyroidism"),
    lasting("13645005", "Chronic obstructive lung disease"),
    lasting("37796009", "Migraine"),
    passing("444814009", "Viral sinusitis"),
    passing("10509002", "Acute bronchitis"),
    passing("195662009", "Acute viral pharyngitis"),
    passing("65363002", "Otitis media"),
];

/// A drug, and how many times a day it is taken.
#[derive(Debug)]
pub(super) struct Drug {
    pub code: Coding,
    pub per_day: u8,
}

pub(super) const DRUGS: [Drug; 10] = [
    Drug { code: rxnorm("314076", "lisinopril 10 MG Oral Tablet"), per_day: 1 },
    Drug { code: rxnorm("860975", "24 HR metformin hydrochloride 500 MG Extended Release Oral Tablet"), per_day: 2 },
    Drug { code: rxnorm("617310", "atorvastatin 20 MG Oral Tablet"), per_day: 1 },
    Drug { code: rxnorm("197361", "amlodipine 5 MG Oral Tablet"), per_day: 1 },
    Drug { code: rxnorm("310798", "hydrochlorothiazide 25 MG Oral Tablet"), per_day: 1 },
    Drug { code: rxnorm("313782", "acetaminophen 325 MG Oral Tablet"), per_day: 4 },
    Drug { code: rxnorm("310965", "ibuprofen 200 MG Oral Tablet"), per_day: 3 },
    Drug { code: rxnorm("308192", "amoxicillin 500 MG Oral Tablet"), per_day: 3 },
    Drug { code: rxnorm("198051", "omeprazole 20 MG Delayed Release Oral Capsule"), per_day: 1 },
    Drug { code: rxnorm("855332", "warfarin sodium 5 MG Oral Tablet"), per_day: 1 },
];

/// A measurement. Its bounds are in units of the last digit: `(950, 1_400)` with one digit is 95.0 to 140.0.
#[derive(Debug)]
pub(super) struct Measure {
    pub code: Coding,
    pub unit: &'static str,
    pub ucum: &'static str,
    pub bounds: (i64, i64),
    pub digits: u32,
}

const fn measure(code: Coding, (unit, ucum): (&'static str, &'static str), bounds: (i64, i64), digits: u32) -> Measure {
    Measure { code, unit, ucum, bounds, digits }
}

const PER_MINUTE: (&str, &str) = ("/min", "/min");
const MG_DL: (&str, &str) = ("mg/dL", "mg/dL");
const MMOL_L: (&str, &str) = ("mmol/L", "mmol/L");
const PERCENT: (&str, &str) = ("%", "%");

/// Measured at every visit, besides height, weight and blood pressure.
pub(super) const VITALS: [Measure; 3] = [
    measure(loinc("8867-4", "Heart rate"), PER_MINUTE, (52, 104), 0),
    measure(loinc("9279-1", "Respiratory rate"), PER_MINUTE, (11, 21), 0),
    measure(loinc("8310-5", "Body temperature"), ("Cel", "Cel"), (361, 384), 1),
];

pub(super) const LABS: [Measure; 13] = [
    measure(loinc("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood"), PERCENT, (480, 910), 2),
    measure(loinc("2339-0", "Glucose [Mass/volume] in Blood"), MG_DL, (68, 214), 0),
    measure(loinc("2160-0", "Creatinine [Mass/volume] in Serum or Plasma"), MG_DL, (55, 190), 2),
    measure(loinc("2951-2", "Sodium [Moles/volume] in Serum or Plasma"), MMOL_L, (1_330, 1_470), 1),
    measure(loinc("2823-3", "Potassium [Moles/volume] in Serum or Plasma"), MMOL_L, (340, 530), 2),
    measure(loinc("2093-3", "Cholesterol [Mass/volume] in Serum or Plasma"), MG_DL, (131, 268), 0),
    measure(loinc("2085-9", "Cholesterol in HDL [Mass/volume] in Serum or Plasma"), MG_DL, (31, 84), 0),
    measure(loinc("2571-8", "Triglyceride [Mass/volume] in Serum or Plasma"), MG_DL, (60, 310), 0),
    measure(loinc("718-7", "Hemoglobin [Mass/volume] in Blood"), ("g/dL", "g/dL"), (104, 172), 1),
    measure(loinc("6690-2", "Leukocytes [#/volume] in Blood by Automated count"), ("10*3/uL", "10*3/uL"), (38, 124), 1),
    measure(loinc("777-3", "Platelets [#/volume] in Blood by Automated count"), ("10*3/uL", "10*3/uL"), (148, 402), 0),
    measure(loinc("3016-3", "Thyrotropin [Units/volume] in Serum or Plasma"), ("m[IU]/L", "m[IU]/L"), (400, 6_400), 3),
    measure(loinc("2708-6", "Oxygen saturation in Arterial blood"), PERCENT, (930, 1_000), 1),
];

pub(super) const SMOKING: [Coding; 3] = [
    snomed("266919005", "Never smoked tobacco"),
    snomed("8517006", "Ex-smoker"),
    snomed("449868002", "Smokes tobacco daily"),
];

pub(super) const SPECIALTIES: [Coding; 4] = [
    snomed("419772000", "Family practice"),
    snomed("419192003", "Internal medicine"),
    snomed("394579002", "Cardiology"),
    snomed("394537008", "Pediatric specialty"),
];

pub(super) const FEMALE_NAMES: [&str; 24] = [
    "Amara",
    "Anneliese",
    "Beatriz",
    "Carmen",
    "Daphne",
    "Elena",
    "Farida",
    "Greta",
    "Hana",
    "Imogen",
    "Joyce",
    "Keiko",
    "Lucía",
    "Marguerite",
    "Nadia",
    "Olive",
    "Priya",
    "Rosa",
    "Sunniva",
    "Teresa",
    "Ursula",
    "Viola",
    "Winifred",
    "Zoë",
];

pub(super) const MALE_NAMES: [&str; 24] = [
    "Abel", "Benedict", "Caleb", "Dmitri", "Emeka", "Fergus", "Gustavo", "Hiro", "Ivo", "Jamal", "Kwame", "Leopold",
    "Matteo", "Nils", "Oscar", "Pavel", "Quentin", "Ramón", "Søren", "Tobias", "Umberto", "Vikram", "Wendell", "Yusuf",
];

pub(super) const FAMILY_NAMES: [&str; 32] = [
    "Abernathy",
    "Okafor",
    "Brandt",
    "Castillo",
    "Delacroix",
    "Eriksen",
    "Fontaine",
    "Grimaldi",
    "Haddad",
    "Ibarra",
    "Jovanović",
    "Kowalski",
    "Lindqvist",
    "Mbeki",
    "Nakamura",
    "O'Rourke",
    "Petrov",
    "Quiroga",
    "Rahman",
    "Sandoval",
    "Tanaka",
    "Underhill",
    "Vasquez",
    "Whitcombe",
    "Xu",
    "Yilmaz",
    "Zimmermann",
    "Achebe",
    "Bellamy",
    "Corrigan",
    "Dufresne",
    "Van der Berg",
];

pub(super) const STREETS: [&str; 12] = [
    "Alder Street",
    "Birch Lane",
    "Canal Road",
    "Depot Square",
    "Elm Court",
    "Foundry Way",
    "Garden Terrace",
    "Harbor Avenue",
    "Ironworks Road",
    "Juniper Drive",
    "King Street",
    "Linden Place",
];

/// City, state, postal code.
pub(super) const CITIES: [(&str, &str, &str); 12] = [
    ("Worcester", "MA", "01608"),
    ("Springfield", "MA", "01103"),
    ("Lowell", "MA", "01852"),
    ("Portland", "ME", "04101"),
    ("Bangor", "ME", "04401"),
    ("Concord", "NH", "03301"),
    ("Nashua", "NH", "03060"),
    ("Burlington", "VT", "05401"),
    ("Providence", "RI", "02903"),
    ("Hartford", "CT", "06103"),
    ("New Haven", "CT", "06510"),
    ("Albany", "NY", "12207"),
];

pub(super) const HOUSES: [&str; 5] =
    ["General Hospital", "Family Medicine", "Community Clinic", "Medical Group", "Health Center"];
