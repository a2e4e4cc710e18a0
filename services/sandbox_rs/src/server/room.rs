//! How many bytes of requests that have come whole the service holds, in all and of one caller: a few large jobs that wait would
//! otherwise take the memory that programs need. Beyond it a request is refused with a delay; one that is alone is always taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many callers can fill their share.
const SHARES: u64 = 2;

/// The bytes of all requests that wait or run.
pub struct Room {
    total: u64,
    held: Mutex<HashMap<Arc<str>, u64>>,
    refused: AtomicU64,
}

/// No room for so many bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    pub asked: u64,
    pub held: u64,
    pub total: u64,
    /// What is full is this caller's own share.
    pub own_share: bool,
}

/// Bytes of one request; given back when dropped.
pub struct Held {
    room: Arc<Room>,
    caller: Arc<str>,
    bytes: u64,
}

impl Room {
    pub fn new(total: u64) -> Arc<Self> {
        Arc::new(Room { total, held: Mutex::default(), refused: AtomicU64::new(0) })
    }

    pub fn take(self: &Arc<Self>, caller: &str, bytes: u64) -> Result<Held, Full> {
        let mut held = self.lock();
        let all: u64 = held.values().sum();
        let own = held.get(caller).copied().unwrap_or(0);
        let fits = |held: u64, total: u64| held == 0 || held.saturating_add(bytes) <= total;
        for (held, total, own_share) in [(own, self.total / SHARES, true), (all, self.total, false)] {
            if !fits(held, total) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(Full { asked: bytes, held, total, own_share });
            }
        }
        let caller: Arc<str> = caller.into();
        *held.entry(caller.clone()).or_default() += bytes;
        Ok(Held { room: self.clone(), caller, bytes })
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.lock().values().sum()
    }

    /// Requests for which there was none.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, u64>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.room.lock();
        let own = held.get_mut(&self.caller).expect("who holds bytes is there");
        *own -= self.bytes;
        if *own == 0 {
            held.remove(&self.caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_fills_its_share_and_leaves_the_other_one() {
        let room = Room::new(100);
        let first = room.take("a", 30).unwrap();
        let second = room.take("a", 20).unwrap();
        assert_eq!(room.take("a", 1).err(), Some(Full { asked: 1, held: 50, total: 50, own_share: true }));
        let other = room.take("b", 50).unwrap();
        assert_eq!(room.take("c", 1).err(), Some(Full { asked: 1, held: 100, total: 100, own_share: false }));
        drop(second);
        assert!(room.take("a", 20).is_ok());
        drop((first, other));
        assert_eq!((room.held(), room.lock().len(), room.refused()), (0, 0, 2));
    }

    #[test]
    fn one_that_is_alone_is_taken_however_large() {
        let room = Room::new(10);
        let large = room.take("a", 1000).unwrap();
        assert!(!room.take("b", 1).err().unwrap().own_share);
        drop(large);
        assert!(room.take("b", 1).is_ok());
    }
}
