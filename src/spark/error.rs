//! Errors of Spark. What a row contains may be in the texts of the server, so only those of known kinds are shown.

use super::sql::{CHANGED, INCOMPLETE};
use crate::{secret, table};

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("the Spark server {place} cannot be reached ({reason})")]
    Unreachable { place: String, reason: String },
    #[error("the Spark server {place} refuses this user ({reason}); check tables.spark.token_file and its rights")]
    Denied { place: String, reason: String },
    /// The server was started again, or has forgotten the statement: whether it was carried out is to be looked up.
    #[error("the Spark server no longer knows the statement ({class})")]
    Lost { class: String },
    #[error("Spark refuses {what}: {reason}; its own log has the details")]
    Refused { what: &'static str, class: String, reason: String },
    #[error("{what} took longer than tables.spark.statement_timeout")]
    TooLong { what: &'static str },
    #[error("the token of tables.spark cannot be read")]
    Token(#[from] secret::Error),
    #[error("tables.spark.url cannot be used")]
    Setup(#[from] tonic::transport::Error),
    #[error("the Spark server answered {what} in a form that is not understood")]
    Answer { what: &'static str, source: arrow::error::ArrowError },
    #[error("{0}")]
    Table(#[from] table::Error),
}

impl Error {
    /// May it be over when it is tried again?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } | Self::TooLong { .. } => true,
            Self::Refused { class, reason, .. } => class.is_empty() || reason == INCOMPLETE,
            Self::Denied { .. } | Self::Token(_) | Self::Setup(_) | Self::Answer { .. } | Self::Table(_) => false,
        }
    }

    /// Did another writer commit to the table at the same moment?
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class.starts_with("DELTA_CONCURRENT"))
    }

    /// Is there no such table?
    pub fn is_no_table(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if NO_TABLE.contains(&class.as_str()))
    }

    /// As an error of the table at `place`.
    pub fn of_table(self, place: &str) -> table::Error {
        match self {
            Self::Table(error) => error,
            error => {
                let is_transient = error.is_transient();
                table::Error::Engine { place: place.to_owned(), is_transient, source: Box::new(error) }
            }
        }
    }
}

/// The classes of errors that say that there is no such table.
const NO_TABLE: [&str; 4] =
    ["DELTA_MISSING_DELTA_TABLE", "DELTA_PATH_DOES_NOT_EXIST", "TABLE_OR_VIEW_NOT_FOUND", "PATH_NOT_FOUND"];

/// The beginnings of the classes whose texts name tables, columns, types and rights, and no values.
const WITHOUT_VALUES: [&str; 19] = [
    "CATALOG_NOT_FOUND",
    "COLUMN_ALREADY_EXISTS",
    "DATATYPE_MISMATCH",
    "DELTA_CANNOT_CREATE_LOG_PATH",
    "DELTA_CONFIGURE_SPARK_SESSION",
    "DELTA_FAILED_TO_MERGE_FIELDS",
    "DELTA_MERGE_UNRESOLVED_EXPRESSION",
    "DELTA_MISSING_DELTA_TABLE",
    "DELTA_TABLE_NOT_FOUND",
    "DELTA_UNSUPPORTED_FEATURES",
    "INSUFFICIENT_PERMISSIONS",
    "PARQUET_TYPE_NOT_SUPPORTED",
    "PATH_NOT_FOUND",
    "PERMISSION_DENIED",
    "SCHEMA_NOT_FOUND",
    "TABLE_OR_VIEW",
    "UNRESOLVED_COLUMN",
    "UNSUPPORTED_FEATURE",
    "UC_",
];

/// The class of what a statement fails with by itself.
const RAISED_BY_STATEMENT: &str = "USER_RAISED_EXCEPTION";

/// How much of a text is shown.
const MAX_SHOWN_CHARS: usize = 300;

/// `[CLASS.SUBCLASS] text`: the class, and the text if it may be shown.
pub fn class_and_reason(message: &str) -> (String, String) {
    let first_line = message.lines().next().unwrap_or_default();
    let class = first_line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(class, _)| class);
    let Some(class) = class else { return (String::new(), "an error without a class".to_owned()) };
    if class == RAISED_BY_STATEMENT
        && let Some(ours) = [CHANGED, INCOMPLETE].into_iter().find(|ours| first_line.contains(ours))
    {
        return (class.to_owned(), ours.to_owned());
    }
    let may_be_shown = WITHOUT_VALUES.iter().any(|known| class.starts_with(known));
    let reason = if may_be_shown { first_line.chars().take(MAX_SHOWN_CHARS).collect() } else { class.to_owned() };
    (class.to_owned(), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_row_contains_is_in_no_text_of_an_error() {
        let (class, reason) = class_and_reason("[CAST_INVALID_INPUT] The value 'marker' cannot be cast.\nmarker");
        assert_eq!((class.as_str(), reason.as_str()), ("CAST_INVALID_INPUT", "CAST_INVALID_INPUT"));
        let (class, reason) = class_and_reason("Job aborted: marker");
        assert!(class.is_empty() && !reason.contains("marker"));
        let (_, reason) = class_and_reason(&format!("[USER_RAISED_EXCEPTION] {INCOMPLETE} marker"));
        assert_eq!(reason, INCOMPLETE);
        let (_, reason) = class_and_reason("[SCHEMA_NOT_FOUND] The schema `main`.`fhir` cannot be found.\nstack");
        assert!(reason.contains("`main`.`fhir`") && !reason.contains("stack"));
    }

    #[test]
    fn an_error_without_a_class_may_pass_and_one_with_a_class_does_not() {
        let refused = |class: &str| Error::Refused { what: "x", class: class.to_owned(), reason: String::new() };
        assert!(refused("").is_transient() && !refused("SCHEMA_NOT_FOUND").is_transient());
        assert!(refused("DELTA_CONCURRENT_APPEND").is_conflict() && refused("PATH_NOT_FOUND").is_no_table());
    }
}
