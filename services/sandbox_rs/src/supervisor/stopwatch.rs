//! Time during which at least one of several things went on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Runs while at least one `Running` of it lives.
#[derive(Clone, Default)]
pub struct Stopwatch(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    running: usize,
    since: Option<Instant>,
    total: Duration,
}

/// Keeps its stopwatch running.
pub struct Running(Stopwatch);

impl Stopwatch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn start(&self) -> Running {
        let mut state = self.lock();
        state.running += 1;
        state.since.get_or_insert_with(Instant::now);
        Running(self.clone())
    }

    /// The time so far, with what goes on now.
    pub fn total(&self) -> Duration {
        let state = self.lock();
        state.total + state.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        if state.running == 0 {
            let span = state.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            state.total += span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_spans_count_once_and_pauses_not_at_all() {
        let (watch, began) = (Stopwatch::default(), Instant::now());
        let (first, second) = (watch.start(), watch.start());
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
        drop(second);
        let total = watch.total();
        assert!(total >= Duration::from_millis(20) && total <= began.elapsed());
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(watch.total(), total);
    }
}
