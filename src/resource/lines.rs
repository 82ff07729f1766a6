//! Lines: NDJSON cut at its newlines, however the bytes arrive.
//!
//! Any chunking of the same bytes gives the same lines. Blank lines, `\r\n`, a byte-order mark at the start, and a
//! missing newline at the end are all legal (rule 86, Q-47). A line is held in memory whole, so its length has a limit.

use std::ops::Range;

/// One line without its newline, and its number in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// The first line of a file is 1; blank lines count.
    pub number: u64,
    /// Where it begins: how many decoded bytes of the file are before it.
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// A line is longer than `limit_bytes`. Nothing after it is read: where the next line begins is not known.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
#[error("line {number} is longer than {limit_bytes} bytes; raise `sync.max_line_size` if such resources are real")]
pub struct LineTooLong {
    pub number: u64,
    pub limit_bytes: usize,
}

pub struct Lines {
    limit_bytes: usize,
    number: u64,
    /// Where the line begins that `rest` is the beginning of.
    offset: u64,
    rest: Vec<u8>,
}

impl Lines {
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, number: 1, offset: 0, rest: Vec::new() }
    }

    /// Takes the next bytes and appends the lines that they complete to `lines`.
    pub fn push(&mut self, mut chunk: &[u8], lines: &mut Vec<Line>) -> Result<(), LineTooLong> {
        while let Some(end) = newline(chunk) {
            self.take(&chunk[..end])?;
            self.end_line(lines);
            chunk = &chunk[end + 1..];
        }
        self.take(chunk)
    }

    /// The last line, if the file ends without a newline.
    pub fn finish(mut self) -> Option<Line> {
        let mut last = Vec::new();
        self.end_line(&mut last);
        last.pop()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        if self.rest.len() + bytes.len() > self.limit_bytes {
            return Err(LineTooLong { number: self.number, limit_bytes: self.limit_bytes });
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, lines: &mut Vec<Line>) {
        let mut bytes = std::mem::take(&mut self.rest);
        let begins_at = self.offset;
        self.offset += bytes.len() as u64 + 1;
        if let Some(content) = content(&bytes, self.number == 1) {
            bytes.truncate(content.end);
            bytes.drain(..content.start);
            lines.push(Line { number: self.number, offset: begins_at + content.start as u64, bytes });
        }
        self.number += 1;
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

    fn split(chunks: &[&[u8]], limit_bytes: usize) -> Result<Vec<Line>, LineTooLong> {
        let mut lines = Lines::new(limit_bytes);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk, &mut out)?;
        }
        out.extend(lines.finish());
        Ok(out)
    }

    #[test]
    fn blank_lines_crlf_a_byte_order_mark_and_a_missing_last_newline_are_legal() {
        let lines = split(&[b"\xEF\xBB\xBF{1}\r\n\r\n  \n{2}\n{3}"], 100).unwrap();
        let seen: Vec<_> = lines.iter().map(|line| (line.number, line.offset, line.bytes.as_slice())).collect();
        assert_eq!(seen, [(1, 3, &b"{1}"[..]), (4, 13, b"{2}"), (5, 17, b"{3}")]);
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_with_its_number() {
        assert_eq!(split(&[b"{}\n", b"12345", b"6"], 5), Err(LineTooLong { number: 2, limit_bytes: 5 }));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_lines(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..200), cuts in proptest::collection::vec(0usize..200, 0..8)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(split(&chunks, 1000), split(&[&bytes], 1000));
        }
    }
}
