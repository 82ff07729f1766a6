//! The catalogue: every metric of this program, with its name, unit, meaning and labels. No other file has their names.
//!
//! A label has few values: the names of exports from the configuration, types of resources, tables, and words of the
//! lists in this file. No label holds an id, a URL or the name of a host.

use std::fmt;

/// A counter, gauge or histogram.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// A sentence for `# HELP`.
    pub help: &'static str,
    pub labels: &'static [Label],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(Buckets),
}

/// The upper bounds of a histogram's buckets, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buckets {
    /// For steps of a sync, from a second to a day.
    Steps,
    /// For requests, from ten milliseconds to a minute.
    Requests,
}

impl Buckets {
    pub fn seconds(self) -> &'static [f64] {
        match self {
            Self::Steps => {
                &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0]
            }
            Self::Requests => &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0],
        }
    }
}

impl fmt::Display for Kind {
    /// As `# TYPE` says it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        })
    }
}

/// A label, and which values it may have.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub values: Values,
}

#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// The exports of the configuration.
    Exports,
    /// The types that the configuration asks for; together with an export, those of this export.
    ResourceTypes,
    /// Tables of resources, and our own.
    Tables,
    /// What is in local folders.
    Disks,
    Words(&'static [&'static str]),
}

/// Defines a list of words: an enum whose variants are the values of one label.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            pub const WORDS: &[&str] = &[$($word,)+];

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

words! {
    /// How a run ended.
    RunOutcome {
        Complete = "complete",
        Partial = "partial",
        Failed = "failed",
        Stopped = "stopped",
    }
}
words! {
    /// What a run, or the maintenance, is doing.
    Step {
        Planning = "planning",
        KickingOff = "kicking_off",
        /// For the server.
        Waiting = "waiting",
        WaitingForTurn = "waiting_for_turn",
        Streaming = "streaming",
        Upserting = "upserting",
        Settling = "settling",
        Maintaining = "maintaining",
    }
}
words! {
    /// What became of a received resource or deletion.
    Operation {
        Inserted = "inserted",
        Updated = "updated",
        Deleted = "deleted",
        /// A full refresh no longer had the row.
        Removed = "removed",
        Unchanged = "unchanged",
        Stale = "stale",
        Duplicate = "duplicate",
        /// Of a type that nobody asked for.
        NotWanted = "not_wanted",
        /// What the server says about a file.
        Outcome = "outcome",
    }
}
words! {
    /// What is requested.
    Endpoint {
        Discovery = "discovery",
        Token = "token",
        Metadata = "metadata",
        Count = "count",
        KickOff = "kick_off",
        Status = "status",
        File = "file",
        Delete = "delete",
    }
}
words! {
    /// How a request was answered: a class of statuses. Those that alerts ask for are on their own.
    Code {
        Success = "2xx",
        Redirection = "3xx",
        Unauthorized = "401",
        Forbidden = "403",
        TooManyRequests = "429",
        ClientError = "4xx",
        ServerError = "5xx",
        NoAnswer = "none",
    }
}
words! {
    /// Why a request is sent again.
    RetryReason {
        RateLimit = "429",
        ServerError = "5xx",
        OtherStatus = "status",
        Timeout = "timeout",
        Connect = "connect",
        Tls = "tls",
        Transport = "transport",
        Truncated = "truncated",
        Slow = "slow",
        NotFhir = "not_fhir",
        ExpiredLink = "expired_link",
        ExpiredToken = "expired_token",
    }
}
words! {
    /// What happened to a job on the server.
    JobEvent {
        KickedOff = "kicked_off",
        Completed = "completed",
        /// The server reported a failure, or its manifest cannot be used.
        Failed = "failed",
        /// The server no longer knows it.
        Lost = "lost",
        Deleted = "deleted",
    }
}
words! {
    /// How the download of a file ended.
    FileOutcome {
        Complete = "complete",
        Failed = "failed",
    }
}
words! {
    /// Bytes as they were transferred, or decompressed.
    Stage {
        Wire = "wire",
        Decoded = "decoded",
    }
}
words! {
    /// How a request for an access token ended.
    TokenOutcome {
        Granted = "granted",
        Refused = "refused",
        /// Our own key or secret could not be read or used.
        NoCredential = "no_credential",
        Failed = "failed",
    }
}
words! {
    /// How an attempt at a Delta commit ended.
    CommitOutcome {
        Committed = "committed",
        /// Another writer was faster.
        Overtaken = "overtaken",
        /// It landed although its answer was lost.
        Recovered = "recovered",
        Failed = "failed",
    }
}
words! {
    /// How the maintenance of a table ended.
    MaintenanceOutcome {
        Maintained = "maintained",
        Failed = "failed",
    }
}
words! {
    /// A kind of request to an object store.
    StoreRequest {
        Get = "get",
        Put = "put",
        List = "list",
        Delete = "delete",
    }
}
words! {
    /// Whether the cache of an object store had what was asked for.
    CacheLookup {
        Hit = "hit",
        Miss = "miss",
    }
}
words! {
    /// What is on a disk.
    Disk {
        /// Received rows.
        Spool = "spool",
        Tables = "tables",
        State = "state",
    }
}
words! {
    WriteOutcome {
        Written = "written",
        Failed = "failed",
    }
}
words! {
    /// Whose clock.
    Peer {
        FhirServer = "fhir_server",
        TokenEndpoint = "token_endpoint",
        FileServer = "file_server",
    }
}
words! {
    /// Why something of the server was not followed.
    Rejection {
        /// Unencrypted, or not HTTP.
        Scheme = "scheme",
        /// A private one, or another that is not an ordinary one of the Internet.
        Address = "address",
        Redirects = "redirects",
        /// A token would go to an origin that is not allowed.
        Origin = "origin",
        Size = "size",
    }
}

