//! What is learned of lines, and the lines of one slice of a batch in the order in which they become rows: those with
//! the same mapping together.
//!
//! A line without a mapping is decoded by its member names; nothing is known of it before, not even whether it is JSON.
//! Within the lines with a mapping and within those without, lines with the same wide members are neighbours, because
//! the Parquet writer handles them faster ([`LineGrouping`]).

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    mapper,
    mapping::{LineMapping, ValueNumber},
};
use crate::resource::{
    Line, LineGrouping, Shape,
    content_hash::ContentHash,
    json::{Fragment, Outline, Outlines, Scalar, Tape, Value},
};

/// What batches have learned of the lines of a type. Each batch takes one [`Learned`] and gives it back.
#[derive(Clone, Debug)]
pub struct MappingPool {
    grouping: Arc<LineGrouping>,
    learned: Arc<Mutex<Vec<Learned>>>,
    max_attempts: usize,
    /// Of one [`Learned`].
    max_bytes: usize,
}

/// Outlines with a mapping for each, and memory that the next lines of a batch use again.
#[derive(Debug)]
pub struct Learned {
    outlines: Outlines,
    /// By outline; `None` where its lines are decoded by their member names.
    mappings: Vec<Option<GroupedMapping>>,
    attempts_left: usize,
    pub tape: Tape,
    pub content_hash: ContentHash,
}

#[derive(Debug)]
struct GroupedMapping {
    mapping: LineMapping,
    group: u8,
}

/// Lines in the order in which they become rows: those with a mapping, and then those without.
pub struct SortedLines<'line> {
    /// Neighbours have the same mapping.
    mapped: Vec<MappedLine<'line>>,
    /// The values of the lines with a mapping.
    pub values: Vec<Value>,
    /// The lines without a mapping: their places among the lines.
    pub by_name: Vec<usize>,
}

pub struct MappedLine<'line> {
    /// Its number in the file.
    pub number: u64,
    pub text: &'line str,
    pub hash: u64,
    first_value: usize,
    outline: Outline,
    group: u8,
}

/// What all cores together keep of a resource type. A fortieth of that is enough for most types.
const MAX_BYTES: usize = 8 << 20;
/// How many attempts a batch has to map a line. A failure costs one; a line with a known mapping gives one back. At 0,
/// the other lines are decoded by their member names.
const MAX_ATTEMPTS: usize = 64;
/// Lines that become rows together. While they do, their text is in the cache of the core that read it.
const MAX_MAPPED_LINES: usize = 128;

impl MappingPool {
    pub fn of(shape: &Shape) -> Self {
        Self {
            grouping: Arc::new(LineGrouping::of(shape)),
            learned: Arc::default(),
            max_attempts: MAX_ATTEMPTS,
            max_bytes: MAX_BYTES / thread::available_parallelism().map_or(1, NonZero::get),
        }
    }

    /// No mappings: each line is decoded by its member names. Tests compare both ways.
    pub fn none(shape: &Shape) -> Self {
        Self { max_attempts: 0, ..Self::of(shape) }
    }

    pub fn take(&self) -> Learned {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let learned = learned.unwrap_or_else(|| Learned {
            outlines: Outlines::new(self.max_bytes),
            mappings: Vec::new(),
            attempts_left: 0,
            tape: Tape::default(),
            content_hash: ContentHash::default(),
        });
        Learned { attempts_left: self.max_attempts, ..learned }
    }

    pub fn give_back(&self, learned: Learned) {
        // The largest line of the batch may have been much larger than most.
        let learned = Learned { tape: Tape::default(), content_hash: ContentHash::default(), ..learned };
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).push(learned);
    }

    /// Frees the memory, when the lines of the type have ended.
    pub fn forget(&self) {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn sort<'line>(&self, learned: &mut Learned, shape: &Shape, lines: &'line [Line]) -> SortedLines<'line> {
        let mapped = Vec::with_capacity(lines.len());
        let mut sorted = SortedLines { mapped, values: Vec::new(), by_name: Vec::new() };
        for (place, line) in lines.iter().enumerate() {
            match learned.map_line(shape, &self.grouping, line, &mut sorted.values) {
                Some(mapped) => sorted.mapped.push(mapped),
                None => sorted.by_name.push(place),
            }
        }
        sorted.mapped.sort_by_key(|line| (line.group, line.outline));
        sorted.by_name.sort_by_cached_key(|place| self.grouping.group(&lines[*place].bytes));
        sorted
    }
}

impl Learned {
    pub fn mapping(&self, lines: &[MappedLine<'_>]) -> Option<&LineMapping> {
        let grouped = self.mappings.get(lines.first()?.outline)?.as_ref()?;
        Some(&grouped.mapping)
    }

    /// Appends the values of a line; none of a line without a mapping.
    fn map_line<'line>(
        &mut self,
        shape: &Shape,
        grouping: &LineGrouping,
        line: &'line Line,
        values: &mut Vec<Value>,
    ) -> Option<MappedLine<'line>> {
        if self.attempts_left == 0 {
            return None;
        }
        let text = simdutf8::basic::from_utf8(&line.bytes).ok()?;
        let first_value = values.len();
        self.attempts_left -= 1;
        let known = self.outlines.read(text, values);
        let outline = match known {
            Some(outline) => outline,
            None => {
                self.learn(shape, grouping, text)?;
                self.outlines.read(text, values)?
            }
        };
        if known.is_some() && self.mappings.get(outline).is_some_and(Option::is_some) {
            self.attempts_left = MAX_ATTEMPTS.min(self.attempts_left + 2);
        }
        let known = self.mappings.get(outline).and_then(Option::as_ref);
        let value = |number: ValueNumber| values[first_value + number].of(text);
        let Some(GroupedMapping { mapping, group }) =
            known.filter(|known| known.mapping.is_for(shape.resource_type, value))
        else {
            values.truncate(first_value);
            return None;
        };
        let hash = self.content_hash.of_template(text, &values[first_value..], &mapping.hash);
        Some(MappedLine { number: line.number, text, hash, first_value, outline, group: *group })
    }

    fn learn(&mut self, shape: &Shape, grouping: &LineGrouping, text: &str) -> Option<()> {
        if self.outlines.is_full() {
            return None;
        }
        let document = self.tape.read(text).ok()?;
        let values = self.outlines.learn(document)?;
        let mapping = mapper::mapping(document, &values, shape);
        self.mappings.push(mapping.map(|mapping| GroupedMapping { mapping, group: grouping.group(text.as_bytes()) }));
        Some(())
    }
}

impl<'line> SortedLines<'line> {
    /// Neighbours with the same mapping.
    pub fn by_mapping(&self) -> impl Iterator<Item = &[MappedLine<'line>]> {
        self.mapped.chunk_by(|a, b| a.outline == b.outline).flat_map(|lines| lines.chunks(MAX_MAPPED_LINES))
    }
}

impl MappedLine<'_> {
    /// An object or array of the line. `values` are those of the sorted lines.
    pub fn fragment(&self, values: &[Value], fragment: Fragment) -> &str {
        fragment.of(self.text, &values[self.first_value..])
    }

    /// `values` are those of the sorted lines.
    #[inline]
    pub fn value(&self, values: &[Value], number: ValueNumber) -> Scalar<'_> {
        values[self.first_value + number].of(self.text)
    }
}
