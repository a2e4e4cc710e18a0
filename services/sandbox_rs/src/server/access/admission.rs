//! The layer that asks the guard before a call reaches its service, and before any message of it is read. The service
//! finds the caller's `Role` among the request's extensions. What is logged from here on carries the call's ids.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tower_layer::Layer;
use tracing::Instrument;
use tracing::instrument::Instrumented;

use super::guard::{Guard, Refusal, uri_names};
use super::table::Role;
use crate::server::caller::peer;
use crate::server::logging::span_of;

#[derive(Clone)]
pub struct Admission {
    guard: Arc<Guard>,
}

impl Admission {
    pub fn new(guard: Arc<Guard>) -> Self {
        Admission { guard }
    }

    fn admit(&self, request: &http::Request<Body>) -> Result<Role, Refusal> {
        let method = request.uri().path().trim_start_matches('/');
        let authorization = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let chain = tls.and_then(TlsConnectInfo::peer_certs);
        let admitted = self.guard.admit(method, authorization, &uri_names(chain.as_deref().map(Vec::as_slice)));
        if let Err(Refusal::Unauthenticated(why) | Refusal::PermissionDenied(why)) = &admitted {
            tracing::warn!(rpc = method, peer = ?peer(request), why, "refused a call");
        }
        admitted
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { admission: self.clone(), inner }
    }
}

/// A service behind the guard.
#[derive(Clone)]
pub struct Admitted<S> {
    admission: Admission,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, Instrumented<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let span = span_of(request.headers());
        match span.in_scope(|| self.admission.admit(&request)) {
            Ok(role) => {
                request.extensions_mut().insert(role);
                Either::Right(self.inner.call(request).instrument(span))
            }
            Err(refusal) => Either::Left(ready(Ok(Status::from(refusal).into_http()))),
        }
    }
}
