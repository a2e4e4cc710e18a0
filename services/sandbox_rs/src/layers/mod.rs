//! The layers of isolation, one kernel concept per file, and the report of which are in force.
//!
//! `LAYERS` is the table that everything else reads: what a layer is called, which profiles need it, how it is tried,
//! what it stops, and what would bring it where it is missing.

pub mod capabilities;
pub mod descriptors;
pub mod landlock;
pub mod namespaces;
pub mod no_new_privs;
pub mod outer;
pub mod private_root;
pub mod probe;
pub mod process;
mod process_table;
pub mod rlimits;
pub mod sealing;
pub mod seccomp;
pub mod system_calls;
pub mod weakened;

use std::io;

use serde::{Deserialize, Serialize};

/// Turns the C convention (negative: look at errno) into a result.
pub(crate) fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A profile: which layers a program is wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// All layers, with namespaces.
    Full,
    /// What a pod under the restricted standard allows: all layers but namespaces.
    Pod,
}

impl Profile {
    pub fn name(self) -> &'static str {
        match self {
            Profile::Full if cfg!(feature = "weakened") => "weakened-full",
            Profile::Pod if cfg!(feature = "weakened") => "weakened-pod",
            Profile::Full => "full",
            Profile::Pod => "pod",
        }
    }
}

/// One line of the table.
pub struct LayerKind {
    pub name: &'static str,
    pub full: bool,
    pub pod: bool,
    pub stops: &'static str,
    pub remedy: &'static str,
    pub probe: fn() -> io::Result<bool>,
}

const NAMESPACE_REMEDY: &str = "allow unprivileged user namespaces: sysctl user.max_user_namespaces > 0, and in a pod a \
                                Localhost seccomp profile that permits clone, unshare, mount and pivot_root";
const LANDLOCK_REMEDY: &str =
    "a kernel with CONFIG_SECURITY_LANDLOCK and landlock in the list of active security modules";

/// All layers, from the cheapest to the outermost.
pub const LAYERS: &[LayerKind] = &[
    LayerKind {
        name: "rlimits",
        full: true,
        pod: true,
        stops: "CPU, memory, file size and open files of one process",
        remedy: "hard limits of the service at or above those asked for",
        probe: rlimits::probe,
    },
    LayerKind {
        name: "no_new_privs",
        full: true,
        pod: true,
        stops: "gaining rights by executing a set-uid program",
        remedy: "Linux 3.5 or newer",
        probe: no_new_privs::probe,
    },
    LayerKind {
        name: "capabilities",
        full: true,
        pod: true,
        stops: "using any privilege of the service",
        remedy: "let the service call capset on itself",
        probe: capabilities::probe,
    },
    LayerKind {
        name: "landlock",
        full: true,
        pod: true,
        stops: "opening files other than the interpreter's library and the work directory, and executing anything else",
        remedy: LANDLOCK_REMEDY,
        probe: || landlock::probe(1),
    },
    LayerKind {
        name: "landlock_truncate",
        full: false,
        pod: false,
        stops: "cutting files that may not be written; in profile full they are mounted read-only as well",
        remedy: "Linux 6.2 or newer (Landlock ABI 3)",
        probe: || landlock::probe(landlock::WITH_TRUNCATE),
    },
    LayerKind {
        name: "landlock_network",
        full: false,
        pod: false,
        stops: "TCP connections, a second time after seccomp",
        remedy: "Linux 6.7 or newer (Landlock ABI 4)",
        probe: || landlock::probe(landlock::WITH_NETWORK),
    },
    LayerKind {
        name: "landlock_scopes",
        full: false,
        pod: false,
        stops: "signals to processes outside; without it and without a process namespace signals are refused altogether",
        remedy: "Linux 6.12 or newer (Landlock ABI 6)",
        probe: || landlock::probe(landlock::WITH_SCOPES),
    },
    LayerKind {
        name: "seccomp",
        full: true,
        pod: true,
        stops: "system calls that are on no list: sockets, ptrace, mounts, new namespaces, shared memory",
        remedy: "a kernel with CONFIG_SECCOMP_FILTER on x86-64",
        probe: seccomp::probe_filter,
    },
    LayerKind {
        name: "seccomp_listener",
        full: true,
        pod: true,
        stops: "processes and threads beyond the limit, counted exactly; names the call that ended a program",
        remedy: "Linux 5.5 or newer; an outer sandbox must support SECCOMP_RET_USER_NOTIF",
        probe: seccomp::probe_listener,
    },
    LayerKind {
        name: "process_table",
        full: true,
        pod: true,
        stops: "processes, threads and CPU time of a script beyond the limit, which are counted in /proc",
        remedy: "a /proc that shows the service its own children: mounted without hidepid, and no ProtectProc in its unit",
        probe: process_table::probe,
    },
    LayerKind {
        name: "sealing",
        full: true,
        pod: true,
        stops: "passing descriptors, filters of a program's own, and shared memory, which no limit of a process counts",
        remedy: "a kernel with CONFIG_SECCOMP_FILTER on x86-64",
        probe: sealing::probe,
    },
    LayerKind {
        name: "user_namespace",
        full: true,
        pod: false,
        stops: "being the service's user towards the rest of the machine",
        remedy: NAMESPACE_REMEDY,
        probe: || namespaces::probe(libc::CLONE_NEWUSER),
    },
    LayerKind {
        name: "pid_namespace",
        full: true,
        pod: false,
        stops: "seeing or outliving: all processes of a program end with its first one",
        remedy: NAMESPACE_REMEDY,
        probe: || namespaces::probe(libc::CLONE_NEWPID),
    },
    LayerKind {
        name: "network_namespace",
        full: true,
        pod: false,
        stops: "every network, a second time after seccomp",
        remedy: NAMESPACE_REMEDY,
        probe: || namespaces::probe(libc::CLONE_NEWNET),
    },
    LayerKind {
        name: "ipc_namespace",
        full: true,
        pod: false,
        stops: "System V and POSIX message queues, semaphores and shared memory of others",
        remedy: NAMESPACE_REMEDY,
        probe: || namespaces::probe(libc::CLONE_NEWIPC),
    },
    LayerKind {
        name: "private_root",
        full: true,
        pod: false,
        stops: "naming any file but the interpreter's: no /proc, /etc, /home; a work directory in memory that ends with the program",
        remedy: NAMESPACE_REMEDY,
        probe: private_root::probe,
    },
];

