//! The random life of a server and of its client: what happens, in an order. The same seed gives the same life.

use fastrand::Rng;
use fhir_sync::{
    demo::{Alteration, Fault, Scenario, StatusCode},
    fhir::ResourceType,
    sync::Mode,
};
use serde_json::json;

use crate::harness::{CONDITION, OBSERVATION, PATIENT};

pub const TYPES: [ResourceType; 3] = [CONDITION, OBSERVATION, PATIENT];

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A resource is created, changed, or created again.
    Put {
        of: ResourceType,
        number: u8,
        value: u8,
    },
    Delete {
        of: ResourceType,
        number: u8,
    },
    Pass {
        minutes: u64,
    },
    /// The server's clock is set back.
    SetBack {
        minutes: u64,
    },
    BackUp,
    /// The data become those of the last backup; the clock goes on.
    Restore,
    /// The client's scopes narrow: exports leave the type out without a word, and the token says so.
    Narrow {
        of: ResourceType,
    },
    /// Exports leave the type out without a word, although the token covers it.
    LeaveOut {
        of: ResourceType,
    },
    /// Nothing is left out any more.
    Widen,
    /// What goes wrong during the next sync.
    Trouble(Trouble),
    Sync(Mode),
    /// A sync in a process that is killed after this many requests.
    Killed {
        after_requests: usize,
    },
    /// A sync that is asked to stop after this many requests.
    Stopped {
        after_requests: usize,
    },
}

/// What goes wrong during one sync.
#[derive(Clone, Debug)]
pub enum Trouble {
    Refused { path: &'static str, status: u16, times: u32 },
    Lost { path: &'static str },
    Cut { path: &'static str, bytes: usize, times: u32 },
    EndsEarly { path: &'static str, bytes: usize, times: u32 },
    LinksExpire { after: u32 },
    NoTransactionTime,
    Error,
    Altered(Alteration),
    OldExport,
    Uncounted,
    ShortCount { of: ResourceType },
    ClockAhead,
}

const PATHS: [&str; 8] =
    ["/$export", "/bulkstatus/", "/bulkfiles/", "/Patient.", "/Observation.", "/deleted.", "/auth/token", "_summary"];

/// A life with this many syncs.
pub fn life(seed: u64, syncs: usize) -> Vec<Event> {
    let mut random = Rng::with_seed(seed);
    let mut life = Vec::new();
    for number in 0..6 {
        for of in TYPES.into_iter().skip(usize::from(random.bool())) {
            life.push(Event::Put { of, number, value: 0 });
        }
    }
    life.push(Event::Pass { minutes: 60 });
    for _ in 0..syncs {
        for _ in 0..random.usize(1..6) {
            life.push(change(&mut random));
        }
        life.push(Event::Pass { minutes: random.u64(1..90) });
        for _ in 0..random.usize(0..3) {
            life.push(Event::Trouble(trouble(&mut random)));
        }
        life.push(sync(&mut random));
    }
    life
}

fn change(random: &mut Rng) -> Event {
    let of = TYPES[random.usize(0..TYPES.len())];
    let number = random.u8(0..9);
    match random.u8(0..24) {
        0..11 => Event::Put { of, number, value: random.u8(..) },
        11..16 => Event::Delete { of, number },
        16 => Event::Pass { minutes: random.u64(1..120) },
        17 => Event::SetBack { minutes: random.u64(1..240) },
        18 => Event::BackUp,
        19 => Event::Restore,
        20 => Event::Narrow { of },
        21 => Event::LeaveOut { of },
        _ => Event::Widen,
    }
}

fn sync(random: &mut Rng) -> Event {
    match random.u8(0..10) {
        0..6 => Event::Sync(Mode::Incremental),
        6 => Event::Sync(Mode::FullRefresh),
        7..9 => Event::Killed { after_requests: random.usize(1..14) },
        _ => Event::Stopped { after_requests: random.usize(1..14) },
    }
}

fn trouble(random: &mut Rng) -> Trouble {
    let path = PATHS[random.usize(0..PATHS.len())];
    let of = TYPES[random.usize(0..TYPES.len())];
    let (bytes, times) = (random.usize(0..900), random.u32(1..4));
    match random.u8(0..16) {
        0..3 => {
            let status = [400, 401, 403, 404, 410, 429, 500, 502, 503][random.usize(0..9)];
            let times = if random.bool() { times } else { 1_000 };
            Trouble::Refused { path, status, times }
        }
        3 => Trouble::Lost { path },
        4 => Trouble::Cut { path, bytes, times },
        5 => Trouble::EndsEarly { path, bytes, times },
        6 => Trouble::LinksExpire { after: random.u32(1..4) },
        7 => Trouble::NoTransactionTime,
        8 => Trouble::Error,
        9..12 => Trouble::Altered(alteration(random, of)),
        12 => Trouble::OldExport,
        13 => Trouble::Uncounted,
        14 => Trouble::ShortCount { of },
        _ => Trouble::ClockAhead,
    }
}

fn alteration(random: &mut Rng, of: ResourceType) -> Alteration {
    match random.u8(0..11) {
        0 => Alteration::OutcomeInsteadOf(of),
        1 => Alteration::MixedTypes,
        2 => Alteration::Organized,
        3 => Alteration::Envelopes,
        4 => Alteration::PrettyPrinted,
        5 => Alteration::WithoutId { of, lines: random.usize(1..9) },
        6 => Alteration::UnknownType,
        7 => Alteration::EmptyFiles,
        8 => Alteration::ForeignDeletions,
        9 => Alteration::ConditionalDeletion(of),
        _ => Alteration::ShortDeletions,
    }
}

impl Trouble {
    pub fn begin(&self, scenario: &mut Scenario) {
        match self.clone() {
            Self::Refused { path, status, times } => scenario.faults.push(Fault::Status {
                path_contains: path.to_owned(),
                status: StatusCode::from_u16(status).unwrap(),
                times,
                retry_after: None,
                body: String::new(),
            }),
            Self::Lost { path } => scenario.faults.push(Fault::LoseAnswer { path_contains: path.to_owned(), times: 1 }),
            Self::Cut { path, bytes, times } => {
                scenario.faults.push(Fault::CutAfter { path_contains: path.to_owned(), bytes, times });
            }
            Self::EndsEarly { path, bytes, times } => {
                scenario.faults.push(Fault::EndAfter { path_contains: path.to_owned(), bytes, times });
            }
            Self::LinksExpire { after } => scenario.link_requests = Some(after),
            Self::NoTransactionTime => scenario.omit_transaction_time = true,
            Self::Error => {
                let issue = json!([{"severity": "error", "code": "processing"}]);
                scenario.outcomes.push(json!({"resourceType": "OperationOutcome", "issue": issue}));
            }
            Self::Altered(alteration) => scenario.alterations.push(alteration),
            Self::OldExport => scenario.repeats_export = true,
            Self::Uncounted => scenario.answers_counts = false,
            Self::ShortCount { of } => _ = scenario.count_offset.insert(of, 1),
            Self::ClockAhead => scenario.clock_offset = chrono::TimeDelta::days(4_000),
        }
    }
}
