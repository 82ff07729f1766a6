//! The measurement `decode`: NDJSON Observations to Parquet, ours beside arrow-json and DuckDB, all on two threads.

pub mod arrow_json;
pub mod ours;
pub mod stages;

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use bytes::Bytes;

use crate::{
    Setup,
    child::{self, Row, Work},
    data,
};

const THREADS: &str = "2";

pub fn run(setup: &Setup) -> anyhow::Result<()> {
    let input = data::observations(setup, setup.bytes)?;
    let large = data::observations(setup, setup.bytes * 3)?;
    let out = setup.dir.join("decode");
    let ours = |input: &Path, columns| {
        child::measure("decode/ours", &[&text(input), &text(&out), THREADS, columns, "Observation", "true"])
    };
    let mut rows = vec![
        Row { what: "ours: lines to Parquet", figures: ours(&input, "filled")? },
        Row { what: "ours, columns without a value written too", figures: ours(&input, "all")? },
        Row { what: "ours: decoded, not written", figures: ours(&input, "none")? },
        Row {
            what: "arrow-json: decoded, not written",
            figures: child::measure("decode/arrow-json", &[&text(&input), THREADS])?,
        },
    ];
    match &setup.python {
        Some(python) => {
            let arguments = [&text(&input), &text(&out), THREADS];
            let figures = child::measure_python(python, include_str!("duckdb.py"), &arguments.map(AsRef::as_ref))?;
            rows.push(Row { what: "DuckDB: read_json_auto to Parquet", figures });
        }
        None => println!("DuckDB is left out: name a Python that has it with --python"),
    }
    println!("\ndecode: {:.0} MB of Observations, {THREADS} threads", child::megabytes(rows[0].figures.bytes_in));
    child::print_table(&rows);
    let large = ours(&large, "filled")?;
    println!(
        "\npeak memory of ours: {:.0} MB for {:.0} MB of input, {:.0} MB for {:.0} MB",
        child::megabytes(rows[0].figures.peak_rss_bytes),
        child::megabytes(rows[0].figures.bytes_in),
        child::megabytes(large.peak_rss_bytes),
        child::megabytes(large.bytes_in),
    );
    std::fs::remove_dir_all(&out)?;
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Gives each thread its part of the file, a piece at a time; parts end with a line. What the threads did is added up.
fn in_parts<T>(
    input: &Path,
    threads: usize,
    begin: impl Fn(usize) -> anyhow::Result<T> + Sync,
    piece: impl Fn(&mut T, Bytes) -> anyhow::Result<()> + Sync,
    end: impl Fn(T) -> anyhow::Result<Work> + Sync,
) -> anyhow::Result<Work> {
    let ends = ends(input, threads)?;
    let part = |number: usize| -> anyhow::Result<Work> {
        let from = if number == 0 { 0 } else { ends[number - 1] };
        let mut file = File::open(input)?;
        file.seek(SeekFrom::Start(from))?;
        let mut file = file.take(ends[number] - from);
        let mut state = begin(number)?;
        loop {
            // Like the chunks of a body, which are not used again either.
            let mut chunk = vec![0; 256 * 1024];
            let count = file.read(&mut chunk)?;
            if count == 0 {
                return end(state);
            }
            chunk.truncate(count);
            piece(&mut state, chunk.into())?;
        }
    };
    let mut all = Work { bytes_in: ends.last().copied().unwrap_or_default(), bytes_out: 0, rows: 0 };
    std::thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || part(number))).collect();
        for thread in threads {
            let work = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            all.bytes_out += work.bytes_out;
            all.rows += work.rows;
        }
        Ok(all)
    })
}

/// Where the parts end.
fn ends(input: &Path, parts: usize) -> anyhow::Result<Vec<u64>> {
    let mut file = File::open(input)?;
    let bytes = file.metadata()?.len();
    let mut ends = Vec::with_capacity(parts);
    for part in 1..parts as u64 {
        let mut end = bytes * part / parts as u64;
        file.seek(SeekFrom::Start(end))?;
        let (mut buffer, mut found) = (vec![0; 64 * 1024], false);
        while !found {
            let count = file.read(&mut buffer)?;
            let newline = buffer[..count].iter().position(|byte| *byte == b'\n');
            end += newline.map_or(count, |place| place + 1) as u64;
            found = newline.is_some() || count == 0;
        }
        ends.push(end);
    }
    ends.push(bytes);
    Ok(ends)
}
