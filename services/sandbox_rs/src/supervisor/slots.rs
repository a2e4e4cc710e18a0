//! How much runs at once and how much may wait, fair between callers and between the jobs of one caller.
//!
//! A free slot goes to the caller whose turn it is, and among its jobs to the one whose turn it is. So a caller with a
//! thousand jobs delays another's one by a single slot's use, and a short job of many cases interleaves with a long one.
//! Whoever stops waiting leaves the queue at once. Beyond the queue a request is refused with a delay.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::waits::Waits;

const SHORTEST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

static JOBS: AtomicU64 = AtomicU64::new(0);

/// On whose account something runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    caller: Arc<str>,
    job: u64,
}

impl Turn {
    /// A new job of a caller.
    pub fn of(caller: &str) -> Self {
        Turn { caller: caller.into(), job: JOBS.fetch_add(1, Ordering::Relaxed) }
    }
}

/// Bounds of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub slots: usize,
    pub slots_per_caller: usize,
    /// That may wait, of all callers together and of each.
    pub queue: usize,
    pub queue_per_caller: usize,
}

impl Bounds {
    /// Slots that any caller may have all of, and whose users wait as long as they must.
    pub fn unqueued(slots: usize) -> Self {
        Bounds { slots, slots_per_caller: slots, queue: usize::MAX, queue_per_caller: usize::MAX }
    }
}

/// A bounded number of slots with a bounded queue.
#[derive(Clone)]
pub struct Slots(Arc<Pool>);

struct Pool {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    waiting: usize,
    /// Callers that wait, in the order of their turns.
    rotation: VecDeque<Arc<str>>,
    callers: HashMap<Arc<str>, Caller>,
    tickets: u64,
    refused: u64,
    waits: Waits,
    /// Mean time for which a slot was held lately.
    held: Duration,
}

#[derive(Default)]
struct Caller {
    taken: usize,
    waiting: usize,
    /// Jobs that wait, in the order of their turns.
    rotation: VecDeque<u64>,
    jobs: HashMap<u64, VecDeque<Waiter>>,
}

struct Waiter {
    ticket: u64,
    since: Instant,
    grant: oneshot::Sender<Slot>,
}

/// No slot and no room in the queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy {
    pub slots: usize,
    pub waiting: usize,
    /// The queue that is full is this caller's own share.
    pub own_share: bool,
    pub retry_after: Duration,
}

/// One taken slot; given back when dropped.
pub struct Slot {
    pool: Arc<Pool>,
    caller: Arc<str>,
    since: Instant,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.taken -= 1;
        state.held = (state.held * 7 + self.since.elapsed()) / 8;
        if let Some(caller) = state.callers.get_mut(&self.caller) {
            caller.taken -= 1;
        }
        state.forget_if_idle(&self.caller);
        self.pool.dispatch(state);
    }
}

/// A place in the queue; left when dropped.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    turn: &'a Turn,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pool.lock().leave(self.turn, self.ticket);
    }
}

impl Slots {
    pub fn new(bounds: Bounds) -> Self {
        Slots(Arc::new(Pool { bounds, state: Mutex::default() }))
    }

    /// A slot at once, a slot after waiting, or `Busy`.
    pub async fn take(&self, turn: &Turn) -> Result<Slot, Busy> {
        let pool = &self.0;
        let (grant, granted) = oneshot::channel();
        let place = {
            let mut state = pool.lock();
            if state.taken < pool.bounds.slots && state.taken_by(&turn.caller) < pool.bounds.slots_per_caller {
                state.waits.add(Duration::ZERO);
                return Ok(pool.hand_out(&mut state, &turn.caller));
            }
            if let Some(busy) = pool.busy(&state, turn) {
                state.refused += 1;
                return Err(busy);
            }
            Place { pool, turn, ticket: state.enter(turn, grant) }
        };
        let slot = granted.await.expect("a waiter leaves the queue only with a slot or by its own doing");
        drop(place);
        Ok(slot)
    }

    pub fn total(&self) -> usize {
        self.0.bounds.slots
    }

    pub fn taken(&self) -> usize {
        self.0.lock().taken
    }

    pub fn queued(&self) -> usize {
        self.0.lock().waiting
    }

