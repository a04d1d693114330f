//! Errors of a request, as RFC 9457 `application/problem+json` with a stable `code`.

use crate::Error;
use crate::ingest::refusal::{Reason, Refusal};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::time::Duration;

/// The longest detail.
const DETAIL_BYTES: usize = 500;

/// Why a request failed.
#[derive(Debug)]
pub struct Problem {
    kind: &'static Kind,
    detail: String,
    header: Option<(HeaderName, HeaderValue)>,
}

/// A kind of problem. Its code is stable, its title is not.
#[derive(Debug, PartialEq)]
pub struct Kind {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// A summary for people.
    pub title: &'static str,
}

macro_rules! kinds {
    ($($name:ident $status:literal $code:literal $title:literal;)*) => {
        $(#[doc = $title] pub const $name: Kind = Kind { status: $status, code: $code, title: $title };)*
        /// Every kind of problem.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    INVALID_JSON 400 "invalid_json" "The body is not JSON";
    INVALID_BATCH 400 "invalid_batch" "The body is not a batch";
    INVALID_ENCODING 400 "invalid_encoding" "The body does not match its Content-Encoding";
    AUTH_REQUIRED 401 "auth_required" "The request carries no credentials";
    AUTH_MALFORMED 401 "auth_malformed" "The Authorization header is malformed";
    AUTH_FAILED 401 "auth_failed" "The username or the key is wrong";
    ORIGIN_NOT_ALLOWED 403 "origin_not_allowed" "The key may not be used from this origin";
    WRITE_KEY_CANNOT_READ 403 "write_key_cannot_read" "The write key cannot read";
    NOT_FOUND 404 "not_found" "There is no such path";
    METHOD_NOT_ALLOWED 405 "method_not_allowed" "This path does not support this method";
    REQUEST_TIMEOUT 408 "request_timeout" "The body did not arrive in time";
    BODY_TOO_LARGE 413 "body_too_large" "The body is too large";
    TOO_MANY_EVENTS 413 "too_many_events" "The batch holds too many events";
    EVENT_TOO_LARGE 413 "event_too_large" "The event is too large";
    UNSUPPORTED_MEDIA_TYPE 415 "unsupported_media_type" "The Content-Type is not JSON";
    UNSUPPORTED_ENCODING 415 "unsupported_encoding" "The body's encoding is not supported";
    INVALID_EVENT 422 "invalid_event" "The body is not an event";
    INVALID_QUERY 422 "invalid_query" "The query is not valid";
    ID_REUSED 422 "id_reused" "The id belongs to a different batch or event";
    INVALID_IDEMPOTENCY_KEY 422 "invalid_idempotency_key" "The Idempotency-Key is not valid";
    RATE_LIMITED 429 "rate_limited" "Too many requests";
    INTERNAL 500 "internal" "Internal error";
    UNAVAILABLE 503 "unavailable" "The event could not be stored now";
    NOT_READY 503 "not_ready" "Events cannot be stored now";
}

impl Problem {
    /// A problem of this kind, with details of this case. A parser's error may quote its input, so long details are cut.
    pub fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > DETAIL_BYTES {
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES));
            detail.push('…');
        }
        Self { kind, detail, header: None }
    }

    /// Its kind.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The details of this case.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the collector is the cause, so that the same request may succeed later.
    pub(crate) fn is_server_error(&self) -> bool {
        self.kind.status >= 500
    }

    /// Too many requests, and how long to wait.
    pub(crate) fn rate_limited(whose: &str, wait: Duration) -> Self {
        let seconds = whole_seconds(wait);
        Self::new(&RATE_LIMITED, format!("Too many requests {whose}. Send the same request again after {seconds} s."))
            .with_header(header::RETRY_AFTER, &seconds)
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        self.header = HeaderValue::from_str(value).ok().map(|value| (name, value));
        self
    }
}

/// For `Retry-After`: rounded up, because a rounded-down wait would be refused again.
fn whole_seconds(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).max(1).to_string()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Kind { status, code, title } = self.kind;
        let body = json!({
            "type": format!("urn:tallymark:problem:{code}"),
            "title": title,
            "status": status,
            "code": code,
            "detail": self.detail,
        });
        let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static(r#"Basic realm="tallymark", charset="UTF-8""#);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        // For the metrics.
        response.extensions_mut().insert(self.kind);
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.reason() {
            Reason::InvalidJson => &INVALID_JSON,
            Reason::InvalidBatch => &INVALID_BATCH,
            Reason::TooManyEvents => &TOO_MANY_EVENTS,
            Reason::InvalidEvent => &INVALID_EVENT,
            Reason::EventTooLarge => &EVENT_TOO_LARGE,
        };
        Self::new(kind, refusal.detail())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        if error.is_id_conflict() {
            return Self::new(
                &ID_REUSED,
                "Use a new `batch_id` for each batch, and a new Idempotency-Key for each event.",
            );
        }
        let cause = crate::error::chain(&error);
        match error.retry_after() {
            Some(after) => {
                tracing::warn!(%cause, "the store is unavailable");
                let seconds = whole_seconds(after);
                Self::new(&UNAVAILABLE, format!("{error}. Send the same request again after {seconds} s."))
                    .with_header(header::RETRY_AFTER, &seconds)
            }
            None => {
                tracing::error!(%cause, "internal error");
                Self::new(&INTERNAL, "The error has been logged.")
            }
        }
    }
}
