//! Reading a request's body: JSON, plain or as gzip, bounded in size and in time.

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
/// Members of a gzip. Each costs as much as it takes to set up a decoder, and empty ones are 20 bytes long.
pub(crate) const GZIP_MEMBERS: usize = 100;

/// How many KiB of bodies there may be at once, from their first byte until they have been read. It is the memory of
/// the process that is divided here, so it is one for all that runs in it.
const ROOM_KIB: usize = 128 * 1024;
static ROOM: Semaphore = Semaphore::const_new(ROOM_KIB);

/// A body, and the room it takes.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    room: Option<SemaphorePermit<'static>>,
}

impl Held {
    fn of(bytes: Vec<u8>) -> Result<Self, Problem> {
        let mut held = Self::default();
        held.make_room(bytes.len())?;
        Ok(Self { bytes, ..held })
    }

    fn push(&mut self, data: &[u8]) -> Result<(), Problem> {
        self.make_room(self.bytes.len() + data.len())?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), Problem> {
        let held = self.room.as_ref().map_or(0, SemaphorePermit::num_permits);
        let Some(more) = bytes.div_ceil(1024).checked_sub(held).filter(|more| *more > 0) else { return Ok(()) };
        let full = |_| {
            Problem::new(&UNAVAILABLE, "Too many bodies are on their way. Send the same again after 1 s.")
                .with_header(header::RETRY_AFTER, "1")
        };
        let more = ROOM.try_acquire_many(more as u32).map_err(full)?;
        match &mut self.room {
            Some(room) => room.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body, decoded, if it is declared as JSON and at most `limit` bytes long, on its way as well as decoded.
/// What declares itself longer is refused before a byte of it is read.
pub async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Held, Problem> {
    check_type(headers)?;
    let is_gzip = is_gzip(headers)?;
    let too_large = || Problem::new(&BODY_TOO_LARGE, format!("The body may have {limit} bytes, decoded."));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    // Cut off or stalled on the way: nothing was stored, and the client may send it again.
    let timed_out =
        || Problem::new(&REQUEST_TIMEOUT, format!("A body must arrive whole within {} s.", BODY_TIMEOUT.as_secs()));
    let cut_off = |error: BoxError| if error.is::<LengthLimitError>() { too_large() } else { timed_out() };
    let arrives = whole(Limited::new(body, limit), cut_off);
    let body = tokio::time::timeout(BODY_TIMEOUT, arrives).await.unwrap_or_else(|_| Err(timed_out()))?;
    Span::current().record("bytes", body.len());
    if !is_gzip {
        return Ok(body);
    }
    match gunzip(&body, limit) {
        Ok(decoded) if decoded.len() <= limit => Held::of(decoded),
        Ok(_) => Err(too_large()),
        Err(error) => Err(Problem::new(&INVALID_ENCODING, format!("The body is no whole gzip: {error}."))),
    }
}

/// Decodes all members, as RFC 1952 has it. Stops a byte past the limit, whatever would still come and
/// whatever the gzip says of its size.
fn gunzip(mut body: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let mut decoded = Vec::new();
    for _ in 0..GZIP_MEMBERS {
        let room = limit + 1 - decoded.len();
        GzDecoder::new(&mut body).take(room as u64).read_to_end(&mut decoded)?;
        if body.is_empty() || decoded.len() > limit {
            return Ok(decoded);
        }
    }
    Err(io::Error::other(format!("it has more than {GZIP_MEMBERS} members")))
}

/// Copies the frames together. Keeping them would keep the buffers they came in, however little is in each.
async fn whole(mut body: Limited<Body>, failed: impl Fn(BoxError) -> Problem) -> Result<Held, Problem> {
    let mut held = Held::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(&failed)?.into_data() {
            held.push(&data)?;
        }
    }
    Ok(held)
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(&UNSUPPORTED_MEDIA_TYPE, "Send JSON with `Content-Type: application/json`."))
}

/// Whether the body is gzip. Anything but that and the body as it is, is refused, also both one after the other.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Problem> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let is = |encoding: &[u8], name: &str| encoding.eq_ignore_ascii_case(name.as_bytes());
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(false),
        (Some(encoding), None) if is(encoding, "identity") => Ok(false),
        (Some(encoding), None) if is(encoding, "gzip") || is(encoding, "x-gzip") => Ok(true),
        _ => Err(Problem::new(&UNSUPPORTED_ENCODING, "Send the body with `Content-Encoding: gzip`, or without any.")
            .with_header(header::ACCEPT_ENCODING, "gzip")),
    }
}
