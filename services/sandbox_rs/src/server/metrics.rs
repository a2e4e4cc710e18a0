//! The HTTP port: `GET /metrics` for Prometheus, guarded by the table's row; `GET /healthz` for probes without gRPC,
//! open: 200 while the service serves, else 503.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::access::{Followed, Guard, Refusal, Tls, uri_names};
use super::room::Room;
use super::service::Phase;
use crate::supervisor::Supervisor;
use crate::supervisor::slots::Slots;
use crate::supervisor::waits::Waits;

const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
const LARGEST_REQUEST: usize = 16 << 10;
/// Answered at the same time; more wait to be accepted.
const REQUESTS_AT_ONCE: usize = 64;

/// What an answer is made of.
pub struct Endpoint {
    pub supervisor: Arc<Supervisor>,
    pub room: Arc<Room>,
    pub phase: watch::Receiver<Phase>,
    pub guard: Arc<Guard>,
    pub tls: Option<Arc<Followed<Tls>>>,
}

/// Answers for as long as the future is polled.
pub async fn serve(listener: TcpListener, endpoint: Endpoint) {
    let endpoint = Arc::new(endpoint);
    let places = Arc::new(Semaphore::new(REQUESTS_AT_ONCE));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let endpoint = endpoint.clone();
                // A client that breaks off or dawdles harms nobody else.
                tokio::spawn(async move {
                    let _place = place;
                    tokio::time::timeout(REQUEST_DEADLINE, converse(stream, &endpoint)).await
                });
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
        Some(tls) => {
            let stream = TlsAcceptor::from(tls.value().http.clone()).accept(stream).await?;
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
        Ok(_) if path == "/metrics" => ("200 OK", render(&endpoint.supervisor, &endpoint.room)),
        Ok(_) if *endpoint.phase.borrow() == Phase::Serving => ("200 OK", "ok\n".to_owned()),
        Ok(_) => ("503 Service Unavailable", "not serving\n".to_owned()),
    }
}

fn authorization(request: &str) -> Option<&str> {
    let mut headers = request.lines().skip(1).filter_map(|line| line.split_once(':'));
    headers.find(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value.trim())
}

/// Name, kind and help of a family, and its value for one pool.
type Family = (&'static str, &'static str, &'static str, fn(&Slots) -> f64);

/// Writes one family of samples: labels or suffix, and value.
fn family(text: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
    // Writing to a string cannot fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

fn render(supervisor: &Supervisor, room: &Room) -> String {
    let mut text = String::new();
    let pools = [
        ("workflow", &supervisor.workflow_slots),
        ("test_job", &supervisor.test_jobs),
        ("test_case", &supervisor.case_slots),
        ("tool", &supervisor.tool_slots),
    ];
    let by_pool = |value: fn(&Slots) -> f64| -> Vec<(String, f64)> {
        pools.iter().map(|(name, slots)| (format!("{{pool=\"{name}\"}}"), value(slots))).collect()
    };
    let families: [Family; 4] = [
        ("troupe_sandbox_slots", "gauge", "What may run at once.", |slots| slots.total() as f64),
        ("troupe_sandbox_running", "gauge", "Slots taken.", |slots| slots.taken() as f64),
        ("troupe_sandbox_queued", "gauge", "Requests that wait for a slot.", |slots| slots.queued() as f64),
        ("troupe_sandbox_refused_total", "counter", "Requests beyond the queue.", |slots| slots.refused() as f64),
    ];
    for (name, kind, help, value) in families {
        family(&mut text, name, kind, help, &by_pool(value));
    }
    let waits: Vec<(String, f64)> = pools.iter().flat_map(|(name, slots)| histogram(name, &slots.waits())).collect();
    family(&mut text, "troupe_sandbox_wait_seconds", "histogram", "Time in the queue of those who got a slot.", &waits);
    let ended: Vec<(String, f64)> = supervisor
        .counters
        .snapshot()
        .into_iter()
        .map(|((kind, verdict), count)| (format!("{{kind=\"{kind}\",verdict=\"{verdict}\"}}"), count as f64))
        .collect();
    family(&mut text, "troupe_sandbox_programs_total", "counter", "Programs that ended, by kind and verdict.", &ended);
    let faults: Vec<(String, f64)> = supervisor
        .counters
        .faults()
        .into_iter()
        .map(|(name, count)| (format!("{{fault=\"{name}\"}}"), count as f64))
        .collect();
    family(
        &mut text,
        "troupe_sandbox_faults_total",
        "counter",
        "Failures of the sandbox itself, by what it was.",
        &faults,
    );
    let replaced = [(String::new(), supervisor.zygotes_replaced() as f64)];
    family(&mut text, "troupe_sandbox_zygotes_replaced_total", "counter", "Zygotes replaced.", &replaced);
    let no_room = [(String::new(), room.refused() as f64)];
    family(&mut text, "troupe_sandbox_no_room_total", "counter", "Requests refused for their bytes.", &no_room);
    let held = [(String::new(), room.held() as f64)];
    family(&mut text, "troupe_sandbox_request_bytes", "gauge", "Bytes of the requests that come, wait and run.", &held);
    let profile = [(format!("{{profile=\"{}\"}}", supervisor.isolation.profile.name()), 1.0)];
    family(&mut text, "troupe_sandbox_profile", "gauge", "The profile in force.", &profile);
    text
}

fn histogram(pool: &str, waits: &Waits) -> Vec<(String, f64)> {
    let bucket = |bound: &str, count: u64| (format!("_bucket{{pool=\"{pool}\",le=\"{bound}\"}}"), count as f64);
    let mut samples: Vec<_> =
        waits.cumulative().iter().map(|(bound, count)| bucket(&bound.to_string(), *count)).collect();
    samples.push(bucket("+Inf", waits.count()));
    samples.push((format!("_sum{{pool=\"{pool}\"}}"), waits.seconds));
    samples.push((format!("_count{{pool=\"{pool}\"}}"), waits.count() as f64));
    samples
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
