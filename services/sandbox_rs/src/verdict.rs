//! How a program ended, in typed form. Pure: from what the supervisor saw to what it says.

use std::time::Duration;

use crate::layers::process::Exit;
use crate::layers::weakened;
use crate::limits::Limits;

/// Everything here is the program's doing; the sandbox's own failures are a `Fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    WrongAnswer,
    RuntimeError,
    CpuLimit,
    WallLimit,
    MemoryLimit,
    OutputLimit,
    ProcessLimit,
    PolicyViolation,
    Cancelled,
}

impl Verdict {
    /// The name used on the script's pipe.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::WrongAnswer => "wrong_answer",
            Verdict::RuntimeError => "runtime_error",
            Verdict::CpuLimit => "cpu_limit",
            Verdict::WallLimit => "wall_limit",
            Verdict::MemoryLimit => "memory_limit",
            Verdict::OutputLimit => "output_limit",
            Verdict::ProcessLimit => "process_limit",
            Verdict::PolicyViolation => "policy_violation",
            Verdict::Cancelled => "cancelled",
        }
    }
}

/// What the machine, or the container around the sandbox, had no more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The kernel killed a process of ours for want of memory, or refused it some.
    Memory,
    Disk,
    Descriptors,
    Processes,
    /// The kernel's count of them for a user, `user.max_*_namespaces`.
    Namespaces,
}

/// Steps of a jail in which the kernel says ENOSPC of namespaces.
const STEPS_OF_NAMESPACES: [&str; 2] = ["namespaces", "process namespace"];

impl Resource {
    /// The resource that an errno says is used up.
    pub fn of_errno(errno: i32) -> Option<Resource> {
        match errno {
            libc::ENOMEM => Some(Resource::Memory),
            libc::ENOSPC | libc::EDQUOT => Some(Resource::Disk),
            libc::EMFILE | libc::ENFILE => Some(Resource::Descriptors),
            libc::EAGAIN => Some(Resource::Processes),
            _ => None,
        }
    }

    /// Name for machines, as in error details and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Disk => "disk",
            Resource::Descriptors => "descriptors",
            Resource::Processes => "processes",
            Resource::Namespaces => "namespaces",
        }
    }

    pub fn remedy(self) -> &'static str {
        match self {
            Resource::Memory => {
                "raise the memory limit of the sandbox's container, or lower --workflow-slots, --test-slots or the \
                 limits that callers ask for"
            }
            Resource::Disk => "free space or inodes where --work-dir is, or put it elsewhere",
            Resource::Descriptors => "raise the limit of open files of the service (ulimit -n), or lower its slots",
            Resource::Processes => {
                "raise the limit of processes of the container (pids.max) or of the user (ulimit -u)"
            }
            Resource::Namespaces => {
                "raise the sysctls user.max_user_namespaces and user.max_*_namespaces, end what holds namespaces of this \
                 user, or start the sandbox with --profile pod"
            }
        }
    }
}

/// The sandbox's own failure: never a verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("sandbox: {0}")]
    Internal(String),
    #[error("sandbox: out of {}: {what}; {}", resource.name(), resource.remedy())]
    Exhausted {
        resource: Resource,
        what: String,
        /// Nothing of the program had run: it may be asked for again as if nothing had been.
        before: bool,
    },
    /// A process was killed by somebody who is neither the supervisor nor the program.
    #[error("sandbox: {0} was killed from outside; run it again")]
    Killed(String),
    /// The checker that the caller gave failed; nothing is said about the solution.
    #[error("the checker failed on case {case}: {text}")]
    Checker { case: usize, text: String },
    #[error("sandbox is shutting down: {0}")]
    Draining(String),
}

impl Fault {
    /// A failure of the kernel's, in the words of what was being done.
    pub fn of_errno(errno: i32, what: String) -> Fault {
        match Resource::of_errno(errno) {
            Some(resource) => Fault::Exhausted { resource, what, before: true },
            None => Fault::Internal(what),
        }
    }

    /// Whether the same may well succeed after a moment.
    pub fn passes(&self) -> bool {
        matches!(self, Fault::Exhausted { resource: Resource::Processes, .. })
    }

    /// Name for machines, as in error details and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Internal(_) => "internal",
            Fault::Exhausted { resource, .. } => resource.name(),
            Fault::Killed(_) => "killed",
            Fault::Checker { .. } => "checker",
            Fault::Draining(_) => "draining",
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::of_errno(error.raw_os_error().unwrap_or(0), error.to_string())
    }
}

