//! Paint: colours in what is printed on the standard output, where it has any.

use std::io::{IsTerminal as _, stdout};

use clap::{ColorChoice, ValueEnum};

use crate::{sync::Outcome, telemetry::color};

/// `--color`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    #[default]
    Auto,
    Always,
    Never,
}

impl When {
    /// For everything that the process prints.
    pub fn choose(self) {
        color::choose(match self {
            Self::Auto => color::Color::Auto,
            Self::Always => color::Color::Always,
            Self::Never => color::Color::Never,
        });
    }

    /// Of a command line that was not read yet: helps and mistakes are printed while it is.
    pub fn of_help(arguments: impl Iterator<Item = String>) -> ColorChoice {
        let arguments: Vec<_> = arguments.collect();
        let joined = arguments.iter().find_map(|argument| argument.strip_prefix("--color="));
        let apart = arguments.windows(2).find(|pair| pair[0] == "--color").map(|pair| pair[1].as_str());
        match joined.or(apart) {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            _ => ColorChoice::Auto,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Bold,
    Green,
    Yellow,
    Red,
}

impl Paint {
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Complete => Self::Green,
            Outcome::Partial | Outcome::Stopped => Self::Yellow,
            Outcome::Failed => Self::Red,
        }
    }

    /// For the standard output.
    pub fn on(self, text: &str) -> String {
        if color::is_on(stdout().is_terminal()) { self.around(text) } else { text.to_owned() }
    }

    fn around(self, text: &str) -> String {
        let code = match self {
            Self::Bold => 1,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Red => 31,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_colour_of_a_help_is_that_of_its_command_line() {
        let of = |words: &[&str]| When::of_help(words.iter().map(|word| (*word).to_owned()));
        assert_eq!(of(&["sync", "--help", "--color", "never"]), ColorChoice::Never);
        assert_eq!(of(&["--color=always", "sync", "--help"]), ColorChoice::Always);
        assert_eq!(of(&["sync", "--help"]), ColorChoice::Auto);
        assert_eq!(Paint::of(Outcome::Failed).around("failed"), "\u{1b}[31mfailed\u{1b}[0m");
    }
}
