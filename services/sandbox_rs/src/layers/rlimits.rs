//! Limits that the kernel keeps for one process (`setrlimit`). They are lowered in soft and hard value, so that the
//! process cannot raise them again.
//!
//! They bound one process; what bounds a tree is the supervisor (CPU time) and the seccomp listener (processes).

use std::io;

use serde::{Deserialize, Serialize};

use super::check;

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
    /// Puts the limits in force for the calling process and its children.
    pub fn apply(&self) -> io::Result<()> {
        let table = [
            (libc::RLIMIT_CPU, self.cpu_seconds),
            (libc::RLIMIT_DATA, self.data_bytes),
            (libc::RLIMIT_AS, self.address_bytes),
            (libc::RLIMIT_FSIZE, self.file_bytes),
            (libc::RLIMIT_NOFILE, self.open_files),
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_MEMLOCK, 0),
            (libc::RLIMIT_MSGQUEUE, 0),
        ];
        for (resource, value) in table {
            let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
            // SAFETY: `limit` is a valid rlimit for the length of the call.
            check(unsafe { libc::setrlimit(resource, &limit) } as libc::c_long)?;
        }
        Ok(())
    }
}

/// Tries the layer: with two open files allowed, a third must be refused.
pub fn probe() -> io::Result<bool> {
    ProcessLimits { cpu_seconds: 5, data_bytes: 1 << 30, address_bytes: 4 << 30, file_bytes: 0, open_files: 2 }
        .apply()?;
    // SAFETY: dup without pointers.
    Ok(unsafe { libc::dup(0) } < 0)
}
