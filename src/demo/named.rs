//! Named scenarios: what real servers do, and what fhir-sync is expected to make of it.
//!
//! Each has a beginning and an end. In between a sync ends as promised, and says what is missing; afterwards the tables
//! become equal to the server again. `fhir-sync demo --scenario NAME` shows it, and a test holds it.

use std::{collections::BTreeSet, time::Duration};

use axum::http::StatusCode;
use chrono::TimeDelta;
use serde_json::json;

use super::{Alteration, Fault, Scenario, Server, World};
use crate::fhir::ResourceType;

/// A scenario with a name.
pub struct Named {
    pub name: &'static str,
    /// A sentence: what the server does.
    pub server: &'static str,
    /// A sentence: what fhir-sync does about it, and says.
    pub client: &'static str,
    pub begins: Begins,
    pub promise: Promise,
    pub heals: Heals,
    begin: Begin,
}

/// The sync during which the server does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begins {
    FirstSync,
    /// The one after; a day of changes passes before it, and the server does it meanwhile.
    SecondSync,
    /// The one after that, which finds no other change.
    ThirdSync,
}

/// How that sync ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promise {
    Complete,
    Partial,
}

/// What makes the tables equal to the server after the scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heals {
    /// They already are, or the next syncs do it: two at most.
    NextSyncs,
    /// The server has to send again what it does not count as changed.
    FullRefresh,
}

enum Begin {
    /// The scenario is changed.
    Scenario(fn(&mut Scenario)),
    /// The data are changed. The second world is the one before the day of changes.
    World(fn(&mut World, &World)),
}

impl Named {
    pub fn find(name: &str) -> Option<&'static Self> {
        NAMED.iter().find(|named| named.name == name)
    }

    /// From now on the server does it. `before` is the world before the day of changes.
    pub fn begin(&self, server: &Server, before: &World) {
        match self.begin {
            Begin::Scenario(change) => server.scenario(change),
            Begin::World(change) => server.world(|world| change(world, before)),
        }
    }
}

/// The server behaves again; who may ask for a token, and which groups there are, stays.
pub fn end(server: &Server) {
    server.scenario(|scenario| {
        let auth = scenario.auth.take().map(|auth| super::Auth {
            granted_scope: None,
            expire_tokens_after_file_requests: None,
            ..auth
        });
        *scenario = Scenario { auth, groups: scenario.groups.take(), ..Scenario::default() };
    });
}

const OBSERVATION: ResourceType = ResourceType::OBSERVATION;
const ENCOUNTER: ResourceType = ResourceType::ENCOUNTER;

fn refused(path_contains: &str, status: StatusCode, times: u32) -> Fault {
    let (path_contains, retry_after) = (path_contains.to_owned(), Some("1".to_owned()));
    Fault::Status { path_contains, status, times, retry_after, body: String::new() }
}

fn fault(fault: Fault) -> Vec<Fault> {
    vec![fault]
}

/// More often than any sync asks.
const ALWAYS: u32 = 1_000_000;

const fn named(name: &'static str, server: &'static str, client: &'static str, begin: fn(&mut Scenario)) -> Named {
    Named {
        name,
        server,
        client,
        begins: Begins::FirstSync,
        promise: Promise::Complete,
        heals: Heals::NextSyncs,
        begin: Begin::Scenario(begin),
    }
}

impl Named {
    const fn partial(self) -> Self {
        Self { promise: Promise::Partial, ..self }
    }

    const fn in_the_second_sync(self) -> Self {
        Self { begins: Begins::SecondSync, ..self }
    }

    const fn healed_by_a_full_refresh(self) -> Self {
        Self { heals: Heals::FullRefresh, ..self }
    }
}

