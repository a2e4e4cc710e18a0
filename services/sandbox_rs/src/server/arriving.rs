//! Requests as they come: counted against the room from the first byte on, and whole within a stated time.
//!
//! Half of many large messages would otherwise be memory that nobody counts, held for as long as their caller likes. What does
//! not fit is refused before it is whole. A call's first message counts until the call has ended. A script that has been let
//! in gets replies: each counts while it comes, and is never refused. Other calls have one message and end with it.
//!
//! Only the sandbox's own calls are counted. What anybody may ask, health and reflection, is small, and must be answered
//! however full it is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower_layer::Layer;

use super::caller::Caller;
use super::refusal::{self, BadField};
use super::room::{Held, Room};

/// The largest that is taken comes within it at 1 MiB/s.
const FIRST_MESSAGE: Duration = Duration::from_secs(64);
/// Bytes ahead of each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const COUNTED: &str = "/troupe.v1.Sandbox/";
/// Of these the one with a stream of messages.
const STREAM: &str = "/troupe.v1.Sandbox/RunWorkflow";

type Chunk = <Body as http_body::Body>::Data;

/// The layer. Services find the call's `Caller` and `Arrived` among the request's extensions.
#[derive(Clone)]
pub struct Arrivals {
    room: Arc<Room>,
}

impl Arrivals {
    pub fn new(room: Arc<Room>) -> Self {
        Arrivals { room }
    }
}

impl<S> Layer<S> for Arrivals {
    type Service = Arriving<S>;

    fn layer(&self, inner: S) -> Arriving<S> {
        Arriving { room: self.room.clone(), inner }
    }
}

/// A service whose requests are counted as they come.
#[derive(Clone)]
pub struct Arriving<S> {
    room: Arc<Room>,
    inner: S,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Arriving<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if !path.starts_with(COUNTED) {
            return self.inner.call(request);
        }
        let is_stream = path == STREAM;
        let caller = Caller::of(&request);
        let arrived = Arrived(Arc::new(Mutex::new(self.room.nothing(caller.name()))));
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(arrived.clone());
        self.inner.call(request.map(|body| Body::new(Counted::new(body, arrived, is_stream))))
    }
}

/// The bytes of one call's requests. As long as one copy of it lives, they count.
#[derive(Clone)]
pub struct Arrived(Arc<Mutex<Held>>);

/// A request's body, counted.
struct Counted {
    body: Body,
    arrived: Arrived,
    messages: Messages,
    /// More than one message may come.
    is_stream: bool,
    late: Pin<Box<Sleep>>,
}

impl Counted {
    fn new(body: Body, arrived: Arrived, is_stream: bool) -> Self {
        Counted { body, arrived, messages: Messages::default(), is_stream, late: Box::pin(sleep(FIRST_MESSAGE)) }
    }

    /// Nothing has to come any more.
    fn may_be_silent(&self) -> bool {
        self.is_stream && self.messages.first.is_some()
    }

    fn count(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let began_whole = self.messages.first.is_some();
        self.messages.pass(bytes);
        let of_next = self.messages.of_next();
        if !self.is_stream && self.messages.first.is_some() && (began_whole || of_next > 0) {
            return Err(BadField::new("request", "this call takes one message, and more came").into());
        }
        let now = self.messages.first.unwrap_or(0) + of_next;
        let mut held = self.arrived.0.lock().unwrap_or_else(PoisonError::into_inner);
        if began_whole {
            held.set(now);
            Ok(())
        } else {
            held.grow(now).map_err(|full| refusal::no_room(&full))
        }
    }
}

