//! The HTTP port: `GET /metrics` for Prometheus, guarded by the table's row; `GET /healthz` for probes without gRPC,
//! open: 200 while the service serves, else 503.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::access::{Guard, Refusal, uri_names};
use super::service::Phase;
use crate::supervisor::Supervisor;

const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
const LARGEST_REQUEST: usize = 16 << 10;

/// What an answer is made of.
pub struct Endpoint {
    pub supervisor: Arc<Supervisor>,
    pub phase: watch::Receiver<Phase>,
    pub guard: Arc<Guard>,
    pub tls: Option<TlsAcceptor>,
}

/// Answers for as long as the future is polled.
pub async fn serve(listener: TcpListener, endpoint: Endpoint) {
    let endpoint = Arc::new(endpoint);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let endpoint = endpoint.clone();
                // A client that breaks off or dawdles harms nobody else.
                tokio::spawn(async move { tokio::time::timeout(REQUEST_DEADLINE, converse(stream, &endpoint)).await });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics connection refused");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, endpoint: &Endpoint) -> std::io::Result<()> {
    match &endpoint.tls {
        None => answer(stream, &[], endpoint).await,
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            let names = uri_names(stream.get_ref().1.peer_certificates());
            answer(stream, &names, endpoint).await
        }
    }
}

async fn answer<S>(mut stream: S, names: &[String], endpoint: &Endpoint) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < LARGEST_REQUEST {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let (status, body) = respond(&String::from_utf8_lossy(&request), names, endpoint);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Status line and body for a request's text.
fn respond(request: &str, names: &[String], endpoint: &Endpoint) -> (&'static str, String) {
    let path = match request.split_ascii_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["GET", path @ ("/metrics" | "/healthz")] => path,
        _ => return ("404 Not Found", "only GET /metrics and GET /healthz\n".to_owned()),
    };
    match endpoint.guard.admit(&format!("http{path}"), authorization(request), names) {
        Err(Refusal::Unauthenticated(why)) => ("401 Unauthorized\r\nWWW-Authenticate: Bearer", format!("{why}\n")),
        Err(Refusal::PermissionDenied(why)) => ("403 Forbidden", format!("{why}\n")),
        Ok(()) if path == "/metrics" => ("200 OK", render(&endpoint.supervisor)),
        Ok(()) if *endpoint.phase.borrow() == Phase::Serving => ("200 OK", "ok\n".to_owned()),
        Ok(()) => ("503 Service Unavailable", "not serving\n".to_owned()),
    }
}

fn authorization(request: &str) -> Option<&str> {
    let mut headers = request.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value.trim())
}

fn render(supervisor: &Supervisor) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let pools = [
        ("workflow", &supervisor.workflow_slots),
        ("test_job", &supervisor.test_jobs),
        ("test_case", &supervisor.case_slots),
        ("tool", &supervisor.tool_slots),
    ];
    let by_pool = |value: fn(&crate::supervisor::slots::Slots) -> usize| -> Vec<(String, u64)> {
        pools.iter().map(|(name, slots)| (format!("{{pool=\"{name}\"}}"), value(slots) as u64)).collect()
    };
    family("troupe_sandbox_slots", "gauge", "Programs that may run at once.", &by_pool(|slots| slots.total()));
    family("troupe_sandbox_running", "gauge", "Slots taken.", &by_pool(|slots| slots.taken()));
    family("troupe_sandbox_queued", "gauge", "Requests that wait for a slot.", &by_pool(|slots| slots.queued()));
    let ended: Vec<(String, u64)> = supervisor
        .counters
        .snapshot()
        .into_iter()
        .map(|((kind, verdict), count)| (format!("{{kind=\"{kind}\",verdict=\"{verdict}\"}}"), count))
        .collect();
    family("troupe_sandbox_programs_total", "counter", "Programs that ended, by kind and verdict.", &ended);
    let faults = supervisor.counters.faults.load(Ordering::Relaxed);
    family("troupe_sandbox_faults_total", "counter", "Failures of the sandbox itself.", &[(String::new(), faults)]);
    let replaced = supervisor.zygotes_replaced();
    family("troupe_sandbox_zygotes_replaced_total", "counter", "Zygotes replaced.", &[(String::new(), replaced)]);
    let profile = format!("{{profile=\"{}\"}}", supervisor.isolation.profile.name());
    family("troupe_sandbox_profile", "gauge", "The profile in force.", &[(profile, 1)]);
    text
}

#[cfg(test)]
mod tests {
    use super::authorization;

    #[test]
    fn the_credential_is_found_among_the_headers() {
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nauthorization:  Bearer abc \r\n\r\n";
        assert_eq!(authorization(request), Some("Bearer abc"));
        assert_eq!(authorization("GET /authorization:x HTTP/1.1\r\n\r\n"), None);
    }
}
