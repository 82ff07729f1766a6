use super::*;

fn shape(resource_type: &str, layout: Layout) -> Arc<Shape> {
    Shape::of(resource_type.parse().unwrap(), Options { layout, raw_json: true })
}

fn element<'a>(elements: &'a [Element], name: &str) -> &'a Element {
    elements.iter().find(|element| element.name == name).unwrap()
}

/// The complex at the end of a path.
fn complex<'a>(elements: &'a [Element], path: &[&str]) -> &'a Complex {
    match (&element(elements, path[0]).content, &path[1..]) {
        (ElementContent::Complex(complex), []) => complex,
        (ElementContent::Complex(found), rest) => complex(&found.elements, rest),
        (ElementContent::Primitive(_), _) => panic!("{} has nothing inside", path[0]),
    }
}

fn names(elements: &[Element]) -> Vec<&'static str> {
    elements.iter().map(|element| element.name).collect()
}

#[test]
fn a_choice_is_one_element_per_type_in_the_order_of_hapis_class_names() {
    let answer = shape("QuestionnaireResponse", Layout::Pathling);
    let answer = complex(&answer.elements, &["item", "answer"]);
    let values = answer.elements.iter().filter(|element| element.choice == Some("value"));
    assert_eq!(
        values.map(|element| element.name).collect::<Vec<_>>(),
        [
            "valueAttachment",
            "valueBoolean",
            "valueCoding",
            "valueDateTime",
            "valueDate",
            "valueDecimal",
            "valueInteger",
            "valueQuantity",
            "valueReference",
            "valueString",
            "valueTime",
            "valueUri"
        ]
    );
}

#[test]
fn a_reference_inside_a_reference_has_no_column_and_is_listed() {
    let shape = shape("Observation", Layout::Pathling);
    let subject = complex(&shape.elements, &["subject"]);
    assert_eq!((subject.special, subject.without_column.len()), (Special::Reference, 0));
    assert_eq!(complex(&shape.elements, &["subject", "identifier"]).without_column, ["assigner"]);
    assert_eq!(complex(&shape.elements, &["identifier"]).without_column, [""; 0]);
}

#[test]
fn a_type_is_nested_in_itself_three_times_and_then_listed_as_cut() {
    let shape = shape("QuestionnaireResponse", Layout::Pathling);
    let third = complex(&shape.elements, &["item", "item", "item"]);
    assert!(names(&third.elements).contains(&"item"));
    let fourth = complex(&shape.elements, &["item", "item", "item", "item"]);
    assert_eq!((fourth.type_name, &fourth.without_column[..]), ("QuestionnaireResponse.item", &["item"][..]));
    // All levels count, also with other types between them.
    let fourth = complex(&shape.elements, &["item", "answer", "item", "answer", "item", "item"]);
    assert_eq!(fourth.without_column, ["item"]);
}

#[test]
fn the_value_of_an_extension_may_be_of_twelve_types_and_of_nine_more_in_the_wide_layout() {
    for (layout, with, without) in [(Layout::Pathling, 12, 38), (Layout::Wide, 21, 29)] {
        let patient = shape("Patient", layout);
        let extension = patient.extension.as_ref().unwrap();
        assert_eq!(extension.elements.iter().filter(|element| element.choice == Some("value")).count(), with);
        assert_eq!(extension.without_column.len(), without);
        let task = shape("Task", layout);
        assert_eq!(complex(&task.elements, &["input"]).without_column.len(), 38);
    }
}

#[test]
fn a_quantity_is_special_whatever_it_is_called() {
    let condition = shape("Condition", Layout::Pathling);
    let age = complex(&condition.elements, &["onsetAge"]);
    assert_eq!((age.type_name, age.special), ("Age", Special::Quantity));
    assert_eq!(names(&age.elements), ["id", "value", "comparator", "unit", "system", "code"]);
}

#[test]
fn primitives_with_more_than_one_column_have_kinds_of_their_own() {
    let shape = shape("Observation", Layout::Pathling);
    let meta = complex(&shape.elements, &["meta"]);
    assert_eq!(element(&meta.elements, "versionId").content, ElementContent::Primitive(Primitive::Id));
    assert_eq!(element(&meta.elements, "lastUpdated").content, ElementContent::Primitive(Primitive::Instant));
    assert_eq!(element(&meta.elements, "id").content, ElementContent::Primitive(Primitive::Text));
    let quantity = complex(&shape.elements, &["valueQuantity"]);
    assert_eq!(element(&quantity.elements, "value").content, ElementContent::Primitive(Primitive::Decimal));
}

#[test]
fn bounds_come_from_dates_and_periods_and_references_from_choices_too() {
    let shape = shape("MedicationRequest", Layout::Pathling);
    assert_eq!(
        shape.derived[..3],
        [
            Derived::Reference { name: "reported", members: vec!["reportedReference"] },
            Derived::Reference { name: "medication", members: vec!["medicationReference"] },
            Derived::Reference { name: "subject", members: vec!["subject"] },
        ]
    );
    let members = vec![("authoredOn", DerivedFrom::DateTime)];
    assert!(shape.derived.contains(&Derived::Bounds { name: "authoredOn", members }));
}

#[test]
fn the_id_of_the_resource_is_not_among_its_elements() {
    assert_eq!(names(&shape("Binary", Layout::Pathling).elements)[..2], ["meta", "implicitRules"]);
}

#[test]
fn the_layout_says_how_pathling_would_be_configured() {
    assert_eq!(
        Layout::Pathling.pathling_config(),
        "nest3;ext;openTypes=boolean,code,date,dateTime,decimal,integer,string,Coding,CodeableConcept,Address,\
         Identifier,Reference"
    );
}
