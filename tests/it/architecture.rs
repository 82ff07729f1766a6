use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The modules of the room `table` from the ground up, in the order of `table/mod.rs`, and what each may name besides
/// [`WORDS`]: `upsert` and `maintain` do not know each other, and nothing below knows them.
const MODULES_OF_TABLE: &[(&str, &[&str])] = &[
    ("data_file", &[]),
    ("lost_log", &[]),
    ("config", &["data_file"]),
    ("root", &["data_file", "lost_log", "config"]),
    ("document", &["config", "root"]),
    ("change_set", &["data_file", "root"]),
    ("requirements", &["data_file", "root"]),
    ("commit", &["data_file", "root", "requirements"]),
    ("tombstones", &["data_file", "root", "change_set", "requirements", "commit"]),
    ("evolve", &["data_file", "root", "commit", "requirements"]),
    ("record", &["data_file", "root", "commit", "requirements", "evolve"]),
    ("ledger", &["root", "record"]),
    ("quarantine", &["data_file", "root", "commit", "requirements", "record"]),
    ("members", &["root", "record"]),
    ("upsert", &["data_file", "root", "change_set", "commit", "requirements", "tombstones"]),
    ("staging", &["data_file", "root", "change_set", "tombstones", "upsert"]),
    ("maintain", &["data_file", "root", "commit", "requirements", "tombstones", "quarantine"]),
    ("rebuild", &["data_file", "root", "commit", "requirements"]),
    ("query", &["root"]),
    ("value_counts", &["root"]),
];

/// The ground of the room `table`, which every module of it may name: values and settings, in the order of
/// `table/mod.rs`.
const WORDS: &[&str] = &["counts", "date_partition", "ids", "name", "error", "parallel", "properties"];

/// Type names that one room defines more than once, each with the reason.
const HOMONYMS: &[(&str, &str, &str)] =
    &[("cli", "Arguments", "the arguments of one command, in the file of that command")];

/// Module names that say nothing about the content.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types", "models", "prelude"];

const MAX_LINES: usize = 500;

/// Files that are lists of words rather than code.
const DATA: &[&str] = &["src/fhir/resource_type.rs", "src/demo/generate/catalogue.rs", "src/resource/definitions/"];

/// A source file of the program.
struct Source {
    /// Relative to the root of the repository.
    path: String,
    text: String,
    /// The text without comments, string literals and tests.
    code: String,
}

impl Source {
    /// `src/table/commit.rs` is in the room `table`.
    fn room(&self) -> &str {
        let path = self.path.trim_start_matches("src/");
        path.split(['/', '.']).next().unwrap_or_default()
    }

    /// Whether this is a file of tests, which may name any room.
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

/// The code of the program in a file. Correct for files that rustfmt has formatted and whose tests come last.
fn code(text: &str) -> String {
    let program = text.find("#[cfg(test)]\nmod tests {").map_or(text, |tests| &text[..tests]);
    let lines = program.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| unquoted(line) + "\n").collect()
}

/// A line without string literals, and without the comment at its end.
fn unquoted(line: &str) -> String {
    let parts = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    parts.split(" // ").next().unwrap_or_default().to_owned()
}

/// The rooms that follow a prefix such as `crate::`, those in braces included. Types and constants of the crate's root
/// are of no room.
fn rooms_named(code: &str, prefix: &str) -> BTreeSet<String> {
    let words = first_words(code, prefix).into_iter();
    words.filter(|word| word.starts_with(|first: char| first.is_ascii_lowercase())).collect()
}

/// The first words of the paths that follow a prefix, those in braces included.
fn first_words(code: &str, prefix: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (start, _) in code.match_indices(prefix) {
        if is_part_of_a_word(code, start) {
            continue;
        }
        let rest = &code[start + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => words.extend(paths(group).iter().filter_map(|path| first_word(path))),
            None => words.extend(first_word(rest)),
        }
    }
    words
}

fn is_part_of_a_word(code: &str, start: usize) -> bool {
    code[..start].chars().next_back().is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':'))
}

fn first_word(path: &str) -> Option<String> {
    let word: String = path.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// The paths between braces, of which the first is already open.
fn paths(group: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut depth = 1;
    let mut path = String::new();
    for char in group.chars() {
        match char {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && char == ',') {
            paths.push(path.trim().to_owned());
            path.clear();
        } else {
            path.push(char);
        }
        if depth == 0 {
            break;
        }
    }
    paths
}

/// Reports all mistakes at once.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// The modules that a `lib.rs` or `mod.rs` declares, in its order.
fn declared_modules(code: &str) -> Vec<String> {
    let module = |line: &str| Some(line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned());
    code.lines().filter_map(module).filter(|name| name != "tests").collect()
}

fn source_of<'a>(sources: &'a [Source], path: &str) -> &'a Source {
    sources.iter().find(|source| source.path == path).unwrap()
}

