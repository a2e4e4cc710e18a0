//! A supervisor of this process's own. Each call makes a `Job`.
//!
//! Threads do not survive a fork. A forked copy refuses every call, and dropping it touches nothing: neither the zygotes,
//! which are its parent's, nor threads that it does not have.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, watch};

use super::asked::{AskedChecker, judge, resolve, text};
use super::job::{Answer, Job, Reply};
use super::{LAST_CALL, failure, reports, runtime, settings};
use crate::frames::{AgentCall, MOST_CALLS_IN_FLIGHT};
use crate::limits::{self, Asked, LARGEST_INSTRUCTION, LARGEST_SOURCE, LONGEST_NAME};
use crate::open_files;
use crate::supervisor::Supervisor;
use crate::supervisor::code_tests::{self, Mode, Tests};
use crate::supervisor::slots::Turn;
use crate::supervisor::workflow::{self, Event, Said};
use crate::verdict::Fault;

#[pyclass(frozen, module = "troupe_sandbox._native")]
pub struct Sandbox {
    engine: Mutex<Option<Engine>>,
    owner: u32,
}

struct Engine {
    supervisor: Arc<Supervisor>,
    runtime: Runtime,
}

impl Engine {
    /// Ends all programs and threads. The caller must not hold the GIL, which callbacks on those threads may wait for.
    fn end(self) {
        drop(self.supervisor);
        self.runtime.shutdown_timeout(LAST_CALL);
    }
}

/// Refuses in a forked copy.
pub fn check_owner(owner: u32) -> PyResult<()> {
    let here = std::process::id();
    if here == owner {
        return Ok(());
    }
    Err(failure::closed(format!(
        "this Sandbox belongs to process {owner} and does not work in process {here}, which was forked from it: make a \
         Sandbox after the fork"
    )))
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let engine = self.engine.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(engine) = engine else { return };
        if std::process::id() == self.owner {
            Python::attach(|py| py.detach(|| engine.end()));
        } else {
            std::mem::forget(engine);
        }
    }
}

/// All that is asked for in this process takes turns as jobs of one caller.
fn local() -> Turn {
    Turn::of("this process")
}

fn at_least_one(cases: usize) -> PyResult<()> {
    if cases == 0 { Err(PyValueError::new_err("no cases: nothing would be tested")) } else { Ok(()) }
}

/// Raises the soft limit of open files to the hard one, and refuses slots that cannot have theirs.
fn room_for(workflow_slots: usize, test_slots: usize) -> PyResult<()> {
    let open_files = open_files::raise()?;
    let most = open_files / open_files::OF_A_SLOT;
    if (workflow_slots as u64).saturating_add(test_slots as u64) <= most {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "workflow_slots is {workflow_slots} and test_slots is {test_slots}; the {open_files} files that this process may \
         have open are enough for {most} together: make them fewer, or raise the hard limit (ulimit -Hn)"
    )))
}

impl Sandbox {
    fn engine(&self) -> PyResult<(Arc<Supervisor>, Handle)> {
        check_owner(self.owner)?;
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        match engine.as_ref() {
            Some(engine) => Ok((engine.supervisor.clone(), engine.runtime.handle().clone())),
            None => Err(failure::closed("this Sandbox is closed")),
        }
    }

    fn tests_job(&self, job: code_tests::Job) -> PyResult<Job> {
        let (supervisor, runtime) = self.engine()?;
        Ok(Job::new(runtime, async move {
            let (results, mut coming) = mpsc::channel(64);
            let mut all = Vec::new();
            let collect = async {
                while let Some(result) = coming.recv().await {
                    all.push(result);
                }
            };
            let (outcome, ()) = tokio::join!(supervisor.run_tests(Arc::new(job), results), collect);
            let outcome = outcome.map_err(|fault| failure::fault(&fault))?;
            let profile = supervisor.isolation.profile.name();
            Ok(Box::new(move |py: Python<'_>| Ok(reports::tests(py, &outcome, all, profile)?.into_any().unbind()))
                as Answer)
        }))
    }
}

#[pymethods]
impl Sandbox {
    #[new]
    fn new(py: Python<'_>, settings_json: &str) -> PyResult<Self> {
        let settings = settings(settings_json)?;
        room_for(settings.workflow_slots, settings.test_slots)?;
        let engine = py.detach(|| {
            // Cases that run, and callbacks for agents, which wait as long as these do.
            let runtime = runtime(settings.test_slots + settings.workflow_slots * MOST_CALLS_IN_FLIGHT)?;
            let supervisor = runtime.block_on(Supervisor::start(settings)).map_err(|fault| failure::start(&fault))?;
            PyResult::Ok(Engine { supervisor, runtime })
        })?;
        Ok(Sandbox { engine: Mutex::new(Some(engine)), owner: std::process::id() })
    }

    /// Ends all programs; later calls are refused. Harmless when repeated, and in a forked copy.
    fn close(&self, py: Python<'_>) {
        if std::process::id() != self.owner {
            return;
        }
        let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            py.detach(|| engine.end());
        }
    }

    fn isolation(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        let (supervisor, _) = self.engine()?;
        Ok(reports::isolation(py, &supervisor.isolation)?.unbind())
    }

