//! A section: one table of the configuration, read key by key.
//!
//! Every value is read as text by the function that knows its type. Mistakes are collected with their key, so that the
//! operator sees all of them at once; a key that was not read is a mistake too.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use config::{Map, Value, ValueKind};

use super::{Mistakes, values::boolean};
use crate::spelling::did_you_mean;

/// What was found while reading.
#[derive(Debug, Default)]
pub struct Findings {
    pub mistakes: Vec<String>,
    /// How many of the mistakes are temporary: a command that did not answer may do so later.
    temporary: usize,
    /// What is worth knowing and not a mistake.
    pub remarks: Vec<String>,
    /// Every key that was read, in the order of reading.
    pub asked: Vec<Asked>,
    /// The keys whose values may be secrets.
    pub secret: BTreeSet<String>,
}

impl Findings {
    pub fn mistakes(&self) -> Mistakes {
        Mistakes {
            lines: self.mistakes.clone(),
            is_temporary: self.temporary > 0 && self.temporary == self.mistakes.len(),
        }
    }
}

/// A key that was read.
#[derive(Clone, Debug)]
pub struct Asked {
    /// With its sections: `server.poll.min_interval`, `export[0].name`.
    pub key: String,
    pub form: Form,
    pub default: Option<String>,
    /// Without it the configuration cannot be used.
    pub is_required: bool,
    /// What the file or the environment says.
    pub given: Option<Value>,
}

/// What may be written as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Boolean,
    Number,
    OneOf(Vec<&'static str>),
    /// Texts; a single one stands for a list of one.
    List,
    /// A table of texts.
    Texts,
    /// A table of values whose names the section does not know.
    Values,
}

impl Form {
    /// Of a value that has this default.
    fn of(default: &str) -> Self {
        match default {
            "true" | "false" => Self::Boolean,
            number if number.parse::<f64>().is_ok() => Self::Number,
            _ => Self::Text,
        }
    }
}

pub struct Section {
    path: String,
    table: Map<String, Value>,
    /// The keys and sections of this section that were read.
    known: Vec<String>,
    findings: Rc<RefCell<Findings>>,
}

impl Section {
    pub fn root(table: Map<String, Value>, findings: Rc<RefCell<Findings>>) -> Self {
        Self { path: String::new(), table, known: Vec::new(), findings }
    }

