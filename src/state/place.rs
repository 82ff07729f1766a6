//! The places of the state: its folder and the files in it, opened so that nobody else decides what they are.
//!
//! No link is followed at the end of a path, and nothing but a regular file is opened. Files that are written belong to
//! the user who runs the program, or, if that is root, to the owner of the folder; a folder in which other users may
//! replace them is reported.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;

use super::{Error, io};

/// Who may own a file that is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever runs the program, because it will write the file again. Root may also write for the owner of the folder.
    Ourselves,
    /// Anybody: the file is only read.
    Anybody,
}

/// Creates the folder if it does not exist, for its owner only. Says so when other users can replace its files: volumes
/// of containers are often like that, so it is not refused.
pub fn folder(folder: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| io(folder, error))?;
    let metadata = fs::metadata(folder).map_err(|error| io(folder, error))?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    // In a folder with the sticky bit, like /tmp, nobody replaces the files of others.
    let is_open = mode & 0o002 != 0 && mode & 0o1000 == 0;
    if is_open || ![rustix::process::geteuid().as_raw(), ROOT].contains(&owner) {
        tracing::warn!(
            place = %folder.display(), mode = format!("{mode:04o}"), owner,
            "other users can replace the state file; give its folder to the user of fhir-sync, with mode 0700"
        );
    }
    Ok(())
}

/// The bytes of a file; `None` where there is none.
pub fn read(path: &Path, owner: Owner) -> Result<Option<Vec<u8>>, Error> {
    let mut options = OpenOptions::new();
    options.read(true);
    let Some(mut file) = open(path, &mut options, owner)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| io(path, error))?;
    Ok(Some(bytes))
}

/// Writes a file of which nothing was there before, readable by its owner only, to the disk.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    // What an interrupted write has left, or somebody else has put there, is removed and not opened.
    remove(path)?;
    // On some servers the status URL of a job is all that is needed to read its files.
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = created.map_err(|error| io(path, error))?;
    give_to_owner_of_folder(&file, path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| io(path, error))
}

/// Removes a file, if it is there. A link is removed itself.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(found(path, error)),
        _ => Ok(()),
    }
}

/// Opens a file for reading and writing; creates it for its owner only.
pub fn open_or_create(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    match open(path, &mut options, Owner::Ourselves)? {
        Some(file) => {
            give_to_owner_of_folder(&file, path)?;
            Ok(file)
        }
        None => Err(io(path, ErrorKind::NotFound.into())),
    }
}

fn open(path: &Path, options: &mut OpenOptions, owner: Owner) -> Result<Option<File>, Error> {
    // A FIFO without a writer would otherwise wait for one, without a word.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match options.custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(found(path, error)),
    };
    let metadata = file.metadata().map_err(|error| io(path, error))?;
    if let Some(what) = unusual(metadata.file_type()) {
        return Err(refused(path, &not_a_file(what)));
    }
    let us = rustix::process::geteuid().as_raw();
    let is_ours = metadata.uid() == us || (us == ROOT && metadata.uid() == owner_of_folder(path)?);
    if owner == Owner::Ourselves && !is_ours {
        return Err(belongs_to(path, metadata.uid(), us));
    }
    Ok(Some(file))
}

const ROOT: u32 = 0;

/// A command by hand as root must not leave a file that the service cannot write.
fn give_to_owner_of_folder(file: &File, path: &Path) -> Result<(), Error> {
    if rustix::process::geteuid().as_raw() != ROOT {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(owner_of_folder(path)?), None).map_err(|error| io(path, error))
}

fn owner_of_folder(path: &Path) -> Result<u32, Error> {
    let folder = super::folder(path);
    Ok(fs::metadata(folder).map_err(|error| io(folder, error))?.uid())
}

/// The error of a place that could not be opened, by what is there.
fn found(path: &Path, error: std::io::Error) -> Error {
    match fs::symlink_metadata(path).ok().and_then(|metadata| unusual(metadata.file_type())) {
        Some(what) => refused(path, &not_a_file(what)),
        None => io(path, error),
    }
}

/// What is there instead of a file.
fn unusual(file_type: fs::FileType) -> Option<&'static str> {
    let kinds = [
        (file_type.is_symlink(), "a symbolic link"),
        (file_type.is_dir(), "a folder"),
        (file_type.is_fifo(), "a FIFO"),
        (file_type.is_socket(), "a socket"),
        (file_type.is_file(), ""),
    ];
    let what = kinds.iter().find(|(is, _)| *is).map_or("a device", |(_, what)| what);
    (!what.is_empty()).then_some(what)
}

fn not_a_file(what: &str) -> String {
    format!("it is {what}; move it away, or name the file itself (`state.file`, `--state-file`)")
}

fn belongs_to(path: &Path, owner: u32, us: u32) -> Error {
    let way_out = "run it as that user, or give the file and its folder to this one (`chown`)";
    refused(path, &format!("it belongs to user {owner}, and fhir-sync runs as user {us}; {way_out}"))
}

fn refused(path: &Path, reason: &str) -> Error {
    Error::Refused { place: path.display().to_string(), reason: reason.to_owned() }
}
