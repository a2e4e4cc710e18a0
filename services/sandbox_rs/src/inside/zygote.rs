//! The zygote: a single-threaded interpreter with everything preloaded, which forks one process per program.
//!
//! `serve` returns only in a forked process that is in its jail already; the caller then runs the Python function for the
//! kind that is returned. In the zygote itself it ends the process when the supervisor is gone.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use super::jail;
use super::keeper;
use super::large_pages;
use super::solution::{self, Session};
use super::wire::{At, Configure, Failure, Kind, LARGEST_PACKET, Report, Spawn, Spawned};
use crate::layers::landlock::{self, Files, Rules};
use crate::layers::process::{Side, ThreadNumber, clone_for_parent};
use crate::layers::seccomp::{Filter, assemble, is_filtered};
use crate::layers::system_calls::{Grants, Program, policy};
use crate::layers::{Profile, capabilities, check, descriptors, namespaces, no_new_privs, private_root};

unsafe extern "C" {
    pub fn PyOS_BeforeFork();
    pub fn PyOS_AfterFork_Parent();
    pub fn PyOS_AfterFork_Child();
}

/// What is the same for every program of a zygote, made once.
pub struct Tables {
    pub profile: Profile,
    pub landlock_abi: u8,
    pub files: Files,
    pub files_with_interpreter: Files,
    /// `files` and no work directory, as the kernel has it.
    pub read_only: Rules,
    pub filter: Filter,
    pub filter_with_children: Filter,
    pub filter_with_cases: Filter,
    thread_number: ThreadNumber,
    threads: Threads,
}

impl Tables {
    fn new(configure: Configure, threads: Threads) -> io::Result<Self> {
        let Configure { profile, files, landlock_abi, signals } = configure;
        let filtered = is_filtered();
        let filter = |program| assemble(&policy(Grants { program, signals, filtered }));
        let files_with_interpreter = files.clone();
        let files = Files { executable: Vec::new(), ..files };
        Ok(Tables {
            profile,
            landlock_abi,
            read_only: landlock::rules(landlock_abi, &files, None)?,
            files_with_interpreter,
            files,
            filter: filter(Program::Alone),
            filter_with_children: filter(Program::WithChildren),
            filter_with_cases: filter(Program::Cases),
            thread_number: ThreadNumber::locate(),
            threads,
        })
    }
}

/// Exit status of a forked process whose jail could not be built.
pub const NOT_JAILED: i32 = 120;

