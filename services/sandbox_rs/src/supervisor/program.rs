//! One running program: started, watched against its limits, ended, reaped. Whatever the supervisor says about a program
//! it saw here itself: exit status, the kernel's accounts, bytes out of pipes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::cgroup;
use super::decisions::Doorkeeper;
use super::launcher::{Pool, no_descriptors, receive, send, watched};
use super::output::{Budget, Captured, capture};
use super::stopwatch::Stopwatch;
use super::tree;
use super::watch::wall_time;
use super::workdir::WorkDirectory;
use crate::inside::wire::{Failure, Kind, Report, Spawn};
use crate::inside::zygote::NOT_JAILED;
use crate::layers::{Profile, descriptors, process, weakened};
use crate::limits::Limits;
use crate::readiness::registered;
use crate::verdict::{Fault, Reason, ResourceUse, Verdict, as_fault, of_exit, of_reason};

/// A jail that is not built after this long never will be.
const JAIL_DEADLINE: Duration = Duration::from_secs(10);
/// A keeper has this long to end its tree before it is killed itself.
const KEEPER_GRACE: Duration = Duration::from_secs(2);
/// A SIGKILL that a program sends to itself ends it within this.
const OWN_KILL: Duration = Duration::from_secs(1);
/// Shortest and longest pause between two looks at the CPU clock and at the time without a processor.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// At least so many looks in a wall limit: what a program was starved of after the last one, nobody sees.
const LOOKS_PER_WALL: u32 = 16;

/// What to start.
pub struct Order {
    pub kind: Kind,
    pub limits: Limits,
    /// Becomes descriptor 0.
    pub stdin: OwnedFd,
    /// Become descriptors 3, 4, …
    pub extra: Vec<OwnedFd>,
    pub directory: bool,
    /// Bytes of output that are kept of each stream.
    pub kept: usize,
    /// CPU time that others use on this program's account.
    pub charged: Arc<Charged>,
}

impl Order {
    fn children(&self) -> bool {
        self.kind == Kind::Workflow
    }
}

/// What is added to a program's account from outside.
#[derive(Default)]
pub struct Charged {
    cpu_micros: AtomicU64,
    /// What the program waits for.
    pub stopwatch: Stopwatch,
}

impl Charged {
    pub fn add(&self, time: Duration) {
        self.cpu_micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn total(&self) -> Duration {
        Duration::from_micros(self.cpu_micros.load(Ordering::Relaxed))
    }
}

/// Ends a program, once, for the reason given first.
#[derive(Clone)]
pub struct Switch(Arc<SwitchState>);

struct SwitchState {
    reason: OnceLock<Reason>,
    pulled: Notify,
    own_kill: Mutex<Option<Instant>>,
}

impl Switch {
    fn new() -> Self {
        Switch(Arc::new(SwitchState { reason: OnceLock::new(), pulled: Notify::new(), own_kill: Mutex::default() }))
    }

    pub fn end(&self, reason: Reason) {
        if self.0.reason.set(reason).is_ok() {
            self.0.pulled.notify_one();
        }
    }

    fn reason(&self) -> Option<&Reason> {
        self.0.reason.get()
    }

