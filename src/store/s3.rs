//! S3, and other stores that speak its protocol.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use object_store::{
    StaticCredentialProvider,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
};
use serde::Deserialize;
use url::Url;

use super::{
    Error, Options, attempts,
    client::Client,
    failure::{Cause, Failure},
    http,
    renewing::{Made, Renewing, Texts, exposed},
    service::{CREDENTIALS, flag},
};

/// The secrets of which credentials are made; the others are settings.
const OF_CREDENTIALS: [&str; 4] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", CREDENTIALS];

/// Blocks on the files that the options name.
pub fn connect(
    url: &Url,
    options: &Options,
    mut texts: BTreeMap<&'static str, String>,
) -> Result<Client<AmazonS3, AwsCredential>, Error> {
    put_bucket_into_host(url, &mut texts);
    let client = http::client_options(options, &texts)?;
    let builder = AmazonS3Builder::new().with_url(url.as_str()).with_client_options(client);
    let mut builder = texts.iter().fold(builder, |builder, (name, text)| configured(builder, name, text));
    let secrets = options.secrets().map(|(name, secret)| (name, secret.clone()));
    let (of_credentials, settings): (BTreeMap<_, _>, BTreeMap<_, _>) =
        secrets.partition(|(name, _)| OF_CREDENTIALS.contains(name));
    for (name, secret) in settings {
        let reading = secret.read().map_err(|error| Error::secret(name, &secret, &error))?;
        builder = reading.with(|text| configured(builder, name, text));
    }
    let (endpoint, asked) = (endpoint(&texts), asked(&texts));
    let retries = http::retries(&texts);
    let (named, retries_of_credentials) = (attempts::Connector::of(&retries), http::retries_of_credentials(&texts));
    let fetching = builder.clone().with_http_connector(attempts::Connector::of(&retries_of_credentials));
    let fetching = fetching.with_retry(retries_of_credentials);
    let make = move |secrets: &Texts| made(&fetching, &texts, secrets);
    let credentials = Arc::new(Renewing::new(of_credentials, asked, Box::new(make)));
    let store =
        builder.with_http_connector(named).with_retry(retries).with_credentials(Arc::clone(&credentials) as _).build();
    let store = store.map_err(|error| Error::unusable(url, &error))?;
    Ok(Client::new(store, credentials, endpoint))
}

fn configured(builder: AmazonS3Builder, name: &str, text: &str) -> AmazonS3Builder {
    match name.parse::<AmazonS3ConfigKey>() {
        // Those of HTTP are in the client's options.
        Err(_) | Ok(AmazonS3ConfigKey::Client(_)) => builder,
        Ok(key) => builder.with_config(key, text),
    }
}

/// In the virtual hosted style `object_store` takes an endpoint of one's own as it is, without the bucket.
pub(super) fn put_bucket_into_host(url: &Url, texts: &mut BTreeMap<&'static str, String>) {
    let is_virtual = texts.get("aws_virtual_hosted_style_request").is_some_and(|text| flag(text) == Some(true));
    let Some(bucket) = url.host_str().filter(|_| is_virtual) else { return };
    for name in ["aws_endpoint", "aws_endpoint_url_s3"] {
        let Some(text) = texts.get_mut(name) else { continue };
        let Ok(mut endpoint) = text.parse::<Url>() else { continue };
        let host = endpoint.host_str().unwrap_or_default().to_owned();
        if !host.starts_with(&format!("{bucket}.")) && endpoint.set_host(Some(&format!("{bucket}.{host}"))).is_ok() {
            endpoint.as_str().trim_end_matches('/').clone_into(text);
        }
    }
}

fn endpoint(texts: &BTreeMap<&'static str, String>) -> String {
    let own = texts.get("aws_endpoint_url_s3").or_else(|| texts.get("aws_endpoint"));
    let region = texts.get("aws_region").or_else(|| texts.get("aws_default_region"));
    let of_region = || format!("https://s3.{}.amazonaws.com", region.map_or("us-east-1", String::as_str));
    own.cloned().unwrap_or_else(of_region)
}

/// Who hands out credentials where none are set; in the order of `object_store`.
fn asked(texts: &BTreeMap<&'static str, String>) -> &'static str {
    if texts.contains_key("aws_web_identity_token_file") {
        "AWS STS, which gives the role of aws_web_identity_token_file"
    } else if texts.keys().any(|name| name.starts_with("aws_container_")) {
        "the credential service of this container"
    } else {
        "the metadata service of this machine"
    }
}

fn made(
    builder: &AmazonS3Builder,
    texts: &BTreeMap<&'static str, String>,
    secrets: &Texts,
) -> Result<Made<AwsCredential>, Failure> {
    if let Some(json) = exposed(secrets, CREDENTIALS) {
        return of_process(json);
    }
    let text = |name: &str| exposed(secrets, name).map(str::to_owned).or_else(|| texts.get(name).cloned());
    if let (Some(key_id), Some(secret_key)) = (text("aws_access_key_id"), text("aws_secret_access_key")) {
        return Ok(constant(AwsCredential { key_id, secret_key, token: text("aws_session_token") }, None));
    }
    let store = builder.clone().build().map_err(|error| Failure::of(&error, ""))?;
    Ok(Made { provider: Arc::clone(store.credentials()), fetches: true, lifetime: None })
}

fn constant(credential: AwsCredential, lifetime: Option<Duration>) -> Made<AwsCredential> {
    Made { provider: Arc::new(StaticCredentialProvider::new(credential)), fetches: false, lifetime }
}

/// What a `credential_process` of AWS prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OfProcess {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<chrono::DateTime<chrono::Utc>>,
}

fn of_process(json: &str) -> Result<Made<AwsCredential>, Failure> {
    let parsed: OfProcess = serde_json::from_str(json).map_err(|_| {
        let what = format!("{CREDENTIALS} is not JSON with AccessKeyId and SecretAccessKey");
        Failure::new(Cause::Missing(what))
    })?;
    #[expect(clippy::disallowed_methods, reason = "how long a credential is still valid; no data decision uses it")]
    let now = chrono::Utc::now();
    let lifetime = parsed.expiration.map(|end| (end - now).to_std().unwrap_or_default());
    let (key_id, secret_key) = (parsed.access_key_id, parsed.secret_access_key);
    Ok(constant(AwsCredential { key_id, secret_key, token: parsed.session_token }, lifetime))
}