words! {
    /// What a notification is.
    Notification {
        Heartbeat = "heartbeat",
        Webhook = "webhook",
    }
}
words! {
    Delivery {
        Delivered = "delivered",
        GivenUp = "given_up",
    }
}

/// Defines the metrics, and the list of them.
macro_rules! metrics {
    ($($constant:ident = $kind:expr, $name:literal, [$($label:ident),*], $help:literal;)+) => {
        $(pub const $constant: Metric =
            Metric { name: concat!("fhir_sync_", $name), kind: $kind, help: $help, labels: &[$($label),*] };)+

        /// In the order of docs/metrics.md.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

const EXPORT: Label = Label { name: "export", values: Values::Exports };
const RESOURCE_TYPE: Label = Label { name: "resource_type", values: Values::ResourceTypes };
const TABLE: Label = Label { name: "table", values: Values::Tables };
const DISK: Label = Label { name: "of", values: Values::Disks };
const VERSION: Label = Label { name: "version", values: Values::Words(&[env!("CARGO_PKG_VERSION")]) };

const fn of(name: &'static str, words: &'static [&'static str]) -> Label {
    Label { name, values: Values::Words(words) }
}

/// The steps of a run: all but the maintenance, which is the last one.
pub const STEPS_OF_RUNS: &[&str] = match Step::WORDS.split_last() {
    Some((_, steps)) => steps,
    None => &[],
};
const STEP_OF_RUN: Label = of("step", STEPS_OF_RUNS);

const RUN_OUTCOME: Label = of("outcome", RunOutcome::WORDS);
const STEP: Label = of("step", Step::WORDS);
const OPERATION: Label = of("operation", Operation::WORDS);
const ENDPOINT: Label = of("endpoint", Endpoint::WORDS);
const CODE: Label = of("code", Code::WORDS);
const RETRY_REASON: Label = of("reason", RetryReason::WORDS);
const JOB_EVENT: Label = of("event", JobEvent::WORDS);
const FILE_OUTCOME: Label = of("outcome", FileOutcome::WORDS);
const STAGE: Label = of("stage", Stage::WORDS);
const TOKEN_OUTCOME: Label = of("outcome", TokenOutcome::WORDS);
const COMMIT_OUTCOME: Label = of("outcome", CommitOutcome::WORDS);
const MAINTENANCE_OUTCOME: Label = of("outcome", MaintenanceOutcome::WORDS);
const STORE_REQUEST: Label = of("kind", StoreRequest::WORDS);
const CACHE_LOOKUP: Label = of("result", CacheLookup::WORDS);
const WRITE_OUTCOME: Label = of("outcome", WriteOutcome::WORDS);
const PEER: Label = of("peer", Peer::WORDS);
const REJECTION: Label = of("reason", Rejection::WORDS);
const NOTIFICATION: Label = of("kind", Notification::WORDS);
const DELIVERY: Label = of("outcome", Delivery::WORDS);

const COUNTER: Kind = Kind::Counter;
const GAUGE: Kind = Kind::Gauge;

metrics! {
    BUILD_INFO = GAUGE, "build_info", [VERSION], "Always 1; the version of the program is in its label.";
    LAST_SUCCESS = GAUGE, "last_success_timestamp_seconds", [EXPORT],
        "When the last complete run ended; 0: none was complete.";
    LAST_RUN = GAUGE, "last_completed_timestamp_seconds", [EXPORT, RUN_OUTCOME],
        "When the last run with this outcome ended; 0: none since the start of the process.";
    WATERMARK = GAUGE, "data_watermark_timestamp_seconds", [EXPORT, RESOURCE_TYPE],
        "The watermark of a type, by the server's clock; 0: none.";
    DATA_AS_OF = GAUGE, "data_as_of_timestamp_seconds", [EXPORT, RESOURCE_TYPE],
        "From when the data of a type are, by the local clock, as /health measures their age; 0: never loaded, or empty.";
    HEALTHY = GAUGE, "healthy", [EXPORT],
        "1 while /health calls the export healthy; 0 while data are too old, were never loaded, or are lost.";
    MAX_AGE = GAUGE, "max_age_seconds", [EXPORT], "How old the data may be before /health is unhealthy.";
    INTERVAL = GAUGE, "schedule_interval_seconds", [EXPORT],
        "The longest time between two scheduled runs; 0: there is no schedule.";
    NEXT_RUN = GAUGE, "next_run_timestamp_seconds", [EXPORT], "When the schedule next starts a run; 0: never.";
    IN_PROGRESS = GAUGE, "run_in_progress", [EXPORT], "1 while a run is in progress.";
    RUN_STARTED = GAUGE, "run_started_timestamp_seconds", [EXPORT], "When the last run began; 0: none since the start.";
    RUN_STEP = GAUGE, "run_step", [EXPORT, STEP_OF_RUN], "1 for the step that a run is at, 0 for the others.";
    STEP_STARTED = GAUGE, "run_step_started_timestamp_seconds", [EXPORT],
        "When the last step of a run began; 0: none since the start.";
    MAINTENANCE = GAUGE, "maintenance_in_progress", [], "1 while tables are maintained, or wait for it.";
    STALLED = GAUGE, "stalled", [],
        "1 while a run or the maintenance makes no progress for longer than daemon.stall_timeout.";
    RUNS = COUNTER, "runs_total", [EXPORT, RUN_OUTCOME], "Runs that ended.";
    FAILURES = GAUGE, "consecutive_failures", [EXPORT], "Runs in a row that were partial or failed.";
    RUN_DURATION = GAUGE, "last_run_duration_seconds", [EXPORT], "How long the last run took; 0: none since the start.";
    STEP_DURATION = Kind::Histogram(Buckets::Steps), "step_duration_seconds", [STEP],
        "How long each step of a run, or the maintenance, took.";
    WARNINGS = GAUGE, "warnings", [EXPORT], "What the last run left open: the warnings of /health.";
    RECEIVED = COUNTER, "resources_received_total", [RESOURCE_TYPE],
        "Lines and deletions that were received, counted when their type is committed or fails.";
    ROWS = COUNTER, "rows_total", [RESOURCE_TYPE, OPERATION],
        "What commits did with received resources and deletions, and rows that a full refresh removed.";
    QUARANTINED = COUNTER, "resources_quarantined_total", [RESOURCE_TYPE], "Lines that are not resources.";
    DOWNLOAD_BYTES = COUNTER, "download_bytes_total", [STAGE], "Bytes of files, as transferred and decompressed.";
    DOWNLOAD_FILES = COUNTER, "download_files_total", [FILE_OUTCOME], "Files whose download ended.";
    HTTP_REQUESTS = COUNTER, "http_requests_total", [ENDPOINT, CODE],
        "Requests to the FHIR server, its token endpoint and its file server, by class of status.";
    HTTP_DURATION = Kind::Histogram(Buckets::Requests), "http_request_duration_seconds", [ENDPOINT],
        "How long the server took to answer, up to the headers.";
    RETRIES = COUNTER, "retries_total", [ENDPOINT, RETRY_REASON], "Requests that are sent again, by what went wrong.";
    PARALLEL_DOWNLOADS = GAUGE, "parallel_downloads_limit", [],
        "How many files may be read from a server at the same time, as its answers allow; 0: nothing was changed yet.";
    PAUSED_UNTIL = GAUGE, "requests_paused_until_timestamp_seconds", [PEER],
        "Until when a server that complained is asked for nothing; 0: it has not complained since the start.";
    REQUEST_INTERVAL = GAUGE, "request_interval_seconds", [PEER],
        "The shortest time between two requests to a server that limits their rate; 0: none is known.";
    POLLS = COUNTER, "export_polls_total", [], "Polls of the status of an export.";
    JOBS = COUNTER, "export_jobs_total", [JOB_EVENT], "What happened to jobs on the server.";
    TOKENS = COUNTER, "token_requests_total", [TOKEN_OUTCOME], "Requests for an access token.";
    TOKEN_RENEWAL = GAUGE, "token_renewal_timestamp_seconds", [],
        "Until when the access token is used, which is shortly before it expires; 0: there is none.";
    COMMITS = COUNTER, "delta_commits_total", [TABLE, COMMIT_OUTCOME], "Attempts at a Delta commit.";
    TABLE_VERSION = GAUGE, "delta_table_version", [TABLE],
        "The version of a table after our last commit; 0: none since the start.";
    TABLE_FILES = GAUGE, "delta_table_files", [TABLE],
        "Data files of a table after our last commit; 0: none since the start.";
    TABLE_BYTES = GAUGE, "delta_table_bytes", [TABLE],
        "Size of these data files; 0: no commit since the start.";
    MAINTAINED = GAUGE, "last_maintenance_timestamp_seconds", [TABLE],
        "When a table was last maintained without an error; 0: not since the start.";
    MAINTENANCES = COUNTER, "maintenance_total", [TABLE, MAINTENANCE_OUTCOME],
        "How often a table was maintained, or was not because of an error.";
    STORE_REQUESTS = COUNTER, "store_requests_total", [STORE_REQUEST],
        "Requests to the object store of the tables, by kind; those that are repeated after an error count once.";
    STORE_READ = COUNTER, "store_read_bytes_total", [], "Bytes that were read from the object store.";
    STORE_WRITTEN = COUNTER, "store_written_bytes_total", [], "Bytes that were written to the object store.";
    CACHE_LOOKUPS = COUNTER, "store_cache_lookups_total", [CACHE_LOOKUP],
        "What was looked for in the local cache of the object store.";
    CACHE_BYTES = GAUGE, "store_cache_bytes", [], "Size of what is kept in the local cache of the object store.";
    STATE_WRITES = COUNTER, "state_writes_total", [WRITE_OUTCOME], "Writes of the state file.";
    LEASE_HELD = GAUGE, "lease_held", [], "1 while this process may write the tables.";
    LEASE_SHARED = GAUGE, "lease_shared", [], "1 where several processes hold that lease together (daemon.share_exports).";
    SPOOL_BYTES = GAUGE, "spool_bytes", [], "Size of the temporary files for received rows.";
    DISK_FREE = GAUGE, "spool_free_bytes", [DISK],
        "Free space of the disk with the temporary files, and of those with the tables and the state, if in folders.";
    CLOCK_SKEW = GAUGE, "clock_skew_seconds", [PEER],
        "The local clock minus the server's, by the last response with a Date; in whole seconds.";
    REJECTIONS = COUNTER, "security_rejections_total", [REJECTION],
        "URLs, redirects and responses of the server that were not followed or not read.";
    CONFIG_OK = GAUGE, "config_last_reload_successful", [],
        "1 if the last configuration that was read is in use, 0 if it was refused and the one of before stays.";
    CONFIG_LOADED = GAUGE, "config_last_reload_success_timestamp_seconds", [],
        "When the configuration was last read and taken over.";
    NOTIFICATIONS = COUNTER, "notifications_total", [NOTIFICATION, DELIVERY],
        "Heartbeats and webhooks, by whether they were delivered.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        for (index, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert!(metric.help.ends_with('.'), "{name}: {}", metric.help);
            assert!(ALL[..index].iter().all(|other| other.name != name), "{name} is there twice");
            if matches!(metric.kind, Kind::Histogram(_)) {
                assert!(name.ends_with("_seconds"), "{name}");
            }
        }
    }
}