    /// A process of the program sends a SIGKILL now.
    pub fn note_own_kill(&self) {
        *self.0.own_kill.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it sent one so lately that its own end may come from it.
    fn has_killed_itself(&self) -> bool {
        let sent = *self.0.own_kill.lock().unwrap_or_else(PoisonError::into_inner);
        sent.is_some_and(|sent| sent.elapsed() < OWN_KILL)
    }
}

/// A program that runs. Dropping it ends the program; `watch` goes on until it is reaped.
pub struct Program {
    pub switch: Switch,
    watch: Option<JoinHandle<Result<Ended, Fault>>>,
}

/// A program that has ended and is gone with all its processes.
#[derive(Debug)]
pub struct Ended {
    pub verdict: Verdict,
    pub error: String,
    pub stdout: Captured,
    pub stderr: Captured,
    pub used: ResourceUse,
}

impl Program {
    /// Waits for the end. Safe to call again after being cancelled.
    pub async fn ended(&mut self) -> Result<Ended, Fault> {
        let Some(watch) = self.watch.as_mut() else {
            return Err(Fault::Internal("a program's end was asked for twice".to_owned()));
        };
        let result = watch.await.map_err(|error| Fault::Internal(error.to_string()));
        self.watch = None;
        result?
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.watch.is_some() {
            self.switch.end(Reason::Cancelled("nobody waits for it".to_owned()));
        }
    }
}

/// Starts a program and returns when its jail stands. `held` lives until the program is gone (its slot).
pub async fn start(
    pool: &Arc<Pool>,
    profile: Profile,
    work_root: &std::path::Path,
    order: Order,
    held: impl Send + 'static,
) -> Result<Program, Fault> {
    let children = order.children();
    let (our_report, their_report) = descriptors::packet_pair()?;
    let (stdout, their_stdout) = descriptors::pipe()?;
    let (stderr, their_stderr) = descriptors::pipe()?;
    let directory = match profile {
        Profile::Pod if order.directory => Some(WorkDirectory::create(work_root)?),
        _ => None,
    };
    let limits = order.limits;
    let directory_bytes = if order.directory { limits.output_bytes.max(1 << 20) } else { 0 };
    let spawn = Spawn {
        kind: order.kind,
        children,
        limits: limits.of_process(),
        directory_bytes,
        has_directory: directory.is_some(),
        case_cpu_seconds: None,
    };
    let mut attached = vec![their_report, order.stdin, their_stdout, their_stderr];
    attached.extend(order.extra);
    if let Some(directory) = &directory {
        attached.push(directory.open()?);
    }
    let asked = Instant::now();
    let process = pool.fork(spawn, attached, |pid, descriptor| Ok(ChildProcess::new(pid, descriptor)?)).await?;
    let pid = process.pid;
    let report = watched(our_report)?;
    let (listener, script) = match tokio::time::timeout(JAIL_DEADLINE, jailed(&report)).await {
        Ok(Ok(jailed)) => jailed,
        Ok(Err(Fault::Killed(what))) => return Err(cgroup::fault_of_kill(asked, &what)),
        Ok(Err(fault)) => return Err(fault),
        Err(_) => return Err(Fault::Internal(format!("no jail after {} s", JAIL_DEADLINE.as_secs()))),
    };
    let started = Instant::now();
    let switch = Switch::new();
    let budget = Budget::new(limits.output_bytes);
    let stdout = tokio::spawn(capture(stdout, order.kept, budget.clone(), switch.clone()));
    let stderr = tokio::spawn(capture(stderr, order.kept, budget, switch.clone()));
    let doorkeeper = Doorkeeper::new(listener, pid, limits.processes, children)?;
    let door = tokio::spawn(doorkeeper.serve(switch.clone()));
    let files = directory.as_ref().map(|directory| tokio::spawn(directory.limit(directory_bytes, switch.clone())));
    let session = (children && profile == Profile::Pod).then_some(script);
    let watcher =
        Watcher { process, report, children, session, limits, asked, started, charged: order.charged, switch };
    let switch = watcher.switch.clone();
    let watch = tokio::spawn(async move {
        let outcome = watcher.watch().await;
        door.abort();
        if let Some(files) = files {
            files.abort();
        }
        let streams = async { Ok::<_, io::Error>((stdout.await??, stderr.await??)) }.await;
        let outcome = match (&directory, outcome) {
            (Some(directory), Ok((verdict @ Verdict::RuntimeError, error, used))) => {
                directory.judge(limits.output_bytes).await.map(|own| match own {
                    Some((verdict, error)) => (verdict, error, used),
                    None => (verdict, error, used),
                })
            }
            (_, outcome) => outcome,
        };
        if let Some(directory) = directory {
            directory.remove().await?;
        }
        drop(held);
        let (verdict, error, used) = outcome?;
        let (stdout, stderr) = streams?;
        Ok(Ended { verdict, error, stdout, stderr, used })
    });
    Ok(Program { switch, watch: Some(watch) })
}

/// Waits for the jail and returns the listener, and the number that the program itself sees.
async fn jailed(report: &AsyncFd<OwnedFd>) -> Result<(OwnedFd, i32), Fault> {
    let (packet, mut attached) = receive(report).await?;
    match serde_json::from_slice(&packet) {
        Ok(Report::Jailed { process }) if attached.len() == 1 => Ok((attached.remove(0), process)),
        Ok(Report::Jailed { .. }) => Err(no_descriptors()),
        Ok(Report::Failed(failure)) => Err(failure.into()),
        Ok(other) => Err(Fault::Internal(format!("a program in the making said {other:?}"))),
        Err(_) => Err(Fault::Killed("a program whose jail did not stand yet".to_owned())),
    }
}

/// A child of this process. Killed and reaped when dropped early.
struct ChildProcess {
    pid: i32,
    descriptor: AsyncFd<OwnedFd>,
    gone: bool,
}

impl ChildProcess {
    fn new(pid: i32, descriptor: OwnedFd) -> io::Result<Self> {
        Ok(ChildProcess { pid, descriptor: registered(descriptor)?, gone: false })
    }

