//! The settings of this room: how to reach one FHIR server, how patiently, and within which limits.
//!
//! Each default is here and nowhere else. What contradicts itself cannot be built: see [`WaitRange`].

use std::time::Duration;

use url::Url;

use super::{OwnHeaders, Proxy, Tls, auth, redirect::check_url, request::Lists};

/// How to speak to one FHIR server.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The FHIR base; a missing trailing slash is added.
    pub server: Url,
    /// Without it `http:` is accepted for loopback addresses only (rule 1).
    pub allow_http: bool,
    /// Without it no request carries an `Authorization`.
    pub auth: Option<auth::AuthConfig>,
    /// Further origins that may receive the token, and the assertion for one; of each URL only the origin counts
    /// (rule 92).
    pub token_origins: Vec<Url>,
    /// Inner addresses of the server, which stand for its own origin or FHIR base; see [`super::check_inner`].
    pub rewrite_origin: Vec<Url>,
    /// Whether hosts that are not named here may have private addresses.
    pub allow_private_addresses: bool,
    /// Sent to the server's origin and `token_origins`.
    pub headers: OwnHeaders,
    pub tls: Tls,
    pub file_auth: FileAuth,
    pub proxy: Proxy,
    pub kick_off: KickOffConfig,
    pub poll: PollConfig,
    pub http: HttpConfig,
    pub limits: Limits,
}

/// Which requests for files carry a token, where their origin may have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileAuth {
    /// As `requiresAccessToken` of the manifest says; where it is absent, with one.
    Auto,
    Always,
    Never,
}

/// How a kick-off carries its parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KickOffConfig {
    pub method: KickOffMethod,
    pub separator: ListSeparator,
}

/// By which method (rule 11, Q-16).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KickOffMethod {
    /// GET where it is possible; the other one where the server refuses the method.
    #[default]
    Auto,
    Get,
    Post,
}

/// How several values of one parameter are sent (rule 13, Q-12).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ListSeparator {
    /// With commas; repeated for a server that takes only POST.
    #[default]
    Auto,
    Comma,
    Repeat,
}

impl KickOffConfig {
    /// `auto` where nobody has set it.
    pub(super) fn lists(self, auto: Lists) -> Lists {
        match self.separator {
            ListSeparator::Auto => auto,
            ListSeparator::Comma => Lists::AllJoined,
            ListSeparator::Repeat => Lists::Repeated,
        }
    }
}

/// How long to wait for an export.
#[derive(Clone, PartialEq, Debug)]
pub struct PollConfig {
    /// Between two polls, whatever `Retry-After` says.
    pub interval: WaitRange,
    /// How long a job may take, counted from its kick-off (rule 47).
    pub deadline: Duration,
    /// How long a kick-off waits for a server that is busy with another export (rule 34, Q-3).
    pub kick_off_deadline: Duration,
    /// How long a server must repeat that an export failed, before that is believed (rule 44, Q-22). Not configurable.
    pub believed_after: Duration,
    /// How long a server may ask for patience in the same words, for ever. Not configurable.
    pub patience_with_words: Duration,
}

/// How long to wait for an answer, and how long to try again.
#[derive(Clone, PartialEq, Debug)]
pub struct HttpConfig {
    pub connect_timeout: Duration,
    /// The longest silence: until the headers arrive, and between two chunks of a body.
    pub idle_timeout: Duration,
    /// How long a server that cannot be reached or is unwell is waited for, at each step of an export (rule 44).
    pub outage_patience: Duration,
    /// Between two attempts; it begins at the minimum and doubles. A server that asks all to pause is obeyed up to the
    /// maximum.
    pub retry_wait: WaitRange,
    /// To one origin, for servers that limit the rate without saying so.
    pub max_requests_per_minute: Option<u32>,
    /// Some servers hand out each file a few times only.
    pub max_requests_per_file: Option<u32>,
    /// Whether a receipt has the SHA-256 of its file.
    pub hash_files: bool,
}

/// How much is accepted of a server.
#[derive(Clone, PartialEq, Debug)]
pub struct Limits {
    /// The size of one file, decoded.
    pub max_file_bytes: u64,
    /// How many times longer a file may be, decoded, than what was transferred of it.
    pub max_decompression_ratio: u32,
    /// How long one file may take, all attempts together.
    pub max_transfer_time: Duration,
    /// How many bytes per second of a file must arrive while it is waited for.
    pub min_throughput_bytes: u64,
    /// The size of one manifest, all its pages together: they are held in memory.
    pub max_manifest_bytes: u64,
    /// Not configurable.
    pub max_manifest_pages: usize,
}

/// The shortest and the longest wait of a kind; the shortest is never longer than the longest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitRange {
    min: Duration,
    max: Duration,
}

impl Config {
    pub fn new(server: Url) -> Self {
        Self {
            server,
            allow_http: false,
            auth: None,
            token_origins: Vec::new(),
            rewrite_origin: Vec::new(),
            allow_private_addresses: false,
            headers: OwnHeaders::default(),
            tls: Tls::default(),
            file_auth: FileAuth::Auto,
            proxy: Proxy::None,
            kick_off: KickOffConfig::default(),
            poll: PollConfig::default(),
            http: HttpConfig::default(),
            limits: Limits::default(),
        }
    }
}

/// Can this be the FHIR base, and may patient data and tokens travel to it (rule 1)? The reason if not.
pub fn check_base(url: &Url, allow_http: bool) -> Result<(), String> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must be a FHIR base, without ? and #".to_owned());
    }
    check_url(url, None, allow_http)
}

impl Default for PollConfig {
    fn default() -> Self {
        Self {
            interval: WaitRange { min: Duration::from_secs(1), max: Duration::from_mins(5) },
            deadline: Duration::from_hours(30 * 24),
            kick_off_deadline: Duration::from_hours(6),
            believed_after: Duration::from_mins(15),
            patience_with_words: Duration::from_hours(6),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(2),
            outage_patience: Duration::from_mins(30),
            retry_wait: WaitRange { min: Duration::from_secs(1), max: Duration::from_mins(2) },
            max_requests_per_minute: None,
            max_requests_per_file: None,
            hash_files: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_file_bytes: 64 << 30,
            // NDJSON of FHIR has 5 to 30; gzip cannot reach more than 1032.
            max_decompression_ratio: 200,
            max_transfer_time: Duration::from_hours(24),
            min_throughput_bytes: 1 << 10,
            max_manifest_bytes: 64 << 20,
            max_manifest_pages: 10_000,
        }
    }
}

impl WaitRange {
    /// `None` when `min` is longer than `max`.
    pub fn new(min: Duration, max: Duration) -> Option<Self> {
        (min <= max).then_some(Self { min, max })
    }

    pub fn min(self) -> Duration {
        self.min
    }

    pub fn max(self) -> Duration {
        self.max
    }
}
