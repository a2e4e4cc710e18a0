//! The supervisor's side of a solution: its process, which compiles once, and a process of its own for each case.
//!
//! What the solution's process says is never believed: a case is a child of this process, and the kernel tells of its
//! exit, time and memory. Everything here blocks and belongs on a thread for blocking work, but for `start`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroup;
use super::decisions::{Decision, decide_for_solution};
use super::launcher::{Pool, no_descriptors};
use super::watch::{Child, DEATH_DEADLINE, Interrupt, Watch, Woken, wait_readable, wall_time};
use crate::inside::wire::{BATCH, CASE, FromSolution, Kind, Report, Spawn};
use crate::inside::zygote::NOT_JAILED;
use crate::layers::process::{Exit, FORK_FOR_PARENT, Reaped, SLEEP_FOR_PARENT};
use crate::layers::{Profile, descriptors, process};
use crate::limits::Limits;
use crate::printable::printable;
use crate::verdict::{Fault, Reason, ResourceUse, Verdict, of_exit, of_reason};

/// A jail that is not built after this long never will be, nor a fork made.
const JAIL_DEADLINE: Duration = Duration::from_secs(10);
/// CPU time that the process of a solution may use for forking; a backstop, what it compiles is measured.
const CPU_SECONDS_TO_FORK: u64 = 3600;
/// Bytes of a traceback's end that are kept.
const KEPT_ERRORS: u64 = 8 * 1024;

/// How a process ended, as this process saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub verdict: Verdict,
    pub error: String,
    pub used: ResourceUse,
}

/// Why there is no result.
#[derive(Debug)]
pub enum Broken {
    Fault(Fault),
    /// The process of the solution is gone, which is nobody's verdict: it runs no code of the solution.
    Died(String),
    Interrupted,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Broken::Fault(error.into())
    }
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        Broken::Fault(fault)
    }
}

/// A forked process that is about to build its jail and to compile.
pub struct Starting {
    solution: Solution,
    /// Before the zygote was: what is waited for until the jail stands is no time of the program's.
    asked: Instant,
}

/// What the process of a solution is given.
pub struct Given {
    pub kind: Kind,
    pub payload: OwnedFd,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// What the only case gets besides, if the process is to run that itself; otherwise it forks cases.
    pub only_case: Option<Vec<OwnedFd>>,
    pub limits: Limits,
}

/// What compiling gave.
pub enum Begun {
    Ready(Solution),
    /// It did not compile: what holds for every case.
    Ended(Seen),
}

/// A compiled solution. Dropping it ends all its processes, the sleeper last: a namespace is gone only when everything in
/// it has been waited for.
pub struct Solution {
    number: i32,
    process: Child,
    /// Process 1 of the namespace of the cases.
    sleeper: Option<Child>,
    control: OwnedFd,
    listener: Option<OwnedFd>,
    profile: Profile,
    limits: Limits,
    /// Its cases are assertions.
    asserts: bool,
    interrupt: Arc<Interrupt>,
    /// It may fork now, and has not told of it: there may be a process that is not known here.
    forks: bool,
}

impl Drop for Solution {
    fn drop(&mut self) {
        if self.forks
            && let Err(error) = self.end()
        {
            tracing::error!(%error, "a process of a solution may be left");
        }
    }
}

/// Has a zygote fork the process of a solution.
pub async fn start(
    pool: &Arc<Pool>,
    profile: Profile,
    given: Given,
    interrupt: Arc<Interrupt>,
) -> Result<Starting, Fault> {
    let Given { kind, payload, stdin, stdout, stderr, only_case, limits } = given;
    let (control, theirs) = descriptors::packet_pair()?;
    let asserts = kind == Kind::Assertions;
    let mut own = limits.of_process();
    let case_cpu_seconds = only_case.is_none().then_some(own.cpu_seconds);
    if only_case.is_none() {
        own.cpu_seconds += CPU_SECONDS_TO_FORK;
    }
    // One byte more, so that a file of exactly the limit is told from one that was cut.
    own.file_bytes += 1;
    let spawn =
        Spawn { kind, children: false, limits: own, directory_bytes: 0, has_directory: false, case_cpu_seconds };
    let mut attached = vec![theirs, stdin, stdout, stderr, payload];
    attached.extend(only_case.into_iter().flatten());
    let asked = Instant::now();
    let (number, process) =
        pool.fork(spawn, attached, |number, descriptor| Ok((number, Child::of(descriptor)?))).await?;
    let solution = Solution {
        number,
        process,
        sleeper: None,
        control,
        listener: None,
        profile,
        limits,
        asserts,
        interrupt,
        forks: false,
    };
    Ok(Starting { solution, asked })
}

