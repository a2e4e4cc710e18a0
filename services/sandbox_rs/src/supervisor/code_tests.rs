//! One solution against its tests: compiled once, a process per case, results from the supervisor's own observation only.
//!
//! A job holds a slot for a short turn, then queues again behind the others, so that a short job does not wait for a long
//! one. Where slots are free, several processes of the solution run its cases at once.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::Supervisor;
use super::case_files::{CaseFiles, json};
use super::judging::Judge;
use super::progress::Progress;
use super::slots::Turn;
use super::solution::{self, Given, Solution};
use super::stints::{Begin, Stint, Work, begin, run_cases, run_only_case};
use super::watch::Interrupt;
use crate::checkers::Difference;
use crate::inside::assertions::Common;
use crate::inside::wire::Kind;
use crate::layers::descriptors;
use crate::limits::Limits;
use crate::verdict::{Fault, ResourceUse, Verdict};

/// Cases that make a further process of the same solution worth its start.
pub(super) const CASES_PER_PROCESS: usize = 8;

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
    Assertions { setup: String, entry_point: String, cases: Vec<String> },
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
        // Each a task of its own: a caller that does not read its results holds no slot.
        let mut processes = JoinSet::new();
        processes.spawn(self.clone().run_process(progress.clone(), stints.clone()).in_current_span());
        loop {
            let stint: Stint = tokio::select! {
                biased;
                Some(stint) = coming.recv() => stint,
                ended = processes.join_next() => match ended {
                    Some(ended) => { ended.map_err(|error| Fault::Internal(error.to_string()))??; continue; }
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
                processes.spawn(self.clone().run_process(progress.clone(), stints.clone()).in_current_span());
            }
        }
        Ok(outcome)
    }

    /// Runs cases in one process of the solution until none is left.
    async fn run_process(
        self: Arc<Self>,
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
            Tests::Assertions { setup, entry_point, .. } => {
                let (setup, entry_point) = (setup.clone(), entry_point.clone());
                let common = Common { setup, solution: job.solution.clone(), entry_point };
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
