//! Who a call is from, for fairness: the role of its credential, and the run that it is for or else its machine.

use std::sync::Arc;

use tonic::codegen::http;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use super::access::Role;

/// Key of the metadata that `troupe_contracts.log` sends with every call that belongs to a run.
const RUN: &str = "troupe-run-id";
const LONGEST_RUN: usize = 256;

/// The caller whose calls take turns with those of others.
#[derive(Clone)]
pub struct Caller(Arc<str>);

impl Caller {
    pub fn of<T>(request: &http::Request<T>) -> Self {
        let role = request.extensions().get::<Role>().copied().unwrap_or(Role::Anonymous);
        let run = request.headers().get(RUN).and_then(|value| value.to_str().ok());
        let origin = match run {
            Some(run) if run.len() <= LONGEST_RUN => format!("run {run}"),
            _ => peer(request).map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string()),
        };
        Caller(format!("{role} {origin}").into())
    }

    pub fn name(&self) -> Arc<str> {
        self.0.clone()
    }
}

/// Where a call comes from.
pub fn peer<T>(request: &http::Request<T>) -> Option<std::net::SocketAddr> {
    let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().map(TlsConnectInfo::get_ref);
    tls.or(request.extensions().get::<TcpConnectInfo>()).and_then(TcpConnectInfo::remote_addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_told_apart_and_so_are_roles() {
        let of = |run: &str, role| {
            let mut request = http::Request::new(());
            request.headers_mut().insert(RUN, run.parse().unwrap());
            request.extensions_mut().insert(role);
            Caller::of(&request).0
        };
        assert_eq!(of("a", Role::Orchestrator), of("a", Role::Orchestrator));
        assert_ne!(of("a", Role::Orchestrator), of("b", Role::Orchestrator));
        assert_ne!(of("a", Role::Orchestrator), of("a", Role::Client));
        assert_eq!(&*of(&"x".repeat(300), Role::Client), "client unknown");
    }
}
