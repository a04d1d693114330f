//! Reading a request's body: JSON, bounded in size and in time.

use crate::problem::{BODY_TOO_LARGE, Problem, REQUEST_TIMEOUT, UNSUPPORTED_ENCODING, UNSUPPORTED_MEDIA_TYPE};
use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::time::Duration;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The body, if it is declared as JSON and at most `limit` bytes long. What declares itself longer is
/// refused before a byte of it is read.
pub(crate) async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    check_type(headers)?;
    check_encoding(headers)?;
    let too_large = || Problem::new(&BODY_TOO_LARGE, format!("The body may have {limit} bytes."));
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, whole(Limited::new(body, limit))).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        // Cut off or stalled on the way: nothing was stored, and the client may send it again.
        Ok(Err(_)) | Err(_) => Err(Problem::new(
            &REQUEST_TIMEOUT,
            format!("A body must arrive whole within {} s.", BODY_TIMEOUT.as_secs()),
        )),
    }
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

fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Problem::new(&UNSUPPORTED_ENCODING, "Send the body without Content-Encoding."))
        }
        _ => Ok(()),
    }
}