/// All named scenarios.
pub const NAMED: &[Named] = &[
    named(
        "outage-at-kick-off",
        "The kick-off is answered 503 three times.",
        "It waits, asks again and is complete.",
        |scenario| scenario.faults = fault(refused("/$export", StatusCode::SERVICE_UNAVAILABLE, 3)),
    ),
    named(
        "busy-at-kick-off",
        "The kick-off is answered 429 twice, because another export is running.",
        "It waits for its turn and is complete.",
        |scenario| scenario.faults = fault(refused("/$export", StatusCode::TOO_MANY_REQUESTS, 2)),
    ),
    named(
        "lost-kick-off",
        "The kick-off is served, and its answer is lost.",
        "It asks again and is complete; the first job stays behind on the server.",
        |scenario| {
            scenario.faults = fault(Fault::LoseAnswer { path_contains: "/$export".to_owned(), times: 1 });
        },
    ),
    named(
        "outage-at-status",
        "The status URL is answered 502 three times.",
        "It keeps the job, asks again and is complete.",
        |scenario| scenario.faults = fault(refused("/bulkstatus/", StatusCode::BAD_GATEWAY, 3)),
    ),
    named(
        "html-page",
        "The status URL shows an HTML page of maintenance, with status 200.",
        "It takes the page for an outage, asks again and is complete.",
        |scenario| {
            scenario.faults = fault(Fault::Status {
                path_contains: "/bulkstatus/".to_owned(),
                status: StatusCode::OK,
                times: 2,
                retry_after: None,
                body: "<html><body>Down for maintenance</body></html>".to_owned(),
            });
        },
    ),
    named(
        "outage-at-files",
        "Files are answered 503 five times.",
        "It waits, reads them again and is complete.",
        |scenario| scenario.faults = fault(refused("/bulkfiles/", StatusCode::SERVICE_UNAVAILABLE, 5)),
    ),
    named(
        "outage-too-long",
        "The files of one type are unavailable for longer than server.outage_patience.",
        "It is partial, names the type, and keeps the job for it; the next sync reads only these files.",
        |scenario| scenario.faults = fault(refused("/Observation.", StatusCode::SERVICE_UNAVAILABLE, ALWAYS)),
    )
    .partial(),
    named(
        "rate-limit",
        "Files are answered 429 with Retry-After, five times.",
        "It waits as long as it is told and is complete.",
        |scenario| scenario.faults = fault(refused("/bulkfiles/", StatusCode::TOO_MANY_REQUESTS, 5)),
    ),
    named(
        "expired-links",
        "The links of the manifest are answered 403 after a few files; the status URL has new ones.",
        "It reads the rest with new links of the same job and is complete.",
        |scenario| {
            scenario.lines_per_file = 20;
            scenario.link_requests = Some(6);
        },
    ),
    named(
        "token-expires",
        "Each access token is revoked after eight files.",
        "It gets a new token, reads the file again and is complete.",
        |scenario| {
            scenario.lines_per_file = 20;
            if let Some(auth) = &mut scenario.auth {
                auth.expire_tokens_after_file_requests = Some(8);
            }
        },
    ),
    named(
        "cut-file",
        "The connection breaks in the middle of a file.",
        "It reads the file again, compares the part that it has, and is complete.",
        |scenario| {
            let path_contains = "/Observation.".to_owned();
            scenario.faults = fault(Fault::CutAfter { path_contains, bytes: 500, times: 1 });
        },
    ),
    named(
        "cut-line",
        "A file ends regularly in the middle of a line, whenever it is read; the manifest has no counts.",
        "It reads the file twice, then the type fails and the sync is partial.",
        |scenario| {
            (scenario.gzip, scenario.omit_counts) = (false, true);
            let path_contains = "/Observation.".to_owned();
            scenario.faults = fault(Fault::EndAfter { path_contains, bytes: 700, times: ALWAYS });
        },
    )
    .partial(),
    named(
        "short-count",
        "A file has two lines fewer than the manifest states.",
        "It reads the file twice, then the type fails and the sync is partial.",
        |scenario| _ = scenario.count_offset.insert(OBSERVATION, 2),
    )
    .partial(),
    named(
        "gzip-unasked",
        "Every answer is compressed, whether the client accepts it or not.",
        "It unpacks them and is complete.",
        |scenario| scenario.gzip_unasked = true,
    ),
    named(
        "scopes-narrowed",
        "The token does not cover observations, and exports leave them out without a word.",
        "It says that the type is denied, names the scope, and is partial; no watermark stands for the absence.",
        |scenario| {
            scenario.left_out.insert(OBSERVATION);
            let others = "Condition Encounter MedicationRequest Organization Patient Practitioner";
            let scopes: Vec<_> = others.split(' ').map(|name| format!("system/{name}.rs")).collect();
            if let Some(auth) = &mut scenario.auth {
                auth.granted_scope = Some(scopes.join(" "));
            }
        },
    )
    .partial(),
    named(
        "type-absent",
        "Exports leave out observations without a word, and the server's search counts them.",
        "It says that the type is missing and how many the server has, and is partial.",
        |scenario| _ = scenario.left_out.insert(OBSERVATION),
    )
    .partial(),
    named(
        "type-absent-uncounted",
        "Exports leave out observations without a word, and nobody can count them.",
        "It is complete, names the type as unconfirmed, and asks for all of it again a day later.",
        |scenario| {
            scenario.left_out.insert(OBSERVATION);
            scenario.answers_counts = false;
        },
    )
    .healed_by_a_full_refresh(),
    named(
        "outcome-instead-of-file",
        "In the place of the observations there is one OperationOutcome, with status 200.",
        "It takes it for what the server says about the file: the watermark is held, the sync partial.",
        |scenario| scenario.alterations = vec![Alteration::OutcomeInsteadOf(OBSERVATION)],
    )
    .partial(),
    named(
        "mixed-types-in-file",
        "All resources are in one file, listed under one type.",
        "Each line goes to the table of the type that it states; it is complete.",
        |scenario| scenario.alterations = vec![Alteration::MixedTypes],
    ),
    named(
        "organized-output",
        "All resources are in one file without a type, with headers between them.",
        "Each line goes to the table of its type, headers are not rows; it is complete.",
        |scenario| scenario.alterations = vec![Alteration::Organized],
    ),
    named(
        "binary-envelope",
        "Each file is a Binary resource with the lines in base64.",
        "It opens the envelopes and is complete.",
        |scenario| {
            scenario.alterations = vec![Alteration::Envelopes];
            scenario.omit_counts = true;
        },
    ),
    named(
        "pretty-printed",
        "Resources are printed over several lines.",
        "It reads each as one resource and is complete.",
        |scenario| {
            scenario.alterations = vec![Alteration::PrettyPrinted];
            scenario.omit_counts = true;
        },
    ),
    named(
        "types-unknown",
        "The manifest lists a file of a type that FHIR does not know and nobody asked for.",
        "The file concerns nobody; it is complete.",
        |scenario| scenario.alterations = vec![Alteration::UnknownType],
    ),
    named(
        "no-content-204",
        "A type without changes has an empty file, which is answered 204.",
        "It is an empty file; it is complete.",
        |scenario| scenario.alterations = vec![Alteration::EmptyFiles],
    )
    .in_the_second_sync(),
    named(
        "errors-reported",
        "The export lists an error: data are missing, and nobody can tell of which type.",
        "It stores what arrived, holds every watermark and is partial.",
        |scenario| {
            let issue = json!([{"severity": "error", "code": "processing"}]);
            scenario.outcomes = vec![json!({"resourceType": "OperationOutcome", "issue": issue})];
        },
    )
    .partial(),
    named(
        "id-less-lines",
        "One encounter has no id.",
        "The line is quarantined and named, the others are stored; the sync is partial. The server mends the line without \
         counting it as changed, so that only a full refresh brings it.",
        |scenario| scenario.alterations = vec![Alteration::WithoutId { of: ENCOUNTER, lines: 1 }],
    )
    .partial()
    .healed_by_a_full_refresh(),
    named(
        "mostly-bad-file",
        "No encounter has an id.",
        "The lines are quarantined, the watermark of the type is held, and the sync is partial.",
        |scenario| scenario.alterations = vec![Alteration::WithoutId { of: ENCOUNTER, lines: usize::MAX }],
    )
    .partial(),
    named(
        "deleted-mixed",
        "Deletions of types that nobody keeps are among the others.",
        "These are ignored, the others are applied; it is complete.",
        |scenario| scenario.alterations = vec![Alteration::ForeignDeletions],
    )
    .in_the_second_sync(),
    named(
        "deleted-conditional",
        "Among the deletions is a conditional one, of which nobody can tell what it deleted.",
        "The others are applied, the entry is kept, the watermark of the type is held, and the sync is partial.",
        |scenario| scenario.alterations = vec![Alteration::ConditionalDeletion(ENCOUNTER)],
    )
    .partial()
    .in_the_second_sync(),
    named(
        "deleted-short",
        "The file of deletions has one fewer than the manifest states.",
        "Those that arrived are applied, the watermarks are held, and the sync is partial.",
        |scenario| scenario.alterations = vec![Alteration::ShortDeletions],
    )
    .partial()
    .in_the_second_sync(),
    named(
        "no-transaction-time",
        "The manifest has no transactionTime.",
        "It stores what arrived, moves no watermark and is partial.",
        |scenario| scenario.omit_transaction_time = true,
    )
    .partial(),
    named(
        "clock-ahead",
        "The server's clock is ten years ahead.",
        "It stores what arrived, moves no watermark, says why and is partial.",
        |scenario| scenario.clock_offset = TimeDelta::days(3_653),
    )
    .partial(),
    Named {
        begin: Begin::World(|world, _| world.set_back(Duration::from_hours(48))),
        ..named(
            "clock-set-back",
            "The server's clock was two days fast, and is set right; a day of changes follows.",
            "The types are set back: it says so, is partial, and the next sync loads all of them.",
            |_| {},
        )
        .partial()
        .in_the_second_sync()
    },
    named(
        "old-job-again",
        "The kick-off is answered with the export of the day before.",
        "It notices that the export is an old one, says so and is partial; nothing is overwritten.",
        |scenario| scenario.repeats_export = true,
    )
    .partial()
    .in_the_second_sync(),
    Named {
        begins: Begins::ThirdSync,
        begin: Begin::World(|world, before| {
            world.restore(before.clone());
            world.advance(Duration::from_hours(1));
        }),
        ..named(
            "restored-backup",
            "The server is restored from a backup of the day before, and its clock goes on.",
            "An increment cannot see it and is complete; the next full refresh follows the server and says how many rows \
             it overruled.",
            |_| {},
        )
        .healed_by_a_full_refresh()
    },
];

/// The groups that `fhir-sync demo` knows.
pub fn groups() -> BTreeSet<String> {
    ["everyone".to_owned()].into()
}
