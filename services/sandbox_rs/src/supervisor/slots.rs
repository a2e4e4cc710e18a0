//! How much runs at once, and how much may wait. Beyond both a request is refused with a delay to try again after.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bounded number of slots with a bounded queue, first come first served.
#[derive(Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    slots: usize,
    queue: usize,
}

/// No slot and no room in the queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy {
    pub slots: usize,
    pub waiting: usize,
    pub retry_after: Duration,
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slots {
    pub fn new(slots: usize, queue: usize) -> Self {
        let free = Arc::new(Semaphore::new(slots));
        Slots { free, waiting: Arc::default(), slots, queue }
    }

    /// A slot at once, a slot after waiting, or `Busy`.
    pub async fn take(&self) -> Result<OwnedSemaphorePermit, Busy> {
        if let Ok(permit) = self.free.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self.waiting.clone());
        if ahead >= self.queue {
            let retry_after = Duration::from_millis(200 + 1800 * ahead as u64 / (self.slots as u64).max(1));
            return Err(Busy {
                slots: self.slots,
                waiting: ahead,
                retry_after: retry_after.min(Duration::from_secs(10)),
            });
        }
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        drop(waiting);
        Ok(permit)
    }

    pub fn total(&self) -> usize {
        self.slots
    }

    pub fn taken(&self) -> usize {
        self.slots - self.free.available_permits()
    }

    pub fn queued(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beyond_slots_and_queue_is_busy() {
        let slots = Slots::new(1, 1);
        let held = slots.take().await.unwrap();
        let second = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take().await.map(drop) }
        });
        while slots.queued() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.take().await.unwrap_err().waiting, 1);
        drop(held);
        assert_eq!(second.await.unwrap(), Ok(()));
        assert_eq!((slots.taken(), slots.queued()), (0, 0));
    }
}
