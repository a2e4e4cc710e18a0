//! A piece of work that Python has asked for: waited for by a thread (`wait`), or told of when it ends (`start`, which is
//! what asyncio needs). Cancelling it ends its programs and frees their slots.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::failure;
use crate::supervisor::workflow::{AgentReply, Said};

/// Makes the Python value of a result, once the GIL is held.
pub type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;
/// The work itself; its error is the sandbox's own failure.
pub type Work = Pin<Box<dyn Future<Output = PyResult<Answer>> + Send>>;

/// The main thread looks this often for signals while it waits, so that Ctrl-C ends a wait. Python handles them nowhere else,
/// and a thousand threads that looked would keep each other from the GIL.
const BETWEEN_SIGNALS: Duration = Duration::from_millis(50);

enum State {
    New(Work),
    Started(AbortHandle),
}

/// One call of a `Sandbox`, not yet begun.
#[pyclass(frozen, module = "troupe_sandbox._native")]
pub struct Job {
    state: Mutex<Option<State>>,
    runtime: Handle,
    owner: u32,
}

impl Job {
    pub fn new(runtime: Handle, work: impl Future<Output = PyResult<Answer>> + Send + 'static) -> Self {
        Job { state: Mutex::new(Some(State::New(Box::pin(work)))), runtime, owner: std::process::id() }
    }

    fn take(&self) -> Option<State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn work(&self) -> PyResult<Work> {
        super::sandbox::check_owner(self.owner)?;
        match self.take() {
            Some(State::New(work)) => Ok(work),
            _ => Err(PyRuntimeError::new_err("a job runs once")),
        }
    }
}

/// Whether this is the thread in which Python runs handlers of signals.
fn handles_signals(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    threading.call_method0("main_thread")?.getattr("ident")?.eq(threading.call_method0("get_ident")?)
}

/// The value of a job that has ended, or `None` for one that never will.
fn answer(py: Python<'_>, ended: Option<PyResult<Answer>>) -> PyResult<Py<PyAny>> {
    match ended {
        Some(Ok(answer)) => answer(py),
        Some(Err(error)) => Err(error),
        None => Err(failure::closed("this Sandbox was closed while a job ran")),
    }
}

#[pymethods]
impl Job {
    /// Runs the job and returns its result. The GIL is released; signals are handled, and what their handler raises
    /// cancels the job.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let work = self.work()?;
        let (ended, mut end) = std::sync::mpsc::sync_channel(1);
        let task = self.runtime.spawn(async move {
            // Nobody waits any more if a signal came first.
            let _ = ended.send(work.await);
        });
        if !handles_signals(py)? {
            return answer(py, py.detach(move || end.recv().ok()));
        }
        loop {
            let looked;
            (end, looked) = py.detach(move || {
                let looked = end.recv_timeout(BETWEEN_SIGNALS);
                (end, looked)
            });
            match looked {
                Ok(ended) => return answer(py, Some(ended)),
                Err(RecvTimeoutError::Disconnected) => return answer(py, None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(raised) = py.check_signals() {
                task.abort();
                return Err(raised);
            }
        }
    }

    /// Runs the job; `done(result, error)` is called once, from another thread, unless the job is cancelled before.
    fn start(&self, done: Py<PyAny>) -> PyResult<()> {
        let task = self.runtime.spawn(self.work()?);
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(State::Started(task.abort_handle()));
        self.runtime.spawn(async move {
            let ended = match task.await {
                Ok(ended) => Some(ended),
                Err(cancelled) if cancelled.is_cancelled() => return,
                Err(_) => None,
            };
            // The GIL may be long in coming: no thread of the supervisor's waits for it.
            let _ = tokio::task::spawn_blocking(move || {
                Python::attach(|py| {
                    let told = match answer(py, ended) {
                        Ok(result) => done.call1(py, (result, py.None())),
                        Err(error) => done.call1(py, (py.None(), error)),
                    };
                    if let Err(raised) = told {
                        raised.write_unraisable(py, Some(done.bind(py)));
                    }
                });
            })
            .await;
        });
        Ok(())
    }

    /// Ends the job's programs. Harmless when the job has ended, and in a forked copy.
    fn cancel(&self) {
        if std::process::id() != self.owner {
            return;
        }
        if let Some(State::Started(task)) = self.take() {
            task.abort();
        }
    }
}

/// Answers one agent call, from any thread.
#[pyclass(frozen, module = "troupe_sandbox._native")]
pub struct Reply {
    call_id: u64,
    said: Mutex<Option<mpsc::Sender<Said>>>,
}

impl Reply {
    pub fn new(call_id: u64, said: mpsc::Sender<Said>) -> Self {
        Reply { call_id, said: Mutex::new(Some(said)) }
    }

    /// The first reply counts. A script that has ended needs none.
    fn send(&self, reply: Result<String, String>) {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(said) = said {
            // There is room: the channel holds one reply for each call that can be in flight.
            let _ = said.try_send(Said::Reply(AgentReply { call_id: self.call_id, reply }));
        }
    }
}

#[pymethods]
impl Reply {
    /// The agent's turn.
    fn give(&self, text: String) {
        self.send(Ok(text));
    }

    /// Why there is none.
    pub fn refuse(&self, reason: String) {
        self.send(Err(reason));
    }
}
