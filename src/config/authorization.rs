//! The keys of `[server]` that say how to authorize. Keys that contradict each other are mistakes.

use std::{fs::File, io::ErrorKind, path::Path};

use secrecy::{ExposeSecret as _, SecretString};

use super::{
    Section, positive_duration,
    secrets::{self, KeyedSecret, Reported},
    text, url,
};
use crate::export::{
    self,
    auth::{AuthConfig, BearerToken, ClientSecret, SentIn, SigningKey, Smart, TokenEndpoint, TokenUrl},
};

/// Whether a file of a key is missing here, or closed to this user: only who speaks to the server needs it.
pub fn is_unreadable_here(path: &Path) -> bool {
    let opened = File::open(path).map_err(|error| error.kind());
    matches!(opened, Err(ErrorKind::NotFound | ErrorKind::PermissionDenied))
}

/// Whether the secrets are read, or may be on another machine.
pub enum KeyFile {
    MustExist,
    MayBeElsewhere,
    /// The text of the private key is here.
    Given(SecretString),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Smart,
    ClientSecret(SentIn),
    Token,
    None,
}

const METHODS: [(&str, Method); 5] = [
    ("smart", Method::Smart),
    ("client-secret-basic", Method::ClientSecret(SentIn::Header)),
    ("client-secret-post", Method::ClientSecret(SentIn::Form)),
    ("token", Method::Token),
    ("none", Method::None),
];

/// All keys, before it is known which of them count.
struct Keys {
    client_id: Option<String>,
    private_key: Option<KeyedSecret>,
    key_id: Option<String>,
    jwks_url: Option<String>,
    audience: Option<String>,
    client_secret: Option<KeyedSecret>,
    token: Option<KeyedSecret>,
    token_lifetime: Option<std::time::Duration>,
    endpoint: TokenEndpoint,
}

/// `None` for a server without authorization, and after a mistake, which has been reported.
pub fn read(section: &mut Section, key_file: &KeyFile, allow_http: Option<bool>) -> Option<AuthConfig> {
    let method = section.optional_choice("auth", &METHODS);
    let mut keys = read_keys(section, allow_http)?;
    if let KeyFile::Given(text) = key_file {
        if let Some(keyed) = &keys.private_key {
            section.mistake(&keyed.key, "is set, and FHIR_PRIVATE_KEY too; remove one of them");
            return None;
        }
        let secret = crate::secret::Secret::given(text.clone());
        keys.private_key = Some(KeyedSecret { secret, key: "private_key_file".to_owned() });
    }
    let is_smart = keys.client_id.is_some() || keys.private_key.is_some();
    let method = method.unwrap_or(if is_smart { Method::Smart } else { Method::None });
    contradictions(section, &keys, method).ok()?;
    match method {
        Method::Smart => smart(section, key_file, keys).ok(),
        Method::ClientSecret(sent_in) => client_secret(section, key_file, keys, sent_in).ok(),
        Method::Token => token(section, key_file, keys).ok(),
        Method::None => None,
    }
}

fn read_keys(section: &mut Section, allow_http: Option<bool>) -> Option<Keys> {
    let client_id = section.optional("client_id", text);
    let private_key = secrets::read(section, "private_key");
    let key_id = section.optional("key_id", text);
    let jwks_url = section.optional("jwks_url", |text| url(text).map(|_| text.to_owned()));
    let client_secret = secrets::read(section, "client_secret");
    let token = secrets::read(section, "token");
    let token_lifetime = section.or("token_lifetime", "4m", positive_duration);
    let token_url = section.optional("token_url", |text| Ok(TokenUrl { url: url(text)?, text: text.to_owned() }));
    if let (Some(token_url), Some(allow_http)) = (&token_url, allow_http)
        && let Err(reason) = export::check_url(&token_url.url, None, allow_http)
    {
        section.mistake("token_url", &reason);
    }
    let audience = section.optional("token_audience", text);
    let scopes = section.list("scopes", text);
    Some(Keys {
        client_id,
        private_key: private_key.ok()?,
        key_id,
        jwks_url,
        audience,
        client_secret: client_secret.ok()?,
        token: token.ok()?,
        token_lifetime,
        endpoint: TokenEndpoint { token_url, scopes: scopes? },
    })
}

