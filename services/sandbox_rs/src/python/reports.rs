//! What is handed to Python: plain dicts, which `reports.py` makes dataclasses of.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::checkers::{Difference, Unit};
use crate::frames::{AgentCall, Role};
use crate::layers::LayerReport;
use crate::supervisor::Isolation;
use crate::supervisor::code_tests::{self, CaseResult};
use crate::supervisor::tool::ToolRun;
use crate::supervisor::workflow;
use crate::verdict::ResourceUse;

fn resource_use<'py>(py: Python<'py>, used: &ResourceUse) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("cpu_seconds", used.cpu.as_secs_f64())?;
    dict.set_item("wall_seconds", used.wall.as_secs_f64())?;
    dict.set_item("waiting_seconds", used.waiting.as_secs_f64())?;
    dict.set_item("peak_memory_bytes", used.peak_memory_bytes)?;
    Ok(dict)
}

pub fn isolation<'py>(py: Python<'py>, isolation: &Isolation) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("profile", isolation.profile.name())?;
    dict.set_item("profile_digest", &isolation.digest)?;
    dict.set_item("python", &isolation.python)?;
    dict.set_item("layers", layers(py, &isolation.layers)?)?;
    dict.set_item("outer_layers", layers(py, &isolation.outer)?)?;
    Ok(dict)
}

fn layers<'py>(py: Python<'py>, reports: &[LayerReport]) -> PyResult<Bound<'py, PyList>> {
    let layers = PyList::empty(py);
    for report in reports {
        let layer = PyDict::new(py);
        layer.set_item("name", report.name)?;
        layer.set_item("active", report.active)?;
        layer.set_item("errno", report.errno)?;
        layer.set_item("detail", &report.detail)?;
        layer.set_item("remedy", if report.active { "" } else { report.remedy })?;
        layers.append(layer)?;
    }
    Ok(layers)
}

pub fn tests<'py>(
    py: Python<'py>,
    outcome: &code_tests::Outcome,
    results: Vec<CaseResult>,
    profile: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("passed", outcome.passed == outcome.total)?;
    dict.set_item("cases_passed", outcome.passed)?;
    dict.set_item("cases_run", outcome.run)?;
    dict.set_item("cases_total", outcome.total)?;
    dict.set_item("first_failed", outcome.first_failed)?;
    dict.set_item("profile", profile)?;
    let cases = PyList::empty(py);
    for result in results {
        let case = PyDict::new(py);
        case.set_item("index", result.index)?;
        case.set_item("verdict", result.verdict.name())?;
        case.set_item("detail", result.detail)?;
        case.set_item("difference", result.difference.map(|found| difference(py, found)).transpose()?)?;
        case.set_item("use", resource_use(py, &result.used)?)?;
        cases.append(case)?;
    }
    dict.set_item("cases", cases)?;
    Ok(dict)
}

fn difference<'py>(py: Python<'py>, difference: Difference) -> PyResult<Bound<'py, PyDict>> {
    let unit = match difference.unit {
        Unit::Byte => "byte",
        Unit::Line => "line",
        Unit::Token => "token",
    };
    let dict = PyDict::new(py);
    dict.set_item("unit", unit)?;
    dict.set_item("place", difference.place)?;
    dict.set_item("line", difference.line)?;
    dict.set_item("column", difference.column)?;
    dict.set_item("got", difference.got)?;
    dict.set_item("expected", difference.expected)?;
    Ok(dict)
}

pub fn tool<'py>(py: Python<'py>, run: &ToolRun, profile: &str) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("output", &run.output)?;
    dict.set_item("verdict", run.verdict.name())?;
    dict.set_item("use", resource_use(py, &run.used)?)?;
    dict.set_item("profile", profile)?;
    Ok(dict)
}

pub fn execution<'py>(py: Python<'py>, outcome: &workflow::Outcome, profile: &str) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("verdict", outcome.verdict.name())?;
    dict.set_item("result", outcome.result.as_ref().map(|result| &result.content))?;
    dict.set_item("result_type", outcome.result.as_ref().map(|result| &result.result_type))?;
    dict.set_item("own_question", outcome.result.as_ref().is_some_and(|result| result.own_question))?;
    dict.set_item("error", &outcome.error)?;
    dict.set_item("stdout", &outcome.stdout)?;
    dict.set_item("stderr", &outcome.stderr)?;
    dict.set_item("use", resource_use(py, &outcome.used)?)?;
    dict.set_item("outstanding_calls", outcome.outstanding_calls)?;
    dict.set_item("agent_calls", outcome.agent_calls)?;
    dict.set_item("profile", profile)?;
    Ok(dict)
}

pub fn agent_call<'py>(py: Python<'py>, call: AgentCall) -> PyResult<Bound<'py, PyDict>> {
    let messages = PyList::empty(py);
    for message in call.messages {
        let dict = PyDict::new(py);
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Tool => "tool",
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
    Ok(dict)
}