impl From<crate::inside::wire::Failure> for Fault {
    fn from(failure: crate::inside::wire::Failure) -> Self {
        let what = format!("{}: {}", failure.step, failure.text);
        if failure.errno == libc::ENOSPC && STEPS_OF_NAMESPACES.contains(&failure.step.as_str()) {
            return Fault::Exhausted { resource: Resource::Namespaces, what, before: true };
        }
        Fault::of_errno(failure.errno, what)
    }
}

/// Why the supervisor ended a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Cpu(Duration),
    Wall(Duration),
    Output(u64),
    Processes(u32),
    /// Files in the work directory, in bytes.
    Directory(u64),
    /// The system call or frame, for people.
    Violation(String),
    Cancelled(String),
    /// Ours, not the program's.
    Draining,
    Fault(String),
}

/// What one program used, measured from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ResourceUse {
    pub cpu: Duration,
    pub wall: Duration,
    pub waiting: Duration,
    pub peak_memory_bytes: u64,
}

/// Exit statuses by which the inside tells kinds of failures of its own apart; the first only where cases are assertions.
/// Forging one only swaps one failure for another.
pub const EXIT_ASSERTION: i32 = 112;
pub const EXIT_MEMORY: i32 = 113;

/// Whether an exit is the doing of somebody outside: the supervisor ended nothing, the CPU limit was not reached, and it
/// is not the program's own doing: none of its processes has sent itself the signal (which goes past the supervisor), and
/// it was not at a limit of CPU time that it had set for itself.
pub fn is_from_outside(exit: Exit, cpu: Duration, cpu_limit: Duration, own_doing: bool) -> bool {
    exit == Exit::Signal(libc::SIGKILL) && cpu < cpu_limit && !own_doing
}

/// What the filter kills at once, without asking.
const KILLED_BY_FILTER: &str = "a system call of another architecture, or one that the container runtime's filter answers first, so that it has no name";

/// Verdict and explanation of an exit that the supervisor did not cause; `asserts` where it is a case that is an assertion.
pub fn of_exit(exit: Exit, used: &ResourceUse, limits: &Limits, asserts: bool) -> (Verdict, String) {
    let full = used.peak_memory_bytes >= limits.memory_bytes;
    match exit {
        _ if weakened::is_off("supervisor:exit_status") => (Verdict::Ok, String::new()),
        Exit::Code(0) => (Verdict::Ok, String::new()),
        Exit::Code(EXIT_MEMORY) => (Verdict::MemoryLimit, memory_limit(limits)),
        Exit::Code(EXIT_ASSERTION) if asserts => (Verdict::WrongAnswer, "an assertion failed".to_owned()),
        Exit::Code(code) => (Verdict::RuntimeError, format!("exit status {code}")),
        Exit::Signal(libc::SIGXCPU | libc::SIGKILL) if used.cpu >= limits.cpu => of_reason(&Reason::Cpu(limits.cpu)),
        Exit::Signal(libc::SIGXFSZ) => (Verdict::OutputLimit, "a file grew beyond its limit".to_owned()),
        Exit::Signal(libc::SIGSYS) => (Verdict::PolicyViolation, KILLED_BY_FILTER.to_owned()),
        // Native code that is refused memory seldom does more than end.
        Exit::Signal(signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGABRT)) if full => {
            (Verdict::MemoryLimit, format!("{}; ended by signal {signal}", memory_limit(limits)))
        }
        Exit::Signal(signal) => (Verdict::RuntimeError, format!("ended by signal {signal}")),
    }
}

fn memory_limit(limits: &Limits) -> String {
    format!("out of memory: asked for more than its {} bytes", limits.memory_bytes)
}

/// Verdict and explanation where the supervisor ended the program. `Draining` and `Fault` have none: see `as_fault`.
pub fn of_reason(reason: &Reason) -> (Verdict, String) {
    match reason {
        Reason::Cpu(limit) => (Verdict::CpuLimit, format!("used more than {:.3} s of CPU time", limit.as_secs_f64())),
        Reason::Wall(limit) => (Verdict::WallLimit, format!("ran longer than {:.3} s", limit.as_secs_f64())),
        Reason::Output(limit) => (Verdict::OutputLimit, format!("wrote more than {limit} bytes of output")),
        Reason::Processes(limit) => {
            (Verdict::ProcessLimit, format!("asked for more than its {limit} processes or its threads"))
        }
        Reason::Directory(limit) => {
            (Verdict::OutputLimit, format!("its work directory held more than {limit} bytes, or too many files"))
        }
        Reason::Violation(what) => (Verdict::PolicyViolation, format!("not permitted: {what}")),
        Reason::Cancelled(why) => (Verdict::Cancelled, why.clone()),
        Reason::Draining | Reason::Fault(_) => (Verdict::Cancelled, "ended by the sandbox".to_owned()),
    }
}

