//! Reads what a program writes: keeps its beginning and its end, counts all of it, and says when it was too much.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::program::Switch;
use crate::layers::weakened;
use crate::printable::printable;
use crate::verdict::Reason;

/// Bytes of the end of a long stream that are kept beside its beginning.
const KEPT_END: usize = 4096;

/// The kept part of one stream: its beginning, and of what did not fit the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captured {
    pub bytes: Vec<u8>,
    end: VecDeque<u8>,
    /// Bytes written that are in neither.
    pub dropped: u64,
}

impl Captured {
    /// Takes more of the stream, keeping at most `kept` bytes of its beginning.
    fn take(&mut self, more: &[u8], kept: usize) {
        let room = kept.saturating_sub(self.bytes.len()).min(more.len());
        let (beginning, rest) = more.split_at(room);
        self.bytes.extend_from_slice(beginning);
        self.end.extend(rest);
        let over = self.end.len().saturating_sub(KEPT_END);
        self.end.drain(..over);
        self.dropped += over as u64;
    }

    /// For people: invalid UTF-8 replaced, and a marker where it was cut.
    pub fn text(&self) -> String {
        let (first, second) = self.end.as_slices();
        let mut rest = [first, second].concat();
        if self.dropped == 0 {
            let whole = [&self.bytes[..], &rest].concat();
            return String::from_utf8_lossy(&whole).into_owned();
        }
        // The end begins anywhere in a character; what is left of that one is cut too.
        let split = rest.iter().take_while(|byte| **byte & 0xc0 == 0x80).count().min(3);
        rest.drain(..split);
        let cut = self.dropped + split as u64;
        let (beginning, end) = (String::from_utf8_lossy(&self.bytes), String::from_utf8_lossy(&rest));
        format!("{beginning}\n[… {cut} bytes cut …]\n{end}")
    }

    /// The beginning of the text, at most `most` bytes, and a marker: for output that went beyond its limit.
    pub fn head(&self, most: usize) -> String {
        let all = self.bytes.len() + self.end.len();
        let text = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(most)]);
        let text = &text[..text.floor_char_boundary(most)];
        format!("{text}\n[… {} bytes cut …]", (all + self.dropped as usize).saturating_sub(text.len()))
    }

    /// The end of the text, at most `most` bytes.
    pub fn tail(&self, most: usize) -> String {
        let text = self.text();
        let start = text.ceil_char_boundary(text.len().saturating_sub(most));
        printable(text[start..].trim_end())
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
        captured.take(&buffer[..count], kept);
        let written = budget.written.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        if written > budget.limit && !weakened::is_off("supervisor:output") {
            switch.end(Reason::Output(budget.limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(parts: &[&[u8]], kept: usize) -> Captured {
        let mut captured = Captured::default();
        parts.iter().for_each(|part| captured.take(part, kept));
        captured
    }

    #[test]
    fn what_fits_is_whole() {
        assert_eq!(captured(&[b"ab", b"cd", b"ef"], 3).text(), "abcdef");
    }

    #[test]
    fn a_cut_is_marked_and_the_end_is_kept() {
        let long = "é".repeat(KEPT_END);
        let captured = captured(&[b"abc", long.as_bytes(), b"!"], 3);
        let text = captured.text();
        let cut = captured.dropped + 1;
        assert!(text.starts_with(&format!("abc\n[… {cut} bytes cut …]\néé")), "{}", &text[..60]);
        assert!(text.ends_with("é!"));
        assert_eq!(captured.tail(3), "é!");
    }

    #[test]
    fn a_head_says_how_much_followed() {
        assert_eq!(captured(&["aéé".as_bytes()], 100).head(4), "aé\n[… 2 bytes cut …]");
    }

    #[test]
    fn a_tail_never_splits_a_character() {
        assert_eq!(captured(&["aéé".as_bytes()], 100).tail(3), "é");
    }
}
