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

/// Where the C library keeps this thread's number, which the kernel renews in a forked copy. Null where the kernel does
/// not tell: the copy then keeps the number of its original, which matters to programs that signal their own threads only.
#[derive(Clone, Copy, Debug)]
pub struct ThreadNumber(*mut libc::pid_t);

// SAFETY: only the address is passed around; the kernel alone writes to it, in forked copies of the process.
unsafe impl Send for ThreadNumber {}
// SAFETY: as above.
unsafe impl Sync for ThreadNumber {}

impl ThreadNumber {
    /// Asks the kernel; must be called before `prctl` is forbidden.
    pub fn locate() -> Self {
        let mut address: *mut libc::pid_t = std::ptr::null_mut();
        // SAFETY: the kernel writes one pointer; it is read only if the kernel says that it is one, and used only if it
        // stands for this thread's number.
        unsafe {
            let known =
                libc::prctl(PR_GET_TID_ADDRESS, &mut address) == 0 && !address.is_null() && *address == libc::gettid();
            ThreadNumber(if known { address } else { std::ptr::null_mut() })
        }
    }
}

/// Flags of a fork for the caller's parent.
pub const FORK_FOR_PARENT: libc::c_int =
    libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
/// Flags of `start_sleeper`.
pub const SLEEP_FOR_PARENT: libc::c_int = libc::CLONE_VM | libc::CLONE_PARENT | libc::CLONE_PIDFD;

/// Forks a child that belongs to the caller's *parent*, which so gets its exit status and resource use first-hand.
///
/// `namespaces` are clone flags. The plain system call is used because `clone3` is missing in many pods. Everything that
/// the C library's fork does beyond it matters only with threads; the thread number that it keeps is renewed by the
/// kernel at the address that it registered.
///
/// # Safety
/// The caller must be single-threaded and must be prepared to go on twice.
pub unsafe fn clone_for_parent(namespaces: libc::c_int, thread_number: ThreadNumber) -> io::Result<Side> {
    let mut descriptor: RawFd = -1;
    let flags = FORK_FOR_PARENT | namespaces;
    // SAFETY: a null stack means a copy of the caller's; the pidfd is written to `descriptor` in the parent only.
    let child = unsafe {
        check(libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, &mut descriptor, thread_number.0, 0))?
    };
    if child == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(Side::Parent(child as libc::pid_t, unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Starts a process that only sleeps until it is killed or the supervisor dies: process 1 of the namespace into which the
/// caller forks. It shares the caller's memory, so it costs no copy of it, and touches none of it, not even the stack.
/// It belongs to the caller's parent.
pub fn start_sleeper() -> io::Result<OwnedFd> {
    let mut descriptor: RawFd = -1;
    let result: libc::c_long;
    // SAFETY: with every signal blocked no handler runs on the stack that both share, and the child's instructions use
    // registers only, for ever. In the caller the block is an ordinary system call.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&mut all);
        check(libc::sigprocmask(libc::SIG_SETMASK, &all, &mut before) as libc::c_long)?;
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 3f",
            "mov edi, {die_with_parent}",
            "mov esi, {kill}",
            "mov eax, {prctl}",
            "syscall",
            "2:",
            "mov eax, {pause}",
            "syscall",
            "jmp 2b",
            "3:",
            die_with_parent = const libc::PR_SET_PDEATHSIG,
            kill = const libc::SIGKILL,
            prctl = const libc::SYS_prctl,
            pause = const libc::SYS_pause,
            inlateout("rax") libc::SYS_clone => result,
            in("rdi") SLEEP_FOR_PARENT as libc::c_long,
            in("rsi") 0,
            in("rdx") &mut descriptor,
            in("r10") 0,
            in("r8") 0,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
        check(libc::sigprocmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) as libc::c_long)?;
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result as i32));
        }
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
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
    /// A SIGKILL came when its hard limit of CPU time was reached, which it may have lowered itself.
    pub at_cpu_limit: bool,
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000)
}

/// Number and exit of a child that has ended, and what it used; `None` if it has not ended. `options` are `waitid`'s.
fn wait(process: BorrowedFd<'_>, options: libc::c_int) -> io::Result<Option<(libc::pid_t, Exit, libc::rusage)>> {
    // SAFETY: all-zero siginfo and rusage are valid; the kernel fills both.
    unsafe {
        let mut about: libc::siginfo_t = mem::zeroed();
        let mut used: libc::rusage = mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::__WALL | options;
        check(libc::syscall(libc::SYS_waitid, libc::P_PIDFD, process.as_raw_fd(), &mut about, options, &mut used))?;
        let exit = match about.si_code {
            libc::CLD_EXITED => Exit::Code(about.si_status()),
            _ => Exit::Signal(about.si_status()),
        };
        Ok((about.si_pid() != 0).then_some((about.si_pid(), exit, used)))
    }
}

/// Takes the exit status of a child that has ended; `None` if it has not.
pub fn reap(process: BorrowedFd<'_>) -> io::Result<Option<Reaped>> {
    let Some((number, exit, used)) = wait(process, libc::WNOWAIT)? else { return Ok(None) };
    // Asked before it is gone.
    let at_cpu_limit = exit == Exit::Signal(libc::SIGKILL) && is_at_cpu_limit(number)?;
    wait(process, 0)?;
    let cpu = duration(used.ru_utime) + duration(used.ru_stime);
    Ok(Some(Reaped { exit, cpu, peak_memory_bytes: used.ru_maxrss as u64 * 1024, at_cpu_limit }))
}

