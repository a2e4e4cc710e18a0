//! One solution against its tests: compiled once, a process per case, results from the supervisor's own observation only.
//!
//! A job holds a slot for a short turn, then queues again behind the others, so that a short job does not wait for a long
//! one. Where slots are free, several processes of the solution run its cases at once.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::judging::{Answer, Bench, Judge};
use super::slots::Turn;
use super::solution::{self, Begun, Broken, Given, Seen, Solution, Starting, read, tail};
use super::watch::Interrupt;
use super::{Supervisor, batch};
use crate::checkers::Difference;
use crate::inside::assertions::{Case, Common};
use crate::inside::wire::Kind;
use crate::layers::{descriptors, weakened};
use crate::limits::Limits;
use crate::verdict::{Fault, Reason, ResourceUse, Verdict, of_reason};

/// A job that runs longer than this lets others go first.
const STINT: Duration = Duration::from_millis(10);
/// Cases that make a further process of the same solution worth its start.
const CASES_PER_PROCESS: usize = 8;
/// A solution whose process was killed from outside is started again this often.
const RESTARTS: usize = 1;
const DETAIL_BYTES: usize = 1000;
/// Bytes of output beyond its limit that a detail shows.
const BEGINNING_BYTES: usize = 400;

pub struct Job {
    pub solution: String,
    pub tests: Tests,
    pub limits: Limits,
    pub stop_at_first_failure: bool,
    pub mode: Mode,
    /// Of its cases, in the queue for slots.
    pub turn: Turn,
}

/// How the cases of a solution are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each in a process of its own.
    Strict,
    /// Those that pass in one process; see `batch`.
    Batch,
}

pub enum Tests {
    Stdin { cases: Vec<(String, String)>, judge: Judge },
    Assertions { setup: String, cases: Vec<String> },
}

impl Tests {
    pub fn count(&self) -> usize {
        match self {
            Tests::Stdin { cases, .. } => cases.len(),
            Tests::Assertions { cases, .. } => cases.len(),
        }
    }
}

#[derive(Debug)]
pub struct CaseResult {
    pub index: usize,
    pub verdict: Verdict,
    pub detail: String,
    /// Where a wrong answer first differs, if it was compared here.
    pub difference: Option<Difference>,
    pub used: ResourceUse,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: usize,
    pub run: usize,
    pub total: usize,
    /// The lowest index of those that failed.
    pub first_failed: Option<usize>,
}

impl Tests {
    fn kind(&self) -> Kind {
        match self {
            Tests::Stdin { .. } => Kind::Stdin,
            Tests::Assertions { .. } => Kind::Assertions,
        }
    }
}

/// What the processes of one solution share.
struct Progress {
    job: Arc<Job>,
    next: AtomicUsize,
    /// Cases that were begun and must be run again.
    again: Mutex<Vec<usize>>,
    stopped: AtomicBool,
    compiled: AtomicBool,
    deaths: AtomicUsize,
    interrupt: Arc<Interrupt>,
    bench: Bench,
}

impl Progress {
    fn new(job: Arc<Job>, supervisor: Arc<Supervisor>) -> Result<Self, Fault> {
        let interrupt = Arc::new(Interrupt::new()?);
        Ok(Progress {
            job,
            bench: Bench::new(supervisor, interrupt.clone()),
            next: AtomicUsize::new(0),
            again: Mutex::default(),
            stopped: AtomicBool::new(false),
            compiled: AtomicBool::new(false),
            deaths: AtomicUsize::new(0),
            interrupt,
        })
    }

