//! Projections: which leaves of a column are written.
//!
//! Leaves without values that are below the same present structure have the same levels, so one of them is written for
//! all. The Dremel paper (Melnik et al., VLDB 2010) describes it: a writer of a field takes the levels of its parent
//! until it has a value.

use std::sync::Arc;

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, ListArray, MapArray, StructArray},
    datatypes::{DataType, Field, FieldRef},
    error::ArrowError,
};
use parquet::schema::types::ColumnDescPtr;

use crate::table::data_file::fill::{Fill, children};

/// Where the pages of a leaf come from; the number is that of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has a writer of its own.
    Values(usize),
    /// It has no values, and the pages of this writer, which writes no values.
    Nulls(usize),
}

impl Role {
    pub fn writer(self) -> usize {
        let (Self::Values(writer) | Self::Nulls(writer)) = self;
        writer
    }
}

/// What is written of a column.
pub struct Projection {
    written: Written,
    /// Of each leaf of the column.
    pub roles: Vec<Role>,
}

impl Projection {
    /// All leaves have writers of their own.
    pub fn whole(field: &FieldRef, leaves: usize) -> Self {
        Self { written: Written::whole(field), roles: (0..leaves).map(Role::Values).collect() }
    }

    /// `leaves` describes those of the column.
    pub fn new(field: &FieldRef, fill: &Fill, leaves: &[ColumnDescPtr]) -> Self {
        let mut projector = Projector { leaves, fields: 0, groups: Vec::new(), roles: Vec::new(), writers: 0 };
        let written = projector.field(field, fill, 0).unwrap_or_else(|| Written::whole(field));
        Self { written, roles: projector.roles }
    }

    pub fn field(&self) -> &FieldRef {
        &self.written.field
    }

    /// The array without the leaves that are not written.
    pub fn project(&self, array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        self.written.project(array)
    }
}

/// A field with those of its children that are written; `None` is all of them.
struct Written {
    field: FieldRef,
    children: Option<Vec<(usize, Written)>>,
}

impl Written {
    fn whole(field: &FieldRef) -> Self {
        Self { field: Arc::clone(field), children: None }
    }

    fn project(&self, array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        let Some(children) = &self.children else { return Ok(Arc::clone(array)) };
        let nulls = array.nulls().cloned();
        Ok(match (self.field.data_type(), children.first()) {
            (DataType::Struct(fields), _) => {
                let columns = array.as_struct().columns();
                let columns = children.iter().map(|(at, child)| child.project(&columns[*at]));
                let columns = columns.collect::<Result<_, _>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, array.len())?)
            }
            (DataType::List(element), Some((_, child))) => {
                let list = array.as_list::<i32>();
                let values = child.project(list.values())?;
                Arc::new(ListArray::try_new(Arc::clone(element), list.offsets().clone(), values, nulls)?)
            }
            (DataType::Map(entries, ordered), Some((_, child))) => {
                let map = array.as_map();
                let all: ArrayRef = Arc::new(map.entries().clone());
                let (field, offsets) = (Arc::clone(entries), map.offsets().clone());
                let projected = child.project(&all)?.as_struct().clone();
                Arc::new(MapArray::try_new(field, offsets, projected, nulls, *ordered)?)
            }
            _ => Arc::clone(array),
        })
    }
}

/// Leaves whose pages are equal as long as none of them has a value.
#[derive(PartialEq)]
struct Group {
    /// The deepest present field above them decides the levels.
    below: usize,
    /// How many bits a level has.
    level_bits: (u32, u32),
}

struct Projector<'leaves> {
    leaves: &'leaves [ColumnDescPtr],
    fields: usize,
    groups: Vec<(Group, usize)>,
    roles: Vec<Role>,
    writers: usize,
}

impl Projector<'_> {
    /// What is written of a field that is below the present field `below`.
    fn field(&mut self, field: &FieldRef, fill: &Fill, below: usize) -> Option<Written> {
        self.fields += 1;
        let below = if fill.present { self.fields } else { below };
        if fill.children.is_empty() && !field.data_type().is_nested() {
            return self.leaf(fill, below).then(|| Written::whole(field));
        }
        let is_entries = |field: &Field| matches!(field.data_type(), DataType::Map(..));
        let mut written = Vec::new();
        for (at, (child, fill)) in children(field.data_type()).iter().zip(&fill.children).enumerate() {
            let of_child =
                if is_entries(field) { Some(self.entries(child, fill)) } else { self.field(child, fill, below) };
            written.extend(of_child.map(|of_child| (at, of_child)));
        }
        let fields = || written.iter().map(|(_, child)| Arc::clone(&child.field));
        let data_type = match (field.data_type(), written.first()) {
            (_, None) => return None,
            (DataType::List(_), Some((_, child))) => DataType::List(Arc::clone(&child.field)),
            (DataType::Map(_, ordered), Some((_, child))) => DataType::Map(Arc::clone(&child.field), *ordered),
            _ => DataType::Struct(fields().collect()),
        };
        let field = Arc::new(field.as_ref().clone().with_data_type(data_type));
        Some(Written { field, children: Some(written) })
    }

    /// A map has keys and values, so something of both is written: they begin groups of their own.
    fn entries(&mut self, field: &FieldRef, fill: &Fill) -> Written {
        let both = children(field.data_type()).iter().zip(&fill.children).enumerate();
        let both: Vec<_> = both
            .filter_map(|(at, (child, fill))| {
                self.fields += 1;
                let below = self.fields;
                Some((at, self.field(child, fill, below)?))
            })
            .collect();
        let data_type = DataType::Struct(both.iter().map(|(_, child)| Arc::clone(&child.field)).collect());
        Written { field: Arc::new(field.as_ref().clone().with_data_type(data_type)), children: Some(both) }
    }

    /// Decides the role of the next leaf. Does it get a writer?
    fn leaf(&mut self, fill: &Fill, below: usize) -> bool {
        let at = self.roles.len();
        let group = (!fill.present).then(|| {
            let bits = |level: i16| i16::BITS - level.leading_zeros();
            let leaf = &self.leaves[at];
            let level_bits = (bits(leaf.max_def_level()), bits(leaf.max_rep_level()));
            Group { below, level_bits }
        });
        let known = self.groups.iter().find(|(known, _)| group.as_ref() == Some(known));
        if let Some((_, writer)) = known {
            self.roles.push(Role::Nulls(*writer));
            return false;
        }
        let writer = self.writers;
        self.writers += 1;
        self.roles.push(if group.is_some() { Role::Nulls(writer) } else { Role::Values(writer) });
        self.groups.extend(group.map(|group| (group, writer)));
        true
    }
}
