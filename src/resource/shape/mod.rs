//! The shape of a resource type: which columns it has and which FHIR element fills each.
//!
//! The same layout and the same definitions always give the same shape. Inside structs it is exactly what Pathling's
//! encoders make of the definitions with nesting level 3, extensions on and the twelve standard open types, because
//! Pathling reads nested values by their place.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::{
    definitions::{self, DefinedContent, ElementDefinition, PrimitiveType, Structure, Type},
    element::{Complex, Derived, DerivedFrom, Element, ElementContent, Layout, Options, Primitive, Special},
    schema,
};
use crate::fhir::ResourceType;

/// Changes when the columns change: by a new one at the end or, in a rebuilt table, in any way.
const SCHEMA_VERSION: &str = "1";

/// The FHIR columns of one resource type. Made once per type, then shared.
#[derive(PartialEq, Eq, Debug)]
pub struct Shape {
    pub resource_type: ResourceType,
    pub options: Options,
    /// Root elements in column order, without `id`: that is a leading column, and `id_versioned` is before these.
    /// Empty for the types without typed columns.
    pub elements: Vec<Element>,
    /// An entry of `_extension`; `None` for the types without typed columns.
    pub extension: Option<Arc<Complex>>,
    /// In element order; the bounds of a choice before its reference.
    pub derived: Vec<Derived>,
    schema: SchemaRef,
}

/// How often a type may be nested inside itself.
const NESTING_LEVEL: usize = 3;

/// Pathling cannot encode these.
const WITHOUT_TYPED_COLUMNS: [&str; 4] = ["Bundle", "Parameters", "StructureDefinition", "StructureMap"];

/// The open types of both layouts: Pathling's standard ones.
const OPEN_TYPES: [&str; 12] = [
    "boolean",
    "code",
    "date",
    "dateTime",
    "decimal",
    "integer",
    "string",
    "Coding",
    "CodeableConcept",
    "Address",
    "Identifier",
    "Reference",
];

/// What `wide` adds in extensions.
const WIDE_OPEN_TYPES: [&str; 9] =
    ["uri", "url", "canonical", "instant", "positiveInt", "unsignedInt", "markdown", "Quantity", "Period"];

/// Elements that HAPI's classes, and so Pathling's tables, have beyond R4: those of every knowledge resource.
const BEYOND_R4: [(&str, &[&str]); 10] = [
    ("ChargeItemDefinition", &["name"]),
    ("CompartmentDefinition", &["title", "jurisdiction"]),
    ("EffectEvidenceSynthesis", &["experimental"]),
    ("Evidence", &["experimental"]),
    ("EvidenceVariable", &["experimental"]),
    ("ExampleScenario", &["title", "description"]),
    ("GraphDefinition", &["title"]),
    ("NamingSystem", &["url", "version", "title", "experimental"]),
    ("RiskEvidenceSynthesis", &["experimental"]),
    ("SearchParameter", &["title"]),
];

impl Shape {
    /// A shape without typed columns, for any type.
    pub fn untyped(resource_type: ResourceType, options: Options) -> Arc<Self> {
        Self::new(resource_type, options, Vec::new(), None, Vec::new())
    }

    /// The properties of a table with these columns.
    pub fn properties(&self) -> Vec<(&'static str, String)> {
        let mut properties = vec![("fhirsync.schemaVersion", SCHEMA_VERSION.to_owned())];
        if self.extension.is_some() {
            properties.extend([
                ("fhirsync.fhirVersion", definitions::VERSION.to_owned()),
                ("fhirsync.definitionsHash", definitions::HASH.to_owned()),
                ("fhirsync.pathlingConfig", self.options.layout.pathling_config()),
            ]);
        }
        properties
    }

    /// The shape that follows from the definitions. `Bundle`, `Parameters`, `StructureDefinition`, `StructureMap` and
    /// types that R4 does not have get no typed columns.
    pub fn of(resource_type: ResourceType, options: Options) -> Arc<Self> {
        let name = resource_type.as_str();
        let root = definitions::resource(name).filter(|_| !WITHOUT_TYPED_COLUMNS.contains(&name));
        let extension = definitions::structure("Extension").filter(|_| root.is_some());
        let complex = |structure| Expansion { layout: options.layout, above: Vec::new() }.complex(structure);
        let elements = root.map(|root| complex(root).elements.into_iter().skip(1).collect()).unwrap_or_default();
        let extension = extension.map(|extension| Arc::new(complex(extension)));
        Self::new(resource_type, options, elements, extension, root.map(derived).unwrap_or_default())
    }

