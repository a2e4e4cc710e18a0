//! Limits that the kernel keeps for one process (`setrlimit`). They are lowered in soft and hard value, so that the
//! process cannot raise them again.
//!
//! They bound one process; what bounds a tree is the supervisor (CPU time) and the seccomp listener (processes).

use std::io;

use serde::{Deserialize, Serialize};

use super::{check, weakened};

/// Limits of one process, in the units of the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Backstop of the supervisor's own, finer clock.
    pub cpu_seconds: u64,
    /// Private writable memory.
    pub data_bytes: u64,
    /// Address space; bounds what `data_bytes` does not count, such as shared mappings.
    pub address_bytes: u64,
    pub file_bytes: u64,
    pub open_files: u64,
}

impl ProcessLimits {
    /// Puts the limits in force for the calling process and its children; all but that of open files.
    pub fn apply(&self) -> io::Result<()> {
        let table = [
            ("rlimit:cpu", libc::RLIMIT_CPU, self.cpu_seconds),
            ("rlimit:data", libc::RLIMIT_DATA, self.data_bytes),
            ("rlimit:address", libc::RLIMIT_AS, self.address_bytes),
            ("rlimit:file", libc::RLIMIT_FSIZE, self.file_bytes),
            ("rlimit:core", libc::RLIMIT_CORE, 0),
            ("rlimit:locked", libc::RLIMIT_MEMLOCK, 0),
            ("rlimit:queues", libc::RLIMIT_MSGQUEUE, 0),
        ];
        for (name, resource, value) in table {
            if !weakened::is_off("rlimits") && !weakened::is_off(name) {
                lower(resource, value)?;
            }
        }
        Ok(())
    }
}

/// By the system call that is permitted: the C library would use one that a jailed program must ask for.
fn lower(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    if weakened::is_off("rlimit:hard") {
        // SAFETY: the kernel fills the structure, of which only the hard value is kept.
        check(unsafe { libc::syscall(libc::SYS_getrlimit, resource, &mut limit) })?;
        limit.rlim_cur = value;
    }
    // SAFETY: `limit` is a valid rlimit for the length of the call.
    check(unsafe { libc::syscall(libc::SYS_setrlimit, resource, &limit) }).map(drop)
}

/// The limit of CPU time alone, for a case.
pub fn limit_cpu(seconds: u64) -> io::Result<()> {
    lower(libc::RLIMIT_CPU, seconds)
}

/// The limit of open files. It also bounds how many descriptors all processes of the user may have under way in sockets
/// when this one sends one: in force before the report, another's would keep the jail from being reported.
pub fn limit_open_files(count: u64) -> io::Result<()> {
    if weakened::is_off("rlimit:open_files") {
        return Ok(());
    }
    lower(libc::RLIMIT_NOFILE, count)
}

/// Tries the layer: with two open files allowed, a third must be refused.
pub fn probe() -> io::Result<bool> {
    ProcessLimits { cpu_seconds: 5, data_bytes: 1 << 30, address_bytes: 4 << 30, file_bytes: 0, open_files: 2 }
        .apply()?;
    limit_open_files(2)?;
    // SAFETY: dup without pointers.
    Ok(unsafe { libc::dup(0) } < 0)
}
