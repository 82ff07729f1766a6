//! Line grouping: the lines of one batch in an order that the Parquet writer handles fast.
//!
//! Lines that are likely to fill the same wide columns become neighbours. For each change between a row with a
//! structure and one without it, the Parquet writer visits all leaves of that structure: an Observation's `component`
//! has two hundred, and one row in seven has a component. A batch is a few thousand neighbours, so values that readers
//! filter by stay about as close together as they were. Only speed depends on what is found here.

use memchr::memmem::Finder;

use super::{
    Line, Shape,
    element::{Complex, Element, ElementContent},
};

/// Columns with fewer leaves are not worth searching each line for.
const MIN_LEAVES: usize = 24;
/// Only this many columns are searched for, the widest ones.
const MAX_COLUMNS: usize = 6;

/// Finds the widest columns of a resource type in its lines.
pub struct LineGrouping {
    /// `"component":` and so on; the widest column first.
    members: Vec<Finder<'static>>,
}

impl LineGrouping {
    pub fn of(shape: &Shape) -> Self {
        let mut wide: Vec<_> = shape.elements.iter().map(|element| (leaves(element), element.name)).collect();
        wide.retain(|(leaves, _)| *leaves >= MIN_LEAVES);
        wide.sort_by_key(|(leaves, _)| std::cmp::Reverse(*leaves));
        wide.truncate(MAX_COLUMNS);
        let members = wide.iter().map(|(_, name)| Finder::new(&format!("\"{name}\":")).into_owned());
        Self { members: members.collect() }
    }

    /// Sorts the lines; each keeps its number.
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
        ElementContent::Primitive(_) => 1,
        ElementContent::Complex(complex) => of(complex),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fhir::ResourceType,
        resource::{Layout, Options},
    };

    #[test]
    fn lines_with_the_same_wide_members_become_neighbours_and_keep_their_order() {
        let shape = Shape::of(ResourceType::OBSERVATION, Options { layout: Layout::Pathling, raw_json: true });
        let line = |number, text: &str| Line { number, offset: 0, bytes: text.as_bytes().to_vec().into() };
        let (with, without) = (r#"{"component":[{}]}"#, r#"{"status":"final"}"#);
        let mut lines = [line(1, with), line(2, without), line(3, with), line(4, without)];
        LineGrouping::of(&shape).group(&mut lines);
        assert_eq!(lines.map(|line| line.number), [2, 4, 1, 3]);
    }
}
