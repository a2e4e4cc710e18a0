//! Tries each layer for real, in a child of its own: no version is compared, nothing is taken for granted.
//!
//! `run` is called in a fresh single-threaded process (started for it by the supervisor), because a process with threads
//! must not fork. The answers go to the supervisor as lines `name errno`; 0 means that the layer held.

use std::io::{self, Write};

use super::{LAYERS, LayerReport, check};

/// Reported where a layer was put in force and did not hold.
const DID_NOT_HOLD: i32 = libc::ENOTRECOVERABLE;

/// Tries all layers and writes one line for each. The calling process must be single-threaded.
pub fn run(mut answers: impl Write) -> io::Result<()> {
    for kind in LAYERS {
        let errno = in_child(kind.probe)?;
        writeln!(answers, "{} {errno}", kind.name)?;
    }
    answers.flush()
}

/// Runs `attempt` in a child and returns its errno, 0 if the layer held.
fn in_child(attempt: fn() -> io::Result<bool>) -> io::Result<i32> {
    // SAFETY: the caller vouches that there is one thread; the child runs `attempt` and leaves without unwinding into
    // the parent's stack.
    unsafe {
        let child = check(libc::fork() as libc::c_long)? as libc::pid_t;
        if child == 0 {
            let errno = match std::panic::catch_unwind(attempt) {
                Ok(Ok(true)) => 0,
                Ok(Ok(false)) | Err(_) => DID_NOT_HOLD,
                Ok(Err(error)) => error.raw_os_error().unwrap_or(DID_NOT_HOLD),
            };
            libc::_exit(errno.clamp(0, 255));
        }
        let mut status = 0;
        check(libc::waitpid(child, &mut status, 0) as libc::c_long)?;
        Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { DID_NOT_HOLD })
    }
}

/// Reads the answers of `run`.
pub fn parse(answers: &str) -> Result<Vec<LayerReport>, String> {
    let mut lines = answers.lines();
    LAYERS
        .iter()
        .map(|kind| {
            let line = lines.next().unwrap_or_default();
            let errno = line
                .strip_prefix(kind.name)
                .and_then(|rest| rest.trim().parse::<i32>().ok())
                .ok_or_else(|| format!("the probe said {line:?} instead of its answer on {}", kind.name))?;
            let detail = if errno == 0 {
                format!("tried at start, and it held; stops {}", kind.stops)
            } else {
                format!("{}; without it nothing stops {}", io::Error::from_raw_os_error(errno), kind.stops)
            };
            Ok(LayerReport { name: kind.name, active: errno == 0, errno, detail, remedy: kind.remedy })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Profile, Wanted, choose, in_force};
    use super::*;

    fn reports(missing: &[&str]) -> Vec<LayerReport> {
        let answers: String = LAYERS
            .iter()
            .map(|kind| format!("{} {}\n", kind.name, if missing.contains(&kind.name) { libc::EPERM } else { 0 }))
            .collect();
        parse(&answers).unwrap()
    }

    #[test]
    fn auto_takes_the_strongest_profile_there_is() {
        assert_eq!(choose(Wanted::Auto, &reports(&[]), &[]), Ok(Profile::Full));
        assert_eq!(choose(Wanted::Auto, &reports(&["user_namespace"]), &[]), Ok(Profile::Pod));
        assert!(choose(Wanted::Auto, &reports(&["seccomp"]), &[]).unwrap_err().contains("layer seccomp is missing"));
    }

    #[test]
    fn a_profile_that_was_asked_for_is_never_weakened() {
        let error = choose(Wanted::Only(Profile::Full), &reports(&["pid_namespace"]), &[]).unwrap_err();
        assert!(error.contains("pid_namespace") && error.contains("user.max_user_namespaces"), "{error}");
    }

    #[test]
    fn a_required_layer_must_be_in_the_profile() {
        let required = ["landlock_scopes".to_owned()];
        assert!(choose(Wanted::Auto, &reports(&["landlock_scopes"]), &required).is_err());
        assert_eq!(choose(Wanted::Auto, &reports(&[]), &required), Ok(Profile::Full));
        let namespaces = ["network_namespace".to_owned()];
        assert!(choose(Wanted::Only(Profile::Pod), &reports(&[]), &namespaces).is_err());
    }

    #[test]
    fn optional_layers_count_where_the_kernel_has_them() {
        assert!(in_force(Profile::Pod, &reports(&[])).contains(&"landlock_scopes"));
        assert!(!in_force(Profile::Pod, &reports(&[])).contains(&"pid_namespace"));
        assert!(!in_force(Profile::Pod, &reports(&["landlock_scopes"])).contains(&"landlock_scopes"));
    }

    #[test]
    fn garbage_from_the_probe_is_an_error() {
        assert!(parse("rlimits 0\n").is_err());
    }
}
