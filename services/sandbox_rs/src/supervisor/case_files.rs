//! The files of one case, all in memory: what it reads, what it writes, and what is made of that once it has ended.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::code_tests::{CaseResult, Job, Tests};
use super::judging::Answer;
use super::progress::Progress;
use super::solution::{Broken, Seen, read, tail};
use crate::inside::assertions::Case;
use crate::layers::{descriptors, weakened};
use crate::verdict::{Fault, Reason, Verdict, of_reason};

const DETAIL_BYTES: usize = 1000;
/// Bytes of output beyond its limit that a detail shows.
const BEGINNING_BYTES: usize = 400;

/// The files of one case.
pub struct CaseFiles {
    pub stdin: OwnedFd,
    pub stdout: File,
    pub stderr: File,
    assertion: Option<AssertionFiles>,
}

struct AssertionFiles {
    payload: OwnedFd,
    proof: File,
    token: String,
}

impl CaseFiles {
    pub fn of(job: &Job, index: usize) -> Result<Self, Fault> {
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
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let besides = self.assertion.iter().flat_map(|files| [files.payload.as_fd(), files.proof.as_fd()]);
        [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()].into_iter().chain(besides).collect()
    }

    /// Copies of those after the streams.
    pub fn besides(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.descriptors()[3..].iter().map(BorrowedFd::try_clone_to_owned).collect()
    }

    /// The result of a case that has ended so. Its processes are gone, and nobody writes any more.
    pub fn judge(&self, progress: &Progress, index: usize, mut seen: Seen) -> Result<CaseResult, Broken> {
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
pub fn shortened(detail: String) -> String {
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
