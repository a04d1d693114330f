//! A call to AWS, as the proxy sees it.

use axum::http::HeaderMap;
use axum::http::request::Parts;
use bytes::Bytes;
use serde_json::{Value, json};

/// A call to AWS.
pub(super) struct Call {
    pub(super) head: Parts,
    pub(super) body: Bytes,
    pub(super) action: String,
    pub(super) is_dynamodb: bool,
}

/// The service and the action of a call.
pub(super) fn target(headers: &HeaderMap) -> Option<(&str, &str)> {
    headers.get("x-amz-target")?.to_str().ok()?.split_once('.')
}

/// The items that a transaction is at. A new item is known by its keys as they are named in Tallymark's tables.
pub(super) fn items(call: &Call) -> Vec<String> {
    let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
    let item = |action: &Value| {
        let action = action.as_object()?.values().next()?;
        let key = action.get("Key").unwrap_or(&action["Item"]);
        Some(json!([action["TableName"], key["pk"], key["sk"]]).to_string())
    };
    body["TransactItems"].as_array().into_iter().flatten().filter_map(item).collect()
}

pub(super) fn without_token(body: &Bytes) -> Bytes {
    let Ok(Value::Object(mut call)) = serde_json::from_slice(body) else { return body.clone() };
    match call.remove("ClientRequestToken") {
        Some(_) => Value::Object(call).to_string().into(),
        None => body.clone(),
    }
}