/// A section of docs/architecture.md.
fn section(heading: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md")).unwrap();
    let (_, rest) = text.split_once(&format!("## {heading}\n")).unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The rooms in the picture of docs/architecture.md, and the rooms to which each has an arrow.
fn picture() -> Vec<(String, Vec<String>)> {
    let arrow = |line: &str| {
        let (from, to) = line.split_once('→')?;
        let to = to.split(',').map(|room| room.trim().to_owned()).filter(|room| !room.is_empty());
        Some((from.trim().to_owned(), to.collect()))
    };
    section("The rooms").lines().skip_while(|line| *line != "```text").skip(1).map_while(arrow).collect()
}

/// The names in the first `cells` cells of each row of the tables in a section: all words in backticks.
fn rows(section: &str, cells: usize) -> Vec<Vec<Vec<String>>> {
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names =
        |cell: &str| cell.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').to_owned()).collect();
    rows.map(|row| row.split('|').skip(1).take(cells).map(names).collect()).collect()
}

#[test]
fn the_picture_has_the_rooms_of_lib_rs_in_their_order_and_arrows_point_down() {
    let picture = picture();
    let rooms: Vec<&str> = picture.iter().map(|(room, _)| room.as_str()).collect();
    let sources = sources();
    let mut declared = vec!["main".to_owned()];
    declared.extend(declared_modules(&source_of(&sources, "src/lib.rs").code));
    assert_eq!(rooms, declared);
    for (index, (from, to)) in picture.iter().enumerate() {
        for room in to {
            assert!(rooms[index + 1..].contains(&room.as_str()), "the arrow from {from} to {room} does not point down");
        }
    }
}

#[test]
fn the_arrows_of_the_picture_are_the_imports() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    let picture: BTreeMap<String, Vec<String>> = picture().into_iter().collect();
    for source in sources().iter().filter(|source| !source.is_test() && source.room() != "lib") {
        let room = source.room();
        let prefix = if room == "main" { "fhir_sync::" } else { "crate::" };
        for other in rooms_named(&source.code, prefix).into_iter().filter(|other| other != room) {
            if !picture.get(room).is_some_and(|arrows| arrows.contains(&other)) {
                wrong.push(format!(
                    "{}: {room} may not name {other}; pass in what it needs, or move the code to a room above both",
                    source.path
                ));
            }
            named.entry(room.to_owned()).or_default().insert(other);
        }
    }
    for (room, arrows) in &picture {
        let unused = arrows.iter().filter(|to| !named.get(room).is_some_and(|named| named.contains(*to)));
        wrong.extend(unused.map(|to| format!("docs/architecture.md: {room} no longer names {to}; remove the arrow")));
    }
    assert_none(&wrong);
}

/// The module of the room `table` in which a name lives that `table/mod.rs` offers to the room: `Error` is of `error`.
fn modules_by_name(door: &str) -> BTreeMap<String, String> {
    let (_, offered) = door.split_once("pub use self::{").unwrap();
    let mut by_name = BTreeMap::new();
    for path in paths(offered) {
        let Some((module, _)) = path.split_once("::") else { continue };
        let names = path.rsplit("::").next().unwrap();
        for name in names.split(|char: char| !char.is_alphanumeric() && char != '_').filter(|name| !name.is_empty()) {
            by_name.insert(name.to_owned(), module.to_owned());
        }
    }
    by_name
}

/// The modules of the room `table` that a file of it names, by `super::` or `crate::table::`.
fn modules_named(source: &Source, by_name: &BTreeMap<String, String>) -> BTreeSet<String> {
    let inner = source.path.trim_start_matches("src/table/").trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = inner.split('/').count();
    let to_table = "super::".repeat(depth);
    let prefixes = [to_table.as_str(), "crate::table::"];
    let words = prefixes.iter().flat_map(|prefix| first_words(&source.code, prefix));
    words.filter(|word| word != "super").map(|word| by_name.get(&word).cloned().unwrap_or(word)).collect()
}

