//! The directory of one supervisor: work directories, and a folder with nothing but the interpreter.
//!
//! It is locked while its supervisor lives. What a killed one left behind is removed by the next that starts beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::removal::remove_tree;

const PREFIX: &str = "troupe-sandbox-";
static NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// The directory itself, open; the lock on it ends with this process, however that ends.
    _lock: File,
}

impl Root {
    pub fn create(parent: &Path) -> io::Result<Self> {
        sweep(parent)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let lock = File::open(&path)?;
        lock.lock()?;
        fs::create_dir(path.join("bin"))?;
        Ok(Root { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that PATH names inside.
    pub fn interpreters(&self) -> PathBuf {
        self.path.join("bin")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the working directory is left behind");
        }
    }
}

/// Removes directories whose supervisor is gone.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Another user's, or removed by another supervisor meanwhile: not ours to remove.
        let Ok(directory) = File::open(entry.path()) else { continue };
        if directory.try_lock().is_err() {
            continue;
        }
        if let Err(error) = remove_tree(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "a dead supervisor's directory is left");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supervisors_of_one_process_do_not_share_a_directory_and_dead_ones_are_swept() {
        let parent = std::env::temp_dir().join(format!("root-test-{}", std::process::id()));
        fs::create_dir(&parent).unwrap();
        let stale = parent.join("troupe-sandbox-1-0");
        fs::create_dir_all(stale.join("run-1")).unwrap();
        let first = Root::create(&parent).unwrap();
        let second = Root::create(&parent).unwrap();
        assert!(!stale.exists());
        assert_ne!(first.path(), second.path());
        drop(first);
        assert!(second.interpreters().is_dir());
        drop(second);
        // Fails unless it is empty.
        fs::remove_dir(&parent).unwrap();
    }
}
