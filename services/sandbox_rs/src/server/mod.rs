//! The service: gRPC, health, reflection, metrics; ready file; drain on SIGTERM and SIGINT.
//!
//! Draining takes nothing new (health says NOT_SERVING), lets what runs finish for the grace period, then ends it with
//! UNAVAILABLE, so that nothing of ours is ever taken for a program's doing.
//!
//! Who may call is `access`'s. Nothing that a caller sends to prove it is ever logged.

mod access;
mod arriving;
mod caller;
pub(crate) mod codec;
mod connection;
mod convert;
mod counts;
mod crowds;
#[cfg(fuzzing)]
pub mod fuzzing;
mod incoming;
pub mod logging;
mod metrics;
pub(crate) mod refusal;
mod room;
mod service;

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::Server;

use self::access::{Admission, Credentials, Listening};
use self::arriving::Arrivals;
use self::metrics::Endpoint;
use self::room::Room;
use self::service::{Phase, Service};
use crate::layers::process;
use crate::open_files;
use crate::proto::{DESCRIPTORS, sandbox_server::SandboxServer};
use crate::readiness::registered;
use crate::supervisor::cgroup::memory_limit;
use crate::supervisor::{Queues, Settings, Supervisor};

/// A job of tests carries all its cases.
const LARGEST_MESSAGE: usize = 64 << 20;
/// Metadata of one call: ids, a token, a certificate's worth at most.
const LARGEST_HEADERS: u32 = 32 << 10;
/// Streams at once on one connection: executions are long and many, and most callers have one connection.
const STREAMS_PER_CONNECTION: u32 = 20_000;
/// Bytes that a peer may send ahead of what is read: a whole source on one stream, a few large jobs on a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A caller that gives up thousands of calls at once is no attacker; the default would end its connection at 20.
const RESETS_AT_ONCE: usize = STREAMS_PER_CONNECTION as usize;
/// Requests may take one byte in so many: most is promised to programs.
const MEMORY_SHARE: u64 = 10;
/// Where nobody says how much memory there is.
const LITTLE_MEMORY: u64 = 1 << 30;
/// Questions of health and reflection.
const LARGEST_QUESTION: usize = 4 << 10;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);
/// After the grace, connections have this long to end.
const LAST_CALL: Duration = Duration::from_secs(3);

/// Options of the command line, as `troupe_sandbox.__main__` hands them over.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    pub listening: Listening,
    pub ready_file: Option<PathBuf>,
    pub drain_seconds: f64,
    pub die_with_parent: bool,
    /// Scripts, and jobs of tests, of one caller that may wait; the default fits the slots.
    pub workflow_queue: Option<usize>,
    pub test_queue: Option<usize>,
    /// Memory that requests may take, in MiB; the default is a share of what there is.
    pub request_memory: Option<u64>,
    /// Runs of python for agents at once; the default fits the cores.
    pub tool_slots: Option<usize>,
    /// Memory that no program may have more of, in MiB.
    pub program_memory: Option<u64>,
    pub log: String,
}

