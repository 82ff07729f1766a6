//! The holder of a lease: a process with a name, and whether it has ended, as far as this host can tell.

use std::{fmt, fs};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The name in the lock file of the state file: a process that has that lock knows that an earlier process with the
    /// same name has ended. Without a state file, no two processes have the same.
    pub(super) name: String,
    /// For people.
    host: String,
    pid: u32,
    /// Where the system tells: what makes the number of the process unique.
    #[serde(default)]
    process: Option<ProcessIdentity>,
}

/// A number is used again after a restart, in another container and, in the end, for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProcessIdentity {
    boot: String,
    pid_namespace: String,
    /// In clock ticks since the boot.
    started: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    Alive,
    Ended,
    /// It is, or was, on another host or in another container.
    Unknown,
}

impl Holder {
    pub fn ourselves(holder: &str) -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let pid = std::process::id();
        Self { name: holder.to_owned(), host, pid, process: ProcessIdentity::of(pid) }
    }

    pub fn unknown() -> Self {
        Self { name: String::new(), host: "unknown".to_owned(), pid: 0, process: None }
    }

    /// Whether this holder is alive, as `us` can tell.
    pub fn liveness(&self, us: &Self) -> Liveness {
        if self.name == us.name {
            return Liveness::Ended;
        }
        let (Some(process), Some(ours)) = (&self.process, &us.process) else { return Liveness::Unknown };
        if process.boot != ours.boot || process.pid_namespace != ours.pid_namespace {
            return Liveness::Unknown;
        }
        let is_alive = started(self.pid) == Some(process.started);
        if is_alive { Liveness::Alive } else { Liveness::Ended }
    }
}

impl ProcessIdentity {
    fn of(pid: u32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let pid_namespace = fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned();
        Some(Self { boot, pid_namespace, started: started(pid)? })
    }
}

/// When a process began; `None` where there is none of that number.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses, and may hold spaces and parentheses itself. The time is field 22, and
    // the state, field 3, follows the name.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3)?.parse().ok()
}

impl fmt::Display for Holder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "process {} on {}", self.pid, self.host)
    }
}
