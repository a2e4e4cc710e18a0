//! The Python face: `serve` for the service's main program, `Sandbox` for use in process, and three functions that only
//! sandboxed interpreters call (`inside.py`).

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use crate::checkers::Checker;
use crate::inside;
use crate::limits::{self, Asked, Limits};
use crate::server::{self, Options};
use crate::supervisor::code_tests::{self, Tests};
use crate::supervisor::workflow::{self, AgentReply, Event, Said};
use crate::supervisor::{Settings, Supervisor};
use crate::verdict::ResourceUse;

/// What `troupe_sandbox.settings` collects.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsText {
    profile: String,
    require_layers: Vec<String>,
    workflow_slots: usize,
    test_slots: usize,
    python: PathBuf,
    inside_script: PathBuf,
    native_module: PathBuf,
    workflow_library: PathBuf,
    readable: Vec<PathBuf>,
    python_version: String,
    work_root: PathBuf,
}

fn settings(text: &str) -> PyResult<Settings> {
    let text: SettingsText = serde_json::from_str(text).map_err(|error| PyValueError::new_err(error.to_string()))?;
    if text.workflow_slots == 0 || text.test_slots == 0 {
        return Err(PyValueError::new_err("workflow_slots and test_slots must be at least 1"));
    }
    Ok(Settings {
        wanted: text.profile.parse().map_err(PyValueError::new_err)?,
        required_layers: text.require_layers,
        workflow_slots: text.workflow_slots,
        test_slots: text.test_slots,
        python: text.python,
        inside_script: text.inside_script,
        native_module: text.native_module,
        workflow_library: text.workflow_library,
        readable: text.readable,
        python_version: text.python_version,
        work_root: text.work_root,
    })
}

fn runtime() -> PyResult<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("sandbox").build()?)
}

/// Serves until SIGTERM or SIGINT; both arguments are JSON.
#[pyfunction]
pub fn serve(py: Python<'_>, options_json: &str, settings_json: &str) -> PyResult<()> {
    let options: Options =
        serde_json::from_str(options_json).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let settings = settings(settings_json)?;
    server::start_logging(&options.log);
    py.detach(|| {
        let runtime = runtime()?;
        let served = runtime.block_on(server::serve(options, settings));
        // Programs that still run end with the thread that started their zygotes.
        runtime.shutdown_timeout(std::time::Duration::from_secs(2));
        served.map_err(|error| PyRuntimeError::new_err(error.to_string()))
    })
}

/// In a zygote: serves the socket on descriptor 0; returns the kind of program in each process forked for one.
#[pyfunction]
pub fn serve_zygote() -> PyResult<&'static str> {
    inside::zygote::serve()
        .map(inside::wire::Kind::name)
        .map_err(|failure| PyOSError::new_err((failure.errno, format!("zygote: {}: {}", failure.step, failure.text))))
}

/// In a process started for it: tries each layer and prints what came of it.
#[pyfunction]
pub fn probe_layers() -> PyResult<()> {
    Ok(crate::layers::probe::run(std::io::stdout())?)
}

/// In a sandboxed process: runs one assertion case.
#[pyfunction]
pub fn run_assertions(py: Python<'_>) -> PyResult<()> {
    inside::assertions::run(py)
}

/// A supervisor of this process's own.
#[pyclass(frozen)]
pub struct Sandbox {
    // The order matters: the supervisor ends before the runtime that drives it.
    supervisor: Arc<Supervisor>,
    runtime: tokio::runtime::Runtime,
    owner: u32,
}

fn failed(error: impl std::fmt::Display) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

fn resolve(limits: Option<&Bound<'_, PyDict>>, range: &limits::Range) -> PyResult<Limits> {
    let mut asked = Asked::default();
    for (key, value) in limits.into_iter().flat_map(|limits| limits.iter()) {
        match key.extract::<String>()?.as_str() {
            "cpu_seconds" => asked.cpu_seconds = value.extract()?,
            "wall_seconds" => asked.wall_seconds = value.extract()?,
            "memory_bytes" => asked.memory_bytes = value.extract()?,
            "processes" => asked.processes = value.extract()?,
            "open_files" => asked.open_files = value.extract()?,
            "output_bytes" => asked.output_bytes = value.extract()?,
            other => return Err(PyValueError::new_err(format!("unknown limit {other:?}"))),
        }
    }
    range.resolve(&asked).map_err(|bad| PyValueError::new_err(format!("{} {}", bad.field, bad.complaint)))
}

fn use_dict<'py>(py: Python<'py>, used: &ResourceUse) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("cpu_seconds", used.cpu.as_secs_f64())?;
    dict.set_item("wall_seconds", used.wall.as_secs_f64())?;
    dict.set_item("waiting_seconds", used.waiting.as_secs_f64())?;
    dict.set_item("peak_memory_bytes", used.peak_memory_bytes)?;
    Ok(dict)
}

