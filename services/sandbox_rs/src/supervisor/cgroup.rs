//! The memory control group around this process: its limit, and how often the kernel killed a process in it.
//!
//! A kill by the kernel looks like signal 9 from nowhere. Its count tells it from every other end, in cgroup v1
//! (`memory.oom_control`) and v2 (`memory.events`) alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::layers::process::Exit;
use crate::verdict::{Fault, Resource, is_from_outside};

/// Where the counts and limits are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryGroup {
    /// From this process's own group up to the root of the mount.
    directories: Vec<PathBuf>,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// What was last seen of the group around this process.
struct Watched {
    group: Option<MemoryGroup>,
    kills: u64,
    last: Option<Instant>,
}

static WATCHED: LazyLock<Mutex<Watched>> = LazyLock::new(|| {
    let group = MemoryGroup::around();
    let kills = group.as_ref().map_or(0, MemoryGroup::kills);
    Mutex::new(Watched { group, kills, last: None })
});

/// Begins to count; kills before this are nobody's.
pub fn watch() {
    LazyLock::force(&WATCHED);
}

/// Whether the kernel has killed a process in the group around us since then, as far as it was looked.
pub fn killed_since(then: Instant) -> bool {
    let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let kills = watched.group.as_ref().map_or(0, MemoryGroup::kills);
    if kills > watched.kills {
        watched.kills = kills;
        watched.last = Some(Instant::now());
    }
    watched.last.is_some_and(|last| last >= then)
}

/// Somebody outside ended a process of ours: the kernel, if memory ran out since it was asked for.
pub fn fault_of_kill(since: Instant, what: &str) -> Fault {
    if killed_since(since) {
        let what = format!("the kernel ended {what}");
        return Fault::Exhausted { resource: Resource::Memory, what, before: false };
    }
    Fault::Killed(what.to_owned())
}

/// The fault in an exit that the supervisor did not cause, if it is somebody's outside.
pub fn fault_of_exit(
    exit: Exit,
    cpu: Duration,
    cpu_limit: Duration,
    own_doing: bool,
    since: Instant,
    what: &str,
) -> Option<Fault> {
    is_from_outside(exit, cpu, cpu_limit, own_doing).then(|| fault_of_kill(since, what))
}

/// Memory of the container around us, or else of the machine, in bytes.
pub fn memory_limit() -> Option<u64> {
    let group = MemoryGroup::around().and_then(|group| group.limit());
    group.or_else(|| machine_memory(&fs::read_to_string("/proc/meminfo").ok()?))
}

fn machine_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

const MOUNT: &str = "/sys/fs/cgroup";

impl MemoryGroup {
    /// The group that this process is in now, if the kernel shows it.
    pub fn around() -> Option<Self> {
        let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
        find(&memberships, Path::new(MOUNT))
    }

    /// Processes that the kernel has killed in it for want of memory.
    pub fn kills(&self) -> u64 {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let Some(text) = self.directories.first().and_then(|own| fs::read_to_string(own.join(file)).ok()) else {
            return 0;
        };
        count_of_kills(&text)
    }

    /// The smallest limit on the way up, in bytes; none where nothing is limited.
    pub fn limit(&self) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        let limits = self.directories.iter().filter_map(|directory| fs::read_to_string(directory.join(file)).ok());
        limits.filter_map(|text| bytes(&text)).min()
    }
}

fn count_of_kills(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

/// A limit in bytes; version 1 writes a number near the largest, version 2 `max`, where there is none.
fn bytes(text: &str) -> Option<u64> {
    const NO_LIMIT: u64 = 1 << 60;
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

/// The group named in /proc/self/cgroup under `mount`, which a container may show from its own group down.
fn find(memberships: &str, mount: &Path) -> Option<MemoryGroup> {
    let mut found = None;
    for line in memberships.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
        let (root, version, file) = if controllers.split(',').any(|name| name == "memory") {
            (mount.join("memory"), Version::One, "memory.oom_control")
        } else if controllers.is_empty() {
            (mount.to_owned(), Version::Two, "memory.events")
        } else {
            continue;
        };
        let below = Path::new(path.trim_start_matches('/'));
        let mut directories: Vec<PathBuf> = below.ancestors().map(|part| root.join(part)).collect();
        directories.retain(|directory| directory.join(file).exists() || *directory == root);
        if directories.first().is_some_and(|own| own.join(file).exists()) {
            // Version 1 has the controller wherever it is named; version 2 only where version 1 has not.
            if version == Version::One {
                return Some(MemoryGroup { directories, version });
            }
            found = Some(MemoryGroup { directories, version });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for a mount of control groups.
    fn mount(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let mount = std::env::temp_dir().join(format!("cgroup-test-{name}-{}", std::process::id()));
        for (path, text) in files {
            let file = mount.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        mount
    }

    #[test]
    fn version_two_is_read_up_to_its_root() {
        let root = mount(
            "two",
            &[
                ("pod/one/memory.events", "low 0\noom 3\noom_kill 2\n"),
                ("pod/one/memory.max", "max\n"),
                ("pod/memory.events", "oom_kill 7\n"),
                ("pod/memory.max", "1073741824\n"),
            ],
        );
        let group = find("1:name=systemd:/\n0::/pod/one\n", &root).unwrap();
        assert_eq!((group.kills(), group.limit()), (2, Some(1 << 30)));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn version_one_is_preferred_where_it_holds_the_controller() {
        let root = mount(
            "one",
            &[
                ("memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
                ("memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.events", "oom_kill 9\n"),
            ],
        );
        let group = find("4:memory:/a\n0::/\n", &root).unwrap();
        assert_eq!((group.kills(), group.limit()), (4, None));
        // In a container the path of the host is not there; the mount itself is its group.
        fs::write(root.join("memory/memory.oom_control"), "oom_kill 1\n").unwrap();
        fs::write(root.join("memory/memory.limit_in_bytes"), "4096\n").unwrap();
        let group = find("4:memory:/kubepods/x\n", &root).unwrap();
        assert_eq!((group.kills(), group.limit()), (1, Some(4096)));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_limit().is_some_and(|bytes| bytes > 1 << 28));
        assert_eq!(machine_memory("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
    }

    #[test]
    fn without_the_controller_there_is_none() {
        assert_eq!(find("4:cpu:/\n", Path::new("/nowhere")), None);
    }
}
