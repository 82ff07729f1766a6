//! Elements: which JSON members of a resource have a column, of what type, and what else is made from them.
//!
//! Words only: `shape` builds them from the definitions of FHIR, `schema` makes Arrow columns of them, and `decode`
//! fills those.

use std::sync::Arc;

/// What a table is made with; cannot change later without a rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub layout: Layout,
    /// Whether the line itself is kept in `resource_json`.
    pub raw_json: bool,
}

/// `tables.layout`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Exactly Pathling's structs: DECIMAL(32,6).
    Pathling,
    /// DECIMAL(38,12), and nine more types of value in extensions; not for Pathling's decoder.
    Wide,
}

/// Digits of a decimal column: all of them, and those behind the point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digits {
    pub precision: u8,
    pub scale: i8,
}

impl Layout {
    /// `Wide` keeps 4.1e-7 mol/L; more places behind the point would make products overflow.
    pub fn digits(self) -> Digits {
        match self {
            Self::Pathling => Digits { precision: 32, scale: 6 },
            Self::Wide => Digits { precision: 38, scale: 12 },
        }
    }
}

/// A JSON member that has a column.
#[derive(PartialEq, Eq, Debug)]
pub struct Element {
    /// The member's name: `status`, `valueQuantity`. A choice is one element per type.
    pub name: &'static str,
    /// The choice it belongs to (`value` for `valueQuantity`): at most one of a choice may be there.
    pub choice: Option<&'static str>,
    pub repeated: bool,
    pub content: ElementContent,
}

#[derive(PartialEq, Eq, Debug)]
pub enum ElementContent {
    Primitive(Primitive),
    Complex(Arc<Complex>),
}

/// How the value of a primitive type is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Primitive {
    Boolean,
    /// integer, positiveInt and unsignedInt: INT.
    Integer,
    /// Two columns, `x` and `x_scale`; two parallel arrays where it repeats.
    Decimal,
    /// Two columns, `x` and `x_versioned`.
    Id,
    /// TIMESTAMP, microseconds UTC.
    Instant,
    /// BINARY, decoded.
    Base64,
    /// STRING as sent, like [`Self::DateTime`] and [`Self::Time`].
    Date,
    DateTime,
    Time,
    /// Everything else that is text: string, code, markdown, xhtml and the family of uri.
    Text,
}

/// A data type or backbone element at one place of a resource.
#[derive(PartialEq, Eq, Debug)]
pub struct Complex {
    /// `Quantity`, `Observation.component`.
    pub type_name: &'static str,
    pub special: Special,
    /// In column order; `_fid` is implied last.
    pub elements: Vec<Element>,
    /// Members that FHIR knows here but that have no column: cut by the nesting limit, a Reference inside a Reference,
    /// or of an open type that is left out. `extension` and `modifierExtension` are not among them.
    pub without_column: Vec<&'static str>,
}

/// What a complex type has beyond its elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    Plain,
    /// Quantity and its specializations: `_value_canonicalized` and `_code_canonicalized` before `_fid`.
    Quantity,
    Reference,
    Period,
}

/// Columns of group 2, made from a root element that does not repeat. Of a choice, whichever member is there.
#[derive(PartialEq, Eq, Debug)]
pub enum Derived {
    /// `__<name>_start` and `__<name>_end`: the inclusive bounds in UTC.
    Bounds { name: &'static str, members: Vec<(&'static str, DerivedFrom)> },
    /// `__<name>_type` and `__<name>_id`.
    Reference { name: &'static str, members: Vec<&'static str> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DerivedFrom {
    Date,
    DateTime,
    Instant,
    Period,
}
