//! A walk: the way through one document, and what is collected on it beside the columns.

use std::collections::VecDeque;

use super::{
    extension::{Carrier, ExtensionColumn},
    issues::{ElementPath, IssueCode, Issues},
};
use crate::resource::{
    element::Digits,
    json::{At, Document, TokenKind},
    value::quantity::Units,
};

/// What the walks of one batch share.
pub struct Batch<'shape> {
    pub digits: Digits,
    pub units: Units,
    pub issues: Issues,
    /// Away while it is being written, and for types without one.
    pub extensions: Option<ExtensionColumn<'shape>>,
}

pub struct Walk<'line, 'shape> {
    pub document: Document<'line>,
    pub batch: &'line mut Batch<'shape>,
    pub path: ElementPath,
    /// `Patient.birthDate` with the JSON of `_birthDate`.
    pub primitive_ext: Vec<(String, &'line str)>,
    /// Extensions that were met while the column was being written.
    waiting: VecDeque<Carrier>,
    fids: i32,
}

impl<'line, 'shape> Walk<'line, 'shape> {
    pub fn new(document: Document<'line>, batch: &'line mut Batch<'shape>, root: &'static str) -> Self {
        let (primitive_ext, waiting) = (Vec::new(), VecDeque::new());
        Self { document, batch, path: ElementPath::of(root), primitive_ext, waiting, fids: 0 }
    }

    /// The number of the next structure: 0 for the resource itself, then in the order in which they are met.
    pub fn next_fid(&mut self) -> i32 {
        let fid = self.fids;
        // A line has fewer structures than bytes, and fewer bytes than 2 GiB.
        self.fids = fid.wrapping_add(1);
        fid
    }

    /// Something about the value at the path.
    pub fn issue(&mut self, code: IssueCode) {
        self.batch.issues.add(code, &self.path, None);
    }

    /// Something about a member of the value at the path.
    pub fn issue_of(&mut self, code: IssueCode, member: &str) {
        self.batch.issues.add(code, &self.path, Some(member));
    }

    /// The member `_<name>` of the structure at the path: id and extensions of a primitive.
    pub fn primitive_ext(&mut self, name: &str, at: At, repeated: bool) {
        let expected = if repeated { TokenKind::Array } else { TokenKind::Object };
        if self.document.kind(at) == expected {
            self.primitive_ext.push((self.path.text(Some(name)), self.document.json(at)));
        } else {
            self.issue_of(IssueCode::Invalid, &format!("_{name}"));
        }
    }

    /// The extensions of a structure go into the one map of the row. Inside of extensions they wait: the list that is
    /// being written must end first.
    pub fn extensions(&mut self, fid: i32, at: At) {
        if self.document.kind(at) != TokenKind::Array {
            self.issue_of(IssueCode::Invalid, "extension");
            return;
        }
        let Some(mut column) = self.batch.extensions.take() else {
            self.waiting.push_back(Carrier { fid, at, path: self.path.clone() });
            return;
        };
        let path = self.path.clone();
        column.append(self, Carrier { fid, at, path });
        while let Some(carrier) = self.waiting.pop_front() {
            column.append(self, carrier);
        }
        self.batch.extensions = Some(column);
    }
}
