use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Which rooms a room may name. Who is missing here may name nobody.
const ARROWS: &[(&str, &[&str])] = &[
    ("demo", &["fhir"]),
    ("views", &[]),
    ("state", &["fhir"]),
    ("table", &["fhir"]),
    ("resource", &["fhir"]),
    ("export", &["fhir"]),
    ("sync", &["export", "resource", "table", "state", "fhir"]),
    ("serve", &["sync", "fhir"]),
    ("schedule", &["sync"]),
    ("config", &["export", "resource", "schedule", "serve", "sync", "table", "telemetry", "fhir"]),
    ("daemon", &["config", "schedule", "serve", "sync", "state"]),
    // No room below `sync` but `state`: what the commands need of those, `sync` re-exports.
    ("cli", &["config", "daemon", "demo", "fhir", "state", "sync", "telemetry", "views"]),
    ("main", &["cli"]),
];

/// Crates that only some rooms may name.
const CRATES: &[(&str, &[&str])] = &[
    ("deltalake", &["table"]),
    // `cli` for the healthcheck, which asks the daemon and never the FHIR server.
    ("reqwest", &["export", "cli"]),
    ("axum", &["serve", "demo"]),
    ("anyhow", &["main"]),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types", "models", "prelude"];

const MAX_LINES: usize = 500;

/// Lists of words rather than code.
const DATA: &[&str] = &["src/fhir/resource_type.rs", "src/demo/generate/catalogue.rs", "src/resource/definitions/"];

/// A source file of the program.
struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
    /// The text without comments, texts in quotes and tests.
    code: String,
}

impl Source {
    /// `src/table/commit.rs` is of the room `table`.
    fn room(&self) -> &str {
        let path = self.path.trim_start_matches("src/");
        path.split(['/', '.']).next().unwrap_or_default()
    }

    /// A file of tests, which may name whom it needs.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        Source { path, code: code(&text), text }
    };
    paths.into_iter().map(source).collect()
}

/// What of a file is code of the program. Good enough for files that rustfmt has formatted: a block of tests is the last
/// thing in its file.
fn code(text: &str) -> String {
    let program = text.find("#[cfg(test)]\nmod tests {").map_or(text, |tests| &text[..tests]);
    let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| unquoted(line) + "\n").collect()
}

/// A line without what is between quotes, and without the comment at its end.
fn unquoted(line: &str) -> String {
    let parts = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    parts.split(" // ").next().unwrap_or_default().to_owned()
}

/// The names that follow `crate::`, those in braces included.
fn rooms_named(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (place, _) in code.match_indices(prefix) {
        if is_part_of_a_word(code, place) {
            continue;
        }
        let rest = &code[place + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => named.extend(heads(group)),
            None => named.extend(head(rest)),
        }
    }
    named
}

fn is_part_of_a_word(code: &str, place: usize) -> bool {
    code[..place].chars().next_back().is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':'))
}

/// The first word of a path; `None` for the name of a type or a constant, which lie in no room.
fn head(path: &str) -> Option<String> {
    let word: String = path.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect();
    word.starts_with(|first: char| first.is_ascii_lowercase()).then_some(word)
}

/// The first words of the paths between braces, of which the first is open.
fn heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 1;
    let mut part = String::new();
    for char in group.chars() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && char == ',') {
            heads.extend(head(part.trim()));
            part.clear();
        } else {
            part.push(char);
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// Says everything that is wrong at once.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn a_room_names_only_the_rooms_below_it() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let room = source.room();
        let allowed = ARROWS.iter().find(|(from, _)| *from == room).map_or(&[][..], |(_, to)| to);
        let prefix = if room == "main" { "fhir_sync::" } else { "crate::" };
        for named in rooms_named(&source.code, prefix) {
            if named != room && !allowed.contains(&named.as_str()) {
                wrong.push(format!(
                    "{}: {room} may not name {named}; hand over what it needs, or move the code to a room above both",
                    source.path
                ));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_room_has_its_place_among_the_arrows() {
    let known: BTreeSet<&str> = ARROWS.iter().map(|(from, _)| *from).chain(["lib", "fhir", "telemetry"]).collect();
    let sources = sources();
    let rooms: BTreeSet<&str> = sources.iter().map(Source::room).collect();
    let new = rooms.difference(&known).map(|room| format!("src/{room}: say in ARROWS of this test whom it may name"));
    assert_none(&new.collect::<Vec<_>>());
}

#[test]
fn a_crate_is_named_only_in_the_room_that_hides_it() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (name, rooms) in CRATES {
            let path = format!("{name}::");
            let is_named = source.code.match_indices(&path).any(|(place, _)| !is_part_of_a_word(&source.code, place));
            if is_named && !rooms.contains(&source.room()) {
                wrong.push(format!(
                    "{}: {name} belongs to {}; ask that room for what is needed",
                    source.path,
                    rooms.join(" and ")
                ));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_task_belongs_to_somebody() {
    let is_detached = |source: &&Source| source.code.contains("tokio::spawn(") || source.code.contains("task::spawn(");
    let wrong = sources().iter().filter(is_detached).map(|source| format!("{}: use a JoinSet", source.path)).collect();
    let wrong: Vec<String> = wrong;
    assert_none(&wrong);
}

#[test]
fn a_module_is_called_after_what_is_in_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        let words = source.path.split(['/', '.']).chain(source.code.lines().filter_map(|line| {
            let name = line.trim().trim_start_matches("pub ").strip_prefix("mod ")?;
            name.split([' ', ';']).next()
        }));
        for word in words.filter(|word| EMPTY_NAMES.contains(word)) {
            wrong.push(format!("{}: {word:?} says nothing; name the module after its noun", source.path));
        }
    }
    assert_none(&wrong);
}

#[test]
fn a_file_can_be_read_at_one_sitting() {
    let is_code = |source: &&Source| !source.is_test() && !DATA.iter().any(|data| source.path.starts_with(data));
    let sources = sources();
    let long = sources.iter().filter(is_code).filter_map(|source| {
        let lines = source.text.lines().count();
        let way_out = "move a part with a name of its own to a file of its own";
        (lines > MAX_LINES).then(|| format!("{}: {lines} lines of at most {MAX_LINES}; {way_out}", source.path))
    });
    assert_none(&long.collect::<Vec<_>>());
}

#[test]
fn every_file_begins_with_what_it_is() {
    let sources = sources();
    let silent = sources.iter().filter(|source| !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs"));
    let wrong =
        silent.map(|source| format!("{}: begin with `//!`, the noun of the module and what always holds", source.path));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn what_stands_in_braces_and_behind_words_is_understood() {
    let code = code(
        "use crate::{\n    export::{self, Client, http::Date},\n    fhir::X,\n    Y,\n};\n// crate::comment\n\
         let s = \"crate::text\"; other_crate::no; a(crate::state::peek())\n#[cfg(test)]\nmod tests {\n    use crate::demo::Server;\n}\n",
    );
    let rooms = rooms_named(&code, "crate::");
    assert_eq!(rooms.into_iter().collect::<Vec<_>>(), ["export", "fhir", "state"]);
}
