//! A plan: how the lines of one outline become rows, worked out once and then followed by all of them.
//!
//! A plan leads each value straight into the column of its element. It exists only for lines whose members all have a
//! column, and are lists and structures where FHIR has them. Any other line is decoded by its member names, which
//! reports what is wrong with it. Values are judged in both cases, and both give the same rows; `tests/mappings.rs` holds
//! that.

use super::{
    canonical::Quantity,
    derived_from::Source,
    head::{Head, Meta},
};
use crate::{
    fhir::ResourceType,
    resource::{
        content_hash::HashPlan,
        json::{Part, Scalar},
    },
};

/// The number of a value of a line, in the order of the line.
pub type ValueNumber = usize;

#[derive(Debug)]
pub struct LinePlan {
    pub resource_type: ValueNumber,
    pub id: ValueNumber,
    pub meta: Meta<ValueNumber>,
    pub hash: HashPlan,
    pub root: StructuresPlan,
    pub derived: Vec<DerivedPlan>,
    /// The structures that have extensions: their element numbers, and how many extensions they have.
    pub carriers: Vec<(i32, usize)>,
    pub extensions: StructuresPlan,
    /// `None` for a line without the list.
    pub contained: Option<Vec<Part>>,
    /// By path.
    pub primitive_ext: Vec<(String, Part)>,
    /// By the number of a value.
    pub values: Vec<ValuePlan>,
}

/// What the issues of a value need.
#[derive(Clone, Default, Debug)]
pub struct ValuePlan {
    /// When decoding by member names comes to it.
    pub turn: usize,
    /// `Patient.name[0].given[1]`; empty where no column takes the value.
    pub path: String,
}

/// What each line appends to a complex column.
#[derive(Default, Debug)]
pub struct StructuresPlan {
    /// The element number of each structure; 0 for a null.
    pub fids: Vec<i32>,
    /// Which of them are there; empty if all are.
    pub present: Vec<bool>,
    pub members: Vec<MemberPlan>,
    /// Of each structure, where they are quantities.
    pub quantities: Vec<Option<Quantity<ValueNumber>>>,
}

/// What each line appends to the column of an element.
#[derive(Debug)]
pub struct MemberPlan {
    /// The index of the element.
    pub element: usize,
    pub many: ManyPlan,
    pub items: ItemsPlan,
}

#[derive(Debug)]
pub enum ManyPlan {
    /// One item for each structure.
    One,
    /// How many items each structure has; `None` for no list.
    Lists(Vec<Option<usize>>),
}

#[derive(Debug)]
pub enum ItemsPlan {
    /// `None` for a null.
    Leaf(Vec<Option<ValueNumber>>),
    Complex(StructuresPlan),
}

/// What each line appends to the columns that are derived from an element.
#[derive(Debug)]
pub struct DerivedPlan {
    pub element: usize,
    /// `Encounter.period`
    pub path: String,
    pub source: Source<ValueNumber>,
    /// The value of a primitive element: where it is invalid, nothing is derived from it.
    pub leaf: Option<ValueNumber>,
    /// The last value of the element, whose issues come before those of the derived columns.
    pub last: ValueNumber,
}

impl ItemsPlan {
    /// How many items a line has, nulls included.
    pub fn count(&self) -> usize {
        match self {
            Self::Leaf(values) => values.len(),
            Self::Complex(plan) => plan.fids.len(),
        }
    }
}

impl LinePlan {
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
