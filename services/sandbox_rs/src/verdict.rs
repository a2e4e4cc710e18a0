//! How a program ended, in typed form. Pure: from what the supervisor saw to what it says.

use std::time::Duration;

use crate::layers::process::Exit;

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

/// The sandbox's own failure: never a verdict.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    #[error("sandbox: {0}")]
    Internal(String),
    #[error("sandbox is shutting down: {0}")]
    Draining(String),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::Internal(error.to_string())
    }
}

/// Why the supervisor ended a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Cpu(Duration),
    Wall(Duration),
    Output(u64),
    Processes(u32),
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

/// Exit statuses by which the inside tells kinds of failures of its own apart. Forging one only swaps one failure for
/// another.
pub const EXIT_ASSERTION: i32 = 112;
pub const EXIT_MEMORY: i32 = 113;

/// Verdict and explanation of an exit that the supervisor did not cause.
pub fn of_exit(exit: Exit, cpu: Duration, cpu_limit: Duration) -> (Verdict, String) {
    match exit {
        Exit::Code(0) => (Verdict::Ok, String::new()),
        Exit::Code(EXIT_MEMORY) => (Verdict::MemoryLimit, "out of memory".to_owned()),
        Exit::Code(EXIT_ASSERTION) => (Verdict::WrongAnswer, "an assertion failed".to_owned()),
        Exit::Code(code) => (Verdict::RuntimeError, format!("exit status {code}")),
        Exit::Signal(libc::SIGXCPU | libc::SIGKILL) if cpu >= cpu_limit => of_reason(&Reason::Cpu(cpu_limit)),
        Exit::Signal(libc::SIGXFSZ) => (Verdict::OutputLimit, "a file grew beyond its limit".to_owned()),
        Exit::Signal(libc::SIGSYS) => (Verdict::PolicyViolation, "a system call of another architecture".to_owned()),
        Exit::Signal(signal) => (Verdict::RuntimeError, format!("ended by signal {signal}")),
    }
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

    #[test]
    fn exits_map_to_verdicts() {
        let verdict = |exit| of_exit(exit, Duration::ZERO, SECOND).0;
        assert_eq!(verdict(Exit::Code(0)), Verdict::Ok);
        assert_eq!(verdict(Exit::Code(1)), Verdict::RuntimeError);
        assert_eq!(verdict(Exit::Code(EXIT_MEMORY)), Verdict::MemoryLimit);
        assert_eq!(verdict(Exit::Signal(libc::SIGSEGV)), Verdict::RuntimeError);
        assert_eq!(verdict(Exit::Signal(libc::SIGKILL)), Verdict::RuntimeError);
        assert_eq!(of_exit(Exit::Signal(libc::SIGKILL), SECOND, SECOND).0, Verdict::CpuLimit);
    }

    #[test]
    fn our_own_failures_are_never_a_verdict_alone() {
        assert!(as_fault(&Reason::Draining).is_some());
        assert!(as_fault(&Reason::Fault("disk full".to_owned())).is_some());
        assert!(as_fault(&Reason::Output(1)).is_none());
    }
}
