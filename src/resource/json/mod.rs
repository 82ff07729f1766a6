//! A document: one line of JSON as a flat list of tokens. Why this is not a crate: (decision 11).
//!
//! Reading checks the whole line against RFC 8259 and limits its depth, without recursion and without copying.
//! Afterwards each token knows where its value ends, so a value is skipped in one step. A string is unescaped only when
//! it is asked for.

mod outline;
mod scan;

use std::borrow::Cow;

pub use self::outline::{Fragment, Outline, OutlineValues, Outlines, Value};
use self::scan::Scanner;

/// At most this many objects and arrays inside each other.
pub const MAX_LEVELS: usize = 100;

/// Why a line is not a document, and at which byte of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyntaxError {
    Invalid { at_byte: usize },
    TooDeep { at_byte: usize },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenKind {
    Object,
    Array,
    String,
    /// A string with escapes in it.
    Escaped,
    Number,
    True,
    False,
    Null,
}

/// A value or a member's name. `start..end` is its text; for strings, the text between the quotes.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    pub kind: TokenKind,
    start: u32,
    end: u32,
    /// The token after this one and everything in it.
    next: u32,
}

/// The index of a token in its document.
pub type TokenIndex = usize;

/// The tokens of the last line; the next line uses their memory again.
#[derive(Default, Debug)]
pub struct Tape {
    tokens: Vec<Token>,
    open: Vec<TokenIndex>,
}

#[derive(Clone, Copy)]
pub struct Document<'line> {
    text: &'line str,
    tokens: &'line [Token],
}

/// A value by itself: its text, without the quotes of a string.
#[derive(Clone, Copy)]
pub struct Scalar<'line> {
    pub kind: TokenKind,
    pub text: &'line str,
}

impl<'line> Scalar<'line> {
    /// A string's text, unescaped. `None` for other values, and for half of a surrogate pair (`\ud83d` alone).
    #[inline]
    pub fn string(self) -> Option<Cow<'line, str>> {
        match self.kind {
            TokenKind::String => Some(Cow::Borrowed(self.text)),
            TokenKind::Escaped => unescaped(self.text).map(Cow::Owned),
            _ => None,
        }
    }

    /// The text of a number.
    #[inline]
    pub fn number(self) -> Option<&'line str> {
        (self.kind == TokenKind::Number).then_some(self.text)
    }
}

impl Tape {
    /// Reads one line. A line of more than 4 GiB is a syntax error at that byte.
    pub fn read<'line>(&'line mut self, text: &'line str) -> Result<Document<'line>, SyntaxError> {
        self.tokens.clear();
        self.open.clear();
        if u32::try_from(text.len()).is_err() {
            return Err(SyntaxError::Invalid { at_byte: u32::MAX as usize });
        }
        Reader { scan: Scanner::new(text), tokens: &mut self.tokens, open: &mut self.open, inside: Inside::Nothing }
            .document()?;
        Ok(Document { text, tokens: &self.tokens })
    }
}

impl<'line> Document<'line> {
    pub const ROOT: TokenIndex = 0;

    #[inline]
    pub fn kind(self, at: TokenIndex) -> TokenKind {
        self.tokens[at].kind
    }

    /// How many bytes of the line are before the token.
    pub fn at_byte(self, at: TokenIndex) -> usize {
        self.tokens[at].start as usize
    }

