//! Landlock: which files may be read, written and executed; no TCP; no signals and no abstract sockets to the outside.
//!
//! Every call demands its feature (`HardRequirement`): the crate's default would silently leave out what the kernel
//! lacks. Which ABI this kernel has is found by trying, from the newest down.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use serde::{Deserialize, Serialize};

use super::check;
use super::descriptors::lift;

/// Newest ABI that is asked for: files, TCP (from 4), device controls (5), scopes (6).
pub const NEWEST: u8 = 6;
/// From this ABI on, truncating a file is an access of its own.
pub const WITH_TRUNCATE: u8 = 3;
/// From this ABI on, TCP connections are refused.
pub const WITH_NETWORK: u8 = 4;
/// From this ABI on, signals to processes outside are refused.
pub const WITH_SCOPES: u8 = 6;

/// What a program may touch. Everything else is refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    pub readable: Vec<PathBuf>,
    /// Single files that may be executed (and read).
    pub executable: Vec<PathBuf>,
    /// Devices that may also be written, such as /dev/null.
    pub devices: Vec<PathBuf>,
}

fn abi(number: u8) -> ABI {
    match number {
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    }
}

fn refused(error: impl std::error::Error + 'static) -> io::Error {
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = source {
        if let Some(number) = current.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(number);
        }
        source = current.source();
    }
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

/// A set of rules in the kernel, made once and put in force by many processes. Its descriptor is lifted above those that
/// programs are given.
pub struct Rules(OwnedFd);

/// Makes the rules. Below `workdir` all but executing, devices and sockets is allowed.
pub fn rules(abi_number: u8, files: &Files, workdir: Option<BorrowedFd<'_>>) -> io::Result<Rules> {
    let abi = abi(abi_number);
    let handled = AccessFs::from_all(abi);
    let read_only: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset = ruleset.handle_access(handled).map_err(refused)?;
    if abi_number >= WITH_NETWORK {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(refused)?;
    }
    if abi_number >= WITH_SCOPES {
        ruleset = ruleset.scope(Scope::from_all(abi)).map_err(refused)?;
    }
    let mut created = ruleset.create().map_err(refused)?;
    for (paths, access) in [
        (&files.readable, read_only),
        (&files.executable, AccessFs::ReadFile | AccessFs::Execute),
        (&files.devices, AccessFs::ReadFile | AccessFs::WriteFile),
    ] {
        for path in paths {
            let opened = PathFd::new(path).map_err(refused)?;
            let directory = path.is_dir();
            let access = if directory { access } else { access & !BitFlags::from(AccessFs::ReadDir) };
            created = created.add_rule(PathBeneath::new(opened, access)).map_err(refused)?;
        }
    }
    if let Some(directory) = workdir {
        let special = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock;
        created = created.add_rule(PathBeneath::new(directory, handled & !special)).map_err(refused)?;
    }
    let missing = || io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    let made = Option::<OwnedFd>::from(created).ok_or_else(missing)?;
    Ok(Rules(lift(made.as_fd())?))
}

impl Rules {
    /// Restricts the calling process for good. `no_new_privs` must be in force.
    pub fn restrict(&self) -> io::Result<()> {
        if super::weakened::is_off("landlock") {
            return Ok(());
        }
        // SAFETY: the descriptor is a ruleset's; no pointers.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) }).map(drop)
    }
}

/// Tries one ABI: afterwards the root directory must not be readable.
pub fn probe(abi_number: u8) -> io::Result<bool> {
    super::no_new_privs::apply()?;
    rules(abi_number, &Files::default(), None)?.restrict()?;
    Ok(std::fs::read_dir("/").is_err())
}
