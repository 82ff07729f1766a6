//! The order of the lines of one batch: those that are likely to fill the same wide columns stand together.
//!
//! For each change between a row with a structure and one without it, the Parquet writer goes through all of its leaves: of
//! an Observation's `component` there are two hundred, and one row in seven has one. A batch is a few thousand neighbours,
//! so what readers filter by stays as near as it was. Nothing but speed depends on what is found here.

use memchr::memmem::Finder;

use super::{
    Line,
    shape::{Complex, Content, Element, Shape},
};

/// Columns with fewer leaves are not worth a look at each line.
const WIDE_LEAVES: usize = 24;
/// As many of the widest are looked for.
const MOST: usize = 6;

/// Finds the widest columns of a type in its lines.
pub struct Order {
    members: Vec<Finder<'static>>,
}

impl Order {
    pub fn of(shape: &Shape) -> Self {
        let mut wide: Vec<_> = shape.elements.iter().map(|element| (leaves(element), element.name)).collect();
        wide.retain(|(leaves, _)| *leaves >= WIDE_LEAVES);
        wide.sort_by_key(|(leaves, _)| std::cmp::Reverse(*leaves));
        wide.truncate(MOST);
        let members = wide.iter().map(|(_, name)| Finder::new(&format!("\"{name}\":")).into_owned());
        Self { members: members.collect() }
    }

    /// The lines in their new order; each keeps its number.
    pub fn group(&self, lines: &mut [Line]) {
        lines.sort_by_cached_key(|line| {
            // The widest decides first.
            self.members.iter().fold(0u8, |found, member| found << 1 | u8::from(member.find(&line.bytes).is_some()))
        });
    }
}

fn leaves(element: &Element) -> usize {
    fn of(complex: &Complex) -> usize {
        complex.elements.iter().map(leaves).sum::<usize>() + 1
    }
    match &element.content {
        Content::Primitive(_) => 1,
        Content::Complex(complex) => of(complex),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fhir::ResourceType,
        resource::shape::{Layout, Options},
    };

    #[test]
    fn lines_with_the_same_wide_members_stand_together_and_keep_their_order_among_themselves() {
        let shape = Shape::of(ResourceType::OBSERVATION, Options { layout: Layout::Pathling, raw_json: true });
        let line = |number, text: &str| Line { number, bytes: text.as_bytes().to_vec() };
        let (with, without) = (r#"{"component":[{}]}"#, r#"{"status":"final"}"#);
        let mut lines = [line(1, with), line(2, without), line(3, with), line(4, without)];
        Order::of(&shape).group(&mut lines);
        assert_eq!(lines.map(|line| line.number), [2, 4, 1, 3]);
    }
}
