//! Answers the system calls that a program must ask for: new processes and threads within their limits, sockets only
//! between the program's own threads, limits only of its own. Anything else ends the program, with the call's name.
//!
//! Only arguments in registers are looked at; memory that the program could change meanwhile never is.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::program::Switch;
use super::tree;
use crate::layers::seccomp::{self, Question};
use crate::layers::{system_calls, weakened};
use crate::readiness::registered;
use crate::verdict::Reason;

/// Threads of one process at once.
const MOST_THREADS: usize = 160;
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_PARENT) as u64;

/// Of the flags of `clone`: what the end of the child sends to its parent.
const END_SIGNAL: u64 = 0xff;

fn signal(number: u64) -> Decision {
    if number as i32 == libc::SIGKILL { Decision::Kill } else { Decision::Go }
}

/// What is to happen with a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Go,
    /// Sends a SIGKILL, of which the program itself may end.
    Kill,
    Refuse(i32),
    End(Reason),
}

/// The listener of one program.
pub struct Doorkeeper {
    listener: AsyncFd<OwnedFd>,
    /// The program's first process, or its keeper.
    root: i32,
    /// Processes at once, the program's own included.
    processes: u32,
    children: bool,
    seen: HashSet<i32>,
    /// Threads whose fork was granted and whose child has not been seen yet.
    granted: HashSet<i32>,
}

impl Doorkeeper {
    pub fn new(listener: OwnedFd, root: i32, processes: u32, children: bool) -> std::io::Result<Self> {
        let listener = registered(listener)?;
        Ok(Doorkeeper { listener, root, processes, children, seen: HashSet::new(), granted: HashSet::new() })
    }

    /// Answers questions until the listener closes, which it does with the last process under its filter.
    pub async fn serve(mut self, switch: Switch) -> std::io::Result<()> {
        loop {
            let mut ready = self.listener.readable().await?;
            if ready.ready().is_read_closed() || ready.ready().is_error() {
                return Ok(());
            }
            // The ioctl blocks while there is no question, so readiness is given up before it and re-armed by the next
            // question's edge; poll once more says whether there is one.
            ready.clear_ready();
            drop(ready);
            while has_question(&self.listener)? {
                // A question withdrawn just now would make this wait; other tasks must not wait with it.
                let taken = tokio::task::block_in_place(|| seccomp::take_question(self.listener.get_ref().as_fd()));
                let Some(question) = taken? else { continue };
                match self.decide(&question) {
                    Decision::Go => seccomp::answer(self.listener.get_ref().as_fd(), question.id, Ok(()))?,
                    Decision::Kill => {
                        switch.note_own_kill();
                        seccomp::answer(self.listener.get_ref().as_fd(), question.id, Ok(()))?;
                    }
                    Decision::Refuse(errno) => {
                        seccomp::answer(self.listener.get_ref().as_fd(), question.id, Err(errno))?;
                    }
                    Decision::End(reason) => {
                        // The call is never answered: its thread sleeps until it is killed.
                        switch.end(reason);
                    }
                }
            }
        }
    }

    fn decide(&mut self, question: &Question) -> Decision {
        decide_alone(question, self.children).unwrap_or_else(|| self.decide_fork(question.thread))
    }

    fn decide_fork(&mut self, thread: i32) -> Decision {
        if weakened::is_off("supervisor:processes") {
            return Decision::Go;
        }
        let limit = self.processes as usize;
        if self.children && limit > 1 {
            let living: HashSet<i32> = tree::descendants(self.root).into_iter().collect();
            // A thread that asks again, or is gone, has made its child: which lives and is counted, or has ended.
            self.granted.remove(&thread);
            self.granted.retain(|granted| tree::threads(*granted) > 0);
            for _ in living.difference(&self.seen) {
                let Some(&arrived) = self.granted.iter().next() else { break };
                self.granted.remove(&arrived);
            }
            let free = living.len() + self.granted.len() < limit;
            self.seen = living;
            if free {
                self.granted.insert(thread);
                return Decision::Go;
            }
        }
        Decision::End(Reason::Processes(self.processes))
    }
}