    fn new(
        resource_type: ResourceType,
        options: Options,
        elements: Vec<Element>,
        extension: Option<Arc<Complex>>,
        derived: Vec<Derived>,
    ) -> Arc<Self> {
        let schema = schema::schema(options, &elements, extension.as_deref(), &derived);
        Arc::new(Self { resource_type, options, elements, extension, derived, schema })
    }

    /// All columns of the table, in order. Made once, so that the arrays of all batches share their types.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// How many columns at the left carry statistics in the log (`delta.dataSkippingNumIndexedCols`).
    pub fn leading(&self) -> usize {
        schema::leading_fields(&self.derived).len()
    }
}

impl Layout {
    /// What Pathling would have to be configured with for these structs, but for the decimals of `wide`:
    /// `fhirsync.pathlingConfig` of the table.
    pub fn pathling_config(self) -> String {
        format!("nest{NESTING_LEVEL};ext;openTypes={}", self.open_types().join(","))
    }

    /// The types that the value of an extension may have.
    fn open_types(self) -> Vec<&'static str> {
        match self {
            Self::Pathling => OPEN_TYPES.to_vec(),
            Self::Wide => [&OPEN_TYPES[..], &WIDE_OPEN_TYPES].concat(),
        }
    }
}

/// The expansion of a structure into a tree of elements, down to the nesting limit.
struct Expansion {
    layout: Layout,
    /// The structures around the current one, and that one.
    above: Vec<Structure>,
}

impl Expansion {
    fn complex(&mut self, structure: Structure) -> Complex {
        self.above.push(structure);
        let mut elements = Vec::new();
        let mut without_column = Vec::new();
        for defined in elements_of(structure) {
            let choice = matches!(defined.content, DefinedContent::Choice(_)).then_some(defined.name);
            for (name, of) in self.members(structure, &defined) {
                match of.and_then(|of| self.content(of)) {
                    Some(content) => elements.push(Element { name, choice, repeated: defined.repeated, content }),
                    None => without_column.push(name),
                }
            }
        }
        self.above.pop();
        Complex { type_name: structure.name(), special: special(structure), elements, without_column }
    }

    /// The JSON members of an element, in column order; `None` for those that are left out whatever their depth.
    fn members(&self, structure: Structure, defined: &ElementDefinition) -> Vec<(&'static str, Option<Type>)> {
        match (structure.name(), defined.name) {
            // Not a member of a resource's typed columns: one has its own column, the others go into `_extension`
            // or stay in the line.
            (_, "contained" | "extension" | "modifierExtension") => return Vec::new(),
            // Pathling leaves it out, whatever the level.
            ("ValueSet.expansion.contains", "contains") => return vec![(defined.name, None)],
            _ => {}
        }
        match defined.content {
            DefinedContent::Of(of) => vec![(defined.name, Some(of))],
            DefinedContent::Choice(choice) => {
                let open_types = match structure.name() {
                    "Extension" => self.layout.open_types(),
                    _ => Layout::Pathling.open_types(),
                };
                let has_column = |member: &str| {
                    let of = &member[defined.name.len()..];
                    !choice.is_open() || open_types.iter().any(|open| open.eq_ignore_ascii_case(of))
                };
                let mut types: Vec<_> = choice.types().collect();
                types.sort_by_cached_key(|(_, of)| class_name(*of));
                types.into_iter().map(|(member, of)| (member, has_column(member).then_some(of))).collect()
            }
        }
    }