impl Sandbox {
    /// Threads do not survive a fork: a forked copy of this object would wait for ever.
    fn check_owner(&self) -> PyResult<()> {
        if std::process::id() == self.owner {
            return Ok(());
        }
        Err(PyRuntimeError::new_err("this Sandbox belongs to another process; make one after the fork"))
    }

    fn run_job(&self, py: Python<'_>, job: code_tests::Job) -> PyResult<Py<PyDict>> {
        self.check_owner()?;
        let (results, mut coming) = mpsc::channel(64);
        let supervisor = self.supervisor.clone();
        let (outcome, results) = py.detach(|| {
            self.runtime.block_on(async {
                let mut all = Vec::new();
                let collect = async {
                    while let Some(result) = coming.recv().await {
                        all.push(result);
                    }
                };
                let (outcome, ()) = tokio::join!(supervisor.run_tests(Arc::new(job), results), collect);
                (outcome, all)
            })
        });
        let outcome = outcome.map_err(failed)?;
        let dict = PyDict::new(py);
        dict.set_item("passed", outcome.passed == outcome.total)?;
        dict.set_item("cases_passed", outcome.passed)?;
        dict.set_item("cases_run", outcome.run)?;
        dict.set_item("cases_total", outcome.total)?;
        dict.set_item("profile", self.supervisor.isolation.profile.name())?;
        let cases = PyList::empty(py);
        for result in results {
            let case = PyDict::new(py);
            case.set_item("index", result.index)?;
            case.set_item("verdict", result.verdict.name())?;
            case.set_item("detail", result.detail)?;
            case.set_item("use", use_dict(py, &result.used)?)?;
            cases.append(case)?;
        }
        dict.set_item("cases", cases)?;
        Ok(dict.unbind())
    }
}

fn checker_named(name: &str) -> PyResult<Checker> {
    match name {
        "lines" => Ok(Checker::Lines),
        "tokens" => Ok(Checker::Tokens),
        "float_tokens" => Ok(Checker::FloatTokens),
        "exact" => Ok(Checker::Exact),
        other => Err(PyValueError::new_err(format!("unknown checker {other:?}: lines, tokens, float_tokens or exact"))),
    }
}

fn at_least_one(cases: usize) -> PyResult<()> {
    if cases == 0 { Err(PyValueError::new_err("no cases: nothing would be tested")) } else { Ok(()) }
}

#[pymethods]
impl Sandbox {
    #[new]
    fn new(py: Python<'_>, settings_json: &str) -> PyResult<Self> {
        let settings = settings(settings_json)?;
        let runtime = runtime()?;
        let supervisor = py.detach(|| runtime.block_on(Supervisor::start(settings))).map_err(failed)?;
        Ok(Sandbox { supervisor, runtime, owner: std::process::id() })
    }

    fn isolation(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let isolation = &self.supervisor.isolation;
        let dict = PyDict::new(py);
        dict.set_item("profile", isolation.profile.name())?;
        dict.set_item("profile_digest", &isolation.digest)?;
        dict.set_item("python", &isolation.python)?;
        let layers = PyList::empty(py);
        for report in &isolation.layers {
            let layer = PyDict::new(py);
            layer.set_item("name", report.name)?;
            layer.set_item("active", report.active)?;
            layer.set_item("errno", report.errno)?;
            layer.set_item("detail", &report.detail)?;
            layer.set_item("remedy", if report.active { "" } else { report.remedy })?;
            layers.append(layer)?;
        }
        dict.set_item("layers", layers)?;
        Ok(dict.unbind())
    }

    #[pyo3(signature = (solution, cases, checker, limits=None, stop_at_first_failure=false))]
    fn run_stdin_tests(
        &self,
        py: Python<'_>,
        solution: String,
        cases: Vec<(String, String)>,
        checker: &str,
        limits: Option<&Bound<'_, PyDict>>,
        stop_at_first_failure: bool,
    ) -> PyResult<Py<PyDict>> {
        at_least_one(cases.len())?;
        let tests = Tests::Stdin { cases, checker: checker_named(checker)? };
        let limits = resolve(limits, &limits::TEST)?;
        self.run_job(py, code_tests::Job { solution, tests, limits, stop_at_first_failure })
    }

    #[pyo3(signature = (solution, cases, setup, limits=None, stop_at_first_failure=false))]
    fn run_assertion_tests(
        &self,
        py: Python<'_>,
        solution: String,
        cases: Vec<String>,
        setup: String,
        limits: Option<&Bound<'_, PyDict>>,
        stop_at_first_failure: bool,
    ) -> PyResult<Py<PyDict>> {
        at_least_one(cases.len())?;
        let tests = Tests::Assertions { setup, cases };
        let limits = resolve(limits, &limits::TEST)?;
        self.run_job(py, code_tests::Job { solution, tests, limits, stop_at_first_failure })
    }

