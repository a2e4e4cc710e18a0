//! Reads what a program writes: keeps the first bytes, counts all of them, and says when it was too much.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::program::Switch;
use crate::verdict::Reason;

/// The kept part of one stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captured {
    pub bytes: Vec<u8>,
    /// Bytes written beyond those kept.
    pub dropped: u64,
}

impl Captured {
    /// For people: invalid UTF-8 replaced, and a marker where it was cut.
    pub fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.dropped > 0 {
            text.push_str(&format!("\n[… {} more bytes cut …]", self.dropped));
        }
        text
    }

    /// The end of the text, at most `most` bytes.
    pub fn tail(&self, most: usize) -> String {
        let text = self.text();
        let mut start = text.len().saturating_sub(most);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        text[start..].trim_end().to_owned()
    }
}

/// Bytes that all streams of a program have written together.
pub struct Budget {
    written: AtomicU64,
    limit: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Budget { written: AtomicU64::new(0), limit })
    }
}

/// Reads a pipe to its end, keeping `kept` bytes; ends the program when the budget is exceeded.
pub async fn capture(end: OwnedFd, kept: usize, budget: Arc<Budget>, switch: Switch) -> std::io::Result<Captured> {
    let mut pipe = pipe::Receiver::from_owned_fd(end)?;
    let mut captured = Captured::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = pipe.read(&mut buffer).await?;
        if count == 0 {
            return Ok(captured);
        }
        let room = kept.saturating_sub(captured.bytes.len()).min(count);
        captured.bytes.extend_from_slice(&buffer[..room]);
        captured.dropped += (count - room) as u64;
        if budget.written.fetch_add(count as u64, Ordering::Relaxed) + count as u64 > budget.limit {
            switch.end(Reason::Output(budget.limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_marked() {
        let captured = Captured { bytes: b"abc".to_vec(), dropped: 7 };
        assert_eq!(captured.text(), "abc\n[… 7 more bytes cut …]");
    }

    #[test]
    fn a_tail_never_splits_a_character() {
        let captured = Captured { bytes: "aéé".as_bytes().to_vec(), dropped: 0 };
        assert_eq!(captured.tail(3), "é");
    }
}