/// The fault behind a reason, if it is ours.
pub fn as_fault(reason: &Reason) -> Option<Fault> {
    match reason {
        Reason::Draining => Some(Fault::Draining("the program was ended; run it again elsewhere".to_owned())),
        Reason::Fault(what) => Some(Fault::Internal(what.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const LIMITS: Limits = Limits { cpu: SECOND, ..crate::limits::TEST.default };

    fn ended(exit: Exit, cpu: Duration, peak_memory_bytes: u64) -> Verdict {
        of_exit(exit, &ResourceUse { cpu, peak_memory_bytes, ..ResourceUse::default() }, &LIMITS, false).0
    }

    #[test]
    fn exits_map_to_verdicts() {
        let verdict = |exit| ended(exit, Duration::ZERO, 0);
        assert_eq!(verdict(Exit::Code(0)), Verdict::Ok);
        assert_eq!(verdict(Exit::Code(1)), Verdict::RuntimeError);
        assert_eq!(verdict(Exit::Code(EXIT_MEMORY)), Verdict::MemoryLimit);
        assert_eq!(verdict(Exit::Code(EXIT_ASSERTION)), Verdict::RuntimeError);
        let of_assertion = of_exit(Exit::Code(EXIT_ASSERTION), &ResourceUse::default(), &LIMITS, true);
        assert_eq!(of_assertion.0, Verdict::WrongAnswer);
        assert_eq!(verdict(Exit::Signal(libc::SIGSEGV)), Verdict::RuntimeError);
        assert_eq!(verdict(Exit::Signal(libc::SIGKILL)), Verdict::RuntimeError);
        assert_eq!(ended(Exit::Signal(libc::SIGKILL), SECOND, 0), Verdict::CpuLimit);
        assert_eq!(ended(Exit::Signal(libc::SIGABRT), SECOND, LIMITS.memory_bytes), Verdict::MemoryLimit);
    }

    #[test]
    fn a_kill_that_nobody_here_caused_is_from_outside_whatever_the_time() {
        let kill = Exit::Signal(libc::SIGKILL);
        for milliseconds in [0, 960, 1000, 1040, 1500, 2000] {
            assert!(is_from_outside(kill, Duration::from_millis(milliseconds), SECOND * 4, false));
        }
        assert!(!is_from_outside(kill, SECOND, SECOND, false));
        assert!(!is_from_outside(kill, Duration::ZERO, SECOND, true));
        assert!(!is_from_outside(Exit::Signal(libc::SIGSEGV), Duration::ZERO, SECOND, false));
    }

    #[test]
    fn a_failure_of_the_kernels_is_typed_by_what_is_used_up() {
        let name = |errno| Fault::from(std::io::Error::from_raw_os_error(errno)).name();
        assert_eq!(name(libc::ENOSPC), "disk");
        assert_eq!([name(libc::EMFILE), name(libc::ENFILE)], ["descriptors"; 2]);
        assert_eq!(name(libc::EAGAIN), "processes");
        assert_eq!(name(libc::ENOMEM), "memory");
        assert_eq!(name(libc::EPERM), "internal");
        let fault = Fault::from(std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(fault.to_string().contains("--work-dir"), "{fault}");
    }

    #[test]
    fn want_of_namespaces_is_not_told_as_a_full_disk() {
        let failed = |step| {
            let error = std::io::Error::from_raw_os_error(libc::ENOSPC);
            Fault::from(crate::inside::wire::Failure::new(step, &error))
        };
        for step in STEPS_OF_NAMESPACES {
            let fault = failed(step);
            assert_eq!(fault.name(), "namespaces");
            assert!(fault.to_string().contains("user.max_user_namespaces"), "{fault}");
        }
        assert_eq!(failed("private root").name(), "disk");
    }

    #[test]
    fn our_own_failures_are_never_a_verdict_alone() {
        assert!(as_fault(&Reason::Draining).is_some());
        assert!(as_fault(&Reason::Fault("disk full".to_owned())).is_some());
        assert!(as_fault(&Reason::Output(1)).is_none());
    }
}
