//! What a program may use: defaults, maxima, and how a request's figures are checked against them.

use std::time::Duration;

use pyo3::FromPyObject;

use crate::layers::rlimits::ProcessLimits;

/// Resolved limits of one program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub cpu: Duration,
    pub wall: Duration,
    pub memory_bytes: u64,
    /// All processes at once, the program's own included.
    pub processes: u32,
    pub open_files: u32,
    pub output_bytes: u64,
}

/// A program that has no processor gets longer, by so many times its wall limit at most: one that only yields is always
/// ready to run, and would go on for as long as others are busy.
const MOST_STARVED: u32 = 4;

impl Limits {
    /// The wall limit of a program that could have run for so long and had no processor.
    pub fn wall_when_starved(&self, starved: Duration) -> Duration {
        self.wall + starved.min(self.wall * MOST_STARVED)
    }
}

/// Figures of a request, or of a `troupe_sandbox.Limits`; 0 takes the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, FromPyObject)]
pub struct Asked {
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
    pub memory_bytes: u64,
    pub processes: u32,
    pub open_files: u32,
    pub output_bytes: u64,
}

/// Default and maximum for one kind of program.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub default: Limits,
    pub most: Limits,
}

/// Bytes of a Python source, or of a question.
pub const LARGEST_SOURCE: usize = 1 << 20;
/// Bytes of what agents are told about the form of their answer.
pub const LARGEST_INSTRUCTION: usize = 64 << 10;
/// Bytes of a name.
pub const LONGEST_NAME: usize = 1024;

/// Whether a text is not too large; the complaint says how large it may be.
pub fn fits(text: &str, most: usize) -> Result<(), String> {
    if text.len() > most { Err(format!("has {} bytes; at most {most}", text.len())) } else { Ok(()) }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Private memory that the interpreter itself has when a program begins.
const INTERPRETER_BYTES: u64 = 48 * MIB;
/// Address space beyond `memory_bytes` for the interpreter, its libraries and reserved but unused arenas.
const ADDRESS_SLACK: u64 = 512 * MIB;

pub const WORKFLOW: Range = Range {
    default: Limits {
        cpu: Duration::from_secs(10),
        wall: Duration::from_secs(600),
        memory_bytes: 512 * MIB,
        processes: 5,
        open_files: 128,
        output_bytes: 4 * MIB,
    },
    most: Limits {
        cpu: Duration::from_secs(600),
        wall: Duration::from_secs(7200),
        memory_bytes: 8 * GIB,
        processes: 17,
        open_files: 1024,
        output_bytes: 256 * MIB,
    },
};

pub const TOOL: Range = Range {
    default: Limits {
        cpu: Duration::from_secs(5),
        wall: Duration::from_secs(15),
        memory_bytes: 512 * MIB,
        processes: 1,
        open_files: 64,
        output_bytes: 64 * 1024,
    },
    most: Limits {
        cpu: Duration::from_secs(600),
        wall: Duration::from_secs(1800),
        memory_bytes: 8 * GIB,
        processes: 1,
        open_files: 1024,
        output_bytes: 64 * MIB,
    },
};

pub const TEST: Range = Range {
    default: Limits {
        cpu: Duration::from_secs(4),
        wall: Duration::from_secs(12),
        memory_bytes: 512 * MIB,
        processes: 1,
        open_files: 64,
        output_bytes: 16 * MIB,
    },
    most: TOOL.most,
};

/// A checker that the caller gives: it compares, at the caller's own expense.
pub const CHECKER: Range = Range {
    default: Limits { cpu: Duration::from_secs(10), wall: Duration::from_secs(30), ..TEST.default },
    most: TOOL.most,
};

/// What each kind of program may ask for at one service.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    pub workflow: Range,
    pub tool: Range,
    pub test: Range,
    pub checker: Range,
}

impl Ranges {
    /// The built-in ranges; no program gets more memory than `most_memory` bytes.
    pub fn within(most_memory: Option<u64>) -> Self {
        let capped = |range: Range| {
            let cap = |limits: Limits| {
                let memory_bytes = limits.memory_bytes.min(most_memory.unwrap_or(u64::MAX));
                Limits { memory_bytes, ..limits }
            };
            Range { default: cap(range.default), most: cap(range.most) }
        };
        Ranges { workflow: capped(WORKFLOW), tool: capped(TOOL), test: capped(TEST), checker: capped(CHECKER) }
    }
}

