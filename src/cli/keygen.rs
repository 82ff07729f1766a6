//! `keygen`: a new key pair. The private half goes to a file that only its owner can read, the public one is printed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};

use super::{
    exit::{Exit, failed},
    look,
};
use crate::{
    secret::{Place, Secret},
    sync::keys,
};

#[derive(Args, Debug)]
pub struct Arguments {
    /// The file of the private key, a JWK set; only its owner will be able to read it
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// How the key signs
    #[arg(long, value_enum, ignore_case = true, default_value_t = Algorithm::Es384)]
    algorithm: Algorithm,
    /// Adds the key to those in FILE, for a rotation; the first one signs unless `server.key_id` names another
    #[arg(long)]
    add: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Algorithm {
    /// EC on P-384
    #[value(name = "ES384")]
    Es384,
    /// RSA of 3072 bits
    #[value(name = "RS384")]
    Rs384,
}

pub fn run(arguments: &Arguments) -> Result<(), Exit> {
    let path = &arguments.out;
    let algorithm = match arguments.algorithm {
        Algorithm::Es384 => keys::Algorithm::Es384,
        Algorithm::Rs384 => keys::Algorithm::Rs384,
    };
    let set = if arguments.add {
        let secret = Secret::at(Place::File(path.clone()));
        let text = secret.read().map_err(|what| failed(&format!("{} {what}", path.display())))?;
        let set = text.with(|text| keys::with_added(text, algorithm));
        let set = set.map_err(|what| failed(&format!("{} {what}", path.display())))?;
        replace(path, &set).map_err(|error| failed(&format!("cannot write {}: {error}", path.display())))?;
        set
    } else {
        let set = keys::generated(algorithm).map_err(|what| failed(&what))?;
        create(path, &set).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => failed(&format!(
                "{} exists; a key that is in use must not be lost: name another file, or add to it with --add",
                path.display()
            )),
            _ => failed(&format!("cannot write {}: {error}", path.display())),
        })?;
        set
    };
    let public = keys::public_jwks(&set, None).map_err(|what| failed(&what))?;
    eprintln!("{} has the private key. Register these public keys at the server:", path.display());
    look::print(&public)
}

fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// At every moment the file is the one of before or the new one, and it keeps its owner.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let owner = fs::metadata(path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    create(&new, text)?;
    let replaced = chown(&new, Some(owner.uid()), Some(owner.gid())).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        // The reason is reported; the key in it was used nowhere.
        let _ = fs::remove_file(&new);
    }
    replaced?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
