//! Connections as they come, through times without descriptors: an accept that fails is tried again, never the end.

use std::io;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::net::{TcpListener, TcpStream};

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
