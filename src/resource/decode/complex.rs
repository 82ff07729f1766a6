//! A complex column: the structures of one type at one path of a resource.
//!
//! Elements that no line of the batch has cost nothing until the end; those that some line has are filled up with nulls
//! when the next value arrives. Each structure has an element number (`_fid`), unique in its row.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Int32Array, NullBufferBuilder, StructArray},
    datatypes::{DataType, Field, FieldRef},
    error::ArrowError,
};

use super::{
    canonical::{Canonical, Quantity},
    column::Column,
    issues::IssueCode,
    mapped_lines::MappedLines,
    mapping::StructuresMapping,
    nulls::Nulls,
    walk::{Walk, WriteExtensions},
};
use crate::resource::{
    element::{Complex, Digits, Element, ElementContent, Primitive, Special},
    json::{TokenIndex, TokenKind},
};

pub struct ComplexColumn<'shape> {
    elements: &'shape [Element],
    without_column: &'shape [&'static str],
    special: Special,
    is_extension: bool,
    /// Structures and nulls that are complete.
    len: usize,
    present: NullBufferBuilder,
    fids: Vec<i32>,
    /// By element; `None` for those that never had a value.
    columns: Vec<Option<Box<Column<'shape>>>>,
    canonical: Canonical,
    order: MemberOrder,
    /// The choices of the open structure that have a value already.
    chosen: Vec<&'static str>,
}

impl<'shape> ComplexColumn<'shape> {
    pub fn new(complex: &'shape Complex) -> Self {
        let of = Self::of(&complex.elements);
        Self {
            without_column: &complex.without_column,
            special: complex.special,
            is_extension: complex.type_name == "Extension",
            ..of
        }
    }

