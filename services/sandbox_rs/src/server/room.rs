//! How many bytes of requests the service holds, in all and of one caller: a few large jobs that wait would otherwise take the
//! memory that programs need. Beyond it a request is refused with a delay; one that is alone is always taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many callers can fill their share.
const SHARES: u64 = 2;

/// The bytes of all requests that come, wait or run.
pub struct Room {
    total: u64,
    held: Mutex<HashMap<Arc<str>, u64>>,
    refused: AtomicU64,
}

/// No room for what a request has become.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    /// Of the request that does not fit, so far.
    pub asked: u64,
    /// By other requests.
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

    /// A request of which nothing has come.
    pub fn nothing(self: &Arc<Self>, caller: Arc<str>) -> Held {
        Held { room: self.clone(), caller, bytes: 0 }
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

impl Held {
    /// Makes it so many bytes, if there is room for them.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        let room = self.room.clone();
        let mut held = room.lock();
        let of_others = held.values().sum::<u64>() - self.bytes;
        let own = held.get(&self.caller).copied().unwrap_or(0) - self.bytes;
        for (held, total, own_share) in [(own, room.total / SHARES, true), (of_others, room.total, false)] {
            if held > 0 && held.saturating_add(bytes) > total {
                room.refused.fetch_add(1, Ordering::Relaxed);
                return Err(Full { asked: bytes, held, total, own_share });
            }
        }
        self.write(&mut held, bytes);
        Ok(())
    }

    /// Makes it so many bytes, whether there is room for them or not.
    pub fn set(&mut self, bytes: u64) {
        let room = self.room.clone();
        self.write(&mut room.lock(), bytes);
    }

    fn write(&mut self, held: &mut HashMap<Arc<str>, u64>, bytes: u64) {
        let of_caller = held.get(&self.caller).copied().unwrap_or(0) - self.bytes + bytes;
        if of_caller == 0 {
            held.remove(&self.caller);
        } else {
            held.insert(self.caller.clone(), of_caller);
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(room: &Arc<Room>, caller: &str, bytes: u64) -> Result<Held, Full> {
        let mut held = room.nothing(caller.into());
        held.grow(bytes).map(|()| held)
    }

    #[test]
    fn one_caller_fills_its_share_and_leaves_the_other_one() {
        let room = Room::new(100);
        let first = take(&room, "a", 30).unwrap();
        let second = take(&room, "a", 20).unwrap();
        assert_eq!(take(&room, "a", 1).err(), Some(Full { asked: 1, held: 50, total: 50, own_share: true }));
        let other = take(&room, "b", 50).unwrap();
        assert_eq!(take(&room, "c", 1).err(), Some(Full { asked: 1, held: 100, total: 100, own_share: false }));
        drop(second);
        assert!(take(&room, "a", 20).is_ok());
        drop((first, other));
        assert_eq!((room.held(), room.lock().len(), room.refused()), (0, 0, 2));
    }

    #[test]
    fn one_that_is_alone_is_taken_however_large() {
        let room = Room::new(10);
        let large = take(&room, "a", 1000).unwrap();
        assert!(!take(&room, "b", 1).err().unwrap().own_share);
        drop(large);
        assert!(take(&room, "b", 1).is_ok());
    }

    #[test]
    fn what_comes_grows_until_it_does_not_fit_beside_others() {
        let room = Room::new(100);
        let mut coming = room.nothing("a".into());
        let other = take(&room, "b", 30).unwrap();
        assert!(coming.grow(40).is_ok() && coming.grow(70).is_ok());
        assert_eq!(coming.grow(71).err(), Some(Full { asked: 71, held: 30, total: 100, own_share: false }));
        assert_eq!(room.held(), 100);
        coming.set(200);
        assert_eq!(room.held(), 230);
        drop((coming, other));
        assert_eq!((room.held(), room.lock().len()), (0, 0));
    }
}
