//! The memory limit: how much memory the process may take, and what its parts get of it.
//!
//! Half is for what a run has received ([`MemoryLimit::change_sets`]). A quarter is for row groups that a commit writes
//! ([`MemoryLimit::row_groups`]), and before that, less of it for lines that are being decoded
//! ([`MemoryLimit::decoding`]). The last quarter is for what is not counted: the client, footers, the allocator.

use std::{fs, path::Path};

use super::{section::Section, values::bytes};

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit(u64);

/// With less, row groups would be so small that readers suffer.
const MIN_BYTES: u64 = 128 * 1024 * 1024;

impl MemoryLimit {
    pub fn change_sets(self) -> usize {
        size(self.0 / 2)
    }

    pub fn row_groups(self) -> usize {
        size(self.0 / 4)
    }

    pub fn decoding(self) -> usize {
        size(self.0 / 16 * 3)
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// `sync.memory_limit`. The default is lowered to nine tenths of what the control group of this process allows.
pub fn read(section: &mut Section) -> Option<MemoryLimit> {
    section.replaced("change_set_memory", "is now a part of sync.memory_limit, half of it");
    let is_set = section.has("memory_limit");
    let bytes = section.or("memory_limit", "512MiB", bytes)?;
    if bytes < MIN_BYTES {
        section.mistake("memory_limit", "is less than 128MiB");
        return None;
    }
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(allowed) = allowed(&groups, |file| fs::read_to_string(file).ok()) else { return Some(MemoryLimit(bytes)) };
    let mib = allowed / 1024 / 1024;
    if !is_set {
        let within = bytes.min(allowed / 10 * 9);
        if within < MIN_BYTES {
            let what =
                format!("is lowered, because the control group of this process allows {mib} MiB; 128MiB are needed");
            section.remark("memory_limit", &what);
        }
        return Some(MemoryLimit(within));
    }
    if bytes > allowed {
        let what = format!("is more than the control group of this process allows ({mib} MiB)");
        section.remark("memory_limit", &what);
    }
    Some(MemoryLimit(bytes))
}

/// The least that one of the groups of a process allows, and of those above them. `groups` is its `/proc/<pid>/cgroup`:
/// lines of an id, controllers and a path. In a container that path may be one of the host, which is not there.
fn allowed(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let of_group = |group: &str| {
        let mut parts = group.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|of| of == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let limits = Path::new(path).ancestors().filter_map(|above| read(&Path::new(mount).join(above).join(file)));
        // `max` where nothing is limited; version 1 has a number that no machine has.
        limits.filter_map(|limit| limit.trim().parse::<u64>().ok()).min()
    };
    groups.lines().filter_map(of_group).min()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn allowed_by(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let files: BTreeMap<_, _> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        allowed(groups, |path| files.get(path).map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_least_that_the_control_groups_of_a_process_allow_counts() {
        let unit = "0::/system.slice/fhir-sync.service\n";
        let (of_unit, of_slice) = ("/sys/fs/cgroup/system.slice/fhir-sync.service", "/sys/fs/cgroup/system.slice");
        let (of_unit, of_slice) = (format!("{of_unit}/memory.max"), format!("{of_slice}/memory.max"));
        assert_eq!(allowed_by(unit, &[(&of_unit, "400\n"), (&of_slice, "max\n")]), Some(400));
        assert_eq!(allowed_by(unit, &[(&of_unit, "max\n"), (&of_slice, "300\n")]), Some(300));
        assert_eq!(allowed_by(unit, &[(&of_unit, "max\n")]), None);
        // A container: the path is that of its own namespace, or one of the host.
        assert_eq!(allowed_by("0::/\n", &[("/sys/fs/cgroup/memory.max", "200")]), Some(200));
        assert_eq!(allowed_by("0::/kubepods/x\n", &[("/sys/fs/cgroup/memory.max", "200")]), Some(200));
        let first_version = "11:cpu,cpuacct:/a\n7:memory:/docker/1f\n";
        let limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(allowed_by(first_version, &[(limit, "100\n")]), Some(100));
        assert_eq!(allowed_by("", &[(limit, "100\n")]), None);
    }
}
