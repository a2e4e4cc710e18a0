//! Connections as they come, through times without descriptors: an accept that fails is tried again, never the end.
//!
//! As many are open at once as leave most descriptors to programs; more wait to be accepted. With TLS each is shaken hands
//! with by what the files hold then. That takes place beside the others: who dawdles at it keeps nobody else out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::access::{Followed, Tls};
use super::connection::Connection;

/// One descriptor in so many may be a connection's.
const SHARE: u64 = 4;
const MOST_CONNECTIONS: u64 = 1 << 16;
/// A handshake takes three ways through the network.
const HANDSHAKE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// How many connections may be open at once where so many files may.
pub fn places(open_files: u64) -> usize {
    (open_files / SHARE).clamp(1, MOST_CONNECTIONS) as usize
}

/// Small frames go both ways in turns: with delays each would wait for the peer's delayed acknowledgement.
fn accepted(listener: TcpListener, places: usize) -> impl Stream<Item = (TcpStream, OwnedSemaphorePermit)> {
    let places = Arc::new(Semaphore::new(places));
    stream::unfold((listener, places), |(listener, places)| async {
        let place = places.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => return Some(((stream, place), (listener, places))),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted; raise the limit of open files if it stays so");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// In plain text.
pub fn incoming(listener: TcpListener, places: usize) -> impl Stream<Item = io::Result<Connection<TcpStream>>> {
    accepted(listener, places).map(|(stream, place)| Ok(Connection::new(stream, place)))
}

/// Each behind a handshake that has gone well.
pub fn secured(
    listener: TcpListener,
    tls: Arc<Followed<Tls>>,
    places: usize,
) -> impl Stream<Item = io::Result<Connection<TlsStream<TcpStream>>>> {
    let handshakes = accepted(listener, places).map(move |(stream, place)| {
        let acceptor = TlsAcceptor::from(tls.value().grpc.clone());
        tokio::spawn(async move {
            let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
            Ok(Connection::new(stream, place))
        })
    });
    handshakes.buffer_unordered(places).filter_map(|ended| async {
        match ended.map_err(io::Error::other).flatten() {
            Ok(connection) => Some(Ok(connection)),
            // Whoever only tries whether somebody listens, as a probe does.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => None,
            Err(error) => {
                tracing::warn!(%error, "a handshake came to nothing");
                None
            }
        }
    })
}
