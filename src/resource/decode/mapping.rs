//! A mapping: how the lines of one outline become rows, worked out once and then followed by all of them.
//!
//! A mapping leads each value straight into the column of its element. It exists only for lines whose members all have
//! a column, and are lists and structures where FHIR has them. Any other line is decoded by its member names, which
//! reports what is wrong with it. Values are judged in both cases, and both give the same rows; `tests/mappings.rs`
//! holds that.

use super::{
    canonical::Quantity,
    derived_from::DerivedInput,
    head::{Head, Meta},
};
use crate::{
    fhir::ResourceType,
    resource::{
        content_hash::HashTemplate,
        json::{Fragment, Scalar},
    },
};

/// The number of a value of a line, in the order of the line.
pub type ValueNumber = usize;

#[derive(Debug)]
pub struct LineMapping {
    pub resource_type: ValueNumber,
    pub id: ValueNumber,
    pub meta: Meta<ValueNumber>,
    pub hash: HashTemplate,
    pub root: StructuresMapping,
    pub derived: Vec<DerivedMapping>,
    /// The structures that have extensions: their element numbers, and how many extensions they have.
    pub carriers: Vec<(i32, usize)>,
    pub extensions: StructuresMapping,
    /// `None` for a line without the list.
    pub contained: Option<Vec<Fragment>>,
    /// By path.
    pub primitive_ext: Vec<(String, Fragment)>,
    /// By the number of a value.
    pub values: Vec<ValueInfo>,
}

/// What the issues of a value need.
#[derive(Clone, Default, Debug)]
pub struct ValueInfo {
    /// Its place in the order of decoding by member names.
    pub order: usize,
    /// `Patient.name[0].given[1]`; empty where no column takes the value.
    pub path: String,
}

/// What each line appends to a complex column.
#[derive(Default, Debug)]
pub struct StructuresMapping {
    /// The element number of each structure; 0 for a null.
    pub fids: Vec<i32>,
    /// Which of them are there; empty if all are.
    pub present: Vec<bool>,
    pub members: Vec<MemberMapping>,
    /// Of each structure, where they are quantities.
    pub quantities: Vec<Option<Quantity<ValueNumber>>>,
}

/// What each line appends to the column of an element.
#[derive(Debug)]
pub struct MemberMapping {
    /// The index of the element.
    pub element: usize,
    pub many: Repetition,
    pub items: ItemsMapping,
}

#[derive(Debug)]
pub enum Repetition {
    /// One item for each structure.
    One,
    /// How many items each structure has; `None` for no list.
    Lists(Vec<Option<usize>>),
}

#[derive(Debug)]
pub enum ItemsMapping {
    /// `None` for a null.
    Leaf(Vec<Option<ValueNumber>>),
    Complex(StructuresMapping),
}

/// What each line appends to the columns that are derived from an element.
#[derive(Debug)]
pub struct DerivedMapping {
    pub element: usize,
    /// `Encounter.period`
    pub path: String,
    pub input: DerivedInput<ValueNumber>,
    /// The value of a primitive element: where it is invalid, nothing is derived from it.
    pub leaf: Option<ValueNumber>,
    /// The last value of the element, whose issues come before those of the derived columns.
    pub last: ValueNumber,
}

impl ItemsMapping {
    /// How many items a line has, nulls included.
    pub fn count(&self) -> usize {
        match self {
            Self::Leaf(values) => values.len(),
            Self::Complex(mapping) => mapping.fids.len(),
        }
    }
}

impl LineMapping {
    /// Whether a line of the outline is a resource of the type, with an id.
    pub fn is_for<'line>(&self, of: ResourceType, value: impl Fn(ValueNumber) -> Scalar<'line>) -> bool {
        value(self.resource_type).string().as_deref() == Some(of.as_str())
            && value(self.id).string().is_some_and(|id| !id.is_empty())
    }

    /// Of a line that it is for.
    pub fn head<'line>(&self, value: impl Fn(ValueNumber) -> Scalar<'line>) -> Head<'line> {
        self.meta.head(value(self.id).string().unwrap_or_default(), value)
    }
}
