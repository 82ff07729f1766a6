//! A history: the server, its client, and what the tables may lack.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use chrono::TimeDelta;
use fhir_sync::{
    demo::{Registered, Scenario, World},
    export::auth::Smart,
    fhir::ResourceType,
    secret::Secret,
    state::peek,
    sync::{Mode, Report, TypeEnd},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::life::{Event, TYPES};
use crate::harness::{Setup, eventually};

const CLIENT: &str = "warehouse";

/// Why a table may differ from the server although nothing names it now. Only a full refresh can see these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// The server went back to a backup: what changed has old times.
    Restored,
    /// The server's clock went back: what changed afterwards may have times before the watermark.
    SetBack,
    /// A line was quarantined, and named then; once mended, the server does not count it as changed.
    Quarantined,
    /// The server left the type out of an increment without a word.
    LeftOut,
}

pub struct History {
    setup: Setup,
    backup: World,
    /// The world at each kick-off that may still bring something: the data that a sync may leave the tables with.
    snapshots: Vec<World>,
    doubts: BTreeMap<ResourceType, Doubt>,
    narrowed: BTreeSet<ResourceType>,
    left_out: BTreeSet<ResourceType>,
    troubled: bool,
    set_back_minutes: u64,
}

impl History {
    pub async fn begin() -> Self {
        let mut setup = Setup::with_world(World::new()).await;
        let client = Registered::new(CLIENT).unwrap();
        setup.server.scenario(|scenario| scenario.auth = Some(client.auth()));
        setup.client.auth = Some(Smart::new(CLIENT, Secret::given(client.private_jwk.clone())).into());
        let key = setup.folder.path().join("key");
        fs::write(&key, &client.private_jwk).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        setup.export.types = TYPES.to_vec();
        setup.export.reconciled = TYPES.into_iter().collect();
        (setup.config.quarantine.max_quarantined, setup.config.reconcile.max_missing) = (20, 20);
        Self {
            setup,
            backup: World::new(),
            snapshots: Vec::new(),
            doubts: BTreeMap::new(),
            narrowed: BTreeSet::new(),
            left_out: BTreeSet::new(),
            troubled: false,
            set_back_minutes: 0,
        }
    }

    pub fn doubts(&self, of: ResourceType) -> Option<Doubt> {
        self.doubts.get(&of).copied()
    }

    pub async fn happens(&mut self, event: &Event) -> Result<(), String> {
        let server = &self.setup.server;
        match event {
            Event::Put { of, number, value } => {
                let resource = json!({"language": format!("x-{value}")});
                server.world(|world| world.put(*of, &number.to_string(), resource));
                self.silently_left_out(*of);
            }
            Event::Delete { of, number } => {
                server.world(|world| world.delete(*of, &number.to_string()));
                self.silently_left_out(*of);
            }
            Event::Pass { minutes } => server.world(|world| world.advance(Duration::from_mins(*minutes))),
            Event::SetBack { minutes } => {
                server.world(|world| world.set_back(Duration::from_mins(*minutes)));
                self.set_back_minutes += minutes;
                self.doubt(&TYPES, Doubt::SetBack);
            }
            Event::BackUp => self.backup = server.world(|world| world.clone()),
            Event::Restore => {
                server.world(|world| world.restore(self.backup.clone()));
                self.doubt(&TYPES, Doubt::Restored);
            }
            Event::Narrow { of } => _ = self.narrowed.insert(*of),
            Event::LeaveOut { of } => {
                self.left_out.insert(*of);
                self.silently_left_out(*of);
            }
            Event::Widen => {
                self.narrowed.clear();
                self.left_out.clear();
            }
            Event::Trouble(trouble) => {
                server.scenario(|scenario| trouble.begin(scenario));
                self.troubled = true;
            }
            Event::Sync(mode) => _ = self.sync(*mode).await?,
            Event::Killed { after_requests } => self.killed(*after_requests).await,
            Event::Stopped { after_requests } => self.stopped(*after_requests).await?,
        }
        self.leave_out();
        Ok(())
    }

    /// From now on the server does everything right.
    pub fn behave(&mut self) {
        self.narrowed.clear();
        self.left_out.clear();
        self.calm();
        self.leave_out();
        // A row of a clock that was fast is newer than a full refresh until the clock has passed it again.
        let minutes = self.set_back_minutes + 60;
        self.setup.server.world(|world| world.advance(Duration::from_mins(minutes)));
        // Nobody waits for a day.
        self.setup.config.recheck_absent = TimeDelta::zero();
        // Whatever is missing now was deleted.
        (self.setup.config.reconcile.max_missing, self.setup.config.reconcile.max_missing_percent) = (100, 100.0);
        self.setup.config.allow_empty = TYPES.into_iter().collect();
    }

    /// A sync to its end. An error says what is missing and not named.
    pub async fn sync(&mut self, mode: Mode) -> Result<Report, String> {
        self.kick_off();
        let report = self.setup.run(mode).await;
        self.calm();
        self.judge(&report, mode).await?;
        Ok(report)
    }