    #[pyo3(signature = (code, limits=None))]
    fn run_tool(&self, py: Python<'_>, code: &str, limits: Option<&Bound<'_, PyDict>>) -> PyResult<Py<PyDict>> {
        self.check_owner()?;
        let limits = resolve(limits, &limits::TOOL)?;
        let account = Arc::default();
        let run = py
            .detach(|| self.runtime.block_on(self.supervisor.run_tool(code, None, limits, &account)))
            .map_err(failed)?;
        let dict = PyDict::new(py);
        dict.set_item("output", run.output)?;
        dict.set_item("verdict", run.verdict.name())?;
        dict.set_item("use", use_dict(py, &run.used)?)?;
        Ok(dict.unbind())
    }

    #[pyo3(signature = (script, question, on_agent_call, task_type, delivery_instruction, seed, max_agent_calls,
                        limits=None, tool_limits=None))]
    #[allow(clippy::too_many_arguments)]
    fn run_workflow(
        &self,
        py: Python<'_>,
        script: String,
        question: String,
        on_agent_call: Py<PyAny>,
        task_type: &str,
        delivery_instruction: String,
        seed: u64,
        max_agent_calls: u32,
        limits: Option<&Bound<'_, PyDict>>,
        tool_limits: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyDict>> {
        self.check_owner()?;
        let task_type = match task_type {
            "math" => "math",
            "code" => "code",
            other => return Err(PyValueError::new_err(format!("unknown task type {other:?}: math or code"))),
        };
        let job = workflow::Job {
            script,
            question,
            task_type,
            delivery_instruction,
            limits: resolve(limits, &limits::WORKFLOW)?,
            tool_limits: resolve(tool_limits, &limits::TOOL)?,
            max_agent_calls,
            seed,
        };
        let supervisor = self.supervisor.clone();
        let outcome = py.detach(|| {
            self.runtime.block_on(async {
                let slot = supervisor.workflow_slots.take().await.map_err(|busy| failed(format!("{busy:?}")))?;
                let (events, mut coming) = mpsc::channel(64);
                let (said, words) = mpsc::channel(64);
                let (_ending, ended) = watch::channel(None);
                let answer = async {
                    while let Some(event) = coming.recv().await {
                        if let Event::AgentCall(call) = event {
                            let said = said.clone();
                            let on_agent_call = Python::attach(|py| on_agent_call.clone_ref(py));
                            // Calls of the callback overlap, as calls of agents do.
                            tokio::task::spawn_blocking(move || {
                                let reply = answer_call(&on_agent_call, call);
                                // A script that has ended needs no reply.
                                let _ = said.blocking_send(Said::Reply(reply));
                            });
                        }
                    }
                };
                let run = supervisor.run_workflow(job, slot, events, words, ended);
                let (outcome, ()) = tokio::join!(run, answer);
                outcome.map_err(failed)
            })
        })?;
        let dict = PyDict::new(py);
        dict.set_item("verdict", outcome.verdict.name())?;
        dict.set_item("result", outcome.result.as_ref().map(|result| &result.content))?;
        dict.set_item("result_type", outcome.result.as_ref().map(|result| &result.result_type))?;
        dict.set_item("own_question", outcome.result.as_ref().is_some_and(|result| result.own_question))?;
        dict.set_item("error", outcome.error)?;
        dict.set_item("stdout", outcome.stdout)?;
        dict.set_item("stderr", outcome.stderr)?;
        dict.set_item("use", use_dict(py, &outcome.used)?)?;
        dict.set_item("outstanding_calls", outcome.outstanding_calls)?;
        dict.set_item("agent_calls", outcome.agent_calls)?;
        dict.set_item("profile", self.supervisor.isolation.profile.name())?;
        Ok(dict.unbind())
    }
}

/// Asks the callback for one turn. What it raises becomes the refusal that the script sees.
fn answer_call(callback: &Py<PyAny>, call: crate::frames::AgentCall) -> AgentReply {
    let call_id = call.call_id;
    let reply = Python::attach(|py| -> PyResult<String> {
        let messages = PyList::empty(py);
        for message in call.messages {
            let dict = PyDict::new(py);
            let role = match message.role {
                crate::frames::Role::System => "system",
                crate::frames::Role::User => "user",
                crate::frames::Role::Tool => "tool",
            };
            dict.set_item("role", role)?;
            dict.set_item("content", message.content)?;
            messages.append(dict)?;
        }
        let dict = PyDict::new(py);
        dict.set_item("call_id", call.call_id)?;
        dict.set_item("conversation_id", call.conversation_id)?;
        dict.set_item("agent", call.agent)?;
        dict.set_item("messages", messages)?;
        dict.set_item("tool_run_ids", call.tool_run_ids)?;
        callback.call1(py, (dict,))?.extract(py)
    });
    AgentReply { call_id, reply: reply.map_err(|error| error.to_string()) }
}
