//! The last filter, put in force when the jail stands: it takes away what building the jail needed, and looks at the one
//! argument that a table of call numbers cannot.
//!
//! - `sendmsg` hands the listener to the supervisor, and passes descriptors. A script could fill its pipe with them: they
//!   keep other pipes open, and those under way count against every program of the same user.
//! - `seccomp` adds this filter.
//! - `mmap(MAP_SHARED | MAP_ANONYMOUS)` is memory that no limit counts: `RLIMIT_DATA` knows private memory only. What is
//!   shared through files of the work directory stays: their size is limited.
//! - `mmap(MAP_GROWSDOWN)` makes what counts as a stack, which `RLIMIT_DATA` leaves out as well.

use std::io;

use libc::{sock_filter, sock_fprog};

use super::{check, weakened};

/// Offsets in what a filter is given: the call's number, and the low half of its fourth argument.
const NUMBER: u32 = 0;
const FLAGS: u32 = 16 + 3 * 8;
const UNNAMED: u32 = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32;
const GROWING: u32 = libc::MAP_GROWSDOWN as u32;
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NO_MEMORY: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const ANY_OF: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

const fn step(code: u32, jump_if: u8, jump_else: u8, value: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: jump_if, jf: jump_else, k: value }
}

fn filter(messages_too: bool) -> Vec<sock_filter> {
    let mut filter = vec![step(LOAD, 0, 0, NUMBER)];
    let taken = [("seccomp:seccomp", libc::SYS_seccomp, true), ("seccomp:sendmsg", libc::SYS_sendmsg, messages_too)];
    for (name, call, wanted) in taken {
        if wanted && !weakened::is_off(name) {
            filter.extend([step(EQUAL, 0, 1, call as u32), step(RETURN, 0, 0, REFUSED)]);
        }
    }
    let mut mappings = Vec::new();
    if !weakened::is_off("growing_memory") {
        mappings.extend([step(ANY_OF, 0, 1, GROWING), step(RETURN, 0, 0, NO_MEMORY)]);
    }
    if !weakened::is_off("shared_memory") {
        mappings.extend([step(AND, 0, 0, UNNAMED), step(EQUAL, 0, 1, UNNAMED), step(RETURN, 0, 0, NO_MEMORY)]);
    }
    filter.extend([step(EQUAL, 0, 1 + mappings.len() as u8, libc::SYS_mmap as u32), step(LOAD, 0, 0, FLAGS)]);
    filter.extend(mappings);
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter
}

/// Puts the filter in force for the calling thread and its children; `sendmsg` stays where it is still needed.
/// `no_new_privs` must be in force.
pub fn seal(messages_too: bool) -> io::Result<()> {
    let filter = filter(messages_too);
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program and the filter that it points to outlive the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) }).map(drop)
}

/// Tries the layer: a shared mapping, one that grows, a message and a second filter must fail, a private mapping must not.
pub fn probe() -> io::Result<bool> {
    super::no_new_privs::apply()?;
    seal(true)?;
    let map = |kind| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice; it ends with this process.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, kind | libc::MAP_ANONYMOUS, -1, 0) };
        start != libc::MAP_FAILED
    };
    let refused = |result: io::Result<()>| result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
    // SAFETY: the descriptor is no socket and the message is null: without the filter this is another error.
    let sent = check(unsafe { libc::sendmsg(0, std::ptr::null(), 0) } as libc::c_long).map(drop);
    let mapped =
        map(libc::MAP_SHARED) || map(libc::MAP_SHARED_VALIDATE) || map(libc::MAP_PRIVATE | libc::MAP_GROWSDOWN);
    Ok(!mapped && map(libc::MAP_PRIVATE) && refused(sent) && refused(seal(true)))
}
