//! The kinds of object stores, and the names of their settings with what each may be.
//!
//! What always holds: a setting has one name here, the first of those that `object_store` accepts for it; a value that
//! [`Name::check`] accepts can be used; a name whose value is a secret says so.

use std::{str::FromStr as _, time::Duration};

use url::Url;

/// The kind of an object store, by the scheme of its URLs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    S3,
    Azure,
    Gcs,
}

/// The name of a setting.
#[derive(PartialEq, Debug)]
pub struct Name {
    pub name: &'static str,
    pub form: Form,
}

/// What may be a value.
#[derive(PartialEq, Debug)]
pub enum Form {
    Text,
    Flag,
    Number {
        max: u32,
    },
    /// As a duration such as `10s`.
    Duration {
        min: Duration,
        max: Duration,
    },
    /// From 1.1.
    Factor {
        max: f64,
    },
    Word(&'static [&'static str]),
    /// A file that is read again and again.
    File,
    /// Where requests go: `http:` only where `allow_http` says so.
    Endpoint,
    /// Of the machine itself: `http:` is usual.
    Metadata,
    Secret,
    /// It is no secret, and changes with one.
    TextOrSecret,
    /// `object_store` knows it, and we do not take it; the phrase goes behind the name.
    Refused(&'static str),
}

const fn name(name: &'static str, form: Form) -> Name {
    Name { name, form }
}

/// Requests are repeated without being signed again, and a signature is valid for 15 minutes at least.
const MAX_RETRY: Duration = Duration::from_mins(5);

const fn duration(min: Duration, max: Duration) -> Form {
    Form::Duration { min, max }
}

/// Of HTTP and of repetitions; all stores have these.
const OF_ALL: &[Name] = &[
    name("allow_http", Form::Flag),
    name("allow_invalid_certificates", Form::Refused("is not possible: certificates are always checked; set ca_file")),
    name("connect_timeout", duration(Duration::from_millis(100), Duration::from_mins(1))),
    name("timeout", duration(Duration::from_secs(1), Duration::from_mins(15))),
    name("default_content_type", Form::Text),
    name("http1_only", Form::Flag),
    name("http2_only", Form::Flag),
    name("http2_keep_alive_interval", duration(Duration::from_secs(1), Duration::from_hours(1))),
    name("http2_keep_alive_timeout", duration(Duration::from_secs(1), Duration::from_hours(1))),
    name("http2_keep_alive_while_idle", Form::Flag),
    name("http2_max_frame_size", Form::Number { max: 16_777_215 }),
    name("pool_idle_timeout", duration(Duration::from_secs(1), Duration::from_hours(1))),
    name("pool_max_idle_per_host", Form::Number { max: 1000 }),
    name("proxy_url", Form::Refused("is not set here; the key `proxy` beside storage_options says the proxy")),
    name("proxy_ca_certificate", Form::Refused("is not set here; ca_file beside storage_options is for proxies too")),
    name("proxy_excludes", Form::Text),
    name("randomize_addresses", Form::Flag),
    name("user_agent", Form::Text),
    name("max_retries", Form::Number { max: 100 }),
    name("retry_timeout", duration(Duration::from_secs(1), MAX_RETRY)),
    name("backoff_config.init_backoff", duration(Duration::from_millis(1), MAX_RETRY)),
    name("backoff_config.max_backoff", duration(Duration::from_millis(1), MAX_RETRY)),
    name("backoff_config.base", Form::Factor { max: 10.0 }),
];

const NOT_NEEDED: Form = Form::Refused("is not needed: commits use conditional writes; remove it");
const IN_ROOT: Form = Form::Refused("is not set here: it is part of the URL");