    /// `None` if the type is already above itself as often as the nesting limit allows.
    fn content(&mut self, of: Type) -> Option<ElementContent> {
        let structure = match of {
            Type::Primitive(primitive) => return Some(ElementContent::Primitive(primitive.into())),
            Type::Structure(structure) => structure,
        };
        let most_above = if structure.name() == "Reference" { 0 } else { NESTING_LEVEL };
        let above = self.above.iter().filter(|above| **above == structure).count();
        (above <= most_above).then(|| ElementContent::Complex(Arc::new(self.complex(structure))))
    }
}

/// The elements in column order: inherited elements, those beyond R4, then the structure's own.
fn elements_of(structure: Structure) -> Vec<ElementDefinition> {
    let mut elements = structure.base().map(Structure::elements).unwrap_or_default();
    if let Some((_, beyond)) = BEYOND_R4.iter().find(|(name, _)| *name == structure.name()) {
        let knowledge = definitions::structure("StructureDefinition").into_iter().flat_map(Structure::own_elements);
        elements.extend(knowledge.filter(|element| beyond.contains(&element.name)));
    }
    elements.extend(structure.own_elements());
    elements
}

/// The key that Pathling's choices are in the order of: the name of HAPI's class, byte by byte, so that `valueDateTime`
/// comes before `valueDate` (schema 3.1).
fn class_name(of: Type) -> String {
    match of {
        Type::Primitive(primitive) => format!("{primitive:?}Type"),
        Type::Structure(structure) => structure.name().to_owned(),
    }
}

fn special(structure: Structure) -> Special {
    match (structure.name(), structure.base().map(Structure::name)) {
        ("Quantity", _) | (_, Some("Quantity")) => Special::Quantity,
        ("Reference", _) => Special::Reference,
        ("Period", _) => Special::Period,
        _ => Special::Plain,
    }
}

fn derived(root: Structure) -> Vec<Derived> {
    let single = root.elements().into_iter().filter(|element| !element.repeated);
    single
        .flat_map(|element| {
            let name = element.name;
            let members = match element.content {
                DefinedContent::Of(of) => vec![(name, of)],
                DefinedContent::Choice(choice) => choice.types().collect(),
            };
            let from =
                members.iter().filter_map(|(member, of)| Some((*member, derived_from(*of)?))).collect::<Vec<_>>();
            let references = members.iter().filter(|(_, of)| is_reference(*of)).map(|(member, _)| *member);
            let references = references.collect::<Vec<_>>();
            let bounds = (!from.is_empty()).then_some(Derived::Bounds { name, members: from });
            let reference = (!references.is_empty()).then_some(Derived::Reference { name, members: references });
            bounds.into_iter().chain(reference)
        })
        .collect()
}

fn derived_from(of: Type) -> Option<DerivedFrom> {
    match of {
        Type::Primitive(PrimitiveType::Date) => Some(DerivedFrom::Date),
        Type::Primitive(PrimitiveType::DateTime) => Some(DerivedFrom::DateTime),
        Type::Primitive(PrimitiveType::Instant) => Some(DerivedFrom::Instant),
        Type::Structure(structure) if structure.name() == "Period" => Some(DerivedFrom::Period),
        _ => None,
    }
}

fn is_reference(of: Type) -> bool {
    matches!(of, Type::Structure(structure) if structure.name() == "Reference")
}

impl From<PrimitiveType> for Primitive {
    fn from(primitive: PrimitiveType) -> Self {
        match primitive {
            PrimitiveType::Boolean => Self::Boolean,
            PrimitiveType::Integer | PrimitiveType::PositiveInt | PrimitiveType::UnsignedInt => Self::Integer,
            PrimitiveType::Decimal => Self::Decimal,
            PrimitiveType::Id => Self::Id,
            PrimitiveType::Instant => Self::Instant,
            PrimitiveType::Base64Binary => Self::Base64,
            PrimitiveType::Date => Self::Date,
            PrimitiveType::DateTime => Self::DateTime,
            PrimitiveType::Time => Self::Time,
            PrimitiveType::Canonical
            | PrimitiveType::Code
            | PrimitiveType::Markdown
            | PrimitiveType::Oid
            | PrimitiveType::String
            | PrimitiveType::Uri
            | PrimitiveType::Url
            | PrimitiveType::Uuid
            | PrimitiveType::Xhtml => Self::Text,
        }
    }
}

#[cfg(test)]
mod tests;
