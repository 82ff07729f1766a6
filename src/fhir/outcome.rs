//! Outcomes: what a server states about itself in an `OperationOutcome`, and the judgement whether data are missing.
//!
//! Servers write it in many shapes. What cannot be read counts as an error. Of its words only codes leave this module,
//! and only through [`printable_code`]: `diagnostics` may quote a patient, and any text may hold a secret. The one
//! exception is the answer to a kick-off ([`issues_in_words`]), whose words are about what was asked.

use std::fmt;

use serde_json::Value;

use super::ResourceType;

/// What one `OperationOutcome` means, by the worst of its issues (rule 101).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Nothing is missing.
    Information(Vec<Issue>),
    /// A warning at the worst.
    Warning(Vec<Issue>),
    /// Data are missing: an error, or a severity that nobody knows.
    Error(Vec<Issue>),
    /// Not an `OperationOutcome`, or one without issues: it says neither that data are missing nor that they are not.
    Unreadable,
}

/// One issue. Its free text is there where it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issue {
    pub severity: Severity,
    /// Safe to show.
    pub code: String,
    /// The resource types that its `expression` or `location` begins with; empty where it does not say.
    pub types: Vec<ResourceType>,
    /// `details.text` and `diagnostics`: one printable line, cut short.
    pub words: Option<String>,
}

/// In the order of their weight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    Success,
    Information,
    Warning,
    /// Not a word of FHIR: it counts as an error.
    Unknown,
    Error,
    Fatal,
}

impl Issue {
    /// For what was reported and cannot be read: it counts as an error.
    pub fn unreadable() -> Self {
        Self { severity: Severity::Unknown, code: "no code".to_owned(), types: Vec::new(), words: None }
    }

    /// Data are missing, not merely remarked upon (rule 101).
    pub fn is_error(&self) -> bool {
        self.severity >= Severity::Unknown
    }

    /// The server asks for patience: `transient` or a code below it (rule 43).
    pub fn is_transient(&self) -> bool {
        matches!(
            self.code.as_str(),
            "transient" | "lock-error" | "no-store" | "exception" | "timeout" | "incomplete" | "throttled"
        )
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.severity, self.code.trim_matches(['(', ')']))?;
        self.words.iter().try_for_each(|words| write!(out, ": \"{words}\""))
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Success => "success",
            Self::Information => "information",
            Self::Warning => "warning",
            Self::Unknown => "unknown severity",
            Self::Error => "error",
            Self::Fatal => "fatal",
        })
    }
}

/// Judges a text that should be an `OperationOutcome`.
pub fn judge(text: &[u8]) -> Judgement {
    Judgement::of(issues(text)).unwrap_or(Judgement::Unreadable)
}

impl Judgement {
    /// By the worst of these issues; `None` where there are none.
    pub fn of(issues: Vec<Issue>) -> Option<Self> {
        Some(match issues.iter().map(|issue| issue.severity).max()? {
            Severity::Success | Severity::Information => Self::Information(issues),
            Severity::Warning => Self::Warning(issues),
            Severity::Unknown | Severity::Error | Severity::Fatal => Self::Error(issues),
        })
    }
}

/// The issues of an `OperationOutcome`; none where the text is something else.
pub fn issues(text: &[u8]) -> Vec<Issue> {
    let without_words = |value: &Value| Issue { words: None, ..issue(value) };
    each_issue(text, without_words)
}

/// The same with the server's words. Only for the answer to a kick-off: elsewhere they may quote a patient.
pub fn issues_in_words(text: &[u8]) -> Vec<Issue> {
    each_issue(text, issue)
}

fn each_issue(text: &[u8], issue: impl Fn(&Value) -> Issue) -> Vec<Issue> {
    let Ok(outcome) = serde_json::from_slice::<Value>(text) else { return Vec::new() };
    if outcome["resourceType"].as_str() != Some("OperationOutcome") {
        return Vec::new();
    }
    match &outcome["issue"] {
        Value::Array(issues) => issues.iter().map(&issue).collect(),
        Value::Null => Vec::new(),
        // One issue that is not in a list.
        other => vec![issue(other)],
    }
}

