//! The sandbox's own failures as `troupe_sandbox.SandboxError`, with the names that they have as gRPC statuses.

use pyo3::PyErr;
use pyo3::exceptions::PyValueError;

use crate::server::refusal;
use crate::supervisor::workflow::SessionError;
use crate::verdict::Fault;

pyo3::import_exception!(troupe_sandbox.errors, SandboxError);

/// A Sandbox that does not work, or no more, where it was asked.
pub fn closed(text: impl Into<String>) -> PyErr {
    SandboxError::new_err((text.into(), "CLOSED", false))
}

/// A job could not be done.
pub fn fault(fault: &Fault) -> PyErr {
    SandboxError::new_err((fault.to_string(), refusal::reason(fault), refusal::retriable(fault)))
}

/// A Sandbox could not be made. What is missing is missing the next time too.
pub fn start(fault: &Fault) -> PyErr {
    let retriable = !matches!(fault, Fault::Internal(_)) && refusal::retriable(fault);
    SandboxError::new_err((fault.to_string(), refusal::reason(fault), retriable))
}

/// A script could not be run, or its agent's reply not be handed on.
pub fn session(error: &SessionError) -> PyErr {
    match error {
        SessionError::BadReply(complaint) => {
            PyValueError::new_err(complaint.replace("agent_reply.text:", "the reply of on_agent_call"))
        }
        SessionError::Fault(problem) => fault(problem),
    }
}
