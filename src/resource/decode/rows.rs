//! Rows: the columns of one batch, while they grow.
//!
//! Every column has one value for each row, in the same order; the finished batch has exactly the shape's
//! schema.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray},
    datatypes::Field,
    error::ArrowError,
};

use super::{
    Decoder,
    complex::ComplexColumn,
    derived::DerivedColumns,
    derived_from::DerivedInput,
    extension::ExtensionColumn,
    head::Head,
    issues::{IssueCode, Issues},
    learned::MappedLine,
    mapped_lines::{MappedLines, ValueIssue},
    mapping::LineMapping,
    nulls::Nulls,
    string_columns::{StringListColumn, StringMapColumn},
    walk::{Batch, Walk, WriteExtensions},
};
use crate::resource::{
    json::{Document, TokenIndex, TokenKind, Value},
    value::quantity::Units,
};

pub struct Rows<'shape> {
    decoder: &'shape Decoder,
    batch: Batch,
    extensions: Option<ExtensionColumn<'shape>>,
    root: ComplexColumn<'shape>,
    derived: DerivedColumns,
    ids: StringBuilder,
    ids_versioned: StringBuilder,
    id_versioned: String,
    hashes: Vec<i64>,
    contained: StringListColumn,
    primitive_ext: StringMapColumn,
    issues: StringListColumn,
    json: StringBuilder,
}

impl<'shape> Rows<'shape> {
    /// `lines` and `lines_bytes` are their number and total size, for the memory to reserve.
    pub fn new(decoder: &'shape Decoder, lines: usize, lines_bytes: usize) -> Self {
        let shape = &decoder.shape;
        Self {
            decoder,
            batch: Batch { digits: shape.options.layout.digits(), units: Units::default(), issues: Issues::default() },
            extensions: shape.extension.as_deref().map(ExtensionColumn::new),
            root: ComplexColumn::of(&shape.elements),
            derived: DerivedColumns::new(&shape.derived, &shape.elements),
            ids: StringBuilder::new(),
            ids_versioned: StringBuilder::new(),
            id_versioned: String::new(),
            hashes: Vec::with_capacity(lines),
            contained: StringListColumn::new(),
            primitive_ext: StringMapColumn::new(),
            issues: StringListColumn::new(),
            json: if shape.options.raw_json {
                StringBuilder::with_capacity(lines, lines_bytes)
            } else {
                StringBuilder::new()
            },
        }
    }