/// Serves until a signal ends it.
pub async fn serve(options: Options, mut settings: Settings) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    options.listening.check()?;
    let places = incoming::places(open_files::raise()?);
    let fitting = Queues::fitting(settings.workflow_slots);
    settings.queues = Queues {
        workflows: options.workflow_queue.unwrap_or(fitting.workflows),
        test_jobs: options.test_queue.unwrap_or(fitting.test_jobs),
    };
    settings.tool_slots = options.tool_slots.unwrap_or(settings.tool_slots);
    if settings.tool_slots == 0 {
        return Err("--tool-slots must be at least 1".into());
    }
    if options.request_memory == Some(0) {
        return Err("--request-memory must be at least 1".into());
    }
    let room = Room::new(
        options
            .request_memory
            .map_or_else(|| memory_limit().unwrap_or(LITTLE_MEMORY) / MEMORY_SHARE, |mebibytes| mebibytes << 20),
    );
    settings.most_memory = options.program_memory.map(|mebibytes| mebibytes << 20);
    let credentials = Arc::new(Credentials::read(&options.listening)?);
    if let Some(warning) = options.listening.warning() {
        tracing::warn!("{warning}");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let parent = if options.die_with_parent { Some(parent_watch()?) } else { None };
    let supervisor = tokio::select! {
        started = Supervisor::start(settings) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let listener = TcpListener::bind(options.listening.listen).await?;
    let metrics_listener = TcpListener::bind(options.listening.metrics).await?;
    let (target, metrics_target) = (listener.local_addr()?, metrics_listener.local_addr()?);

    let (phase_sender, phase) = watch::channel(Phase::Serving);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SandboxServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let reflection_alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let sandbox = SandboxServer::new(Service { supervisor: supervisor.clone(), phase: phase.clone() })
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(LARGEST_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(RESETS_AT_ONCE))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .layer(Admission::new(credentials.guard.clone()))
        .layer(Arrivals::new(room.clone()))
        .add_service(health_service.max_decoding_message_size(LARGEST_QUESTION))
        .add_service(reflection.build_v1()?.max_decoding_message_size(LARGEST_QUESTION))
        .add_service(reflection_alpha.build_v1alpha()?.max_decoding_message_size(LARGEST_QUESTION))
        .add_service(sandbox);
    let mut stopping = phase.clone();
    let stopped = async move {
        // The sender outlives the server.
        let _ = stopping.wait_for(|phase| *phase != Phase::Serving).await;
    };
    let server = match credentials.tls.clone() {
        None => Either::Left(server.serve_with_incoming_shutdown(incoming::incoming(listener, places), stopped)),
        Some(tls) => {
            Either::Right(server.serve_with_incoming_shutdown(incoming::secured(listener, tls, places), stopped))
        }
    };
    let endpoint = Endpoint {
        supervisor: supervisor.clone(),
        room,
        phase: phase.clone(),
        guard: credentials.guard.clone(),
        tls: credentials.tls.clone(),
    };
    let rotation = tokio::spawn(credentials.follow());
    let metrics_task = tokio::spawn(metrics::serve(metrics_listener, endpoint));
    let crowds = tokio::spawn(crowds::watch(supervisor.clone()));
    let server = tokio::spawn(server);
    if let Some(path) = &options.ready_file {
        write_ready_file(path, target, metrics_target)?;
    }
    tracing::info!(%target, metrics = %metrics_target, "serving");

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        () = parent_gone(parent.as_ref()) => tracing::warn!("the parent process is gone: draining"),
    }
    health.set_not_serving::<SandboxServer<Service>>().await;
    phase_sender.send_replace(Phase::Draining);
    let mut server = server;
    let grace = Duration::from_secs_f64(options.drain_seconds);
    let idle = async {
        while supervisor.workflow_slots.taken() + supervisor.test_jobs.taken() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(grace) => {}
        () = idle => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    phase_sender.send_replace(Phase::Halting);
    if tokio::time::timeout(LAST_CALL, &mut server).await.is_err() {
        server.abort();
    }
    metrics_task.abort();
    crowds.abort();
    rotation.abort();
    if let Some(path) = &options.ready_file {
        // It says that something serves, which is no longer so. It may have been removed already.
        let _ = fs::remove_file(path);
    }
    tracing::info!("stopped");
    Ok(())
}

/// Written beside and renamed, so that a reader sees all of it or nothing.
fn write_ready_file(path: &Path, target: SocketAddr, metrics: SocketAddr) -> std::io::Result<()> {
    let ready = serde_json::json!({
        "target": target.to_string(),
        "metrics": metrics.to_string(),
        "pid": std::process::id(),
    });
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&beside, ready.to_string())?;
    fs::rename(&beside, path)
}

fn parent_watch() -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: takes nothing and cannot fail.
    registered(process::watch(unsafe { libc::getppid() })?)
}

async fn parent_gone(parent: Option<&AsyncFd<OwnedFd>>) {
    match parent {
        // An error here means the same as an end: nobody can be watched any more.
        Some(parent) => drop(parent.readable().await),
        None => std::future::pending().await,
    }
}
