//! Layers switched off by name, for the tests that show which layer stops what.
//!
//! Without the feature `weakened` there is no switch: `is_off` is the constant false and the variable below is not known.
//! With it the profile's name begins with "weakened-", so that no result of such a build passes for a real one. The
//! names are those of the table of layers, `seccomp:CALL` (that call is allowed), `rlimit:NAME`, and what
//! `is_off` is asked for elsewhere; a name that nothing asks for switches nothing off, and its test fails.

use std::process::Command;

/// Whether this layer, or this rule of one, was switched off when the process was started.
#[cfg(not(feature = "weakened"))]
#[inline(always)]
pub const fn is_off(_name: &str) -> bool {
    false
}

/// Hands the switches on to a process whose environment is otherwise empty.
#[cfg(not(feature = "weakened"))]
pub fn hand_on(_command: &mut Command) {}

/// Calls that are allowed although they are on no list.
#[cfg(not(feature = "weakened"))]
pub fn allowed_calls() -> Vec<String> {
    Vec::new()
}

#[cfg(feature = "weakened")]
mod switches {
    use std::collections::HashSet;
    use std::sync::LazyLock;

    pub const VARIABLE: &str = "SANDBOX_WITHOUT_LAYERS";

    pub static OFF: LazyLock<HashSet<String>> = LazyLock::new(|| {
        let names = std::env::var(VARIABLE).unwrap_or_default();
        names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    });
}

#[cfg(feature = "weakened")]
pub fn is_off(name: &str) -> bool {
    switches::OFF.contains(name)
}

#[cfg(feature = "weakened")]
pub fn hand_on(command: &mut Command) {
    command.env(switches::VARIABLE, std::env::var(switches::VARIABLE).unwrap_or_default());
}

#[cfg(feature = "weakened")]
pub fn allowed_calls() -> Vec<String> {
    switches::OFF.iter().filter_map(|name| name.strip_prefix("seccomp:")).map(str::to_owned).collect()
}
