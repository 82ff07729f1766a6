//! Why a type is loaded in full although it had a watermark.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In the file it is the sentence that people read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ReloadReason {
    /// The last full load did not bring it.
    LeftOut,
    /// In words: nothing depends on which.
    Other(String),
}

const LEFT_OUT: &str = "the last full load brought none of it";

impl fmt::Display for ReloadReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::LeftOut => LEFT_OUT,
            Self::Other(words) => words,
        })
    }
}

impl From<String> for ReloadReason {
    fn from(words: String) -> Self {
        if words == LEFT_OUT { Self::LeftOut } else { Self::Other(words) }
    }
}

impl From<&str> for ReloadReason {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

impl From<ReloadReason> for String {
    fn from(reason: ReloadReason) -> Self {
        reason.to_string()
    }
}
