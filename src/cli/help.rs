//! Help: the examples of each command, and texts that fit into 80 columns.

use clap::{Arg, Command, CommandFactory as _};

use super::Cli;

/// Of each command: what somebody wants, and the line that does it. A test reads them all.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "demo",
        &[
            ("two syncs of synthetic patients, and the tables they leave", "demo --patients 1000"),
            ("your own NDJSON files", "demo --data ./ndjson"),
            ("how a sync survives links that expire", "demo --scenario expired-links"),
        ],
    ),
    (
        "sync",
        &[
            ("what changed, of each export of the configuration", "sync"),
            ("everything, of one export", "sync --export all --full-refresh"),
            (
                "without a configuration file",
                "sync --fhir-endpoint https://ehr.example.org/fhir \\\n      --delta-path ./lake --state-file ./state.json",
            ),
            ("the outcome for a program", "sync --json | jq .outcome"),
        ],
    ),
    ("run", &[("the daemon", "run --config fhir-sync.toml")]),
    (
        "check",
        &[
            ("a file before it is installed", "check --config fhir-sync.toml"),
            ("whether a sync can succeed here", "check --online --kick-off"),
        ],
    ),
    (
        "config",
        &[
            ("what is in force, and from where", "config print"),
            ("a file to begin with", "config sample > fhir-sync.toml"),
            ("completion in an editor", "config schema > fhir-sync.schema.json"),
        ],
    ),
    ("config print", &[("what differs from the defaults", "config print | grep -v '# default'")]),
    ("config sample", &[("a file to begin with", "config sample > fhir-sync.toml")]),
    ("config schema", &[("completion in an editor", "config schema > fhir-sync.schema.json")]),
    (
        "maintain",
        &[
            ("what a maintenance would do", "maintain --dry-run"),
            ("two tables, and the tombstones", "maintain Patient Observation deleted"),
            ("new columns after an upgrade", "maintain --rebuild Patient"),
        ],
    ),
    (
        "query",
        &[
            ("how many of each", "query 'SELECT gender, count(*) FROM Patient GROUP BY gender'"),
            ("a file for a spreadsheet", "query --format csv -o ids.csv 'SELECT id FROM Patient'"),
        ],
    ),
    ("views", &[("views for DuckDB", "views --dialect duckdb | duckdb lake.duckdb")]),
    (
        "runs",
        &[
            ("the last five runs, of one type", "runs --type Patient --limit 5"),
            ("what did not go well", "runs --json | jq '.[] | select(.end != \"committed\")'"),
        ],
    ),
    ("status", &[("how each type stands", "status")]),
    ("job", &[("what the server works on", "job show"), ("give up an export that never ends", "job cancel all")]),
    ("job show", &[("what the server works on", "job show")]),
    ("job cancel", &[("give up an export that never ends", "job cancel all")]),
    ("state", &[("what is remembered", "state show")]),
    ("state show", &[("for a program", "state show --json")]),
    (
        "state set-since",
        &[("ask again for what changed since then", "state set-since all Patient 2026-11-20T08:00:00Z")],
    ),
    (
        "verify",
        &[
            ("do the tables have what the runs brought?", "verify"),
            ("do they have what the server has?", "verify --online"),
        ],
    ),
    (
        "quarantine",
        &[("which lines, and why", "quarantine list"), ("one of them, with its content", "quarantine show 3f9c0a")],
    ),
    ("quarantine list", &[("of one type and reason", "quarantine list --type Patient --reason no-id")]),
    ("quarantine show", &[("by the beginning of its id", "quarantine show 3f9c0a")]),
    (
        "quarantine replay",
        &[
            ("what this version understands", "quarantine replay"),
            ("one line, corrected", "quarantine replay 3f9c0a --file corrected.json"),
        ],
    ),
    ("quarantine purge", &[("what is old", "quarantine purge --older-than 30days")]),
    (
        "keygen",
        &[
            ("a key pair; register what is printed", "keygen --out private-key.json > jwks.json"),
            ("a second key, for a rotation", "keygen --out private-key.json --add > jwks.json"),
        ],
    ),
    ("jwks", &[("what to register at the server", "jwks > jwks.json")]),
    ("version", &[("which features are built in", "version --json | jq .features")]),
    ("completions", &[("for this bash", "completions bash > /etc/bash_completion.d/fhir-sync")]),
    ("man", &[("read it", "man | man -l -"), ("all pages", "man --dir ./man1")]),
    (
        "healthcheck",
        &[
            ("data of the last 90 minutes", "healthcheck --max-age 90m"),
            ("another listener", "healthcheck --url http://127.0.0.1:9188/health"),
        ],
    ),
];

