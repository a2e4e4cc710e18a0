//! How far a job of tests has come: which cases are left, and what all processes of its solution share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Supervisor;
use super::code_tests::Job;
use super::judging::Bench;
use super::watch::Interrupt;
use crate::verdict::{Fault, Verdict};

/// A solution whose process was killed from outside is started again this often.
const RESTARTS: usize = 1;

/// What the processes of one solution share.
pub struct Progress {
    pub job: Arc<Job>,
    pub next: AtomicUsize,
    /// Cases that were begun and must be run again.
    again: Mutex<Vec<usize>>,
    pub stopped: AtomicBool,
    pub compiled: AtomicBool,
    deaths: AtomicUsize,
    pub interrupt: Arc<Interrupt>,
    pub bench: Bench,
}

impl Progress {
    pub fn new(job: Arc<Job>, supervisor: Arc<Supervisor>) -> Result<Self, Fault> {
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

    pub fn take(&self) -> Option<usize> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner).pop();
        again.or_else(|| self.take_new())
    }

    pub fn take_new(&self) -> Option<usize> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < self.job.tests.count()).then_some(next)
    }

    pub fn put_back(&self, index: usize) {
        self.again.lock().unwrap_or_else(PoisonError::into_inner).push(index);
    }

    pub fn left(&self) -> usize {
        if self.stopped.load(Ordering::Relaxed) {
            return 0;
        }
        let again = self.again.lock().unwrap_or_else(PoisonError::into_inner).len();
        again + self.job.tests.count().saturating_sub(self.next.load(Ordering::Relaxed))
    }

    /// One more verdict.
    pub fn note(&self, verdict: Verdict) {
        if self.job.stop_at_first_failure && verdict != Verdict::Ok {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// One more process of the solution was killed by nobody here; a fault when that is no accident any more.
    pub fn died(&self, how: &str) -> Result<(), Fault> {
        if self.deaths.fetch_add(1, Ordering::Relaxed) >= RESTARTS {
            return Err(Fault::Killed(format!("{how}, for the second time: it")));
        }
        tracing::warn!(how, "a solution is started again");
        Ok(())
    }
}
