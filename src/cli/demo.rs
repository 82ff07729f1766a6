//! The demo: a server of our own, a sync, a day in its life, another sync, and what became of the tables.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use indicatif::HumanCount;
use tokio_util::sync::CancellationToken;

use super::{Ends, FAILED, PARTIAL, STOPPED, show, stoppable};
use crate::{
    config,
    demo::{Server, generate},
    export::Level,
    fhir::ResourceType,
    sync::{Export, Mode, Outcome, ProgressSender, Report, Syncer, chain},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// How many synthetic patients
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    patients: u32,
    /// The same seed gives the same patients
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the tables are left; a demo that was there before is replaced
    #[arg(long, default_value = "fhir-sync-demo")]
    dir: PathBuf,
    /// Serve the .ndjson and .ndjson.gz files of this folder instead
    #[arg(long, conflicts_with_all = ["patients", "seed"])]
    data: Option<PathBuf>,
    /// Leave the server up at the end, for other clients
    #[arg(long)]
    keep_serving: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Ends> {
    telemetry::start(&telemetry::Config::quiet());
    let stop = CancellationToken::new();
    stoppable(play(arguments, &stop), &stop).await?
}

async fn play(arguments: Arguments, stop: &CancellationToken) -> Result<(), Ends> {
    let dir = clean(&arguments.dir).map_err(|error| failed(&format!("{}: {error}", arguments.dir.display())))?;
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = match &arguments.data {
        Some(folder) => {
            println!("Serving the files of {} as a FHIR server …", folder.display());
            Server::start_folder(folder, anywhere).await
        }
        None => {
            println!("Making {} synthetic patients (seed {}) …", arguments.patients, arguments.seed);
            Server::start(generate::world(arguments.patients as usize, arguments.seed), anywhere).await
        }
    };
    let server = server.map_err(|error| failed(&error.to_string()))?;
    println!("FHIR server with Bulk Data export: {}", server.url());
    let stage = Stage::set(&server, &dir).await?;
    println!("\nFirst sync: nothing is known yet, so everything is asked for.\n");
    stage.act(Mode::Incremental, stop).await?;
    stage.ask().await?;
    if arguments.data.is_some() {
        println!("\nSecond sync: the same files again. What is there already is not written again.\n");
        unchanged(&stage.act(Mode::Incremental, stop).await?)?;
        println!("\nFull refresh: everything is asked for once more.\n");
        unchanged(&stage.act(Mode::FullRefresh, stop).await?)?;
    } else {
        let changes = server.world(|world| generate::next_day(world, arguments.seed));
        let sum = |of: &std::collections::BTreeMap<ResourceType, usize>| of.values().sum::<usize>();
        println!(
            "\nA day passes on the server: {} resources created, {} updated, {} deleted.",
            sum(&changes.created),
            sum(&changes.updated),
            sum(&changes.deleted)
        );
        println!("Second sync: only what changed since the first is asked for.\n");
        stage.act(Mode::Incremental, stop).await?;
    }
    stage.ask().await?;
    farewell(&dir, &stage.export.types);
    if arguments.keep_serving {
        println!("\nThe server stays up at {} until Ctrl-C. Point another sync at it:\n", server.url());
        println!("  fhir-sync sync --fhir-endpoint {} --delta-path ./lake --state-file ./state.json", server.url());
        stop.cancelled().await;
    }
    server.stop().await;
    Ok(())
}

/// A sync between the server and a folder.
struct Stage {
    syncer: Syncer,
    export: Export,
    progress: tokio::sync::watch::Receiver<crate::sync::Progress>,
}

impl Stage {
    async fn set(server: &Server, dir: &Path) -> Result<Self, Ends> {
        let types = server.types();
        if types.is_empty() {
            return Err(failed("there is nothing to sync: no file is named after a resource type"));
        }
        let flags = config::Flags {
            fhir_endpoint: server.url().to_string(),
            delta_path: dir.join("lake").display().to_string(),
            state_file: dir.join("state.json"),
            resource_types: types.iter().map(ToString::to_string).collect(),
            group_id: None,
            auth: None,
        };
        let config = flags.load().map_err(|mistakes| failed(&mistakes.to_string()))?;
        let reconciled = types.iter().copied().collect();
        let export = Export { name: "demo".to_owned(), level: Level::System, types, reconciled };
        let (sender, progress) = ProgressSender::new();
        let exports = [export];
        let syncer =
            Syncer::open(config.server, config.tables, &config.state_file, config.sync, &exports, sender).await;
        let [export] = exports;
        Ok(Self { syncer: syncer.map_err(|error| failed(&chain(&error)))?, export, progress })
    }

    async fn act(&self, mode: Mode, stop: &CancellationToken) -> Result<Report, Ends> {
        let report = show::with_progress(self.syncer.run(&self.export, mode, stop), self.progress.clone()).await;
        show::report(&report);
        match report.outcome {
            Outcome::Complete => Ok(report),
            Outcome::Partial => Err(PARTIAL),
            Outcome::Failed => Err(FAILED),
            Outcome::Stopped => Err(STOPPED),
        }
    }

    /// What the table of observations holds now, or the first one: rows by a column that people know.
    async fn ask(&self) -> Result<(), Ends> {
        let types = &self.export.types;
        let observation = types.iter().find(|resource_type| resource_type.as_str() == "Observation");
        let (resource_type, column) =
            observation.map_or((types[0], "resourceType"), |observation| (*observation, "status"));
        let counts = self.syncer.root.value_counts(resource_type, column).await;
        let counts = counts.map_err(|error| failed(&chain(&error)))?;
        println!("\nThe rows of {resource_type} now, by {column}:");
        for (value, rows) in counts {
            println!("  {:20} {:>12}", value.as_deref().unwrap_or("NULL"), HumanCount(rows).to_string());
        }
        Ok(())
    }
}

/// The same data once more must not change anything.
fn unchanged(report: &Report) -> Result<(), Ends> {
    let bytes_written: u64 = report.types.values().map(|of| of.bytes_written).sum();
    if report.changed() == 0 && bytes_written == 0 {
        println!("As it should be: nothing changed, no data file was written.");
        return Ok(());
    }
    Err(failed(&format!("{} rows changed and {bytes_written} bytes were written for the same data", report.changed())))
}

fn farewell(dir: &Path, types: &[ResourceType]) {
    let lake = dir.join("lake");
    let lake = lake.display();
    let table = types.iter().find(|of| of.as_str() == "Patient").unwrap_or(&types[0]);
    println!(
        "\nThe tables are in {lake}, one folder for each resource type. Open them:\n\n\
         DuckDB   INSTALL delta; LOAD delta;\n         \
         SELECT * FROM delta_scan('{lake}/{table}.parquet') LIMIT 10;\n\
         Polars   pl.read_delta(\"{lake}/{table}.parquet\")\n\
         Spark    spark.read.format(\"delta\").load(\"{lake}/{table}.parquet\")"
    );
}

/// An empty folder for the demo. One that was not made by a demo is left alone.
fn clean(dir: &Path) -> std::io::Result<PathBuf> {
    const MARK: &str = ".fhir-sync-demo";
    let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if dir.exists() && !is_empty {
        if !dir.join(MARK).exists() {
            let way_out = "is not empty and was not made by a demo; choose another with --dir";
            return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, way_out));
        }
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    fs::write(dir.join(MARK), "Made by `fhir-sync demo`, which replaces this folder when it runs again.\n")?;
    dir.canonicalize()
}

fn failed(what: &str) -> Ends {
    eprintln!("fhir-sync: {what}");
    FAILED
}
