//! Removes a tree that a program has made, however deep it is and whatever its modes are.
//!
//! Depth costs neither descriptors nor stack: what lies two levels down is first moved up to the top, under a name of
//! ours, so that never more than two directories are open. Nobody else uses the tree any more when this runs.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::layers::check;

/// Removes the directory `path` with all that is in it. Symbolic links are removed, never followed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = OwnedFd::from(File::open(path)?);
    let mut moved: u64 = 0;
    loop {
        let entries = entries(&top)?;
        if entries.is_empty() {
            return std::fs::remove_dir(path);
        }
        for (name, _) in entries.iter().filter(|(_, directory)| !directory) {
            unlink(top.as_raw_fd(), name, 0)?;
        }
        for (name, _) in entries.iter().filter(|(_, directory)| *directory) {
            empty_into(&top, name, &mut moved)?;
            unlink(top.as_raw_fd(), name, libc::AT_REMOVEDIR)?;
        }
    }
}

/// Empties the directory `name` of `top`: files are removed, directories move to `top`.
fn empty_into(top: &OwnedFd, name: &CStr, moved: &mut u64) -> io::Result<()> {
    // SAFETY: NUL-terminated. A program may have made it without rights for its owner; a failure shows in `open`.
    unsafe { libc::fchmodat(top.as_raw_fd(), name.as_ptr(), 0o700, 0) };
    let directory = open(top.as_raw_fd(), name)?;
    for (inner, is_directory) in entries(&directory)? {
        if !is_directory {
            unlink(directory.as_raw_fd(), &inner, 0)?;
            continue;
        }
        loop {
            *moved += 1;
            let fresh =
                CString::new(format!("moved-{moved}")).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            match rename(&directory, &inner, top, &fresh) {
                // A program's own directory of that name: the next number is as good.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST)) => {}
                other => break other?,
            }
        }
    }
    Ok(())
}

fn open(parent: RawFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: NUL-terminated; the new descriptor is ours.
    unsafe {
        let descriptor = check(libc::openat(parent, name.as_ptr(), flags) as libc::c_long)?;
        Ok(OwnedFd::from_raw_fd(descriptor as RawFd))
    }
}

fn unlink(parent: RawFd, name: &CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: NUL-terminated.
    check(unsafe { libc::unlinkat(parent, name.as_ptr(), flags) } as libc::c_long).map(drop)
}

/// Renames without replacing anything. A directory can be moved only by who may write to it (its `..` changes).
fn rename(from: &OwnedFd, name: &CStr, to: &OwnedFd, fresh: &CStr) -> io::Result<()> {
    // SAFETY: NUL-terminated names, no other pointers.
    unsafe {
        libc::fchmodat(from.as_raw_fd(), name.as_ptr(), 0o700, 0);
        let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
        check(libc::syscall(libc::SYS_renameat2, from, name.as_ptr(), to, fresh.as_ptr(), libc::RENAME_NOREPLACE))
            .map(drop)
    }
}

/// Names in a directory, and whether each is one itself.
fn entries(directory: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    // Through /proc the standard library reads a directory of any depth by its descriptor.
    let listing = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    listing
        .map(|entry| {
            let entry = entry?;
            let name =
                CString::new(entry.file_name().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
            Ok((name, entry.file_type()?.is_dir()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{DirBuilderExt, symlink};

    fn folder(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("removal-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_is_removed() {
        let path = folder("deep");
        let mut current = OwnedFd::from(File::open(&path).unwrap());
        let name = c"dddddddddddddddddddddddddddddddddddddddd";
        for _ in 0..3000 {
            // SAFETY: NUL-terminated.
            unsafe { check(libc::mkdirat(current.as_raw_fd(), name.as_ptr(), 0o700) as libc::c_long).unwrap() };
            current = open(current.as_raw_fd(), name).unwrap();
        }
        drop(current);
        remove_tree(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn names_like_ours_links_and_modes_are_no_obstacle() {
        let (path, kept) = (folder("odd"), folder("kept"));
        fs::write(kept.join("file"), "kept").unwrap();
        for name in ["moved-1", "moved-2", "a"] {
            fs::create_dir_all(path.join(name).join("b/c")).unwrap();
            fs::write(path.join(name).join("b/file"), "").unwrap();
        }
        symlink(&kept, path.join("a/link")).unwrap();
        fs::DirBuilder::new().mode(0o000).create(path.join("a/b/closed")).unwrap();
        remove_tree(&path).unwrap();
        assert!(!path.exists());
        assert!(kept.join("file").exists());
        fs::remove_dir_all(kept).unwrap();
    }
}
