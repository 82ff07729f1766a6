//! Citations: the numbers in comments, tests and docs, and the line of `docs/rules.md` that each of them leads to.
//!
//! The forms are those at the top of that page. A citation may be broken over two lines of a comment.
//! `conformance` reads citations with the functions of this module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

pub(crate) const RULES: &str = "docs/rules.md";
const DECISIONS: &str = "docs/decisions";

/// Where citations are looked for.
const READ: &[&str] = &["src", "tests", "benches", "docs", "config", "deploy", "README.md", "CHANGELOG.md"];
/// Files whose numbers are not citations: examples, and the list that is made from citations.
const NOT_READ: &[&str] = &["tests/it/citations.rs", "tests/it/conformance.rs", "docs/conformance.md"];

/// One citation in a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Citation {
    /// `rule 98`, `Q-31`, `F3`, `schema 3.1`, `decision 10`; all numbers of a range.
    pub(crate) names: Vec<String>,
    /// It stands as it should: `(rule 98)`, or as a link to a decision.
    is_in_form: bool,
}

#[test]
fn every_number_that_is_cited_has_a_line() {
    let lines = lines();
    let mut wrong = Vec::new();
    for (name, paths) in cited(&[]) {
        if !name.starts_with("decision") && !lines.contains(&name) {
            wrong.push(format!("{name}, cited in {}: add its line to {RULES}, or correct the number", list(&paths)));
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_line_is_cited_by_something_else() {
    let cited = cited(&[RULES]);
    let uncited = lines().into_iter().filter(|name| !cited.contains_key(name));
    let wrong = uncited.map(|name| format!("{name}: nothing cites it; delete its line in {RULES}"));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn every_decision_that_is_cited_is_there() {
    let decisions = fs::read_dir(root().join(DECISIONS)).unwrap();
    let numbers: BTreeSet<String> = decisions
        .filter_map(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            Some(format!("decision {}", name.split_once('-')?.0.parse::<u32>().ok()?))
        })
        .collect();
    let missing = cited(&[]).into_iter().filter(|(name, _)| name.starts_with("decision") && !numbers.contains(name));
    let wrong = missing.map(|(name, paths)| format!("{name}, cited in {}: not in {DECISIONS}", list(&paths)));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn all_citations_have_the_same_form() {
    let mut wrong = Vec::new();
    for (path, text) in files() {
        if path == RULES {
            continue;
        }
        for citation in citations(&text).into_iter().filter(|citation| !citation.is_in_form) {
            wrong.push(format!("{path}: cite as ({}), or link the decision", citation.names.join(", ")));
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_number_has_two_lines() {
    let text = fs::read_to_string(root().join(RULES)).unwrap();
    let mut seen = BTreeSet::new();
    let twice = text.lines().filter_map(numbered).filter(|name| !seen.insert(name.clone()));
    assert_none(&twice.map(|name| format!("{name} has two lines in {RULES}")).collect::<Vec<_>>());
}

#[test]
fn every_line_has_a_source_whose_link_is_defined_and_no_link_is_left_over() {
    let text = fs::read_to_string(root().join(RULES)).unwrap();
    let (definitions, body): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.starts_with('[') && line.contains("]: https://"));
    let defined: BTreeSet<_> = definitions.iter().filter_map(|line| line[1..].split(']').next()).collect();
    let used: BTreeSet<_> = body.iter().flat_map(|line| labels(line)).collect();
    let mut wrong: Vec<String> = used.difference(&defined).map(|label| format!("[{label}] has no URL")).collect();
    wrong.extend(defined.difference(&used).map(|label| format!("[{label}] is used nowhere")));
    let numbered = body.iter().filter_map(|line| Some((numbered(line)?, *line)));
    for (name, line) in numbered {
        let cells = line.matches(" | ").count() + 1;
        let source = line.split(" | ").nth(2).unwrap_or_default();
        if cells != 4 || !(source.contains('[') || source.contains("ours")) {
            wrong.push(format!("{name}: its line has four cells, and the third says where it comes from"));
        }
    }
    assert_none(&wrong);
}

#[test]
fn a_citation_is_found_in_each_of_its_forms() {
    let found = |text: &str| {
        let citations = citations(&flat(text));
        citations.into_iter().map(|citation| (citation.names.join(" "), citation.is_in_form)).collect::<Vec<_>>()
    };
    let right = |names: &str| vec![(names.to_owned(), true)];
    let wrong = |names: &str| vec![(names.to_owned(), false)];
    assert_eq!(found("waits (rule 98)."), right("rule 98"));
    assert_eq!(found("(rules 21, 56 and 98)"), right("rule 21 rule 56 rule 98"));
    assert_eq!(found("(rules 66 to 68)"), right("rule 66 rule 67 rule 68"));
    assert_eq!(found("(rule 8, Q-4)"), right("rule 8 Q-4"));
    assert_eq!(found("    /// it (Q-20,\n    /// Q-80)"), right("Q-20 Q-80"));
    assert_eq!(found("# it (rule\n# 94: why)"), right("rule 94"));
    assert_eq!(found("(F3) (schema 3.1)"), [right("F3"), right("schema 3.1")].concat());
    assert_eq!(found("see [decision 9](0009-x.md)"), right("decision 9"));
    assert_eq!(found("See decision 10."), wrong("decision 10"));
    assert_eq!(found("Rules 120 and 121."), wrong("rule 120 rule 121"));
    assert_eq!(found("(table schema, 3.1)"), wrong("schema 3.1"));
    assert_eq!(found("SEQ-1, 0xF3, the rules, a decision, schema 1, (Q-)"), []);
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The numbers that have a line.
fn lines() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(RULES)).unwrap();
    text.lines().filter_map(numbered).collect()
}

/// `rule 98` of a line that begins with the cell `| rule 98 |`.
pub(crate) fn numbered(line: &str) -> Option<String> {
    let cell = line.strip_prefix("| ")?.split(" | ").next()?;
    match item(cell)? {
        (mut names, "") if names.len() == 1 => names.pop(),
        _ => None,
    }
}

/// The labels of reference links: `[label]` and `[text][label]`, but not `[text](url)`.
fn labels(line: &str) -> Vec<&str> {
    let plain = line.split('`').step_by(2);
    let parts = plain.flat_map(|text| text.split('[').skip(1)).filter_map(|part| part.split_once(']'));
    parts.filter(|(_, rest)| !rest.starts_with('(') && !rest.is_empty()).map(|(label, _)| label).collect()
}

/// What is cited, and in which files; `except` in some.
fn cited(except: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let mut cited: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files().into_iter().filter(|(path, _)| !except.contains(&path.as_str())) {
        for name in citations(&text).into_iter().flat_map(|citation| citation.names) {
            cited.entry(name).or_default().insert(path.clone());
        }
    }
    cited
}

/// The paths of all texts from the root of the repository, and the texts without their line breaks.
fn files() -> Vec<(String, String)> {
    let mut left: Vec<PathBuf> = READ.iter().map(|path| root().join(path)).collect();
    let mut files = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            files.push((path, flat(&text)));
        }
    }
    files.retain(|(path, _)| !NOT_READ.contains(&path.as_str()));
    files.sort();
    files
}

/// A text on one line, without the signs that begin a comment.
pub(crate) fn flat(text: &str) -> String {
    let line = |line: &'_ str| -> String {
        let line = line.trim();
        let sign = ["//!", "///", "//", "#"].into_iter().find_map(|sign| line.strip_prefix(sign));
        sign.unwrap_or(line).trim().to_owned()
    };
    text.lines().map(line).collect::<Vec<_>>().join(" ")
}

/// All citations of a flat text.
pub(crate) fn citations(text: &str) -> Vec<Citation> {
    let mut citations = Vec::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(char) = rest.chars().next() {
        let found = match char {
            '(' | '[' => group(rest).map(|(names, rest)| (names, true, rest)),
            _ if before.is_alphanumeric() || matches!(before, '_' | '-') => None,
            _ => item(rest).map(|(names, rest)| (names, false, rest)),
        };
        (before, rest) = match found {
            Some((names, is_in_form, rest)) => {
                citations.push(Citation { names, is_in_form });
                (' ', rest)
            }
            None => (char, &rest[char.len_utf8()..]),
        };
    }
    citations
}

/// Citations in parentheses, with or without a remark after a colon, or one as the text of a link; and what follows.
fn group(text: &str) -> Option<(Vec<String>, &str)> {
    let (mut names, mut rest) = item(text.get(1..)?)?;
    while let Some((more, after)) = rest.strip_prefix(", ").or_else(|| rest.strip_prefix(" and ")).and_then(item) {
        names.extend(more);
        rest = after;
    }
    let is_closed = match text.chars().next() {
        Some('(') => rest.starts_with([')', ':']),
        _ => rest.starts_with("](") && names.iter().all(|name| name.starts_with("decision")),
    };
    is_closed.then_some((names, rest))
}

/// One citation at the beginning of a text, and what follows.
fn item(text: &str) -> Option<(Vec<String>, &str)> {
    if let Some((number, rest)) = text.strip_prefix("Q-").and_then(number) {
        return Some((vec![format!("Q-{number}")], rest));
    }
    if let Some((number, rest)) = text.strip_prefix('F').and_then(number) {
        return (!rest.starts_with(char::is_alphanumeric)).then(|| (vec![format!("F{number}")], rest));
    }
    if let Some(rest) = text.strip_prefix("schema") {
        let (major, rest) = number(rest.strip_prefix(',').unwrap_or(rest).strip_prefix(' ')?)?;
        let (minor, rest) = number(rest.strip_prefix('.')?)?;
        return Some((vec![format!("schema {major}.{minor}")], rest));
    }
    let (noun, rest) = [("rule", "Rule"), ("decision", "Decision")].into_iter().find_map(|(small, capital)| {
        let rest = text.strip_prefix(small).or_else(|| text.strip_prefix(capital))?;
        Some((small, rest.strip_prefix('s').unwrap_or(rest).strip_prefix(' ')?))
    })?;
    let (numbers, rest) = numbers(rest)?;
    Some((numbers.into_iter().map(|number| format!("{noun} {number}")).collect(), rest))
}

/// `21`, `21, 56 and 98` or `66 to 70` at the beginning of a text, and what follows.
fn numbers(text: &str) -> Option<(Vec<u32>, &str)> {
    let (first, mut rest) = number(text)?;
    let mut numbers = vec![first];
    loop {
        let last = *numbers.last()?;
        if let Some((end, after)) = rest.strip_prefix(" to ").and_then(number) {
            numbers.extend(last + 1..=end);
            rest = after;
        } else if let Some((next, after)) =
            rest.strip_prefix(", ").or_else(|| rest.strip_prefix(" and ")).and_then(number)
        {
            numbers.push(next);
            rest = after;
        } else {
            return Some((numbers, rest));
        }
    }
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

fn list(paths: &BTreeSet<String>) -> String {
    paths.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Says everything that is wrong at once.
pub(crate) fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
