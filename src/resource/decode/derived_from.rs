//! Inputs: what of an element its derived columns are made from.

use crate::resource::{
    element::{Element, ElementContent, Special},
    json::{Document, OutlineValues, TokenIndex},
};

/// What of an element is derived from: its own text, the `reference` of a reference, or `start` and `end` of a period;
/// as tokens of a document or as values of an outline.
#[derive(Clone, Copy, Debug)]
pub struct DerivedInput<At> {
    pub first: Option<At>,
    pub second: Option<At>,
}

impl DerivedInput<TokenIndex> {
    pub fn of(document: Document<'_>, at: TokenIndex, element: &Element) -> Self {
        let special = match &element.content {
            ElementContent::Primitive(_) => return Self { first: Some(at), second: None },
            ElementContent::Complex(complex) => complex.special,
        };
        let member = |name| document.member(at, name);
        match special {
            Special::Period => Self { first: member("start"), second: member("end") },
            Special::Reference => Self { first: member("reference"), second: None },
            Special::Plain | Special::Quantity => Self { first: None, second: None },
        }
    }

    pub fn in_outline(self, values: &OutlineValues) -> DerivedInput<usize> {
        let number = |at: Option<TokenIndex>| at.and_then(|at| values.number(at));
        DerivedInput { first: number(self.first), second: number(self.second) }
    }
}