/// Serves the socket on descriptor 0. The caller holds the GIL and has one thread.
pub fn serve() -> Result<Kind, Failure> {
    let control = take_control().at("control socket")?;
    let mut buffer = vec![0; LARGEST_PACKET];
    let (count, _) = descriptors::receive(control.as_fd(), &mut buffer).at("configuration")?;
    let configure: Configure = parse(&buffer[..count])?;
    no_new_privs::die_with_parent().at("parent death signal")?;
    let tables = match prepare(configure) {
        Ok(tables) => tables,
        Err(failure) => {
            answer(&control, &Spawned::Failed(failure.clone()), &[]).at("answer")?;
            return Err(failure);
        }
    };
    answer(&control, &Spawned::Ready, &[]).at("answer")?;
    loop {
        let (count, attached) = descriptors::receive(control.as_fd(), &mut buffer).at("request")?;
        if count == 0 {
            // SAFETY: ends the zygote; the supervisor has gone and nothing of this process is worth keeping.
            unsafe { libc::_exit(0) }
        }
        let spawn: Spawn = parse(&buffer[..count])?;
        match fork_program(&tables, &spawn, attached) {
            Ok(Forked::Program) => {
                // Their descriptors were closed with all others; the numbers are the program's now.
                std::mem::forget((tables, control));
                return Ok(spawn.kind);
            }
            Ok(Forked::Zygote { pid, descriptor, leash }) => {
                answer(&control, &Spawned::Forked { pid }, &[descriptor.as_raw_fd()]).at("answer")?;
                leash.let_go();
            }
            Err(failure) => answer(&control, &Spawned::Failed(failure), &[]).at("answer")?,
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(packet: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(packet).map_err(|error| Failure::new("packet", &io::Error::other(error)))
}

fn answer(control: &OwnedFd, spawned: &Spawned, attached: &[RawFd]) -> io::Result<()> {
    descriptors::send(control.as_fd(), &serde_json::to_vec(spawned)?, attached)
}

/// Moves the control socket away from descriptor 0, which becomes /dev/null as 1 and 2 are.
fn take_control() -> io::Result<OwnedFd> {
    // SAFETY: descriptor 0 is the socket that the supervisor gave to this process, owned by nobody else; it is copied
    // and then replaced.
    let control = unsafe { descriptors::lift(std::os::fd::BorrowedFd::borrow_raw(0))? };
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for number in [0, 1] {
        // SAFETY: no pointers.
        check(unsafe { libc::dup2(null.as_raw_fd(), number) } as libc::c_long)?;
    }
    Ok(control)
}

fn prepare(configure: Configure) -> Result<Tables, Failure> {
    // Opened while /proc is there.
    let threads = Threads::watch().at("threads")?;
    threads.only_one().at("one thread")?;
    large_pages::gather().at("large pages")?;
    if configure.profile == Profile::Full {
        namespaces::enter().at("namespaces")?;
        private_root::enter(&configure.files).at("private root")?;
    }
    capabilities::forbid_regaining();
    no_new_privs::forbid_inspection().at("dumpable")?;
    Tables::new(configure, threads).at("rules")
}

/// The directory of this process's threads, which has a link for each.
struct Threads(fs::File);

impl Threads {
    fn watch() -> io::Result<Self> {
        fs::File::open("/proc/self/task").map(Threads)
    }

    /// Forking with threads would leave their locks held for ever in the child.
    fn only_one(&self) -> io::Result<()> {
        let threads = self.0.metadata()?.nlink().saturating_sub(2);
        if threads == 1 {
            return Ok(());
        }
        Err(io::Error::other(format!("{threads} threads run: preload only modules that start none")))
    }
}

enum Forked {
    Program,
    Zygote { pid: i32, descriptor: OwnedFd, leash: Leash },
}

/// Holds a forked process until the supervisor has been told of it. One that the supervisor never hears of, because the
/// zygote was killed meanwhile, ends before it touches a descriptor: the supervisor gives the same to its successor.
struct Leash(OwnedFd);

impl Leash {
    fn let_go(self) {
        // SAFETY: one byte is read. It fails only where the process is gone already.
        unsafe { libc::write(self.0.as_raw_fd(), c"g".as_ptr().cast(), 1) };
    }
}

/// In the forked process: whether it was let go, and did not lose its zygote.
fn is_let_go(held: &OwnedFd) -> bool {
    let mut byte = 0u8;
    // SAFETY: one byte is written.
    unsafe { libc::read(held.as_raw_fd(), (&raw mut byte).cast(), 1) == 1 }
}

fn fork_program(tables: &Tables, spawn: &Spawn, attached: Vec<OwnedFd>) -> Result<Forked, Failure> {
    let mut lifted = attached
        .iter()
        .map(|descriptor| descriptors::lift(descriptor.as_fd()))
        .collect::<io::Result<Vec<_>>>()
        .at("descriptors")?;
    drop(attached);
    let given = if spawn.has_directory { lifted.pop() } else { None };
    // All are attached or, where they are too many for this process, none.
    let missing = || Failure::new("request", &io::Error::from_raw_os_error(libc::EMFILE));
    let report = if lifted.is_empty() { return Err(missing()) } else { lifted.remove(0) };

    tables.threads.only_one().at("one thread")?;
    let mut flags = 0;
    if tables.profile == Profile::Full && spawn.case_cpu_seconds.is_none() {
        flags |= namespaces::wanted(libc::CLONE_NEWPID);
        if spawn.directory_bytes > 0 {
            flags |= libc::CLONE_NEWNS;
        }
    }
    let (held, leash) = descriptors::pipe().at("pipe")?;
    // SAFETY: one thread, as was just seen; the GIL is held.
    let side = unsafe {
        PyOS_BeforeFork();
        let side = clone_for_parent(flags, tables.thread_number);
        if !matches!(side, Ok(Side::Child)) {
            PyOS_AfterFork_Parent();
        }
        side.at("clone")?
    };
    if let Side::Parent(pid, descriptor) = side {
        return Ok(Forked::Zygote { pid, descriptor, leash: Leash(leash) });
    }
    drop(leash);
    if !is_let_go(&held) {
        not_jailed();
    }
    drop(held);
    if spawn.case_cpu_seconds.is_some() {
        match descriptors::lift(report.as_fd()) {
            Ok(control) => lifted.push(control),
            Err(_) => not_jailed(),
        }
    }
    match become_program(tables, spawn, &lifted, given, &report) {
        Ok(()) => {
            // Whoever owned a descriptor must not close its number once `close_from` has.
            std::mem::forget(report);
            let first = lifted.len() as RawFd;
            std::mem::forget(lifted);
            if descriptors::close_from(first).is_err() {
                not_jailed();
            }
            if let Some(case_cpu_seconds) = spawn.case_cpu_seconds {
                let (profile, thread_number) = (tables.profile, tables.thread_number);
                let case_open_files = spawn.limits.open_files;
                solution::begin(Session { profile, thread_number, case_cpu_seconds, case_open_files });
            }
            Ok(Forked::Program)
        }
        Err(failure) => {
            let packet = serde_json::to_vec(&Report::Failed(failure)).unwrap_or_default();
            let _ = descriptors::send(report.as_fd(), &packet, &[]);
            not_jailed()
        }
    }
}

/// Ends this process before it has read anything.
fn not_jailed() -> ! {
    // SAFETY: nothing of this process is worth keeping.
    unsafe { libc::_exit(NOT_JAILED) }
}

/// Runs in the forked process. Returns in the program, jailed; a keeper stays inside.
fn become_program(
    tables: &Tables,
    spawn: &Spawn,
    places: &[OwnedFd],
    given: Option<OwnedFd>,
    report: &OwnedFd,
) -> Result<(), Failure> {
    // Out of the group of the zygote, whose end the supervisor takes for that of what is in it.
    own_session()?;
    let directory = jail::prepare_directory(tables.profile, spawn, given)?;
    if spawn.case_cpu_seconds.is_some() && tables.profile == Profile::Full {
        namespaces::fork_into_own().at("process namespace")?;
    }
    if spawn.children {
        match tables.profile {
            // All processes of the namespace end with its first.
            Profile::Full => no_new_privs::die_with_parent().at("parent death signal")?,
            // The keeper must outlive the supervisor for a moment: it sees the report socket close and ends its tree.
            Profile::Pod => no_new_privs::adopt_orphans().at("subreaper")?,
        }
        // SAFETY: still one thread. The keeper never touches the interpreter again.
        let program = check(unsafe { libc::fork() } as libc::c_long).at("fork")? as libc::pid_t;
        if program != 0 {
            become_keeper(program, report)?;
        }
        // The keeper kills the session that is made here.
        own_session()?;
    }
    // SAFETY: this process was forked while the GIL was held, after PyOS_BeforeFork.
    jail::enter(tables, spawn, places, &directory, report, || unsafe { PyOS_AfterFork_Child() })
}

fn own_session() -> Result<(), Failure> {
    // SAFETY: no pointers.
    check(unsafe { libc::setsid() } as libc::c_long).at("setsid").map(drop)
}

fn become_keeper(program: libc::pid_t, report: &OwnedFd) -> Result<(), Failure> {
    const REPORT: RawFd = 3;
    // SAFETY: dup3 without pointers; after `close_from` the copy at REPORT is the only descriptor above 2, and the
    // owners of the others live in frames that `keep` never returns to.
    unsafe {
        check(libc::dup3(report.as_raw_fd(), REPORT, libc::O_CLOEXEC) as libc::c_long).at("keeper")?;
        descriptors::close_from(REPORT + 1).at("keeper")?;
        keeper::keep(program, OwnedFd::from_raw_fd(REPORT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let threads = Threads::watch().unwrap();
        // Whatever the test runner has started already.
        std::thread::scope(|scope| {
            let (stop, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(threads.only_one().unwrap_err().to_string().contains("threads run"));
            drop(stop);
        });
    }
}
