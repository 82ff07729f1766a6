use std::{collections::BTreeSet, fs, path::Path};

use fhir_sync::demo::named::NAMED;

const PAGE: &str = include_str!("../../docs/reliability.md");

/// Everything between backticks.
fn quoted() -> impl Iterator<Item = &'static str> {
    PAGE.split('`').skip(1).step_by(2)
}

/// The names of all functions below a folder.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let after_fn = text.split("fn ").skip(1).filter_map(|rest| rest.split_once('('));
            names.extend(after_fn.map(|(name, _)| name.to_owned()));
        }
    }
}

#[test]
fn each_test_that_the_page_on_reliability_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    functions(&root.join("src"), &mut names);
    functions(&root.join("tests"), &mut names);
    let is_test = |text: &&str| text.matches('_').count() > 3 && !text.contains([' ', '.', '/']);
    let named: Vec<_> = quoted().filter(is_test).collect();
    assert!(named.len() > 40, "{}", named.len());
    let unknown: Vec<_> = named.into_iter().filter(|name| !names.contains(*name)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn each_scenario_that_the_page_names_exists_and_nearly_all_are_there() {
    let page: BTreeSet<_> = quoted().collect();
    let (there, missing): (Vec<_>, Vec<_>) = NAMED.iter().partition(|named| page.contains(named.name));
    let missing: Vec<_> = missing.iter().map(|named| named.name).collect();
    assert!(there.len() > 25, "{missing:?}");
    let in_table = PAGE.lines().filter(|line| line.matches('|').count() == 6).filter_map(|line| line.split('|').nth(4));
    for name in in_table.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        assert!(NAMED.iter().any(|named| named.name == name), "{name}");
    }
}
