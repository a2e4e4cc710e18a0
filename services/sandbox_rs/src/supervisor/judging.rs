//! Whether a program's output is right: by a comparison here, or by a checker program that the caller gives.
//!
//! A checker program runs in sandboxed processes of its own, which hold the expected output and never the solution. It
//! is an assertion suite of one case: it accepts by reaching its end, which the supervisor's random token proves, and
//! rejects by a failed assertion. However else it ends, that is a fault of the checker and says nothing of the solution.
//! Everything here blocks and belongs on a thread for blocking work.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::Supervisor;
use super::case_files::{explained, json, random_token};
use super::solution::{self, Begun, Broken, Given, Solution, read, tail};
use super::watch::Interrupt;
use crate::checkers::{Checker, Difference};
use crate::inside::assertions::{Case, Common};
use crate::inside::wire::Kind;
use crate::layers::descriptors;
use crate::limits::Limits;
use crate::verdict::{Fault, Verdict};

/// How output is judged.
#[derive(Clone, Debug, PartialEq)]
pub enum Judge {
    Compare(Checker),
    Program(CheckerProgram),
}

/// Python that finds the open text files `stdin`, `expected` and `actual`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckerProgram {
    pub source: String,
    pub limits: Limits,
}

/// Why output is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub text: String,
    /// Where it was compared here.
    pub difference: Option<Difference>,
}

/// One run of a solution.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    pub case: usize,
    pub stdin: &'a str,
    pub expected: &'a str,
    pub actual: &'a [u8],
}

/// The descriptors are 0 and those after the payload and the file for the token.
const SETUP: &str = "stdin, expected, actual = (\
    open(number, encoding='utf-8', errors='surrogateescape', closefd=False) for number in (0, 5, 6))";

/// Judges the answers of one job. A checker program runs in the slot of the case, whose process has ended.
pub struct Bench {
    supervisor: Arc<Supervisor>,
    interrupt: Arc<Interrupt>,
    runtime: Handle,
    /// Processes of the checker program that wait for an answer.
    idle: Mutex<Vec<Solution>>,
}

impl Bench {
    /// To be called in the runtime.
    pub fn new(supervisor: Arc<Supervisor>, interrupt: Arc<Interrupt>) -> Self {
        Bench { supervisor, interrupt, runtime: Handle::current(), idle: Mutex::default() }
    }

    pub fn judge(&self, judge: &Judge, answer: Answer<'_>) -> Result<Result<(), Wrong>, Broken> {
        match judge {
            Judge::Compare(checker) => Ok(checker
                .compare(answer.actual, answer.expected.as_bytes())
                .map_err(|difference| Wrong { text: difference.to_string(), difference: Some(difference) })),
            Judge::Program(program) => self.run_checker(program, answer),
        }
    }

    fn run_checker(&self, program: &CheckerProgram, answer: Answer<'_>) -> Result<Result<(), Wrong>, Broken> {
        let failed = |text: String| Err(Fault::Checker { case: answer.case, text }.into());
        let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut process = match waiting.map_or_else(|| self.begin(program), |process| Ok(Begun::Ready(process)))? {
            Begun::Ready(process) => process,
            Begun::Ended(seen) => return failed(explained(&seen.error, "")),
        };
        let token = random_token()?;
        let payload = json(&Case { case: program.source.clone(), token: token.clone() })?;
        let (stdout, stderr) = (descriptors::empty_file()?, descriptors::empty_file()?);
        let proof = descriptors::empty_file()?;
        let files = [
            &descriptors::sealed_file(answer.stdin.as_bytes())?,
            &stdout,
            &stderr,
            &descriptors::sealed_file(&payload)?,
            &proof,
            &descriptors::sealed_file(answer.expected.as_bytes())?,
            &descriptors::sealed_file(answer.actual)?,
        ];
        let seen = process.run_case(&files.map(AsFd::as_fd))?;
        let proven = read(&File::from(proof), 0, token.len() as u64 + 1)? == token.as_bytes();
        let trace = tail(&File::from(stderr))?;
        match seen.verdict {
            Verdict::Ok if proven => {}
            Verdict::Ok => return failed("it ended before it reached its end".to_owned()),
            Verdict::WrongAnswer => {}
            _ => return failed(explained(&seen.error, &trace)),
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        if proven { Ok(Ok(())) } else { Ok(Err(Wrong { text: complaint(&trace), difference: None })) }
    }

    fn begin(&self, program: &CheckerProgram) -> Result<Begun, Broken> {
        let common = Common { setup: SETUP.to_owned(), solution: String::new(), entry_point: String::new() };
        let payload = descriptors::sealed_file(&json(&common)?)?;
        let empty = descriptors::empty_file;
        let given = Given {
            kind: Kind::Assertions,
            payload,
            stdin: descriptors::sealed_file(&[])?,
            stdout: empty()?,
            stderr: empty()?,
            only_case: None,
            limits: program.limits,
        };
        let (pool, profile) = (&self.supervisor.code, self.supervisor.isolation.profile);
        self.runtime.block_on(solution::start(pool, profile, given, self.interrupt.clone()))?.compile()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        if !idle.is_empty() {
            // Ending processes takes a moment, which no task of the runtime spends.
            self.runtime.spawn_blocking(move || drop(idle));
        }
    }
}

/// What the failed assertion said.
fn complaint(trace: &str) -> String {
    const RAISED: &str = "\nAssertionError";
    let said = trace.rfind(RAISED).map_or("", |start| trace[start + RAISED.len()..].trim_start_matches(':').trim());
    if said.is_empty() { "the checker rejects it".to_owned() } else { format!("the checker rejects it: {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_says_what_the_assertion_says() {
        let trace = "Traceback:\n  File \"case\"\nAssertionError: not a permutation\nof the input";
        assert_eq!(complaint(trace), "the checker rejects it: not a permutation\nof the input");
        assert_eq!(complaint("Traceback:\nAssertionError"), "the checker rejects it");
        assert_eq!(complaint(""), "the checker rejects it");
    }
}
