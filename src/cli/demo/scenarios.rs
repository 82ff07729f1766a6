//! The scenarios: a server that misbehaves, the syncs that survive it, and the tables afterwards.

use std::{collections::BTreeMap, path::Path, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Arguments, Demo, clean_folder};
use crate::{
    cli::{
        exit::{Exit, failed},
        progress::with_progress,
        show,
    },
    demo::{
        Registered, Server, generate,
        named::{self, Begins, Heals, NAMED, Named, Promise},
    },
    fhir::ResourceType,
    sync::{Mode, Outcome, Report, chain},
};

/// What `--scenario` names.
#[derive(Clone, Copy)]
pub enum Chosen {
    All,
    One(&'static Named),
}

impl std::fmt::Debug for Chosen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::All => "all",
            Self::One(named) => named.name,
        })
    }
}

/// How long a sync waits for a server that does not answer, in a scenario.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// This many rows may be missing in a full refresh and are removed, in a scenario.
pub const MAX_MISSING: u64 = 10_000;

pub fn parse(name: &str) -> Result<Chosen, String> {
    let one = || Named::find(name).map(Chosen::One);
    let chosen = if name == "all" { Some(Chosen::All) } else { one() };
    chosen.ok_or_else(|| "there is no such scenario; --list-scenarios lists them".to_owned())
}

pub fn list() {
    for named in NAMED {
        say!("{}\n    {}\n    {}", named.name, named.server, named.client);
    }
}

/// Plays the chosen scenarios, each with a server and tables of its own.
pub async fn play(arguments: Arguments, stop: &CancellationToken) -> Result<(), Exit> {
    let folder = clean_folder(&arguments)?;
    let chosen = arguments.scenario.iter().flat_map(|chosen| match chosen {
        Chosen::All => NAMED.iter().collect::<Vec<_>>(),
        Chosen::One(named) => vec![*named],
    });
    for named in chosen {
        say!("\n== {}\n\nThe server:  {}\nfhir-sync:   {}", named.name, named.server, named.client);
        let play = Play::start(named, &arguments, &folder.join(named.name)).await?;
        play.through(arguments.seed, stop).await?;
        play.server.stop().await;
    }
    Ok(())
}

struct Play {
    named: &'static Named,
    server: Server,
    demo: Demo,
}

impl Play {
    async fn start(named: &'static Named, arguments: &Arguments, folder: &Path) -> Result<Self, Exit> {
        let server = super::start_server(arguments).await?;
        let unusable = |error: &dyn std::fmt::Display| failed(&error.to_string());
        let client = Registered::new("demo").map_err(|error| unusable(&error))?;
        server.scenario(|scenario| scenario.auth = Some(client.auth()));
        std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
        let demo = Demo::start(&server, folder, Some(&client)).await?;
        Ok(Self { named, server, demo })
    }

    async fn through(&self, seed: u64, stop: &CancellationToken) -> Result<(), Exit> {
        let before = self.server.world(|world| world.clone());
        let begins = self.named.begins;
        for number in [Begins::FirstSync, Begins::SecondSync, Begins::ThirdSync] {
            if number == begins {
                self.named.begin(&self.server, &before);
            }
            if number == Begins::SecondSync {
                self.server.world(|world| generate::next_day(world, seed));
            }
            self.sync(number == begins, stop).await?;
            if number == begins {
                break;
            }
        }
        named::end(&self.server);
        say!("\nThe scenario ends: the server behaves again.\n");
        self.heal(stop).await
    }

    async fn sync(&self, is_disturbed: bool, stop: &CancellationToken) -> Result<(), Exit> {
        say!("\n{}\n", if is_disturbed { "A sync while the server does this:" } else { "A sync before that:" });
        let report = self.run(Mode::Incremental, stop).await?;
        let promised = if is_disturbed { self.named.promise } else { Promise::Complete };
        let expected = match promised {
            Promise::Complete => Outcome::Complete,
            Promise::Partial => Outcome::Partial,
        };
        if report.outcome != expected {
            return Err(failed(&format!("the sync should have been {expected}")));
        }
        say!("As promised: {expected}.");
        Ok(())
    }

    async fn heal(&self, stop: &CancellationToken) -> Result<(), Exit> {
        let modes = match self.named.heals {
            Heals::NextSyncs => [Mode::Incremental; 2].as_slice(),
            Heals::FullRefresh => &[Mode::FullRefresh],
        };
        for mode in modes {
            let report = self.run(*mode, stop).await?;
            let (different, rows) = self.differences().await?;
            if report.outcome == Outcome::Complete && different.is_empty() {
                say!("The tables are equal to the server: {}.", show::rows(rows));
                return Ok(());
            }
        }
        let (different, _) = self.differences().await?;
        let types: Vec<_> = different.iter().map(|of| of.as_str()).collect();
        Err(failed(&format!("the tables should be equal to the server now, and differ in {}", types.join(", "))))
    }

    async fn run(&self, mode: Mode, stop: &CancellationToken) -> Result<Report, Exit> {
        let run = self.demo.syncer.run(&self.demo.export, mode, stop);
        let report = with_progress(run, self.demo.progress.clone()).await;
        if report.outcome == Outcome::Stopped {
            return Exit::of(report.outcome).map(|()| report);
        }
        show::report(&report);
        Ok(report)
    }

    /// The types whose tables are not what the server has, and the rows of all tables.
    async fn differences(&self) -> Result<(Vec<ResourceType>, u64), Exit> {
        let mut different = Vec::new();
        let mut all = 0;
        for resource_type in &self.demo.export.types {
            let rows = self.demo.syncer.root.value_counts(*resource_type, "resource_json").await;
            let rows = rows.map_err(|error| failed(&chain(&error)))?;
            all += rows.values().sum::<u64>();
            let mut stored = BTreeMap::new();
            for (line, count) in rows {
                *stored.entry(read(&line.unwrap_or_default())).or_default() += count;
            }
            let on_server = self.server.world(|world| {
                world.resources(*resource_type).map(|(_, line)| (read(line), 1)).collect::<BTreeMap<_, u64>>()
            });
            if stored != on_server {
                different.push(*resource_type);
            }
        }
        Ok((different, all))
    }
}

/// A line as JSON without white space between its members.
fn read(line: &str) -> String {
    serde_json::from_str::<serde_json::Value>(line).map_or_else(|_| line.to_owned(), |read| read.to_string())
}