    #[inline]
    pub fn string(self, at: TokenIndex) -> Option<Cow<'line, str>> {
        self.scalar(at).string()
    }

    /// The value; an object or an array is neither a string nor a number.
    #[inline]
    pub fn scalar(self, at: TokenIndex) -> Scalar<'line> {
        Scalar { kind: self.kind(at), text: self.text(at) }
    }

    /// The text as it was sent; of strings, the text between the quotes.
    #[inline]
    pub fn text(self, at: TokenIndex) -> &'line str {
        let Token { start, end, .. } = self.tokens[at];
        &self.text[start as usize..end as usize]
    }

    /// The JSON of a value, as it was sent.
    #[inline]
    pub fn json(self, at: TokenIndex) -> &'line str {
        self.json_through(at, at)
    }

    /// The JSON of a member's name up to that of its value, as it was sent, if nothing but a colon is in between.
    #[inline]
    pub fn json_until(self, name: TokenIndex, value: TokenIndex) -> Option<&'line str> {
        let (start, end) = (self.json_start(name), self.json_start(value));
        // The quote at the end of the name, and the colon.
        let is_tight = end == self.tokens[name].end as usize + 2;
        is_tight.then(|| &self.text[start..end])
    }

    /// The JSON from the beginning of one value to the end of another, as it was sent.
    #[inline]
    pub fn json_through(self, first: TokenIndex, last: TokenIndex) -> &'line str {
        let Token { kind, end, .. } = self.tokens[last];
        &self.text[self.json_start(first)..end as usize + quote(kind)]
    }

    /// The first eight bytes of a text as a number, the first byte highest; a shorter text is filled up with zeros.
    #[inline]
    pub fn beginning(self, at: TokenIndex) -> u64 {
        let Token { start, end, .. } = self.tokens[at];
        let bytes = end.saturating_sub(start).min(8);
        let rest = &self.text.as_bytes()[start as usize..];
        let read = rest.first_chunk().copied().unwrap_or_else(|| {
            let mut padded = [0; 8];
            padded[..rest.len()].copy_from_slice(rest);
            padded
        });
        // What follows the text in the line is not part of it.
        u64::from_be_bytes(read) & !u64::MAX.checked_shr(bytes * 8).unwrap_or(0)
    }

    pub fn json_start(self, at: TokenIndex) -> usize {
        let Token { kind, start, .. } = self.tokens[at];
        start as usize - quote(kind)
    }

    /// The names and values of an object, in the order of the line; nothing for other values.
    #[inline]
    pub fn members(self, at: TokenIndex) -> impl Iterator<Item = (TokenIndex, TokenIndex)> {
        let mut name = if self.kind(at) == TokenKind::Object { at + 1 } else { self.after(at) };
        let end = self.after(at);
        std::iter::from_fn(move || {
            let member = (name < end).then_some((name, name + 1))?;
            name = self.after(member.1);
            Some(member)
        })
    }

    /// Whether a token is another one, or part of it.
    pub fn is_in(self, at: TokenIndex, whole: TokenIndex) -> bool {
        whole <= at && at < self.after(whole)
    }

    /// The first member with this name, however it is escaped.
    #[inline]
    pub fn member(self, at: TokenIndex, name: &str) -> Option<TokenIndex> {
        let has_name = |found: TokenIndex| match self.kind(found) {
            TokenKind::Escaped => self.string(found).as_deref() == Some(name),
            _ => self.text(found) == name,
        };
        self.members(at).find(|(found, _)| has_name(*found)).map(|(_, value)| value)
    }

    /// The items of an array; nothing for other values.
    #[inline]
    pub fn items(self, at: TokenIndex) -> impl Iterator<Item = TokenIndex> {
        let mut item = if self.kind(at) == TokenKind::Array { at + 1 } else { self.after(at) };
        let end = self.after(at);
        std::iter::from_fn(move || {
            let found = (item < end).then_some(item)?;
            item = self.after(found);
            Some(found)
        })
    }

    #[inline]
    fn after(self, at: TokenIndex) -> TokenIndex {
        self.tokens[at].next as usize
    }
}

fn quote(kind: TokenKind) -> usize {
    usize::from(matches!(kind, TokenKind::String | TokenKind::Escaped))
}

struct Reader<'a> {
    scan: Scanner<'a>,
    tokens: &'a mut Vec<Token>,
    open: &'a mut Vec<TokenIndex>,
    inside: Inside,
}

/// What the next token is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Nothing,
    Object,
    Array,
}