    /// Appends one row.
    pub fn append(&mut self, document: Document<'_>, line: &str, head: &Head<'_>, hash: u64) -> Result<(), ArrowError> {
        let resource_type = self.decoder.shape.resource_type.as_str();
        self.ids.append_value(&head.id);
        versioned(&mut self.ids_versioned, &mut self.id_versioned, resource_type, head);
        self.hashes.push(hash.cast_signed());
        if self.decoder.shape.options.raw_json {
            self.json.append_value(line);
        }
        let mut walk = Walk::new(document, &mut self.batch, resource_type);
        let contained = if self.decoder.shape.elements.is_empty() {
            document.member(Document::ROOT, "contained")
        } else {
            let extensions = &mut self.extensions;
            let mut write_extensions = |walk: &mut Walk<'_>| {
                if let Some(column) = extensions {
                    column.write(walk);
                }
            };
            root_members(&mut self.root, &mut self.derived, &mut walk, &mut write_extensions)
        };
        let contained = contained.and_then(|at| resources(&mut walk, at));
        let primitive_ext = distinct(&mut walk);
        self.contained.append(contained.as_ref().map(|texts| texts.iter().copied()))?;
        self.primitive_ext.append(primitive_ext.iter().map(|(path, json)| (&**path, *json)))?;
        let issues = self.batch.issues.take();
        self.issues.append((!issues.is_empty()).then(|| issues.iter().map(|issue| Some(issue.as_str()))))?;
        if let Some(extensions) = &mut self.extensions {
            extensions.end_row();
        }
        Ok(())
    }

    /// Appends one row for each of these lines, which have the same mapping; `heads` are theirs.
    pub fn append_mapped(
        &mut self,
        lines: &[MappedLine<'_>],
        values: &[Value],
        mapping: &LineMapping,
        heads: &[Head<'_>],
    ) -> Result<(), ArrowError> {
        let shape = &self.decoder.shape;
        for (line, head) in lines.iter().zip(heads) {
            self.ids.append_value(&head.id);
            versioned(&mut self.ids_versioned, &mut self.id_versioned, shape.resource_type.as_str(), head);
            self.hashes.push(line.hash.cast_signed());
            if shape.options.raw_json {
                self.json.append_value(line.text);
            }
        }
        let mut mapped = MappedLines { lines, values, batch: &mut self.batch, issues: Vec::new() };
        let row = self.root.len();
        self.root.append_mapped(&mut mapped, &mapping.root);
        for (index, derived) in mapping.derived.iter().enumerate() {
            self.derived.append_mapped(&mut mapped, row, index, derived);
        }
        if let Some(extensions) = &mut self.extensions {
            extensions.append_mapped(&mut mapped, mapping);
        }
        let issues = mapped.issues(mapping);
        self.append_issues(lines.len(), &issues, mapping)?;
        match &mapping.contained {
            None => self.contained.append_nulls(lines.len()),
            Some(resources) => {
                for line in lines {
                    self.contained.append(Some(resources.iter().map(|json| Some(line.fragment(values, *json)))))?;
                }
            }
        }
        if mapping.primitive_ext.is_empty() {
            self.primitive_ext.append_nulls(lines.len());
            return Ok(());
        }
        for line in lines {
            let of_line = mapping.primitive_ext.iter().map(|(path, json)| (&**path, line.fragment(values, *json)));
            self.primitive_ext.append(of_line)?;
        }
        Ok(())
    }

    fn append_issues(&mut self, lines: usize, issues: &[ValueIssue], mapping: &LineMapping) -> Result<(), ArrowError> {
        let mut next = 0;
        for of_line in issues.chunk_by(|a, b| a.line == b.line) {
            let line = of_line[0].line;
            self.issues.append_nulls(line - next);
            for issue in of_line {
                self.batch.issues.add_at(issue.code, || issue.path(mapping).to_owned());
            }
            let texts = self.batch.issues.take();
            self.issues.append(Some(texts.iter().map(|text| Some(text.as_str()))))?;
            next = line + 1;
        }
        self.issues.append_nulls(lines - next);
        Ok(())
    }

    pub fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let schema = self.decoder.shape.schema();
        let (fields, rows) = (schema.fields(), self.hashes.len());
        let decoder = self.decoder;
        let mut columns: Vec<Option<ArrayRef>> = vec![
            Some(Arc::new(self.ids.finish())),
            Some(repeated(&decoder.source, rows)),
            Some(instants(decoder.run_started_micros, rows)),
            decoder.transaction_time.map(|time| instants(time.as_micros(), rows)),
        ];
        columns.extend(self.derived.finish(rows));
        if let Some(extensions) = self.extensions {
            columns.push(Some(repeated(decoder.shape.resource_type.as_str(), rows)));
            columns.push(Some(Arc::new(self.ids_versioned.finish())));
            let (arrays, fids) = self.root.finish_root(&fields[columns.len()..], self.batch.digits)?;
            columns.extend(arrays);
            columns.push(Some(fids));
            columns.push(Some(extensions.finish(field(fields, columns.len())?, self.batch.digits)?));
        }
        columns.push(Some(self.contained.finish(field(fields, columns.len())?)?));
        columns.push(Some(self.primitive_ext.finish(field(fields, columns.len())?)?));
        columns.push(Some(self.issues.finish(field(fields, columns.len())?)?));
        columns.push(Some(Arc::new(Int64Array::from(self.hashes))));
        columns.push(Some(repeated(&decoder.job, rows)));
        if decoder.shape.options.raw_json {
            columns.push(Some(Arc::new(self.json.finish())));
        }
        let mut nulls = Nulls::of(rows);
        let columns = fields.iter().zip(columns);
        let columns = columns.map(|(field, column)| column.unwrap_or_else(|| nulls.array(field))).collect();
        RecordBatch::try_new(schema, columns)
    }
}

