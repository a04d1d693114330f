//! Reading a request's body: JSON, plain or as gzip, bounded in size and in time.

use crate::problem::{
    BODY_TOO_LARGE, INVALID_ENCODING, Problem, REQUEST_TIMEOUT, UNSUPPORTED_ENCODING, UNSUPPORTED_MEDIA_TYPE,
};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use flate2::bufread::GzDecoder;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::io::{self, Read};
use std::time::Duration;
use tracing::Span;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Members of a gzip. Each costs as much as it takes to set up a decoder, and empty ones are 20 bytes long.
pub(crate) const GZIP_MEMBERS: usize = 100;

/// The body, decoded, if it is declared as JSON and at most `limit` bytes long, on its way as well as decoded.
/// What declares itself longer is refused before a byte of it is read.
pub async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    check_type(headers)?;
    let is_gzip = is_gzip(headers)?;
    let too_large = || Problem::new(&BODY_TOO_LARGE, format!("The body may have {limit} bytes, decoded."));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let body = match tokio::time::timeout(BODY_TIMEOUT, whole(Limited::new(body, limit))).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        // Cut off or stalled on the way: nothing was stored, and the client may send it again.
        Ok(Err(_)) | Err(_) => {
            return Err(Problem::new(
                &REQUEST_TIMEOUT,
                format!("A body must arrive whole within {} s.", BODY_TIMEOUT.as_secs()),
            ));
        }
    };
    Span::current().record("bytes", body.len());
    if !is_gzip {
        return Ok(body);
    }
    match gunzip(&body, limit) {
        Ok(body) if body.len() <= limit => Ok(body),
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
async fn whole(mut body: Limited<Body>) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
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