impl Starting {
    /// Waits until the jail stands.
    fn jailed(self) -> Result<(Solution, Instant), Broken> {
        let Starting { mut solution, asked } = self;
        if !wait_readable(solution.control.as_fd(), JAIL_DEADLINE)? {
            return Err(Fault::Internal(format!("no jail after {} s", JAIL_DEADLINE.as_secs())).into());
        }
        let (packet, mut attached) = receive(solution.control.as_fd())?;
        solution.listener = match serde_json::from_slice(&packet) {
            Ok(Report::Jailed { .. }) if attached.len() == 1 => attached.pop(),
            Ok(Report::Jailed { .. }) => return Err(no_descriptors().into()),
            Ok(Report::Failed(failure)) => return Err(Fault::from(failure).into()),
            _ => return Err(cgroup::fault_of_kill(asked, "a solution whose jail did not stand yet").into()),
        };
        Ok((solution, asked))
    }

    /// Waits for the end of a solution that runs its only case itself.
    pub fn run_only_case(self) -> Result<Seen, Broken> {
        let (mut solution, asked) = self.jailed()?;
        let started = Instant::now();
        let number = solution.number;
        let mut own_kill = false;
        let woken =
            solution.watch(solution.process.descriptor(), None, &solution.limits, started).wait(|question| {
                let decision = decide_for_solution(question, number, &mut None);
                own_kill |= decision == Decision::Kill;
                decision
            })?;
        let (reaped, reason) = match woken {
            Woken::Exited => (solution.process.reap()?, None),
            Woken::Over(reason) => (solution.process.end()?, Some(reason)),
            Woken::Other | Woken::Interrupted => return Err(Broken::Interrupted),
        };
        let used = used(&reaped, asked, started);
        let (verdict, error) = match reason {
            Some(reason) => of_reason(&reason),
            None => {
                solution.failed_to_begin(&reaped)?;
                of_case(&reaped, &used, &solution, own_kill, asked)?
            }
        };
        Ok(Seen { verdict, error, used })
    }

    /// Waits until the source is compiled.
    pub fn compile(self) -> Result<Begun, Broken> {
        let (mut solution, asked) = self.jailed()?;
        let started = Instant::now();
        let mut granted = match solution.profile {
            Profile::Full => Some(SLEEP_FOR_PARENT as u64),
            Profile::Pod => None,
        };
        solution.forks = granted.is_some();
        let number = solution.number;
        let woken = solution
            .watch(solution.process.descriptor(), Some(solution.control.as_fd()), &solution.limits, started)
            .wait(|question| decide_for_solution(question, number, &mut granted))?;
        let (verdict, error, reaped) = match woken {
            Woken::Interrupted => return Err(Broken::Interrupted),
            Woken::Other => {
                // The last word of a process that has just ended may be that it failed; otherwise its exit speaks.
                let said = solution.listen()?;
                match said {
                    Some((FromSolution::Compiled, sleeper)) => {
                        if solution.profile == Profile::Full {
                            let missing = || Fault::Internal("a solution without a process namespace".to_owned());
                            solution.sleeper = Some(Child::of(sleeper.ok_or_else(missing)?)?);
                        }
                        solution.forks = false;
                        return Ok(Begun::Ready(solution));
                    }
                    Some((FromSolution::Failed(failure), _)) => return Err(failed(&failure).into()),
                    Some((FromSolution::Forked, _)) => {
                        return Err(Fault::Internal("a fork that nobody asked for".to_owned()).into());
                    }
                    None => {}
                }
                solution.exit_of_compiler(asked)?
            }
            Woken::Exited => solution.exit_of_compiler(asked)?,
            Woken::Over(reason) => {
                let reaped = solution.end()?;
                let (verdict, error) = of_reason(&reason);
                (verdict, error, reaped)
            }
        };
        let used = used(&reaped, asked, started);
        Ok(Begun::Ended(Seen { verdict, error, used }))
    }
}

/// The process of a case, and what it did before we knew of it.
struct Case {
    process: Child,
    own_kill: bool,
    /// It asked for something that ends it.
    over: Option<Reason>,
}

