//! For how long a program waited for us, while any number of its calls went on at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A call of the program that has no answer yet.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// An agent has it.
    Agent,
    /// A tool that waits for a slot.
    Queued,
    /// A tool that has a slot. While one of its own has, a program waits in no queue: whoever is behind that one waits for
    /// the program itself.
    Running,
}

/// Durations are of the time during which something went on, however many things at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waited {
    /// In a queue, which a wall limit does not count.
    pub queued: Duration,
    /// In a queue or for an agent.
    pub in_all: Duration,
}

/// Adds up what a program waits for.
#[derive(Clone, Default)]
pub struct Stopwatch(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By `Call`.
    going_on: [usize; 3],
    since: Option<Instant>,
    waited: Waited,
}

impl State {
    /// Adds the time in which nothing has changed until now.
    fn settle(&mut self) {
        let now = Instant::now();
        let span = self.since.replace(now).map_or(Duration::ZERO, |since| now - since);
        let [agents, queued, running] = self.going_on;
        let in_queue = queued > 0 && running == 0;
        if in_queue {
            self.waited.queued += span;
        }
        if in_queue || agents > 0 {
            self.waited.in_all += span;
        }
    }
}

/// A call that goes on until this is dropped.
pub struct GoingOn {
    stopwatch: Stopwatch,
    call: Call,
}

impl Stopwatch {
    fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.settle();
        state
    }

    pub fn start(&self, call: Call) -> GoingOn {
        self.settled().going_on[call as usize] += 1;
        GoingOn { stopwatch: self.clone(), call }
    }

    /// The time so far, with what goes on now.
    pub fn waited(&self) -> Waited {
        self.settled().waited
    }
}

impl GoingOn {
    pub fn becomes(&mut self, call: Call) {
        let mut state = self.stopwatch.settled();
        state.going_on[self.call as usize] -= 1;
        state.going_on[call as usize] += 1;
        self.call = call;
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        self.stopwatch.settled().going_on[self.call as usize] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[test]
    fn overlapping_calls_count_once_and_pauses_not_at_all() {
        let (watch, began) = (Stopwatch::default(), Instant::now());
        let (agent, tool) = (watch.start(Call::Agent), watch.start(Call::Queued));
        std::thread::sleep(MOMENT);
        drop(agent);
        drop(tool);
        let waited = watch.waited();
        assert!(waited.queued >= MOMENT && waited.in_all >= waited.queued && waited.in_all <= began.elapsed());
        std::thread::sleep(MOMENT);
        assert_eq!(watch.waited(), waited);
    }

    #[test]
    fn behind_a_tool_call_of_its_own_a_program_waits_in_no_queue() {
        let watch = Stopwatch::default();
        let (mut first, _second) = (watch.start(Call::Queued), watch.start(Call::Queued));
        first.becomes(Call::Running);
        let waited = watch.waited();
        std::thread::sleep(MOMENT);
        assert_eq!(watch.waited(), waited);
        let agent = watch.start(Call::Agent);
        std::thread::sleep(MOMENT);
        drop(agent);
        assert!(watch.waited().in_all >= MOMENT && watch.waited().queued == waited.queued);
        drop(first);
        std::thread::sleep(MOMENT);
        assert!(watch.waited().queued >= MOMENT);
    }
}
