//! The process of a solution: it compiles the source, then forks one process per case and never runs any of it.
//!
//! It is jailed before it reads the source. In profile `full` it stays outside the process namespace of its cases, which
//! so cannot name it. A case differs from it by its descriptors, its CPU limit and its process namespace only; that it
//! cannot fork cases itself is the supervisor's doing, which grants each fork to the process of the solution alone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use super::wire::{At, BATCH, CASE, Failure, FromSolution};
use super::zygote::{NOT_JAILED, PyOS_AfterFork_Child, PyOS_AfterFork_Parent, PyOS_BeforeFork};
use crate::layers::process::{Side, ThreadNumber, clone_for_parent, start_sleeper};
use crate::layers::rlimits::{limit_cpu, limit_open_files};
use crate::layers::{Profile, check, descriptors, no_new_privs};

/// Descriptor of the supervisor's socket, after the source.
pub const CONTROL: RawFd = 4;

/// Where a case has what it gets besides its streams, at most two descriptors.
const FIRST_OF_CASE: RawFd = 3;
const MOST_OF_CASE: RawFd = 2;

/// What a process needs to know to fork cases.
pub struct Session {
    pub profile: Profile,
    pub thread_number: ThreadNumber,
    pub case_cpu_seconds: u64,
    pub case_open_files: u64,
}

static SESSION: OnceLock<Session> = OnceLock::new();

/// Makes this process one of a solution.
pub fn begin(session: Session) {
    // A process begins once.
    let _ = SESSION.set(session);
}

/// Returns in the process of each case, never in that of the solution, which ends here: whether it is for all cases. The
/// caller holds the GIL. Where there is but one case, the process of the solution is that of the case.
pub fn next_case() -> bool {
    let Some(session) = SESSION.get() else {
        become_only_case();
        return false;
    };
    // SAFETY: the jail put the socket there; it is closed by the case only, after its last use.
    let control = unsafe { BorrowedFd::borrow_raw(CONTROL) };
    match serve(session, control) {
        Ok(batch) => batch,
        Err(failure) => {
            let _ = say(control, &FromSolution::Failed(failure), &[]);
            // SAFETY: nothing of this process is worth keeping.
            unsafe { libc::_exit(NOT_JAILED) }
        }
    }
}

fn serve(session: &Session, control: BorrowedFd<'_>) -> Result<bool, Failure> {
    let sleeper = match session.profile {
        Profile::Full => vec![start_sleeper().at("process namespace")?],
        Profile::Pod => Vec::new(),
    };
    say(control, &FromSolution::Compiled, &sleeper).at("answer")?;
    drop(sleeper);
    let mut buffer = [0; 64];
    loop {
        let (count, attached) = descriptors::receive(control, &mut buffer).at("request")?;
        if count == 0 {
            // SAFETY: the supervisor has gone or wants no more; nothing of this process is worth keeping.
            unsafe { libc::_exit(0) }
        }
        let batch = match &buffer[..count] {
            CASE => false,
            BATCH => true,
            _ => return Err(Failure::new("request", &io::Error::other("an unknown request"))),
        };
        // SAFETY: one thread: nothing but the compiler has run here. The GIL is held.
        let side = unsafe {
            PyOS_BeforeFork();
            let side = clone_for_parent(0, session.thread_number);
            match side {
                Ok(Side::Child) => {}
                _ => PyOS_AfterFork_Parent(),
            }
            side.at("clone")?
        };
        match side {
            Side::Parent(_, descriptor) => {
                drop(attached);
                say(control, &FromSolution::Forked, &[descriptor]).at("answer")?;
            }
            Side::Child => {
                become_case(session, control, attached)?;
                // SAFETY: forked while the GIL was held, after PyOS_BeforeFork.
                unsafe { PyOS_AfterFork_Child() };
                return Ok(batch);
            }
        }
    }
}

fn say(control: BorrowedFd<'_>, said: &FromSolution, attached: &[OwnedFd]) -> io::Result<()> {
    let attached: Vec<RawFd> = attached.iter().map(AsRawFd::as_raw_fd).collect();
    descriptors::send(control.as_fd(), &serde_json::to_vec(said)?, &attached)
}

/// What a case has besides its streams was put after the source; it moves to where it is looked for.
fn become_only_case() {
    for number in FIRST_OF_CASE..FIRST_OF_CASE + MOST_OF_CASE {
        // SAFETY: no pointers. Where nothing is, nothing moves, and whoever looks for it fails.
        unsafe {
            libc::dup2(number + 1, number);
            libc::close(number + 1);
        }
    }
}

/// Everything else that jails a case came with the fork.
fn become_case(session: &Session, control: BorrowedFd<'_>, attached: Vec<OwnedFd>) -> Result<(), Failure> {
    no_new_privs::die_with_parent().at("parent death signal")?;
    // No signal comes of a parent that died before.
    if descriptors::is_deserted(control).at("parent")? {
        return Err(Failure::new("parent", &io::Error::from_raw_os_error(libc::EPIPE)));
    }
    limit_cpu(session.case_cpu_seconds).at("rlimits")?;
    limit_open_files(session.case_open_files).at("rlimits")?;
    // The control socket is replaced or closed here, so that nothing can be reported any more.
    let count = attached.len() as RawFd;
    let owners: Vec<RawFd> = attached.into_iter().map(std::os::fd::IntoRawFd::into_raw_fd).collect();
    for (number, descriptor) in owners.into_iter().enumerate() {
        // SAFETY: received descriptors have numbers above those of the solution, which are 0 to CONTROL, so that none is
        // overwritten before it is copied.
        check(unsafe { libc::dup2(descriptor, number as RawFd) } as libc::c_long).at("descriptors")?;
    }
    descriptors::close_from(count).at("descriptors")
}