    fn take(&self) -> Option<usize> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner).pop();
        again.or_else(|| self.take_new())
    }

    fn take_new(&self) -> Option<usize> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < self.job.tests.count()).then_some(next)
    }

    fn put_back(&self, index: usize) {
        self.again.lock().unwrap_or_else(PoisonError::into_inner).push(index);
    }

    fn left(&self) -> usize {
        if self.stopped.load(Ordering::Relaxed) {
            return 0;
        }
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner).len();
        again + self.job.tests.count().saturating_sub(self.next.load(Ordering::Relaxed))
    }

    /// One more verdict.
    fn note(&self, verdict: Verdict) {
        if self.job.stop_at_first_failure && verdict != Verdict::Ok {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// One more process of the solution was killed by nobody here; a fault when that is no accident any more.
    fn died(&self, how: &str) -> Result<(), Fault> {
        if self.deaths.fetch_add(1, Ordering::Relaxed) >= RESTARTS {
            return Err(Fault::Killed(format!("{how}, for the second time: it")));
        }
        tracing::warn!(how, "a solution is started again");
        Ok(())
    }
}

/// Ends what still runs when nobody waits for it any more.
struct Interrupts(Arc<Interrupt>);

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.0.pull();
    }
}

impl Supervisor {
    /// Runs the cases, several at once, and sends each result as it comes. Ends early when nobody listens.
    pub async fn run_tests(
        self: &Arc<Self>,
        job: Arc<Job>,
        results: mpsc::Sender<CaseResult>,
    ) -> Result<Outcome, Fault> {
        let mut outcome = Outcome { total: job.tests.count(), ..Outcome::default() };
        let progress = Arc::new(Progress::new(job, self.clone())?);
        let _interrupts = Interrupts(progress.interrupt.clone());
        let (stints, mut coming) = mpsc::unbounded_channel();
        let mut processes = FuturesUnordered::new();
        processes.push(self.run_process(progress.clone(), stints.clone()));
        loop {
            let stint: Stint = tokio::select! {
                biased;
                Some(stint) = coming.recv() => stint,
                ended = processes.next() => match ended {
                    Some(ended) => { ended?; continue; }
                    // All have ended, and what they said was taken before.
                    None => break,
                },
            };
            for result in stint.results {
                outcome.run += 1;
                let passed = result.verdict == Verdict::Ok;
                outcome.passed += usize::from(passed);
                if !passed {
                    let first = outcome.first_failed.unwrap_or(result.index);
                    outcome.first_failed = Some(first.min(result.index));
                }
                if results.send(result).await.is_err() {
                    return Ok(outcome);
                }
            }
            let wanted = progress.left().div_ceil(CASES_PER_PROCESS).min(self.case_slots.total());
            // Another process only for a slot that nobody else waits for.
            let compiled = progress.compiled.load(Ordering::Relaxed);
            if compiled && processes.len() < wanted && self.case_slots.taken() < self.case_slots.total() {
                processes.push(self.run_process(progress.clone(), stints.clone()));
            }
        }
        Ok(outcome)
    }

    /// Runs cases in one process of the solution until none is left.
    async fn run_process(
        self: &Arc<Self>,
        progress: Arc<Progress>,
        stints: mpsc::UnboundedSender<Stint>,
    ) -> Result<(), Fault> {
        let mut idle = Idle(None);
        while progress.left() > 0 {
            let slot =
                self.case_slots.take(&progress.job.turn).await.map_err(|busy| Fault::Internal(format!("{busy:?}")))?;
            let compiled = idle.0.take();
            let work = match compiled {
                Some(solution) => Work::Cases(solution),
                None if progress.job.tests.count() == 1 => {
                    let Some(index) = progress.take() else { break };
                    let files = CaseFiles::of(&progress.job, index)?;
                    Work::OnlyCase(self.start_solution(&progress, Some(&files)).await?, files)
                }
                None => Work::Compile(self.start_solution(&progress, None).await?),
            };
            let run = {
                let progress = progress.clone();
                tokio::task::spawn_blocking(move || {
                    let _slot = slot;
                    match work {
                        Work::Compile(begun) => begin(&progress, begun),
                        Work::Cases(solution) => run_cases(&progress, solution),
                        Work::OnlyCase(begun, files) => run_only_case(&progress, begun, files),
                    }
                })
            };
            let mut stint = run.await.map_err(|error| Fault::Internal(error.to_string()))??;
            idle.0 = stint.solution.take();
            for result in &stint.results {
                self.counters.count(progress.job.tests.kind(), result.verdict);
            }
            let last = stint.last;
            // Nobody listens any more when the job was dropped, and then this future is too.
            let _ = stints.send(stint);
            if last {
                break;
            }
        }
        Ok(())
    }

