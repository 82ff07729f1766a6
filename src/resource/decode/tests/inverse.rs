//! The inverse of the decoder: do the typed columns say what the line says, but for exactly the listed issues?

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StructArray},
    datatypes::{Decimal128Type, Int32Type, TimestampMicrosecondType},
};

use crate::resource::{
    element::{Complex, Element, ElementContent, Primitive},
    json::{Document, Tape, TokenIndex, TokenKind},
    shape::Shape,
    value::{self, base64, decimal::Decimal},
};

/// A value of the typed columns.
#[derive(Debug, PartialEq)]
enum Typed {
    Null,
    Boolean(bool),
    Integer(i32),
    Decimal { unscaled: i128, column_scale: i8, scale: i32 },
    Instant(i64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Typed>),
    Object(BTreeMap<&'static str, Typed>),
}

/// Compares every row with its line; what differs, by the number of the row.
pub fn differences(shape: &Shape, rows: &RecordBatch, lines: &[String]) -> Vec<(usize, String)> {
    let root = StructArray::from(rows.clone());
    let difference = |(row, line): (usize, &String)| difference(shape, &root, row, line).err().map(|text| (row, text));
    lines.iter().enumerate().filter_map(difference).collect()
}

fn difference(shape: &Shape, root: &StructArray, row: usize, line: &str) -> Result<(), String> {
    let mut tape = Tape::default();
    let document = tape.read(line).map_err(|fault| format!("{fault:?}"))?;
    let mut reader = Reader { extension: shape.extension.as_deref(), extensions: HashMap::new(), fids: Vec::new() };
    reader.read_extensions(root, row);
    let typed = reader.object(&shape.elements, root, row);
    let mut fids = reader.fids.clone();
    fids.sort_unstable();
    fids.dedup();
    if fids.len() != reader.fids.len() || fids.last().copied() != i32::try_from(fids.len()).ok().map(|count| count - 1)
    {
        return Err(format!("the _fid are {:?}", reader.fids));
    }
    if !reader.extensions.is_empty() {
        return Err("extensions without a carrier".to_owned());
    }
    let mut compare = Compare {
        document,
        issues: texts(root, "_sync_issues", row).into_iter().collect(),
        primitive_ext: map(root, row),
        contained: texts(root, "contained", row),
    };
    compare.object(Document::ROOT, typed, shape.resource_type.as_str())?;
    match (compare.issues.first(), compare.primitive_ext.keys().next()) {
        (None, None) => Ok(()),
        left => Err(format!("listed, but not so: {left:?}")),
    }
}

fn texts(root: &StructArray, name: &str, row: usize) -> Vec<String> {
    let lists = root.column_by_name(name).unwrap().as_list::<i32>();
    if lists.is_null(row) {
        return Vec::new();
    }
    lists.value(row).as_string::<i32>().iter().map(|text| text.unwrap_or_default().to_owned()).collect()
}

fn map(root: &StructArray, row: usize) -> BTreeMap<String, String> {
    let maps = root.column_by_name("_primitive_ext").unwrap().as_map();
    let entries = maps.value(row);
    let column = |index: usize| entries.column(index).as_string::<i32>().iter().map(|text| text.unwrap().to_owned());
    if maps.is_null(row) { BTreeMap::new() } else { column(0).zip(column(1)).collect() }
}

struct Reader<'shape> {
    extension: Option<&'shape Complex>,
    extensions: HashMap<i32, ArrayRef>,
    fids: Vec<i32>,
}

impl Reader<'_> {
    fn read_extensions(&mut self, root: &StructArray, row: usize) {
        let maps = root.column_by_name("_extension").unwrap().as_map();
        assert!(maps.is_valid(row), "an empty map, never a null");
        let entries = maps.value(row);
        let lists = entries.column(1).as_list::<i32>();
        for (index, fid) in entries.column(0).as_primitive::<Int32Type>().values().iter().enumerate() {
            assert!(self.extensions.insert(*fid, lists.value(index)).is_none(), "two entries of one _fid");
        }
    }

    fn object(&mut self, elements: &[Element], structs: &StructArray, row: usize) -> BTreeMap<&'static str, Typed> {
        let fid = structs.column_by_name("_fid").unwrap().as_primitive::<Int32Type>().value(row);
        self.fids.push(fid);
        let mut object: BTreeMap<_, _> =
            elements.iter().map(|element| (element.name, self.element(element, structs, row))).collect();
        if let (Some(items), Some(extension)) = (self.extensions.remove(&fid), self.extension) {
            let items = (0..items.len()).map(|item| self.complex(extension, &items, item));
            object.insert("extension", Typed::List(items.collect()));
        }
        object.retain(|_, value| *value != Typed::Null);
        object
    }

    fn element(&mut self, element: &Element, structs: &StructArray, row: usize) -> Typed {
        let column = structs.column_by_name(element.name).unwrap();
        let scales = structs.column_by_name(&format!("{}_scale", element.name));
        if !element.repeated {
            return self.value(&element.content, column, scales, row);
        }
        let lists = column.as_list::<i32>();
        if lists.is_null(row) {
            return Typed::Null;
        }
        let (items, scales) = (lists.value(row), scales.map(|scales| scales.as_list::<i32>().value(row)));
        let items = (0..items.len()).map(|item| self.value(&element.content, &items, scales.as_ref(), item));
        Typed::List(items.collect())
    }

    fn value(&mut self, content: &ElementContent, column: &ArrayRef, scales: Option<&ArrayRef>, row: usize) -> Typed {
        let primitive = match content {
            _ if column.is_null(row) => return Typed::Null,
            ElementContent::Complex(complex) => return self.complex(complex, column, row),
            ElementContent::Primitive(primitive) => primitive,
        };
        match primitive {
            Primitive::Boolean => Typed::Boolean(column.as_boolean().value(row)),
            Primitive::Integer => Typed::Integer(column.as_primitive::<Int32Type>().value(row)),
            Primitive::Decimal => {
                let decimals = column.as_primitive::<Decimal128Type>();
                let scale = scales.unwrap().as_primitive::<Int32Type>().value(row);
                Typed::Decimal { unscaled: decimals.value(row), column_scale: decimals.scale(), scale }
            }
            Primitive::Instant => Typed::Instant(column.as_primitive::<TimestampMicrosecondType>().value(row)),
            Primitive::Base64 => Typed::Bytes(column.as_binary::<i32>().value(row).to_vec()),
            Primitive::Id | Primitive::Date | Primitive::DateTime | Primitive::Time | Primitive::Text => {
                Typed::Text(column.as_string::<i32>().value(row).to_owned())
            }
        }
    }

    fn complex(&mut self, complex: &Complex, column: &ArrayRef, row: usize) -> Typed {
        if column.is_null(row) {
            Typed::Null
        } else {
            Typed::Object(self.object(&complex.elements, column.as_struct(), row))
        }
    }
}

