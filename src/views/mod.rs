//! Flat views over the typed tables, as SQL statements for an engine.
//!
//! A view is always as fresh as its table, and has one row per resource (or per item of one list) and plain columns only.
//! What a statement names is in every table of that type, whatever the layout.

mod catalogue;
mod expression;

use self::catalogue::{Rows, View};

/// Whose SQL it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Dialect {
    /// With its `delta` extension.
    Duckdb,
    /// With Delta's session extension; Databricks as well.
    Spark,
}

/// One `CREATE OR REPLACE VIEW` per view, each ended by a semicolon. `root` is the folder or URL of the tables, as the
/// engine is to name it.
pub fn views(dialect: Dialect, root: &str) -> String {
    let statements: Vec<_> = catalogue::all().iter().map(|view| statement(dialect, root, view)).collect();
    statements.join("\n")
}

fn statement(dialect: Dialect, root: &str, view: &View) -> String {
    let columns = view.columns.iter().map(|(name, value)| format!("  {} AS {name}", value.sql(dialect)));
    let columns = columns.collect::<Vec<_>>().join(",\n");
    let table = table(dialect, root, view.resource_type);
    let from = match (view.rows, dialect) {
        (Rows::Resources, _) => table,
        (Rows::Items(list), Dialect::Duckdb) => {
            format!("{table} AS resource, unnest(resource.{list}) AS each({})", catalogue::ITEM)
        }
        (Rows::Items(list), Dialect::Spark) => {
            format!("{table} LATERAL VIEW explode({list}) each AS {}", catalogue::ITEM)
        }
    };
    format!("CREATE OR REPLACE VIEW {} AS SELECT\n{columns}\nFROM {from};\n", view.name)
}

fn table(dialect: Dialect, root: &str, resource_type: &str) -> String {
    let place = format!("{}/{resource_type}.parquet", root.trim_end_matches('/'));
    match dialect {
        Dialect::Duckdb => format!("delta_scan('{}')", place.replace('\'', "''")),
        Dialect::Spark => format!("delta.`{}`", place.replace('`', "``")),
    }
}

#[cfg(test)]
mod tests;
