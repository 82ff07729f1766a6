//! Names: how Spark SQL writes tables, files, columns and texts.

use super::config::Tables;
use crate::fhir::ResourceType;

/// What is below the root, in Spark's words.
#[derive(Clone, Debug)]
pub struct Names {
    /// Without a slash at its end.
    root: String,
    schema: Option<Vec<String>>,
}

impl Names {
    /// `root` is the place of the tables as fhir-sync knows it: an absolute path, or a URL.
    pub fn new(tables: &Tables, root: &str) -> Self {
        let root = match &tables.root {
            Some(root) => root.clone(),
            // The server's default file system may be another one.
            None if root.starts_with('/') => format!("file:{root}"),
            None => root.to_owned(),
        };
        Self { root: root.trim_end_matches('/').to_owned(), schema: tables.schema.clone() }
    }

    /// The table of a type.
    pub fn table(&self, of: ResourceType) -> String {
        match &self.schema {
            Some(schema) => {
                let parts = schema.iter().map(String::as_str).chain([of.as_str()]);
                parts.map(identifier).collect::<Vec<_>>().join(".")
            }
            None => format!("delta.{}", identifier(&format!("{}/{of}.parquet", self.root))),
        }
    }

    /// The Parquet files of a folder below the root.
    pub fn files(&self, directory: &str) -> String {
        format!("parquet.{}", identifier(&format!("{}/{directory}", self.root)))
    }
}

/// A name in backticks.
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text in quotes.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_by_its_path_or_by_its_catalog() {
        let by_path = Names::new(&Tables::default(), "/srv/lake/");
        assert_eq!(by_path.table(ResourceType::PATIENT), "delta.`file:/srv/lake/Patient.parquet`");
        assert_eq!(by_path.files("_fhir_sync/staging/x"), "parquet.`file:/srv/lake/_fhir_sync/staging/x`");
        let tables = Tables {
            root: Some("s3a://lake/fhir/".to_owned()),
            schema: Some(vec!["main".to_owned(), "fh`ir".to_owned()]),
        };
        let by_name = Names::new(&tables, "s3://lake/fhir/");
        assert_eq!(by_name.table(ResourceType::PATIENT), "`main`.`fh``ir`.`Patient`");
        assert_eq!(by_name.files("x"), "parquet.`s3a://lake/fhir/x`");
    }

    #[test]
    fn a_text_cannot_leave_its_quotes() {
        assert_eq!(literal("a'b\\c\\'"), "'a\\'b\\\\c\\\\\\''");
    }
}
