//! A walk: the way through one document, and what is collected on it beside the columns.

use std::collections::VecDeque;

use super::issues::{ElementPath, IssueCode, Issues};
use crate::resource::{
    element::Digits,
    json::{Document, TokenIndex, TokenKind},
    value::quantity::Units,
};

/// What the walks of one batch share.
pub struct Batch {
    pub digits: Digits,
    pub units: Units,
    pub issues: Issues,
}

/// A structure with extensions.
pub struct Carrier {
    pub fid: i32,
    /// The array of its extensions.
    pub at: TokenIndex,
    pub path: ElementPath,
}

/// Writes the extensions of the carriers that a walk has collected so far. A structure calls it as soon as it has added
/// one, so that element numbers, issues and extensions are in the order of the line.
pub type WriteExtensions<'a> = dyn FnMut(&mut Walk<'_>) + 'a;

pub struct Walk<'line> {
    pub document: Document<'line>,
    pub batch: &'line mut Batch,
    pub path: ElementPath,
    /// `Patient.birthDate` with the JSON of `_birthDate`.
    pub primitive_ext: Vec<(String, &'line str)>,
    /// Whose extensions are not written yet.
    pub carriers: VecDeque<Carrier>,
    next_fid: i32,
}

impl<'line> Walk<'line> {
    pub fn new(document: Document<'line>, batch: &'line mut Batch, root: &'static str) -> Self {
        Self {
            document,
            batch,
            path: ElementPath::of(root),
            primitive_ext: Vec::new(),
            carriers: VecDeque::new(),
            next_fid: 0,
        }
    }

    /// The element number of the next structure, Pathling's `_fid`: unique in its row, 0 for the resource itself, then
    /// in the order of the line. The extensions of a structure are found by it in the `_extension` column.
    pub fn next_fid(&mut self) -> i32 {
        let fid = self.next_fid;
        // A line has fewer structures than bytes, and fewer bytes than 2 GiB.
        self.next_fid = fid.wrapping_add(1);
        fid
    }

    /// Records an issue of the value at the path.
    pub fn issue(&mut self, code: IssueCode) {
        self.batch.issues.add(code, &self.path, None);
    }

    /// Records an issue of a member of the value at the path.
    pub fn issue_of(&mut self, code: IssueCode, member: &str) {
        self.batch.issues.add(code, &self.path, Some(member));
    }

    /// The member `_<name>` of the structure at the path: id and extensions of a primitive.
    pub fn primitive_ext(&mut self, name: &str, at: TokenIndex, repeated: bool) {
        let expected = if repeated { TokenKind::Array } else { TokenKind::Object };
        if self.document.kind(at) == expected {
            self.primitive_ext.push((self.path.text(Some(name)), self.document.json(at)));
        } else {
            self.issue_of(IssueCode::Invalid, &format!("_{name}"));
        }
    }

    /// The structure at the path has extensions.
    pub fn add_carrier(&mut self, fid: i32, at: TokenIndex) {
        if self.document.kind(at) == TokenKind::Array {
            self.carriers.push_back(Carrier { fid, at, path: self.path.clone() });
        } else {
            self.issue_of(IssueCode::Invalid, "extension");
        }
    }
}
