//! `no_new_privs`: no program that is executed gains rights (set-uid bits, file capabilities). Needed by seccomp and
//! Landlock, kept across fork and exec. With it come the two other one-way switches of `prctl`: not dumpable (siblings
//! of the same user cannot read memory or attach) and a signal when the parent dies.

use std::io;

use super::{check, weakened};

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: the options used here take plain numbers.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) } as libc::c_long).map(|value| value as libc::c_int)
}

pub fn apply() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// No other process of this user may read this one's memory or attach to it.
pub fn forbid_inspection() -> io::Result<()> {
    if weakened::is_off("inspection") {
        return Ok(());
    }
    prctl(libc::PR_SET_DUMPABLE, 0).map(drop)
}

/// SIGKILL when the thread that is this process's parent ends.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).map(drop)
}

/// Orphans among the descendants become this process's children.
pub fn adopt_orphans() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

pub fn probe() -> io::Result<bool> {
    apply()?;
    Ok(prctl(libc::PR_GET_NO_NEW_PRIVS, 0)? == 1)
}
