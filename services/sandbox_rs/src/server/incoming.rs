//! Connections as they come, through times without descriptors: an accept that fails is tried again, never the end.
//!
//! With TLS each is shaken hands with by what the files hold then. That takes place beside the others: who dawdles at it
//! keeps nobody else out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::access::{Followed, Tls};

/// A handshake takes three ways through the network.
const HANDSHAKE: Duration = Duration::from_secs(20);
const HANDSHAKES_AT_ONCE: usize = 4096;
const PAUSE: Duration = Duration::from_millis(50);

/// Small frames go both ways in turns: with delays each would wait for the peer's delayed acknowledgement.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted; raise the limit of open files if it stays so");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// As `incoming`, each behind a handshake that has gone well.
pub fn secured(listener: TcpListener, tls: Arc<Followed<Tls>>) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let handshakes = incoming(listener).map(move |accepted| {
        let acceptor = TlsAcceptor::from(tls.value().grpc.clone());
        tokio::spawn(async move { tokio::time::timeout(HANDSHAKE, acceptor.accept(accepted?)).await? })
    });
    handshakes.buffer_unordered(HANDSHAKES_AT_ONCE).filter_map(|ended| async {
        match ended.map_err(io::Error::other).flatten() {
            Ok(stream) => Some(Ok(stream)),
            Err(error) => {
                tracing::warn!(%error, "a handshake came to nothing");
                None
            }
        }
    })
}
