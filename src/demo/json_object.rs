//! A JSON object: its members in their order, each value as the text that will be sent.
//!
//! The values are kept as text because a `serde_json::Value` forgets what FHIR keeps: the order of members and the
//! trailing zeros of a decimal (`6.30`). Each name occurs once.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

/// The members of a resource or of one of its elements.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JsonObject(Vec<(String, String)>);

impl JsonObject {
    /// `None` if the text is not a JSON object.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The JSON text of a member's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Replaces the value of a member with this JSON text; a new member is appended.
    pub fn set(&mut self, name: &str, json: impl Into<String>) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => *value = json.into(),
            None => self.0.push((name.to_owned(), json.into())),
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    #[must_use]
    pub fn with(mut self, name: &str, json: impl Into<String>) -> Self {
        self.set(name, json);
        self
    }

    /// Appends the members of `other`; a name that both have takes the value of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        for (name, json) in other.0 {
            self.set(&name, json);
        }
        self
    }
}

/// Compact JSON.
impl fmt::Display for JsonObject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("{")?;
        for (index, (name, json)) in self.0.iter().enumerate() {
            if index > 0 {
                out.write_str(",")?;
            }
            quote(name, out)?;
            out.write_str(":")?;
            out.write_str(json)?;
        }
        out.write_str("}")
    }
}

/// A JSON string.
pub fn text(value: &str) -> String {
    let mut json = String::with_capacity(value.len() + 2);
    // Writing to a `String` cannot fail.
    let _ = quote(value, &mut json);
    json
}

fn quote(value: &str, out: &mut impl fmt::Write) -> fmt::Result {
    out.write_char('"')?;
    for character in value.chars() {
        match character {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            control if u32::from(control) < 0x20 => write!(out, "\\u{:04x}", u32::from(control))?,
            other => out.write_char(other)?,
        }
    }
    out.write_char('"')
}

impl<const N: usize> From<[(&str, String); N]> for JsonObject {
    fn from(members: [(&str, String); N]) -> Self {
        Self(members.into_iter().map(|(name, json)| (name.to_owned(), json)).collect())
    }
}

/// The members of an object; any other value becomes an empty object. (A test that wants an invalid line uses
/// [`World::push_line`](super::World::push_line).)
impl From<Value> for JsonObject {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(members) => {
                Self(members.into_iter().map(|(name, value)| (name, value.to_string())).collect())
            }
            _ => Self::default(),
        }
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = JsonObject;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonObject, A::Error> {
                let mut object = JsonObject::default();
                while let Some((name, json)) = map.next_entry::<String, Box<RawValue>>()? {
                    object.set(&name, json.get());
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_the_order_of_its_members_and_the_trailing_zeros_of_a_decimal() {
        let line = r#"{"z":6.30,"a":{"y":1,"b":70.0},"text":"\"quoted\" \\ ü"}"#;
        let object = JsonObject::read(line).unwrap();
        assert_eq!(object.to_string(), line);
        assert_eq!(object.get("z"), Some("6.30"));
    }

    #[test]
    fn a_text_survives_the_round_trip_through_json() {
        for value in ["", "plain", "\"\\\n\u{1}", "Zoë O'Brien 💊"] {
            assert_eq!(serde_json::from_str::<String>(&text(value)).unwrap(), value);
        }
    }
}
