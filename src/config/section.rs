//! A section: one table of the configuration, read key by key.
//!
//! Every value is read as text by the function that knows its type. Mistakes are collected with their key, not thrown,
//! and what nobody asked for is a mistake too; so the operator sees all of them at once.

use std::{cell::RefCell, rc::Rc};

use config::{Map, Value, ValueKind};

/// What reading has brought to light so far.
#[derive(Debug, Default)]
pub struct Findings {
    pub mistakes: Vec<String>,
    /// What is worth saying and is no mistake.
    pub remarks: Vec<String>,
    /// Every key that was asked for, with its default.
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

    /// A value that must be there.
    pub fn required<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.asked(key, None);
        let Some(text) = self.scalar(key)? else {
            self.mistake(key, "is missing");
            return None;
        };
        self.read(key, &text, read)
    }

    /// A list; one value alone is a list of one, and from the environment several are separated by commas.
    pub fn list<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.asked(key, None);
        let texts = match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Vec::new(),
            Some(ValueKind::Array(values)) => values.into_iter().map(|value| self.text(key, value)).collect(),
            Some(ValueKind::String(text)) => text.split(',').map(|part| Some(part.trim().to_owned())).collect(),
            Some(_) => {
                self.mistake(key, "must be a list of texts");
                Vec::new()
            }
        };
        texts.into_iter().flatten().filter_map(|text| self.read(key, &text, &read)).collect()
    }

    /// A list of cron patterns; they hold commas themselves.
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

    /// Names and texts that are ours to pass on, not to know.
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
        Section { path: self.place(key), table, findings: Rc::clone(&self.findings) }
    }

    /// The tables within this one that nobody has asked for, by their names: where the names are the operator's to choose.
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
            let path = format!("{}[{index}]", self.place(key));
            match value.kind {
                ValueKind::Table(table) => {
                    sections.push(Section { path, table, findings: Rc::clone(&self.findings) });
                }
                _ => self.mistake(key, "must be written as [[…]], once for each"),
            }
        }
        sections
    }

    /// Keys of earlier versions, each with its present name: one that is set is a mistake that says so.
    pub fn renamed(&mut self, keys: &[(&str, &str)]) {
        for (before, now) in keys {
            // A table of that name would be something else.
            if self.table.get(*before).is_some_and(|value| !matches!(value.kind, ValueKind::Table(_))) {
                self.table.remove(*before);
                self.mistake(before, &format!("is now called {}", self.place(now)));
            }
        }
    }

    /// Says that a value contradicts another, or cannot be used.
    pub fn mistake(&self, key: &str, what: &str) {
        self.findings.borrow_mut().mistakes.push(format!("{}: {what}", self.place(key)));
    }

    /// Says something that does not stand in the way.
    pub fn remark(&self, key: &str, what: &str) {
        self.findings.borrow_mut().remarks.push(format!("{}: {what}", self.place(key)));
    }

    /// Nothing more is asked of this section: what is left over is unknown.
    pub fn end(self) {
        let mut left: Vec<_> = self.table.keys().collect();
        left.sort();
        for key in left {
            self.mistake(key, "is not a key that fhir-sync knows");
        }
    }

    /// `Err`-like `None` where the value is no single one; that has been noted.
    #[expect(clippy::option_option, reason = "a value that is wrong and one that is absent are two things")]
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
        self.findings.borrow_mut().asked.push((self.place(key), default.map(str::to_owned)));
    }

    fn place(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
