//! A document: one line of JSON as a flat list of tokens. Why this is not a crate: (decision 11).
//!
//! Reading checks the whole line against RFC 8259 and limits its depth, without recursion and without copying.
//! Afterwards each token knows where its value ends, so a value is skipped in one step. A string is unescaped only when
//! it is asked for.

use std::borrow::Cow;

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
#[derive(Default)]
pub struct Tape {
    tokens: Vec<Token>,
    open: Vec<TokenIndex>,
}

#[derive(Clone, Copy)]
pub struct Document<'line> {
    text: &'line str,
    tokens: &'line [Token],
}

impl Tape {
    /// Reads one line. A line of more than 4 GiB is a syntax error at that byte.
    pub fn read<'line>(&'line mut self, text: &'line str) -> Result<Document<'line>, SyntaxError> {
        self.tokens.clear();
        self.open.clear();
        if u32::try_from(text.len()).is_err() {
            return Err(SyntaxError::Invalid { at_byte: u32::MAX as usize });
        }
        Reader {
            bytes: text.as_bytes(),
            at: 0,
            tokens: &mut self.tokens,
            open: &mut self.open,
            inside: Inside::Nothing,
        }
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

    /// A string's text, unescaped. `None` for other values, and for half of a surrogate pair (`\ud83d` alone).
    #[inline]
    pub fn string(self, at: TokenIndex) -> Option<Cow<'line, str>> {
        match self.kind(at) {
            TokenKind::String => Some(Cow::Borrowed(self.text(at))),
            TokenKind::Escaped => unescaped(self.text(at)).map(Cow::Owned),
            _ => None,
        }
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

    fn json_start(self, at: TokenIndex) -> usize {
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

    /// The first member with this name.
    #[inline]
    pub fn member(self, at: TokenIndex, name: &str) -> Option<TokenIndex> {
        self.members(at).find(|(found, _)| self.text(*found) == name).map(|(_, value)| value)
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
    bytes: &'a [u8],
    at: usize,
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
            self.skip_space();
            expected = match (expected, self.peek()) {
                (Expected::CommaOrEnd, byte) => match (self.inside, byte) {
                    (Inside::Object, b',') => self.step(Expected::Member),
                    (Inside::Array, b',') => self.step(Expected::Value),
                    (Inside::Object, b'}') | (Inside::Array, b']') => self.close(),
                    (Inside::Nothing, _) if self.at == self.bytes.len() => return Ok(()),
                    _ => return Err(self.invalid()),
                },
                (Expected::MemberOrEnd | Expected::Member, b'"') => self.name()?,
                (Expected::MemberOrEnd, b'}') | (Expected::ItemOrEnd, b']') => self.close(),
                (Expected::Value | Expected::ItemOrEnd, byte) => self.value(byte)?,
                _ => return Err(self.invalid()),
            };
        }
    }

    fn value(&mut self, byte: u8) -> Result<Expected, SyntaxError> {
        match byte {
            b'{' => return self.open(TokenKind::Object, Inside::Object, Expected::MemberOrEnd),
            b'[' => return self.open(TokenKind::Array, Inside::Array, Expected::ItemOrEnd),
            b'"' => self.string()?,
            b't' => self.word("true", TokenKind::True)?,
            b'f' => self.word("false", TokenKind::False)?,
            b'n' => self.word("null", TokenKind::Null)?,
            _ => self.number()?,
        }
        Ok(Expected::CommaOrEnd)
    }

    fn name(&mut self) -> Result<Expected, SyntaxError> {
        self.string()?;
        self.skip_space();
        if self.peek() == b':' { Ok(self.step(Expected::Value)) } else { Err(self.invalid()) }
    }

    fn open(&mut self, kind: TokenKind, inside: Inside, expected: Expected) -> Result<Expected, SyntaxError> {
        if self.open.len() == MAX_LEVELS {
            return Err(SyntaxError::TooDeep { at_byte: self.at });
        }
        self.open.push(self.tokens.len());
        self.inside = inside;
        self.token(kind, self.at, self.at);
        Ok(self.step(expected))
    }

    fn close(&mut self) -> Expected {
        self.at += 1;
        let next = self.tokens.len() as u32;
        if let Some(at) = self.open.pop() {
            self.tokens[at].end = self.at as u32;
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
        let start = self.at + 1;
        let mut kind = TokenKind::String;
        self.at = start;
        loop {
            self.at += plain(&self.bytes[self.at..]);
            match self.peek() {
                b'"' => break,
                b'\\' => {
                    kind = TokenKind::Escaped;
                    self.escape()?;
                }
                // A control character, or the end of the line.
                _ => return Err(self.invalid()),
            }
        }
        self.token(kind, start, self.at);
        self.at += 1;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        self.at += 1;
        self.at += match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 1,
            b'u' => {
                let hex = self.bytes.get(self.at + 1..self.at + 5);
                if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
                    return Err(self.invalid());
                }
                5
            }
            _ => return Err(self.invalid()),
        };
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        self.at += usize::from(self.peek() == b'-');
        match self.peek() {
            b'0' => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), b'+' | b'-'));
            self.digits()?;
        }
        self.token(TokenKind::Number, start, self.at);
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.invalid()) } else { Ok(()) }
    }

    fn word(&mut self, word: &str, kind: TokenKind) -> Result<(), SyntaxError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.invalid());
        }
        self.token(kind, self.at, self.at + word.len());
        self.at += word.len();
        Ok(())
    }

    #[inline]
    fn token(&mut self, kind: TokenKind, start: usize, end: usize) {
        let next = self.tokens.len() as u32 + 1;
        self.tokens.push(Token { kind, start: start as u32, end: end as u32, next });
    }

    #[inline]
    fn skip_space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn step(&mut self, expected: Expected) -> Expected {
        self.at += 1;
        expected
    }

    /// The next byte; 0 at the end of the line, as valid JSON never has that byte.
    #[inline]
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    fn invalid(&self) -> SyntaxError {
        SyntaxError::Invalid { at_byte: self.at }
    }
}

/// How many bytes there are before the next quote, backslash or control character; all of them if there is none.
///
/// Eight bytes at a time. `(b - 1) & !b` has its high bit only if the byte `b` is 0, and `(b - 0x20) & !b` only if `b`
/// is less than 0x20; so `b ^ 0x22` finds quotes and `b ^ 0x5C` backslashes. In a whole word a byte that matches
/// borrows from the bytes above it, which may then be marked as well although they do not match. No borrow comes from
/// below the first match, so the lowest mark is right, and only that one is used. See "Determine if a word has a zero
/// byte" and "… has a byte less than n" in <https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord>.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let marked = (control | is_zero(word ^ (ONES * 0x22)) | is_zero(word ^ (ONES * 0x5C))) & HIGH;
        if marked != 0 {
            return index * 8 + marked.trailing_zeros() as usize / 8;
        }
    }
    let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
    bytes.len() - rest.len() + end.unwrap_or(rest.len())
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
