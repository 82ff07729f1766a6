//! `demo`: a built-in FHIR server, a sync, a day of changes, another sync, and what the tables hold after each.

mod scenarios;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use clap::Args;
use indicatif::HumanCount;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    exit::{Exit, failed, stoppable},
    progress::with_progress,
    show::{self, rows},
};
use crate::{
    config,
    demo::{Keep, Registered, Server, generate, named},
    fhir::ResourceType,
    sync::{Board, Chosen, Export, Level, Mode, ProgressBoard, Report, Syncer, chain},
    telemetry,
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// Number of synthetic patients
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    patients: u32,
    /// The same seed gives the same patients
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for the tables; those of an earlier demo are replaced
    #[arg(long, value_name = "FOLDER", default_value = "fhir-sync-demo")]
    dir: PathBuf,
    /// Serve the .ndjson and .ndjson.gz files of this folder instead
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["patients", "seed"])]
    data: Option<PathBuf>,
    /// Keep the server running at the end, for other clients; also where a sync was not complete
    #[arg(long)]
    keep_serving: bool,
    /// Show how a sync survives a server that does this, and exit; may be repeated, `all` means each of them
    #[arg(long, value_name = "NAME", value_parser = scenarios::parse, conflicts_with_all = ["data", "keep_serving"])]
    scenario: Vec<scenarios::Chosen>,
    /// List the scenarios: what the server does, and what fhir-sync does about it
    #[arg(long)]
    list_scenarios: bool,
}

pub async fn run(arguments: Arguments) -> Result<(), Exit> {
    if arguments.list_scenarios {
        scenarios::list();
        return Ok(());
    }
    telemetry::start(&telemetry::Config::quiet());
    let stop = CancellationToken::new();
    if arguments.scenario.is_empty() {
        return stoppable(demonstrate(arguments, &stop), &stop).await?;
    }
    stoppable(scenarios::play(arguments, &stop), &stop).await?
}

async fn demonstrate(arguments: Arguments, stop: &CancellationToken) -> Result<(), Exit> {
    let dir = clean_folder(&arguments)?;
    let server = start_server(&arguments).await?;
    say!("FHIR server with Bulk Data export: {}", server.url());
    let shown = show_syncs(&arguments, &server, &dir, stop).await;
    if arguments.keep_serving {
        say!("\nThe server runs at {} until Ctrl-C. To sync it with another fhir-sync:\n", server.url());
        say!("  fhir-sync sync --fhir-endpoint {} --delta-path ./lake --state-file ./state.json", server.url());
        stop.cancelled().await;
    }
    server.stop().await;
    shown
}

async fn show_syncs(arguments: &Arguments, server: &Server, dir: &Path, stop: &CancellationToken) -> Result<(), Exit> {
    let demo = Demo::start(server, dir, None).await?;
    say!("\nFirst sync: there are no tables yet, so it asks for all resources.\n");
    demo.sync(Mode::Incremental, stop).await?;
    demo.query().await?;
    if arguments.data.is_some() {
        say!("\nSecond sync: the same files again. Rows that did not change are not rewritten.\n");
        unchanged(&demo.sync(Mode::Incremental, stop).await?)?;
        say!("\nFull refresh: it asks for all resources again.\n");
        unchanged(&demo.sync(Mode::FullRefresh, stop).await?)?;
    } else {
        let changes = server.world(|world| generate::next_day(world, arguments.seed));
        let sum = |counts: &BTreeMap<ResourceType, usize>| counts.values().sum::<usize>();
        say!(
            "\nA day passes on the server: {} resources created, {} updated, {} deleted.",
            sum(&changes.created),
            sum(&changes.updated),
            sum(&changes.deleted)
        );
        say!("Second sync: it asks only for what changed since the first.\n");
        demo.sync(Mode::Incremental, stop).await?;
    }
    demo.query().await?;
    next_steps(dir, &demo.export.types);
    Ok(())
}

