//! `jwks`: the public keys to register at the server.

use super::{
    ConfigFile,
    exit::{CONFIGURATION, Exit, failed, misconfigured},
    look,
};
use crate::config;

pub async fn run(file: ConfigFile) -> Result<(), Exit> {
    let (config, _) = config::check(&file.path).map_err(misconfigured)?;
    let Some(auth) = config.server.auth else {
        return Err(failed("the configuration has no authorization; public keys belong to server.auth = \"smart\""));
    };
    match auth.public_jwks().await {
        Some(Ok(jwks)) => look::print(&jwks),
        Some(Err(error)) => {
            failed(&error.to_string());
            Err(CONFIGURATION)
        }
        None => Err(failed("server.auth is not \"smart\"; only that has keys")),
    }
}
