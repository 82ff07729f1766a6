//! Resources that were changed at random: some are not JSON then, and some have a member twice or of the wrong kind.

use proptest::prelude::*;

use crate::resource::json::{Document, Tape};

/// The inverse cannot tell which of two members of a name an issue is about.
pub fn has_repeated_names(text: &str) -> bool {
    let mut tape = Tape::default();
    let Ok(document) = tape.read(text) else { return false };
    let mut waiting = vec![Document::ROOT];
    while let Some(at) = waiting.pop() {
        let mut names: Vec<_> = document.members(at).map(|(name, _)| document.text(name)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        if names.len() < count {
            return true;
        }
        waiting.extend(document.members(at).map(|(_, value)| value).chain(document.items(at)));
    }
    false
}

/// Replaces, removes or repeats what stands between two of the marks of JSON.
pub fn mutated(text: &str, at: prop::sample::Index, from: prop::sample::Index, kind: usize) -> String {
    let marks: Vec<usize> = text.match_indices([',', ':', '[', ']', '{', '}', '"']).map(|(place, _)| place).collect();
    if marks.len() < 3 {
        return text.to_owned();
    }
    let (start, other) = (at.index(marks.len() - 1), from.index(marks.len() - 1));
    let part = |index: usize| &text[marks[index]..marks[index + 1]];
    let middle = match kind {
        0 => String::new(),
        1 => part(other).to_owned(),
        2 => format!("{}{}", part(start), part(start)),
        _ => format!("{}7", part(start)),
    };
    format!("{}{middle}{}", &text[..marks[start]], &text[marks[start + 1]..])
}