    /// Starts the process of the solution. `only_case` is run in it; without one it forks cases.
    async fn start_solution(&self, progress: &Progress, only_case: Option<&CaseFiles>) -> Result<Begin, Fault> {
        let job = &progress.job;
        let payload = match &job.tests {
            Tests::Stdin { .. } => descriptors::sealed_file(job.solution.as_bytes())?,
            Tests::Assertions { setup, .. } => {
                let common = Common { setup: setup.clone(), solution: job.solution.clone() };
                descriptors::sealed_file(&json(&common)?)?
            }
        };
        let errors = File::from(descriptors::empty_file()?);
        let copy = |file: &File| file.try_clone().map(OwnedFd::from);
        let (stdin, stdout, stderr) = match only_case {
            Some(files) => (files.stdin.try_clone()?, copy(&files.stdout)?, copy(&files.stderr)?),
            None => (descriptors::sealed_file(&[])?, copy(&errors)?, copy(&errors)?),
        };
        let only_case = only_case.map(CaseFiles::besides).transpose()?;
        let (kind, limits) = (job.tests.kind(), job.limits);
        let given = Given { kind, payload, stdin, stdout, stderr, only_case, limits };
        let (profile, interrupt) = (self.isolation.profile, progress.interrupt.clone());
        let starting = solution::start(&self.code, profile, given, interrupt).await?;
        Ok(Begin { starting, errors })
    }
}

/// A process that was just forked, and what it writes while it compiles.
struct Begin {
    starting: Starting,
    errors: File,
}

/// A solution between two stints. Ending its processes takes a moment, which no task of the runtime spends.
struct Idle(Option<Solution>);

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(solution) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(solution));
        }
    }
}

/// What one process of a solution got done while it held a slot.
#[derive(Default)]
struct Stint {
    results: Vec<CaseResult>,
    solution: Option<Solution>,
    /// This process is of no use any more.
    last: bool,
}

/// What a process of a solution does next.
enum Work {
    Compile(Begin),
    Cases(Solution),
    OnlyCase(Begin, CaseFiles),
}

/// A job of one case needs one process: nobody else is to be kept apart from it.
fn run_only_case(progress: &Progress, begun: Begin, files: CaseFiles) -> Result<Stint, Fault> {
    let results = match begun.starting.run_only_case() {
        Ok(seen) => match files.judge(progress, 0, seen) {
            Ok(result) => vec![result],
            Err(Broken::Interrupted) => Vec::new(),
            Err(Broken::Died(how)) => return Err(Fault::Killed(how)),
            Err(Broken::Fault(fault)) => return Err(fault),
        },
        Err(Broken::Interrupted) => Vec::new(),
        Err(Broken::Died(how)) => return Err(Fault::Killed(how)),
        Err(Broken::Fault(fault)) => return Err(fault),
    };
    Ok(Stint { results, last: true, ..Stint::default() })
}

fn begin(progress: &Progress, begun: Begin) -> Result<Stint, Fault> {
    match begun.starting.compile() {
        Ok(Begun::Ready(solution)) => {
            let first = !progress.compiled.swap(true, Ordering::Relaxed);
            if first && progress.job.mode == Mode::Batch {
                return run_batch(progress, solution);
            }
            if progress.left() <= CASES_PER_PROCESS {
                return run_cases(progress, solution);
            }
            // Others may join before the first case is run.
            Ok(Stint { solution: Some(solution), ..Stint::default() })
        }
        // The first that compiled has decided that the solution can be.
        Ok(Begun::Ended(..)) if progress.compiled.load(Ordering::Relaxed) => {
            Ok(Stint { last: true, ..Stint::default() })
        }
        Ok(Begun::Ended(seen)) => {
            let trace = tail(&begun.errors)?;
            let mut stint = Stint { last: true, ..Stint::default() };
            while let Some(index) = progress.take() {
                let Seen { verdict, ref error, used } = seen;
                let detail = shortened(explained(error, &trace));
                progress.note(verdict);
                stint.results.push(CaseResult { index, verdict, detail, difference: None, used });
            }
            Ok(stint)
        }
        Err(Broken::Died(how)) => progress.died(&how).map(|()| Stint::default()),
        Err(Broken::Interrupted) => Ok(Stint { last: true, ..Stint::default() }),
        Err(Broken::Fault(fault)) => Err(fault),
    }
}

