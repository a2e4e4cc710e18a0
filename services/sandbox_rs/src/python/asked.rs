//! What Python asks for, read from the objects of `reports.py` and `checkers.py` and checked as a request's fields are.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::checkers::{Checker, Tolerance};
use crate::limits::{self, Asked, Limits};
use crate::supervisor::judging::{CheckerProgram, Judge};

/// The limits of one program; `None` takes the defaults.
pub fn resolve(asked: Option<Asked>, range: &limits::Range) -> PyResult<Limits> {
    range
        .resolve(&asked.unwrap_or_default())
        .map_err(|bad| PyValueError::new_err(format!("{} {}", bad.field, bad.complaint)))
}

/// A text that is not too large, named as the argument it is.
pub fn text(argument: &str, value: &str, most: usize) -> PyResult<()> {
    limits::fits(value, most).map_err(|complaint| PyValueError::new_err(format!("{argument} {complaint}")))
}

/// `troupe_sandbox.checkers.Checker`.
#[derive(FromPyObject)]
pub enum AskedChecker {
    Named(String),
    FloatTokens { absolute: f64, relative: f64 },
    Program { source: String, limits: Option<Asked> },
}

/// How output is judged.
pub fn judge(asked: AskedChecker) -> PyResult<Judge> {
    Ok(Judge::Compare(match asked {
        AskedChecker::Named(name) => named(&name)?,
        AskedChecker::FloatTokens { absolute, relative } => {
            let tolerance = Tolerance::new(absolute, relative).map_err(|bad| {
                let figure = bad.figure.map_or(String::new(), |figure| format!("{figure} "));
                PyValueError::new_err(format!("FloatTokens: {figure}{}", bad.complaint))
            })?;
            Checker::FloatTokens(tolerance)
        }
        AskedChecker::Program { source, .. } if source.trim().is_empty() => {
            return Err(PyValueError::new_err("CheckerProgram: source is empty and would accept everything"));
        }
        AskedChecker::Program { source, limits: asked } => {
            text("CheckerProgram: source", &source, limits::LARGEST_SOURCE)?;
            return Ok(Judge::Program(CheckerProgram { source, limits: resolve(asked, &limits::CHECKER)? }));
        }
    }))
}

fn named(name: &str) -> PyResult<Checker> {
    match name {
        "lines" => Ok(Checker::Lines),
        "tokens" => Ok(Checker::Tokens),
        "float_tokens" => Ok(Checker::FloatTokens(Tolerance::default())),
        "unordered_lines" => Ok(Checker::UnorderedLines),
        "exact" => Ok(Checker::Exact),
        other => Err(PyValueError::new_err(format!(
            "unknown checker {other:?}: lines, tokens, float_tokens, unordered_lines, exact, FloatTokens or CheckerProgram"
        ))),
    }
}
