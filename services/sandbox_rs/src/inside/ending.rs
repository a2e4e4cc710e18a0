//! What a program leaves to be done at its end: threads to wait for, functions to call.
//!
//! Python code that asks takes a dozen objects into its hands, and each one's reference count lies on a page that is
//! shared with the zygote until it is written: up to a tenth of a short case. Who asks from here writes none.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

struct Watched {
    /// Functions that count.
    threads: Py<PyAny>,
    at_end: Py<PyAny>,
    /// A list.
    after_threads: Py<PyAny>,
}

static WATCHED: PyOnceLock<Watched> = PyOnceLock::new();

/// Finds what there is to ask, in the zygote.
pub fn watch(py: Python<'_>) -> PyResult<()> {
    let held = |module, name| py.import(module)?.getattr(name).map(Bound::unbind);
    let watched = Watched {
        threads: held("_thread", "_count")?,
        at_end: held("atexit", "_ncallbacks")?,
        after_threads: held("threading", "_threading_atexits")?,
    };
    // A process becomes a zygote once.
    let _ = WATCHED.set(py, watched);
    Ok(())
}

/// Whether a thread of Python's lives or a function is to be called. In a process that was never a zygote, nobody knows.
pub fn is_left(py: Python<'_>) -> PyResult<bool> {
    let Some(Watched { threads, at_end, after_threads }) = WATCHED.get(py) else { return Ok(true) };
    let count = |function: &Py<PyAny>| function.bind(py).call0()?.extract::<usize>();
    Ok(count(threads)? > 0 || count(at_end)? > 0 || !after_threads.bind(py).is_empty()?)
}