async fn start_server(arguments: &Arguments) -> Result<Server, Exit> {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = match &arguments.data {
        Some(folder) => {
            say!("Serving the files of {} as a FHIR server …", folder.display());
            Server::start_folder(folder, Keep::OnDisk, any_port).await
        }
        None => {
            say!("Generating {} synthetic patients (seed {}) …", arguments.patients, arguments.seed);
            Server::start(generate::world(arguments.patients as usize, arguments.seed), any_port).await
        }
    };
    let server = server.map_err(|error| failed(&error.to_string()))?;
    server.scenario(|scenario| scenario.groups = Some(named::groups()));
    Ok(server)
}

/// A sync between the built-in server and a folder.
struct Demo {
    syncer: Syncer,
    export: Export,
    progress: watch::Receiver<Board>,
}

impl Demo {
    async fn start(server: &Server, dir: &Path, client: Option<&Registered>) -> Result<Self, Exit> {
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
            client_id: client.map(|client| client.client_id.clone()),
            key: client.map(|client| config::Key::Text(client.private_jwk.clone())),
        };
        let mut config = flags.load().map_err(|mistakes| failed(&mistakes.to_string()))?;
        // The demo's server has another port each time.
        config.sync.source_chosen = Chosen::ByOperator;
        if client.is_some() {
            // Nobody who watches a scenario wants to wait for half an hour.
            config.server.http.outage_patience = scenarios::PATIENCE;
            config.server.poll.believed_after = scenarios::PATIENCE;
            // Of a small server, a restored backup takes a large part away.
            config.sync.reconcile.max_missing = scenarios::MAX_MISSING;
        }
        let export = Export::new("demo", Level::System, types);
        let (sender, progress) = ProgressBoard::new();
        let exports = [export];
        let syncer = Syncer::open(config.server, config.tables, &config.state, config.sync, &exports, sender).await;
        let [export] = exports;
        Ok(Self { syncer: syncer.map_err(|error| failed(&chain(&error)))?, export, progress })
    }

    async fn sync(&self, mode: Mode, stop: &CancellationToken) -> Result<Report, Exit> {
        let report = with_progress(self.syncer.run(&self.export, mode, stop), self.progress.clone()).await;
        show::report(&report);
        Exit::of(report.outcome).map(|()| report)
    }

    /// Prints how many rows there are by status, of observations or else of the first type.
    async fn query(&self) -> Result<(), Exit> {
        let types = &self.export.types;
        let observation = types.iter().find(|resource_type| resource_type.as_str() == "Observation");
        let (resource_type, column) =
            observation.map_or((types[0], "resourceType"), |observation| (*observation, "status"));
        let counts = self.syncer.root.value_counts(resource_type, column).await;
        let counts = counts.map_err(|error| failed(&chain(&error)))?;
        say!("\nThe rows of {resource_type} now, by {column}:");
        for (value, rows) in counts {
            say!("  {:20} {:>12}", value.as_deref().unwrap_or("NULL"), HumanCount(rows).to_string());
        }
        Ok(())
    }
}

/// The same data again must not change anything.
fn unchanged(report: &Report) -> Result<(), Exit> {
    let bytes_written: u64 = report.types.values().map(|report| report.bytes_written).sum();
    if report.changed() == 0 && bytes_written == 0 {
        say!("As expected: no row changed, no data file was written.");
        return Ok(());
    }
    Err(failed(&format!("{} changed and {bytes_written} bytes were written for the same data", rows(report.changed()))))
}

fn next_steps(dir: &Path, types: &[ResourceType]) {
    let lake = dir.join("lake");
    let lake = lake.display();
    let table = types.iter().find(|resource_type| resource_type.as_str() == "Patient").unwrap_or(&types[0]);
    say!(
        "\nThe tables are in {lake}, one folder for each resource type. To read them:\n\n\
         DuckDB   INSTALL delta; LOAD delta;\n         \
         SELECT * FROM delta_scan('{lake}/{table}.parquet') LIMIT 10;\n\
         Polars   pl.read_delta(\"{lake}/{table}.parquet\")\n\
         Spark    spark.read.format(\"delta\").load(\"{lake}/{table}.parquet\")"
    );
}

fn clean_folder(arguments: &Arguments) -> Result<PathBuf, Exit> {
    clean(&arguments.dir).map_err(|error| failed(&format!("{}: {error}", arguments.dir.display())))
}

/// An empty folder for the demo. A folder that no demo made is left alone.
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