fn issue(value: &Value) -> Issue {
    let places = ["expression", "location"].into_iter().flat_map(|member| texts(&value[member]));
    Issue {
        severity: severity(&value["severity"]),
        code: code(&value["code"]),
        types: places.filter_map(root).collect(),
        words: words(value),
    }
}

/// Longer words are cut short.
const MAX_WORDS_LETTERS: usize = 300;

fn words(issue: &Value) -> Option<String> {
    let texts = [&issue["details"]["text"], &issue["diagnostics"]].into_iter().filter_map(Value::as_str);
    let mut printable: Vec<_> = texts.map(printable_line).filter(|text| !text.is_empty()).collect();
    printable.dedup();
    (!printable.is_empty()).then(|| printable.join("; "))
}

/// One line without characters that a terminal obeys or that change the order of others.
fn printable_line(text: &str) -> String {
    let is_format = |letter: char| matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let plain = text.replace(|letter: char| letter.is_control() || is_format(letter), " ");
    let line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_WORDS_LETTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Texts of a list, or the one that is there without a list.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
        other => other.as_str().into_iter().collect(),
    }
}

/// The type that a path or a URL begins with: `Observation.code`, `Observation/o1`, `Observation?code=…`.
fn root(place: &str) -> Option<ResourceType> {
    place.split(|letter: char| !letter.is_ascii_alphanumeric()).next()?.parse().ok()
}

fn severity(value: &Value) -> Severity {
    let Some(word) = value.as_str() else { return Severity::Unknown };
    match word.trim().to_ascii_lowercase().as_str() {
        "success" => Severity::Success,
        "information" => Severity::Information,
        "warning" => Severity::Warning,
        "error" => Severity::Error,
        "fatal" => Severity::Fatal,
        _ => Severity::Unknown,
    }
}

/// The code as text, as a Coding or as a `CodeableConcept`.
fn code(value: &Value) -> String {
    let known = match value {
        Value::Object(_) => value["code"].as_str().or_else(|| value["coding"][0]["code"].as_str()),
        other => other.as_str(),
    };
    known.map_or_else(|| "no code".to_owned(), printable_code)
}

const MAX_CODE_LETTERS: usize = 64;

/// A word from a server that is safe on a terminal, in a log and in `/health`: letters, digits, `-` and `_`, as FHIR
/// and OAuth write their codes. Everything else may be free text with a secret, or control characters.
pub fn printable_code(word: &str) -> String {
    let is_code = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_printable = !word.is_empty() && word.len() <= MAX_CODE_LETTERS && word.bytes().all(is_code);
    if is_printable { word.to_owned() } else { "(unprintable code)".to_owned() }
}

/// Of a server's own words on the progress of its work, what is safe in the same places: a percentage, "3 of 24" or
/// "3/24", else the whole if it is one word that is printable as a code. Anything else may name a patient.
pub fn printable_progress(text: &str) -> Option<String> {
    let text = text.trim();
    if !text.contains(char::is_whitespace) && printable_code(text) == text {
        return Some(text.to_owned());
    }
    // Punctuation around a number is not part of it: "(3 of 24 files)".
    let bare = |word: &str| word.trim_matches(|c: char| !c.is_ascii_digit() && c != '%').to_owned();
    let words: Vec<_> = text.split_whitespace().map(bare).collect();
    let percentage = words.iter().find(|word| word.strip_suffix('%').is_some_and(is_percentage));
    if let Some(percentage) = percentage {
        return Some(percentage.clone());
    }
    let is_part = |part: &str, whole: &str| {
        let number = |text: &str| text.parse::<u32>().ok();
        Some((number(part)?, number(whole)?)).filter(|(part, whole)| part <= whole)
    };
    let originals: Vec<_> = text.split_whitespace().collect();
    let of = (1..words.len().saturating_sub(1))
        .find_map(|index| (originals[index] == "of").then(|| is_part(&words[index - 1], &words[index + 1])).flatten());
    let slash = words.iter().find_map(|word| word.split_once('/').and_then(|(part, whole)| is_part(part, whole)));
    of.or(slash).map(|(part, whole)| format!("{part} of {whole}"))
}

