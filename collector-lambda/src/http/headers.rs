//! The names of the headers that are Tallymark's own, or that several files need.

use axum::http::HeaderName;

/// When a client sent the request, by its own clock, in milliseconds since the Unix epoch. It travels outside the
/// body, because a retry sends the same bytes.
pub const SENT_AT: HeaderName = HeaderName::from_static("tallymark-sent-at");
/// Makes it safe to send a single event again: requests with the same key are one event.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) const IDEMPOTENCY_KEY_BYTES: usize = 255;
/// Ties together what a client, a proxy and the collector log about one request.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
