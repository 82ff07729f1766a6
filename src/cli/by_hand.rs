//! By hand: who does what a command asks for. The service, where it runs; else this process, as the service's user.

use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{Dir, Mode, OFlags, openat};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    exit::{self, CONFIGURATION, Exit, LOCKED, STOPPED, failed, misconfigured, not_opened, stoppable},
    progress::with_progress,
};
use crate::{
    config::{self, Config},
    control::{self, Answer, Client, Work, carry_out},
    notify::{self, Couriers, Notifier},
    sync::{Board, Export, Location, ProgressBoard, Syncer, chain},
};

/// Whoever works for one command.
pub struct ByHand {
    does: Doer,
    exports: Vec<Export>,
    board: ProgressBoard,
    progress: watch::Receiver<Board>,
    stop: CancellationToken,
    _gives_back: Option<GivesBack>,
}

enum Doer {
    Service(Client),
    Ourselves { syncer: Box<Syncer>, notifier: Notifier, couriers: Couriers },
}

impl ByHand {
    /// Finds the service, or opens everything. `own` makes of the configuration the one with which this process does
    /// the work: it may need the server's key, which the service has.
    pub async fn open(config: Config, own: impl FnOnce(Config) -> Result<Config, Exit>) -> Result<Self, Exit> {
        let exports: Vec<_> = config.exports.iter().map(|scheduled| scheduled.export.clone()).collect();
        let (board, progress) = ProgressBoard::new();
        let stop = CancellationToken::new();
        let (does, gives_back) = match Client::find(&config.control(), &config.tables.root).await.map_err(refused)? {
            Some(service) => {
                tracing::info!("the service does it; its log has the details");
                (Doer::Service(service), None)
            }
            None => {
                let gives_back = run_as_owner(&config)?;
                (ourselves(own(config)?, &exports, board.clone(), &stop).await?, gives_back)
            }
        };
        Ok(Self { does, exports, board, progress, stop, _gives_back: gives_back })
    }

    /// Does it, and shows its progress. The first signal ends it at its next safe point, and nothing else of the
    /// service.
    pub async fn work(&self, work: Work) -> Result<Answer, Exit> {
        let done = async {
            match &self.does {
                Doer::Service(service) => service.work(&work, &self.board, &self.stop).await,
                Doer::Ourselves { syncer, notifier, .. } => {
                    carry_out(syncer, &self.exports, notifier, work, &self.stop).await
                }
            }
        };
        stoppable(with_progress(done, self.progress.clone()), &self.stop).await?.map_err(refused)
    }

    /// Whether a signal has asked for the end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub async fn close(self) {
        if let Doer::Ourselves { syncer, couriers, .. } = self.does {
            syncer.close().await;
            // A second signal ends the process.
            let _ = stoppable(couriers.finish(), &self.stop).await;
        }
    }
}

async fn ourselves(
    config: Config,
    exports: &[Export],
    board: ProgressBoard,
    stop: &CancellationToken,
) -> Result<Doer, Exit> {
    let Config { server, tables, state, sync, notify, .. } = config;
    let syncer = Syncer::open(server, tables, &state, sync, exports, board).await.map_err(not_opened_by_hand)?;
    let names = exports.iter().map(|export| export.name.clone());
    let (notifier, couriers) = notify::start(notify, names, stop).map_err(|error| failed(&chain(&error)))?;
    Ok(Doer::Ourselves { syncer: Box::new(syncer), notifier, couriers })
}

/// The configuration with the key of the server, for a process that asks it itself.
pub fn with_key(path: &Path) -> Result<Config, Exit> {
    config::load(path).map_err(|mistakes| {
        let exit = misconfigured(mistakes);
        // Without the key, there is no mistake. A vault that does not answer has nothing to do with systemd.
        if exit == CONFIGURATION && config::check(path).is_ok() {
            eprintln!(
                "fhir-sync: under systemd the key is there only while the service runs: start the service, and give \
                 the command again; the service then does it"
            );
        }
        exit
    })
}