    /// A plain structure with nothing but these elements, such as a resource.
    pub fn of(elements: &'shape [Element]) -> Self {
        Self {
            elements,
            without_column: &[],
            special: Special::Plain,
            is_extension: false,
            len: 0,
            present: NullBufferBuilder::new(0),
            fids: Vec::new(),
            columns: std::iter::repeat_with(|| None).take(elements.len()).collect(),
            canonical: Canonical::default(),
            order: MemberOrder::new(elements.len()),
            chosen: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn element(&self, index: usize) -> &'shape Element {
        &self.elements[index]
    }

    pub fn append_nulls(&mut self, count: usize) {
        self.present.append_n_nulls(count);
        self.fids.resize(self.fids.len() + count, 0);
        self.len += count;
    }

    /// Appends an object.
    pub fn append(&mut self, walk: &mut Walk<'_>, write_extensions: &mut WriteExtensions<'_>, at: TokenIndex) {
        let fid = self.begin(walk);
        for (name, value) in walk.document.members(at) {
            self.member(walk, write_extensions, fid, (name, value));
        }
        if self.special == Special::Quantity {
            let document = walk.document;
            let quantity = Quantity::of(document, at);
            self.canonical.append(&mut walk.batch.units, self.len, quantity, |at| document.scalar(at));
        }
        self.end();
    }

    /// Appends the structures of lines with the same mapping.
    pub fn append_mapped(&mut self, mapped: &mut MappedLines<'_>, mapping: &StructuresMapping) {
        let structures = mapping.fids.len() * mapped.lines.len();
        if mapping.present.is_empty() {
            self.present.append_n_non_nulls(structures);
        }
        for _ in mapped.lines {
            self.fids.extend_from_slice(&mapping.fids);
            mapping.present.iter().for_each(|is_present| self.present.append(*is_present));
        }
        for member in &mapping.members {
            let element = &self.elements[member.element];
            let column = self.columns[member.element].get_or_insert_with(|| Box::new(Column::new(element)));
            column.append_nulls(self.len - column.len());
            column.append_mapped(mapped, member);
        }
        for (line, of) in mapped.lines.iter().enumerate() {
            for (place, quantity) in mapping.quantities.iter().enumerate() {
                let row = self.len + line * mapping.fids.len() + place;
                if let Some(quantity) = *quantity {
                    let value = |number| of.value(mapped.values, number);
                    self.canonical.append(&mut mapped.batch.units, row, quantity, value);
                }
            }
        }
        self.len += structures;
    }

    /// Opens a structure; gives back its element number.
    pub fn begin(&mut self, walk: &mut Walk<'_>) -> i32 {
        let fid = walk.next_fid();
        self.fids.push(fid);
        self.order.begin();
        self.chosen.clear();
        fid
    }

    pub fn end(&mut self) {
        self.present.append_non_null();
        self.len += 1;
    }

    /// Appends a member of the open structure to whatever column it belongs to; gives back the index of its element, if
    /// that has received a value.
    pub fn member(
        &mut self,
        walk: &mut Walk<'_>,
        write_extensions: &mut WriteExtensions<'_>,
        fid: i32,
        (name, value): (TokenIndex, TokenIndex),
    ) -> Option<usize> {
        if walk.document.kind(name) == TokenKind::String {
            let text = walk.document.text(name);
            if let Some(index) = self.order.guess(self.elements, text) {
                return self.element_value(walk, write_extensions, index, value).then_some(index);
            }
        }
        let Some(text) = walk.document.string(name) else {
            walk.issue_of(IssueCode::Unmapped, walk.document.text(name));
            return None;
        };
        match text.as_ref() {
            "extension" => {
                if self.choose("extension") {
                    walk.add_carrier(fid, value);
                    write_extensions(walk);
                } else {
                    walk.issue_of(IssueCode::Invalid, "extension");
                }
            }
            "modifierExtension" => walk.issue(IssueCode::ModifierExtension),
            text => match self.order.find(self.elements, text) {
                Some(index) => return self.element_value(walk, write_extensions, index, value).then_some(index),
                None => self.no_element(walk, text, value),
            },
        }
        None
    }

    /// `fields` is the struct's item or field.
    pub fn finish(self, field: &Field, digits: Digits) -> Result<StructArray, ArrowError> {
        let DataType::Struct(fields) = field.data_type() else {
            return Err(ArrowError::SchemaError(format!("{} is not a struct", field.name())));
        };
        let fields = fields.clone();
        let special = self.special;
        let Finished { arrays, canonical, mut present, fids, len } = self.finish_columns(&fields, digits)?;
        let mut nulls = Nulls::of(len);
        let arrays = arrays.into_iter().zip(&*fields);
        let mut arrays: Vec<_> = arrays.map(|(array, field)| array.unwrap_or_else(|| nulls.array(field))).collect();
        if special == Special::Quantity {
            arrays.extend(canonical.finish(&fields[arrays.len()..], len)?);
        }
        let present = present.finish();
        arrays.push(Arc::new(Int32Array::new(fids.into(), present.clone())));
        StructArray::try_new(fields, arrays, present)
    }

    /// For the structure that is the row itself: the arrays of the elements, none for those that no row has, and the
    /// `_fid`s.
    pub fn finish_root(
        self,
        fields: &[FieldRef],
        digits: Digits,
    ) -> Result<(Vec<Option<ArrayRef>>, ArrayRef), ArrowError> {
        let Finished { arrays, fids, .. } = self.finish_columns(fields, digits)?;
        Ok((arrays, Arc::new(Int32Array::from(fids))))
    }

    fn finish_columns(self, fields: &[FieldRef], digits: Digits) -> Result<Finished, ArrowError> {
        let mut arrays = Vec::with_capacity(fields.len());
        for (element, column) in self.elements.iter().zip(self.columns) {
            match column {
                None => arrays.resize(arrays.len() + width(element), None),
                Some(mut column) => {
                    column.append_nulls(self.len - column.len());
                    let (first, second) = column.finish(&fields[arrays.len()..], digits)?;
                    arrays.extend([Some(first)].into_iter().chain(second.map(Some)));
                }
            }
        }
        Ok(Finished { arrays, canonical: self.canonical, present: self.present, fids: self.fids, len: self.len })
    }

    fn element_value(
        &mut self,
        walk: &mut Walk<'_>,
        write_extensions: &mut WriteExtensions<'_>,
        index: usize,
        at: TokenIndex,
    ) -> bool {
        let element = &self.elements[index];
        let taken = self.columns[index].as_ref().is_some_and(|column| column.len() > self.len);
        if taken || !element.choice.is_none_or(|choice| self.choose(choice)) {
            walk.issue_of(IssueCode::Invalid, element.name);
            return false;
        }
        let column = self.columns[index].get_or_insert_with(|| Box::new(Column::new(element)));
        column.append_nulls(self.len - column.len());
        walk.path.enter(element.name);
        let appended = column.append(walk, write_extensions, at);
        walk.path.leave();
        appended
    }

    /// Whether this is the first member of the choice.
    fn choose(&mut self, choice: &'static str) -> bool {
        let first = !self.chosen.contains(&choice);
        if first {
            self.chosen.push(choice);
        }
        first
    }

    fn no_element(&self, walk: &mut Walk<'_>, name: &str, value: TokenIndex) {
        let (primitive, bare) = name.strip_prefix('_').map_or((false, name), |bare| (true, bare));
        let element = self.elements.iter().find(|element| primitive && element.name == bare);
        match element {
            Some(Element { content: ElementContent::Primitive(_), repeated, .. }) => {
                walk.primitive_ext(bare, value, *repeated);
            }
            _ if !self.without_column.contains(&bare) => walk.issue_of(IssueCode::Unmapped, name),
            _ if self.is_extension && bare.starts_with("value") => walk.issue_of(IssueCode::ExtensionType, name),
            _ => walk.issue_of(IssueCode::TooDeep, name),
        }
    }
}

/// How many columns an element has.
fn width(element: &Element) -> usize {
    match element.content {
        ElementContent::Primitive(Primitive::Decimal | Primitive::Id) => 2,
        ElementContent::Primitive(_) | ElementContent::Complex(_) => 1,
    }
}

struct Finished {
    arrays: Vec<Option<ArrayRef>>,
    canonical: Canonical,
    present: NullBufferBuilder,
    fids: Vec<i32>,
    len: usize,
}

/// The order of the members in the last structure: servers seldom change it from one structure to the next.
struct MemberOrder {
    /// By the index of an element plus one, with 0 for the beginning: the index of the element that followed.
    next: Vec<u16>,
    last: usize,
}

impl MemberOrder {
    fn new(elements: usize) -> Self {
        Self { next: (0..=u16::try_from(elements).unwrap_or(u16::MAX)).collect(), last: 0 }
    }

    fn begin(&mut self) {
        self.last = 0;
    }

    /// The element that followed the last time, if it has this name. Members without a column (`extension`, or what
    /// FHIR does not know) are never found, because no element has their name.
    #[inline]
    fn guess(&mut self, elements: &[Element], name: &str) -> Option<usize> {
        let guess = self.next.get(self.last).map(|next| usize::from(*next))?;
        let right = elements.get(guess).is_some_and(|element| element.name == name);
        right.then(|| {
            self.last = guess + 1;
            guess
        })
    }

    /// The element with this name, which the next guess will try first.
    fn find(&mut self, elements: &[Element], name: &str) -> Option<usize> {
        let found = elements.iter().position(|element| element.name == name)?;
        if let (Some(next), Ok(index)) = (self.next.get_mut(self.last), u16::try_from(found)) {
            *next = index;
        }
        self.last = found + 1;
        Some(found)
    }
}
