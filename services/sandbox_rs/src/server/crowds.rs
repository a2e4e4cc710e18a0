//! Gives memory back to the system after a crowd. The allocator keeps what thousands of calls at once have used for as many
//! to come; a service that serves a few again needs none of it.

use std::sync::Arc;
use std::time::Duration;

use crate::supervisor::Supervisor;

/// Fewer calls at once leave nothing that is worth giving back.
const CROWD: usize = 1000;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The most calls that there were at once since memory was given back.
#[derive(Default)]
struct Crowd(usize);

impl Crowd {
    /// Whether there was a crowd and most of it has left; once for each crowd.
    fn has_left(&mut self, present: usize) -> bool {
        self.0 = self.0.max(present);
        let left = self.0 >= CROWD && present <= self.0 / 8;
        if left {
            self.0 = present;
        }
        left
    }
}

/// Runs for as long as the service serves.
pub async fn watch(supervisor: Arc<Supervisor>) {
    let mut crowd = Crowd::default();
    loop {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let pools = [&supervisor.workflow_slots, &supervisor.test_jobs];
        if crowd.has_left(pools.iter().map(|pool| pool.taken() + pool.queued()).sum()) {
            // Some milliseconds, in which others who want memory wait; a failure would only mean that it is kept.
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

fn give_back() {
    // SAFETY: takes no pointer; glibc locks its arenas meanwhile.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_left_once_and_a_few_are_none() {
        let mut crowd = Crowd::default();
        let left: Vec<bool> = [500, 0, 4000, 501, 500, 0, 1000, 100].map(|present| crowd.has_left(present)).into();
        assert_eq!(left, [false, false, false, false, true, false, false, true]);
    }
}
