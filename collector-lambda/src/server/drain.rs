//! Reads what is left of a request's body before its answer goes out.
//!
//! A request that is refused early (a wrong key, a body too large) is often still being sent. A connection
//! that is closed in the middle of that loses the answer on its way, and its sender, who cannot know that it
//! was refused, would send it again and again.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What a client that keeps to the limits may still be sending. Nobody is read further than that.
const BYTES: usize = 2 * tallymark::limits::BATCH_BYTES;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A middleware for axum.
pub(crate) async fn drain(request: Request, next: Next) -> Response {
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    // Who asks first sends nothing before the answer.
    let is_worth_it = declared.is_none_or(|length| length <= BYTES) && !request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    if is_worth_it {
        let _ = tokio::time::timeout(TIMEOUT, discard(body)).await;
    }
    response
}

async fn discard(mut body: Shared) {
    let mut read = 0;
    while read <= BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A body that goes on where another holder of it has stopped reading.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
