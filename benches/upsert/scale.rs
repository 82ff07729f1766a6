//! The cost model: what a table of a given size takes on the disk, and what changes to it read, take and write.
//!
//! docs/scale.md has the points that were measured so, and what follows from them.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::{restored, table_of};
use crate::{
    Setup,
    child::{self, Row, megabytes},
    data,
};

const CHANGES: [(u64, &str); 3] = [(1_000, "1,000 changes"), (10_000, "10,000 changes"), (100_000, "100,000 changes")];
/// Of a run that only brings what is not there yet.
const NEW: u64 = 100;

pub fn run(setup: &Setup) -> anyhow::Result<()> {
    let (lines, name) = if setup.narrow {
        (data::narrow(setup)?, "narrow")
    } else {
        (data::observations(setup, setup.bytes)?, super::LAKE)
    };
    let lines = lines.to_str().context("the path is not UTF-8")?;
    let rows = setup.rows;
    let table = table_of(setup, lines, rows, name)?;
    print_size(&table.join("Observation.parquet"), rows)?;
    println!("\nscale: changes, half of them updates, into {rows} {name} Observations");
    let measure = |changes: u64, step: &str| {
        restored(&table, |folder| child::measure(step, &[folder, lines, &rows.to_string(), &changes.to_string()]))
    };
    let mut figures = vec![Row { what: "100 new rows", figures: measure(NEW, "upsert/new")? }];
    for (changes, what) in CHANGES {
        figures.push(Row { what, figures: measure(changes, "upsert/ours")? });
    }
    // As of a full refresh, or of an instalment of a large first load.
    figures.push(Row { what: "as many changes as rows", figures: measure(rows, "upsert/ours")? });
    child::print_table(&figures);
    Ok(())
}

fn print_size(table: &Path, rows: u64) -> anyhow::Result<()> {
    let (files, bytes) = size(table)?;
    let (_, log_bytes) = size(&table.join("_delta_log"))?;
    println!(
        "{rows} rows: {files} data files, {:.0} MB, {} bytes a row; the log has {:.2} MB",
        megabytes(bytes),
        bytes / rows.max(1),
        megabytes(log_bytes)
    );
    Ok(())
}

/// The files of a folder, without those below it, and their bytes.
fn size(folder: &Path) -> anyhow::Result<(usize, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(folder)? {
        let metadata = entry?.metadata()?;
        if metadata.is_file() {
            files += 1;
            bytes += metadata.len();
        }
    }
    Ok((files, bytes))
}
