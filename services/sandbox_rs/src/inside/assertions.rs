//! Runs one assertion case so that passing cannot be claimed, only reached.
//!
//! A process that ends with status 0 proves nothing: a solution may call `os._exit(0)`. So the supervisor hands a random
//! token to this native frame, which sends it back after the last assertion and at no other place. No Python object
//! holds the token or a function that sends it, the case is compiled before the solution runs, and it runs with the
//! builtins and with the names of the setup as they were before. What remains: a solution that reads its own process's
//! memory (ctypes) can find the token, and objects whose `==` always says yes defeat any assertion made in their own
//! process, as does one that changes the modules which the case uses.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::names::Names;
use super::solution::next_case;

/// What all cases of a solution share.
#[derive(Serialize, Deserialize)]
pub struct Common {
    pub setup: String,
    pub solution: String,
    /// Function under test; empty where nobody says.
    pub entry_point: String,
}

/// What a case gets for itself.
#[derive(Serialize, Deserialize)]
pub struct Case {
    pub case: String,
    pub token: String,
}

/// Descriptor of the payload, first the common one, then that of the case; and in a case that of the file for the token.
const PAYLOAD: RawFd = 3;
const PROOF: RawFd = 4;

/// Compiles setup and solution, then in the process of each case runs both and the case; sends the token if all of it ends
/// without an exception.
pub fn run(py: Python<'_>) -> PyResult<()> {
    let builtins = py.import("builtins")?;
    let pristine = builtins.dict().copy()?;
    let compile = builtins.getattr("compile")?;
    let Common { setup, solution, entry_point } = payload()?;
    let setup = compile.call1((without_mark(&setup), "setup", "exec"))?;
    let solution = compile.call1((without_mark(&solution), "solution", "exec"))?;

    next_case();

    let Case { case, token } = payload()?;
    let case = compile.call1((case, "case", "exec"))?;
    // SAFETY: the descriptor was put there for this and nothing else owns it.
    let mut proof = unsafe { File::from_raw_fd(PROOF) };
    let globals = py.import("__main__")?.dict();
    let mut names = Names::before_setup(&globals, &pristine, &entry_point)?;
    evaluate(&setup, &globals)?;
    names.after_setup()?;
    evaluate(&solution, &globals)?;
    evaluate(&case, &names.of_case()?)?;
    proof.write_all(token.as_bytes())?;
    Ok(())
}

/// A text without the byte order mark that a file may begin with.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn evaluate(code: &Bound<'_, PyAny>, globals: &Bound<'_, PyDict>) -> PyResult<()> {
    // SAFETY: `code` is a code object made by `compile`; globals and locals are the same dictionary. A null result means
    // that an exception is set.
    unsafe {
        let value = pyo3::ffi::PyEval_EvalCode(code.as_ptr(), globals.as_ptr(), globals.as_ptr());
        Bound::from_owned_ptr_or_err(code.py(), value)?;
    }
    Ok(())
}

/// Reads the payload and leaves no copy of its text.
fn payload<T: DeserializeOwned>() -> PyResult<T> {
    // SAFETY: as above.
    let mut file = unsafe { File::from_raw_fd(PAYLOAD) };
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let parsed = serde_json::from_slice(&text).map_err(|error| PyRuntimeError::new_err(error.to_string()));
    text.fill(0);
    parsed
}