    pub fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    /// How long those waited who got a slot.
    pub fn waits(&self) -> Waits {
        self.0.lock().waits
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self, state: &State, turn: &Turn) -> Option<Busy> {
        let own = state.callers.get(&turn.caller).map_or(0, |caller| caller.waiting);
        let own_share = own >= self.bounds.queue_per_caller;
        if !own_share && state.waiting < self.bounds.queue {
            return None;
        }
        let rounds = (state.waiting / self.bounds.slots.max(1)).min(1 << 20) as u32 + 1;
        let retry_after = state.held.saturating_mul(rounds).clamp(SHORTEST_DELAY, LONGEST_DELAY);
        Some(Busy { slots: self.bounds.slots, waiting: state.waiting, own_share, retry_after })
    }

    fn hand_out(self: &Arc<Self>, state: &mut State, caller: &Arc<str>) -> Slot {
        state.taken += 1;
        state.callers.entry(caller.clone()).or_default().taken += 1;
        Slot { pool: self.clone(), caller: caller.clone(), since: Instant::now() }
    }

    /// Gives free slots to those whose turn it is. A slot that its waiter no longer wants comes back by being dropped,
    /// which takes the lock again: so grants are sent without it.
    fn dispatch(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut grants = Vec::new();
        while state.taken < self.bounds.slots {
            let Some((caller, waiter)) = state.next(self.bounds.slots_per_caller) else { break };
            state.waits.add(waiter.since.elapsed());
            grants.push((waiter.grant, self.hand_out(&mut state, &caller)));
        }
        drop(state);
        for (grant, slot) in grants {
            drop(grant.send(slot));
        }
    }
}

impl State {
    fn taken_by(&self, caller: &Arc<str>) -> usize {
        self.callers.get(caller).map_or(0, |caller| caller.taken)
    }

    fn enter(&mut self, turn: &Turn, grant: oneshot::Sender<Slot>) -> u64 {
        self.tickets += 1;
        self.waiting += 1;
        let caller = self.callers.entry(turn.caller.clone()).or_default();
        if caller.waiting == 0 {
            self.rotation.push_back(turn.caller.clone());
        }
        caller.waiting += 1;
        let job = caller.jobs.entry(turn.job).or_default();
        if job.is_empty() {
            caller.rotation.push_back(turn.job);
        }
        job.push_back(Waiter { ticket: self.tickets, since: Instant::now(), grant });
        self.tickets
    }

    /// Takes out the waiter whose turn it is, and moves its job and its caller behind the others.
    fn next(&mut self, slots_per_caller: usize) -> Option<(Arc<str>, Waiter)> {
        let index = self.rotation.iter().position(|caller| self.taken_by(caller) < slots_per_caller)?;
        let name = self.rotation.remove(index)?;
        let caller = self.callers.get_mut(&name)?;
        let number = caller.rotation.pop_front()?;
        let job = caller.jobs.get_mut(&number)?;
        let waiter = job.pop_front()?;
        if job.is_empty() {
            caller.jobs.remove(&number);
        } else {
            caller.rotation.push_back(number);
        }
        caller.waiting -= 1;
        if caller.waiting > 0 {
            self.rotation.push_back(name.clone());
        }
        self.waiting -= 1;
        Some((name, waiter))
    }

    /// Takes out a waiter that gave up; one that got its slot is not there any more.
    fn leave(&mut self, turn: &Turn, ticket: u64) {
        let Some(caller) = self.callers.get_mut(&turn.caller) else { return };
        let Some(job) = caller.jobs.get_mut(&turn.job) else { return };
        let Some(index) = job.iter().position(|waiter| waiter.ticket == ticket) else { return };
        job.remove(index);
        if job.is_empty() {
            caller.jobs.remove(&turn.job);
            caller.rotation.retain(|number| *number != turn.job);
        }
        caller.waiting -= 1;
        if caller.waiting == 0 {
            self.rotation.retain(|name| *name != turn.caller);
        }
        self.waiting -= 1;
        self.forget_if_idle(&turn.caller);
    }

