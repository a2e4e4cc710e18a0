//! The table of processes, `/proc`: a program's processes and threads are counted there, and the CPU time of a script's
//! tree. Programs may not be inspected, and some machines hide such processes even from their own user.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use super::{check, descriptors, no_new_privs};

/// Looks at a child that may not be inspected.
pub fn probe() -> io::Result<bool> {
    let (said, say) = descriptors::pipe()?;
    let mut byte = 0u8;
    // SAFETY: the caller is single-threaded; the child makes a few system calls, then waits to be killed. One byte is
    // written to and read from a place that outlives the calls.
    unsafe {
        let child = check(libc::fork() as libc::c_long)? as libc::pid_t;
        if child == 0 {
            if no_new_privs::forbid_inspection().is_ok() {
                libc::write(say.as_raw_fd(), (&raw const byte).cast(), 1);
            }
            libc::pause();
            libc::_exit(0);
        }
        drop(say);
        let ready = libc::read(said.as_raw_fd(), (&raw mut byte).cast(), 1) == 1;
        let seen = fs::read_to_string(format!("/proc/{child}/task/{child}/children"))
            .and_then(|_| fs::read_to_string(format!("/proc/{child}/status")));
        libc::kill(child, libc::SIGKILL);
        check(libc::waitpid(child, std::ptr::null_mut(), 0) as libc::c_long)?;
        Ok(ready && seen?.contains("NStgid:"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_child_that_may_not_be_inspected_is_seen_here() {
        assert!(super::probe().unwrap());
    }
}