/// The commands with their examples, as the manual has them.
pub fn command() -> Command {
    with_examples(Cli::command(), "")
}

/// The same for `--help`: no line is longer than 80 columns.
pub fn command_for_terminal() -> Command {
    let command = wrapped(command());
    let about = command.get_about().map(|about| filled(&about.to_string(), WIDTH));
    about.into_iter().fold(command, Command::about)
}

fn with_examples(mut command: Command, path: &str) -> Command {
    let names: Vec<_> = command.get_subcommands().map(|of| of.get_name().to_owned()).collect();
    for name in names {
        let path = format!("{path} {name}");
        command = command.mut_subcommand(name, |of| with_examples(of, &path));
    }
    let examples = EXAMPLES.iter().find(|(of, _)| *of == path.trim_start());
    let Some((_, examples)) = examples else { return command };
    let lines = examples.iter().map(|(what, line)| format!("  # {what}\n  fhir-sync {line}"));
    command.after_help(format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n")))
}

/// clap wraps nothing without a further crate. Where help begins: of a flag on a line of its own, of a command after the
/// longest name.
const WIDTH: usize = 80;
const FLAG_INDENT: usize = 10;

fn wrapped(mut command: Command) -> Command {
    let names: Vec<_> = command.get_subcommands().map(|of| of.get_name().to_owned()).collect();
    let indent = names.iter().map(String::len).max().unwrap_or_default() + 4;
    for name in names {
        command = command.mut_subcommand(name, |of| {
            let of = wrapped(of);
            let about = of.get_about().map(|about| filled(&about.to_string(), WIDTH - indent));
            about.into_iter().fold(of, Command::about)
        });
    }
    command.mut_args(|arg| {
        let Some(help) = arg.get_help().map(ToString::to_string) else { return arg };
        let help = filled(&format!("{help} {}", facts(&arg).join(" ")), WIDTH - FLAG_INDENT);
        let takes_values = arg.get_action().takes_values();
        let arg = arg.next_line_help(true).hide_env(true).help(help);
        if takes_values { arg.hide_default_value(true).hide_possible_values(true) } else { arg }
    })
}

/// What clap would add behind the help of a flag.
fn facts(arg: &Arg) -> Vec<String> {
    let joined = |texts: Vec<String>| texts.join(", ");
    let mut facts = Vec::new();
    let takes_value = arg.get_action().takes_values();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let possible: Vec<_> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if takes_value && !possible.is_empty() {
        facts.push(format!("[{}]", joined(possible)));
    }
    if takes_value && !defaults.is_empty() {
        facts.push(format!("[default: {}]", joined(defaults)));
    }
    if let Some(variable) = arg.get_env() {
        facts.push(format!("[env: {}]", variable.to_string_lossy()));
    }
    facts
}

/// A text in lines of at most `width` characters.
fn filled(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { continue };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn paths(command: &Command, path: &str) -> Vec<String> {
        let of = command.get_subcommands().filter(|of| of.get_name() != "help").flat_map(|of| {
            let path = format!("{path} {}", of.get_name()).trim_start().to_owned();
            [vec![path.clone()], paths(of, &path)].concat()
        });
        of.collect()
    }

    #[test]
    fn every_command_has_examples_and_all_of_them_are_understood() {
        let paths = paths(&Cli::command(), "");
        for path in &paths {
            assert!(EXAMPLES.iter().any(|(of, _)| of == path), "{path} has no example");
        }
        for (of, examples) in EXAMPLES.iter().filter(|(of, _)| *of != "query" || cfg!(feature = "sql")) {
            assert!(paths.iter().any(|path| path == of), "{of} is not a command");
            for (_, line) in *examples {
                let line = line.split(['|', '>']).next().unwrap().replace("\\\n", " ");
                let quoted: Vec<_> = line.split('\'').collect();
                let words = quoted.iter().enumerate().flat_map(|(index, part)| match index % 2 {
                    0 => part.split_whitespace().collect::<Vec<_>>(),
                    _ => vec![*part],
                });
                let words: Vec<_> = std::iter::once("fhir-sync").chain(words).collect();
                assert!(Cli::try_parse_from(&words).is_ok(), "{words:?}: {:?}", Cli::try_parse_from(&words).err());
            }
        }
    }

    #[test]
    fn the_commands_with_their_helps_are_well_defined() {
        command_for_terminal().debug_assert();
    }

    #[test]
    fn a_text_is_filled_up_to_the_width() {
        assert_eq!(filled("one two three four", 9), "one two\nthree\nfour");
        assert_eq!(filled("", 9), "");
    }
}
