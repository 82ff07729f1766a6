//! The page `docs/conformance.md`: for each rule and each quirk what fhir-sync does, and the tests that show it.
//!
//! The tables are made from `docs/rules.md` and from the citations in the doc comments of tests. The last part of the
//! page is written by hand: the numbers that no test shows, each with the reason. Between them they name every number
//! exactly once. After a change: `UPDATE_CONFORMANCE=1 cargo test --test it conformance::`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
};

use crate::citations::{RULES, assert_none, citations, flat, numbered, root};

const PAGE: &str = "docs/conformance.md";
/// Where tests are.
const READ: &[&str] = &["src", "tests"];
/// What follows is written by hand.
const BY_HAND: &str = "## What no test shows";

/// How many rules the specification of the client has, and how many quirks are known.
const RULE_COUNT: u32 = 139;
const QUIRK_COUNT: u32 = 85;

/// A number of a rule or a quirk, in the order of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Number {
    Rule(u32),
    Quirk(u32),
}

/// A test that cites, by the file it is in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shown {
    path: String,
    /// Its name as a sentence.
    sentence: String,
}

/// By number, the tests whose doc comments cite it.
type Tests = BTreeMap<Number, BTreeSet<Shown>>;

#[test]
fn the_page_has_what_the_rules_and_the_tests_say() {
    let path = root().join(PAGE);
    let page = fs::read_to_string(&path).unwrap_or_default();
    let by_hand = page.find(BY_HAND).map_or(BY_HAND, |start| &page[start..]);
    let expected = format!("{}{by_hand}", generated(&tests()));
    if env::var_os("UPDATE_CONFORMANCE").is_some() {
        fs::write(&path, expected).unwrap();
        return;
    }
    let differs = page.lines().zip(expected.lines()).find(|(is, should)| is != should);
    assert!(
        page == expected,
        "{PAGE} is not what {RULES} and the tests say; write it with `UPDATE_CONFORMANCE=1 cargo test --test it \
         conformance::`\n{differs:?}"
    );
}

#[test]
fn each_number_has_a_test_or_a_reason_for_having_none() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let (_, by_hand) = page.split_once(BY_HAND).unwrap();
    let reasons: Vec<_> = by_hand.lines().filter_map(|line| Number::of(&numbered(line)?)).collect();
    let tests = tests();
    let mut wrong = Vec::new();
    for number in Number::all() {
        let name = number.name();
        match (tests.contains_key(&number), reasons.iter().filter(|reason| **reason == number).count()) {
            (true, 0) | (false, 1) => {}
            (true, _) => wrong.push(format!("{name} has a test: delete its line below {BY_HAND:?}")),
            (false, 0) => wrong.push(format!("{name} has no test: give the reason below {BY_HAND:?}")),
            (false, _) => wrong.push(format!("{name} has two lines below {BY_HAND:?}")),
        }
    }
    let unknown = tests.keys().chain(&reasons).filter(|number| !Number::all().any(|known| known == **number));
    wrong.extend(unknown.map(|number| format!("{} is beyond the last number", number.name())));
    assert_none(&wrong);
}

#[test]
fn a_test_shows_what_the_comment_directly_above_it_cites() {
    let text = "/// Elsewhere (rule 1).\nfn other() {}\n\n    /// Pages are read,\n    /// all of them (rules 2\n    \
                /// and 3, Q-4).\n    #[expect(clippy::unwrap_used)]\n    #[tokio::test(start_paused = true)]\n    \
                async fn every_page_is_read() {\n\n/// (F3)\n#[test]\nfn no_number_of_a_rule() {\n";
    let found: Vec<_> = shown("src/a.rs", text).map(|(number, test)| (number, test.sentence)).collect();
    let sentence = || "every page is read".to_owned();
    assert_eq!(found, [(Number::Rule(2), sentence()), (Number::Rule(3), sentence()), (Number::Quirk(4), sentence())]);
}

impl Number {
    fn all() -> impl Iterator<Item = Self> {
        (1..=RULE_COUNT).map(Self::Rule).chain((1..=QUIRK_COUNT).map(Self::Quirk))
    }

