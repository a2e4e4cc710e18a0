//! Waits for a process without a runtime: one thread, one `poll`, and in it all that can happen: the process ends, asks for
//! a system call, uses up its time, or nobody wants it any more.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::decisions::Decision;
use super::tree;
use crate::layers::seccomp::{self, Question};
use crate::layers::{check, process, weakened};
use crate::limits::Limits;
use crate::verdict::{Fault, Reason};

/// Shortest and longest pause between two looks at the CPU clock.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A process that was killed is gone within this.
pub const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// Tells a waiting thread that nobody wants what it waits for.
pub struct Interrupt(OwnedFd);

impl Interrupt {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the new descriptor is ours.
        unsafe {
            let descriptor = check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) as libc::c_long)?;
            Ok(Interrupt(OwnedFd::from_raw_fd(descriptor as i32)))
        }
    }

    /// From now on every wait ends at once.
    pub fn pull(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are read. It fails only where the counter is full, which it is after 2^64 calls.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// A child of this process, killed and reaped when dropped early.
pub struct Child {
    descriptor: OwnedFd,
    gone: bool,
}

impl Child {
    /// Takes over what was handed to us, if the kernel says that it is a child of ours.
    pub fn of(descriptor: OwnedFd) -> Result<Self, Fault> {
        if process::is_child(descriptor.as_fd()) {
            return Ok(Child { descriptor, gone: false });
        }
        Err(Fault::Internal("a descriptor stands for no child of the supervisor".to_owned()))
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    pub fn has_ended(&self) -> io::Result<bool> {
        readable(&mut [entry(Some(self.descriptor()))], Some(Duration::ZERO)).map(|count| count > 0)
    }

    /// Takes the status of a child that has ended.
    pub fn reap(&mut self) -> io::Result<process::Reaped> {
        let reaped = process::reap(self.descriptor())?;
        self.gone = true;
        reaped.ok_or_else(|| io::Error::other("a process said that it had ended and had not"))
    }

    /// Kills it and waits until it is gone.
    pub fn end(&mut self) -> io::Result<process::Reaped> {
        process::kill(self.descriptor())?;
        if readable(&mut [entry(Some(self.descriptor()))], Some(DEATH_DEADLINE))? == 0 {
            return Err(io::Error::other("a process that was killed does not end"));
        }
        self.reap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.gone
            && let Err(error) = self.end()
        {
            tracing::error!(%error, "a process is left");
        }
    }
}

fn entry(descriptor: Option<BorrowedFd<'_>>) -> libc::pollfd {
    // A negative number is passed over by the kernel.
    libc::pollfd { fd: descriptor.map_or(-1, |fd| fd.as_raw_fd()), events: libc::POLLIN, revents: 0 }
}

/// Waits until one of the entries can be read; how many can.
fn readable(entries: &mut [libc::pollfd], at_most: Option<Duration>) -> io::Result<usize> {
    let pause = at_most
        .map(|time| libc::timespec { tv_sec: time.as_secs() as libc::time_t, tv_nsec: time.subsec_nanos().into() });
    let pause = pause.as_ref().map_or(std::ptr::null(), |time| time as *const libc::timespec);
    // SAFETY: the entries and the time outlive the call; no signal mask is given.
    let ready = unsafe { libc::ppoll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, pause, std::ptr::null()) };
    match check(ready.into()) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other.map(|count| count as usize),
    }
}

/// Waits for a socket; false if nothing came in time.
pub fn wait_readable(descriptor: BorrowedFd<'_>, at_most: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + at_most;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if readable(&mut [entry(Some(descriptor))], Some(left))? > 0 {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// What ended a wait.
#[derive(Debug)]
pub enum Woken {
    Exited,
    /// The other descriptor can be read.
    Other,
    Interrupted,
    /// The program must be ended for this.
    Over(Reason),
}

/// One wait for one process.
pub struct Watch<'a> {
    pub process: BorrowedFd<'a>,
    pub listener: BorrowedFd<'a>,
    pub interrupt: &'a Interrupt,
    pub other: Option<BorrowedFd<'a>>,
    pub limits: &'a Limits,
    pub started: Instant,
}

