//! Object stores: a place in one, the client that reaches it, and small documents that several processes replace.
//!
//! What always holds: a place has one client, which all tables below it share, so its connections and credentials are
//! shared too; which stores the program was built for is known here only.

#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod attempts;
#[cfg(feature = "azure")]
mod azure;
/// Parts of objects that are kept on the local disk.
pub mod cache;
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod client;
mod document;
mod failure;
#[cfg(feature = "gcs")]
mod gcs;
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod http;
/// How many requests are sent.
pub mod metered;
mod options;
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod renewing;
#[cfg(feature = "s3")]
mod s3;
mod service;
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod upload;

use std::{path::PathBuf, sync::Arc};

use object_store::ObjectStore;
use url::Url;

pub use self::{
    document::{Document, DocumentError, Documents, Readers, Stored, Swapped},
    failure::{Cause, Failure},
    options::{Options, Proxy, variables_of_process},
    service::{Form, Name, Service},
};

/// A folder, or a prefix in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Folder(PathBuf),
    ObjectStore(Url),
}

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("this program was not built for {scheme}://; object stores built in: {}", SCHEMES.join(", "))]
    NotBuiltIn { scheme: String },
    #[error("{place} cannot be reached with these settings: {what}")]
    Unusable { place: String, what: String },
    #[error("{name}: {what}")]
    Secret { name: &'static str, what: String },
    #[error("ca_file: {path} {what}")]
    Authorities { path: String, what: String },
}

impl Error {
    #[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
    fn unusable(url: &Url, error: &object_store::Error) -> Self {
        let what = Failure::of(error, "").to_string();
        Self::Unusable { place: url.to_string(), what }
    }

    #[cfg(any(feature = "s3", feature = "azure"))]
    fn secret(name: &'static str, secret: &crate::secret::Secret, error: &crate::secret::Error) -> Self {
        Self::Secret { name, what: format!("{} {error}", secret.place()) }
    }
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
/// Blocks on the files that the options name.
pub fn connect(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, Error> {
    let Some(service) = Service::of(url) else { return Err(Error::NotBuiltIn { scheme: url.scheme().to_owned() }) };
    let texts = options.completed(service, &variables_of_process(service));
    match service {
        #[cfg(feature = "s3")]
        Service::S3 => Ok(Arc::new(s3::connect(url, options, texts)?)),
        #[cfg(feature = "azure")]
        Service::Azure => Ok(Arc::new(azure::connect(url, options, texts)?)),
        #[cfg(feature = "gcs")]
        Service::Gcs => Ok(Arc::new(gcs::connect(url, options, texts)?)),
        #[cfg(not(all(feature = "s3", feature = "azure", feature = "gcs")))]
        _ => {
            drop(texts);
            Err(Error::NotBuiltIn { scheme: url.scheme().to_owned() })
        }
    }
}

/// Reads a file of certificate authorities, so that what is wrong with it is known before it is used. Blocks.
pub fn check_authorities(path: &std::path::Path) -> Result<(), Error> {
    #[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
    http::authorities(path)?;
    #[cfg(not(any(feature = "s3", feature = "azure", feature = "gcs")))]
    let _ = path;
    Ok(())
}

#[cfg(all(feature = "s3", feature = "azure", feature = "gcs"))]
#[cfg(test)]
pub(crate) mod tests;