/// At most three digits before the point and two behind it.
fn is_percentage(number: &str) -> bool {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |digits: &str, most: usize| {
        (1..=most).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    is_digits(whole, 3) && is_digits(fraction, 2)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// (rule 41)
    #[test]
    fn of_a_server_s_words_on_its_progress_only_numbers_and_codes_are_shown() {
        for (text, shown) in [
            ("50%", Some("50%")),
            ("Build in progress - Overall progress: 12.25% complete (3 of 24)", Some("12.25%")),
            ("exported (3 of 24 files) for Erika Mustermann", Some("3 of 24")),
            ("files 3/24", Some("3 of 24")),
            ("in-progress", Some("in-progress")),
            ("exporting Erika Mustermann", None),
            ("patient 4711 of the ward", None),
            ("4711%%", None),
            ("\u{1b}[31m12%\u{1b}[0m", None),
            ("99999%", None),
            ("", None),
        ] {
            assert_eq!(printable_progress(text).as_deref(), shown, "{text}");
        }
    }

    fn judged(issue: &Value) -> Judgement {
        judge(json!({"resourceType": "OperationOutcome", "issue": issue}).to_string().as_bytes())
    }

    /// (rule 101)
    #[test]
    fn a_severity_counts_in_any_case_and_an_unknown_one_is_an_error() {
        for (severity, is_error) in
            [("ERROR", true), ("Fatal", true), ("severe", true), ("", true), ("WARNING", false), ("information", false)]
        {
            let judgement = judged(&json!([{"severity": severity, "code": "processing"}]));
            assert_eq!(matches!(judgement, Judgement::Error(_)), is_error, "{severity}: {judgement:?}");
        }
        assert!(matches!(judged(&json!([{"code": "processing"}])), Judgement::Error(_)));
        assert!(matches!(judged(&json!([{"severity": "success"}])), Judgement::Information(_)));
    }

    #[test]
    fn the_worst_issue_decides() {
        let judgement = judged(&json!([{"severity": "information"}, {"severity": "error"}, {"severity": "warning"}]));
        assert!(matches!(judgement, Judgement::Error(issues) if issues.len() == 3));
    }

    /// (rules 100 and 101)
    #[test]
    fn an_outcome_in_another_shape_is_never_an_all_clear() {
        for issue in [json!({"severity": "error"}), json!("failed"), json!([["error"]]), json!(7)] {
            assert!(matches!(judged(&issue), Judgement::Error(_)), "{issue}");
        }
        for text in
            [r#"{"resourceType":"OperationOutcome","issue":[{"sev"#, "[]", r#"{"error":{"code":1}}"#, "", "\u{0}"]
        {
            assert_eq!(judge(text.as_bytes()), Judgement::Unreadable, "{text}");
        }
        assert_eq!(judged(&json!([])), Judgement::Unreadable);
        assert_eq!(judged(&Value::Null), Judgement::Unreadable);
    }

    #[test]
    fn a_code_is_found_in_every_shape_and_shown_only_where_it_is_a_code() {
        let secret = "\u{1b}[31mpassword: hunter2";
        for (code, expected) in [
            (json!("not-found"), "not-found"),
            (json!({"code": "timeout"}), "timeout"),
            (json!({"coding": [{"code": "MSG_AUTH"}]}), "MSG_AUTH"),
            (Value::Null, "no code"),
            (json!(secret), "(unprintable code)"),
            (json!("x".repeat(100)), "(unprintable code)"),
        ] {
            let Judgement::Error(issues) = judged(&json!([{"severity": "error", "code": code}])) else { panic!() };
            assert_eq!(issues[0].code, expected);
        }
    }

    #[test]
    fn an_issue_names_the_types_that_its_places_begin_with() {
        let places = json!(["Observation.code", "Patient?name=x", "elsewhere"]);
        let Judgement::Error(issues) = judged(&json!([{"severity": "error", "expression": places}])) else { panic!() };
        let names: Vec<_> = issues[0].types.iter().map(|of| of.as_str()).collect();
        assert_eq!(names, ["Observation", "Patient"]);
    }
}
