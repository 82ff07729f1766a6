use std::{collections::BTreeSet, fs, path::PathBuf};

use crate::citations::{assert_none, root};

#[test]
fn every_link_between_pages_leads_to_a_file_and_a_heading_in_it() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            count += 1;
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.with_file_name(path) };
            let is_there = match fs::read_to_string(&target) {
                Ok(text) => heading.is_empty() || anchors(&text).contains(heading),
                Err(_) => target.is_dir() && heading.is_empty(),
            };
            if !is_there {
                wrong.push(format!("{}: {link} leads nowhere", page.display()));
            }
        }
    }
    assert!(count > 100, "only {count} links were found");
    assert_none(&wrong);
}

#[test]
fn an_anchor_is_the_heading_in_small_letters_without_signs() {
    let text = "# First load: everything\n```sh\n# a comment\n```\n## `/health` while_it-runs\ntext # more\n";
    let expected = ["first-load-everything", "health-while_it-runs"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
}

fn pages() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/decisions"].map(|folder| root().join(folder));
    let paths = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// Where the links of a page lead, without those to other hosts.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://"))
}

/// The anchors of the headings of a page.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        let heading = line.trim_start_matches('#');
        if !is_code && heading.len() < line.len() {
            anchors.insert(anchor(heading.trim()));
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let small = heading.to_lowercase();
    let kept = small.chars().filter(|char| char.is_alphanumeric() || [' ', '-', '_'].contains(char));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect()
}
