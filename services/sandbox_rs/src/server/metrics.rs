//! Prometheus metrics over plain HTTP: `GET /metrics`, and `GET /healthz` for probes without gRPC.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::supervisor::Supervisor;

const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Answers for as long as the future is polled.
pub async fn serve(listener: TcpListener, supervisor: Arc<Supervisor>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let supervisor = supervisor.clone();
                // A client that breaks off or dawdles harms nobody else.
                tokio::spawn(async move { tokio::time::timeout(REQUEST_DEADLINE, answer(stream, &supervisor)).await });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics connection refused");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, supervisor: &Supervisor) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let count = stream.read(&mut request).await?;
    let line = String::from_utf8_lossy(&request[..count]);
    let (status, body) = match line.split_ascii_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics"] => ("200 OK", render(supervisor)),
        ["GET", "/healthz"] => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", "only GET /metrics and GET /healthz\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
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