struct Compare<'line> {
    document: Document<'line>,
    issues: BTreeSet<String>,
    primitive_ext: BTreeMap<String, String>,
    contained: Vec<String>,
}

impl Compare<'_> {
    fn object(&mut self, at: TokenIndex, mut typed: BTreeMap<&'static str, Typed>, path: &str) -> Result<(), String> {
        let document = self.document;
        for (name, value) in document.members(at) {
            let name = document.string(name).ok_or("a name is not a text")?;
            let place = format!("{path}.{name}");
            if at == Document::ROOT && matches!(name.as_ref(), "resourceType" | "id") {
                continue;
            }
            if self.is_listed(&place) || (name == "modifierExtension" && self.take("modifier-extension", path)) {
                continue;
            }
            if at == Document::ROOT && name == "contained" {
                let resources: Vec<_> = document.items(value).map(|item| document.json(item).to_owned()).collect();
                if resources != self.contained {
                    return Err(place);
                }
                continue;
            }
            if let Some(bare) = name.strip_prefix('_') {
                let kept = self.primitive_ext.remove(&format!("{path}.{bare}"));
                if kept.as_deref() != Some(document.json(value)) {
                    return Err(place);
                }
                continue;
            }
            let kept = typed.remove(name.as_ref()).ok_or_else(|| format!("{place} is missing"))?;
            self.value(value, kept, &place)?;
        }
        typed.keys().next().map_or(Ok(()), |name| Err(format!("{path}.{name} was never sent")))
    }

    fn value(&mut self, at: TokenIndex, typed: Typed, place: &str) -> Result<(), String> {
        let document = self.document;
        let text = || document.string(at);
        let is_same = match typed {
            Typed::Object(object) if document.kind(at) == TokenKind::Object => return self.object(at, object, place),
            Typed::List(list) if document.kind(at) == TokenKind::Array => {
                let items: Vec<_> = document.items(at).collect();
                if items.len() != list.len() {
                    return Err(format!("{place} has {} items of {}", list.len(), items.len()));
                }
                for (index, (item, typed)) in items.into_iter().zip(list).enumerate() {
                    self.value(item, typed, &format!("{place}[{index}]"))?;
                }
                return Ok(());
            }
            Typed::Null => self.is_listed(place) || document.kind(at) == TokenKind::Null,
            Typed::Boolean(flag) => document.json(at) == flag.to_string(),
            Typed::Integer(number) => document.json(at) == number.to_string(),
            Typed::Decimal { unscaled, column_scale, scale } => self.decimal(at, place, unscaled, column_scale, scale),
            Typed::Instant(micros) => text().and_then(|text| value::instant_micros(&text)) == Some(micros),
            Typed::Bytes(bytes) => text().and_then(|text| base64(&text)) == Some(bytes),
            Typed::Text(kept) => text().as_deref() == Some(kept.as_str()),
            Typed::Object(_) | Typed::List(_) => false,
        };
        if is_same { Ok(()) } else { Err(format!("{place} is another value")) }
    }

    fn decimal(&mut self, at: TokenIndex, place: &str, unscaled: i128, column_scale: i8, scale: i32) -> bool {
        let Some((digits, lexical)) = Decimal::parse(self.document.text(at)).and_then(Decimal::exact) else {
            return false;
        };
        let column_scale = i32::from(column_scale);
        if scale != lexical.min(column_scale) {
            return false;
        }
        let shift = column_scale - lexical;
        if shift >= 0 {
            return digits * 10i128.pow(shift.unsigned_abs()) == unscaled;
        }
        let power = 10i128.pow(shift.unsigned_abs());
        let rounded = digits % power != 0;
        let near = (unscaled * power - digits).abs() * 2 <= power;
        near && rounded == self.take("decimal-rounded", place)
    }

    fn is_listed(&mut self, place: &str) -> bool {
        ["unmapped", "invalid", "too-deep", "extension-type"].into_iter().any(|code| self.take(code, place))
    }

    fn take(&mut self, code: &str, place: &str) -> bool {
        self.issues.remove(&format!("{code}: {place}"))
    }
}
