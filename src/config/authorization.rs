//! The keys of `[server]` that say how to authorize.

use std::{fs::File, io::ErrorKind, path::Path};

use secrecy::{ExposeSecret as _, SecretString};

use super::{Section, path, text, url};
use crate::{
    export::{
        self,
        auth::{self, SigningKey, TokenUrl},
    },
    sync,
};

/// Whether the file of the private key is read, or may be on another machine.
pub enum KeyFile {
    MustExist,
    MayBeElsewhere,
    /// The text of the key takes its place.
    Given(SecretString),
}

/// Whether a file of a key is missing here, or closed to this user: only who speaks to the server needs it.
pub fn is_elsewhere(path: &Path) -> bool {
    let opened = File::open(path).map_err(|error| error.kind());
    matches!(opened, Err(ErrorKind::NotFound | ErrorKind::PermissionDenied))
}

/// `None` for a mistake, `Some(None)` for a server without authorization.
#[expect(clippy::option_option, reason = "a mistake and a server without authorization are different")]
pub fn read(section: &mut Section, key_file: &KeyFile, allow_http: Option<bool>) -> Option<Option<auth::AuthConfig>> {
    let client_id = section.optional("client_id", text);
    let key_path = section.optional("private_key_file", path);
    let key_id = section.optional("key_id", text);
    let token_url = section.optional("token_url", |text| Ok(TokenUrl { url: url(text)?, text: text.to_owned() }));
    if let (Some(token_url), Some(allow_http)) = (&token_url, allow_http)
        && let Err(reason) = export::check_url(&token_url.url, None, allow_http)
    {
        section.mistake("token_url", &reason);
    }
    let audience = section.optional("token_audience", text);
    let scopes = section.list("scopes", text);
    let key = match (client_id.is_some(), key_path, key_file) {
        (false, None, KeyFile::MustExist | KeyFile::MayBeElsewhere) => return Some(None),
        (true, None, KeyFile::Given(text)) => SigningKey::parse(text.expose_secret()),
        (true, Some(path), KeyFile::MayBeElsewhere) if !SigningKey::is_given_as_path(&path) && is_elsewhere(&path) => {
            section.remark("private_key_file", "cannot be read here; it is read when a sync starts");
            return Some(None);
        }
        (true, Some(path), KeyFile::MustExist | KeyFile::MayBeElsewhere) => SigningKey::read(&path),
        (_, Some(_), KeyFile::Given(_)) => {
            section.mistake("private_key_file", "is set, and FHIR_PRIVATE_KEY too; remove one of them");
            return None;
        }
        (true, None, _) => {
            section.mistake("private_key_file", "is missing; client_id needs the file of its private key");
            return None;
        }
        (false, _, _) => {
            section.mistake("client_id", "is missing; the private key needs it");
            return None;
        }
    };
    match key {
        Ok(mut key) => {
            key.kid = key_id.or(key.kid);
            let client_id = client_id?;
            Some(Some(auth::AuthConfig { client_id, key, token_url, audience, scopes: scopes? }))
        }
        Err(error) => {
            section.mistake("private_key_file", &sync::chain(&error));
            None
        }
    }
}