    fn forget_if_idle(&mut self, name: &Arc<str>) {
        if self.callers.get(name).is_some_and(|caller| caller.taken + caller.waiting == 0) {
            self.callers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    fn slots(slots: usize, slots_per_caller: usize, queue: usize, queue_per_caller: usize) -> Slots {
        Slots::new(Bounds { slots, slots_per_caller, queue, queue_per_caller })
    }

    /// Waits in the queue and says `label` once it has its slot, which it gives back at once.
    async fn waits(slots: &Slots, turn: &Turn, label: &str, order: &mpsc::UnboundedSender<String>) -> JoinHandle<()> {
        let before = slots.queued();
        let (pool, turn, label, order) = (slots.clone(), turn.clone(), label.to_owned(), order.clone());
        let task = tokio::spawn(async move {
            let _slot = pool.take(&turn).await.unwrap();
            order.send(label).unwrap();
        });
        while slots.queued() == before {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn beyond_slots_and_queue_is_busy() {
        let slots = slots(1, 1, 1, 1);
        let held = slots.take(&Turn::of("a")).await.unwrap();
        let (order, mut ended) = mpsc::unbounded_channel();
        waits(&slots, &Turn::of("b"), "second", &order).await;
        let busy = slots.take(&Turn::of("c")).await.err().unwrap();
        assert_eq!((busy.waiting, busy.own_share, slots.refused()), (1, false, 1));
        drop(held);
        assert_eq!(ended.recv().await.unwrap(), "second");
    }

    #[tokio::test]
    async fn callers_take_turns_however_much_each_asks() {
        let slots = slots(1, 1, 1000, 1000);
        let held = slots.take(&Turn::of("many")).await.unwrap();
        let (order, mut ended) = mpsc::unbounded_channel();
        for number in 0..20 {
            waits(&slots, &Turn::of("many"), &format!("many {number}"), &order).await;
        }
        waits(&slots, &Turn::of("one"), "one", &order).await;
        drop(held);
        let mut labels = Vec::new();
        for _ in 0..21 {
            labels.push(ended.recv().await.unwrap());
        }
        assert_eq!(labels[1], "one");
        assert_eq!(slots.taken() + slots.queued(), 0);
    }

    #[tokio::test]
    async fn jobs_of_one_caller_take_turns() {
        let slots = slots(1, 1, 1000, 1000);
        let (long, short) = (Turn::of("a"), Turn::of("a"));
        let held = slots.take(&long).await.unwrap();
        let (order, mut ended) = mpsc::unbounded_channel();
        for _ in 0..10 {
            waits(&slots, &long, "long", &order).await;
        }
        for _ in 0..2 {
            waits(&slots, &short, "short", &order).await;
        }
        drop(held);
        let mut labels = Vec::new();
        for _ in 0..4 {
            labels.push(ended.recv().await.unwrap());
        }
        assert_eq!(labels, ["long", "short", "long", "short"]);
    }

    #[tokio::test]
    async fn a_full_share_of_one_caller_leaves_room_for_another() {
        let slots = slots(1, 1, 10, 1);
        let _held = slots.take(&Turn::of("a")).await.unwrap();
        let (order, _ended) = mpsc::unbounded_channel();
        waits(&slots, &Turn::of("a"), "a", &order).await;
        assert!(slots.take(&Turn::of("a")).await.err().unwrap().own_share);
        waits(&slots, &Turn::of("b"), "b", &order).await;
        assert_eq!(slots.queued(), 2);
    }

    #[tokio::test]
    async fn a_caller_at_its_limit_does_not_hold_up_others() {
        let slots = slots(4, 1, 10, 10);
        let _held = slots.take(&Turn::of("a")).await.unwrap();
        let (order, _ended) = mpsc::unbounded_channel();
        waits(&slots, &Turn::of("a"), "a", &order).await;
        assert!(slots.take(&Turn::of("b")).await.is_ok());
    }

    #[tokio::test]
    async fn whoever_stops_waiting_leaves_the_queue_at_once() {
        let slots = slots(1, 1, 10, 10);
        let held = slots.take(&Turn::of("a")).await.unwrap();
        let (order, mut ended) = mpsc::unbounded_channel();
        let gone = waits(&slots, &Turn::of("a"), "gone", &order).await;
        waits(&slots, &Turn::of("a"), "stays", &order).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert_eq!(slots.queued(), 1);
        drop(held);
        assert_eq!(ended.recv().await.unwrap(), "stays");
        while slots.taken() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(slots.0.lock().callers.is_empty(), "callers are forgotten");
    }
}
