//! A file with a secret: who else can read it, and whether it has changed since it was read.

use std::{
    fs::{File, Metadata},
    io::Read as _,
    os::unix::fs::MetadataExt,
    path::Path,
};

use secrecy::{SecretString, zeroize::Zeroizing};

use super::{Error, MAX_BYTES, unreadable, usable};

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    size_bytes: u64,
    modified_ns: (i64, i64),
    inode: u64,
}

/// The text of the file, and its mark; `None` where the file still has the mark `known`. Blocks.
pub fn read(path: &Path, known: Option<&Mark>) -> Result<Option<(SecretString, Mark)>, Error> {
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if metadata.is_dir() {
        return Err(Error::Unusable("is a directory, not a file".to_owned()));
    }
    if is_open_to_others(&metadata) {
        return Err(Error::Unusable(format!("can be read by other users; run chmod 600 {}", path.display())));
    }
    let mark = Mark::of(&metadata);
    if known == Some(&mark) {
        return Ok(None);
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    Ok(Some((usable(std::mem::take(&mut *bytes))?, mark)))
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size_bytes: metadata.size(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// Whether anybody else can read or change the file of a secret.
pub fn is_open_to_others(metadata: &Metadata) -> bool {
    is_exposed(metadata.mode(), metadata.uid(), own_uid())
}

/// Whether anybody else can read or change a file of this mode and owner. A secret that Kubernetes mounts with
/// `fsGroup`, or a credential of a newer systemd, belongs to root and is readable through our group alone: nothing
/// tighter is possible there.
fn is_exposed(mode: u32, owner: u32, own_uid: u32) -> bool {
    let lent_by_root = owner == 0 && own_uid != 0;
    mode & if lent_by_root { 0o037 } else { 0o077 } != 0
}

fn own_uid() -> u32 {
    // Without /proc our user is not known, and the strict rule holds.
    std::fs::metadata("/proc/self").map_or(0, |process| process.uid())
}

#[cfg(test)]
mod tests {
    use super::is_exposed;

    #[test]
    fn a_file_of_a_secret_is_for_its_owner_or_for_our_group_when_root_owns_it() {
        for (mode, owner, own_uid, exposed) in [
            (0o100_600, 1000, 1000, false),
            (0o100_640, 1000, 1000, true),
            (0o100_604, 1000, 1000, true),
            (0o100_440, 0, 65532, false),
            (0o100_444, 0, 65532, true),
            (0o100_460, 0, 65532, true),
            (0o100_440, 0, 0, true),
        ] {
            assert_eq!(is_exposed(mode, owner, own_uid), exposed, "{mode:o} of {owner} for {own_uid}");
        }
    }
}
