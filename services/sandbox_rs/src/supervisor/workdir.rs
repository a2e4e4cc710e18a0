//! The private directory of one program where work directories lie on disk (profile `pod`), removed with it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::verdict::Fault;

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

    pub async fn remove(mut self) -> Result<(), Fault> {
        let path = std::mem::take(&mut self.path);
        tokio::task::spawn_blocking(move || fs::remove_dir_all(&path))
            .await
            .map_err(|error| Fault::Internal(error.to_string()))?
            .map_err(|error| Fault::Internal(format!("a work directory cannot be removed: {error}")))
    }
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
