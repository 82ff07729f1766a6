//! Flat views over the typed tables, as SQL statements for an engine.
//!
//! A view is as recent as its table. It has one row per resource, or per item of one list, and only columns without
//! nesting. Each column that a statement names exists in every table of that type, in either layout.

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
    let path = format!("{}/{resource_type}.parquet", root.trim_end_matches('/'));
    match dialect {
        Dialect::Duckdb => format!("delta_scan('{}')", path.replace('\'', "''")),
        Dialect::Spark => format!("delta.`{}`", path.replace('`', "``")),
    }
}

#[cfg(test)]
mod tests;
