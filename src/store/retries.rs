//! How often a request to a store is repeated, by the names that deltalake gave these settings.

use std::{str::FromStr, time::Duration};

use object_store::RetryConfig;

use super::{Error, Options};

pub fn read(options: &Options) -> Result<RetryConfig, Error> {
    let mut retries = RetryConfig::default();
    for (key, value) in options {
        match key.to_ascii_lowercase().as_str() {
            "max_retries" => retries.max_retries = number(key, value)?,
            "retry_timeout" => retries.retry_timeout = duration(key, value)?,
            "backoff_config.init_backoff" => retries.backoff.init_backoff = duration(key, value)?,
            "backoff_config.max_backoff" => retries.backoff.max_backoff = duration(key, value)?,
            "backoff_config.base" => retries.backoff.base = number(key, value)?,
            _ => {}
        }
    }
    Ok(retries)
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|_| unusable(key, value, "is not a number"))
}

fn duration(key: &str, value: &str) -> Result<Duration, Error> {
    humantime::parse_duration(value).map_err(|_| unusable(key, value, "is not a duration, such as 10s"))
}

fn unusable(key: &str, value: &str, what: &'static str) -> Error {
    Error::Option { key: key.to_owned(), value: value.to_owned(), what }
}
