//! Reads what is left of a request's body before its response is sent.
//!
//! A request that is refused early (a wrong key, a body too large) is often still being sent. A small rest is read, so that
//! the connection can be used for the next request. After a larger one the connection is closed.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tower_service::Service;

/// What a client that respects the limits may still be sending. No more is read.
const BYTES: usize = 2 * tallymark::limits::BATCH_BYTES;
const TIMEOUT: Duration = Duration::from_secs(5);

/// The router's response, and whether a part of the request's body is unread.
pub(super) async fn respond(mut router: Router, request: Request) -> (Response, bool) {
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    // A client that expects a 100 sends nothing before the response.
    let may_be_small = declared.is_none_or(|length| length <= BYTES) && !request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(Reading { is_whole: http_body::Body::is_end_stream(&body), body })));
    let Ok(mut response) = router.call(Request::from_parts(parts, Body::new(body.clone()))).await;
    if may_be_small {
        let _ = tokio::time::timeout(TIMEOUT, discard(body.clone())).await;
    }
    let is_unread = !body.lock().is_whole;
    if is_unread {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    (response, is_unread)
}

async fn discard(mut body: Shared) {
    let mut read = 0;
    while read <= BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A body that can be read on after another holder has stopped reading.
#[derive(Clone)]
struct Shared(Arc<Mutex<Reading>>);

struct Reading {
    body: Body,
    /// Whether it was read to its end.
    is_whole: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut reading = self.lock();
        let frame = ready!(Pin::new(&mut reading.body).poll_frame(context));
        reading.is_whole = frame.is_none() || reading.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().body.size_hint()
    }
}
