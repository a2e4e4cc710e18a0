//! Makes the objects of a zygote immortal, once, before anything is forked from it.
//!
//! Looking at an object changes its reference count, and so copies a page that was shared with the zygote: most page
//! faults of a short program are of this kind. Since CPython 3.12 (PEP 683) the interpreter leaves the count of an
//! immortal object alone and never frees it. Nothing is lost by that: a program cannot give the zygote's memory back
//! anyway, and it ends without taking its interpreter apart. An older interpreter has no such objects; there nothing is
//! done.

use std::collections::HashSet;

use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

/// What the collector does not see: of code objects, what functions take from them; of types written in C, their order.
const UNSEEN_OF_CODE: [&str; 5] = ["co_consts", "co_names", "co_name", "co_qualname", "co_filename"];
const UNSEEN_OF_TYPE: [&str; 2] = ["__mro__", "__bases__"];

/// All objects that the collector has frozen or knows, and what they lead to. Freezes what was not.
pub fn make_immortal(py: Python<'_>) -> PyResult<()> {
    let Some(immortal) = immortal_count(py) else { return Ok(()) };
    let code_type = py.import("types")?.getattr("CodeType")?;
    let type_type = py.get_type::<PyType>();
    let gc = py.import("gc")?;
    // It lists nothing that is frozen.
    gc.call_method0("unfreeze")?;
    let mut found: Vec<Bound<'_, PyAny>> = gc.call_method0("get_objects")?.extract()?;
    gc.call_method0("freeze")?;
    let mut seen = HashSet::new();
    while !found.is_empty() {
        found.retain(|object| seen.insert(object.as_ptr()));
        let mut unseen = Vec::new();
        for object in &found {
            // SAFETY: the interpreter has immortal objects, and this is the count of one.
            unsafe { set_count(object, immortal) };
            // By its very type: asking whether it is an instance may run code of its own.
            let kind = object.get_type();
            let names: &[&str] = if kind.is(&code_type) {
                &UNSEEN_OF_CODE
            } else if kind.is(&type_type) {
                &UNSEEN_OF_TYPE
            } else {
                &[]
            };
            for name in names {
                unseen.push(object.getattr(*name)?);
            }
        }
        found = gc.call_method1("get_referents", PyTuple::new(py, found)?)?.extract()?;
        found.append(&mut unseen);
    }
    Ok(())
}

/// The reference count of `None` where that is immortal: then, and only then, its lower half is negative as an `i32`.
fn immortal_count(py: Python<'_>) -> Option<u32> {
    // SAFETY: `None` is an object, and any begins with four bytes of its count.
    let count = unsafe { py.None().as_ptr().cast::<u32>().read() };
    (count.cast_signed() < 0).then_some(count)
}

/// Sets the lower half of the count. The upper one is zero; from 3.14 on it holds flags of the object, which stay.
///
/// # Safety
/// The interpreter takes an object with this count for an immortal one.
unsafe fn set_count(object: &Bound<'_, PyAny>, count: u32) {
    let place = object.as_ptr().cast::<u32>();
    // SAFETY: as above; who holds the GIL may change it. What is immortal already may lie where nothing may be written.
    unsafe {
        if place.read().cast_signed() >= 0 {
            place.write(count);
        }
    }
}
