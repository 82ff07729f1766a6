//! Benches: what is fast, shown as ratios of things measured in one run.
//!
//! `cargo bench -- decode` runs one measurement, without a name all of them. Each thing that a measurement compares
//! runs in a process of its own and says what it used as one line of JSON, so peaks of memory are its own as well.
//! Absolute figures are those of the machine and of its neighbours; the ratios are what can be compared.

mod child;
mod data;
mod decode;
mod first_load;
mod upsert;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use tikv_jemallocator::Jemalloc;

/// That of the program.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Measures what it is asked for, by name.
#[derive(clap::Parser)]
struct Arguments {
    /// What to measure; everything where none is named.
    names: Vec<String>,
    /// Where input is kept from run to run, and output is written.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/benches"))]
    dir: PathBuf,
    /// A folder of NDJSON to take lines from (`Observation.ndjson.gz`), instead of synthetic ones. `first-load` serves
    /// its files as they are.
    #[arg(long)]
    data: Option<PathBuf>,
    /// How much NDJSON to make, in millions of bytes.
    #[arg(long, default_value_t = 500)]
    megabytes: u64,
    /// How many rows the table has that changes are brought into.
    #[arg(long, default_value_t = 4_000_000)]
    rows: u64,
    /// For `scale`: rows with an id, a version and a status, instead of synthetic ones.
    #[arg(long)]
    narrow: bool,
    /// Also measure deltalake's own merge, which takes minutes and most of the memory; needs the feature `sql`.
    #[arg(long)]
    merge: bool,
    /// The Python of `tests/interop/install.sh spark`: also measure the merge of Spark with Delta.
    #[arg(long)]
    spark: Option<PathBuf>,
    /// A Python that has duckdb; without one DuckDB is left out.
    #[arg(long, env = "FHIR_SYNC_BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// What `cargo bench` itself adds.
    #[arg(long, hide = true)]
    bench: bool,
    /// The name of a step and its own arguments: this is a child.
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    child: Option<Vec<String>>,
}

/// What a measurement may use.
pub struct Setup {
    pub dir: PathBuf,
    pub data: Option<PathBuf>,
    pub bytes: u64,
    pub rows: u64,
    pub narrow: bool,
    pub merge: bool,
    pub spark: Option<PathBuf>,
    pub python: Option<PathBuf>,
}

/// Prints what it found.
struct Measurement {
    name: &'static str,
    run: fn(&Setup) -> anyhow::Result<()>,
}

const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "decode", run: decode::run },
    Measurement { name: "stages", run: decode::stages::run },
    Measurement { name: "upsert", run: upsert::run },
    Measurement { name: "scale", run: upsert::scale::run },
    Measurement { name: "latency", run: upsert::store::run },
    Measurement { name: "first-load", run: first_load::run },
];

/// What children can do, for all measurements.
const STEPS: &[child::Step] = &[
    child::Step { name: "decode/ours", run: decode::ours::run },
    child::Step { name: "decode/arrow-json", run: decode::arrow_json::run },
    child::Step { name: "stages/decoded", run: decode::stages::decoded },
    child::Step { name: "first-load/ours", run: first_load::ours },
    child::Step { name: "upsert/load", run: upsert::ours::load },
    child::Step { name: "upsert/ours", run: upsert::ours::run },
    child::Step { name: "upsert/new", run: upsert::ours::new },
    child::Step { name: "upsert/again", run: upsert::ours::again },
    child::Step { name: "upsert/copy-on-write", run: upsert::ours::copy_on_write },
    child::Step { name: "upsert/store", run: upsert::store::upserts },
    child::Step { name: "upsert/changes", run: upsert::spark::changes },
    #[cfg(feature = "sql")]
    child::Step { name: "upsert/deltalake", run: upsert::deltalake::run },
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(step) = arguments.child {
        return child::run(STEPS, &step);
    }
    let known = |name: &str| MEASUREMENTS.iter().any(|measurement| measurement.name == name);
    if let Some(unknown) = arguments.names.iter().find(|name| !known(name)) {
        let names: Vec<_> = MEASUREMENTS.iter().map(|measurement| measurement.name).collect();
        bail!("nothing called {unknown} can be measured; there is {}", names.join(", "));
    }
    std::fs::create_dir_all(&arguments.dir).with_context(|| arguments.dir.display().to_string())?;
    let setup = Setup {
        dir: arguments.dir,
        data: arguments.data,
        bytes: arguments.megabytes * 1_000_000,
        rows: arguments.rows,
        narrow: arguments.narrow,
        merge: arguments.merge,
        spark: arguments.spark,
        python: arguments.python,
    };
    let wanted = |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|wanted| wanted == name);
    MEASUREMENTS
        .iter()
        .filter(|measurement| wanted(measurement.name))
        .try_for_each(|measurement| (measurement.run)(&setup))
}
