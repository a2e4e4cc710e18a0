//! The names that an assertion case sees. Setup, solution and case have one namespace, unless the solution hides a name from
//! the case: one that the setup gave or, where the entry point is known, one that Python has. Then the case has a namespace
//! of its own, where those mean what they meant before the solution, also inside the setup's functions.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A name of the setup.
struct Given<'py> {
    name: Bound<'py, PyAny>,
    value: Bound<'py, PyAny>,
    /// Of a function: its code, and the same function in the namespace of the case.
    function: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
}

pub struct Names<'a, 'py> {
    globals: &'a Bound<'py, PyDict>,
    pristine: &'a Bound<'py, PyDict>,
    entry_point: &'a str,
    before: Bound<'py, PyDict>,
    given: Vec<Given<'py>>,
    /// The namespace of a case for itself.
    own: Bound<'py, PyDict>,
    function_type: Bound<'py, PyAny>,
}

impl<'a, 'py> Names<'a, 'py> {
    /// What is there before anything runs.
    ///
    /// `pristine` are the builtins; `entry_point` is the function under test, or empty where nobody says.
    pub fn before_setup(
        globals: &'a Bound<'py, PyDict>,
        pristine: &'a Bound<'py, PyDict>,
        entry_point: &'a str,
    ) -> PyResult<Self> {
        let own = PyDict::new(globals.py());
        // A function takes its builtins from the namespace that it is made in.
        own.set_item("__builtins__", pristine)?;
        let function_type = globals.py().import("types")?.getattr("FunctionType")?;
        Ok(Self { globals, pristine, entry_point, before: globals.copy()?, given: Vec::new(), own, function_type })
    }

    /// Notes what the setup gave.
    pub fn after_setup(&mut self) -> PyResult<()> {
        for (name, value) in self.globals {
            if !name.eq(self.entry_point)? && !is(&self.before, &name, &value)? {
                let function = self.function(&value)?;
                self.given.push(Given { name, value, function });
            }
        }
        Ok(())
    }

    /// The namespace of the case, once the solution has run.
    pub fn of_case(self) -> PyResult<Bound<'py, PyDict>> {
        let hidden = self.hidden_builtins()?;
        if hidden.is_empty() && !self.hides_given()? {
            self.globals.set_item("__builtins__", self.pristine)?;
            return Ok(self.globals.clone());
        }
        self.own.update(self.globals.as_mapping())?;
        for name in hidden {
            self.own.del_item(name)?;
        }
        for Given { name, value, function } in self.given {
            self.own.set_item(name, function.map_or(value, |(_, copy)| copy))?;
        }
        self.own.set_item("__builtins__", self.pristine)?;
        Ok(self.own)
    }

    fn hides_given(&self) -> PyResult<bool> {
        for Given { name, value, function } in &self.given {
            let changed = match function {
                Some((code, _)) => !value.getattr("__code__")?.is(code),
                None => false,
            };
            if changed || !is(self.globals, name, value)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names of Python's that the solution uses for something else, without the entry point and those of the setup.
    fn hidden_builtins(&self) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut hidden = Vec::new();
        for name in self.pristine.keys() {
            let solutions = self.globals.contains(&name)? && !self.before.contains(&name)?;
            let known = self.entry_point.is_empty() || name.eq(self.entry_point)?;
            let by_setup =
                || self.given.iter().try_fold(false, |any, given| Ok::<_, PyErr>(any || given.name.eq(&name)?));
            if solutions && !known && !by_setup()? {
                hidden.push(name);
            }
        }
        Ok(hidden)
    }

    /// The code of a function of the setup, and the function in the namespace of the case.
    fn function(&self, value: &Bound<'py, PyAny>) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
        if !value.get_type().is(&self.function_type) || !value.getattr("__globals__")?.is(self.globals) {
            return Ok(None);
        }
        let code = value.getattr("__code__")?;
        let [name, defaults, closure] = ["__name__", "__defaults__", "__closure__"].map(|part| value.getattr(part));
        let copy = self.function_type.call1((&code, &self.own, name?, defaults?, closure?))?;
        copy.setattr("__kwdefaults__", value.getattr("__kwdefaults__")?)?;
        Ok(Some((code, copy)))
    }
}

fn is(names: &Bound<'_, PyDict>, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(names.get_item(name)?.is_some_and(|found| found.is(value)))
}