impl Watch<'_> {
    pub fn wait(&self, mut decide: impl FnMut(&Question) -> Decision) -> io::Result<Woken> {
        let mut deadline = self.started + self.limits.wall;
        let mut number = None;
        // Until the last process under the filter begins to end: then there is nobody left to ask, and a wait for the
        // listener would return at once.
        let mut asked = Some(self.listener);
        let mut look = Instant::now() + pause_after(self.limits, Duration::ZERO);
        loop {
            let mut entries =
                [entry(Some(self.process)), entry(self.other), entry(asked), entry(Some(self.interrupt.0.as_fd()))];
            let now = Instant::now();
            readable(&mut entries, Some(deadline.min(look).saturating_duration_since(now)))?;
            let [exited, other, listener, interrupt] = entries.map(|entry| entry.revents);
            let [exited, other, interrupt] = [exited, other, interrupt].map(|events| events != 0);
            if interrupt {
                return Ok(Woken::Interrupted);
            }
            if exited {
                return Ok(Woken::Exited);
            }
            if other {
                return Ok(Woken::Other);
            }
            if listener & libc::POLLIN != 0 {
                if let Some(reason) = self.answer(&mut decide)? {
                    return Ok(Woken::Over(reason));
                }
            } else if listener != 0 {
                asked = None;
            }
            // Looked at after every answer too: a program that asks all the time is not let off.
            let now = Instant::now();
            if now >= deadline && !weakened::is_off("supervisor:wall") {
                number = number.or_else(|| process::number(self.process));
                let starved = number.map_or(Duration::ZERO, |number| tree::starved(number, false));
                let due = self.started + self.limits.wall_when_starved(starved);
                if now >= due {
                    return Ok(Woken::Over(Reason::Wall(self.limits.wall)));
                }
                deadline = due.max(now + SHORTEST_PAUSE);
            }
            if now >= look {
                number = number.or_else(|| process::number(self.process));
                let used = number.map_or(Duration::ZERO, |number| process::cpu_time(number).unwrap_or_default());
                if used > self.limits.cpu && !weakened::is_off("supervisor:cpu") {
                    return Ok(Woken::Over(Reason::Cpu(self.limits.cpu)));
                }
                look = now + pause_after(self.limits, used);
            }
        }
    }

    /// Answers one question, or says why the program must end.
    fn answer(&self, decide: &mut impl FnMut(&Question) -> Decision) -> io::Result<Option<Reason>> {
        // A question withdrawn just now leaves its place in the kernel's count, so that this never waits.
        let Some(question) = seccomp::take_question(self.listener)? else { return Ok(None) };
        match decide(&question) {
            Decision::Go | Decision::Kill => seccomp::answer(self.listener, question.id, Ok(()))?,
            Decision::Refuse(errno) => seccomp::answer(self.listener, question.id, Err(errno))?,
            // The call is never answered: its thread sleeps until it is killed.
            Decision::End(reason) => return Ok(Some(reason)),
        }
        Ok(None)
    }
}

/// Asked once: the answer takes reading several files.
static CORES: LazyLock<u32> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, |count| count.get() as u32));

/// The limit cannot be reached before this, however many cores the program's threads use.
fn pause_after(limits: &Limits, used: Duration) -> Duration {
    (limits.cpu.saturating_sub(used) / *CORES).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Wall time until now of a process that was `asked` for and known to run since `started`. It may have run before we read
/// so: what it used by then has taken as long, but not longer than since it was asked for.
pub fn wall_time(cpu: Duration, asked: Instant, started: Instant) -> Duration {
    started.elapsed().max(cpu.min(asked.elapsed()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::layers::descriptors;
    use crate::limits;

    #[test]
    fn a_process_that_ended_before_we_looked_took_the_time_that_it_computed() {
        let cpu = Duration::from_millis(100);
        let asked = Instant::now() - cpu * 2;
        assert_eq!(wall_time(cpu, asked, Instant::now() + Duration::from_secs(3600)), cpu);
        // With several threads it computes longer than it takes.
        let wall = wall_time(Duration::MAX, asked, Instant::now());
        assert!(cpu * 2 <= wall && wall <= asked.elapsed());
    }

    #[test]
    fn a_listener_that_has_hung_up_is_not_asked_again() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = process::watch(child.id() as i32).unwrap();
        let (listener, asking) = descriptors::pipe().unwrap();
        drop(asking);
        let limits = Limits { wall: Duration::from_millis(20), ..limits::TEST.default };
        let watch = Watch {
            process: process.as_fd(),
            listener: listener.as_fd(),
            interrupt: &Interrupt::new().unwrap(),
            other: None,
            limits: &limits,
            started: Instant::now(),
        };
        // A question would be taken by a call that a pipe does not know.
        let woken = watch.wait(|_| Decision::Go).unwrap();
        assert!(matches!(woken, Woken::Over(Reason::Wall(_))), "{woken:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