/// A field beyond its maximum.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuch {
    pub field: &'static str,
    pub complaint: String,
}

fn seconds(field: &'static str, asked: f64, default: Duration, most: Duration) -> Result<Duration, TooMuch> {
    if asked == 0.0 {
        return Ok(default);
    }
    let acceptable = asked.is_finite() && asked >= 0.001 && asked <= most.as_secs_f64();
    if !acceptable {
        let complaint = format!("is {asked}; use 0 for the default, or 0.001 to {} seconds", most.as_secs_f64());
        return Err(TooMuch { field, complaint });
    }
    Ok(Duration::from_secs_f64(asked))
}

fn count(field: &'static str, asked: u64, default: u64, least: u64, most: u64) -> Result<u64, TooMuch> {
    match asked {
        0 => Ok(default),
        _ if (least..=most).contains(&asked) => Ok(asked),
        _ => Err(TooMuch { field, complaint: format!("is {asked}; use 0 for the default, or {least} to {most}") }),
    }
}

impl Range {
    /// The limits that a request asks for, or the field that asks for too much.
    pub fn resolve(&self, asked: &Asked) -> Result<Limits, TooMuch> {
        let Range { default, most } = self;
        Ok(Limits {
            cpu: seconds("cpu_seconds", asked.cpu_seconds, default.cpu, most.cpu)?,
            wall: seconds("wall_seconds", asked.wall_seconds, default.wall, most.wall)?,
            memory_bytes: count("memory_bytes", asked.memory_bytes, default.memory_bytes, 16 * MIB, most.memory_bytes)?,
            processes: count("processes", asked.processes.into(), default.processes.into(), 1, most.processes.into())?
                as u32,
            open_files: count(
                "open_files",
                asked.open_files.into(),
                default.open_files.into(),
                16,
                most.open_files.into(),
            )? as u32,
            output_bytes: count("output_bytes", asked.output_bytes, default.output_bytes, 1, most.output_bytes)?,
        })
    }
}

impl Limits {
    /// The part that the kernel keeps per process. The CPU figure is a backstop of the supervisor's finer clock.
    pub fn of_process(&self) -> ProcessLimits {
        ProcessLimits {
            cpu_seconds: self.cpu.as_secs() + 2,
            data_bytes: self.memory_bytes + INTERPRETER_BYTES,
            address_bytes: self.memory_bytes + INTERPRETER_BYTES + ADDRESS_SLACK,
            file_bytes: self.output_bytes,
            open_files: self.open_files.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_processor_gets_longer_and_not_for_ever() {
        let limits = TEST.default;
        assert_eq!(limits.wall_when_starved(Duration::from_secs(5)), Duration::from_secs(17));
        assert_eq!(limits.wall_when_starved(Duration::MAX), Duration::from_secs(60));
    }

    #[test]
    fn zero_takes_the_default() {
        assert_eq!(WORKFLOW.resolve(&Asked::default()), Ok(WORKFLOW.default));
    }

    #[test]
    fn beyond_the_maximum_names_the_field() {
        let asked = Asked { wall_seconds: 1e9, ..Asked::default() };
        assert_eq!(WORKFLOW.resolve(&asked).unwrap_err().field, "wall_seconds");
        let asked = Asked { processes: 2, ..Asked::default() };
        assert_eq!(TEST.resolve(&asked).unwrap_err().field, "processes");
    }

    #[test]
    fn a_service_with_less_memory_gives_less_and_refuses_more() {
        let ranges = Ranges::within(Some(64 * MIB));
        assert_eq!(ranges.test.resolve(&Asked::default()).unwrap().memory_bytes, 64 * MIB);
        let asked = Asked { memory_bytes: 65 * MIB, ..Asked::default() };
        assert_eq!(ranges.workflow.resolve(&asked).unwrap_err().field, "memory_bytes");
    }

    #[test]
    fn nonsense_is_refused() {
        for value in [f64::NAN, f64::INFINITY, -1.0, 1e-9] {
            let asked = Asked { cpu_seconds: value, ..Asked::default() };
            assert_eq!(TEST.resolve(&asked).unwrap_err().field, "cpu_seconds");
        }
    }
}
