//! What is around the sandbox and was not put there by it: an outer sandbox, a user namespace, a filter, a limit.
//!
//! They are looked at once, at start, and reported beside the layers under names that can be required like theirs.

use std::fs;

use super::{LayerReport, check};

/// An outer layer, and what would bring it.
pub struct OuterKind {
    pub name: &'static str,
    stops: &'static str,
    remedy: &'static str,
}

const GVISOR: OuterKind = OuterKind {
    name: "gvisor",
    stops: "system calls of programs from reaching the host's kernel",
    remedy: "run the pod with runtimeClassName gvisor, or the service under runsc",
};
const OUTER_USER_NAMESPACE: OuterKind = OuterKind {
    name: "outer_user_namespace",
    stops: "the service's user from being that user on the host",
    remedy: "hostUsers: false in the pod, with a container runtime that honours it (containerd 2.0 or newer)",
};
const OUTER_SECCOMP: OuterKind = OuterKind {
    name: "outer_seccomp",
    stops: "system calls that the container runtime's profile lacks, of the service too",
    remedy: "seccompProfile: RuntimeDefault, or a Localhost profile",
};
const OUTER_NO_NEW_PRIVS: OuterKind = OuterKind {
    name: "outer_no_new_privs",
    stops: "the service from gaining rights by executing a set-uid program",
    remedy: "allowPrivilegeEscalation: false",
};
/// Name of the layer that is no wall, but room.
pub const MEMORY_HEADROOM: &str = "memory_headroom";
const HEADROOM: OuterKind = OuterKind {
    name: MEMORY_HEADROOM,
    stops: "the container's memory limit from being reached by programs within their own limits",
    remedy: "raise the container's memory limit, or lower the slots or the memory that each may have",
};

/// All outer layers.
pub const OUTER: &[OuterKind] = &[GVISOR, OUTER_USER_NAMESPACE, OUTER_SECCOMP, OUTER_NO_NEW_PRIVS, HEADROOM];

/// Share of the container's memory that programs may be promised together; the rest is for the service and its zygotes.
const PROMISED_PERCENT: u64 = 80;

/// What was read about this process.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    kernel_log: String,
    kernel_version: String,
    uid_map: String,
    status: String,
    /// Of the container, or else of the machine.
    pub memory_limit: Option<u64>,
    /// Memory that all programs together may come to.
    pub memory_promised: u64,
}

impl Surroundings {
    pub fn read(memory_limit: Option<u64>, memory_promised: u64) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Surroundings {
            kernel_log: kernel_log(),
            kernel_version: text("/proc/version"),
            uid_map: text("/proc/self/uid_map"),
            status: text("/proc/self/status"),
            memory_limit,
            memory_promised,
        }
    }

    /// One report for each of `OUTER`, in its order.
    pub fn report(&self) -> Vec<LayerReport> {
        OUTER.iter().map(|kind| self.look_for(kind)).collect()
    }

    fn look_for(&self, kind: &OuterKind) -> LayerReport {
        let (active, seen) = match kind.name {
            "gvisor" => (self.is_gvisor(), self.kernel_version.trim().to_owned()),
            "outer_user_namespace" => (!maps_all_users(&self.uid_map), format!("uid_map {}", spaced(&self.uid_map))),
            "outer_seccomp" => {
                let mode = self.status_value("Seccomp:");
                (mode == "2", format!("seccomp mode {mode} of the service"))
            }
            "outer_no_new_privs" => {
                let value = self.status_value("NoNewPrivs:");
                (value == "1", format!("NoNewPrivs {value} of the service"))
            }
            _ => self.headroom(),
        };
        let without = format!("; without it nothing stops {}", kind.stops);
        LayerReport {
            name: kind.name,
            active,
            errno: 0,
            detail: if active { format!("{seen}; stops {}", kind.stops) } else { seen + &without },
            remedy: kind.remedy,
        }
    }

    /// gVisor answers the kernel's log with its own, and gives one kernel version whatever runs below.
    fn is_gvisor(&self) -> bool {
        self.kernel_log.contains("Starting gVisor") || self.kernel_version.contains("SMP Sun Jan 10 15:06:54 PST 2016")
    }

    fn status_value(&self, key: &str) -> &str {
        self.status.lines().find_map(|line| line.strip_prefix(key)).map_or("unknown", str::trim)
    }

    fn headroom(&self) -> (bool, String) {
        let promised = self.memory_promised >> 20;
        match self.memory_limit {
            None => (false, format!("programs may come to {promised} MiB together, of an unknown limit")),
            Some(limit) => {
                let fits = self.memory_promised <= limit / 100 * PROMISED_PERCENT;
                let seen = format!(
                    "programs may come to {promised} MiB together, of a limit of {} MiB (at most {PROMISED_PERCENT} %)",
                    limit >> 20
                );
                (fits, seen)
            }
        }
    }
}

