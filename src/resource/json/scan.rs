//! A scanner: where in a line a string, a number or a word ends (RFC 8259).

use super::{SyntaxError, TokenKind};

pub struct Scanner<'line> {
    bytes: &'line [u8],
    /// The bytes before this one have been read.
    pub at: usize,
}

impl<'line> Scanner<'line> {
    pub fn new(text: &'line str) -> Self {
        Self { bytes: text.as_bytes(), at: 0 }
    }

    #[inline]
    pub fn rest(&self) -> &'line [u8] {
        &self.bytes[self.at..]
    }

    /// From behind the first quote of a string to the last one.
    #[inline]
    pub fn text(&mut self) -> Result<TokenKind, SyntaxError> {
        let mut kind = TokenKind::String;
        loop {
            self.at += plain(self.rest());
            match self.peek() {
                b'"' => return Ok(kind),
                b'\\' => {
                    kind = TokenKind::Escaped;
                    self.escape()?;
                }
                // A control character, or the end of the line.
                _ => return Err(self.invalid()),
            }
        }
    }

    pub fn number(&mut self) -> Result<(), SyntaxError> {
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
        Ok(())
    }

    pub fn word(&mut self, word: &str) -> Result<(), SyntaxError> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.invalid());
        }
        self.at += word.len();
        Ok(())
    }

    #[inline]
    pub fn skip_space(&mut self) {
        while matches!(self.peek(), b' ' | b'\t' | b'\n' | b'\r') {
            self.at += 1;
        }
    }

    /// The next byte; 0 at the end of the line, as valid JSON never has that byte.
    #[inline]
    pub fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn invalid(&self) -> SyntaxError {
        SyntaxError::Invalid { at_byte: self.at }
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

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(self.invalid()) } else { Ok(()) }
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
pub fn plain(bytes: &[u8]) -> usize {
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
