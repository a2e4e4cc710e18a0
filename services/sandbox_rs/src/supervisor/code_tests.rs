//! One solution against its tests: a process per case, results from the supervisor's own observation only.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::Supervisor;
use super::program::Order;
use crate::checkers::Checker;
use crate::inside::assertions::Payload;
use crate::inside::wire::Kind;
use crate::layers::descriptors;
use crate::limits::Limits;
use crate::verdict::{Fault, ResourceUse, Verdict};

const DETAIL_BYTES: usize = 1000;
/// Bytes of standard error kept for the detail.
const KEPT_ERRORS: usize = 8 * 1024;

pub struct Job {
    pub solution: String,
    pub tests: Tests,
    pub limits: Limits,
    pub stop_at_first_failure: bool,
}

pub enum Tests {
    Stdin { cases: Vec<(String, String)>, checker: Checker },
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
    pub used: ResourceUse,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: usize,
    pub run: usize,
    pub total: usize,
}

impl Supervisor {
    /// Runs the cases, several at once, and sends each result as it comes. Ends early when nobody listens.
    pub async fn run_tests(
        self: &Arc<Self>,
        job: Arc<Job>,
        results: mpsc::Sender<CaseResult>,
    ) -> Result<Outcome, Fault> {
        let mut outcome = Outcome { total: job.tests.count(), ..Outcome::default() };
        let at_once = self.case_slots.total();
        let mut cases = (0..outcome.total).map(|index| self.run_case(job.clone(), index));
        let mut running: FuturesUnordered<_> = cases.by_ref().take(at_once).collect();
        while let Some(result) = running.next().await {
            let result = result?;
            outcome.run += 1;
            let passed = result.verdict == Verdict::Ok;
            outcome.passed += usize::from(passed);
            let nobody = results.send(result).await.is_err();
            // Cases that run at this moment are dropped, which ends them: they count as not run.
            if nobody || (job.stop_at_first_failure && !passed) {
                break;
            }
            running.extend(cases.next());
        }
        Ok(outcome)
    }

    async fn run_case(self: &Arc<Self>, job: Arc<Job>, index: usize) -> Result<CaseResult, Fault> {
        let slot = self.case_slots.take().await.map_err(|busy| Fault::Internal(format!("{busy:?}")))?;
        match &job.tests {
            Tests::Stdin { cases, checker } => {
                let (stdin, expected) = &cases[index];
                self.run_stdin_case(&job, index, slot, stdin, expected, *checker).await
            }
            Tests::Assertions { setup, cases } => {
                self.run_assertion_case(&job, index, slot, setup, &cases[index]).await
            }
        }
    }

    async fn run_stdin_case(
        &self,
        job: &Job,
        index: usize,
        slot: impl Send + 'static,
        stdin: &str,
        expected: &str,
        checker: Checker,
    ) -> Result<CaseResult, Fault> {
        let order = Order {
            kind: Kind::Stdin,
            limits: job.limits,
            stdin: descriptors::sealed_file(stdin.as_bytes())?,
            extra: vec![descriptors::sealed_file(job.solution.as_bytes())?],
            directory: false,
            kept: job.limits.output_bytes as usize,
            charged: Arc::default(),
        };
        let ended = self.launch(order, slot).await?.ended().await?;
        let (verdict, detail) = match ended.verdict {
            Verdict::Ok => match checker.compare(&ended.stdout.bytes, expected) {
                Ok(()) => (Verdict::Ok, String::new()),
                Err(difference) => (Verdict::WrongAnswer, difference),
            },
            other => (other, explained(&ended.error, &ended.stderr.tail(KEPT_ERRORS))),
        };
        self.counters.count(Kind::Stdin, verdict);
        Ok(CaseResult { index, verdict, detail: shortened(detail), used: ended.used })
    }

    async fn run_assertion_case(
        &self,
        job: &Job,
        index: usize,
        slot: impl Send + 'static,
        setup: &str,
        case: &str,
    ) -> Result<CaseResult, Fault> {
        let token = random_token()?;
        let payload = Payload {
            setup: setup.to_owned(),
            solution: job.solution.clone(),
            case: case.to_owned(),
            token: token.clone(),
        };
        let payload = serde_json::to_vec(&payload).map_err(|error| Fault::Internal(error.to_string()))?;
        let (proof, their_proof) = descriptors::pipe()?;
        let order = Order {
            kind: Kind::Assertions,
            limits: job.limits,
            stdin: descriptors::sealed_file(&[])?,
            extra: vec![descriptors::sealed_file(&payload)?, their_proof],
            directory: false,
            kept: KEPT_ERRORS,
            charged: Arc::default(),
        };
        let ended = self.launch(order, slot).await?.ended().await?;
        let (verdict, detail) = match ended.verdict {
            // The process and with it every writer is gone: what the pipe holds is all there will be.
            Verdict::Ok if proven(proof, &token)? => (Verdict::Ok, String::new()),
            Verdict::Ok => (Verdict::RuntimeError, "ended before the last assertion was reached".to_owned()),
            other => (other, explained(&ended.error, &ended.stderr.tail(KEPT_ERRORS))),
        };
        self.counters.count(Kind::Assertions, verdict);
        Ok(CaseResult { index, verdict, detail: shortened(detail), used: ended.used })
    }
}

/// What was hit, and the end of the traceback.
fn explained(error: &str, trace: &str) -> String {
    if trace.is_empty() { error.to_owned() } else { format!("{error}\n{trace}") }
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

fn random_token() -> Result<String, Fault> {
    let mut bytes = [0u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn proven(proof: std::os::fd::OwnedFd, token: &str) -> Result<bool, Fault> {
    let mut said = Vec::new();
    File::from(proof).take(token.len() as u64 + 1).read_to_end(&mut said)?;
    Ok(said == token.as_bytes())
}
