//! The Python face: `serve` for the service's main program, `Sandbox` for use in process, and functions that only
//! sandboxed interpreters call (`inside.py`).
//!
//! The GIL is released around every wait, and no thread of ours takes it while another of ours waits for that thread.

mod asked;
mod failure;
mod job;
mod reports;
mod sandbox;

use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use serde::Deserialize;

pub use self::job::{Job, Reply};
pub use self::sandbox::Sandbox;
use crate::inside;
use crate::server::{self, Options};
use crate::supervisor::{Queues, Settings, fitting_tools};

/// What is left of a runtime has this long to end.
const LAST_CALL: Duration = Duration::from_secs(2);

/// What `troupe_sandbox.settings` collects.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsText {
    profile: String,
    require_layers: Vec<String>,
    workflow_slots: usize,
    test_slots: usize,
    programs_per_zygote: u64,
    python: PathBuf,
    inside_script: PathBuf,
    native_module: PathBuf,
    workflow_library: PathBuf,
    readable: Vec<PathBuf>,
    preload: String,
    python_version: String,
    work_root: PathBuf,
}

fn settings(text: &str) -> PyResult<Settings> {
    let text: SettingsText = serde_json::from_str(text).map_err(|error| PyValueError::new_err(error.to_string()))?;
    if text.workflow_slots == 0 || text.test_slots == 0 || text.programs_per_zygote == 0 {
        let complaint = "workflow_slots, test_slots and programs_per_zygote must be at least 1";
        return Err(PyValueError::new_err(complaint));
    }
    Ok(Settings {
        wanted: text.profile.parse().map_err(PyValueError::new_err)?,
        required_layers: text.require_layers,
        workflow_slots: text.workflow_slots,
        test_slots: text.test_slots,
        tool_slots: fitting_tools(),
        queues: Queues::UNBOUNDED,
        programs_per_zygote: text.programs_per_zygote,
        most_memory: None,
        python: text.python,
        inside_script: text.inside_script,
        native_module: text.native_module,
        workflow_library: text.workflow_library,
        readable: text.readable,
        preload: text.preload,
        python_version: text.python_version,
        work_root: text.work_root,
    })
}

/// Threads for what blocks a moment: the runtime's own default.
const FOR_A_MOMENT: usize = 512;

/// `waiting` things may block long at once, each a thread: none may keep the others from theirs.
fn runtime(waiting: usize) -> PyResult<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.enable_all().thread_name("sandbox").max_blocking_threads(FOR_A_MOMENT + waiting).build()?)
}

fn failed(error: impl std::fmt::Display) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// Serves until SIGTERM or SIGINT; both arguments are JSON.
#[pyfunction]
pub fn serve(py: Python<'_>, options_json: &str, settings_json: &str) -> PyResult<()> {
    let options: Options =
        serde_json::from_str(options_json).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let settings = settings(settings_json)?;
    server::logging::start(&options.log);
    py.detach(|| {
        let runtime = runtime(settings.test_slots)?;
        let served = runtime.block_on(server::serve(options, settings));
        // Programs that still run end with the thread that started their zygotes.
        runtime.shutdown_timeout(LAST_CALL);
        served.map_err(failed)
    })
}

/// In a zygote: serves the socket on descriptor 0; returns the kind of program in each process forked for one. What is
/// there before lives for ever.
#[pyfunction]
pub fn serve_zygote(py: Python<'_>) -> PyResult<&'static str> {
    inside::ending::watch(py)?;
    inside::immortal::make_immortal(py)?;
    inside::zygote::serve()
        .map(inside::wire::Kind::name)
        .map_err(|failure| PyOSError::new_err((failure.errno, format!("zygote: {}: {}", failure.step, failure.text))))
}

/// In a process started for it: tries each layer and prints what came of it.
#[pyfunction]
pub fn probe_layers() -> PyResult<()> {
    Ok(crate::layers::probe::run(std::io::stdout())?)
}

/// In the process of a solution that is compiled: returns in each of the processes forked from it, one per case; true in
/// one that is for all cases.
#[pyfunction]
pub fn next_case() -> bool {
    inside::solution::next_case()
}

/// At the end of a program: whether a thread lives or a function is to be called.
#[pyfunction]
pub fn has_more_to_do(py: Python<'_>) -> PyResult<bool> {
    inside::ending::is_left(py)
}

/// In the process of a solution: compiles, then in the process of each case runs its assertions.
#[pyfunction]
pub fn run_assertions(py: Python<'_>) -> PyResult<()> {
    inside::assertions::run(py)
}

/// In a sandboxed process: a system call that no program is permitted, so that the supervisor ends this one.
#[pyfunction]
pub fn execute_nothing() {
    // SAFETY: the path is a C string and nothing else is read; the call is never answered.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            libc::AT_FDCWD,
            c"".as_ptr(),
            std::ptr::null::<()>(),
            std::ptr::null::<()>(),
            0,
        );
    }
}