    async fn exited(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(|mut ready| ready.retain_ready())
    }

    fn reap(&mut self) -> io::Result<process::Reaped> {
        let reaped = process::reap(self.descriptor.get_ref().as_fd())?;
        self.gone = true;
        reaped.ok_or_else(|| io::Error::other("a process said that it had ended and had not"))
    }

    fn kill(&self) -> io::Result<()> {
        process::kill(self.descriptor.get_ref().as_fd())
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // A fault of ours on the way: nothing more can be reported here, but nothing may stay behind either.
        if self.kill().is_ok() {
            let deadline = Instant::now() + Duration::from_secs(1);
            while matches!(process::reap(self.descriptor.get_ref().as_fd()), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

struct Watcher {
    process: ChildProcess,
    report: AsyncFd<OwnedFd>,
    children: bool,
    /// Of a script without a process namespace: what ends with its keeper only if that ends it.
    session: Option<i32>,
    limits: Limits,
    asked: Instant,
    started: Instant,
    charged: Arc<Charged>,
    switch: Switch,
}

impl Watcher {
    async fn watch(mut self) -> Result<(Verdict, String, ResourceUse), Fault> {
        let wall = tokio::time::sleep_until((self.started + self.limits.wall).into());
        tokio::pin!(wall);
        let pulled = self.switch.clone();
        let mut pause = self.pause_after(Duration::ZERO);
        let mut starved = Duration::ZERO;
        let mut seen = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                exited = self.process.exited() => { exited?; break; }
                () = pulled.0.pulled.notified() => {
                    // What a process namespace's first process had not waited for is on nobody's account when it is killed.
                    seen = tree::used(self.process.pid, self.children);
                    self.end().await?;
                    break;
                }
                () = &mut wall, if !weakened::is_off("supervisor:wall") => {
                    starved = starved.max(tree::starved(self.process.pid, self.children));
                    let due = self.started
                        + self.limits.wall_when_starved(starved)
                        + self.charged.stopwatch.waited().queued;
                    let left = due.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        self.switch.end(Reason::Wall(self.limits.wall));
                    } else {
                        wall.as_mut().reset(tokio::time::Instant::now() + left.max(SHORTEST_PAUSE));
                    }
                }
                () = tokio::time::sleep(pause), if self.switch.reason().is_none() => {
                    let used = tree::used(self.process.pid, self.children) + self.charged.total();
                    if used > self.limits.cpu && !weakened::is_off("supervisor:cpu") {
                        self.switch.end(Reason::Cpu(self.limits.cpu));
                    }
                    starved = starved.max(tree::starved(self.process.pid, self.children));
                    pause = self.pause_after(used);
                }
            }
        }
        // A program that was ended has no exit of its own to report.
        let reported = if self.switch.reason().is_some() { Ok(None) } else { self.reported_exit().await };
        let reaped = self.process.reap()?;
        if let Some(session) = self.session
            && reaped.exit != process::Exit::Code(0)
        {
            tracing::warn!(session, "a keeper did not end its program");
            process::kill_group(session)?;
        }
        let reported = reported?;
        let used = ResourceUse {
            cpu: reaped.cpu.max(seen) + self.charged.total(),
            wall: wall_time(reaped.cpu, self.asked, self.started),
            waiting: starved,
            peak_memory_bytes: reaped.peak_memory_bytes,
        };
        if let Some(reason) = self.switch.reason() {
            if let Some(fault) = as_fault(reason) {
                return Err(fault);
            }
            let (verdict, error) = of_reason(reason);
            return Ok((verdict, error, used));
        }
        let (exit, at_cpu_limit) = match (self.children, reported) {
            (true, Some((status, at_cpu_limit))) => (process::Exit::from_status(status), at_cpu_limit),
            (true, None) => return Err(cgroup::fault_of_kill(self.started, "the keeper of a script")),
            (false, _) => (reaped.exit, reaped.at_cpu_limit),
        };
        if exit == process::Exit::Code(NOT_JAILED)
            && let Some(failure) = self.failure_to_begin().await?
        {
            return Err(failure.into());
        }
        let own_doing = at_cpu_limit || self.switch.has_killed_itself();
        if let Some(fault) =
            cgroup::fault_of_exit(exit, used.cpu, self.limits.cpu, own_doing, self.started, "a program")
        {
            return Err(fault);
        }
        let (verdict, error) = of_exit(exit, &used, &self.limits, false);
        // What became of a child says only the script, and never whose doing it was.
        if self.children && verdict == Verdict::RuntimeError && cgroup::killed_since(self.started) {
            return Err(cgroup::fault_of_kill(self.started, "a process, and this script may have been its parent"));
        }
        Ok((verdict, error, used))
    }

    /// The limit of CPU time cannot be reached before this, however many cores the program uses.
    fn pause_after(&self, used: Duration) -> Duration {
        let cores = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let parallel = if self.children { cores } else { 1 };
        let left = self.limits.cpu.saturating_sub(used) / parallel;
        left.min(self.limits.wall / LOOKS_PER_WALL).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    /// Kills the program with all its processes and waits until they are gone.
    async fn end(&self) -> Result<(), Fault> {
        // A process namespace ends with its first process. Without one the keeper knows what to kill.
        if self.session.is_some() {
            let asked = send(&self.report, b"end", &[]).await.is_ok();
            if asked && tokio::time::timeout(KEEPER_GRACE, self.process.exited()).await.is_ok() {
                return Ok(());
            }
        }
        self.process.kill()?;
        Ok(self.process.exited().await?)
    }

    /// What a program said that failed between its report and its first own step; afterwards it has no way to say it. Its
    /// last process has ended, so that nothing is waited for.
    async fn failure_to_begin(&self) -> Result<Option<Failure>, Fault> {
        let (packet, _) = receive(&self.report).await?;
        Ok(match serde_json::from_slice(&packet) {
            Ok(Report::Failed(failure)) => Some(failure),
            _ => None,
        })
    }

    /// What a keeper said before it ended: its program's status, and whether that was killed at its limit of CPU time.
    async fn reported_exit(&self) -> Result<Option<(i32, bool)>, Fault> {
        if !self.children {
            return Ok(None);
        }
        let (packet, _) = receive(&self.report).await?;
        Ok(match serde_json::from_slice(&packet) {
            Ok(Report::Ended { status, at_cpu_limit }) => Some((status, at_cpu_limit)),
            Ok(Report::Failed(failure)) => return Err(failure.into()),
            _ => None,
        })
    }
}