/// Runs all cases at once, and leaves those that did not plainly pass to be run strictly.
fn run_batch(progress: &Progress, mut solution: Solution) -> Result<Stint, Fault> {
    let job = &progress.job;
    let Tests::Stdin { cases, judge } = &job.tests else { return run_cases(progress, solution) };
    let given = batch::inputs(cases.iter().map(|(given, _)| given.as_str()));
    let (stdin, inputs) = (descriptors::sealed_file(&[])?, descriptors::sealed_file(&given)?);
    let (stray, stderr, answers) = (descriptors::empty_file()?, descriptors::empty_file()?, descriptors::empty_file()?);
    let files = [&stdin, &stray, &stderr, &inputs, &answers].map(AsFd::as_fd);
    let seen = match solution.run_batch(&files) {
        Ok(seen) => seen,
        Err(Broken::Fault(fault)) => return Err(fault),
        Err(Broken::Interrupted) => return Ok(Stint { last: true, ..Stint::default() }),
        // All cases are there to be run yet.
        Err(Broken::Died(how)) => return progress.died(&how).map(|()| Stint::default()),
    };
    let written = read(&File::from(answers), 0, job.limits.output_bytes)?;
    let is_clean = File::from(stray).metadata()?.len() == 0;
    let outputs = if is_clean { batch::outputs(&written, cases.len()) } else { Vec::new() };
    let mut results = Vec::new();
    while let Some(index) = progress.take_new() {
        // A checker program judges one by one, as in strict mode.
        let passed = outputs.get(index).is_some_and(|output| match judge {
            Judge::Compare(checker) => checker.compare(output, cases[index].1.as_bytes()).is_ok(),
            Judge::Program(_) => false,
        });
        if !passed {
            progress.put_back(index);
            continue;
        }
        // Its share: what the process used cannot be told apart from outside.
        let share = outputs.len() as u32;
        let used = ResourceUse { cpu: seen.used.cpu / share, wall: seen.used.wall / share, ..seen.used };
        let (verdict, detail) = (Verdict::Ok, String::new());
        results.push(CaseResult { index, verdict, detail, difference: None, used });
    }
    Ok(Stint { results, solution: Some(solution), last: false })
}

fn run_cases(progress: &Progress, mut solution: Solution) -> Result<Stint, Fault> {
    let started = Instant::now();
    let mut results = Vec::new();
    while let Some(index) = progress.take() {
        let files = CaseFiles::of(&progress.job, index)?;
        let judged = solution.run_case(&files.descriptors()).and_then(|seen| files.judge(progress, index, seen));
        match judged {
            Ok(result) => {
                progress.note(result.verdict);
                results.push(result);
            }
            Err(Broken::Died(how)) => {
                progress.put_back(index);
                progress.died(&how)?;
                return Ok(Stint { results, ..Stint::default() });
            }
            Err(Broken::Interrupted) => return Ok(Stint { results, last: true, ..Stint::default() }),
            Err(Broken::Fault(fault)) => return Err(fault),
        }
        if started.elapsed() > STINT {
            break;
        }
    }
    Ok(Stint { results, solution: Some(solution), last: false })
}

/// The files of one case.
struct CaseFiles {
    stdin: OwnedFd,
    stdout: File,
    stderr: File,
    assertion: Option<AssertionFiles>,
}

struct AssertionFiles {
    payload: OwnedFd,
    proof: File,
    token: String,
}

impl CaseFiles {
    fn of(job: &Job, index: usize) -> Result<Self, Fault> {
        let (given, assertion) = match &job.tests {
            Tests::Stdin { cases, .. } => (cases[index].0.as_str(), None),
            Tests::Assertions { cases, .. } => {
                let token = random_token()?;
                let case = Case { case: cases[index].clone(), token: token.clone() };
                let payload = descriptors::sealed_file(&json(&case)?)?;
                ("", Some(AssertionFiles { payload, proof: descriptors::empty_file()?.into(), token }))
            }
        };
        let stdin = descriptors::sealed_file(given.as_bytes())?;
        let (stdout, stderr) = (descriptors::empty_file()?.into(), descriptors::empty_file()?.into());
        Ok(CaseFiles { stdin, stdout, stderr, assertion })
    }

