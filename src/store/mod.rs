//! Object stores: a place in one, the client that reaches it, and small documents that several processes replace.
//!
//! What always holds: a place has one client, which all tables below it share, so its connections and credentials are
//! shared too; which stores the program was built for is known here only.

mod document;
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod retries;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use object_store::ObjectStore;
use url::Url;

pub use self::document::{Document, DocumentError, Documents, Readers, Stored, Swapped};

/// A folder, or a prefix in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Folder(PathBuf),
    ObjectStore(Url),
}

/// How an object store is reached: the names of `object_store`'s settings, such as `aws_endpoint`, with their values.
/// Variables of the environment with the same names in capitals count as well; a setting wins over its variable.
pub type Options = BTreeMap<String, String>;

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("this program was not built for {scheme}://; object stores built in: {}", SCHEMES.join(", "))]
    NotBuiltIn { scheme: String },
    #[error("{place} cannot be reached with these settings")]
    Settings { place: String, source: object_store::Error },
    #[error("{key} = {value:?} {what}")]
    Option { key: String, value: String, what: &'static str },
}

/// The URL schemes of the stores that this program was built for.
pub const SCHEMES: &[&str] = &[
    #[cfg(feature = "s3")]
    "s3",
    #[cfg(feature = "s3")]
    "s3a",
    #[cfg(feature = "azure")]
    "abfs",
    #[cfg(feature = "azure")]
    "abfss",
    #[cfg(feature = "azure")]
    "az",
    #[cfg(feature = "gcs")]
    "gs",
];

/// A client for the whole bucket or container of `url`; the path of `url` is not part of it. Asks the store nothing.
pub fn connect(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, Error> {
    match url.scheme() {
        #[cfg(feature = "s3")]
        "s3" | "s3a" => s3(url, options),
        #[cfg(feature = "azure")]
        "abfs" | "abfss" | "az" => azure(url, options),
        #[cfg(feature = "gcs")]
        "gs" => gcs(url, options),
        scheme => {
            let _ = options;
            Err(Error::NotBuiltIn { scheme: scheme.to_owned() })
        }
    }
}

#[cfg(feature = "s3")]
fn s3(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, Error> {
    use object_store::aws::AmazonS3Builder;
    let builder = AmazonS3Builder::from_env().with_url(url.as_str()).with_retry(retries::read(options)?);
    let builder = settings(options).fold(builder, |builder, (key, value)| builder.with_config(key, value));
    builder.build().map(shared).map_err(|error| unusable(url, error))
}

#[cfg(feature = "azure")]
fn azure(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, Error> {
    use object_store::azure::MicrosoftAzureBuilder;
    let builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str()).with_retry(retries::read(options)?);
    let builder = settings(options).fold(builder, |builder, (key, value)| builder.with_config(key, value));
    builder.build().map(shared).map_err(|error| unusable(url, error))
}

#[cfg(feature = "gcs")]
fn gcs(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, Error> {
    use object_store::gcp::GoogleCloudStorageBuilder;
    let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str()).with_retry(retries::read(options)?);
    let builder = settings(options).fold(builder, |builder, (key, value)| builder.with_config(key, value));
    builder.build().map(shared).map_err(|error| unusable(url, error))
}

/// The settings that a kind of store knows; the others are not for it.
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
fn settings<Key: std::str::FromStr>(options: &Options) -> impl Iterator<Item = (Key, String)> {
    options.iter().filter_map(|(key, value)| Some((key.to_ascii_lowercase().parse().ok()?, value.clone())))
}

#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
fn shared(store: impl ObjectStore) -> Arc<dyn ObjectStore> {
    Arc::new(store)
}

#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
fn unusable(url: &Url, source: object_store::Error) -> Error {
    Error::Settings { place: url.to_string(), source }
}
