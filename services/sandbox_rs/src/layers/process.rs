//! Processes: forking one that is a direct child of the supervisor, waiting for it, killing it, reading its CPU clock.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::check;

const PR_GET_TID_ADDRESS: libc::c_int = 40;

/// What `clone` returned, and where.
pub enum Side {
    Child,
    /// Number of the child in this process's namespace, and a descriptor for it.
    Parent(libc::pid_t, OwnedFd),
}

/// Forks a child that belongs to the caller's *parent*, which so gets its exit status and resource use first-hand.
///
/// `namespaces` are clone flags. The plain system call is used because `clone3` is missing in many pods. Everything that
/// the C library's fork does beyond it matters only with threads; the thread number that it keeps is renewed by the
/// kernel at the address that it registered.
///
/// # Safety
/// The caller must be single-threaded and must be prepared to go on twice.
pub unsafe fn clone_for_parent(namespaces: libc::c_int) -> io::Result<Side> {
    let mut descriptor: RawFd = -1;
    let mut thread_number: *mut libc::pid_t = std::ptr::null_mut();
    let mut flags = libc::CLONE_PARENT | libc::CLONE_PIDFD | namespaces;
    // SAFETY: the kernel writes one pointer; it is used only if it stands for this thread's number.
    unsafe {
        let known = libc::prctl(PR_GET_TID_ADDRESS, &mut thread_number) == 0
            && !thread_number.is_null()
            && *thread_number == libc::gettid();
        if known {
            flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        } else {
            thread_number = std::ptr::null_mut();
        }
    }
    // SAFETY: a null stack means a copy of the caller's; the pidfd is written to `descriptor` in the parent only.
    let child =
        unsafe { check(libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, &mut descriptor, thread_number, 0))? };
    if child == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(Side::Parent(child as libc::pid_t, unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    /// From the status of `waitpid`.
    pub fn from_status(status: libc::c_int) -> Exit {
        if libc::WIFSIGNALED(status) {
            Exit::Signal(libc::WTERMSIG(status))
        } else {
            Exit::Code(libc::WEXITSTATUS(status))
        }
    }
}

/// Exit, CPU time and peak memory of a process and of all descendants that it waited for.
#[derive(Clone, Copy, Debug)]
pub struct Reaped {
    pub exit: Exit,
    pub cpu: Duration,
    pub peak_memory_bytes: u64,
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000)
}

/// Takes the exit status of a child that has ended; `None` if it has not.
pub fn reap(process: BorrowedFd<'_>) -> io::Result<Option<Reaped>> {
    // SAFETY: all-zero siginfo and rusage are valid; the kernel fills both.
    unsafe {
        let mut about: libc::siginfo_t = mem::zeroed();
        let mut used: libc::rusage = mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
        check(libc::syscall(libc::SYS_waitid, libc::P_PIDFD, process.as_raw_fd(), &mut about, options, &mut used))?;
        if about.si_pid() == 0 {
            return Ok(None);
        }
        let exit = match about.si_code {
            libc::CLD_EXITED => Exit::Code(about.si_status()),
            _ => Exit::Signal(about.si_status()),
        };
        let cpu = duration(used.ru_utime) + duration(used.ru_stime);
        Ok(Some(Reaped { exit, cpu, peak_memory_bytes: used.ru_maxrss as u64 * 1024 }))
    }
}

/// Sends SIGKILL. A process that is gone already is no error.
pub fn kill(process: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers but the null siginfo.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, std::ptr::null::<u8>(), 0)
    };
    match check(sent) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// A descriptor that becomes readable when the process ends.
pub fn watch(process: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is ours.
    unsafe {
        let descriptor = check(libc::syscall(libc::SYS_pidfd_open, process, 0))?;
        Ok(OwnedFd::from_raw_fd(descriptor as RawFd))
    }
}

/// CPU time that one process, all its threads together, has used so far.
pub fn cpu_time(process: libc::pid_t) -> io::Result<Duration> {
    // The clock of a process, as `clock_getcpuclockid` builds its number: scheduler time of a whole group.
    let clock = (!process << 3) | 2;
    // SAFETY: the kernel fills one timespec.
    unsafe {
        let mut time: libc::timespec = mem::zeroed();
        check(libc::clock_gettime(clock, &mut time) as libc::c_long)?;
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}