const OF_S3: &[Name] = &[
    name("aws_access_key_id", Form::TextOrSecret),
    name("aws_secret_access_key", Form::Secret),
    name("aws_session_token", Form::Secret),
    name(CREDENTIALS, Form::Secret),
    name("aws_region", Form::Text),
    name("aws_default_region", Form::Text),
    name("aws_bucket", IN_ROOT),
    name("aws_endpoint", Form::Endpoint),
    name("aws_endpoint_url_s3", Form::Endpoint),
    name("aws_endpoint_url_sts", Form::Endpoint),
    name("aws_virtual_hosted_style_request", Form::Flag),
    name("aws_unsigned_payload", Form::Flag),
    name("aws_checksum_algorithm", Form::Word(&["sha256"])),
    name("aws_imdsv1_fallback", Form::Flag),
    name("aws_metadata_endpoint", Form::Metadata),
    name("aws_container_credentials_relative_uri", Form::Text),
    name("aws_container_credentials_full_uri", Form::Metadata),
    name("aws_container_authorization_token_file", Form::File),
    name("aws_web_identity_token_file", Form::File),
    name("aws_role_arn", Form::Text),
    name("aws_role_session_name", Form::Text),
    name("aws_skip_signature", Form::Flag),
    name("aws_conditional_put", Form::Word(&["etag"])),
    name("aws_copy_if_not_exists", NOT_NEEDED),
    name("aws_s3_allow_unsafe_rename", NOT_NEEDED),
    name("aws_s3_locking_provider", NOT_NEEDED),
    name("aws_disable_tagging", Form::Flag),
    name("aws_s3_express", Form::Flag),
    name("aws_request_payer", Form::Flag),
    name("aws_server_side_encryption", Form::Word(&["AES256", "aws:kms", "aws:kms:dsse", "sse-c"])),
    name("aws_sse_kms_key_id", Form::Text),
    name("aws_sse_bucket_key_enabled", Form::Flag),
    name("aws_sse_customer_key_base64", Form::Secret),
];

const OF_AZURE: &[Name] = &[
    name("azure_storage_account_name", Form::Text),
    name("azure_storage_account_key", Form::Secret),
    name("azure_storage_sas_key", Form::Secret),
    name("azure_storage_token", Form::Secret),
    name("azure_storage_client_id", Form::Text),
    name("azure_storage_client_secret", Form::Secret),
    name("azure_storage_tenant_id", Form::Text),
    name("azure_storage_authority_host", Form::Endpoint),
    name("azure_storage_use_emulator", Form::Flag),
    name("azure_storage_endpoint", Form::Endpoint),
    name("azure_container_name", IN_ROOT),
    name("azure_use_fabric_endpoint", Form::Flag),
    name("azure_msi_endpoint", Form::Metadata),
    name("azure_object_id", Form::Text),
    name("azure_msi_resource_id", Form::Text),
    name("azure_federated_token_file", Form::File),
    name(
        "azure_use_azure_cli",
        Form::Refused(
            "is not possible; set azure_storage_token_exec = [\"az\", \"account\", \"get-access-token\", \
             \"--resource\", \"https://storage.azure.com/\", \"--query\", \"accessToken\", \"--output\", \"tsv\"]",
        ),
    ),
    name("azure_skip_signature", Form::Flag),
    name("azure_disable_tagging", Form::Flag),
    name("azure_fabric_token_service_url", Form::Endpoint),
    name("azure_fabric_workload_host", Form::Text),
    name("azure_fabric_session_token", Form::Secret),
    name("azure_fabric_cluster_identifier", Form::Text),
];

const OF_GCS: &[Name] = &[
    name("google_service_account", Form::File),
    name("google_service_account_key", Form::Secret),
    name(BEARER_TOKEN, Form::Secret),
    name("google_application_credentials", Form::File),
    name("google_base_url", Form::Endpoint),
    name("google_bucket", IN_ROOT),
    name("google_skip_signature", Form::Flag),
];

/// Key id, key and session token in one secret, as JSON in the form of AWS's `credential_process`. Ours:
/// `object_store` has no such setting.
pub const CREDENTIALS: &str = "aws_credentials";
/// An access token of Google. Ours: `object_store` takes one from a program only.
pub const BEARER_TOKEN: &str = "google_bearer_token";

impl Service {
    pub const ALL: [Self; 3] = [Self::S3, Self::Azure, Self::Gcs];

