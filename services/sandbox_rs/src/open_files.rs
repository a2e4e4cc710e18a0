//! This process's own limit of open files. A script takes six, so that what a shell or a container begins with (1,024) is soon
//! used up; the hard limit is what its operator allows. Programs in the sandbox have limits of their own.

use std::io;

/// Of each slot.
pub const OF_A_SLOT: u64 = 6;
/// More would only make tables in the kernel larger.
const MOST: libc::rlim_t = 1 << 20;

/// Raises the soft limit to the hard one; the limit that is then in force.
pub fn raise() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(MOST));
    // SAFETY: the structure is valid for the length of the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}
