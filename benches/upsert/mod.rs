//! The upsert engine: changes into tables of several sizes, and a first load.
//!
//! The table is made once for each number of rows and kept from run to run; a measurement works on a copy of its log,
//! so all of them see the same version. What a change set is made of is decoded in the measured time.

#[cfg(feature = "sql")]
pub mod deltalake;
pub mod ours;
pub mod scale;
pub mod spark;
pub mod store;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    Setup,
    child::{self, Figures, Row},
    data,
};

/// Changes of a usual run: half of them to rows that are there, at random, half new.
const CHANGES: u64 = 100_000;
const FEW: u64 = 1_000;
/// Of a run that only brings what is not there yet.
const NEW: u64 = 100;

pub fn run(setup: &Setup) -> anyhow::Result<()> {
    let lines = data::observations(setup, setup.bytes)?;
    let lines = lines.to_str().context("the path is not UTF-8")?;
    let (rows, tenth) = (setup.rows, setup.rows / 10);
    let table = table(setup, lines, rows)?;
    let small = self::table(setup, lines, tenth)?;
    println!("\nupsert: {CHANGES} changes, half of them updates, into {rows} Observations with all columns");
    let measure = |table: &Path, rows: u64, changes: u64, step: &str| {
        restored(table, |folder| child::measure(step, &[folder, lines, &rows.to_string(), &changes.to_string()]))
    };
    let ours = measure(&table, rows, CHANGES, "upsert/ours")?;
    let few = measure(&table, rows, FEW, "upsert/ours")?;
    let new = measure(&table, rows, NEW, "upsert/new")?;
    let small_table = measure(&small, tenth, CHANGES, "upsert/ours")?;
    let again = measure(&table, rows, CHANGES, "upsert/again")?;
    let copy = measure(&table, rows, CHANGES, "upsert/copy-on-write")?;
    let mut figures = vec![
        Row { what: "ours", figures: ours },
        Row { what: "ours, the same changes again", figures: again },
        Row { what: "ours, 1,000 changes", figures: few },
        Row { what: "ours, 100 new rows", figures: new },
        Row { what: "ours, a tenth of the table", figures: small_table },
        Row { what: "ours, copy-on-write", figures: copy },
    ];
    if setup.merge {
        anyhow::ensure!(cfg!(feature = "sql"), "deltalake merges with DataFusion only: add --features sql");
        figures.push(Row { what: "deltalake's merge", figures: measure(&table, rows, CHANGES, "upsert/deltalake")? });
    }
    if let Some(python) = &setup.spark {
        let file = setup.dir.join(format!("changes-{rows}.parquet"));
        let path = file.to_str().context("the path is not UTF-8")?;
        child::measure("upsert/changes", &[path, lines, &rows.to_string(), &CHANGES.to_string()])?;
        let merge = |table: &str| restored(&small, |small| spark::measure(python, table, small, &file));
        figures.push(Row { what: "Spark's merge, warm", figures: restored(&table, merge)? });
    }
    child::print_table(&figures);
    print_ratios(&ours, &few, &new, &small_table, &again);
    Ok(())
}

fn print_ratios(ours: &Figures, few: &Figures, new: &Figures, small: &Figures, again: &Figures) {
    println!("\n10 × the table takes {:.2} × the time", ours.wall_seconds / small.wall_seconds);
    println!("1,000 changes take 1/{:.1} of the time of {CHANGES}", ours.wall_seconds / few.wall_seconds);
    println!("{NEW} new rows take 1/{:.1} of the time of 1,000 changes", few.wall_seconds / new.wall_seconds);
    println!("the same changes again write {} bytes of data files", again.bytes_out);
}

/// Another one when data files are written otherwise, so that a table from before is not taken: these have Bloom
/// filters.
const LAKE: &str = "lake-2";

/// The folder of a table of that many rows.
fn table(setup: &Setup, lines: &str, rows: u64) -> anyhow::Result<PathBuf> {
    table_of(setup, lines, rows, LAKE)
}

fn table_of(setup: &Setup, lines: &str, rows: u64, name: &str) -> anyhow::Result<PathBuf> {
    let folder = setup.dir.join(format!("{name}-{rows}"));
    if folder.join("made").exists() {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    println!("making a table of {rows} rows …");
    let path = folder.to_str().context("the path is not UTF-8")?;
    let figures = child::measure("upsert/load", &[path, lines, &rows.to_string()])?;
    child::print_table(&[Row { what: "first load", figures }]);
    fs::write(folder.join("made"), "")?;
    Ok(folder)
}

/// Gives the table to `work`, and puts its log back afterwards. Data files that `work` adds are no part of it then.
fn restored<T>(table: &Path, work: impl FnOnce(&str) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let log = table.join("Observation.parquet/_delta_log");
    let before: Vec<_> = names(&log)?;
    let done = work(table.to_str().context("the path is not UTF-8")?);
    for name in names(&log)?.into_iter().filter(|name| !before.contains(name)) {
        fs::remove_file(log.join(name))?;
    }
    done
}

fn names(folder: &Path) -> anyhow::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}