    /// `None` for a scheme that no object store has.
    pub fn of(url: &Url) -> Option<Self> {
        match url.scheme() {
            "s3" | "s3a" => Some(Self::S3),
            "abfs" | "abfss" | "az" => Some(Self::Azure),
            "gs" => Some(Self::Gcs),
            _ => None,
        }
    }

    /// For people.
    pub fn shown(self) -> &'static str {
        match self {
            Self::S3 => "S3",
            Self::Azure => "Azure",
            Self::Gcs => "Google Cloud Storage",
        }
    }

    /// The variables of the environment that begin so are settings.
    pub fn prefix_of_variables(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Azure => "AZURE_",
            Self::Gcs => "GOOGLE_",
        }
    }

    pub fn names(self) -> impl Iterator<Item = &'static Name> {
        let own = match self {
            Self::S3 => OF_S3,
            Self::Azure => OF_AZURE,
            Self::Gcs => OF_GCS,
        };
        own.iter().chain(OF_ALL)
    }

    /// The setting that `object_store` knows by this name, in small letters; of several names for it the first.
    pub fn find(self, key: &str) -> Option<&'static Name> {
        let first = self.first_name(key);
        let first = first.as_deref().unwrap_or(key);
        self.names().find(|known| known.name == first)
    }

    fn first_name(self, key: &str) -> Option<String> {
        match self {
            #[cfg(feature = "s3")]
            Self::S3 => object_store::aws::AmazonS3ConfigKey::from_str(key).ok().map(|key| key.as_ref().to_owned()),
            #[cfg(feature = "azure")]
            Self::Azure => object_store::azure::AzureConfigKey::from_str(key).ok().map(|key| key.as_ref().to_owned()),
            #[cfg(feature = "gcs")]
            Self::Gcs => object_store::gcp::GoogleConfigKey::from_str(key).ok().map(|key| key.as_ref().to_owned()),
            #[cfg(not(all(feature = "s3", feature = "azure", feature = "gcs")))]
            _ => None,
        }
    }
}

impl Name {
    pub fn is_secret(&self) -> bool {
        self.form == Form::Secret
    }

    pub fn may_be_secret(&self) -> bool {
        matches!(self.form, Form::Secret | Form::TextOrSecret)
    }

    /// Says in a phrase why the value cannot be used.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let usable = |is_usable: bool, what: &str| if is_usable { Ok(()) } else { Err(format!("{value:?} {what}")) };
        match &self.form {
            _ if value.is_empty() => Err("is empty".to_owned()),
            Form::Text | Form::TextOrSecret | Form::File => Ok(()),
            Form::Flag => usable(flag(value).is_some(), "is neither true nor false"),
            Form::Number { max } => {
                let number = value.parse::<u32>().ok().filter(|number| number <= max);
                usable(number.is_some(), &format!("is not a number from 0 to {max}"))
            }
            Form::Factor { max } => {
                let factor = value.parse::<f64>().ok().filter(|factor| (1.1..=*max).contains(factor));
                usable(factor.is_some(), &format!("is not a number from 1.1 to {max}"))
            }
            Form::Duration { min, max } => {
                let duration = humantime::parse_duration(value).ok().filter(|it| (*min..=*max).contains(it));
                let [min, max] = [min, max].map(|limit| humantime::format_duration(*limit));
                usable(duration.is_some(), &format!("is not a duration from {min} to {max}"))
            }
            Form::Word(words) => usable(words.contains(&value), &format!("is not {}", words.join(" or "))),
            Form::Endpoint | Form::Metadata => {
                let is_url = value.parse().is_ok_and(|url: Url| {
                    matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.query().is_none()
                });
                if is_url { Ok(()) } else { Err("is not an http or https URL without user and query".to_owned()) }
            }
            Form::Secret => Ok(()),
            Form::Refused(why) => Err((*why).to_owned()),
        }
    }
}

/// As `object_store` reads it.
pub fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" | "y" => Some(true),
        "0" | "false" | "off" | "no" | "n" => Some(false),
        _ => None,
    }
}
