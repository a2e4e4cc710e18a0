//! The keeper of a tree of processes: parent of one program and reaper of all its descendants.
//!
//! In a process namespace it is process 1; elsewhere it adopts orphans. It waits for every descendant, so that the
//! kernel adds their CPU time to its own account, which the supervisor reads when the keeper ends. It ends when the
//! program has, or when the supervisor says so or is gone; either way it kills what is left first. It runs none of the
//! program's code and holds no descriptor of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::wire::Report;
use crate::layers::process::is_at_cpu_limit;
use crate::layers::{check, descriptors, weakened};

/// A descriptor that is readable when a child has ended.
fn child_signals() -> io::Result<RawFd> {
    // SAFETY: the set is initialised before use; signalfd makes a new descriptor, kept until this process ends.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) as libc::c_long)?;
        check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) as libc::c_long).map(|fd| fd as RawFd)
    }
}

/// Keeps `program` until its end and never returns.
pub fn keep(program: libc::pid_t, report: OwnedFd) -> ! {
    let ended = watch(program, &report).unwrap_or(None);
    end_all(program);
    if let Some(ended) = ended {
        let packet = serde_json::to_vec(&ended).unwrap_or_default();
        // A supervisor that is gone needs no answer.
        let _ = descriptors::send(report.as_fd(), &packet, &[]);
    }
    // SAFETY: ends this process; nothing of it needs cleaning up.
    unsafe { libc::_exit(0) }
}

/// Waits until the program has ended (what is to be said of it) or the supervisor wants it to (`None`).
fn watch(program: libc::pid_t, report: &OwnedFd) -> io::Result<Option<Report>> {
    let signals = child_signals()?;
    loop {
        if let Some(ended) = reap(program) {
            return Ok(Some(ended));
        }
        let mut watched = [
            libc::pollfd { fd: signals, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: report.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: both entries are valid for the call. EINTR and spurious wake-ups lead back to `reap`.
        unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) };
        if watched[1].revents != 0 {
            return Ok(None);
        }
        let mut drained = [0u8; 128];
        // SAFETY: the buffer holds one signalfd_siginfo of 128 bytes; the descriptor does not block.
        unsafe { libc::read(signals, drained.as_mut_ptr().cast(), drained.len()) };
    }
}

/// Reaps whatever has ended; says so of the program if it is among it.
fn reap(program: libc::pid_t) -> Option<Report> {
    let mut found = None;
    while let Some(child) = next_ended() {
        // Asked before it is gone. Where the kernel did not tell, the end would be somebody's outside.
        let at_cpu_limit = child == program && is_at_cpu_limit(child).unwrap_or(false);
        let mut status = 0;
        // SAFETY: the kernel writes one int.
        unsafe { libc::waitpid(child, &mut status, libc::__WALL) };
        if child == program {
            found = Some(Report::Ended { status, at_cpu_limit });
        }
    }
    found
}

/// A child that has ended and was not waited for.
fn next_ended() -> Option<libc::pid_t> {
    // SAFETY: an all-zero siginfo is valid; the kernel fills it.
    unsafe {
        let mut about: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let asked = libc::waitid(libc::P_ALL, 0, &mut about, options);
        (asked == 0 && about.si_pid() != 0).then(|| about.si_pid())
    }
}

/// Kills the program's session and waits until no descendant is left.
fn end_all(program: libc::pid_t) {
    loop {
        // The program made a session of its own before any of its code ran, and seccomp keeps everything in it.
        // SAFETY: no pointers; a group that is empty already is no error.
        unsafe {
            if !weakened::is_off("keeper") {
                libc::kill(-program, libc::SIGKILL);
            }
            libc::kill(program, libc::SIGKILL);
        }
        let mut status = 0;
        // SAFETY: the kernel writes one int.
        if unsafe { libc::waitpid(-1, &mut status, libc::__WALL) } < 0 {
            return;
        }
    }
}
