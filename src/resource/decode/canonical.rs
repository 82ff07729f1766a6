//! Canonical columns: `_value_canonicalized` and `_code_canonicalized` of the quantities of a column.

use std::{mem, sync::Arc};

use arrow::{
    array::{ArrayRef, Decimal128Array, Int32Array, NullBufferBuilder, StringBuilder, StructArray},
    datatypes::{DataType, FieldRef},
    error::ArrowError,
};

use super::nulls::Nulls;
use crate::resource::{
    json::{Document, OutlineValues, Scalar, TokenIndex},
    value::{
        decimal::Decimal,
        quantity::{CanonicalValue, UCUM, Units},
    },
};

/// The members of a quantity that decide its canonical form, as tokens of a document or as values of an outline.
#[derive(Clone, Copy, Debug)]
pub struct Quantity<At> {
    system: Option<At>,
    value: Option<At>,
    code: Option<At>,
}

impl Quantity<TokenIndex> {
    pub fn of(document: Document<'_>, at: TokenIndex) -> Self {
        let [system, value, code] = ["system", "value", "code"].map(|name| document.member(at, name));
        Self { system, value, code }
    }

    pub fn in_outline(self, values: &OutlineValues) -> Quantity<usize> {
        let number = |at: Option<TokenIndex>| at.and_then(|at| values.number(at));
        Quantity { system: number(self.system), value: number(self.value), code: number(self.code) }
    }
}

#[derive(Default)]
pub struct Canonical {
    mantissas: Vec<i128>,
    scales: Vec<i32>,
    present: Option<NullBufferBuilder>,
    codes: StringBuilder,
}

impl Canonical {
    /// Appends the quantity of a row. Only a quantity with the system of UCUM, a value and a code has a canonical form.
    pub fn append<'line, At: Copy>(
        &mut self,
        units: &mut Units,
        row: usize,
        quantity: Quantity<At>,
        scalar: impl Fn(At) -> Scalar<'line>,
    ) {
        let string = |at: Option<At>| at.and_then(|at| scalar(at).string());
        if string(quantity.system).is_none_or(|system| system != UCUM) {
            return;
        }
        let value = quantity.value.and_then(|at| scalar(at).number()).and_then(Decimal::parse);
        let (Some(value), Some(code)) = (value, string(quantity.code)) else { return };
        let Some(unit) = units.unit(&code) else { return };
        self.fill(row);
        self.codes.append_value(&unit.canonical_code);
        let canonical = unit.canonical(value);
        let present = self.present.get_or_insert_with(|| nulls(row));
        present.append(canonical.is_some());
        let CanonicalValue { mantissa, scale } = canonical.unwrap_or(CanonicalValue { mantissa: 0, scale: 0 });
        self.mantissas.push(mantissa);
        self.scales.push(scale);
    }

    fn fill(&mut self, rows: usize) {
        let missing = rows - self.mantissas.len();
        self.mantissas.resize(rows, 0);
        self.scales.resize(rows, 0);
        self.codes.append_nulls(missing);
        if let Some(present) = &mut self.present {
            present.append_n_nulls(missing);
        }
    }

    pub fn finish(mut self, fields: &[FieldRef], len: usize) -> Result<Vec<ArrayRef>, ArrowError> {
        let [value, code, ..] = fields else {
            return Err(ArrowError::SchemaError("a quantity has no canonical columns".to_owned()));
        };
        let Some(mut present) = mem::take(&mut self.present) else {
            let mut nulls = Nulls::of(len);
            return Ok([value, code].map(|field| nulls.array(field)).to_vec());
        };
        let missing = len - self.mantissas.len();
        present.append_n_nulls(missing);
        self.fill(len);
        let present = present.finish();
        let mantissas = Decimal128Array::new(self.mantissas.into(), present.clone()).with_precision_and_scale(38, 0)?;
        let scales = Int32Array::new(self.scales.into(), present.clone());
        let DataType::Struct(fields) = value.data_type() else {
            return Err(ArrowError::SchemaError(format!("{} is not a struct", value.name())));
        };
        let values = StructArray::try_new(fields.clone(), vec![Arc::new(mantissas), Arc::new(scales)], present)?;
        Ok(vec![Arc::new(values), Arc::new(self.codes.finish())])
    }
}

fn nulls(count: usize) -> NullBufferBuilder {
    let mut nulls = NullBufferBuilder::new(count);
    nulls.append_n_nulls(count);
    nulls
}
