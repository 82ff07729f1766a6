//! Options: what the configuration says about an object store, completed by the environment.
//!
//! What always holds: an option wins over its variable; a store has one kind of credential: where the options name one,
//! the variables of the other kinds do not count.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use url::Url;

use super::service::{CREDENTIALS, Form, Name, Service, flag};
use crate::secret::Secret;

/// How an object store is reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    texts: BTreeMap<&'static str, String>,
    secrets: BTreeMap<&'static str, Secret>,
    /// Certificate authorities that are trusted besides those of this host, in PEM.
    pub ca_file: Option<PathBuf>,
    pub proxy: Proxy,
}

/// Through which proxy requests to the store go.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Proxy {
    #[default]
    None,
    /// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// It may hold user and password.
    Url(Box<Url>),
}

impl fmt::Debug for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("None"),
            Self::Environment => out.write_str("Environment"),
            Self::Url(url) => write!(out, "Url({}, …)", url.host_str().unwrap_or_default()),
        }
    }
}

/// A kind of credential, and the settings that name it. Of the settings of one kind some may be variables.
struct Kind(&'static [&'static str]);

impl Options {
    pub fn new(ca_file: Option<PathBuf>, proxy: Proxy) -> Self {
        Self { ca_file, proxy, ..Self::default() }
    }

    /// Certificates and proxy alone.
    #[must_use]
    pub fn of_http(&self) -> Self {
        Self::new(self.ca_file.clone(), self.proxy.clone())
    }

    /// The same for somebody who waits for an answer: a request is not repeated for longer than this.
    #[must_use]
    pub fn retrying_for(mut self, time: Duration) -> Self {
        self.texts.insert("retry_timeout", humantime::format_duration(time).to_string());
        self
    }

    /// `text` is what [`Name::check`] accepts.
    pub fn set(&mut self, name: &Name, text: String) {
        self.texts.insert(name.name, text);
    }

    pub fn keep(&mut self, name: &Name, secret: Secret) {
        self.secrets.insert(name.name, secret);
    }

    pub fn secrets(&self) -> impl Iterator<Item = (&'static str, &Secret)> {
        self.secrets.iter().map(|(name, secret)| (*name, secret))
    }

    fn has(&self, name: &str) -> bool {
        self.texts.contains_key(name) || self.secrets.contains_key(name)
    }

    /// The texts of the options, and of the variables that complete them.
    pub fn completed(
        &self,
        service: Service,
        variables: &BTreeMap<&'static str, String>,
    ) -> BTreeMap<&'static str, String> {
        let own = kinds(service).find(|kind| kind.0.iter().any(|name| self.has(name)));
        let is_of_other = |name: &str| {
            own.is_some_and(|own| !own.0.contains(&name) && kinds(service).any(|kind| kind.0.contains(&name)))
        };
        // A token belongs to one key; another key of the options has none, or its own.
        let has_own_key = self.has("aws_secret_access_key");
        let is_of_other_key = |name: &str| has_own_key && name == "aws_session_token";
        let counts = |name: &str| !(self.has(name) || is_of_other(name) || is_of_other_key(name));
        let variables = variables.iter().filter(|(name, _)| counts(name));
        variables.chain(&self.texts).map(|(name, text)| (*name, text.clone())).collect()
    }

    /// Options that contradict each other, each with a phrase that goes behind its name.
    pub fn mistakes(
        &self,
        service: Service,
        variables: &BTreeMap<&'static str, String>,
    ) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let named: Vec<_> = kinds(service).filter_map(|kind| kind.0.iter().find(|name| self.has(name))).collect();
        if let [one, other, ..] = named.as_slice() {
            found.push((
                **other,
                format!("is a credential, and {one} is another one; a store has one, remove one of them"),
            ));
        }
        let completed = self.completed(service, variables);
        let is_set = |name: &str| completed.contains_key(name) || self.secrets.contains_key(name);
        let allows_http = completed.get("allow_http").is_some_and(|text| flag(text) == Some(true));
        for name in service.names().filter(|name| name.form == Form::Endpoint && !allows_http) {
            if completed.get(name.name).is_some_and(|url| url.starts_with("http://")) {
                let what = "is not an https URL; set allow_http = true as well if requests may be read on their way";
                found.push((name.name, what.to_owned()));
            }
        }
        for (one, other) in PAIRS {
            if self.has(one) && !is_set(other) {
                found.push((one, format!("needs {other} too, which is neither set nor a variable of the environment")));
            }
        }
        let encryption = completed.get("aws_server_side_encryption").map_or("", String::as_str);
        for (name, of) in [("aws_sse_kms_key_id", "aws:kms"), ("aws_sse_customer_key_base64", "sse-c")] {
            if self.has(name) && !encryption.starts_with(of) {
                found.push((name, format!("needs aws_server_side_encryption = {of:?}")));
            }
        }
        if encryption == "sse-c" && self.has("aws_server_side_encryption") && !is_set("aws_sse_customer_key_base64") {
            let what = "\"sse-c\" needs the key of the customer: aws_sse_customer_key_base64_file";
            found.push(("aws_server_side_encryption", what.to_owned()));
        }
        found
    }
}

