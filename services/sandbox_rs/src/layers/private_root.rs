//! A root directory that holds only what an interpreter needs: read-only mounts of its library and of the system's
//! shared libraries, three devices, an empty mount point for the work directory. No /proc, no /etc, no /home.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::landlock::Files;
use super::{check, weakened};

/// Where a program works, in every profile with a private root.
pub const WORK_DIRECTORY: &str = "/sandbox-work";
/// Where a program works where a test has switched the private root off: an empty directory of every system.
const WORK_DIRECTORY_OUTSIDE: &str = "/mnt";
/// Files and directories that a work directory may hold.
pub const MOST_ENTRIES: u64 = 4096;
/// Where the new root is put together: a directory that exists everywhere and holds nothing that is exposed.
const STAGING: &str = "/sys";

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn mount(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let source = source.map(text).transpose()?;
    let target = text(target)?;
    let options = CString::new(options).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: every string is NUL-terminated and outlives the call; a null source or type is allowed for these flags.
    check(unsafe {
        libc::mount(
            source.as_ref().map_or(std::ptr::null(), |source| source.as_ptr()),
            target.as_ptr(),
            kind.map_or(std::ptr::null(), CStr::as_ptr),
            flags,
            options.as_ptr().cast(),
        )
    } as libc::c_long)
    .map(drop)
}

/// Flags of the mount below `path` that a user namespace may not take away.
fn locked_flags(path: &Path) -> io::Result<libc::c_ulong> {
    let path = text(path)?;
    // SAFETY: an all-zero statvfs is valid and is filled by the call.
    let flags = unsafe {
        let mut about: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(path.as_ptr(), &mut about) as libc::c_long)?;
        about.f_flag
    };
    let kept = [
        (libc::ST_NOSUID, libc::MS_NOSUID),
        (libc::ST_NODEV, libc::MS_NODEV),
        (libc::ST_NOEXEC, libc::MS_NOEXEC),
        (libc::ST_NOATIME, libc::MS_NOATIME),
        (libc::ST_NODIRATIME, libc::MS_NODIRATIME),
        (libc::ST_RELATIME, libc::MS_RELATIME),
    ];
    Ok(kept.iter().filter(|(seen, _)| flags & seen != 0).fold(0, |all, (_, flag)| all | flag))
}

/// Makes `path` appear at the same place in the new root, read-only.
fn expose(root: &Path, path: &Path, device: bool) -> io::Result<()> {
    let inside = root.join(path.strip_prefix("/").unwrap_or(path));
    if inside.symlink_metadata().is_ok_and(|about| !about.is_dir()) {
        return Ok(());
    }
    if let Some(parent) = inside.parent() {
        fs::create_dir_all(parent)?;
    }
    let about = fs::symlink_metadata(path)?;
    if about.is_symlink() {
        return symlink(fs::read_link(path)?, inside);
    }
    if about.is_dir() {
        fs::create_dir_all(&inside)?;
    } else {
        File::create(&inside)?;
    }
    mount(Some(path), &inside, None, libc::MS_BIND, "")?;
    let mut flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_NOSUID | locked_flags(&inside)?;
    if !device {
        flags |= libc::MS_RDONLY | libc::MS_NODEV;
    }
    mount(None, &inside, None, flags, "")
}

/// Where a program works.
pub fn work_directory() -> &'static str {
    if weakened::is_off("private_root") { WORK_DIRECTORY_OUTSIDE } else { WORK_DIRECTORY }
}

/// Swaps the root for a private one. The caller is in its own user and mount namespace.
pub fn enter(files: &Files) -> io::Result<()> {
    let root = PathBuf::from(STAGING);
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, "")?;
    if weakened::is_off("private_root") {
        return Ok(());
    }
    let sealed = libc::MS_NOSUID | libc::MS_NODEV;
    let sources: Vec<(PathBuf, bool)> = with_links(&files.readable)?
        .into_iter()
        .chain(with_links(&files.executable)?)
        .map(|path| (path, false))
        .chain(files.devices.iter().map(|path| (path.clone(), true)))
        .collect();
    mount(Some(Path::new("root")), &root, Some(c"tmpfs"), sealed, "size=1m,nr_inodes=4k,mode=0755")?;
    for (path, device) in &sources {
        expose(&root, path, *device)?;
    }
    fs::create_dir_all(root.join(&WORK_DIRECTORY[1..]))?;
    // Where `tempfile` looks first; taken only if nothing that must be seen lies there.
    let temporary = root.join("tmp");
    if !temporary.exists() {
        symlink(&WORK_DIRECTORY[1..], temporary)?;
    }
    std::env::set_current_dir(&root)?;
    // SAFETY: NUL-terminated literals. Pivoting to "." stacks the old root over the new one, from where it is detached.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH) as libc::c_long)?;
    }
    std::env::set_current_dir("/")?;
    mount(None, Path::new("/"), None, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | sealed, "")
}

/// Each path, preceded by the symbolic links on the way to it (such as /lib on a merged /usr) and followed by its target.
fn with_links(paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        let mut prefix = PathBuf::new();
        let mut through_link = false;
        for component in path.components() {
            prefix.push(component);
            if fs::symlink_metadata(&prefix)?.is_symlink() {
                all.push(prefix.clone());
                through_link = true;
                break;
            }
        }
        let real = if through_link { fs::canonicalize(path)? } else { path.clone() };
        all.push(real);
    }
    // Parents before what lies in them, so that a mount never hides another.
    all.sort();
    all.dedup();
    Ok(all)
}

/// Mounts an empty work directory for this process and its children only. The caller is in a mount namespace of its own.
pub fn mount_work_directory(bytes: u64, entries: u64) -> io::Result<()> {
    let target = Path::new(work_directory());
    let (bytes, entries) = if weakened::is_off("work_directory") { (64 << 20, 1 << 20) } else { (bytes, entries) };
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(
        Some(Path::new("work")),
        target,
        Some(c"tmpfs"),
        flags,
        &format!("size={bytes},nr_inodes={entries},mode=0700"),
    )
}

/// Tries the layer: afterwards /proc must be gone.
pub fn probe() -> io::Result<bool> {
    super::namespaces::enter()?;
    let files = Files { readable: vec![PathBuf::from("/usr/lib")], ..Files::default() };
    enter(&files)?;
    Ok(!Path::new("/proc").exists() && File::create("/intruder").is_err())
}
