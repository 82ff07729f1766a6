//! Lines: NDJSON cut at its newlines, however the bytes arrive.
//!
//! Any chunking of the same bytes gives the same lines. Blank lines, `\r\n`, a byte-order mark at the start, and a
//! missing newline at the end are all legal (rule 86, Q-47). A line is held in memory whole, so its length has a limit; a
//! longer one is skipped, and its place is given.

use std::ops::Range;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf as _, Bytes};

/// One line without its newline, and its number in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// The first line of a file is 1; blank lines count.
    pub number: u64,
    /// Where it begins: how many decoded bytes of the file are before it.
    pub offset: u64,
    /// Part of the chunk in which it arrived; only a line that was cut by the end of a chunk is copied.
    pub bytes: Bytes,
}

/// A line that is longer than `limit_bytes`. Its bytes were read and not kept.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
#[error("line {number} is longer than {limit_bytes} bytes; raise `sync.max_line_size` if such resources are real")]
pub struct LineTooLong {
    pub number: u64,
    pub offset: u64,
    pub bytes: u64,
    pub sha256: [u8; 32],
    pub limit_bytes: usize,
}

pub struct Lines {
    limit_bytes: usize,
    number: u64,
    /// Where the line begins that `rest` is the beginning of.
    offset: u64,
    rest: Vec<u8>,
    /// In the place of `rest`.
    skipped: Option<Skipped>,
    too_long: Vec<LineTooLong>,
}

/// The beginning of a line that is too long.
struct Skipped {
    bytes: u64,
    sha256: Context,
}

impl Lines {
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, number: 1, offset: 0, rest: Vec::new(), skipped: None, too_long: Vec::new() }
    }

    /// Takes the next bytes and appends the lines that they complete to `lines`.
    pub fn push(&mut self, mut chunk: Bytes, lines: &mut Vec<Line>) {
        while let Some(end) = newline(&chunk) {
            let end_of_line = chunk.split_to(end);
            chunk.advance(1);
            if self.rest.is_empty() && self.skipped.is_none() && end_of_line.len() <= self.limit_bytes {
                self.line(&end_of_line, lines);
            } else {
                self.take(&end_of_line);
                self.end_line(lines);
            }
        }
        self.take(&chunk);
    }

    /// The last line, if the file ends without a newline.
    pub fn finish(&mut self) -> Option<Line> {
        let mut last = Vec::new();
        self.end_line(&mut last);
        last.pop()
    }

    /// The lines that were too long.
    pub fn too_long(self) -> Vec<LineTooLong> {
        self.too_long
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.skipped.is_none() && self.rest.len() + bytes.len() > self.limit_bytes {
            let mut skipped = Skipped { bytes: 0, sha256: Context::new(&SHA256) };
            skipped.take(&std::mem::take(&mut self.rest));
            self.skipped = Some(skipped);
        }
        match &mut self.skipped {
            Some(skipped) => skipped.take(bytes),
            None => self.rest.extend_from_slice(bytes),
        }
    }

    fn end_line(&mut self, lines: &mut Vec<Line>) {
        match self.skipped.take() {
            Some(skipped) => {
                let (number, offset) = (self.number, self.offset);
                self.number += 1;
                self.offset += skipped.bytes + 1;
                self.too_long.push(skipped.end(number, offset, self.limit_bytes));
            }
            None => {
                let bytes = std::mem::take(&mut self.rest);
                self.line(&bytes.into(), lines);
            }
        }
    }

    /// A whole line without its newline.
    fn line(&mut self, bytes: &Bytes, lines: &mut Vec<Line>) {
        let (number, offset) = (self.number, self.offset);
        self.number += 1;
        self.offset += bytes.len() as u64 + 1;
        if let Some(content) = content(bytes, number == 1) {
            lines.push(Line { number, offset: offset + content.start as u64, bytes: bytes.slice(content) });
        }
    }
}

impl Skipped {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    fn end(self, number: u64, offset: u64, limit_bytes: usize) -> LineTooLong {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.sha256.finish().as_ref());
        LineTooLong { number, offset, bytes: self.bytes, sha256, limit_bytes }
    }
}

/// The index of the next newline. It is searched for in blocks, which the compiler compares many bytes at a time.
fn newline(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 32;
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let has_newline = |block: &[u8; BLOCK]| block.iter().fold(0, |found, byte| found | u8::from(*byte == b'\n')) != 0;
    let before = blocks.iter().position(has_newline).unwrap_or(blocks.len()) * BLOCK;
    bytes[before..].iter().position(|byte| *byte == b'\n').map(|index| before + index)
}

/// A raw line without the byte-order mark and the `\r` of `\r\n`; `None` if only white space is left.
fn content(bytes: &[u8], first: bool) -> Option<Range<usize>> {
    let start = if first && bytes.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    let end = if bytes.ends_with(b"\r") { bytes.len() - 1 } else { bytes.len() };
    let blank = bytes[start..end].iter().all(u8::is_ascii_whitespace);
    (!blank).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]], limit_bytes: usize) -> (Vec<Line>, Vec<LineTooLong>) {
        let mut lines = Lines::new(limit_bytes);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(Bytes::copy_from_slice(chunk), &mut out);
        }
        out.extend(lines.finish());
        (out, lines.too_long())
    }

    /// (rule 86, Q-47)
    #[test]
    fn blank_lines_crlf_a_byte_order_mark_and_a_missing_last_newline_are_legal() {
        let (lines, _) = split(&[b"\xEF\xBB\xBF{1}\r\n\r\n  \n{2}\n{3}"], 100);
        let seen: Vec<_> = lines.iter().map(|line| (line.number, line.offset, line.bytes.as_ref())).collect();
        assert_eq!(seen, [(1, 3, &b"{1}"[..]), (4, 13, b"{2}"), (5, 17, b"{3}")]);
    }

    /// (rule 75)
    #[test]
    fn a_line_over_the_limit_is_skipped_and_said_and_the_next_line_is_read() {
        let (lines, too_long) = split(&[b"{}\n", b"12345", b"6\n{1}\n1234567"], 5);
        let seen: Vec<_> = lines.iter().map(|line| (line.number, line.offset)).collect();
        assert_eq!(seen, [(1, 0), (3, 10)]);
        let skipped: Vec<_> = too_long.iter().map(|line| (line.number, line.offset, line.bytes)).collect();
        assert_eq!(skipped, [(2, 3, 6), (4, 14, 7)]);
        let sha256 = aws_lc_rs::digest::digest(&SHA256, b"123456");
        assert_eq!(too_long[0].sha256, sha256.as_ref());
    }

    proptest! {
        /// (rule 86)
        #[test]
        fn any_chunking_gives_the_same_lines(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..200), cuts in proptest::collection::vec(0usize..200, 0..8)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(&chunks, 1000), split(&[&bytes], 1000));
            prop_assert_eq!(split(&chunks, 20), split(&[&bytes], 20));
        }
    }
}
