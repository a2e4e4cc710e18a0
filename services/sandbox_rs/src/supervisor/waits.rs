//! How long things waited, counted in buckets as Prometheus wants them.

use std::time::Duration;

/// Upper bounds in seconds; a last bucket without one follows.
pub const BOUNDS: [f64; 7] = [0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0];

/// A histogram of waiting times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    counts: [u64; BOUNDS.len() + 1],
    pub seconds: f64,
}

impl Waits {
    pub fn add(&mut self, waited: Duration) {
        let seconds = waited.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.seconds += seconds;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// For each bound, how many waited no longer.
    pub fn cumulative(&self) -> [(f64, u64); BOUNDS.len()] {
        let mut so_far = 0;
        std::array::from_fn(|index| {
            so_far += self.counts[index];
            (BOUNDS[index], so_far)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut waits = Waits::default();
        for milliseconds in [0, 5, 50, 5_000_000] {
            waits.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(waits.count(), 4);
        assert_eq!(waits.cumulative().map(|(_, count)| count), [1, 2, 3, 3, 3, 3, 3]);
    }
}