/// Decides what does not depend on the number of processes; `None` where a process is asked for.
fn decide_alone(question: &Question, children: bool) -> Option<Decision> {
    let [first, second, third, ..] = question.arguments;
    let violation = || Decision::End(Reason::Violation(system_calls::name(question.number)));
    Some(match i64::from(question.number) {
        libc::SYS_clone if first & NEW_NAMESPACES != 0 => violation(),
        // A child whose end sends its parent another signal than the usual one.
        libc::SYS_clone if ![0, libc::SIGCHLD as u64].contains(&(first & END_SIGNAL)) => violation(),
        // What cannot be counted is not granted. A thread that is gone needs no answer.
        libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork if tree::threads(question.thread) == 0 => {
            Decision::Refuse(libc::EAGAIN)
        }
        libc::SYS_clone if first & libc::CLONE_THREAD as u64 != 0 => {
            if tree::threads(question.thread) < MOST_THREADS || weakened::is_off("supervisor:threads") {
                Decision::Go
            } else {
                Decision::Refuse(libc::EAGAIN)
            }
        }
        libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork => return None,
        libc::SYS_kill | libc::SYS_tkill | libc::SYS_rt_sigqueueinfo | libc::SYS_pidfd_send_signal => signal(second),
        libc::SYS_tgkill => signal(third),
        libc::SYS_prlimit64 if first == 0 || weakened::is_off("supervisor:prlimit") => Decision::Go,
        libc::SYS_prlimit64 => Decision::Refuse(libc::EPERM),
        libc::SYS_socketpair
            if children && first == libc::AF_UNIX as u64 && second & 0xf == libc::SOCK_STREAM as u64 =>
        {
            Decision::Go
        }
        libc::SYS_socket if first == libc::AF_UNIX as u64 && weakened::is_off("supervisor:unix_sockets") => {
            Decision::Go
        }
        // The C library asks local daemons (names, logs) in passing and does without them.
        libc::SYS_socket if first == libc::AF_UNIX as u64 => Decision::Refuse(libc::EACCES),
        libc::SYS_ioctl if children && second == libc::FIONBIO => Decision::Go,
        libc::SYS_ioctl => Decision::Refuse(libc::ENOTTY),
        // Without an address it is a plain write to a connected socket of the program's own.
        libc::SYS_sendto if children && question.arguments[4] == 0 => Decision::Go,
        _ => violation(),
    })
}

/// Decides for a solution and its cases. `granted` holds the flags of a fork that the solution's own process, and nobody
/// else, may make now; it is taken by that fork.
pub fn decide_for_solution(question: &Question, solution: i32, granted: &mut Option<u64>) -> Decision {
    let first = question.arguments[0];
    match i64::from(question.number) {
        libc::SYS_clone if question.thread == solution && *granted == Some(first) => {
            *granted = None;
            Decision::Go
        }
        libc::SYS_kill | libc::SYS_tgkill | libc::SYS_tkill | libc::SYS_rt_sigqueueinfo => {
            // Cases of one solution could otherwise name one another.
            match tree::number_inside(question.thread) {
                Some(own) if first as u32 == own => decide_alone(question, false).unwrap_or(Decision::Go),
                _ => Decision::Refuse(libc::EPERM),
            }
        }
        _ => decide_alone(question, false).unwrap_or_else(|| {
            if weakened::is_off("supervisor:processes") { Decision::Go } else { Decision::End(Reason::Processes(1)) }
        }),
    }
}

fn has_question(listener: &AsyncFd<OwnedFd>) -> std::io::Result<bool> {
    use std::os::fd::AsRawFd;
    let mut entry = libc::pollfd { fd: listener.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry; a time-out of 0 never blocks.
    let ready = unsafe { libc::poll(&mut entry, 1, 0) };
    if ready < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(entry.revents & libc::POLLIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_counted_is_not_granted() {
        for flags in [0, libc::CLONE_THREAD as u64] {
            for (thread, is_granted) in [(std::process::id() as i32, flags != 0), (i32::MAX, false)] {
                let question =
                    Question { id: 1, thread, number: libc::SYS_clone as i32, arguments: [flags, 0, 0, 0, 0, 0] };
                let decision = decide_alone(&question, true);
                let refused = thread == i32::MAX;
                assert_eq!(decision == Some(Decision::Go), is_granted, "{question:?}");
                assert_eq!(decision == Some(Decision::Refuse(libc::EAGAIN)), refused, "{question:?}");
            }
        }
    }
}