#[test]
fn a_module_of_the_tables_names_only_the_modules_above_it_in_mod_rs() {
    let sources = sources();
    let door = source_of(&sources, "src/table/mod.rs");
    let known: Vec<&str> = WORDS.iter().copied().chain(MODULES_OF_TABLE.iter().map(|(module, _)| *module)).collect();
    assert_eq!(declared_modules(&door.code), known);
    let documented: Vec<_> = rows(&section("The room of the tables"), 1).into_iter().flatten().flatten().collect();
    assert_eq!(documented, known);
    for (index, (from, to)) in MODULES_OF_TABLE.iter().enumerate() {
        for name in *to {
            let is_above = MODULES_OF_TABLE[..index].iter().any(|(above, _)| above == name);
            assert!(is_above, "the arrow from {from} to {name} does not point to a module above it");
        }
    }
    let by_name = modules_by_name(&door.code);
    let mut wrong = Vec::new();
    for source in sources.iter().filter(|source| source.room() == "table" && !source.is_test()) {
        let module = source.path.split(['/', '.']).nth(2).unwrap();
        let Some(index) = known.iter().position(|name| *name == module) else { continue };
        let more = MODULES_OF_TABLE.iter().find(|(from, _)| *from == module).map_or(&[][..], |(_, to)| to);
        for named in modules_named(source, &by_name).iter().filter(|named| *named != module) {
            let is_word_above = known[..index.min(WORDS.len())].contains(&named.as_str());
            let is_module = known.contains(&named.as_str());
            if is_module && !is_word_above && !more.contains(&named.as_str()) {
                wrong.push(format!("{}: {module} may not name {named}", source.path));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_type_name_is_defined_twice_in_one_room() {
    let sources = sources();
    let mut places: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        for name in source.code.lines().filter_map(defined_type) {
            places.entry((source.room(), name)).or_default().push(&source.path);
        }
    }
    let mut wrong = Vec::new();
    for ((room, name), paths) in &places {
        let is_allowed = HOMONYMS.iter().any(|(of, known, _)| of == room && known == name);
        if paths.len() > 1 && !is_allowed {
            wrong.push(format!("{name} is defined in {}: rename one of them", paths.join(" and ")));
        }
    }
    for (room, name, _) in HOMONYMS {
        if places.get(&(*room, *name)).is_none_or(|paths| paths.len() < 2) {
            wrong.push(format!("{name} is no longer defined twice in {room}; remove it from HOMONYMS"));
        }
    }
    assert_none(&wrong);
}

/// The name of a type or trait that a line defines; what is inside functions and implementations is indented.
fn defined_type(line: &str) -> Option<&str> {
    if line.starts_with(' ') {
        return None;
    }
    let item = match line.strip_prefix("pub(") {
        Some(scope) => scope.split_once(") ")?.1,
        None => line.trim_start_matches("pub "),
    };
    let name = ["struct ", "enum ", "trait ", "type "].iter().find_map(|keyword| item.strip_prefix(keyword))?;
    name.split(|char: char| !char.is_alphanumeric() && char != '_').next()
}

#[test]
fn a_crate_is_named_only_in_the_rooms_that_docs_list() {
    let crates = rows(&section("The rooms"), 2);
    assert!(!crates.is_empty());
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (name, rooms) in crates.iter().map(|cells| (&cells[0][0], &cells[1])) {
            let path = format!("{name}::");
            let is_named = source.code.match_indices(&path).any(|(start, _)| !is_part_of_a_word(&source.code, start));
            if is_named && !rooms.iter().any(|room| room == source.room()) {
                wrong.push(format!("{}: {name} belongs to {}; ask that room", source.path, rooms.join(" and ")));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_task_is_in_a_join_set() {
    let is_detached = |source: &&Source| source.code.contains("tokio::spawn(") || source.code.contains("task::spawn(");
    let wrong = sources().iter().filter(is_detached).map(|source| format!("{}: use a JoinSet", source.path)).collect();
    let wrong: Vec<String> = wrong;
    assert_none(&wrong);
}

#[test]
fn no_module_has_a_name_that_says_nothing() {
    let mut wrong = Vec::new();
    for source in sources() {
        let words = source.path.split(['/', '.']).chain(source.code.lines().filter_map(|line| {
            let name = line.trim().trim_start_matches("pub ").strip_prefix("mod ")?;
            name.split([' ', ';']).next()
        }));
        for word in words.filter(|word| EMPTY_NAMES.contains(word)) {
            wrong.push(format!("{}: {word:?} says nothing; name the module after its content", source.path));
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_file_of_code_has_more_than_500_lines() {
    let is_code = |source: &&Source| !source.is_test() && !DATA.iter().any(|data| source.path.starts_with(data));
    let sources = sources();
    let long = sources.iter().filter(is_code).filter_map(|source| {
        let lines = source.text.lines().count();
        let way_out = "move a part that has a name to its own file";
        (lines > MAX_LINES).then(|| format!("{}: {lines} lines of at most {MAX_LINES}; {way_out}", source.path))
    });
    assert_none(&long.collect::<Vec<_>>());
}

#[test]
fn every_file_begins_with_a_module_comment() {
    let sources = sources();
    let silent = sources.iter().filter(|source| !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs"));
    let wrong = silent
        .map(|source| format!("{}: begin with `//!`: what the module's noun is and what always holds", source.path));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn imports_are_found_in_braces_and_not_in_comments_texts_or_tests() {
    let code = code(
        "use crate::{\n    export::{self, Client, http::Date},\n    fhir::X,\n    Y,\n};\n// crate::comment\n\
         let s = \"crate::text\"; other_crate::no; a(crate::state::peek())\n#[cfg(test)]\nmod tests {\n    use crate::demo::Server;\n}\n",
    );
    let rooms = rooms_named(&code, "crate::");
    assert_eq!(rooms.into_iter().collect::<Vec<_>>(), ["export", "fhir", "state"]);
}
