//! Reads a request's body: JSON, plain or gzip, bounded in size and in time.

use crate::http::problem::{
    BODY_TOO_LARGE, INVALID_ENCODING, Problem, REQUEST_TIMEOUT, UNAVAILABLE, UNSUPPORTED_ENCODING,
    UNSUPPORTED_MEDIA_TYPE,
};
use axum::BoxError;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use flate2::bufread::GzDecoder;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::io::{self, Read};
use std::ops::Deref;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::Span;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// The most members of a gzip. Each takes a new decoder, and an empty member is only 20 bytes long.
pub(crate) const GZIP_MEMBERS: usize = 100;

/// How many KiB all bodies may take at once, until they are parsed. Static, because it is a share of the process's memory.
const MEMORY_KIB: usize = 128 * 1024;
static MEMORY: Semaphore = Semaphore::const_new(MEMORY_KIB);

/// A body, and its share of the memory for bodies.
#[derive(Debug, Default)]
pub struct BodyBytes {
    bytes: Vec<u8>,
    memory: Option<SemaphorePermit<'static>>,
}

impl BodyBytes {
    fn of(bytes: Vec<u8>) -> Result<Self, Problem> {
        let mut held = Self::default();
        held.reserve(bytes.len())?;
        Ok(Self { bytes, ..held })
    }

    fn push(&mut self, data: &[u8]) -> Result<(), Problem> {
        self.reserve(self.bytes.len() + data.len())?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), Problem> {
        let held = self.memory.as_ref().map_or(0, SemaphorePermit::num_permits);
        let Some(more) = bytes.div_ceil(1024).checked_sub(held).filter(|more| *more > 0) else { return Ok(()) };
        let full = |_| {
            Problem::new(&UNAVAILABLE, "Too many requests are being received. Send the same request again after 1 s.")
                .with_header(header::RETRY_AFTER, "1")
        };
        let more = MEMORY.try_acquire_many(more as u32).map_err(full)?;
        match &mut self.memory {
            Some(memory) => memory.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl Deref for BodyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The decoded body, if it is declared as JSON and has at most `limit` bytes, both as sent and decoded. If its
/// `Content-Length` is larger, it is refused unread.
pub async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<BodyBytes, Problem> {
    check_type(headers)?;
    let is_gzip = is_gzip(headers)?;
    let too_large =
        || Problem::new(&BODY_TOO_LARGE, format!("The body may have at most {limit} bytes after decoding."));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    // Cut off or stalled: nothing was stored, so the client may send it again.
    let timed_out =
        || Problem::new(&REQUEST_TIMEOUT, format!("The whole body must arrive within {} s.", BODY_TIMEOUT.as_secs()));
    let cut_off = |error: BoxError| if error.is::<LengthLimitError>() { too_large() } else { timed_out() };
    let arrives = collect(Limited::new(body, limit), cut_off);
    let body = tokio::time::timeout(BODY_TIMEOUT, arrives).await.unwrap_or_else(|_| Err(timed_out()))?;
    Span::current().record("bytes", body.len());
    if !is_gzip {
        return Ok(body);
    }
    match gunzip(&body, limit) {
        Ok(decoded) if decoded.len() <= limit => BodyBytes::of(decoded),
        Ok(_) => Err(too_large()),
        Err(error) => Err(Problem::new(&INVALID_ENCODING, format!("The body is not a complete gzip: {error}."))),
    }
}

/// Decodes all members, as RFC 1952 requires. Stops one byte past the limit, whatever size the gzip declares.
fn gunzip(mut body: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut decoded = Vec::new();
    for _ in 0..GZIP_MEMBERS {
        let left = limit + 1 - decoded.len();
        GzDecoder::new(&mut body).take(left as u64).read_to_end(&mut decoded)?;
        if body.is_empty() || decoded.len() > limit {
            return Ok(decoded);
        }
    }
    Err(io::Error::other(format!("it has more than {GZIP_MEMBERS} members")))
}

/// Copies the frames into one buffer. Keeping the frames would keep their buffers, which may be almost empty.
async fn collect(mut body: Limited<Body>, failed: impl Fn(BoxError) -> Problem) -> Result<BodyBytes, Problem> {
    let mut held = BodyBytes::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(&failed)?.into_data() {
            held.push(&data)?;
        }
    }
    Ok(held)
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    // Required, because pages of any origin may post without one, and without a preflight.
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "Send JSON with `Content-Type: application/json`."))
}

/// Whether the body is gzip. Other encodings are refused, and so is more than one.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Problem> {
    let is = |encoding: &[u8], name: &str| encoding.eq_ignore_ascii_case(name.as_bytes());
    let mut transfer = headers.get_all(header::TRANSFER_ENCODING).iter();
    if transfer.any(|encoding| !is(encoding.as_bytes(), "chunked")) {
        let detail = "Send the body with `Transfer-Encoding: chunked`, or without any.";
        return Err(Problem::new(&UNSUPPORTED_ENCODING, detail));
    }
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(false),
        (Some(encoding), None) if is(encoding, "identity") => Ok(false),
        (Some(encoding), None) if is(encoding, "gzip") || is(encoding, "x-gzip") => Ok(true),
        _ => Err(Problem::new(&UNSUPPORTED_ENCODING, "Send the body with `Content-Encoding: gzip`, or without any.")
            .with_header(header::ACCEPT_ENCODING, "gzip")),
    }
}