/// What came of trying one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerReport {
    pub name: &'static str,
    pub active: bool,
    /// What the kernel answered; 0 when active.
    pub errno: i32,
    pub detail: String,
    pub remedy: &'static str,
}

/// Which profile the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Auto,
    Only(Profile),
}

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Wanted::Auto),
            "full" => Ok(Wanted::Only(Profile::Full)),
            "pod" => Ok(Wanted::Only(Profile::Pod)),
            other => Err(format!("unknown profile {other:?}: use auto, full or pod")),
        }
    }
}

/// The strongest profile that `reports` carry, or the one wanted; otherwise a line for each missing layer.
pub fn choose(wanted: Wanted, reports: &[LayerReport], required: &[String]) -> Result<Profile, String> {
    let candidates: &[Profile] = match wanted {
        Wanted::Auto => &[Profile::Full, Profile::Pod],
        Wanted::Only(Profile::Full) => &[Profile::Full],
        Wanted::Only(Profile::Pod) => &[Profile::Pod],
    };
    let mut complaint = String::new();
    for &profile in candidates {
        let missing = missing_layers(profile, reports, required);
        if missing.is_empty() {
            return Ok(profile);
        }
        complaint = format!("profile {} cannot be had: {}", profile.name(), missing.join("; "));
    }
    Err(complaint)
}

/// What `profile` and `required` need and `reports` lack, each with errno and remedy.
pub fn missing_layers(profile: Profile, reports: &[LayerReport], required: &[String]) -> Vec<String> {
    LAYERS
        .iter()
        .zip(reports)
        .filter_map(|(kind, report)| {
            let asked = required.iter().any(|name| name == kind.name);
            if !asked && !kind.needed_by(profile) {
                return None;
            }
            if !report.active && !weakened::is_off(kind.name) {
                return Some(format!("layer {} is missing (errno {}): {}", kind.name, report.errno, kind.remedy));
            }
            (!kind.used_by(profile)).then(|| format!("layer {} is not part of profile {}", kind.name, profile.name()))
        })
        .collect()
}

impl LayerKind {
    fn needed_by(&self, profile: Profile) -> bool {
        match profile {
            Profile::Full => self.full,
            Profile::Pod => self.pod,
        }
    }

    /// Layers that no profile needs are used by both, wherever the kernel has them.
    fn used_by(&self, profile: Profile) -> bool {
        self.needed_by(profile) || (!self.full && !self.pod)
    }
}

/// Names of layers in force under `profile`.
pub fn in_force(profile: Profile, reports: &[LayerReport]) -> Vec<&'static str> {
    LAYERS
        .iter()
        .zip(reports)
        .filter(|(kind, report)| report.active && kind.used_by(profile))
        .map(|(kind, _)| kind.name)
        .collect()
}

/// Names of all layers, outer ones included.
pub fn names() -> impl Iterator<Item = &'static str> {
    LAYERS.iter().map(|kind| kind.name).chain(outer::OUTER.iter().map(|kind| kind.name))
}

/// The reports as they are once the profile is chosen: what a test has switched off is not in force.
pub fn without_weakened(mut reports: Vec<LayerReport>) -> Vec<LayerReport> {
    for report in reports.iter_mut().filter(|report| weakened::is_off(report.name)) {
        report.active = false;
        report.detail = "switched off for a test".to_owned();
    }
    reports
}

/// Whether there is a layer of that name.
pub fn is_known(name: &str) -> bool {
    names().any(|known| known == name)
}