impl http_body::Body for Counted {
    type Data = Chunk;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let counted = frame.data_ref().map_or(Ok(()), |chunk| self.count(chunk));
                Poll::Ready(Some(counted.map(|()| frame)))
            }
            Poll::Pending if !self.may_be_silent() && self.late.as_mut().poll(context).is_ready() => {
                Poll::Ready(Some(Err(refusal::late(FIRST_MESSAGE))))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where the messages of a body begin and end.
#[derive(Default)]
pub(super) struct Messages {
    /// Bytes of the first, once it is whole.
    pub(super) first: Option<u64>,
    prefix: [u8; PREFIX],
    /// Bytes of the next message that have come: of its prefix, and after it.
    prefix_come: usize,
    come: u64,
}

impl Messages {
    /// Goes on by some bytes.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.prefix_come < PREFIX {
                let (taken, rest) = bytes.split_at(bytes.len().min(PREFIX - self.prefix_come));
                self.prefix[self.prefix_come..][..taken.len()].copy_from_slice(taken);
                self.prefix_come += taken.len();
                bytes = rest;
            }
            let [_, length @ ..] = self.prefix;
            let missing = u64::from(u32::from_be_bytes(length)) - self.come;
            let taken = missing.min(bytes.len() as u64);
            self.come += taken;
            bytes = &bytes[taken as usize..];
            if self.prefix_come == PREFIX && taken == missing {
                let whole = self.of_next();
                self.first.get_or_insert(whole);
                (self.prefix_come, self.come) = (0, 0);
            }
        }
    }

    /// Bytes that have come of a message that is not whole.
    pub(super) fn of_next(&self) -> u64 {
        self.prefix_come as u64 + self.come
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    fn message(length: u32) -> Vec<u8> {
        [&[0], &length.to_be_bytes()[..], &vec![7; length as usize]].concat()
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let stream = [message(3), message(0), message(300), message(2)].concat();
        for size in 1..stream.len() {
            let mut messages = Messages::default();
            let seen: Vec<_> = stream
                .chunks(size)
                .map(|chunk| {
                    messages.pass(chunk);
                    (messages.first, messages.of_next())
                })
                .collect();
            let expected = |end: usize| match end {
                0..8 => (None, end as u64),
                8..13 => (Some(8), end as u64 - 8),
                13..318 => (Some(8), end as u64 - 13),
                318..325 => (Some(8), end as u64 - 318),
                _ => (Some(8), 0),
            };
            let ends = (1..=seen.len()).map(|number| (number * size).min(stream.len()));
            assert!(seen.iter().copied().eq(ends.map(expected)), "in pieces of {size}");
        }
    }

    #[test]
    fn a_message_of_nothing_is_whole_with_its_prefix() {
        let mut messages = Messages::default();
        messages.pass(&message(0));
        assert_eq!((messages.first, messages.of_next()), (Some(5), 0));
    }

    /// Some bytes, and then nothing any more.
    struct Stalled(Vec<u8>);

    impl http_body::Body for Stalled {
        type Data = Chunk;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Status>>> {
            let bytes = std::mem::take(&mut self.0);
            if bytes.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(bytes.into())))) }
        }
    }

    async fn second_frame(bytes: Vec<u8>, is_stream: bool, room: &Arc<Room>) -> Option<Status> {
        let arrived = Arrived(Arc::new(Mutex::new(room.nothing("somebody".into()))));
        let mut body = Box::pin(Counted::new(Body::new(Stalled(bytes)), arrived, is_stream));
        let mut next = async || std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await;
        assert!(next().await.unwrap().unwrap().is_data());
        tokio::time::timeout(2 * FIRST_MESSAGE, next()).await.ok()?.unwrap().err()
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_given_up_and_only_a_stream_may_be_silent() {
        let room = Room::new(100);
        let half = message(20)[..10].to_vec();
        for is_stream in [false, true] {
            let ended = second_frame(half.clone(), is_stream, &room).await;
            assert_eq!(ended.unwrap().code(), tonic::Code::DeadlineExceeded);
        }
        // Whole, but its caller does not say that it has ended.
        let ended = second_frame(message(20), false, &room).await;
        assert_eq!(ended.unwrap().code(), tonic::Code::DeadlineExceeded);
        assert!(second_frame(message(20), true, &room).await.is_none());
        assert_eq!(room.held(), 0);
    }

    #[test]
    fn a_call_of_one_message_takes_no_second_one() {
        let room = Room::new(100);
        let ends = |is_stream, chunks: &[&[u8]]| {
            let arrived = Arrived(Arc::new(Mutex::new(room.nothing("somebody".into()))));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _entered = runtime.enter();
            let mut body = Counted::new(Body::empty(), arrived, is_stream);
            chunks.iter().find_map(|chunk| body.count(chunk).err()).map(|status| status.code())
        };
        let (empty, large) = (message(0), message(300));
        assert_eq!(ends(false, &[&empty, &large[..9]]), Some(tonic::Code::InvalidArgument));
        assert_eq!(ends(false, &[&[&empty[..], &large[..9]].concat()]), Some(tonic::Code::InvalidArgument));
        assert_eq!(ends(true, &[&empty, &large]), None);
        assert_eq!(ends(false, &[&large]), None);
    }
}