/// What `required` asks for and is not around us, each with the remedy.
pub fn missing(reports: &[LayerReport], required: &[String]) -> Vec<String> {
    let asked = reports.iter().filter(|report| !report.active && required.iter().any(|name| name == report.name));
    asked.map(|report| format!("layer {} is missing ({}): {}", report.name, report.detail, report.remedy)).collect()
}

fn spaced(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first user namespace maps every user to itself; containers with one of their own map some.
fn maps_all_users(uid_map: &str) -> bool {
    spaced(uid_map) == "0 0 4294967295"
}

/// What the kernel has logged, or nothing where that is kept from us.
fn kernel_log() -> String {
    const READ_ALL: libc::c_int = 3;
    let mut buffer = vec![0u8; 64 * 1024];
    // SAFETY: the kernel writes at most the buffer's length into it.
    let read =
        unsafe { check(libc::syscall(libc::SYS_syslog, READ_ALL, buffer.as_mut_ptr(), buffer.len() as libc::c_int)) };
    buffer.truncate(read.unwrap_or(0) as usize);
    String::from_utf8_lossy(&buffer).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(surroundings: &Surroundings) -> Vec<&'static str> {
        surroundings.report().iter().filter(|report| report.active).map(|report| report.name).collect()
    }

    fn plain() -> Surroundings {
        Surroundings {
            kernel_log: "[    0.000000] Linux version 6.18.44".to_owned(),
            kernel_version: "Linux version 6.18.44 (gcc 14)".to_owned(),
            uid_map: "         0          0 4294967295\n".to_owned(),
            status: "Name:\tpython\nNoNewPrivs:\t0\nSeccomp:\t0\n".to_owned(),
            memory_limit: Some(1000 << 20),
            memory_promised: 801 << 20,
        }
    }

    #[test]
    fn a_plain_machine_has_nothing_around_it() {
        assert_eq!(active(&plain()), Vec::<&str>::new());
        let report = &plain().report()[4];
        assert!(report.detail.contains("801 MiB") && report.detail.contains("1000 MiB"), "{}", report.detail);
    }

    #[test]
    fn a_restricted_pod_is_recognised() {
        let pod = Surroundings {
            uid_map: "0 100000 65536".to_owned(),
            status: "NoNewPrivs:\t1\nSeccomp:\t2\n".to_owned(),
            memory_promised: 800 << 20,
            ..plain()
        };
        let expected = ["outer_user_namespace", "outer_seccomp", "outer_no_new_privs", "memory_headroom"];
        assert_eq!(active(&pod), expected);
    }

    #[test]
    fn gvisor_is_recognised_by_its_log_or_its_version() {
        let log = "[    0.000000] Starting gVisor...\n[    0.4] Checking naughty and nice process list...".to_owned();
        assert_eq!(active(&Surroundings { kernel_log: log, ..plain() }), ["gvisor"]);
        let version = "Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016".to_owned();
        assert_eq!(active(&Surroundings { kernel_version: version, ..plain() }), ["gvisor"]);
    }

    #[test]
    fn what_is_required_and_missing_is_named_with_its_remedy() {
        let required = ["gvisor".to_owned(), "landlock".to_owned()];
        let [line] = &missing(&plain().report(), &required)[..] else { panic!("one line") };
        assert!(line.starts_with("layer gvisor is missing") && line.contains("runtimeClassName"), "{line}");
        assert!(missing(&plain().report(), &[]).is_empty());
    }

    #[test]
    fn this_machine_can_be_read() {
        let here = Surroundings::read(None, 0);
        assert_eq!(here.report().len(), OUTER.len());
    }
}
