//! Azure: Blob Storage and Data Lake Storage, by the interface of blobs.

use std::{collections::BTreeMap, sync::Arc};

use object_store::azure::{AzureConfigKey, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder};
use url::Url;

use super::{
    Error, Options, attempts,
    client::Client,
    failure::{Cause, Failure},
    http,
    renewing::{Made, Renewing, Texts, exposed},
    service::flag,
};

/// Blocks on the files that the options name.
pub fn connect(
    url: &Url,
    options: &Options,
    mut texts: BTreeMap<&'static str, String>,
) -> Result<Client<MicrosoftAzure, AzureCredential>, Error> {
    // AKS writes the host with a slash at its end.
    if let Some(host) = texts.get_mut("azure_storage_authority_host") {
        host.truncate(host.trim_end_matches('/').len());
    }
    let is_emulator = texts.get("azure_storage_use_emulator").is_some_and(|text| flag(text) == Some(true));
    let mut client = http::client_options(options, &texts)?;
    if is_emulator {
        client = client.with_allow_http(true);
    }
    let builder = MicrosoftAzureBuilder::new().with_url(url.as_str()).with_client_options(client);
    let mut builder = texts.iter().fold(builder, |builder, (name, text)| configured(builder, name, text));
    let mut secrets: BTreeMap<_, _> = options.secrets().map(|(name, secret)| (name, secret.clone())).collect();
    if is_emulator {
        // It takes no credentials but those that it is made with.
        for (name, secret) in std::mem::take(&mut secrets) {
            let reading = secret.read().map_err(|error| Error::secret(name, &secret, &error))?;
            builder = reading.with(|text| configured(builder, name, text));
        }
    }
    let (endpoint, asked) = (endpoint(url, &texts), asked(&texts, &secrets));
    let retries = http::retries(&texts);
    let (named, retries_of_credentials) = (attempts::Connector::of(&retries), http::retries_of_credentials(&texts));
    let fetching = builder.clone().with_http_connector(attempts::Connector::of(&retries_of_credentials));
    let fetching = fetching.with_retry(retries_of_credentials);
    let fetches = !texts.keys().chain(secrets.keys()).any(|name| CONSTANT.contains(name));
    let make = move |secrets: &Texts| made(&fetching, secrets, fetches);
    let credentials = Arc::new(Renewing::new(secrets, asked, Box::new(make)));
    let builder = builder.with_http_connector(named).with_retry(retries);
    let builder = if is_emulator { builder } else { builder.with_credentials(Arc::clone(&credentials) as _) };
    let store = builder.build().map_err(|error| Error::unusable(url, &error))?;
    Ok(Client::new(store, credentials, endpoint))
}

/// What is sent as it is; with everything else a token is fetched.
const CONSTANT: [&str; 3] = ["azure_storage_account_key", "azure_storage_sas_key", "azure_storage_token"];

fn configured(builder: MicrosoftAzureBuilder, name: &str, text: &str) -> MicrosoftAzureBuilder {
    match name.parse::<AzureConfigKey>() {
        // Those of HTTP are in the client's options.
        Err(_) | Ok(AzureConfigKey::Client(_)) => builder,
        Ok(key) => builder.with_config(key, text),
    }
}

fn endpoint(url: &Url, texts: &BTreeMap<&'static str, String>) -> String {
    let of_url = url.host_str().filter(|_| !url.username().is_empty()).and_then(|host| host.split('.').next());
    let account = of_url.or_else(|| texts.get("azure_storage_account_name").map(String::as_str));
    let of_account = || format!("https://{}.blob.core.windows.net", account.unwrap_or("…"));
    texts.get("azure_storage_endpoint").cloned().unwrap_or_else(of_account)
}

/// Who hands out tokens where none is set; in the order of `object_store`.
fn asked(
    texts: &BTreeMap<&'static str, String>,
    secrets: &BTreeMap<&'static str, crate::secret::Secret>,
) -> &'static str {
    if texts.contains_key("azure_federated_token_file") {
        "Microsoft Entra, with the token of azure_federated_token_file"
    } else if secrets.contains_key("azure_storage_client_secret") || texts.contains_key("azure_storage_client_secret") {
        "Microsoft Entra, with azure_storage_client_secret"
    } else {
        "the metadata service of this machine"
    }
}

fn made(builder: &MicrosoftAzureBuilder, secrets: &Texts, fetches: bool) -> Result<Made<AzureCredential>, Failure> {
    let mut builder = builder.clone();
    for name in secrets.keys() {
        builder = configured(builder, name, exposed(secrets, name).unwrap_or_default().trim());
    }
    // Its error may quote the key.
    let store = builder.build().map_err(|_| {
        let names: Vec<_> = secrets.keys().copied().collect();
        Failure::new(Cause::Missing(format!("{} cannot be used", names.join(" and "))))
    })?;
    Ok(Made { provider: Arc::clone(store.credentials()), fetches, lifetime: None })
}
