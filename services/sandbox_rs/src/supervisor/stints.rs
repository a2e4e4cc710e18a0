//! What a process of a solution gets done while it holds a slot: it compiles, or it runs cases until its time is up.
//!
//! Everything here blocks and belongs on a thread for blocking work.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::batch;
use super::case_files::{CaseFiles, explained, shortened};
use super::code_tests::{CASES_PER_PROCESS, CaseResult, Mode, Tests};
use super::judging::Judge;
use super::progress::Progress;
use super::solution::{Begun, Broken, Seen, Solution, Starting, read, tail};
use crate::layers::descriptors;
use crate::verdict::{Fault, ResourceUse, Verdict};

/// A job that runs longer than this lets others go first.
const STINT: Duration = Duration::from_millis(10);

/// A process that was just forked, and what it writes while it compiles.
pub struct Begin {
    pub starting: Starting,
    pub errors: File,
}

/// What one process of a solution got done while it held a slot.
#[derive(Default)]
pub struct Stint {
    pub results: Vec<CaseResult>,
    pub solution: Option<Solution>,
    /// This process is of no use any more.
    pub last: bool,
}

/// What a process of a solution does next.
pub enum Work {
    Compile(Begin),
    Cases(Solution),
    OnlyCase(Begin, CaseFiles),
}

/// A job of one case needs one process: nobody else is to be kept apart from it.
pub fn run_only_case(progress: &Progress, begun: Begin, files: CaseFiles) -> Result<Stint, Fault> {
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

pub fn begin(progress: &Progress, begun: Begin) -> Result<Stint, Fault> {
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
    // A process that ended badly may have written any answers before.
    let is_clean = seen.verdict == Verdict::Ok && File::from(stray).metadata()?.len() == 0;
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

pub fn run_cases(progress: &Progress, mut solution: Solution) -> Result<Stint, Fault> {
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
