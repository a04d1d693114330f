//! `GET /v1/limits`: the limits of batches and events, for clients that want to stay below them.

use axum::Json;
use serde_json::{Value, json};
use tallymark::limits;

pub(crate) async fn answer() -> Json<Value> {
    Json(limits_json())
}

pub(crate) fn limits_json() -> Value {
    json!({
        "batch_events": limits::BATCH_EVENTS,
        "batch_bytes": limits::BATCH_BYTES,
        "event_bytes": limits::EVENT_BYTES,
        "url_bytes": limits::URL_BYTES,
        "referral_url_bytes": limits::URL_BYTES,
        "title_bytes": limits::TITLE_BYTES,
        "button_id_bytes": limits::BUTTON_ID_BYTES,
        "name_bytes": limits::NAME_BYTES,
        "session_id_bytes": limits::NAME_BYTES,
        "anonymous_id_bytes": limits::NAME_BYTES,
        "user_id_bytes": limits::NAME_BYTES,
        "useragent_bytes": limits::USERAGENT_BYTES,
        "ipaddress_bytes": limits::IPADDRESS_BYTES,
        "properties_depth": limits::PROPERTIES_DEPTH,
        "weight": limits::WEIGHT,
    })
}
