//! Who a call is from, for fairness: the role of its credential, and the run that it is for or else its machine.

use tonic::Request;

use super::access::Role;

/// Key of the metadata that `troupe_contracts.log` sends with every call that belongs to a run.
const RUN: &str = "troupe-run-id";
const LONGEST_RUN: usize = 256;

/// Name of the caller whose calls take turns with those of others.
pub fn caller<T>(request: &Request<T>) -> String {
    let role = request.extensions().get::<Role>().copied().unwrap_or(Role::Anonymous);
    let run = request.metadata().get(RUN).and_then(|value| value.to_str().ok());
    let origin = match run {
        Some(run) if run.len() <= LONGEST_RUN => format!("run {run}"),
        _ => request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string()),
    };
    format!("{role} {origin}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_and_so_are_roles() {
        let of = |run: &str, role| {
            let mut request = Request::new(());
            request.metadata_mut().insert(RUN, run.parse().unwrap());
            request.extensions_mut().insert(role);
            caller(&request)
        };
        assert_eq!(of("a", Role::Orchestrator), of("a", Role::Orchestrator));
        assert_ne!(of("a", Role::Orchestrator), of("b", Role::Orchestrator));
        assert_ne!(of("a", Role::Orchestrator), of("a", Role::Client));
        assert_eq!(of(&"x".repeat(300), Role::Client), "client unknown");
    }
}