    /// Of `rule 98` or `Q-31`.
    fn of(name: &str) -> Option<Self> {
        let rule = name.strip_prefix("rule ").and_then(|number| number.parse().ok());
        let quirk = name.strip_prefix("Q-").and_then(|number| number.parse().ok());
        rule.map(Self::Rule).or(quirk.map(Self::Quirk))
    }

    fn name(self) -> String {
        match self {
            Self::Rule(number) => format!("rule {number}"),
            Self::Quirk(number) => format!("Q-{number}"),
        }
    }
}

/// The page up to the part that is written by hand.
fn generated(tests: &Tests) -> String {
    let lines = lines();
    let is_rule = |number: &&Number| matches!(number, Number::Rule(_));
    let rules = tests.keys().filter(is_rule).count();
    let quirks = tests.len() - rules;
    let table = |wanted: fn(&Number) -> bool| -> String {
        tests.iter().filter(|(number, _)| wanted(number)).map(|(number, tests)| row(*number, &lines, tests)).collect()
    };
    format!(
        "# Rules and quirks, and the tests that show them\n\n\
         For readers who ask whether fhir-sync follows the guide, and what it does where a server does not.\n\
         Tests show {rules} of the {RULE_COUNT} rules and {quirks} of the {QUIRK_COUNT} quirks, and fail when \
         fhir-sync no longer does what is said\nhere. The others have a reason each, at [the \
         end](#what-no-test-shows). The sources are in [rules.md](rules.md).\n\n\
         The tables are made from [rules.md](rules.md) and from the comments above the tests; do not edit them:\n\
         `UPDATE_CONFORMANCE=1 cargo test --test it conformance::` writes them. The last part is written by hand, and a\n\
         test (`tests/it/conformance.rs`) holds that each number is in a table or there.\n\n\
         ## Rules\n\n| number | what it says | what fhir-sync does | tests |\n|---|---|---|---|\n{}\n\
         ## Quirks\n\n| number | what it says | what fhir-sync does | tests |\n|---|---|---|---|\n{}\n",
        table(|number| matches!(number, Number::Rule(_))),
        table(|number| matches!(number, Number::Quirk(_))),
    )
}

/// A line of a table: the cells of `docs/rules.md` and the tests, each after the file that it is in.
fn row(number: Number, lines: &BTreeMap<Number, [String; 2]>, tests: &BTreeSet<Shown>) -> String {
    let [says, does] = lines.get(&number).cloned().unwrap_or_default();
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for test in tests {
        by_file.entry(&test.path).or_default().push(&test.sentence);
    }
    let files = by_file.iter().map(|(path, sentences)| format!("{}: `{path}`", sentences.join("; ")));
    format!("| {} | {says} | {does} | {} |\n", number.name(), files.collect::<Vec<_>>().join("<br>"))
}

/// What each number says and what fhir-sync does, of the lines of `docs/rules.md`.
fn lines() -> BTreeMap<Number, [String; 2]> {
    let text = fs::read_to_string(root().join(RULES)).unwrap();
    let cells = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_start_matches("| ").trim_end_matches(" |").split(" | ").collect();
        let [_, says, _, does] = cells[..] else { return None };
        Some((Number::of(&numbered(line)?)?, [says.to_owned(), does.to_owned()]))
    });
    cells.collect()
}

fn tests() -> Tests {
    let mut left: Vec<PathBuf> = READ.iter().map(|path| root().join(path)).collect();
    let mut tests = Tests::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap();
            for (number, test) in shown(path, &text) {
                tests.entry(number).or_default().insert(test);
            }
        }
    }
    tests
}

/// What the tests of a file show: each number in the doc comment directly above one, in the order of the file.
fn shown(path: &str, text: &str) -> impl Iterator<Item = (Number, Shown)> {
    let mut comment = String::new();
    let mut is_test = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("///") {
            comment.push_str(line);
            comment.push('\n');
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else {
            let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some((name, _)) = name.filter(|_| is_test).and_then(|rest| rest.split_once('(')) {
                let names = citations(&flat(&comment)).into_iter().flat_map(|citation| citation.names);
                found.extend(
                    names
                        .filter_map(|name| Number::of(&name))
                        .map(|number| (number, Shown { path: path.to_owned(), sentence: name.replace('_', " ") })),
                );
            }
            comment.clear();
            is_test = false;
        }
    }
    found.into_iter()
}
