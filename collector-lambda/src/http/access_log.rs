//! One log line for each request, with its id. Whatever is logged while a request is served carries the id too.
//! Headers, bodies and URLs are never logged, because they contain keys and visitors' addresses.

use crate::http::headers::REQUEST_ID;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use std::time::Instant;
use tracing::Instrument;
use tracing::field::Empty;

const REQUEST_ID_BYTES: usize = 64;

/// Logs the request. A middleware for axum.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    // At level ERROR, so that error lines carry the id where nothing below that level is logged.
    let span = tracing::error_span!(
        "request",
        request_id = id.to_str().unwrap_or_default(),
        method = method(request.method()),
        route,
        site = Empty,
        bytes = Empty
    );
    let mut response = next.run(request).instrument(span.clone()).await;
    let ms = started.elapsed().as_micros() as f64 / 1000.0;
    span.in_scope(|| tracing::info!(status = response.status().as_u16(), ms, "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The request's own id if it is safe to log, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let is_safe = |id: &&HeaderValue| (1..=REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(is_plain);
    headers.get(REQUEST_ID).filter(is_safe).cloned().unwrap_or_else(|| {
        let id = format!("{:032x}", rand::random::<u128>());
        HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// Clients may invent methods, so unknown ones are not logged.
fn method(method: &Method) -> &str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    if known.contains(method) { method.as_str() } else { "other" }
}
