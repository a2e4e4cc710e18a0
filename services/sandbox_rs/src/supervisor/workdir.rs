//! The private directory of one program where work directories lie on disk (profile `pod`), removed with it.
//!
//! The kernel limits each file there and not their sum, so the supervisor looks: at the directory itself, which costs
//! next to nothing while it stays empty, and at all that is in it once something is.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::program::Switch;
use super::removal::remove_tree;
use crate::layers::private_root::MOST_ENTRIES;
use crate::layers::{check, weakened};
use crate::verdict::{Fault, Reason, Resource, Verdict};

static NUMBER: AtomicU64 = AtomicU64::new(0);
/// Between two looks. A program may hold more than its limit for this long.
const PAUSE: Duration = Duration::from_millis(200);
/// A directory changed so lately may have changed again within one tick of the file system's clock.
const LATELY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct WorkDirectory {
    path: PathBuf,
}

impl WorkDirectory {
    pub fn create(root: &Path) -> io::Result<Self> {
        let path = root.join(format!("run-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(WorkDirectory { path })
    }

    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.path)?.into())
    }

    /// Whose doing it is that the disk is full, if it is: a program's own that keeps more than `most` bytes here, which
    /// is then its verdict; otherwise ours.
    pub async fn judge(&self, most: u64) -> Result<Option<(Verdict, String)>, Fault> {
        let path = self.path.clone();
        let kept = tokio::task::spawn_blocking(move || -> io::Result<Option<u64>> {
            if has_room(&path)? { Ok(None) } else { Ok(Some(bytes_under(&path))) }
        });
        match kept.await.map_err(|error| Fault::Internal(error.to_string()))?? {
            None => Ok(None),
            Some(kept) if kept > most => {
                Ok(Some((Verdict::OutputLimit, format!("filled the disk: its work directory holds {kept} bytes"))))
            }
            Some(_) => {
                let what = "no space is left where work directories are, and a program failed".to_owned();
                Err(Fault::Exhausted { resource: Resource::Disk, what, before: false })
            }
        }
    }

    /// Ends the program when its files hold more than `most` bytes, or are too many. Never returns before that.
    pub fn limit(&self, most: u64, switch: Switch) -> impl Future<Output = ()> + Send + use<> {
        let path = self.path.clone();
        async move {
            let mut seen_empty = None;
            loop {
                tokio::time::sleep(PAUSE).await;
                let changed = fs::metadata(&path).and_then(|about| about.modified()).ok();
                let is_settled =
                    changed.is_some_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > LATELY));
                if is_settled && changed == seen_empty {
                    continue;
                }
                let looked_at = path.clone();
                let held = tokio::task::spawn_blocking(move || held(&looked_at, most)).await;
                match held.unwrap_or(Held::Nothing) {
                    Held::Nothing => seen_empty = changed,
                    Held::Something => seen_empty = None,
                    Held::TooMuch if weakened::is_off("work_directory") => {}
                    Held::TooMuch => return switch.end(Reason::Directory(most)),
                }
            }
        }
    }

    pub async fn remove(mut self) -> Result<(), Fault> {
        let path = std::mem::take(&mut self.path);
        tokio::task::spawn_blocking(move || remove(&path))
            .await
            .map_err(|error| Fault::Internal(error.to_string()))?
            .map_err(|error| Fault::Internal(format!("a work directory cannot be removed: {error}")))
    }
}

/// Bytes without which a file system counts as full.
const LEAST_ROOM: u64 = 64 * 1024;

fn has_room(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated and the kernel fills one statvfs, for which all zeroes is valid.
    let status = unsafe {
        let mut status: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(path.as_ptr(), &mut status).into())?;
        status
    };
    // A file system that does not count its entries says that it has none.
    let entries = status.f_files == 0 || status.f_favail > 0;
    Ok(entries && status.f_bavail * status.f_frsize >= LEAST_ROOM)
}

fn bytes_under(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_under(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

fn remove(path: &Path) -> io::Result<()> {
    if weakened::is_off("supervisor:removal") { fs::remove_dir_all(path) } else { remove_tree(path) }
}

#[derive(Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Something,
    TooMuch,
}

/// What lies below `top`. A path too long to be followed is too much; what vanishes meanwhile counts as nothing.
fn held(top: &Path, most_bytes: u64) -> Held {
    let (mut bytes, mut entries) = (0, 0);
    let mut waiting = vec![top.to_owned()];
    while let Some(folder) = waiting.pop() {
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => return Held::TooMuch,
            Err(_) => continue,
        };
        for entry in listing.flatten() {
            entries += 1;
            let Ok(about) = entry.metadata() else { continue };
            bytes += if about.is_dir() { 0 } else { about.blocks() * 512 };
            if entries > MOST_ENTRIES || bytes > most_bytes {
                return Held::TooMuch;
            }
            if about.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    if entries == 0 { Held::Nothing } else { Held::Something }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = remove(&self.path) {
            tracing::error!(path = %self.path.display(), %error, "a work directory is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_directory_holds_is_added_up() {
        let top = std::env::temp_dir().join(format!("held-{}", std::process::id()));
        fs::create_dir(&top).unwrap();
        assert_eq!(held(&top, 100_000), Held::Nothing);
        fs::create_dir(top.join("inner")).unwrap();
        for name in ["one", "inner/two"] {
            fs::write(top.join(name), [1; 60_000]).unwrap();
        }
        assert_eq!(held(&top, 200_000), Held::Something);
        assert_eq!(held(&top, 100_000), Held::TooMuch);
        for number in 0..=MOST_ENTRIES {
            File::create(top.join(format!("{number}"))).unwrap();
        }
        assert_eq!(held(&top, 200_000), Held::TooMuch);
        remove(&top).unwrap();
    }
}
