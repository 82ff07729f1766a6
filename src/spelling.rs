//! Spelling: which of the known words somebody probably meant.

/// "; did you mean \"Patient\"?", or nothing where no known word is like it.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default()
}

fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let slips = |known: &str| strsim::damerau_levenshtein(&word, &known.to_lowercase());
    // One slip in three letters: with more, words look alike that mean different things.
    let max_slips = word.chars().count() / 3;
    let best = known.into_iter().map(|known| (slips(known), known)).min_by_key(|(slips, _)| *slips);
    best.filter(|(slips, _)| *slips <= max_slips).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_slip_is_recognised_and_another_word_is_not() {
        let known = ["name", "level", "group", "types", "incremental", "full_refresh", "max_age"];
        for (word, meant) in
            [("nmae", "name"), ("Level", "level"), ("incremetal", "incremental"), ("max_agee", "max_age")]
        {
            assert_eq!(nearest(word, known), Some(meant), "{word}");
        }
        for word in ["colour", "x", "", "schedule"] {
            assert_eq!(nearest(word, known), None, "{word}");
        }
        assert_eq!(did_you_mean("typos", known), "; did you mean \"types\"?");
        assert_eq!(did_you_mean("colour", known), "");
    }
}
