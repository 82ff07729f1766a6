//! Control: commands that are given by hand while a daemon holds the state file and the tables.
//!
//! The daemon listens on a Unix socket beside the state file, or beside the spool where the state is in a store, and
//! does the work of a command between its own syncs.
//! Where no daemon runs, the command does the same work itself: both call [`carry_out`]. The socket serves the user of
//! the daemon and root, nobody else. Lines, connections and waits have limits.

mod client;
mod protocol;
mod server;
mod work;

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    client::Client,
    server::{Order, Server},
    work::{Answer, CancelledJob, Purge, Rebuilt, Replay, ReplayedLines, SinceSet, Work, carry_out, the_one},
};
use crate::sync::Location;

/// Why there is no answer. The text is for the operator.
#[derive(thiserror::Error, Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum Error {
    #[error("{0}")]
    Failed(String),
    /// The daemon runs with another configuration than the command.
    #[error("{0}")]
    OtherConfiguration(String),
    /// Not possible now.
    #[error("{0}")]
    Busy(String),
    #[error("stopped before anything was changed")]
    Stopped,
}

/// The place of the tables, by which a daemon and a command see that they mean the same.
pub fn place_of(tables: &Location) -> String {
    match tables {
        Location::Folder(folder) => {
            let absolute = folder.canonicalize().or_else(|_| std::path::absolute(folder));
            absolute.unwrap_or_else(|_| folder.clone()).display().to_string()
        }
        Location::ObjectStore(url) => url.as_str().trim_end_matches('/').to_owned(),
    }
}

/// The folder of the socket, and its name: the given one, and `.socket`. The folder is held open, because a path
/// below `/proc/self/fd` is short: that of a socket has a limit of 107 bytes.
struct Place {
    folder: File,
    name: String,
}

impl Place {
    fn beside(control: &Path) -> io::Result<Self> {
        let folder = control.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = control.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        Ok(Self { folder: File::open(folder)?, name: format!("{name}.socket") })
    }

    fn path(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{}{suffix}", self.folder.as_raw_fd(), self.name))
    }

    fn owner(&self) -> io::Result<u32> {
        Ok(self.folder.metadata()?.uid())
    }
}

const ROOT: u32 = 0;

fn our_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