/// What may come next.
enum Expected {
    Value,
    ItemOrEnd,
    MemberOrEnd,
    Member,
    CommaOrEnd,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a document is shorter than 4 GiB, and has fewer tokens than bytes"
)]
impl Reader<'_> {
    fn document(&mut self) -> Result<(), SyntaxError> {
        let mut expected = Expected::Value;
        loop {
            self.scan.skip_space();
            expected = match (expected, self.scan.peek()) {
                (Expected::CommaOrEnd, byte) => match (self.inside, byte) {
                    (Inside::Object, b',') => self.step(Expected::Member),
                    (Inside::Array, b',') => self.step(Expected::Value),
                    (Inside::Object, b'}') | (Inside::Array, b']') => self.close(),
                    (Inside::Nothing, _) if self.scan.is_at_end() => return Ok(()),
                    _ => return Err(self.scan.invalid()),
                },
                (Expected::MemberOrEnd | Expected::Member, b'"') => self.name()?,
                (Expected::MemberOrEnd, b'}') | (Expected::ItemOrEnd, b']') => self.close(),
                (Expected::Value | Expected::ItemOrEnd, byte) => self.value(byte)?,
                _ => return Err(self.scan.invalid()),
            };
        }
    }

    fn value(&mut self, byte: u8) -> Result<Expected, SyntaxError> {
        match byte {
            b'{' => return self.open(TokenKind::Object, Inside::Object, Expected::MemberOrEnd),
            b'[' => return self.open(TokenKind::Array, Inside::Array, Expected::ItemOrEnd),
            b'"' => self.string()?,
            b't' => self.scalar(TokenKind::True, |scan: &mut Scanner<'_>| scan.word("true"))?,
            b'f' => self.scalar(TokenKind::False, |scan: &mut Scanner<'_>| scan.word("false"))?,
            b'n' => self.scalar(TokenKind::Null, |scan: &mut Scanner<'_>| scan.word("null"))?,
            _ => self.scalar(TokenKind::Number, |scan: &mut Scanner<'_>| scan.number())?,
        }
        Ok(Expected::CommaOrEnd)
    }

    fn name(&mut self) -> Result<Expected, SyntaxError> {
        self.string()?;
        self.scan.skip_space();
        if self.scan.peek() == b':' { Ok(self.step(Expected::Value)) } else { Err(self.scan.invalid()) }
    }

    fn open(&mut self, kind: TokenKind, inside: Inside, expected: Expected) -> Result<Expected, SyntaxError> {
        if self.open.len() == MAX_LEVELS {
            return Err(SyntaxError::TooDeep { at_byte: self.scan.at });
        }
        self.open.push(self.tokens.len());
        self.inside = inside;
        self.token(kind, self.scan.at, self.scan.at);
        Ok(self.step(expected))
    }

    fn close(&mut self) -> Expected {
        self.scan.at += 1;
        let next = self.tokens.len() as u32;
        if let Some(at) = self.open.pop() {
            self.tokens[at].end = self.scan.at as u32;
            self.tokens[at].next = next;
        }
        self.inside = match self.open.last().map(|at| self.tokens[*at].kind) {
            None => Inside::Nothing,
            Some(TokenKind::Array) => Inside::Array,
            Some(_) => Inside::Object,
        };
        Expected::CommaOrEnd
    }

    fn string(&mut self) -> Result<(), SyntaxError> {
        self.scan.at += 1;
        let start = self.scan.at;
        let kind = self.scan.text()?;
        self.token(kind, start, self.scan.at);
        self.scan.at += 1;
        Ok(())
    }

    #[inline]
    fn scalar(
        &mut self,
        kind: TokenKind,
        read: impl FnOnce(&mut Scanner<'_>) -> Result<(), SyntaxError>,
    ) -> Result<(), SyntaxError> {
        let start = self.scan.at;
        read(&mut self.scan)?;
        self.token(kind, start, self.scan.at);
        Ok(())
    }

    #[inline]
    fn token(&mut self, kind: TokenKind, start: usize, end: usize) {
        let next = self.tokens.len() as u32 + 1;
        self.tokens.push(Token { kind, start: start as u32, end: end as u32, next });
    }

    fn step(&mut self, expected: Expected) -> Expected {
        self.scan.at += 1;
        expected
    }
}

/// Of a text that `Reader` has accepted: every escape is complete.
fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let (character, length) = match after.as_bytes().first()? {
            b'b' => ('\u{8}', 1),
            b'f' => ('\u{c}', 1),
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'u' => unicode(after)?,
            byte => (char::from(*byte), 1),
        };
        plain.push(character);
        rest = after.get(length..)?;
    }
    plain.push_str(rest);
    Some(plain)
}

/// The character of `uXXXX`, or of `uXXXX\uXXXX` for a pair of surrogates, and how many bytes that took.
fn unicode(text: &str) -> Option<(char, usize)> {
    let unit = |text: &str| u16::from_str_radix(text.get(..4)?, 16).ok();
    let high = unit(text.get(1..)?)?;
    if let Some(character) = char::from_u32(u32::from(high)) {
        return Some((character, 5));
    }
    let low = unit(text.get(5..)?.strip_prefix("\\u")?)?;
    let character = char::decode_utf16([high, low]).next()?.ok()?;
    Some((character, 11))
}

#[cfg(test)]
mod tests;