/// Whether a process that nobody has waited for yet has used the CPU time of its hard limit. Read off the very clock that
/// the kernel compares with the limit: what `rusage` says differs from it by a tenth of a second.
pub fn is_at_cpu_limit(process: libc::pid_t) -> io::Result<bool> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills one rlimit and takes none.
    check(unsafe { libc::prlimit(process, libc::RLIMIT_CPU, std::ptr::null(), &mut limit) } as libc::c_long)?;
    Ok(clock(process, CLOCK_OF_LIMITS)? >= Duration::from_secs(limit.rlim_max))
}

/// Takes what has ended of the children in a process group; the number of one that is left to somebody else is `but`. False
/// when none of the others is in it any more.
pub fn reap_group(group: libc::pid_t, but: Option<libc::pid_t>) -> io::Result<bool> {
    loop {
        // SAFETY: an all-zero siginfo is valid; the kernel fills it. No pointers besides.
        unsafe {
            let mut about: libc::siginfo_t = mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
            match check(libc::waitid(libc::P_PGID, group as libc::id_t, &mut about, options) as libc::c_long) {
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(false),
                other => other?,
            };
            match about.si_pid() {
                0 => return Ok(true),
                ended if Some(ended) == but => return Ok(false),
                ended => check(libc::waitpid(ended, std::ptr::null_mut(), libc::__WALL) as libc::c_long)?,
            };
        }
    }
}

/// Sends SIGKILL to a process group. One that is gone already is no error, but its number must not be another's yet: its
/// leader has not been waited for, or only just now.
pub fn kill_group(group: libc::pid_t) -> io::Result<()> {
    // SAFETY: no pointers.
    match check(unsafe { libc::kill(-group, libc::SIGKILL) } as libc::c_long) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
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

/// Whether `process` stands for a child of this process, whatever whoever handed it over says.
pub fn is_child(process: BorrowedFd<'_>) -> bool {
    // SAFETY: an all-zero siginfo is valid; the kernel fills it. The child is left to be waited for.
    unsafe {
        let mut about: libc::siginfo_t = mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let null = std::ptr::null::<libc::rusage>();
        libc::syscall(libc::SYS_waitid, libc::P_PIDFD, process.as_raw_fd(), &mut about, options, null) == 0
    }
}

/// The number of the process behind a descriptor, from the kernel; `None` if it is gone.
pub fn number(process: BorrowedFd<'_>) -> Option<libc::pid_t> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd())).ok()?;
    let number = about.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (number > 0).then_some(number)
}

/// Ends and reaps a child for which there is no descriptor. Blocks until it is gone.
pub fn end_unwatched(child: libc::pid_t) {
    // SAFETY: no pointers but the null status. The number of a child that nobody has waited for is not given away.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), libc::__WALL);
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

/// Which clock of a process: the ticks that it was found running at, and the scheduler's exact time.
const CLOCK_OF_LIMITS: libc::clockid_t = 0;
const CLOCK_OF_SCHEDULER: libc::clockid_t = 2;

/// CPU time that one process, all its threads together, has used so far.
pub fn cpu_time(process: libc::pid_t) -> io::Result<Duration> {
    clock(process, CLOCK_OF_SCHEDULER)
}

fn clock(process: libc::pid_t, which: libc::clockid_t) -> io::Result<Duration> {
    // The clock of a whole group, as `clock_getcpuclockid` builds its number.
    let clock = (!process << 3) | which;
    // SAFETY: the kernel fills one timespec.
    unsafe {
        let mut time: libc::timespec = mem::zeroed();
        check(libc::clock_gettime(clock, &mut time) as libc::c_long)?;
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    /// A shell that computes for ever, under limits of its own.
    fn busy(limits: &str) -> (Child, OwnedFd) {
        let child = Command::new("sh").args(["-c", &format!("{limits} while :; do :; done")]).spawn().unwrap();
        let process = watch(child.id() as libc::pid_t).unwrap();
        (child, process)
    }

    fn wait_for(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_process_that_reaches_a_limit_of_its_own_has_ended_there() {
        let (_shell, process) = busy("ulimit -t 1;");
        wait_for(|| wait(process.as_fd(), libc::WNOWAIT).unwrap().is_some());
        let reaped = reap(process.as_fd()).unwrap().unwrap();
        assert_eq!((reaped.exit, reaped.at_cpu_limit), (Exit::Signal(libc::SIGKILL), true));
    }

    #[test]
    fn a_process_that_is_killed_at_a_whole_second_has_not_ended_at_its_limit() {
        for limits in ["", "ulimit -t 2;"] {
            let (shell, process) = busy(limits);
            wait_for(|| cpu_time(shell.id() as libc::pid_t).unwrap() >= Duration::from_secs(1));
            kill(process.as_fd()).unwrap();
            wait_for(|| wait(process.as_fd(), libc::WNOWAIT).unwrap().is_some());
            let reaped = reap(process.as_fd()).unwrap().unwrap();
            assert_eq!((reaped.exit, reaped.at_cpu_limit), (Exit::Signal(libc::SIGKILL), false), "{limits}");
        }
    }
}
