//! The supervisor: owns zygotes, slots and the report of isolation, and runs programs. The gRPC server and the Python
//! class are both thin over it. It keeps expected outputs and limits, and never forks itself.

mod batch;
mod case_files;
pub mod cgroup;
pub mod code_tests;
mod decisions;
pub mod judging;
mod launcher;
mod output;
mod program;
mod progress;
mod removal;
mod root;
pub mod slots;
mod solution;
mod stints;
pub mod stopwatch;
pub mod tool;
mod tree;
pub mod waits;
mod watch;
mod workdir;
pub mod workflow;

use std::collections::HashMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use self::launcher::{Interpreter, Pool, Preloading, Spawner};
use self::program::{Order, Program};
use self::root::Root;
use self::slots::{Bounds, Slots};
use crate::inside::wire::{Configure, Kind};
use crate::layers::landlock::{self, Files};
use crate::layers::outer::{self, Surroundings};
use crate::layers::{self, LayerReport, Profile, Wanted, probe};
use crate::limits::{Range, Ranges};
use crate::verdict::{Fault, Verdict};

/// Jobs of tests of one caller whose cases take turns, for each slot. The others wait without a process.
const ACTIVE_JOBS_PER_SLOT: usize = 16;
const TOOLS_PER_CORE: usize = 2;
/// Shares of a queue: so many callers can fill theirs.
const SHARES: usize = 8;

/// How many may wait, of each caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    pub workflows: usize,
    pub test_jobs: usize,
}

impl Queues {
    /// For callers in this process, who wait in threads or tasks of their own.
    pub const UNBOUNDED: Queues = Queues { workflows: usize::MAX, test_jobs: usize::MAX };

    /// What is right for so many scripts at once. Jobs of tests wait by the thousand: they cost their request only.
    pub fn fitting(workflow_slots: usize) -> Self {
        Queues { workflows: workflow_slots * 4, test_jobs: 4096 }
    }
}