/// The answer to another question than ours.
pub fn unexpected() -> Exit {
    failed("the service answered something else than was asked; restart it, so that both are of the same version")
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err takes")]
fn refused(error: control::Error) -> Exit {
    let exit = failed(&error.to_string());
    match error {
        control::Error::Failed(_) => exit,
        control::Error::OtherConfiguration(_) => CONFIGURATION,
        control::Error::Busy(_) => exit::TEMPORARY,
        control::Error::Stopped => STOPPED,
    }
}

fn not_opened_by_hand(error: crate::sync::Error) -> Exit {
    let exit = not_opened(error);
    if exit == LOCKED {
        eprintln!(
            "fhir-sync: it takes no commands: it is another command, or a service that is starting or has another \
             state file. Wait until it has ended, or use the configuration of the service"
        );
    }
    exit
}

/// Root leaves no files behind that the service cannot write: the process begins again as the owner of the state
/// folder. Where the owner cannot reach the folders, because systemd opens them only to the service, root goes on, and
/// gives the files to their owner afterwards.
fn run_as_owner(config: &Config) -> Result<Option<GivesBack>, Exit> {
    let of_tables = || match &config.tables.root {
        Location::Folder(tables) => Some(tables.as_path()),
        Location::ObjectStore(_) => None,
    };
    let Some(folder) = config.state.folder().or_else(of_tables) else { return Ok(None) };
    let Ok(metadata) = fs::metadata(folder) else { return Ok(None) };
    if !rustix::process::geteuid().is_root() || metadata.uid() == 0 {
        return Ok(None);
    }
    let (user, group) = (metadata.uid(), metadata.gid());
    let mut folders = vec![folder.to_owned()];
    if let Location::Folder(tables) = &config.tables.root {
        folders.push(tables.clone());
    }
    if !folders.iter().all(|folder| may_reach(folder, user, group)) {
        return Ok(Some(GivesBack { folders }));
    }
    let mut words = std::env::args_os();
    let mut again = Command::new("/proc/self/exe");
    again.arg0(words.next().unwrap_or_default()).args(words).uid(user).gid(group);
    let error = again.exec();
    Err(failed(&format!("the command cannot run as user {user}, to whom {} belongs: {error}", folder.display())))
}

/// Whether this user may enter all folders above this one.
fn may_reach(folder: &Path, user: u32, group: u32) -> bool {
    let Ok(folder) = folder.canonicalize() else { return true };
    folder.ancestors().skip(1).all(|above| {
        fs::metadata(above).is_ok_and(|metadata| {
            let shift = match metadata.uid() {
                owner if owner == user => 6,
                _ if metadata.gid() == group => 3,
                _ => 0,
            };
            metadata.permissions().mode() >> shift & 1 != 0
        })
    })
}

/// Gives what root has created below these folders to their owners, when it is dropped.
struct GivesBack {
    folders: Vec<PathBuf>,
}

impl Drop for GivesBack {
    fn drop(&mut self) {
        for folder in &self.folders {
            if let Err(error) = given_back(folder) {
                eprintln!("fhir-sync: files below {} still belong to root: {error}", folder.display());
            }
        }
    }
}

fn given_back(folder: &Path) -> io::Result<()> {
    let folder = fs::File::open(folder)?;
    let owner = folder.metadata()?;
    if owner.uid() == 0 { Ok(()) } else { give(&folder, owner.uid(), owner.gid()) }
}

/// No link is followed, and a file with a second name stays: somebody else may have put it there.
fn give(folder: impl AsFd, user: u32, group: u32) -> io::Result<()> {
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        if [c".", c".."].contains(&entry.file_name()) {
            continue;
        }
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(opened) = openat(&folder, entry.file_name(), flags, Mode::empty()) else { continue };
        let found = fs::File::from(opened);
        let metadata = found.metadata()?;
        if metadata.is_dir() {
            give(&found, user, group)?;
        }
        let is_ours = metadata.is_dir() || (metadata.is_file() && metadata.nlink() == 1);
        if is_ours && metadata.uid() == 0 {
            std::os::unix::fs::fchown(&found, Some(user), Some(group))?;
        }
    }
    Ok(())
}
