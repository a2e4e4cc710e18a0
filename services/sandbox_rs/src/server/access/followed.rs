//! Values that are read from files of credentials, and read again when the files change: a rotation needs no restart.
//!
//! What a changed file holds is taken whole or not at all: while it cannot be used, as between the two halves of a pair
//! that is being replaced, the value before stays, which is logged once. Files that are swapped by a link, as Kubernetes
//! does, count as changed. As `troupe_contracts.followed` has it for the services in Python.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Failure;

type Read<T> = Box<dyn Fn() -> Result<T, Failure> + Send + Sync>;
/// What changes with a file's content: inode, time of its last change in seconds and nanoseconds, size. None where it is
/// not there.
type Stamp = Vec<Option<(u64, i64, i64, u64)>>;

/// A value that follows its files for as long as somebody calls `look`.
pub struct Followed<T> {
    files: Vec<PathBuf>,
    read: Read<T>,
    value: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

struct Seen {
    taken: Stamp,
    refused: Option<Stamp>,
}

impl<T> Followed<T> {
    /// `read` makes the value of the files.
    pub fn new(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        // Before the value: what changes while it is read is read again.
        let taken = stamps(&files);
        let value = RwLock::new(Arc::new(read()?));
        Ok(Followed { files, read: Box::new(read), value, seen: Mutex::new(Seen { taken, refused: None }) })
    }

    /// As the files had it last.
    pub fn value(&self) -> Arc<T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again if they have changed. Blocks for as long as that takes.
    pub fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if now == seen.taken {
            return;
        }
        match (self.read)() {
            Ok(value) => {
                *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                *seen = Seen { taken: now, refused: None };
                tracing::info!(files = ?self.files, "credentials have changed");
            }
            Err(why) => {
                if seen.refused.as_ref() != Some(&now) {
                    tracing::error!(%why, "changed credentials cannot be used, those before stay");
                    seen.refused = Some(now);
                }
            }
        }
    }
}

fn stamps(files: &[PathBuf]) -> Stamp {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Option<(u64, i64, i64, u64)> {
    let status = std::fs::metadata(file).ok()?;
    Some((status.ino(), status.mtime(), status.mtime_nsec(), status.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_that_cannot_be_used_leaves_what_was_until_it_can() {
        let folder = std::env::temp_dir().join(format!("followed-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("number");
        std::fs::write(&file, "1").unwrap();
        let read = {
            let file = file.clone();
            move || Ok(std::fs::read_to_string(&file)?.parse::<u32>()?)
        };
        let followed = Followed::new(vec![file.clone()], read).unwrap();
        followed.look();
        assert_eq!(*followed.value(), 1);
        for unusable in ["one", ""] {
            std::fs::write(&file, unusable).unwrap();
            followed.look();
            assert_eq!(*followed.value(), 1);
        }
        std::fs::remove_file(&file).unwrap();
        followed.look();
        assert_eq!(*followed.value(), 1);
        // As a mounted Secret is swapped.
        std::fs::write(folder.join("newer"), "22").unwrap();
        std::os::unix::fs::symlink("newer", &file).unwrap();
        followed.look();
        assert_eq!(*followed.value(), 22);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