impl Solution {
    fn watch<'a>(
        &'a self,
        process: BorrowedFd<'a>,
        other: Option<BorrowedFd<'a>>,
        limits: &'a Limits,
        started: Instant,
    ) -> Watch<'a> {
        let listener = self.listener.as_ref().map_or(self.control.as_fd(), AsFd::as_fd);
        Watch { process, listener, interrupt: &self.interrupt, other, limits, started }
    }

    /// The next word; `None` if the process has ended without one.
    fn listen(&self) -> Result<Option<(FromSolution, Option<OwnedFd>)>, Broken> {
        let (packet, mut attached) = receive(self.control.as_fd())?;
        if packet.is_empty() {
            return Ok(None);
        }
        let said = serde_json::from_slice(&packet).map_err(|error| {
            Fault::Internal(format!("the process of a solution said something unreadable: {error}"))
        })?;
        Ok(Some((said, attached.pop())))
    }

    /// The compiler's own end: a syntax error, no memory, a stack too deep.
    fn exit_of_compiler(&mut self, started: Instant) -> Result<(Verdict, String, Reaped), Broken> {
        if !wait_readable(self.process.descriptor(), JAIL_DEADLINE)? {
            return Err(Fault::Internal("the process of a solution closed its socket and lives on".to_owned()).into());
        }
        let reaped = self.end()?;
        self.failed_to_begin(&reaped)?;
        let (verdict, error) = of_exit(reaped.exit, &used(&reaped, started, started), &self.limits, self.asserts);
        // The compiler does not kill itself, and nothing else has run.
        if reaped.exit == Exit::Signal(libc::SIGKILL) && verdict != Verdict::CpuLimit {
            return Err(Broken::Died(format!(
                "the process {} of a solution was killed after {:.3} s while it compiled",
                self.number,
                started.elapsed().as_secs_f64()
            )));
        }
        Ok((verdict, error, reaped))
    }

    /// Runs one case to its end. `files` become its descriptors 0, 1, 2, …
    pub fn run_case(&mut self, files: &[BorrowedFd<'_>]) -> Result<Seen, Broken> {
        self.run(CASE, files)
    }

    /// Runs all cases in one process, under the limits of one.
    pub fn run_batch(&mut self, files: &[BorrowedFd<'_>]) -> Result<Seen, Broken> {
        self.run(BATCH, files)
    }

    fn run(&mut self, request: &[u8], files: &[BorrowedFd<'_>]) -> Result<Seen, Broken> {
        let asked = Instant::now();
        let raw: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        self.forks = true;
        if let Err(error) = descriptors::send(self.control.as_fd(), request, &raw) {
            return Err(self.died(&error.to_string()));
        }
        let Case { process: mut case, mut own_kill, over } = self.forked(asked)?;
        self.forks = false;
        let started = Instant::now();
        let number = self.number;
        let woken = match over {
            Some(reason) => Woken::Over(reason),
            None => self.watch(case.descriptor(), None, &self.limits, started).wait(|question| {
                let decision = decide_for_solution(question, number, &mut None);
                own_kill |= decision == Decision::Kill;
                decision
            })?,
        };
        let (reaped, reason) = match woken {
            Woken::Exited => (case.reap()?, None),
            Woken::Over(reason) => (case.end()?, Some(reason)),
            Woken::Other | Woken::Interrupted => return Err(Broken::Interrupted),
        };
        let used = used(&reaped, asked, started);
        let (verdict, error) = match reason {
            Some(reason) => of_reason(&reason),
            None => {
                self.failed_to_begin(&reaped)?;
                if reaped.exit == Exit::Signal(libc::SIGKILL) && self.namespace_has_ended()? {
                    return Err(self.died("its process namespace was ended"));
                }
                of_case(&reaped, &used, self, own_kill, asked)?
            }
        };
        Ok(Seen { verdict, error, used })
    }

    /// What a process said that failed before it read anything: a program has no way to say it.
    fn failed_to_begin(&self, reaped: &Reaped) -> Result<(), Broken> {
        if reaped.exit == Exit::Code(NOT_JAILED)
            && wait_readable(self.control.as_fd(), Duration::ZERO)?
            && let Some((FromSolution::Failed(failure), _)) = self.listen()?
        {
            return Err(failed(&failure).into());
        }
        Ok(())
    }

    /// The process of the case that was asked for. It may be far before its solution, which tells of it, has its turn.
    fn forked(&self, started: Instant) -> Result<Case, Broken> {
        let limits = Limits { cpu: Duration::MAX, wall: JAIL_DEADLINE, ..self.limits };
        let watch = self.watch(self.process.descriptor(), Some(self.control.as_fd()), &limits, started);
        let mut granted = Some(FORK_FOR_PARENT as u64);
        let (mut own_kill, mut over) = (false, None);
        loop {
            let mut ends_case = false;
            let woken = watch.wait(|question| {
                let decision = decide_for_solution(question, self.number, &mut granted);
                let by_case = question.thread != self.number;
                own_kill |= by_case && decision == Decision::Kill;
                ends_case = by_case && matches!(decision, Decision::End(_));
                decision
            })?;
            return match woken {
                Woken::Over(reason) if ends_case => {
                    over.get_or_insert(reason);
                    continue;
                }
                Woken::Other => match self.listen()? {
                    Some((FromSolution::Forked, Some(descriptor))) => {
                        Ok(Case { process: Child::of(descriptor)?, own_kill, over })
                    }
                    Some((FromSolution::Forked, None)) => Err(no_descriptors().into()),
                    // No process can be made in a namespace that was ended: the kernel says that memory is lacking.
                    Some((FromSolution::Failed(_), _)) if self.namespace_has_ended()? => {
                        Err(self.died("its process namespace was ended"))
                    }
                    Some((FromSolution::Failed(failure), _)) => Err(failed(&failure).into()),
                    None => Err(self.died("it closed its socket")),
                    Some(other) => Err(Fault::Internal(format!("the process of a solution said {:?}", other.0)).into()),
                },
                Woken::Exited => Err(self.died("it ended")),
                Woken::Interrupted => Err(Broken::Interrupted),
                Woken::Over(Reason::Violation(what)) => Err(self.died(&format!("it tried {what}"))),
                Woken::Over(_) => Err(self.died(&format!("no case after {} s", JAIL_DEADLINE.as_secs()))),
            };
        }
    }

    /// Ends this process, with a fork that it never told of: nobody else knows it, and the sleeper cannot end before. All
    /// that it forks is in its process group.
    fn end(&mut self) -> io::Result<Reaped> {
        if !std::mem::take(&mut self.forks) {
            return self.process.end();
        }
        process::kill_group(self.number)?;
        let reaped = self.process.end()?;
        let sleeper = self.sleeper.as_ref().and_then(|sleeper| process::number(sleeper.descriptor()));
        let deadline = Instant::now() + DEATH_DEADLINE;
        while process::reap_group(self.number, sleeper)? {
            if Instant::now() > deadline {
                return Err(io::Error::other("a process that was killed does not end"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(reaped)
    }

    /// Somebody has ended the process that holds the namespace of the cases.
    fn namespace_has_ended(&self) -> io::Result<bool> {
        self.sleeper.as_ref().map_or(Ok(false), Child::has_ended)
    }

    fn died(&self, why: &str) -> Broken {
        Broken::Died(format!("the process {} of a solution is gone: {why}", self.number))
    }
}

fn receive(control: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; 2048];
    let (count, attached) = match descriptors::receive(control, &mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (0, Vec::new()),
        other => other?,
    };
    buffer.truncate(count);
    Ok((buffer, attached))
}

fn failed(failure: &crate::inside::wire::Failure) -> Fault {
    failure.clone().into()
}

/// Verdict and explanation of a case that ended by itself.
fn of_case(
    reaped: &Reaped,
    used: &ResourceUse,
    solution: &Solution,
    own_kill: bool,
    started: Instant,
) -> Result<(Verdict, String), Fault> {
    let own_doing = own_kill || reaped.at_cpu_limit;
    let limits = &solution.limits;
    match cgroup::fault_of_exit(reaped.exit, used.cpu, limits.cpu, own_doing, started, "a case of a solution") {
        Some(fault) => Err(fault),
        None => Ok(of_exit(reaped.exit, used, limits, solution.asserts)),
    }
}

fn used(reaped: &Reaped, asked: Instant, started: Instant) -> ResourceUse {
    ResourceUse {
        cpu: reaped.cpu,
        wall: wall_time(reaped.cpu, asked, started),
        waiting: Duration::ZERO,
        peak_memory_bytes: reaped.peak_memory_bytes,
    }
}

/// The end of what a program wrote to its standard error.
pub fn tail(file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    let bytes = read(file, length.saturating_sub(KEPT_ERRORS), KEPT_ERRORS)?;
    Ok(printable(String::from_utf8_lossy(&bytes).trim_end()))
}

/// Up to `most` bytes from `start` on. The file belongs to processes that are gone.
pub fn read(file: &File, start: u64, most: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().saturating_sub(start).min(most);
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
