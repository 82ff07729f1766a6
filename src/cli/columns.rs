//! Columns: tables of text that fit the terminal. A column in which every row is zero or empty is left out; a table that
//! is too wide has its longest texts on several lines.

use std::io::{IsTerminal as _, stdout};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};

use super::paint::Paint;

/// A table for the standard output, with a line break at its end.
pub fn columns<const N: usize>(head: &[&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    with_head(&within(width(), head, rows))
}

/// A table whose head stands out, where there are colours.
pub fn with_head(table: &str) -> String {
    let (head, rows) = table.split_once('\n').unwrap_or((table, ""));
    format!("{}\n{rows}", Paint::Bold.on(head))
}

/// The same for a width in characters; `None`: each row is one line.
pub fn within<const N: usize>(
    width: Option<u16>,
    head: &[&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    // The first column names the row.
    let is_shown = |column: usize| column == 0 || rows.iter().any(|row| !says_nothing(&row[column]));
    let shown: Vec<_> = (0..N).filter(|column| is_shown(*column)).collect();
    let mut table = Table::new();
    table.load_preset(NOTHING);
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.set_header(shown.iter().map(|column| head[*column]));
    for row in &rows {
        table.add_row(shown.iter().map(|column| &row[*column]));
    }
    let last = shown.len() - 1;
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
        if rows.iter().all(|row| is_number(&row[shown[index]])) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// Of the terminal on the standard output. Elsewhere what `COLUMNS` says, or no limit: programs want one line for a row.
pub fn width() -> Option<u16> {
    let of_terminal =
        || rustix::termios::tcgetwinsize(stdout()).ok().map(|size| size.ws_col).filter(|width| *width > 0);
    let of_environment = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|width| *width > 0);
    if stdout().is_terminal() { of_terminal().or_else(of_environment) } else { of_environment() }
}

fn says_nothing(cell: &str) -> bool {
    matches!(cell, "" | "-" | "0" | "0 B")
}

/// A count, a size such as "12.3 MiB", or the dash in the place of one.
fn is_number(cell: &str) -> bool {
    let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    let is_unit = unit.is_empty() || unit == "B" || unit.ends_with("iB");
    is_unit && (cell == "-" || number.chars().all(|char| char.is_ascii_digit() || matches!(char, ',' | '.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const N: usize>(cells: [&str; N]) -> [String; N] {
        cells.map(str::to_owned)
    }

    #[test]
    fn a_column_of_zeros_is_left_out_and_numbers_are_aligned_at_their_end() {
        let rows = [row(["Patient", "7", "0", "-", "done"]), row(["Observation", "1,234", "0", "-", "-"])];
        let expected = "type         received  end\n\
                        Patient             7  done\n\
                        Observation     1,234  -\n";
        assert_eq!(within(None, &["type", "received", "stale", "version", "end"], rows.clone()), expected);
        assert_eq!(within(Some(80), &["type", "received", "stale", "version", "end"], rows), expected);
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal_at_most() {
        let cause = "failed: Patient file 1 of 3: the connection failed six times within thirty minutes";
        let rows = [row(["Patient", "2026-11-28 23:40:22", "12", cause])];
        let head = ["type", "watermark (UTC)", "run", "end"];
        for width in [40, 60, 80, 120] {
            let table = within(Some(width), &head, rows.clone());
            assert!(table.lines().all(|line| line.chars().count() <= usize::from(width)), "{width}:\n{table}");
        }
        assert_eq!(within(None, &head, rows).lines().count(), 2);
    }

    #[test]
    fn a_table_without_rows_has_its_first_column_only() {
        assert_eq!(within(Some(80), &["run", "type"], []), "run\n");
    }
}