/// Runs of python for agents at once that are right for this machine.
pub fn fitting_tools() -> usize {
    cores() * TOOLS_PER_CORE
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How to start a supervisor.
#[derive(Clone, Debug)]
pub struct Settings {
    pub wanted: Wanted,
    pub required_layers: Vec<String>,
    pub workflow_slots: usize,
    pub test_slots: usize,
    pub tool_slots: usize,
    pub queues: Queues,
    /// Programs after which a zygote is replaced.
    pub programs_per_zygote: u64,
    /// Bytes of memory that no program may have more of.
    pub most_memory: Option<u64>,
    pub python: PathBuf,
    pub inside_script: PathBuf,
    pub native_module: PathBuf,
    pub workflow_library: PathBuf,
    /// Files that the interpreter needs to read, found by the interpreter itself.
    pub readable: Vec<PathBuf>,
    /// Further modules for tests and tools, in the words of `inside.py`.
    pub preload: String,
    pub python_version: String,
    /// Where work directories are made.
    pub work_root: PathBuf,
}

/// Which layers are in force.
#[derive(Clone, Debug)]
pub struct Isolation {
    pub profile: Profile,
    pub digest: String,
    pub layers: Vec<LayerReport>,
    /// What is around the sandbox.
    pub outer: Vec<LayerReport>,
    pub python: String,
}

pub struct Supervisor {
    pub isolation: Isolation,
    pub ranges: Ranges,
    pub workflow_slots: Slots,
    /// Jobs of tests; their cases share `case_slots`.
    pub test_jobs: Slots,
    pub case_slots: Slots,
    pub tool_slots: Slots,
    pub counters: Counters,
    scripts: Arc<Pool>,
    code: Arc<Pool>,
    root: Root,
}

/// Ended programs by kind and verdict, for metrics.
#[derive(Default)]
pub struct Counters {
    ended: std::sync::Mutex<HashMap<(&'static str, &'static str), u64>>,
    faults: std::sync::Mutex<HashMap<&'static str, u64>>,
}

impl Counters {
    pub fn count(&self, kind: Kind, verdict: Verdict) {
        let mut ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *ended.entry((kind.name(), verdict.name())).or_default() += 1;
    }

    pub fn count_fault(&self, fault: &Fault) {
        let mut faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *faults.entry(fault.name()).or_default() += 1;
    }

    /// Failures of the sandbox itself, by name.
    pub fn faults(&self) -> Vec<(&'static str, u64)> {
        let faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut all: Vec<_> = faults.iter().map(|(name, count)| (*name, *count)).collect();
        all.sort_unstable();
        all
    }

    pub fn snapshot(&self) -> Vec<((&'static str, &'static str), u64)> {
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut all: Vec<_> = ended.iter().map(|(key, count)| (*key, *count)).collect();
        all.sort_unstable();
        all
    }
}

/// System folders with shared libraries, and files that the loader and the interpreter read.
const SYSTEM_FILES: &[&str] =
    &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime"];
/// Not /dev/zero: what is mapped from it is memory that no limit counts.
const DEVICES: &[&str] = &["/dev/null", "/dev/urandom", "/dev/random"];
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

impl Supervisor {
    /// Tries the layers, chooses the profile, starts the zygotes. The error of a missing layer carries its remedy.
    pub async fn start(settings: Settings) -> Result<Arc<Self>, Fault> {
        cgroup::watch();
        if let Some(unknown) = settings.required_layers.iter().find(|name| !layers::is_known(name)) {
            return Err(Fault::Internal(format!("unknown layer {unknown:?} in the required layers")));
        }
        let ranges = Ranges::within(settings.most_memory);
        let outer = look_around(&settings, &ranges)?;
        let root = Root::create(&settings.work_root)?;
        for name in ["python", "python3"] {
            symlink(&settings.python, root.interpreters().join(name))?;
        }
        let interpreter = Arc::new(Interpreter {
            executable: settings.python.clone(),
            inside_script: settings.inside_script.clone(),
            native_module: settings.native_module.clone(),
            workflow_library: settings.workflow_library.clone(),
            interpreter_directory: root.interpreters(),
            preload: settings.preload.clone(),
        });
        let spawner = Arc::new(Spawner::start()?);
        // They import what they preload while the layers are tried; what they are told follows from that.
        let (scripts, code) = tokio::try_join!(
            Preloading::start("workflow", 1, &spawner, &interpreter),
            Preloading::start("code", cores().min(settings.test_slots), &spawner, &interpreter),
        )?;
        let reports = try_layers(&spawner, &interpreter).await?;
        let profile = layers::choose(settings.wanted, &reports, &settings.required_layers).map_err(Fault::Internal)?;
        let reports = layers::without_weakened(reports);
        let in_force = layers::in_force(profile, &reports);
        let landlock_abi = [
            ("landlock_scopes", landlock::NEWEST),
            ("landlock_network", landlock::WITH_NETWORK),
            ("landlock_truncate", landlock::WITH_TRUNCATE),
        ]
        .iter()
        .find(|(layer, _)| in_force.contains(layer))
        .map_or(1, |(_, abi)| *abi);
        let existing =
            |paths: &[&str]| -> Vec<PathBuf> { paths.iter().map(PathBuf::from).filter(|path| path.exists()).collect() };
        let mut readable = existing(SYSTEM_FILES);
        readable.extend(settings.readable.iter().cloned());
        readable.push(settings.workflow_library.clone());
        readable.push(root.interpreters());
        let mut executable = existing(&[LOADER]);
        executable.push(settings.python.clone());
        let files = Files { readable, executable, devices: existing(DEVICES) };
        let signals = in_force.contains(&"pid_namespace") || in_force.contains(&"landlock_scopes");
        let configure = Arc::new(Configure { profile, files, landlock_abi, signals });
        let pool = |preloading| {
            Pool::start(
                preloading,
                settings.programs_per_zygote,
                spawner.clone(),
                interpreter.clone(),
                configure.clone(),
            )
        };
        let (scripts, code) = tokio::try_join!(pool(scripts), pool(code))?;
        let mut digest = Sha256::new();
        for part in [
            profile.name(),
            &in_force.join(","),
            &settings.python_version,
            &settings.preload,
            env!("CARGO_PKG_VERSION"),
        ] {
            digest.update(part.as_bytes());
            digest.update([0]);
        }
        digest.update(serde_json::to_vec(&configure.files).unwrap_or_default());
        let isolation = Isolation {
            profile,
            digest: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            layers: reports,
            outer,
            python: format!("{} ({})", settings.python.display(), settings.python_version),
        };
        tracing::info!(profile = profile.name(), layers = in_force.join(","), "isolation");
        Ok(Arc::new(Supervisor {
            isolation,
            ranges,
            workflow_slots: Slots::new(Bounds {
                slots: settings.workflow_slots,
                slots_per_caller: settings.workflow_slots,
                queue: settings.queues.workflows.saturating_mul(SHARES),
                queue_per_caller: settings.queues.workflows,
            }),
            test_jobs: Slots::new(Bounds {
                slots: settings.test_slots * ACTIVE_JOBS_PER_SLOT * SHARES,
                slots_per_caller: settings.test_slots * ACTIVE_JOBS_PER_SLOT,
                queue: settings.queues.test_jobs.saturating_mul(SHARES),
                queue_per_caller: settings.queues.test_jobs,
            }),
            case_slots: Slots::new(Bounds::unqueued(settings.test_slots)),
            tool_slots: Slots::new(Bounds::unqueued(settings.tool_slots)),
            counters: Counters::default(),
            scripts: Arc::new(scripts),
            code: Arc::new(code),
            root,
        }))
    }

    /// Layers of a request that the profile in force lacks.
    pub fn missing_layers(&self, required: &[String]) -> Vec<String> {
        let mut missing = layers::missing_layers(self.isolation.profile, &self.isolation.layers, required);
        missing.extend(outer::missing(&self.isolation.outer, required));
        missing
    }

    pub fn zygotes_replaced(&self) -> u64 {
        self.scripts.replaced.load(Ordering::Relaxed) + self.code.replaced.load(Ordering::Relaxed)
    }

    async fn launch(&self, order: Order, held: impl Send + 'static) -> Result<Program, Fault> {
        let pool = if order.kind == Kind::Workflow { &self.scripts } else { &self.code };
        program::start(pool, self.isolation.profile, self.root.path(), order, held).await
    }
}

/// What is around us. An outer layer that is required and missing stops the start.
fn look_around(settings: &Settings, ranges: &Ranges) -> Result<Vec<LayerReport>, Fault> {
    let most = |slots: usize, range: &Range| slots as u64 * range.default.memory_bytes;
    let promised = most(settings.workflow_slots, &ranges.workflow)
        + most(settings.test_slots, &ranges.test)
        + most(settings.tool_slots, &ranges.tool);
    let limit = cgroup::MemoryGroup::around().and_then(|group| group.limit());
    let reports = Surroundings::read(cgroup::memory_limit(), promised).report();
    let missing = outer::missing(&reports, &settings.required_layers);
    if !missing.is_empty() {
        return Err(Fault::Internal(missing.join("; ")));
    }
    // Without a container around us nothing but this machine is at stake.
    let short =
        reports.iter().find(|report| limit.is_some() && report.name == outer::MEMORY_HEADROOM && !report.active);
    if let Some(report) = short {
        tracing::warn!(detail = report.detail, remedy = report.remedy, "memory may run out");
    }
    Ok(reports)
}

/// Runs the probe in an interpreter of its own.
async fn try_layers(spawner: &Spawner, interpreter: &Interpreter) -> Result<Vec<LayerReport>, Fault> {
    let mut command = interpreter.command("probe");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let child = spawner.spawn(command).await?;
    let output = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .map_err(|error| Fault::Internal(error.to_string()))??;
    if !output.status.success() {
        return Err(Fault::Internal(format!("the probe of the layers ended with {}", output.status)));
    }
    probe::parse(&String::from_utf8_lossy(&output.stdout)).map_err(Fault::Internal)
}
