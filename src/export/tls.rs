//! TLS: which certificates of servers are trusted, and which one is shown to them.
//!
//! What always holds: a certificate is checked in full, with its host name; there is no switch that turns this off. The
//! private key of the client certificate is in a file that only its owner can read, and is never printed.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use reqwest::{Certificate, ClientBuilder, Identity, tls::Version};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use secrecy::{ExposeSecret as _, SecretSlice};

use super::Error;
use crate::secret::is_open_to_others;

/// What `[server.tls]` says. The files are read when a client is made, and again when a run begins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tls {
    pub trust: Trust,
    pub min_version: TlsVersion,
    /// For servers that identify their clients by certificate (RFC 8705).
    pub client_certificate: Option<ClientCertificate>,
}

/// Which certificate authorities are trusted; a file has one or more certificates in PEM.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Trust {
    /// Those of this host.
    #[default]
    Host,
    HostAnd(PathBuf),
    Only(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlsVersion {
    #[default]
    V1_2,
    V1_3,
}

/// The files of a certificate, with those of its issuers, and of its private key; both in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

const CA_FILE: &str = "server.tls.ca_file";
const CERTIFICATE_FILE: &str = "server.tls.client_certificate_file";
const KEY_FILE: &str = "server.tls.client_key_file";

/// A bundle of all public certificate authorities has a quarter of this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The content of the files, which has been checked.
#[derive(Default)]
pub struct TlsFiles {
    ca: Vec<u8>,
    /// Certificates and key in one text, as the library takes them.
    identity: Option<SecretSlice<u8>>,
}

impl Tls {
    /// Reads and checks the files. Blocks.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting and the file.
    pub fn read(&self) -> Result<TlsFiles, Error> {
        let ca = match &self.trust {
            Trust::Host => Vec::new(),
            Trust::HostAnd(path) | Trust::Only(path) => {
                let (text, _) = read(CA_FILE, path)?;
                certificates(CA_FILE, path, &text)?;
                text
            }
        };
        let identity = self.client_certificate.as_ref().map(ClientCertificate::read).transpose()?;
        Ok(TlsFiles { ca, identity })
    }

    /// The files that are read, each with its key in `[server.tls]`.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        let ca = match &self.trust {
            Trust::Host => None,
            Trust::HostAnd(path) | Trust::Only(path) => Some(("ca_file", path.as_path())),
        };
        let client = self.client_certificate.iter().flat_map(|client| {
            [("client_certificate_file", client.certificate.as_path()), ("client_key_file", client.key.as_path())]
        });
        ca.into_iter().chain(client).collect()
    }

    pub(super) fn apply(&self, files: &TlsFiles, shown: ShowCertificate, builder: ClientBuilder) -> Applied {
        let min_version = match self.min_version {
            TlsVersion::V1_2 => Version::TLS_1_2,
            TlsVersion::V1_3 => Version::TLS_1_3,
        };
        let builder = builder.tls_version_min(min_version);
        let builder = match self.trust {
            Trust::Host => builder,
            Trust::HostAnd(_) => builder.tls_certs_merge(Certificate::from_pem_bundle(&files.ca)?),
            Trust::Only(_) => builder.tls_certs_only(Certificate::from_pem_bundle(&files.ca)?),
        };
        match (&files.identity, shown) {
            (Some(identity), ShowCertificate::Yes) => {
                Ok(builder.identity(Identity::from_pem(identity.expose_secret())?))
            }
            _ => Ok(builder),
        }
    }
}

type Applied = reqwest::Result<ClientBuilder>;

/// Whether a server may see the client certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShowCertificate {
    Yes,
    No,
}

impl TlsFiles {
    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }
}

impl PartialEq for TlsFiles {
    /// Whether the files have changed.
    fn eq(&self, other: &Self) -> bool {
        let identity = |files: &Self| files.identity.as_ref().map(|secret| secret.expose_secret().to_vec());
        self.ca == other.ca && identity(self) == identity(other)
    }
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsFiles").field("has_identity", &self.has_identity()).finish_non_exhaustive()
    }
}

impl ClientCertificate {
    fn read(&self) -> Result<SecretSlice<u8>, Error> {
        let (mut text, _) = read(CERTIFICATE_FILE, &self.certificate)?;
        let certificates = certificates(CERTIFICATE_FILE, &self.certificate, &text)?;
        let refused = |reason: &str| refused(KEY_FILE, &self.key, reason);
        let (key_text, is_open) = read(KEY_FILE, &self.key)?;
        let key_text = SecretSlice::from(key_text);
        if is_open {
            return Err(refused(&format!("can be read by other users; run chmod 600 {}", self.key.display())));
        }
        let key = PrivateKeyDer::from_pem_slice(key_text.expose_secret())
            .map_err(|_| refused("holds no private key in PEM without a password"))?;
        match CertifiedKey::from_der(certificates, key, &aws_lc_rs::default_provider()) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(refused("holds another key than that of client_certificate_file"));
            }
            Err(_) => return Err(refused("holds a key that cannot be used; RSA, P-256 and P-384 can")),
        }
        text.push(b'\n');
        text.extend_from_slice(key_text.expose_secret());
        Ok(text.into())
    }
}

/// The certificates of a PEM; at least one.
fn certificates(setting: &'static str, path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let certificates = certificates.map_err(|_| refused(setting, path, "holds a damaged PEM"))?;
    if certificates.is_empty() {
        return Err(refused(setting, path, "holds no certificate in PEM"));
    }
    Ok(certificates)
}

/// The content of a file, and whether users besides its owner can read it.
fn read(setting: &'static str, path: &Path) -> Result<(Vec<u8>, bool), Error> {
    let unreadable = |error: std::io::Error| refused(setting, path, &format!("cannot be read: {error}"));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(refused(setting, path, "is a folder, not a file"));
    }
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(setting, path, "is larger than 1 MiB"));
    }
    Ok((content, is_open_to_others(&metadata)))
}

fn refused(setting: &'static str, path: &Path, reason: &str) -> Error {
    Error::Config { setting, reason: format!("{} {reason}", path.display()) }
}
