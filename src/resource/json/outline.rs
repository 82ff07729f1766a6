//! Outlines: what many lines have in common.
//!
//! An outline is a line without its values: the text before, between and after them. A server writes lines of a few
//! outlines only, each many times. In a line of a known outline only the values are read; the rest of it is compared
//! with the outline, so such a line is valid JSON. Its values are those that [`Tape::read`](super::Tape::read) would
//! have found, in the order of the line. A line that follows no known outline may be valid or not.
//!
//! The outlines are a tree, because many of them begin in the same way. A node is a literal and the kind of value after
//! it. Of the nodes that may follow, the one of the last line is tried first.

use super::{Document, Scalar, Scanner, Token, TokenIndex, TokenKind};

/// The number of an outline, in the order in which they were learned.
pub type Outline = usize;

/// The outlines of one resource type. Their size is limited: what is beyond is not learned.
#[derive(Debug)]
pub struct Outlines {
    nodes: Vec<Node>,
    count: usize,
    bytes_left: usize,
}

/// A string, a number, `true` or `false`: where its text is, without the quotes of a string.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    kind: TokenKind,
    start: u32,
    end: u32,
}

/// An object or array of each line of an outline.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    start: Place,
    end: Place,
}

/// A byte of a line, counted from the end of the value before it, or from the beginning of the line.
#[derive(Clone, Copy, Debug)]
struct Place {
    after: Option<usize>,
    bytes: u32,
}

/// The tokens of a document that are values of its outline, in the order of the line.
pub struct OutlineValues(Vec<TokenIndex>);

/// About how much memory a mapping takes for each value.
const MAPPING_BYTES: usize = 240;

#[derive(Debug)]
struct Node {
    literal: Box<[u8]>,
    then: Then,
    /// What may follow the value.
    next: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The text of a string; the quotes belong to the literals.
    Text,
    Number,
    /// `true` or `false`. A `null` belongs to the literal.
    Flag,
    /// The end of the line.
    End(Outline),
}

impl Outlines {
    /// They, and the mappings that are made for them, take about `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        let root = Node { literal: Box::default(), then: Then::Text, next: Vec::new() };
        Self { nodes: vec![root], count: 0, bytes_left: max_bytes }
    }

    /// Appends the values of a line of a known outline; for any other line it appends nothing.
    pub fn read(&mut self, text: &str, values: &mut Vec<Value>) -> Option<Outline> {
        let before = values.len();
        let outline = self.follow(text, values);
        if outline.is_none() {
            values.truncate(before);
        }
        outline
    }

    /// Whether no outline is learned any more.
    pub fn is_full(&self) -> bool {
        self.bytes_left == 0
    }

    /// Learns the outline of a document. `None` if there is no room for it.
    pub fn learn(&mut self, document: Document<'_>) -> Option<OutlineValues> {
        let values = OutlineValues::from(document);
        let outline_bytes = document.text.len() + values.count() * MAPPING_BYTES;
        self.bytes_left = self.bytes_left.saturating_sub(outline_bytes);
        if self.is_full() {
            return None;
        }
        let (mut at, mut start) = (0, 0);
        for value in &values.0 {
            let Token { kind, start: end, end: after, .. } = document.tokens[*value];
            let then = match kind {
                TokenKind::Number => Then::Number,
                TokenKind::True | TokenKind::False => Then::Flag,
                _ => Then::Text,
            };
            at = self.follower(at, &document.text.as_bytes()[start..end as usize], then);
            start = after as usize;
        }
        self.follower(at, &document.text.as_bytes()[start..], Then::End(self.count));
        self.count += 1;
        Some(values)
    }

    /// Follows the tree to the end of the line.
    fn follow(&mut self, text: &str, values: &mut Vec<Value>) -> Option<Outline> {
        u32::try_from(text.len()).ok()?;
        let mut scan = Scanner::new(text);
        let mut at = 0;
        loop {
            at = self.next(at, scan.rest())?;
            let node = &self.nodes[at];
            scan.at += node.literal.len();
            let start = scan.at;
            let kind = match node.then {
                Then::Text => scan.text().ok()?,
                Then::Number => scan.number().map(|()| TokenKind::Number).ok()?,
                Then::Flag if scan.peek() == b't' => scan.word("true").map(|()| TokenKind::True).ok()?,
                Then::Flag => scan.word("false").map(|()| TokenKind::False).ok()?,
                Then::End(outline) => return Some(outline),
            };
            #[expect(clippy::cast_possible_truncation, reason = "the length of the text was checked")]
            values.push(Value { kind, start: start as u32, end: scan.at as u32 });
        }
    }

    /// The node after this one with which the rest of a line begins. At most one does: two that differ have different
    /// bytes, or different kinds of value, before either of them has ended.
    #[inline]
    fn next(&mut self, at: usize, rest: &[u8]) -> Option<usize> {
        let next = &self.nodes[at].next;
        let place = next.iter().position(|next| self.nodes[*next].begins(rest))?;
        let found = next[place];
        if place > 0 {
            self.nodes[at].next.swap(0, place);
        }
        Some(found)
    }

    /// The node after this one with a literal, which is added if it is new.
    fn follower(&mut self, at: usize, literal: &[u8], then: Then) -> usize {
        let is_same = |next: &&usize| *self.nodes[**next].literal == *literal && self.nodes[**next].then == then;
        if let Some(found) = self.nodes[at].next.iter().find(is_same) {
            return *found;
        }
        let new = self.nodes.len();
        self.bytes_left = self.bytes_left.saturating_sub(literal.len() + size_of::<Node>());
        self.nodes.push(Node { literal: literal.into(), then, next: Vec::new() });
        self.nodes[at].next.push(new);
        new
    }
}

