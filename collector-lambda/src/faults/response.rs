//! The responses that the proxy makes up.

use crate::faults::call::Call;
use axum::http::{Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use serde_json::{Value, json};

pub(super) type Reply = Response<Full<Bytes>>;

pub(super) fn reply(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let json = header::HeaderValue::from_static("application/x-amz-json-1.1");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

pub(super) fn refusal(status: u16, code: &'static str, more: &Value) -> Reply {
    let mut body = json!({"__type": format!("com.amazonaws#{code}"), "message": "injected"});
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    let mut answer = reply(StatusCode::from_u16(status).unwrap_or_default(), body.to_string());
    answer.headers_mut().insert("x-amzn-errortype", header::HeaderValue::from_static(code));
    answer
}

pub(super) fn internal(call: &Call) -> Reply {
    refusal(500, if call.is_dynamodb { "InternalServerError" } else { "InternalFailure" }, &Value::Null)
}

/// A transaction that is cancelled because of some of its items.
pub(super) fn cancelled(code: &str, items: impl Iterator<Item = bool>) -> Reply {
    let reason =
        |is_cause| if is_cause { json!({"Code": code, "Message": "injected"}) } else { json!({"Code": "None"}) };
    let reasons: Vec<_> = items.map(reason).collect();
    refusal(400, "TransactionCanceledException", &json!({"CancellationReasons": reasons}))
}