    #[pyo3(signature = (solution, cases, checker, limits=None, stop_at_first_failure=false, batch=false))]
    fn stdin_tests(
        &self,
        solution: String,
        cases: Vec<(String, String)>,
        checker: AskedChecker,
        limits: Option<Asked>,
        stop_at_first_failure: bool,
        batch: bool,
    ) -> PyResult<Job> {
        at_least_one(cases.len())?;
        text("solution", &solution, LARGEST_SOURCE)?;
        let tests = Tests::Stdin { cases, judge: judge(checker)? };
        let limits = resolve(limits, &limits::TEST)?;
        let mode = if batch { Mode::Batch } else { Mode::Strict };
        self.tests_job(code_tests::Job { solution, tests, limits, stop_at_first_failure, mode, turn: local() })
    }

    #[pyo3(signature = (solution, cases, setup, entry_point, limits=None, stop_at_first_failure=false))]
    fn assertion_tests(
        &self,
        solution: String,
        cases: Vec<String>,
        setup: String,
        entry_point: String,
        limits: Option<Asked>,
        stop_at_first_failure: bool,
    ) -> PyResult<Job> {
        at_least_one(cases.len())?;
        text("solution", &solution, LARGEST_SOURCE)?;
        text("setup", &setup, LARGEST_SOURCE)?;
        text("entry_point", &entry_point, LONGEST_NAME)?;
        for (index, case) in cases.iter().enumerate() {
            text(&format!("cases[{index}]"), case, LARGEST_SOURCE)?;
        }
        let tests = Tests::Assertions { setup, entry_point, cases };
        let limits = resolve(limits, &limits::TEST)?;
        let mode = Mode::Strict;
        self.tests_job(code_tests::Job { solution, tests, limits, stop_at_first_failure, mode, turn: local() })
    }

    #[pyo3(signature = (code, limits=None))]
    fn tool(&self, code: String, limits: Option<Asked>) -> PyResult<Job> {
        text("code", &code, LARGEST_SOURCE)?;
        let limits = resolve(limits, &limits::TOOL)?;
        let (supervisor, runtime) = self.engine()?;
        Ok(Job::new(runtime, async move {
            let run = supervisor
                .run_tool(&code, None, limits, &Arc::default(), &local())
                .await
                .map_err(|fault| failure::fault(&fault))?;
            let profile = supervisor.isolation.profile.name();
            Ok(Box::new(move |py: Python<'_>| Ok(reports::tool(py, &run, profile)?.into_any().unbind())) as Answer)
        }))
    }

    #[pyo3(signature = (script, question, on_agent_call, task_type, delivery_instruction, seed, max_agent_calls,
                        limits=None, tool_limits=None))]
    #[allow(clippy::too_many_arguments)]
    fn workflow(
        &self,
        script: String,
        question: String,
        on_agent_call: Py<PyAny>,
        task_type: &str,
        delivery_instruction: String,
        seed: u64,
        max_agent_calls: u32,
        limits: Option<Asked>,
        tool_limits: Option<Asked>,
    ) -> PyResult<Job> {
        text("script", &script, LARGEST_SOURCE)?;
        text("question", &question, LARGEST_SOURCE)?;
        text("delivery_instruction", &delivery_instruction, LARGEST_INSTRUCTION)?;
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
            turn: local(),
        };
        job.start_fits().map_err(|complaint| PyValueError::new_err(format!("script {complaint}")))?;
        let (supervisor, runtime) = self.engine()?;
        let asked = Arc::new(on_agent_call);
        Ok(Job::new(runtime, async move {
            let slot = supervisor
                .workflow_slots
                .take(&local())
                .await
                .map_err(|busy| failure::fault(&Fault::Internal(format!("{busy:?}"))))?;
            let (events, mut coming) = mpsc::channel(64);
            let (said, words) = mpsc::channel(MOST_CALLS_IN_FLIGHT);
            let (_ending, ended) = watch::channel(None);
            let answer = async {
                while let Some(event) = coming.recv().await {
                    if let Event::AgentCall(call) = event {
                        let (asked, said) = (asked.clone(), said.clone());
                        // Calls of the callback overlap, as calls of agents do.
                        tokio::task::spawn_blocking(move || ask(&asked, call, said));
                    }
                }
            };
            let (outcome, ()) = tokio::join!(supervisor.run_workflow(job, slot, events, words, ended), answer);
            let outcome = outcome.map_err(|error| failure::session(&error))?;
            let profile = supervisor.isolation.profile.name();
            Ok(Box::new(move |py: Python<'_>| Ok(reports::execution(py, &outcome, profile)?.into_any().unbind()))
                as Answer)
        }))
    }
}

/// Asks the callback for one turn. What it raises becomes the refusal that the script sees.
fn ask(asked: &Arc<Py<PyAny>>, call: AgentCall, said: mpsc::Sender<Said>) {
    let call_id = call.call_id;
    Python::attach(|py| {
        let reply = Py::new(py, Reply::new(call_id, said));
        let told = reply.and_then(|reply| {
            let told = asked.call1(py, (reports::agent_call(py, call)?, &reply));
            told.map(drop).inspect_err(|error| reply.get().refuse(error.to_string()))
        });
        if let Err(error) = told {
            tracing::debug!(call_id, %error, "an agent call was refused");
        }
    });
}
