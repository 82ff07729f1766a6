//! A section: one table of the configuration, read key by key.
//!
//! Every value is read as text by the function that knows its type. Mistakes are collected with their key, so that the
//! operator sees all of them at once; a key that was not read is a mistake too.

use std::{cell::RefCell, rc::Rc};

use config::{Map, Value, ValueKind};

/// What was found while reading.
#[derive(Debug, Default)]
pub struct Findings {
    pub mistakes: Vec<String>,
    /// What is worth knowing and not a mistake.
    pub remarks: Vec<String>,
    /// Every key that was read, with its default.
    pub asked: Vec<(String, Option<String>)>,
}

pub struct Section {
    path: String,
    table: Map<String, Value>,
    findings: Rc<RefCell<Findings>>,
}

impl Section {
    pub fn root(table: Map<String, Value>, findings: Rc<RefCell<Findings>>) -> Self {
        Self { path: String::new(), table, findings }
    }

    /// A value that has a default; `default` must be readable by `read`.
    pub fn or<T>(&mut self, key: &str, default: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, Some(default));
        let text = self.scalar(key)?.unwrap_or_else(|| default.to_owned());
        self.read(key, &text, read)
    }

    /// A value that may be absent.
    pub fn optional<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, None);
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
        self.mistake(key, &format!("is a secret; write it to a file that only its owner can read, and set {key}_file"));
        None
    }

    /// A value that must be set.
    pub fn required<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, None);
        let Some(text) = self.scalar(key)? else {
            self.mistake(key, "is missing");
            return None;
        };
        self.read(key, &text, read)
    }

    /// A list, empty where it is absent; `None` after a mistake. A single value is a list of one, and a text may hold
    /// several, separated by commas: the environment has no other lists.
    pub fn list<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        self.asked(key, None);
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
        self.asked(key, None);
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
        self.asked(key, None);
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

    /// A table within this one, empty where it is absent.
    pub fn section(&mut self, key: &str) -> Section {
        let table = match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Map::new(),
            Some(ValueKind::Table(table)) => table,
            Some(_) => {
                self.mistake(key, "must be a table");
                Map::new()
            }
        };
        Section { path: self.path_of(key), table, findings: Rc::clone(&self.findings) }
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
                    sections.push(Section { path, table, findings: Rc::clone(&self.findings) });
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

    /// Reports what is worth knowing and not a mistake.
    pub fn remark(&self, key: &str, what: &str) {
        self.findings.borrow_mut().remarks.push(format!("{}: {what}", self.path_of(key)));
    }

    /// Ends the section: every key that is left is unknown.
    pub fn end(self) {
        let mut left: Vec<_> = self.table.keys().collect();
        left.sort();
        for key in left {
            self.mistake(key, "is not a key that fhir-sync knows");
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

    fn asked(&self, key: &str, default: Option<&str>) {
        self.findings.borrow_mut().asked.push((self.path_of(key), default.map(str::to_owned)));
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
