//! Line grouping: the lines of one batch in an order that the Parquet writer handles fast.
//!
//! Lines that are likely to fill the same wide columns become neighbours. For each change between a row with a
//! structure and one without it, the Parquet writer visits all leaves of that structure: an Observation's `component`
//! has two hundred, and one row in seven has a component. A batch is a few thousand neighbours, so values that readers
//! filter by stay about as close together as they were. Only speed depends on what is found here.

use memchr::memmem::Finder;

use super::{
    Shape,
    element::{Complex, Element, ElementContent},
};

/// Columns with fewer leaves are not worth searching each line for.
const MIN_LEAVES: usize = 24;
/// Only this many columns are searched for, the widest ones.
const MAX_COLUMNS: usize = 6;

/// Finds the widest columns of a resource type in its lines.
#[derive(Debug)]
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

    /// The group of a line. That of the widest member is decided first.
    pub fn group(&self, line: &[u8]) -> u8 {
        self.members.iter().fold(0, |found, member| found << 1 | u8::from(member.find(line).is_some()))
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
    fn lines_with_the_same_wide_members_are_of_one_group() {
        let shape = Shape::of(ResourceType::OBSERVATION, Options { layout: Layout::Pathling, raw_json: true });
        let grouping = LineGrouping::of(&shape);
        let [with, without] = [r#"{"component":[{}]}"#, r#"{"status":"final"}"#].map(str::as_bytes);
        let [also_with, also_without] = [r#"{"id":"1","component":[]}"#, r#"{"id":"1"}"#].map(str::as_bytes);
        assert_eq!(grouping.group(with), grouping.group(also_with));
        assert_eq!(grouping.group(without), grouping.group(also_without));
        assert_ne!(grouping.group(with), grouping.group(without));
    }
}
