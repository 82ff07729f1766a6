//! Google Cloud Storage.

use std::{collections::BTreeMap, sync::Arc};

use object_store::{
    StaticCredentialProvider,
    gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey},
};
use url::Url;

use super::{
    Error, Options, attempts,
    client::Client,
    failure::{Cause, Failure},
    http,
    renewing::{Made, Renewing, Texts, exposed},
    service::{BEARER_TOKEN, flag},
};

/// Blocks on the files that the options name.
pub fn connect(
    url: &Url,
    options: &Options,
    texts: BTreeMap<&'static str, String>,
) -> Result<Client<GoogleCloudStorage, GcpCredential>, Error> {
    let client = http::client_options(options, &texts)?;
    let builder = GoogleCloudStorageBuilder::new().with_url(url.as_str()).with_client_options(client);
    let builder = texts.iter().fold(builder, |builder, (name, text)| configured(builder, name, text));
    let secrets: BTreeMap<_, _> = options.secrets().map(|(name, secret)| (name, secret.clone())).collect();
    let endpoint = texts.get("google_base_url").map_or("https://storage.googleapis.com", String::as_str).to_owned();
    let asked = asked(&texts, &secrets);
    let retries = http::retries(&texts);
    let (named, retries_of_credentials) = (attempts::Connector::of(&retries), http::retries_of_credentials(&texts));
    let fetching = builder.clone().with_http_connector(attempts::Connector::of(&retries_of_credentials));
    let fetching = fetching.with_retry(retries_of_credentials);
    let make = move |secrets: &Texts| made(&fetching, &texts, secrets);
    let credentials = Arc::new(Renewing::new(secrets, asked, Box::new(make)));
    // These name credentials of their own, which are read by whoever makes them.
    let builder =
        builder.with_http_connector(named).with_retry(retries).with_credentials(Arc::clone(&credentials) as _);
    let store = builder.build().map_err(|error| Error::unusable(url, &error))?;
    Ok(Client::new(store, credentials, endpoint))
}

fn configured(builder: GoogleCloudStorageBuilder, name: &str, text: &str) -> GoogleCloudStorageBuilder {
    match name.parse::<GoogleConfigKey>() {
        // Those of HTTP are in the client's options.
        Err(_) | Ok(GoogleConfigKey::Client(_)) => builder,
        Ok(key) => builder.with_config(key, text),
    }
}

/// Who hands out tokens.
fn asked(
    texts: &BTreeMap<&'static str, String>,
    secrets: &BTreeMap<&'static str, crate::secret::Secret>,
) -> &'static str {
    const FILES: [&str; 2] = ["google_service_account", "google_application_credentials"];
    if secrets.contains_key("google_service_account_key") || texts.contains_key("google_service_account_key") {
        "google_service_account_key"
    } else if FILES.iter().any(|name| texts.contains_key(name)) {
        "the file of the service account"
    } else {
        "the metadata service of this machine"
    }
}

fn made(
    builder: &GoogleCloudStorageBuilder,
    texts: &BTreeMap<&'static str, String>,
    secrets: &Texts,
) -> Result<Made<GcpCredential>, Failure> {
    if let Some(bearer) = exposed(secrets, BEARER_TOKEN) {
        let provider = Arc::new(StaticCredentialProvider::new(GcpCredential { bearer: bearer.trim().to_owned() }));
        return Ok(Made { provider, fetches: false, lifetime: None });
    }
    let key = exposed(secrets, "google_service_account_key");
    let builder =
        key.map_or_else(|| builder.clone(), |key| configured(builder.clone(), "google_service_account_key", key));
    let is_unsigned = texts.get("google_skip_signature").is_some_and(|text| flag(text) == Some(true));
    // Its error may quote the key.
    let store = builder.build().map_err(|_| {
        let what = if is_unsigned { "google_skip_signature" } else { "the key of the service account" };
        Failure::new(Cause::Missing(format!("{what} cannot be used")))
    })?;
    Ok(Made { provider: Arc::clone(store.credentials()), fetches: true, lifetime: None })
}
