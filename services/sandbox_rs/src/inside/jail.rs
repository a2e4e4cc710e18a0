//! The order in which a program is put in its jail. All of it happens before a single untrusted byte is read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::wire::{At, Failure, Report, Spawn};
use super::zygote::Tables;
use crate::layers::rlimits::limit_open_files;
use crate::layers::{
    Profile, capabilities, check, descriptors, landlock, no_new_privs, private_root, sealing, seccomp,
};

/// Where a program works.
pub enum Directory {
    /// Nowhere: it can only read.
    None,
    /// In a tmpfs of its own at `/work`.
    Private,
    /// In a directory that the supervisor made for it and removes afterwards.
    Given(OwnedFd),
}

fn enter_directory(directory: &Directory) -> io::Result<()> {
    match directory {
        Directory::None => std::env::set_current_dir("/"),
        Directory::Private => std::env::set_current_dir(private_root::work_directory()),
        // SAFETY: no pointers.
        Directory::Given(given) => check(unsafe { libc::fchdir(given.as_raw_fd()) } as libc::c_long).map(drop),
    }
}

fn restrict_files(tables: &Tables, spawn: &Spawn, directory: &Directory) -> io::Result<()> {
    let opened;
    let workdir: BorrowedFd<'_> = match directory {
        Directory::None if !spawn.children => return tables.read_only.restrict(),
        Directory::None => {
            return landlock::rules(tables.landlock_abi, &tables.files_with_interpreter, None)?.restrict();
        }
        Directory::Private => {
            opened = std::fs::File::open(private_root::work_directory())?;
            opened.as_fd()
        }
        Directory::Given(given) => given.as_fd(),
    };
    let files = if spawn.children { &tables.files_with_interpreter } else { &tables.files };
    landlock::rules(tables.landlock_abi, files, Some(workdir))?.restrict()
}

/// Puts the calling process, which leads a session of its own, in its jail and says so over `report`. `places` become
/// descriptors 0, 1, 2, …; all others are closed. `settle` runs between the layers that need system calls and the one that
/// forbids them.
pub fn enter(
    tables: &Tables,
    spawn: &Spawn,
    places: &[OwnedFd],
    directory: &Directory,
    report: &OwnedFd,
    settle: impl FnOnce(),
) -> Result<(), Failure> {
    enter_directory(directory).at("work directory")?;
    descriptors::place(places).at("descriptors")?;
    spawn.limits.apply().at("rlimits")?;
    no_new_privs::apply().at("no_new_privs")?;
    restrict_files(tables, spawn, directory).at("landlock")?;
    capabilities::drop_all().at("capabilities")?;
    no_new_privs::forbid_inspection().at("dumpable")?;
    no_new_privs::die_with_parent().at("parent death signal")?;
    settle();
    let filter = match (spawn.children, spawn.case_cpu_seconds) {
        (true, _) => &tables.filter_with_children,
        (false, Some(_)) => &tables.filter_with_cases,
        (false, None) => &tables.filter,
    };
    let listener = seccomp::install(filter).at("seccomp")?;
    let jailed = Report::Jailed { process: std::process::id() as i32 };
    let packet = serde_json::to_vec(&jailed).unwrap_or_default();
    // A supervisor that died meanwhile is noticed here; without one nothing runs.
    descriptors::send(report.as_fd(), &packet, &[listener.as_raw_fd()]).at("report")?;
    // The process of a solution reads nothing but its source, and passes descriptors on; its cases are limited.
    if spawn.case_cpu_seconds.is_none() {
        limit_open_files(spawn.limits.open_files).at("open files")?;
    }
    // The process of a solution goes on talking over a socket, which its cases do not have.
    sealing::seal(spawn.case_cpu_seconds.is_none()).at("sealing")
}

/// Mounts the work directory where it is private. Runs in the process that owns the mount namespace.
pub fn prepare_directory(profile: Profile, spawn: &Spawn, given: Option<OwnedFd>) -> Result<Directory, Failure> {
    match (profile, given) {
        (_, None) if spawn.directory_bytes == 0 => Ok(Directory::None),
        (Profile::Full, None) => {
            private_root::mount_work_directory(spawn.directory_bytes, private_root::MOST_ENTRIES)
                .at("work directory")?;
            Ok(Directory::Private)
        }
        (Profile::Pod, Some(given)) => Ok(Directory::Given(given)),
        _ => Err(Failure::new("work directory", &io::Error::from_raw_os_error(libc::EINVAL))),
    }
}
