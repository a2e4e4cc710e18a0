//! Capabilities: the program keeps none, whatever the service itself was given.

use std::io;

use super::{check, weakened};

const VERSION_3: u32 = 0x2008_0522;
const LAST_CAPABILITY: libc::c_ulong = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Empties the bounding set, as far as permitted. A zygote does it once: what is forked from it has the same.
pub fn forbid_regaining() {
    if weakened::is_off("capabilities") {
        return;
    }
    for capability in 0..=LAST_CAPABILITY {
        // SAFETY: prctl with numbers. EINVAL ends the list of this kernel; EPERM (no CAP_SETPCAP) leaves the bounding
        // set, which no_new_privs makes ineffective.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            break;
        }
    }
}

/// Empties the three other sets. After it, `no_new_privs` keeps them empty.
pub fn drop_all() -> io::Result<()> {
    if weakened::is_off("capabilities") {
        return Ok(());
    }
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [Sets::default(); 2];
    // SAFETY: version 3 takes two data structures; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, none.as_ptr()) }).map(drop)
}

pub fn probe() -> io::Result<bool> {
    forbid_regaining();
    drop_all()?;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets { effective: 1, permitted: 1, inheritable: 1 }; 2];
    // SAFETY: as in `drop_all`, the kernel writes two data structures.
    check(unsafe { libc::syscall(libc::SYS_capget, &mut header, sets.as_mut_ptr()) })?;
    Ok(sets.iter().all(|set| set.effective == 0 && set.permitted == 0))
}
