//! Durable files: what a commit names is on the disk before the commit is.
//!
//! deltalake and its object store never call fsync. Without it, a power failure may keep the small commit, which was
//! renamed into place, and lose the contents of the data files that it names. Object stores answer when a file is
//! durable; so this is for local folders only.

use std::{collections::BTreeSet, fs::File, io, path::Path};

use deltalake::kernel::{Action, Add};

use crate::table::{Error, data_file::deletion_vector::file_of, parallel::in_parallel};

/// The new files of a commit's actions: paths in the table's folder. A file that only gets another deletion vector is
/// on the disk already.
pub fn new_files(actions: &[Action]) -> BTreeSet<String> {
    let stays: BTreeSet<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Remove(remove) => Some(remove.path.as_str()),
            _ => None,
        })
        .collect();
    let mut files = BTreeSet::new();
    for action in actions {
        match action {
            Action::Add(Add { path, deletion_vector, .. }) => {
                files.extend((!stays.contains(path.as_str())).then(|| path.clone()));
                files.extend(deletion_vector.as_ref().and_then(file_of).map(|vector| vector.to_string()));
            }
            Action::Cdc(file) => {
                files.insert(file.path.clone());
            }
            _ => {}
        }
    }
    files
}

/// Flushes these files of a table, and the folders that they are in, to the disk. Blocks.
pub fn sync_to_disk(table: &Path, files: &BTreeSet<String>) -> Result<(), Error> {
    let failed = |error: io::Error| Error::delta(&table.display().to_string(), error);
    let paths: Vec<_> = files.iter().map(|file| table.join(file)).collect();
    in_parallel(&paths, |path| File::open(path).and_then(|file| file.sync_all()).map_err(failed))?;
    let folders = paths.iter().flat_map(|path| path.ancestors().skip(1).take_while(|folder| folder.starts_with(table)));
    let folders: BTreeSet<_> = folders.collect();
    for folder in folders {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(())
}
