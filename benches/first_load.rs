//! A first load: everything that a server has, over HTTP, into a committed table; beside DuckDB, which reads the same
//! files from the disk and writes one Parquet file.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use fhir_sync::{
    cli::Cli,
    demo::{Keep, Server},
};
use serde_json::Value;
use tokio::runtime::{self, Runtime};

use crate::{
    Setup,
    child::megabytes,
    child::{self, Figures, Row, Work},
    data,
    upsert::ours::with_id,
};

const ROWS: u64 = 1_000_000;
/// As many as a server would make of them.
const FILES: u64 = 8;

pub fn run(setup: &Setup) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let output = setup.dir.join("first-load");
    let out = text(&output)?;
    if let Some(folder) = &setup.data {
        rows.push(Row { what: "ours, all files of the folder", figures: load(folder, &out, "true")? });
        child::print_table(&rows);
        return Ok(());
    }
    let mut source = None;
    for (what, files, raw_json) in [
        ("ours, over HTTP", FILES, "true"),
        ("ours, all in one file", 1, "true"),
        ("ours, without resource_json", FILES, "false"),
        ("ours, without resource_json, in one file", 1, "false"),
    ] {
        let input = input(setup, files)?;
        rows.push(Row { what, figures: load(&input, &out, raw_json)? });
        source.get_or_insert(input);
    }
    let source = source.context("nothing was loaded")?;
    match &setup.python {
        Some(python) => {
            let duckdb = |source: &str, raw: &[&str]| {
                let arguments = [&[source, &out, "2"], raw].concat();
                child::measure_python(python, include_str!("decode/duckdb.py"), &arguments)
            };
            let from_disk = text(&source.join("*.ndjson"))?;
            rows.push(Row { what: "DuckDB, from the disk", figures: duckdb(&from_disk, &[])? });
            let served = Served::start(&source)?;
            let over_http = served.files()?;
            let figures = Figures { bytes_in: served.bytes, ..duckdb(&over_http, &[])? };
            rows.push(Row { what: "DuckDB, over HTTP", figures });
            let figures = duckdb(&from_disk, &["raw"])?;
            rows.push(Row { what: "DuckDB, from the disk, with the line as a column", figures });
            let figures = Figures { bytes_in: served.bytes, ..duckdb(&over_http, &["raw"])? };
            rows.push(Row { what: "DuckDB, over HTTP, with the line as a column", figures });
        }
        None => println!("no DuckDB: --python is missing"),
    }
    println!("\nfirst load: {ROWS} Observations, {:.0} MB", megabytes(rows[0].figures.bytes_in));
    child::print_table(&rows);
    Ok(())
}

/// Serves the files of a folder, and loads them.
fn load(folder: &Path, out: &str, raw_json: &str) -> anyhow::Result<Figures> {
    if Path::new(out).exists() {
        fs::remove_dir_all(out)?;
    }
    fs::create_dir_all(out)?;
    let served = Served::start(folder)?;
    let types = served.types.iter().map(|of| format!("\"{of}\"")).collect::<Vec<_>>().join(", ");
    let (url, bytes) = (served.server.url().to_string(), served.bytes.to_string());
    child::measure("first-load/ours", &[&url, out, raw_json, &bytes, &types])
}

/// The embedded server, with the files of a folder in its memory: a real server is another machine, so this one takes as
/// little of the two cores as it can.
struct Served {
    server: Server,
    runtime: Runtime,
    bytes: u64,
    types: BTreeSet<String>,
}

impl Served {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let (mut bytes, mut types) = (0, BTreeSet::new());
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            bytes += entry.metadata()?.len();
            let name = entry.file_name().into_string().ok().context("the name of a file is not UTF-8")?;
            types.insert(name.split('.').next().unwrap_or_default().to_owned());
        }
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = runtime.block_on(Server::start_folder(folder, Keep::InMemory, any_port))?;
        // Compression would cost the two cores more than everything else, and waiting for a job is nobody's speed.
        server.scenario(|scenario| {
            scenario.gzip = false;
            scenario.polls_before_done = 0;
        });
        Ok(Self { server, runtime, bytes, types })
    }

    /// The URLs of a finished export, with commas between them.
    fn files(&self) -> anyhow::Result<String> {
        self.runtime.block_on(async {
            let http = reqwest::Client::new();
            let kick_off = http.get(format!("{}/$export", self.server.url())).header("Prefer", "respond-async");
            let accepted = kick_off.header("Accept", "application/fhir+json").send().await?.error_for_status()?;
            let status = accepted.headers().get("Content-Location").context("no job")?.to_str()?.to_owned();
            let manifest: Value = http.get(status).send().await?.error_for_status()?.json().await?;
            let files = manifest["output"].as_array().context("no manifest")?;
            let urls: Vec<_> = files.iter().filter_map(|file| file["url"].as_str()).collect();
            Ok(urls.join(","))
        })
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("the path is not UTF-8")?.to_owned())
}

/// URL, folder, `tables.raw_json`, bytes that the server has, its types as TOML writes them.
pub fn ours(arguments: &[String]) -> anyhow::Result<Work> {
    let [url, folder, raw_json, bytes_in, types] = arguments else { anyhow::bail!("five arguments") };
    let config = Path::new(folder).join("fhir-sync.toml");
    let text = format!(
        "[server]\nurl = \"{url}\"\n[tables]\nroot = \"{folder}/lake\"\nraw_json = {raw_json}\n\
         [state]\nfile = \"{folder}/state.json\"\n[log]\nfilter = \"error\"\n\
         [[export]]\nname = \"all\"\nlevel = \"system\"\ntypes = [{types}]\n"
    );
    fs::write(&config, text)?;
    let cli = Cli::try_parse_from(["fhir-sync", "sync", "--config", &config.display().to_string()])?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(cli.run());
    ensure!(ended == ExitCode::SUCCESS, "the sync was not complete");
    let mut bytes_out = 0;
    for table in fs::read_dir(Path::new(folder).join("lake"))? {
        for entry in fs::read_dir(table?.path())? {
            let of = entry?.metadata()?;
            bytes_out += if of.is_file() { of.len() } else { 0 };
        }
    }
    Ok(Work { bytes_in: bytes_in.parse()?, bytes_out, rows: 0 })
}

/// A folder with this many files, made once.
fn input(setup: &Setup, files: u64) -> anyhow::Result<PathBuf> {
    let folder = setup.dir.join(format!("first-load-input-{ROWS}-{files}"));
    if folder.exists() {
        return Ok(folder);
    }
    let lines = fs::read_to_string(data::observations(setup, setup.bytes)?)?;
    let unfinished = folder.with_extension("unfinished");
    fs::create_dir_all(&unfinished)?;
    let mut lines = lines.lines().cycle();
    for file in 0..files {
        let mut out = BufWriter::new(File::create(unfinished.join(format!("Observation.{file}.ndjson")))?);
        for id in (0..ROWS).skip_while(|id| id % files != file).step_by(files.try_into()?) {
            writeln!(out, "{}", with_id(lines.next().context("no lines")?, id, 0)?)?;
        }
        out.flush()?;
    }
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}
