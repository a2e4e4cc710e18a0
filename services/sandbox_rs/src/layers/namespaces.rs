//! Namespaces: a user of its own, no network, no shared IPC, own mounts, own process numbers.
//!
//! A zygote enters all but the process namespace once; the programs forked from it inherit them, and each gets a
//! process namespace of its own with the fork. The process of a solution stays outside the namespace of its cases.

use std::fs;
use std::io;

use super::{check, weakened};

/// What a zygote enters.
pub const OF_A_ZYGOTE: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Namespaces by their name in the table of layers.
const NAMES: [(&str, libc::c_int); 4] = [
    ("user_namespace", libc::CLONE_NEWUSER),
    ("pid_namespace", libc::CLONE_NEWPID),
    ("network_namespace", libc::CLONE_NEWNET),
    ("ipc_namespace", libc::CLONE_NEWIPC),
];

/// `flags` without those that a test has switched off.
pub fn wanted(flags: libc::c_int) -> libc::c_int {
    NAMES.iter().filter(|(name, _)| weakened::is_off(name)).fold(flags, |kept, (_, flag)| kept & !flag)
}

/// The user and group that programs are, inside.
const INSIDE_ID: u32 = 1000;

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) } as libc::c_long).map(drop)
}

/// Enters the namespaces of a zygote and maps this process's user to an ordinary one. The caller must be
/// single-threaded and dumpable.
pub fn enter() -> io::Result<()> {
    // SAFETY: both take nothing and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    unshare(wanted(OF_A_ZYGOTE))?;
    if weakened::is_off("user_namespace") {
        return Ok(());
    }
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{INSIDE_ID} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{INSIDE_ID} {group} 1"))
}

/// From now on the calling process forks into a process namespace of its own; the first process there is its process 1.
pub fn fork_into_own() -> io::Result<()> {
    unshare(wanted(libc::CLONE_NEWPID))
}

/// Tries one namespace, inside a new user namespace as a zygote would.
pub fn probe(flag: libc::c_int) -> io::Result<bool> {
    unshare(libc::CLONE_NEWUSER)?;
    if flag != libc::CLONE_NEWUSER {
        unshare(flag)?;
    }
    if flag == libc::CLONE_NEWPID {
        // SAFETY: the caller is single-threaded; the child only asks for its number and leaves.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(if libc::getpid() == 1 { 0 } else { 1 });
            }
            let mut status = 0;
            check(libc::waitpid(child, &mut status, 0) as libc::c_long)?;
            return Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
        }
    }
    if flag == libc::CLONE_NEWNET {
        // A new network has nothing but a loopback that is down.
        let interfaces = fs::read_to_string("/proc/self/net/dev")?;
        return Ok(interfaces.lines().skip(2).all(|line| line.trim_start().starts_with("lo:")));
    }
    Ok(true)
}
