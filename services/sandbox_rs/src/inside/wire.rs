//! What supervisor and zygote say to each other: packets of JSON with descriptors attached. Headers only; what a
//! program reads (its source, its input, its frames) comes through its descriptors and never passes the zygote.

use serde::{Deserialize, Serialize};

use crate::layers::Profile;
use crate::layers::landlock::Files;
use crate::layers::rlimits::ProcessLimits;

/// Largest packet.
pub const LARGEST_PACKET: usize = 64 * 1024;

/// First packet to a zygote.
#[derive(Debug, Serialize, Deserialize)]
pub struct Configure {
    pub profile: Profile,
    pub files: Files,
    pub landlock_abi: u8,
    /// Signals cannot leave the sandbox.
    pub signals: bool,
}

/// What a program is: which Python function of `inside.py` runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Workflow,
    Tool,
    Stdin,
    Assertions,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Workflow => "workflow",
            Kind::Tool => "tool",
            Kind::Stdin => "stdin",
            Kind::Assertions => "assertions",
        }
    }
}

/// Asks a zygote for one program. Attached: the report socket, then what becomes descriptors 0, 1, 2, …, then the work
/// directory if `has_directory`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spawn {
    pub kind: Kind,
    /// The program may have children: it gets a keeper, and may execute the interpreter.
    pub children: bool,
    pub limits: ProcessLimits,
    /// Bytes that the work directory may hold where it is in memory; 0 for no work directory.
    pub directory_bytes: u64,
    pub has_directory: bool,
    /// Set for a solution whose cases run in processes of their own: it compiles, then takes requests on the report
    /// socket. CPU seconds of each case; all other limits are those of the solution itself.
    pub case_cpu_seconds: Option<u64>,
}

/// A zygote's answer; the process descriptor is attached when it worked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Spawned {
    /// Ready for the next request; the answer to `Configure`.
    Ready,
    Forked {
        pid: i32,
    },
    Failed(Failure),
}

/// A step of ours that the kernel refused: the sandbox's own fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub step: String,
    pub errno: i32,
    pub text: String,
}

impl Failure {
    pub fn new(step: &str, error: &std::io::Error) -> Self {
        Failure { step: step.to_owned(), errno: error.raw_os_error().unwrap_or(0), text: error.to_string() }
    }
}

/// Names the step in which an error happened.
pub trait At<T> {
    fn at(self, step: &'static str) -> Result<T, Failure>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, &error))
    }
}

/// What comes over the report socket of a program.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// Every layer is in force; nothing untrusted was read yet. The seccomp listener is attached.
    Jailed {
        /// Number of the process as it sees it itself: the one that others see where it has no process namespace.
        process: i32,
    },
    Failed(Failure),
    /// From a keeper: its program ended with this status of `waitpid`, or was killed at its hard limit of CPU time.
    Ended {
        status: i32,
        at_cpu_limit: bool,
    },
}

/// The supervisor's requests to the process of a solution: one case, or all of them in one process. Attached: what becomes
/// descriptors 0, 1, 2, … there.
pub const CASE: &[u8] = b"case";
pub const BATCH: &[u8] = b"batch";

/// What comes from the process of a solution. None of it is believed beyond what the kernel says of a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSolution {
    /// The source is compiled; in profile `full` the sleeper of the cases' process namespace is attached.
    Compiled,
    /// The process descriptor of the case is attached.
    Forked,
    /// Of the solution or of a case that has read nothing yet.
    Failed(Failure),
}