    async fn stopped(&mut self, after_requests: usize) -> Result<(), String> {
        self.kick_off();
        let stop = CancellationToken::new();
        let syncer = self.setup.open().await.unwrap();
        let begun = self.setup.server.requests().len();
        let stopping = async {
            eventually("requests", async || {
                (self.setup.server.requests().len() >= begun + after_requests).then_some(())
            })
            .await;
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let report = tokio::select! {
            report = syncer.run(&self.setup.export, Mode::Incremental, &stop) => report,
            () = stopping => return Err("never".to_owned()),
        };
        drop(syncer);
        self.calm();
        self.judge(&report, Mode::Incremental).await
    }

    /// The process dies without a word; there is no report to judge.
    async fn killed(&mut self, after_requests: usize) {
        self.kick_off();
        let key = self.setup.folder.path().join("key");
        let settings =
            [("FHIR_SYNC__SERVER__CLIENT_ID", CLIENT), ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", key.to_str().unwrap())];
        let begun = self.setup.server.requests().len();
        let mut process = self.setup.start("sync", &settings);
        eventually("requests, or the end", async || {
            let requests = self.setup.server.requests().len() - begun;
            (requests >= after_requests || !process.is_running()).then_some(())
        })
        .await;
        process.kill().await;
        self.calm();
        // It may have quarantined lines.
        let is_altered = self.setup.server.jobs().last().is_some();
        if is_altered && self.troubled {
            self.doubt(&TYPES, Doubt::Quarantined);
        }
    }

    /// Remembers what the server has now: the next kick-off gets it. Where no job is in flight, nothing older can come.
    fn kick_off(&mut self) {
        let state = peek(&self.setup.state_file()).unwrap();
        let is_in_flight = state.exports.get("all").is_some_and(|export| !export.jobs.is_empty());
        if !is_in_flight {
            self.snapshots.clear();
        }
        self.snapshots.push(self.setup.server.world(|world| world.clone()));
    }

    /// What the report calls complete and does not name must be so.
    async fn judge(&mut self, report: &Report, mode: Mode) -> Result<(), String> {
        for of in TYPES {
            let ended = &report.types[&of];
            let is_named = report.warnings().iter().any(|warning| warning.contains(of.as_str()));
            if ended.quarantined > 0 {
                self.doubt(&[of], Doubt::Quarantined);
            }
            if is_named || ended.quarantined > 0 || !matches!(ended.end, TypeEnd::Committed { .. }) {
                continue;
            }
            if mode == Mode::FullRefresh && self.snapshots.len() == 1 {
                self.doubts.remove(&of);
            }
            if self.doubts(of).is_some() {
                continue;
            }
            let mut difference = None;
            for snapshot in &self.snapshots {
                difference = self.difference(of, snapshot).await;
                if difference.is_none() {
                    break;
                }
            }
            if let Some(difference) = difference {
                return Err(format!("nobody names it: {difference}\n{}", said(report)));
            }
        }
        Ok(())
    }

    pub async fn difference_to_now(&self, of: ResourceType) -> Option<String> {
        let now = self.setup.server.world(|world| world.clone());
        self.difference(of, &now).await
    }

    /// In which resources the table differs from a world.
    async fn difference(&self, of: ResourceType, world: &World) -> Option<String> {
        let read = |line: &str| serde_json::from_str::<Value>(line).unwrap().to_string();
        let stored: BTreeSet<_> = self.setup.lines(of).await.iter().map(|line| read(line)).collect();
        let on_server: BTreeSet<_> = world.resources(of).map(|(_, line)| read(line)).collect();
        let list = |of: Vec<&String>| of.into_iter().cloned().collect::<Vec<_>>().join("\n    ");
        let missing = list(on_server.difference(&stored).collect());
        let surplus = list(stored.difference(&on_server).collect());
        (stored != on_server).then(|| format!("{of} lacks\n    {missing}\n  and has\n    {surplus}"))
    }

    fn doubt(&mut self, types: &[ResourceType], doubt: Doubt) {
        for of in types {
            self.doubts.entry(*of).or_insert(doubt);
        }
    }

    /// A change of a type that increments leave out without a word cannot be noticed by anybody.
    fn silently_left_out(&mut self, of: ResourceType) {
        if self.left_out.contains(&of) {
            self.doubt(&[of], Doubt::LeftOut);
        }
    }

    fn leave_out(&self) {
        let granted = TYPES.iter().filter(|of| !self.narrowed.contains(of)).map(|of| format!("system/{of}.rs"));
        let granted = granted.collect::<Vec<_>>().join(" ");
        self.setup.server.scenario(|scenario| {
            scenario.left_out = self.narrowed.union(&self.left_out).copied().collect();
            if let Some(auth) = &mut scenario.auth {
                auth.granted_scope = (!self.narrowed.is_empty()).then_some(granted);
            }
        });
    }

    /// The troubles of a sync end with it.
    fn calm(&mut self) {
        self.setup.server.scenario(|scenario| {
            let left_out = std::mem::take(&mut scenario.left_out);
            *scenario = Scenario { auth: scenario.auth.take(), left_out, ..Scenario::default() };
        });
    }
}

/// What a report says, in short.
pub fn said(report: &Report) -> String {
    let mut text = format!("  run {} ({}): {}", report.run, report.mode, report.outcome);
    for (of, ended) in &report.types {
        _ = write!(text, "\n    {of}: {} received, {:?}", ended.received, ended.end);
    }
    report.warnings().iter().for_each(|warning| _ = write!(text, "\n    {warning}"));
    text
}
