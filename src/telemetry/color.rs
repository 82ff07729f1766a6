//! Colour: whether what is printed for people has any. What is JSON never has.

use std::{ffi::OsStr, sync::OnceLock};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` has any value (<https://no-color.org>).
    #[default]
    Auto,
    Always,
    Never,
}

static CHOSEN: OnceLock<Color> = OnceLock::new();

/// What the process was started with. The first choice stays.
pub fn choose(color: Color) {
    let _ = CHOSEN.set(color);
}

/// Whether the output on a stream has colours.
pub fn is_on(is_terminal: bool) -> bool {
    let color = CHOSEN.get().copied().unwrap_or_default();
    color.is_on(is_terminal, std::env::var_os("NO_COLOR").as_deref())
}

impl Color {
    fn is_on(self, is_terminal: bool, no_color: Option<&OsStr>) -> bool {
        match self {
            Self::Auto => is_terminal && no_color.is_none_or(OsStr::is_empty),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_turns_colours_off_unless_the_command_line_asks_for_them() {
        assert!(Color::Auto.is_on(true, None));
        assert!(Color::Auto.is_on(true, Some("".as_ref())), "an empty value counts as unset");
        assert!(!Color::Auto.is_on(true, Some("1".as_ref())));
        assert!(!Color::Auto.is_on(false, None));
        assert!(Color::Always.is_on(false, Some("1".as_ref())));
        assert!(!Color::Never.is_on(true, None));
    }
}