    /// As the case gets them: 0, 1, 2, …
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let besides = self.assertion.iter().flat_map(|files| [files.payload.as_fd(), files.proof.as_fd()]);
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()].into_iter().chain(besides).collect()
    }

    /// Copies of those after the streams.
    fn besides(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.descriptors()[3..].iter().map(BorrowedFd::try_clone_to_owned).collect()
    }

    /// The result of a case that has ended so. Its processes are gone, and nobody writes any more.
    fn judge(&self, progress: &Progress, index: usize, mut seen: Seen) -> Result<CaseResult, Broken> {
        let job = &progress.job;
        limit_output(job, &mut seen, &self.stdout, &self.stderr)?;
        let (mut trace, mut difference) = (String::new(), None);
        if seen.verdict == Verdict::OutputLimit {
            trace = beginning(&self.stdout)?;
        } else if seen.verdict != Verdict::Ok {
            trace = tail(&self.stderr)?;
        } else if let Tests::Stdin { cases, judge } = &job.tests {
            let actual = &read(&self.stdout, 0, job.limits.output_bytes)?;
            let (stdin, expected) = &cases[index];
            if let Err(wrong) = progress.bench.judge(judge, Answer { case: index, stdin, expected, actual })? {
                (seen.verdict, seen.error) = (Verdict::WrongAnswer, wrong.text);
                difference = wrong.difference;
            }
        } else if !self.assertion.as_ref().map_or(Ok(false), AssertionFiles::is_proven)? {
            (seen.verdict, seen.error) =
                (Verdict::RuntimeError, "ended before the last assertion was reached".to_owned());
        }
        let Seen { verdict, error, used } = seen;
        Ok(CaseResult { index, verdict, detail: shortened(explained(&error, &trace)), difference, used })
    }
}

impl AssertionFiles {
    fn is_proven(&self) -> std::io::Result<bool> {
        let said = read(&self.proof, 0, self.token.len() as u64 + 1)?;
        Ok(said == self.token.as_bytes() || weakened::is_off("supervisor:token"))
    }
}

/// The kernel cuts each file one byte beyond the limit; both together are counted here.
fn limit_output(job: &Job, seen: &mut Seen, stdout: &File, stderr: &File) -> Result<(), Fault> {
    let written = stdout.metadata()?.len() + stderr.metadata()?.len();
    if written > job.limits.output_bytes && !weakened::is_off("supervisor:output") {
        (seen.verdict, seen.error) = of_reason(&Reason::Output(job.limits.output_bytes));
    }
    Ok(())
}

/// The beginning of output that went beyond its limit, of which the kernel has cut the rest.
fn beginning(stdout: &File) -> std::io::Result<String> {
    let bytes = read(stdout, 0, BEGINNING_BYTES as u64)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(format!("{}\n[… more bytes cut …]", &text[..text.floor_char_boundary(BEGINNING_BYTES)]))
}

pub fn json(payload: &impl serde::Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(payload).map_err(|error| Fault::Internal(error.to_string()))
}

/// What was hit, and the end of the traceback.
pub fn explained(error: &str, trace: &str) -> String {
    let text = if trace.is_empty() { error.to_owned() } else { format!("{error}\n{trace}") };
    // Terminals and logs do as control characters say.
    text.replace(|character: char| character.is_control() && !matches!(character, '\n' | '\t'), "\u{fffd}")
}

/// The end of a long text: a traceback says at its end what happened.
fn shortened(detail: String) -> String {
    if detail.len() <= DETAIL_BYTES {
        return detail;
    }
    let mut start = detail.len() - DETAIL_BYTES;
    while !detail.is_char_boundary(start) {
        start += 1;
    }
    format!("…{}", &detail[start..])
}

pub fn random_token() -> Result<String, Fault> {
    let mut bytes = [0u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
