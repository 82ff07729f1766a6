//! Derived columns: the bounds of times in UTC, and the type and id of references, of root elements that do not repeat.

use std::{borrow::Cow, sync::Arc};

use arrow::array::{ArrayRef, StringBuilder, TimestampMicrosecondBuilder};

use super::{
    derived_from::DerivedInput,
    issues::IssueCode,
    mapped_lines::{MappedLines, ValueIssue},
    mapping::DerivedMapping,
};
use crate::resource::{
    element::{Derived, DerivedFrom, Element},
    json::Scalar,
    value::{date, instant_micros, reference},
};

/// The derived columns of a batch. A row without the element has nulls in them.
pub struct DerivedColumns {
    columns: Vec<ColumnPair>,
    /// By the index of an element: which columns are derived from it, and how.
    from: Vec<Vec<(usize, Derivation)>>,
}

enum ColumnPair {
    Bounds { starts: TimestampMicrosecondBuilder, ends: TimestampMicrosecondBuilder, len: usize },
    Reference { types: StringBuilder, ids: StringBuilder, len: usize },
}

#[derive(Clone, Copy)]
enum Derivation {
    Time(DerivedFrom),
    Reference,
}

impl DerivedColumns {
    pub fn new(derived: &[Derived], elements: &[Element]) -> Self {
        let mut from: Vec<Vec<_>> = vec![Vec::new(); elements.len()];
        let index_of = |member: &str| elements.iter().position(|element| element.name == member && !element.repeated);
        let mut columns = Vec::with_capacity(derived.len());
        for (index, derived) in derived.iter().enumerate() {
            let made: Vec<_> = match derived {
                Derived::Bounds { members, .. } => {
                    let (starts, ends) = (TimestampMicrosecondBuilder::new(), TimestampMicrosecondBuilder::new());
                    columns.push(ColumnPair::Bounds { starts, ends, len: 0 });
                    members.iter().map(|(member, of)| (*member, Derivation::Time(*of))).collect()
                }
                Derived::Reference { members, .. } => {
                    let (types, ids) = (StringBuilder::new(), StringBuilder::new());
                    columns.push(ColumnPair::Reference { types, ids, len: 0 });
                    members.iter().map(|member| (*member, Derivation::Reference)).collect()
                }
            };
            for (member, how) in made {
                if let Some(uses) = index_of(member).and_then(|element| from.get_mut(element)) {
                    uses.push((index, how));
                }
            }
        }
        Self { columns, from }
    }

    /// Whether anything is derived from an element.
    pub fn has(&self, element: usize) -> bool {
        !self.from[element].is_empty()
    }

    /// Appends what is derived from the value of an element of this row. `Err` where that is a time without bounds.
    pub fn append<'line, At: Copy>(
        &mut self,
        row: usize,
        element: usize,
        input: DerivedInput<At>,
        scalar: impl Fn(At) -> Scalar<'line>,
    ) -> Result<(), NoBounds> {
        let mut appended = Ok(());
        let text = |at: Option<At>| at.and_then(|at| scalar(at).string());
        for (column, how) in &self.from[element] {
            match (&mut self.columns[*column], how) {
                (ColumnPair::Bounds { starts, ends, len }, Derivation::Time(of)) => {
                    let texts = [text(input.first), text(input.second)];
                    let (start, end) = bounds(*of, &texts);
                    if (start.is_none() || end.is_none()) && has_no_bounds(*of, &texts) {
                        appended = Err(NoBounds);
                    }
                    starts.append_nulls(row - *len);
                    starts.append_option(start);
                    ends.append_nulls(row - *len);
                    ends.append_option(end);
                    *len = row + 1;
                }
                (ColumnPair::Reference { types, ids, len }, Derivation::Reference) => {
                    let text = text(input.first);
                    let target = text.as_deref().and_then(reference::target);
                    types.append_nulls(row - *len);
                    types.append_option(target.map(|target| target.resource_type.as_str()));
                    ids.append_nulls(row - *len);
                    ids.append_option(target.map(|target| target.id));
                    *len = row + 1;
                }
                (ColumnPair::Bounds { .. }, Derivation::Reference)
                | (ColumnPair::Reference { .. }, Derivation::Time(_)) => {}
            }
        }
        appended
    }

    /// Appends what is derived from an element of each of these lines. `row` is that of the first line, `index` the
    /// place of the mapping among those of the line.
    pub fn append_mapped(&mut self, mapped: &mut MappedLines<'_>, row: usize, index: usize, mapping: &DerivedMapping) {
        if !self.has(mapping.element) {
            return;
        }
        let without = mapping.leaf.map(|leaf| mapped.invalid_lines(leaf)).unwrap_or_default();
        for (line, of) in mapped.lines.iter().enumerate() {
            if without.binary_search(&line).is_ok() {
                continue;
            }
            let value = |number| of.value(mapped.values, number);
            if self.append(row + line, mapping.element, mapping.input, value).is_err() {
                let (code, derived) = (IssueCode::Invalid, Some(index));
                mapped.issues.push(ValueIssue { line, code, value: mapping.last, derived });
            }
        }
    }

    /// In the order of the schema; `None` for columns that no row has.
    pub fn finish(self, rows: usize) -> Vec<Option<ArrayRef>> {
        let finish = |columns| -> [Option<ArrayRef>; 2] {
            match columns {
                ColumnPair::Bounds { len: 0, .. } | ColumnPair::Reference { len: 0, .. } => [None, None],
                ColumnPair::Bounds { mut starts, mut ends, len } => {
                    starts.append_nulls(rows - len);
                    ends.append_nulls(rows - len);
                    [starts, ends].map(|mut column| Some(Arc::new(column.finish().with_timezone("UTC")) as ArrayRef))
                }
                ColumnPair::Reference { mut types, mut ids, len } => {
                    types.append_nulls(rows - len);
                    ids.append_nulls(rows - len);
                    [types, ids].map(|mut column| Some(Arc::new(column.finish()) as ArrayRef))
                }
            }
        };
        self.columns.into_iter().flat_map(finish).collect()
    }
}

/// A time that is valid and outside of the years 0001 to 9999, or stands for none.
pub struct NoBounds;

fn has_no_bounds(of: DerivedFrom, texts: &[Option<Cow<'_, str>>; 2]) -> bool {
    let no_bounds = |text: &str| date::is_date_time(text) && date::date_time(text).is_none();
    // The column of an instant itself has the issue.
    of != DerivedFrom::Instant && texts.iter().flatten().any(|text| no_bounds(text))
}

/// The first and the last microsecond; of a Period that of its `start` and that of its `end`.
fn bounds(of: DerivedFrom, [first, second]: &[Option<Cow<'_, str>>; 2]) -> (Option<i64>, Option<i64>) {
    let stated = |text: &Option<Cow<'_, str>>| text.as_deref().and_then(|text| time(of, text));
    let start = stated(first);
    let end = if of == DerivedFrom::Period { stated(second) } else { start };
    (start.map(|bounds| bounds.start_micros), end.map(|bounds| bounds.end_micros))
}

fn time(of: DerivedFrom, text: &str) -> Option<date::TimeBounds> {
    match of {
        DerivedFrom::Date => date::date(text),
        DerivedFrom::DateTime | DerivedFrom::Period => date::date_time(text),
        DerivedFrom::Instant => date::date_time(text).or_else(|| {
            instant_micros(text).map(|micros| date::TimeBounds { start_micros: micros, end_micros: micros })
        }),
    }
}
