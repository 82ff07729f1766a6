//! Known lines: the lines of one part of a batch in the order in which they become rows, those with the same plan
//! together.
//!
//! A line without a plan is decoded by its member names; nothing is known of it before, not even whether it is JSON.
//! Within the lines with a plan and within those without, lines with the same wide members are neighbours, because the
//! Parquet writer handles them faster ([`LineGrouping`]).

use std::{
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    mapper,
    mapping::{LinePlan, ValueNumber},
};
use crate::resource::{
    Line, LineGrouping, Shape,
    content_hash::ContentHash,
    json::{Outline, Outlines, Part, Scalar, Tape, Value},
};

/// What batches have learned of the lines of a resource type. A batch takes one part of it, and gives it back.
#[derive(Clone, Debug)]
pub struct Plans {
    grouping: Arc<LineGrouping>,
    known: Arc<Mutex<Vec<Known>>>,
    max_attempts: usize,
    /// Of a part.
    max_bytes: usize,
}

/// Outlines with a plan for each, and memory that the next lines of a batch use again.
#[derive(Debug)]
pub struct Known {
    outlines: Outlines,
    /// By outline; `None` where its lines are decoded by their member names.
    plans: Vec<Option<GroupPlan>>,
    attempts_left: usize,
    pub tape: Tape,
    pub content_hash: ContentHash,
}

#[derive(Debug)]
struct GroupPlan {
    plan: LinePlan,
    group: u8,
}

/// Lines in the order in which they become rows: those with a plan, and then those without.
pub struct SortedLines<'line> {
    /// Neighbours have the same plan.
    planned: Vec<PlannedLine<'line>>,
    /// The values of the lines with a plan.
    pub values: Vec<Value>,
    /// The lines without a plan: their places among the lines.
    pub strangers: Vec<usize>,
}

pub struct PlannedLine<'line> {
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
/// How many lines a batch tries in vain to find a plan for; each line with a plan makes up for one of them. Then its
/// lines have nothing in common, or something that no plan can have.
const MAX_ATTEMPTS: usize = 64;
/// Lines that become rows together. While they do, their text is in the cache of the core that read it.
const MAX_BLOCK_LINES: usize = 128;

impl Plans {
    pub fn of(shape: &Shape) -> Self {
        Self {
            grouping: Arc::new(LineGrouping::of(shape)),
            known: Arc::default(),
            max_attempts: MAX_ATTEMPTS,
            max_bytes: MAX_BYTES / thread::available_parallelism().map_or(1, NonZero::get),
        }
    }

    /// No plans: each line goes the way by its names. What the rows of plans are compared with.
    pub fn none(shape: &Shape) -> Self {
        Self { max_attempts: 0, ..Self::of(shape) }
    }

    pub fn take(&self) -> Known {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let known = known.unwrap_or_else(|| Known {
            outlines: Outlines::new(self.max_bytes),
            plans: Vec::new(),
            attempts_left: 0,
            tape: Tape::default(),
            content_hash: ContentHash::default(),
        });
        Known { attempts_left: self.max_attempts, ..known }
    }

    pub fn give_back(&self, known: Known) {
        // The largest line of the batch may have been much larger than most.
        let known = Known { tape: Tape::default(), content_hash: ContentHash::default(), ..known };
        self.known.lock().unwrap_or_else(PoisonError::into_inner).push(known);
    }

    /// Frees the memory, when the lines of the type have ended.
    pub fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub fn sort<'line>(&self, known: &mut Known, shape: &Shape, lines: &'line [Line]) -> SortedLines<'line> {
        let planned = Vec::with_capacity(lines.len());
        let mut sorted = SortedLines { planned, values: Vec::new(), strangers: Vec::new() };
        for (place, line) in lines.iter().enumerate() {
            match known.planned(shape, &self.grouping, line, &mut sorted.values) {
                Some(planned) => sorted.planned.push(planned),
                None => sorted.strangers.push(place),
            }
        }
        sorted.planned.sort_by_key(|line| (line.group, line.outline));
        sorted.strangers.sort_by_cached_key(|place| self.grouping.group(&lines[*place].bytes));
        sorted
    }
}

impl Known {
    pub fn plan(&self, block: &[PlannedLine<'_>]) -> Option<&LinePlan> {
        let known = self.plans.get(block.first()?.outline)?.as_ref()?;
        Some(&known.plan)
    }

    /// Appends the values of a line; none of a line without a plan.
    fn planned<'line>(
        &mut self,
        shape: &Shape,
        grouping: &LineGrouping,
        line: &'line Line,
        values: &mut Vec<Value>,
    ) -> Option<PlannedLine<'line>> {
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
        if known.is_some() && self.plans.get(outline).is_some_and(Option::is_some) {
            self.attempts_left = MAX_ATTEMPTS.min(self.attempts_left + 2);
        }
        let known = self.plans.get(outline).and_then(Option::as_ref);
        let value = |number: ValueNumber| values[first_value + number].of(text);
        let Some(GroupPlan { plan, group }) = known.filter(|known| known.plan.is_for(shape.resource_type, value))
        else {
            values.truncate(first_value);
            return None;
        };
        let hash = self.content_hash.planned(text, &values[first_value..], &plan.hash);
        Some(PlannedLine { number: line.number, text, hash, first_value, outline, group: *group })
    }

    fn learn(&mut self, shape: &Shape, grouping: &LineGrouping, text: &str) -> Option<()> {
        if self.outlines.is_full() {
            return None;
        }
        let document = self.tape.read(text).ok()?;
        let values = self.outlines.learn(document)?;
        let plan = mapper::plan(document, &values, shape);
        self.plans.push(plan.map(|plan| GroupPlan { plan, group: grouping.group(text.as_bytes()) }));
        Some(())
    }
}

impl<'line> SortedLines<'line> {
    /// Neighbours with the same plan.
    pub fn blocks(&self) -> impl Iterator<Item = &[PlannedLine<'line>]> {
        self.planned.chunk_by(|a, b| a.outline == b.outline).flat_map(|lines| lines.chunks(MAX_BLOCK_LINES))
    }
}

impl PlannedLine<'_> {
    /// An object or array. `values` are those of the sorted lines.
    pub fn part(&self, values: &[Value], part: Part) -> &str {
        part.of(self.text, &values[self.first_value..])
    }

    /// `values` are those of the sorted lines.
    #[inline]
    pub fn value(&self, values: &[Value], number: ValueNumber) -> Scalar<'_> {
        values[self.first_value + number].of(self.text)
    }
}
