//! A resource over several lines: what a server that prints prettily sends in the place of one line.
//!
//! Good lines pass untouched. A line is taken for the beginning of a longer resource only if it ends between two tokens
//! of JSON, inside an object; the lines that follow belong to it until its braces are balanced. NDJSON begins a
//! resource at the beginning of a line, so a `{` there ends the attempt: then each of the lines is what it is, a broken
//! one.

use super::Line;

/// Joins the lines of one file.
pub struct OverLines {
    limit_bytes: usize,
    open: Option<Open>,
}

/// A resource that has begun.
struct Open {
    joined: Vec<u8>,
    parts: Vec<Line>,
    scan: Scan,
}

/// Where in JSON a text ends.
#[derive(Default)]
struct Scan {
    depth: i64,
    in_string: bool,
    escaped: bool,
    last: u8,
}

impl OverLines {
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, open: None }
    }

    /// Takes some lines of the file, in order, and gives those that are complete.
    pub fn join(&mut self, lines: Vec<Line>) -> Vec<Line> {
        if self.open.is_none() && lines.iter().all(is_closed) {
            return lines;
        }
        let mut joined = Vec::with_capacity(lines.len());
        for line in lines {
            self.take(line, &mut joined);
        }
        joined
    }

    /// At the end of the file: the lines of a resource that did not end.
    pub fn finish(self) -> Vec<Line> {
        self.open.map(|open| open.parts).unwrap_or_default()
    }

    fn take(&mut self, line: Line, into: &mut Vec<Line>) {
        let open = match self.open.take() {
            Some(open) if line.bytes.first() == Some(&b'{') => {
                into.extend(open.parts);
                return self.take(line, into);
            }
            Some(open) if open.joined.len() + line.bytes.len() > self.limit_bytes => {
                into.extend(open.parts);
                into.push(line);
                return;
            }
            Some(open) => open.with(line),
            None if is_closed(&line) => return into.push(line),
            None => Open { joined: Vec::new(), parts: vec![], scan: Scan::default() }.with(line),
        };
        if open.scan.is_between_tokens() {
            self.open = Some(open);
        } else if open.scan.depth == 0 && !open.scan.in_string {
            into.extend(open.end());
        } else {
            into.extend(open.parts);
        }
    }
}

impl Open {
    fn with(mut self, line: Line) -> Self {
        let text = line.bytes.trim_ascii();
        self.scan.read(text);
        if !self.joined.is_empty() {
            self.joined.push(b' ');
        }
        self.joined.extend_from_slice(text);
        self.parts.push(line);
        self
    }

    /// The resource as one line, with the number of its first.
    fn end(self) -> Option<Line> {
        let first = self.parts.into_iter().next()?;
        Some(Line { bytes: self.joined.into(), ..first })
    }
}

impl Scan {
    fn read(&mut self, text: &[u8]) {
        for byte in text {
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => self.depth -= 1,
                _ => {}
            }
            self.last = *byte;
        }
    }

    /// A token may end a line in JSON, but never inside a string.
    fn is_between_tokens(&self) -> bool {
        self.depth > 0 && !self.in_string
    }
}

/// Begins and ends as a line of NDJSON does, or does not begin as one.
fn is_closed(line: &Line) -> bool {
    let text = line.bytes.trim_ascii();
    text.first() != Some(&b'{') || text.len() > 1 && text.last() == Some(&b'}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join(texts: &[&str]) -> (Vec<(u64, String)>, usize) {
        let mut over_lines = OverLines::new(1000);
        let lines =
            (1..).zip(texts).map(|(number, text)| Line { number, offset: 0, bytes: text.as_bytes().to_vec().into() });
        let mut joined = Vec::new();
        for line in lines {
            joined.extend(over_lines.join(vec![line]));
        }
        let text = |line: Line| (line.number, String::from_utf8(line.bytes.to_vec()).unwrap());
        (joined.into_iter().map(text).collect(), over_lines.finish().len())
    }

    #[test]
    fn a_pretty_printed_resource_is_one_line_and_its_neighbours_stay() {
        let pretty = ["{\"id\":1}", "{", "  \"name\": [", "    { \"given\": [\"}\\\"{\"] }", "  ]", "}", "{\"id\":2}"];
        let (joined, rest) = join(&pretty);
        let expected = [
            (1, "{\"id\":1}".to_owned()),
            (2, "{ \"name\": [ { \"given\": [\"}\\\"{\"] } ] }".to_owned()),
            (7, "{\"id\":2}".to_owned()),
        ];
        assert_eq!((joined, rest), (expected.to_vec(), 0));
    }

    #[test]
    fn a_broken_line_does_not_swallow_the_lines_after_it() {
        for broken in ["{\"id\":\"a", "{\"id\":\"a\",", "{"] {
            let (joined, rest) = join(&[broken, "{\"id\":2}", "{\"id\":3}"]);
            assert_eq!((joined.len(), rest), (3, 0), "{broken}");
            assert_eq!(joined[1], (2, "{\"id\":2}".to_owned()), "{broken}");
        }
    }

    #[test]
    fn a_resource_that_does_not_end_is_given_back_at_the_end() {
        assert_eq!(join(&["{", "  \"id\": 1,"]), (vec![], 2));
    }

    proptest! {
        #[test]
        fn no_line_is_lost(texts in prop::collection::vec("[ {}\\[\\],:\"a1\\\\]{1,8}", 0..20)) {
            let texts: Vec<_> = texts.iter().map(String::as_str).collect();
            let bytes = |text: &str| text.bytes().filter(|byte| *byte != b' ').collect::<Vec<_>>();
            let (joined, _) = join(&texts);
            let mut over_lines = OverLines::new(1000);
            let lines = (1..).zip(&texts).map(|(number, text)| Line { number, offset: 0, bytes: text.as_bytes().to_vec().into() });
            let mut all: Vec<_> = over_lines.join(lines.collect());
            prop_assert_eq!(all.len(), joined.len());
            all.extend(over_lines.finish());
            let found: Vec<u8> = all.iter().flat_map(|line| line.bytes.iter().copied()).filter(|byte| *byte != b' ').collect();
            prop_assert_eq!(found, texts.iter().flat_map(|text| bytes(text)).collect::<Vec<_>>());
        }
    }
}
