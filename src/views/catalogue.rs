//! Which views there are. Names are the usual ones of flat clinical tables; instants are in UTC.

use super::expression::{
    Condition::{HasCode, Is},
    Expression, column, one_of,
};

/// A view over the table of one resource type.
#[derive(Debug)]
pub struct View {
    pub name: &'static str,
    pub resource_type: &'static str,
    pub rows: Rows,
    pub columns: Vec<(&'static str, Expression)>,
}

/// What a row of a view is.
#[derive(Clone, Copy, Debug)]
pub enum Rows {
    Resources,
    /// An item of this column; the columns of the view know it as [`ITEM`].
    Items(&'static str),
}

pub const ITEM: &str = "item";

const RACE: &str = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race";
const ETHNICITY: &str = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-ethnicity";

pub fn all() -> Vec<View> {
    let view = |name, resource_type, rows, columns| View { name, resource_type, rows, columns };
    vec![
        view("patient", "Patient", Rows::Resources, patient()),
        view("encounter", "Encounter", Rows::Resources, encounter()),
        view("condition", "Condition", Rows::Resources, condition()),
        view("observation", "Observation", Rows::Resources, observation()),
        view("observation_component", "Observation", Rows::Items("component"), observation_component()),
        view("medication_request", "MedicationRequest", Rows::Resources, medication_request()),
    ]
}

fn patient() -> Vec<(&'static str, Expression)> {
    let name = || one_of([column("name").only(Is("use", "official")).first(), column("name").first()]);
    let address = || one_of([column("address").only(Is("use", "home")).first(), column("address").first()]);
    vec![
        ("id", column("id")),
        ("family", name().member("family")),
        ("given", name().member("given").joined()),
        ("gender", column("gender")),
        ("birth_date", column("birthDate")),
        ("deceased", one_of([column("deceasedBoolean"), column("deceasedDateTime").given()])),
        ("deceased_at", column("__deceased_start")),
        ("race", us_core_text(RACE)),
        ("ethnicity", us_core_text(ETHNICITY)),
        ("mrn", column("identifier").only(HasCode("type", "MR")).first().member("value")),
        ("city", address().member("city")),
        ("state", address().member("state")),
        ("postal_code", address().member("postalCode")),
        ("_sync_source", column("_sync_source")),
    ]
}

/// The text of a complex US Core extension, which its profile requires; without it the OMB category's.
fn us_core_text(url: &'static str) -> Expression {
    let within = || column("_fid").extension(url).member("_fid");
    one_of([
        within().extension("text").member("valueString"),
        within().extension("ombCategory").member("valueCoding").member("display"),
    ])
}

fn encounter() -> Vec<(&'static str, Expression)> {
    let kind = || column("type").first();
    vec![
        ("id", column("id")),
        ("patient_id", patient_id()),
        ("class", column("class").member("code")),
        ("type_code", coding(kind()).member("code")),
        ("type_display", display(&kind())),
        ("period_start", column("__period_start")),
        ("period_end", column("__period_end")),
        ("status", column("status")),
        ("_sync_source", column("_sync_source")),
    ]
}

fn condition() -> Vec<(&'static str, Expression)> {
    let mut columns = vec![("id", column("id")), ("patient_id", patient_id()), ("encounter_id", encounter_id())];
    columns.extend(code(&column("code")));
    columns.extend([
        ("clinical_status", coding(column("clinicalStatus")).member("code")),
        ("verification_status", coding(column("verificationStatus")).member("code")),
        ("onset", column("__onset_start")),
        ("abatement", column("__abatement_start")),
        ("recorded", column("__recordedDate_start")),
        ("_sync_source", column("_sync_source")),
    ]);
    columns
}

fn observation() -> Vec<(&'static str, Expression)> {
    let mut columns = vec![
        ("id", column("id")),
        ("patient_id", patient_id()),
        ("encounter_id", encounter_id()),
        ("status", column("status")),
        ("category", coding(column("category").first()).member("code")),
    ];
    columns.extend(code(&column("code")));
    columns.push(("effective_start", column("__effective_start")));
    columns.extend(value(column));
    columns.push(("_sync_source", column("_sync_source")));
    columns
}

fn observation_component() -> Vec<(&'static str, Expression)> {
    let mut columns = vec![
        ("observation_id", column("id")),
        ("patient_id", patient_id()),
        ("encounter_id", encounter_id()),
        ("status", column("status")),
    ];
    columns.extend(code(&column(ITEM).member("code")));
    columns.push(("effective_start", column("__effective_start")));
    columns.extend(value(|name| column(ITEM).member(name)));
    columns.push(("_sync_source", column("_sync_source")));
    columns
}

fn medication_request() -> Vec<(&'static str, Expression)> {
    let medication = || column("medicationCodeableConcept");
    vec![
        ("id", column("id")),
        ("patient_id", patient_id()),
        ("encounter_id", encounter_id()),
        ("medication_id", Expression::IdOf { reference: "medication", resource_type: "Medication" }),
        ("medication_code", coding(medication()).member("code")),
        ("medication_system", coding(medication()).member("system")),
        ("medication_display", one_of([display(&medication()), column("medicationReference").member("display")])),
        ("status", column("status")),
        ("intent", column("intent")),
        ("authored", column("__authoredOn_start")),
        ("_sync_source", column("_sync_source")),
    ]
}

fn patient_id() -> Expression {
    Expression::IdOf { reference: "subject", resource_type: "Patient" }
}

fn encounter_id() -> Expression {
    Expression::IdOf { reference: "encounter", resource_type: "Encounter" }
}

/// The first coding of a `CodeableConcept`.
fn coding(concept: Expression) -> Expression {
    concept.member("coding").first()
}

fn display(concept: &Expression) -> Expression {
    one_of([coding(concept.clone()).member("display"), concept.clone().member("text")])
}

fn code(concept: &Expression) -> [(&'static str, Expression); 3] {
    [
        ("code", coding(concept.clone()).member("code")),
        ("system", coding(concept.clone()).member("system")),
        ("display", display(concept)),
    ]
}

/// `value[x]` of an observation or a component, but for ranges, ratios, periods and samples. A number without its
/// comparator would be a wrong one: `<5` is not 5.
fn value(element: impl Fn(&'static str) -> Expression) -> [(&'static str, Expression); 5] {
    let quantity = |member| element("valueQuantity").member(member);
    let concept = element("valueCodeableConcept");
    [
        ("value", one_of([quantity("value"), element("valueInteger")])),
        ("comparator", quantity("comparator")),
        ("unit", one_of([quantity("unit"), quantity("code")])),
        ("value_code", coding(concept.clone()).member("code")),
        (
            "value_text",
            one_of([
                element("valueString"),
                concept.clone().member("text"),
                coding(concept).member("display"),
                element("valueDateTime"),
                element("valueTime"),
                element("valueBoolean").text(),
            ]),
        ),
    ]
}
