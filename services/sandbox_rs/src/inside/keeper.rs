//! The keeper of a tree of processes: parent of one program and reaper of all its descendants.
//!
//! In a process namespace it is process 1; elsewhere it adopts orphans. It waits for every descendant, so that the
//! kernel adds their CPU time to its own account, which the supervisor reads when the keeper ends. It ends when the
//! program has, or when the supervisor says so or is gone; either way it kills what is left first. It runs none of the
//! program's code and holds no descriptor of it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::wire::Report;
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
    let status = watch(program, &report).unwrap_or(None);
    end_all(program);
    if let Some(status) = status {
        let packet = serde_json::to_vec(&Report::Ended(status)).unwrap_or_default();
        // A supervisor that is gone needs no answer.
        let _ = descriptors::send(report.as_fd(), &packet, &[]);
    }
    // SAFETY: ends this process; nothing of it needs cleaning up.
    unsafe { libc::_exit(0) }
}

/// Waits until the program has ended (its status) or the supervisor wants it to (`None`).
fn watch(program: libc::pid_t, report: &OwnedFd) -> io::Result<Option<libc::c_int>> {
    let signals = child_signals()?;
    loop {
        if let Some(status) = reap(program) {
            return Ok(Some(status));
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

/// Reaps whatever has ended; returns the program's status if it is among it.
fn reap(program: libc::pid_t) -> Option<libc::c_int> {
    let mut found = None;
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int.
        let child = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        match child {
            child if child == program => found = Some(status),
            child if child > 0 => {}
            _ => return found,
        }
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