/// One is of no use without the other.
const PAIRS: [(&str, &str); 7] = [
    ("aws_access_key_id", "aws_secret_access_key"),
    ("aws_secret_access_key", "aws_access_key_id"),
    ("aws_session_token", "aws_secret_access_key"),
    ("aws_role_arn", "aws_web_identity_token_file"),
    ("aws_web_identity_token_file", "aws_role_arn"),
    ("azure_storage_client_secret", "azure_storage_client_id"),
    ("azure_storage_client_secret", "azure_storage_tenant_id"),
];

fn kinds(service: Service) -> impl Iterator<Item = &'static Kind> {
    const OF_S3: &[Kind] = &[
        Kind(&["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]),
        Kind(&[CREDENTIALS]),
        Kind(&["aws_web_identity_token_file", "aws_role_arn"]),
        Kind(&[
            "aws_container_credentials_relative_uri",
            "aws_container_credentials_full_uri",
            "aws_container_authorization_token_file",
        ]),
        Kind(&["aws_skip_signature"]),
    ];
    const OF_AZURE: &[Kind] = &[
        Kind(&["azure_storage_account_key"]),
        Kind(&["azure_storage_sas_key"]),
        Kind(&["azure_storage_token"]),
        Kind(&["azure_storage_client_secret"]),
        Kind(&["azure_federated_token_file"]),
        Kind(&["azure_msi_endpoint", "azure_object_id", "azure_msi_resource_id"]),
        Kind(&["azure_fabric_session_token"]),
        Kind(&["azure_skip_signature"]),
    ];
    const OF_GCS: &[Kind] = &[
        Kind(&["google_service_account"]),
        Kind(&["google_service_account_key"]),
        Kind(&[super::service::BEARER_TOKEN]),
        Kind(&["google_application_credentials"]),
        Kind(&["google_skip_signature"]),
    ];
    match service {
        Service::S3 => OF_S3,
        Service::Azure => OF_AZURE,
        Service::Gcs => OF_GCS,
    }
    .iter()
}

/// The variables of the environment that are settings of such a store, by the first names of the settings.
pub fn variables(service: Service, all: impl Iterator<Item = (String, String)>) -> BTreeMap<&'static str, String> {
    let named = all.filter_map(|(variable, text)| {
        // Of Azure's App Service.
        let of_app_service = service == Service::Azure && variable == "IDENTITY_ENDPOINT";
        let is_setting = variable.starts_with(service.prefix_of_variables()) || of_app_service;
        let name = is_setting.then(|| service.find(&variable.to_ascii_lowercase())).flatten()?;
        (!matches!(name.form, Form::Refused(_)) && !text.is_empty()).then_some((name.name, text))
    });
    named.collect()
}

/// Of this process.
pub fn variables_of_process(service: Service) -> BTreeMap<&'static str, String> {
    let all = std::env::vars_os();
    variables(service, all.filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?))))
}
