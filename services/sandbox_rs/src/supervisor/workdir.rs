//! The private directory of one program where work directories lie on disk (profile `pod`), removed with it.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layers::check;
use crate::verdict::{Fault, Resource, Verdict};

static NUMBER: AtomicU64 = AtomicU64::new(0);

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

    pub async fn remove(mut self) -> Result<(), Fault> {
        let path = std::mem::take(&mut self.path);
        tokio::task::spawn_blocking(move || fs::remove_dir_all(&path))
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

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::error!(path = %self.path.display(), %error, "a work directory is left behind");
        }
    }
}