/// Walks the members of the resource; gives back `contained`.
fn root_members(
    root: &mut ComplexColumn<'_>,
    derived: &mut DerivedColumns,
    walk: &mut Walk<'_>,
    write_extensions: &mut WriteExtensions<'_>,
) -> Option<TokenIndex> {
    let document = walk.document;
    let row = root.len();
    let fid = root.begin(walk);
    let mut contained = None;
    for (name, value) in document.members(Document::ROOT) {
        match document.string(name).as_deref() {
            // Read before the walk began.
            Some("resourceType" | "id") => {}
            Some("_id") => walk.primitive_ext("id", value, false),
            Some("contained") if contained.is_none() => contained = Some(value),
            Some("contained") => walk.issue_of(IssueCode::Invalid, "contained"),
            _ => {
                if let Some(element) = root.member(walk, write_extensions, fid, (name, value))
                    && derived.has(element)
                    && let input = DerivedInput::of(document, value, root.element(element))
                    && derived.append(row, element, input, |at| document.scalar(at)).is_err()
                    && let Some(name) = document.string(name)
                {
                    walk.issue_of(IssueCode::Invalid, &name);
                }
            }
        }
    }
    root.end();
    contained
}

/// The JSON of each contained resource, as it was sent.
fn resources<'line>(walk: &mut Walk<'line>, at: TokenIndex) -> Option<Vec<Option<&'line str>>> {
    let document = walk.document;
    walk.path.enter("contained");
    let mut texts = (document.kind(at) == TokenKind::Array).then(Vec::new);
    if texts.is_none() {
        walk.issue(IssueCode::Invalid);
    }
    for (index, item) in document.items(at).enumerate() {
        let is_resource = document.kind(item) == TokenKind::Object;
        texts.get_or_insert_default().push(is_resource.then(|| document.json(item)));
        if !is_resource {
            walk.path.enter_item(index);
            walk.issue(IssueCode::Invalid);
            walk.path.leave();
        }
    }
    walk.path.leave();
    texts
}

/// The primitive extensions of the row. Of two with the same path only the first: the keys of a map must be distinct.
fn distinct<'line>(walk: &mut Walk<'line>) -> Vec<(String, &'line str)> {
    if walk.primitive_ext.is_empty() {
        return Vec::new();
    }
    let mut seen = HashSet::new();
    let (first, again): (Vec<_>, Vec<_>) =
        std::mem::take(&mut walk.primitive_ext).into_iter().partition(|(path, _)| seen.insert(path.clone()));
    for (path, _) in again {
        walk.batch.issues.add_at(IssueCode::Invalid, || path);
    }
    first
}

/// `text` is memory that the next row uses again.
fn versioned(ids: &mut StringBuilder, text: &mut String, resource_type: &str, head: &Head<'_>) {
    text.clear();
    text.push_str(resource_type);
    text.push('/');
    text.push_str(&head.id);
    if let Some(version_id) = &head.version_id {
        text.push_str("/_history/");
        text.push_str(version_id);
    }
    ids.append_value(text);
}

fn field(fields: &[Arc<Field>], index: usize) -> Result<&Field, ArrowError> {
    let field = fields.get(index).ok_or_else(|| ArrowError::SchemaError(format!("there is no column {index}")))?;
    Ok(field)
}

fn repeated(text: &str, rows: usize) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, rows)))
}

fn instants(micros: i64, rows: usize) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(vec![micros; rows]).with_timezone("UTC"))
}