impl Node {
    #[inline]
    fn begins(&self, rest: &[u8]) -> bool {
        let Some(after) = rest.strip_prefix(&*self.literal) else { return false };
        match (self.then, after.first()) {
            (Then::Text, _)
            | (Then::Number, Some(b'-' | b'0'..=b'9'))
            | (Then::Flag, Some(b't' | b'f'))
            | (Then::End(_), None) => true,
            (Then::Number | Then::Flag | Then::End(_), _) => false,
        }
    }
}

impl Value {
    /// The value, in the line that it was read from.
    #[inline]
    pub fn of(self, line: &str) -> Scalar<'_> {
        Scalar { kind: self.kind, text: &line[self.start as usize..self.end as usize] }
    }

    pub fn has_escapes(self) -> bool {
        self.kind == TokenKind::Escaped
    }
}

impl Fragment {
    /// Its text, in a line with these values.
    pub fn of<'line>(&self, line: &'line str, values: &[Value]) -> &'line str {
        let byte = |Place { after, bytes }| (after.map_or(0, |after: usize| values[after].end) + bytes) as usize;
        &line[byte(self.start)..byte(self.end)]
    }
}

impl OutlineValues {
    /// The number of a value, in the order of the line. `None` for objects, arrays and `null`.
    pub fn number(&self, at: TokenIndex) -> Option<usize> {
        self.0.binary_search(&at).ok()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Where an object or array is in each line of the outline.
    pub fn fragment(&self, document: Document<'_>, at: TokenIndex) -> Fragment {
        let place = |byte: u32| {
            let before = self.0.partition_point(|value| document.tokens[*value].end <= byte).checked_sub(1);
            let end = before.map_or(0, |before| document.tokens[self.0[before]].end);
            Place { after: before, bytes: byte - end }
        };
        let Token { start, end, .. } = document.tokens[at];
        Fragment { start: place(start), end: place(end) }
    }

    /// Recursion ends: a document has a limited depth.
    fn collect(&mut self, document: Document<'_>, at: TokenIndex) {
        match document.kind(at) {
            TokenKind::Object => document.members(at).for_each(|(_, value)| self.collect(document, value)),
            TokenKind::Array => document.items(at).for_each(|item| self.collect(document, item)),
            TokenKind::Null => {}
            _ => self.0.push(at),
        }
    }
}

impl From<Document<'_>> for OutlineValues {
    fn from(document: Document<'_>) -> Self {
        let mut values = Self(Vec::new());
        values.collect(document, Document::ROOT);
        values
    }
}
