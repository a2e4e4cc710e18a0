//! Runs one assertion case so that passing cannot be claimed, only reached.
//!
//! A process that ends with status 0 proves nothing: a solution may call `os._exit(0)`. So the supervisor hands a random
//! token to this native frame, which sends it back after the last assertion and at no other place. No Python object
//! holds the token or a function that sends it, the case is compiled before the solution runs, and it runs with the
//! builtins as they were before. What remains: a solution that reads its own process's memory (ctypes) can find the
//! token, and objects whose `==` always says yes defeat any assertion made in their own process.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::{Deserialize, Serialize};

/// What the supervisor writes into the payload file.
#[derive(Serialize, Deserialize)]
pub struct Payload {
    pub setup: String,
    pub solution: String,
    pub case: String,
    pub token: String,
}

/// Descriptor of the payload, and of the pipe for the token.
pub const PAYLOAD: i32 = 3;
pub const PROOF: i32 = 4;

/// Runs setup, solution and case in one namespace; sends the token if all of it ends without an exception.
pub fn run(py: Python<'_>) -> PyResult<()> {
    // SAFETY: the jail put the two descriptors there and nothing else owns them.
    let (mut payload, mut proof) = unsafe { (File::from_raw_fd(PAYLOAD), File::from_raw_fd(PROOF)) };
    let mut text = Vec::new();
    payload.read_to_end(&mut text)?;
    drop(payload);
    let Payload { setup, solution, case, token } =
        serde_json::from_slice(&text).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    text.fill(0);

    let builtins = py.import("builtins")?;
    let pristine = builtins.dict().copy()?;
    let compile = builtins.getattr("compile")?;
    let parts = [
        compile.call1((setup, "setup", "exec"))?,
        compile.call1((solution, "solution", "exec"))?,
        compile.call1((case, "case", "exec"))?,
    ];
    let globals: Bound<'_, PyDict> = py.import("__main__")?.dict();
    for (index, part) in parts.iter().enumerate() {
        if index + 1 == parts.len() {
            globals.set_item("__builtins__", &pristine)?;
        }
        // SAFETY: `part` is a code object made by `compile`; globals and locals are the same dictionary. A null result
        // means that an exception is set.
        unsafe {
            let value = pyo3::ffi::PyEval_EvalCode(part.as_ptr(), globals.as_ptr(), globals.as_ptr());
            Bound::from_owned_ptr_or_err(py, value)?;
        }
    }
    proof.write_all(token.as_bytes())?;
    Ok(())
}