    /// A value that has a default; `default` must be readable by `read`.
    pub fn or<T>(&mut self, key: &str, default: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, Form::of(default), Some(default), false);
        let text = self.scalar(key)?.unwrap_or_else(|| default.to_owned());
        self.read(key, &text, read)
    }

    /// One of a few words that has a default.
    pub fn choice<T: Copy>(&mut self, key: &str, default: &str, words: &[(&'static str, T)]) -> Option<T> {
        self.asked(key, Form::OneOf(words.iter().map(|(word, _)| *word).collect()), Some(default), false);
        let text = self.scalar(key)?.unwrap_or_else(|| default.to_owned());
        self.read(key, &text, |text| one_of(text, words))
    }

    /// One of a few words, or absent.
    pub fn optional_choice<T: Copy>(&mut self, key: &str, words: &[(&'static str, T)]) -> Option<T> {
        self.asked(key, Form::OneOf(words.iter().map(|(word, _)| *word).collect()), None, false);
        let text = self.scalar(key)??;
        self.read(key, &text, |text| one_of(text, words))
    }

    /// A value that may be absent.
    pub fn optional<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, Form::Text, None, false);
        let text = self.scalar(key)??;
        self.read(key, &text, read)
    }

    /// A number that may be absent.
    pub fn optional_number<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, Form::Number, None, false);
        let text = self.scalar(key)??;
        self.read(key, &text, read)
    }

    /// A secret text, which only the environment may set. It is no key of the file.
    pub fn of_environment(&mut self, key: &str) -> Option<String> {
        let value = self.table.remove(key).filter(|value| !matches!(value.kind, ValueKind::Nil))?;
        // As the crate's source for the environment names itself.
        if value.origin() == Some("the environment") {
            return self.text(key, value);
        }
        self.mistake(
            key,
            &format!(
                "is a secret; write it to a file that only its owner can read, and set {key}_file (or \
                 {key}_credential, {key}_env, {key}_exec)"
            ),
        );
        None
    }

    /// True or false, or absent.
    pub fn optional_boolean(&mut self, key: &str) -> Option<bool> {
        self.asked(key, Form::Boolean, None, false);
        let text = self.scalar(key)??;
        self.read(key, &text, boolean)
    }

    /// A value that must be set.
    pub fn required<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, Form::Text, None, true);
        let Some(text) = self.scalar(key)? else {
            self.mistake(key, "is missing");
            return None;
        };
        self.read(key, &text, read)
    }

    /// A list, empty where it is absent; `None` after a mistake. A single value is a list of one, and a text may hold
    /// several, separated by commas: the environment has no other lists.
    pub fn list<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        self.asked(key, Form::List, None, false);
        let texts = match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Vec::new(),
            Some(ValueKind::Array(values)) => values.into_iter().map(|value| self.text(key, value)).collect(),
            Some(ValueKind::String(text)) => text.split(',').map(|part| Some(part.trim().to_owned())).collect(),
            Some(_) => {
                self.mistake(key, "must be a list of texts");
                return None;
            }
        };
        // Every element is read before the first mistake counts.
        let values: Vec<_> = texts.into_iter().map(|text| self.read(key, &text?, &read)).collect();
        values.into_iter().collect()
    }

    /// A list whose texts may hold commas, such as cron patterns.
    pub fn whole_list<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.asked(key, Form::List, None, false);
        match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Vec::new(),
            Some(ValueKind::Array(values)) => {
                let texts: Vec<_> = values.into_iter().filter_map(|value| self.text(key, value)).collect();
                texts.iter().filter_map(|text| self.read(key, text, &read)).collect()
            }
            Some(kind) => {
                let text = self.text(key, Value::new(None, kind));
                text.and_then(|text| self.read(key, &text, read)).into_iter().collect()
            }
        }
    }

    /// Names and texts that are passed on as they are.
    pub fn texts(&mut self, key: &str) -> Vec<(String, String)> {
        self.asked(key, Form::Texts, None, false);
        match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Vec::new(),
            Some(ValueKind::Table(table)) => {
                table.into_iter().filter_map(|(name, value)| Some((name, self.text(key, value)?))).collect()
            }
            Some(_) => {
                self.mistake(key, "must be a table of texts");
                Vec::new()
            }
        }
    }

    /// A table whose keys are in small letters however they are written; those of a table within it are joined with a
    /// dot. Only if it is absent does it count as a key that was read: otherwise its own keys do.
    pub fn open(&mut self, key: &str) -> Section {
        if !self.has(key) {
            self.asked(key, Form::Values, None, false);
        }
        let mut opened = self.section(key);
        let table = std::mem::take(&mut opened.table);
        for (name, value) in table {
            match value.kind {
                ValueKind::Table(inner) => {
                    opened.table.extend(inner.into_iter().map(|(inner, value)| (format!("{name}.{inner}"), value)));
                }
                _ => opened.lower(&name, value),
            }
        }
        opened
    }

    fn lower(&mut self, name: &str, value: Value) {
        if self.table.insert(name.to_lowercase(), value).is_some() {
            self.mistake(name, "is set twice, in small letters and in capitals");
        }
    }

    /// The keys that were not read yet, in order.
    pub fn keys(&self) -> Vec<String> {
        let is_set = |(_, value): &(&String, &Value)| !matches!(value.kind, ValueKind::Nil);
        let mut keys: Vec<_> = self.table.iter().filter(is_set).map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    }

    /// Removes a key, which counts as read; whether it was there.
    pub fn take(&mut self, key: &str) -> bool {
        self.table.remove(key).is_some()
    }

    /// A table within this one, empty where it is absent.
    pub fn section(&mut self, key: &str) -> Section {
        self.known.push(key.to_owned());
        let table = match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Map::new(),
            Some(ValueKind::Table(table)) => table,
            Some(_) => {
                self.mistake(key, "must be a table");
                Map::new()
            }
        };
        Section { path: self.path_of(key), table, known: Vec::new(), findings: Rc::clone(&self.findings) }
    }

    /// The tables within this one that were not read yet, with their names: the operator chooses these.
    pub fn named_sections(&mut self) -> Vec<(String, Section)> {
        let is_table = |value: &Value| matches!(value.kind, ValueKind::Table(_));
        let mut names: Vec<_> =
            self.table.iter().filter(|(_, value)| is_table(value)).map(|(name, _)| name.clone()).collect();
        names.sort();
        names.into_iter().map(|name| (name.clone(), self.section(&name))).collect()
    }

    /// The tables of an array of tables (`[[key]]`).
    pub fn sections(&mut self, key: &str) -> Vec<Section> {
        self.known.push(key.to_owned());
        let values = match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Vec::new(),
            Some(ValueKind::Array(values)) => values,
            Some(_) => {
                self.mistake(key, "must be written as [[…]], once for each");
                Vec::new()
            }
        };
        let mut sections = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            let path = format!("{}[{index}]", self.path_of(key));
            match value.kind {
                ValueKind::Table(table) => {
                    let (known, findings) = (Vec::new(), Rc::clone(&self.findings));
                    sections.push(Section { path, table, known, findings });
                }
                _ => self.mistake(key, "must be written as [[…]], once for each"),
            }
        }
        sections
    }

    /// Whether somebody has set the key.
    pub fn has(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| !matches!(value.kind, ValueKind::Nil))
    }

    /// Keys of earlier versions, each with its present name: an old key is a mistake that names the new one.
    pub fn renamed(&mut self, keys: &[(&str, &str)]) {
        for (before, now) in keys {
            // `[tables.merge]` would be the section of a resource type.
            if self.table.get(*before).is_some_and(|value| !matches!(value.kind, ValueKind::Table(_))) {
                self.table.remove(*before);
                self.mistake(before, &format!("is now called {}", self.path_of(now)));
            }
        }
    }

    /// A word of earlier versions that a key could have: a mistake that names the present one.
    pub fn renamed_word(&mut self, key: &str, before: &str, now: &str) {
        if self.table.get(key).and_then(|value| value.clone().into_string().ok()).is_some_and(|word| word == before) {
            self.table.remove(key);
            self.mistake(key, &format!("{before:?} is now called {now:?}"));
        }
    }

    /// A key of earlier versions that has no successor of its own kind: a mistake that says what to do.
    pub fn replaced(&mut self, before: &str, by: &str) {
        if self.table.remove(before).is_some() {
            self.mistake(before, by);
        }
    }

    /// Reports that a value contradicts another, or cannot be used.
    pub fn mistake(&self, key: &str, what: &str) {
        self.findings.borrow_mut().mistakes.push(format!("{}: {what}", self.path_of(key)));
    }

    /// Reports that a value cannot be used now, and perhaps later.
    pub fn temporary_mistake(&self, key: &str, what: &str) {
        self.mistake(key, what);
        self.findings.borrow_mut().temporary += 1;
    }

    /// Reports what is worth knowing and not a mistake.
    pub fn remark(&self, key: &str, what: &str) {
        self.findings.borrow_mut().remarks.push(format!("{}: {what}", self.path_of(key)));
    }

    /// Ends the section: every key that is left is unknown.
    pub fn end(self) {
        let mut left: Vec<_> = self.table.keys().collect();
        left.sort();
        for key in left {
            let known = self.known.iter().map(String::as_str);
            self.mistake(key, &format!("is not a key that fhir-sync knows{}", did_you_mean(key, known)));
        }
    }

    /// The outer `None` means a mistake, which has been reported: the value is a list or a table.
    #[expect(clippy::option_option, reason = "a wrong value and an absent one are different")]
    fn scalar(&mut self, key: &str) -> Option<Option<String>> {
        match self.table.remove(key) {
            None => Some(None),
            Some(value) if matches!(value.kind, ValueKind::Nil) => Some(None),
            Some(value) => self.text(key, value).map(Some),
        }
    }

    fn text(&self, key: &str, value: Value) -> Option<String> {
        let text = value.into_string().ok();
        if text.is_none() {
            self.mistake(key, "must be a single value, not a list or a table");
        }
        text
    }

    fn read<T>(&self, key: &str, text: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match read(text) {
            Ok(value) => Some(value),
            Err(what) => {
                self.mistake(key, &what);
                None
            }
        }
    }

    /// The value of this key may be a secret: it is not printed.
    pub fn is_secret(&self, key: &str) {
        self.findings.borrow_mut().secret.insert(self.path_of(key));
    }

    fn asked(&mut self, key: &str, form: Form, default: Option<&str>, is_required: bool) {
        self.known.push(key.to_owned());
        let given = self.table.get(key).filter(|value| !matches!(value.kind, ValueKind::Nil)).cloned();
        let (key, default) = (self.path_of(key), default.map(str::to_owned));
        self.findings.borrow_mut().asked.push(Asked { key, form, default, is_required, given });
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

fn one_of<T: Copy>(text: &str, words: &[(&'static str, T)]) -> Result<T, String> {
    let known = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    let words = || words.iter().map(|(word, _)| *word);
    known.ok_or_else(|| {
        let all = words().collect::<Vec<_>>().join(", ");
        format!("{text:?} is not one of {all}{}", did_you_mean(text, words()))
    })
}