/// A secret that the chosen method does not use: somebody meant another method.
fn contradictions(section: &Section, keys: &Keys, method: Method) -> Result<(), Reported> {
    let is_secret = matches!(method, Method::ClientSecret(_));
    let mut result = Ok(());
    for (keyed, is_used, of) in [
        (&keys.private_key, method == Method::Smart, "\"smart\""),
        (&keys.client_secret, is_secret, "\"client-secret-basic\" or \"client-secret-post\""),
        (&keys.token, method == Method::Token, "\"token\""),
    ] {
        if let Some(keyed) = keyed.as_ref().filter(|_| !is_used) {
            section.mistake(&keyed.key, &format!("is set, and auth is not {of}; remove one of them, or set auth"));
            result = Err(Reported);
        }
    }
    result
}

fn smart(section: &Section, key_file: &KeyFile, keys: Keys) -> Result<AuthConfig, Reported> {
    let missing = "is missing; client_id needs its private key";
    let (client_id, keyed) = client(section, keys.client_id, keys.private_key, ("private_key_file", missing))?;
    // A command runs when a token is needed: a vault that is out of reach fails a run, and not the start.
    if !keyed.is_command()
        && let Some(text) = keyed.text(section, key_file)?
        && let Err(what) = SigningKey::chosen(text.expose_secret(), keys.key_id.as_deref())
    {
        section.mistake(&keyed.key, &format!("{}: {what}", keyed.secret.place()));
        return Err(Reported);
    }
    let (key_id, jwks_url, audience) = (keys.key_id, keys.jwks_url, keys.audience);
    Ok(Smart { client_id, key: keyed.secret, key_id, jwks_url, audience, endpoint: keys.endpoint }.into())
}

fn client_secret(section: &Section, key_file: &KeyFile, keys: Keys, sent_in: SentIn) -> Result<AuthConfig, Reported> {
    let missing = "is missing; auth needs the secret of the client";
    let (client_id, keyed) = client(section, keys.client_id, keys.client_secret, ("client_secret_file", missing))?;
    if !keyed.is_command() {
        keyed.text(section, key_file)?;
    }
    let endpoint = keys.endpoint;
    Ok(AuthConfig::ClientSecret(ClientSecret { client_id, secret: keyed.secret, sent_in, endpoint }))
}

fn token(section: &Section, key_file: &KeyFile, keys: Keys) -> Result<AuthConfig, Reported> {
    let Some(keyed) = keys.token else {
        section.mistake("token_file", "is missing; auth = \"token\" needs the access token, or token_exec");
        return Err(Reported);
    };
    if !keyed.is_command() {
        keyed.text(section, key_file)?;
    }
    let lifetime = keys.token_lifetime.ok_or(Reported)?;
    Ok(AuthConfig::Token(BearerToken { token: keyed.secret, lifetime }))
}

/// Both halves of what a client proves itself with.
fn client(
    section: &Section,
    client_id: Option<String>,
    keyed: Option<KeyedSecret>,
    (key, missing): (&str, &str),
) -> Result<(String, KeyedSecret), Reported> {
    match (client_id, keyed) {
        (Some(client_id), Some(keyed)) => Ok((client_id, keyed)),
        (None, Some(_)) => {
            let of = if key == "private_key_file" { "private key" } else { "secret of the client" };
            section.mistake("client_id", &format!("is missing; the {of} needs it"));
            Err(Reported)
        }
        (_, None) => {
            section.mistake(key, missing);
            Err(Reported)
        }
    }
}
