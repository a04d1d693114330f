//! The OpenAPI document, generated from the limits, the kinds of problems and the routes' constants.

use crate::http::body::GZIP_MEMBERS;
use crate::http::headers::IDEMPOTENCY_KEY_BYTES;
use crate::http::limits::limits_json;
use crate::http::problem::*;
use crate::ingest::checked_batch::{LOST, MARKER_LIFETIME};
use crate::ingest::{LOST_EVENTS, REASON_BYTES};
use crate::store::query::{DAY, SERIES_POINTS, TOP_KEYS};
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use tallymark::limits;

static DOCUMENT: LazyLock<Value> = LazyLock::new(make);
static TEXT: LazyLock<String> = LazyLock::new(|| DOCUMENT.to_string());

/// The document, as OpenAPI 3.1.
pub fn document() -> &'static Value {
    &DOCUMENT
}

pub(crate) async fn answer() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// Problems of every route that requires a key.
const KEY: &[&Kind] = &[&AUTH_REQUIRED, &AUTH_MALFORMED, &AUTH_FAILED];
const WRITE: &[&Kind] = &[
    &ORIGIN_NOT_ALLOWED,
    &INVALID_ENCODING,
    &REQUEST_TIMEOUT,
    &BODY_TOO_LARGE,
    &UNSUPPORTED_MEDIA_TYPE,
    &UNSUPPORTED_ENCODING,
    &ID_REUSED,
    &INTERNAL,
    &UNAVAILABLE,
];
const BATCH: &[&Kind] = &[&INVALID_JSON, &INVALID_BATCH, &TOO_MANY_EVENTS];
const SINGLE: &[&Kind] = &[&INVALID_EVENT, &EVENT_TOO_LARGE, &INVALID_IDEMPOTENCY_KEY];
const READ: &[&Kind] = &[&WRITE_KEY_CANNOT_READ, &INVALID_QUERY, &INTERNAL, &UNAVAILABLE];

fn make() -> Value {
    let limits: Vec<_> = limits_json().as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tallymark collector",
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!("Counts page views, button clicks and custom events, each exactly once. Times are \
                milliseconds since the Unix epoch. The lengths of text are bytes of UTF-8. A null member is the same as an \
                absent one. Unknown members of a body are ignored; unknown query parameters are refused. Bodies are \
                JSON, plain or gzip with at most {GZIP_MEMBERS} members. Any other path is answered 404 `not_found`, any \
                other method 405 `method_not_allowed`. Every GET route also answers HEAD. CORS preflights need no key. \
                Every response of the collector carries an `x-request-id`. A response without one comes from a proxy or \
                gateway in front, which may have limits of its own, or answers a request that is not HTTP/1.1 (400) or \
                has too large a head (431), without a body."),
        },
        "security": [],
        "paths": {
            "/v1/batch": {"post": write(
                "Send a batch",
                &format!(
                    "For {} days, sending the same bytes again under the same `batch_id` counts nothing and returns the \
                     first receipt, with `duplicate` set. Each event is accepted or rejected separately. A body has at \
                     most {} bytes after decoding, and {} events.",
                    MARKER_LIFETIME / DAY, limits::BATCH_BYTES, limits::BATCH_EVENTS
                ),
                "Batch", "Receipt", BATCH, vec![request_header(
                    "tallymark-sent-at",
                    "The time of the request by the client's clock, in milliseconds since the Unix epoch. If that clock is \
                     wrong, the collector corrects the events' times. A value that is not a number is ignored.",
                    json!({"type": "string"}),
                )],
            )},
            "/web/page_view": {"post": single("Send a page view", "PageView")},
            "/button/click": {"post": single("Send a button click", "ButtonClick")},
            "/track": {"post": single("Send any JSON object as a custom event", "Track")},
            "/web/page_view/count": {"get": read("Count the views of a page", "Count", vec![
                query("url", "The page's URL, exactly as it was sent.", true, json!({"type": "string"})),
            ])},
            "/button/click/count": {"get": read("Count the clicks on a button", "Count", vec![
                query("button_id", "The button's id, exactly as it was sent.", true, json!({"type": "string"})),
            ])},
            "/v1/counts": {"get": read("Count events, in total or by hour or day", "Counts", vec![
                event_type(),
                query("key", "Count only events with this `url`, `button_id`, `name` or loss reason.", false, json!({"type": "string"})),
                query("from", "Start time, rounded down to a whole hour or interval.", false, query_time()),
                query("to", "End time, rounded up. Default: now. It must be after `from`.", false, query_time()),
                query(
                    "interval",
                    &format!("Adds a series with one point for each hour or day, at most {SERIES_POINTS}. Default for \
                              `from`: a day before `to` by hour, 30 days by day."),
                    false,
                    json!({"type": "string", "enum": ["hour", "day"]}),
                ),
            ])},
            "/v1/counts/top": {"get": read("List the most frequent keys", "Top", vec![
                event_type(),
                query("limit", "How many keys.", false,
                    json!({"type": "integer", "minimum": 1, "maximum": TOP_KEYS, "default": 10})),
            ])},
            "/v1/limits": {"get": open("Get the limits of batches and events", "Limits", &[])},
            "/health": {"get": open("Check that the process answers", "Status", &[])},
            "/ready": {"get": open(
                "Check that events can be stored. The store is checked at most once a second", "Status", &[&NOT_READY])},
            "/openapi.json": {"get": open("Get this document", "Document", &[])},
            "/docs": {"get": page()},
        },
        "components": {
            "securitySchemes": {"key": {
                "type": "http", "scheme": "basic",
                "description": "The site's username, with one of its keys as the password. The secret key may write and \
                    read. The write key may only write, and only from the site's origins.",
            }},
            "schemas": {
                "Batch": object(&["batch_id", "events"], json!({
                    "batch_id": {"type": "string", "format": "uuid"},
                    "sent_at": {"type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX,
                        "description": "The time of the request. The header `tallymark-sent-at` takes precedence."},
                    "sdk": {"type": ["string", "null"], "description": "The client library and its version."},
                    "lost": {
                        "type": "object", "maxProperties": limits::LOST_REASONS,
                        "propertyNames": {"pattern": format!("^[a-z0-9_]{{1,{REASON_BYTES}}}$")},
                        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": LOST_EVENTS},
                        "description": "How many events the client has lost since its last report, by reason.",
                    },
                    "events": {"type": "array", "maxItems": limits::BATCH_EVENTS, "items": {"anyOf": [
                        {"$ref": "#/components/schemas/Event"},
                        {"description": "Any other value is `rejected` in the receipt. It does not affect the other events."},
                    ]}},
                })),
                "Event": {
                    "description": format!("An event has at most {} bytes.", limits::EVENT_BYTES),
                    "oneOf": [
                        of_type("page_view", "PageView"),
                        of_type("button_click", "ButtonClick"),
                        event(&["event_type", "name"], json!({
                            "event_type": {"const": "custom"},
                            "name": required_text(limits::NAME_BYTES),
                        })),
                    ],
                },
                "PageView": event(&["url"], json!({
                    "url": required_text(limits::URL_BYTES),
                    "referral_url": text(limits::URL_BYTES),
                    "title": text(limits::TITLE_BYTES),
                })),
                "ButtonClick": event(&["button_id"], json!({"button_id": required_text(limits::BUTTON_ID_BYTES)})),
                "Track": {"type": "object", "description": format!(
                    "The whole object becomes the `properties` of a custom event, nested at most {} deep. The event is \
                     counted by its `name`, or as `track`. `name`, `session_id`, `anonymous_id` and `user_id` are \
                     used if they are strings of 1 to {} bytes.", limits::PROPERTIES_DEPTH, limits::NAME_BYTES)},
                "Receipt": object(&["batch_id", "received_at", "duplicate", "accepted", "rejected", "retry"], json!({
                    "batch_id": {"type": "string", "format": "uuid"},
                    "received_at": time(),
                    "duplicate": {"type": "boolean", "description": "Whether the batch was received before."},
                    "accepted": {"type": "integer", "minimum": 0, "maximum": limits::BATCH_EVENTS},
                    "rejected": {"type": "array", "description": "The rejected events. A retry would be rejected again.",
                        "items": object(&["index", "code", "message"], json!({
                            "index": index(),
                            "event_id": {"type": "string", "format": "uuid"},
                            "code": {"type": "string"},
                            "message": {"type": "string"},
                        }))},
                    "retry": {"type": "array", "items": index(),
                        "description": "Indexes of events to send again, with the same event ids, in a new batch."},
                })),
                "Received": object(&["message"], json!({"message": {"const": "Received"}})),
                "Count": object(&["count"], json!({"count": count()})),
                "Counts": object(&["event_type", "total"], json!({
                    "event_type": event_types(), "key": {"type": "string"}, "total": count(),
                    "series": {"type": "array", "maxItems": SERIES_POINTS,
                        "items": object(&["start", "count"], json!({"start": time(), "count": count()}))},
                })),
                "Top": object(&["event_type", "top"], json!({
                    "event_type": event_types(),
                    "top": {"type": "array", "maxItems": TOP_KEYS,
                        "items": object(&["key", "count"], json!({"key": {"type": "string"}, "count": count()}))},
                })),
                "Limits": {
                    "type": "object", "required": limits,
                    "properties": limits_json().as_object().into_iter().flatten()
                        .map(|(name, limit)| (name.clone(), json!({"const": limit})))
                        .collect::<serde_json::Map<_, _>>(),
                },
                "Status": object(&["status"], json!({"status": {"type": "string", "enum": ["ok", "ready"]}})),
                "Document": {"type": "object"},
                "Problem": object(&["type", "title", "status", "code", "detail"], json!({
                    "type": {"type": "string", "format": "uri"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "code": {"type": "string", "enum": KINDS.iter().map(|kind| kind.code).collect::<Vec<_>>(),
                        "description": "Stable. Titles and details may change."},
                    "detail": {"type": "string"},
                })),
            },
        },
    })
}

fn object(required: &[&str], properties: Value) -> Value {
    let mut object = json!({"type": "object", "required": required});
    object["properties"] = properties;
    object
}

fn time() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": i64::MAX})
}

/// A time in a query: for people too.
fn query_time() -> Value {
    json!({"anyOf": [time(), {"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]})
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn index() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": limits::BATCH_EVENTS - 1})
}

fn text(bytes: usize) -> Value {
    json!({"type": ["string", "null"], "maxLength": bytes})
}

fn required_text(bytes: usize) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": bytes})
}

/// The members of every event, and those of one type.
fn event(required: &[&str], properties: Value) -> Value {
    let mut event = object(
        required,
        json!({
            "event_id": {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]},
            "occurred_at": {"type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX},
            "session_id": text(limits::NAME_BYTES),
            "anonymous_id": text(limits::NAME_BYTES),
            "user_id": text(limits::NAME_BYTES),
            "useragent": text(limits::USERAGENT_BYTES),
            "ipaddress": text(limits::IPADDRESS_BYTES),
            "properties": {"type": ["object", "null"],
                "description": format!("Nested at most {} deep.", limits::PROPERTIES_DEPTH)},
            "weight": {"type": ["integer", "null"], "minimum": 1, "maximum": limits::WEIGHT,
                "description": "How many events a sampled event stands for."},
        }),
    );
    if let Value::Object(properties) = properties {
        for (name, schema) in properties {
            event["properties"][name] = schema;
        }
    }
    event
}

fn of_type(event_type: &str, schema: &str) -> Value {
    let this = object(&["event_type"], json!({"event_type": {"const": event_type}}));
    json!({"allOf": [{"$ref": format!("#/components/schemas/{schema}")}, this]})
}

fn event_types() -> Value {
    json!({"type": "string", "enum": ["page_view", "button_click", "custom", LOST]})
}

fn event_type() -> Value {
    query(
        "event_type",
        "The type of events to count. `lost` counts the events that clients report as lost, by reason.",
        true,
        event_types(),
    )
}

fn query(name: &str, description: &str, required: bool, schema: Value) -> Value {
    let mut query = json!({"name": name, "in": "query", "required": required, "description": description});
    query["schema"] = schema;
    query
}

fn request_header(name: &str, description: &str, schema: Value) -> Value {
    let mut header = json!({"name": name, "in": "header", "required": false, "description": description});
    header["schema"] = schema;
    header
}

fn single(summary: &str, body: &str) -> Value {
    let idempotency_key = request_header(
        "idempotency-key",
        "Makes retries safe: requests with the same key are counted once.",
        json!({"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES, "pattern": "^[!-~]([\\t -~]*[!-~])?$"}),
    );
    let description = format!("A body has at most {} bytes after decoding.", limits::EVENT_BYTES);
    let mut operation = write(summary, &description, body, "Received", SINGLE, vec![idempotency_key]);
    if body != "Track" {
        let schema = operation["requestBody"]["content"]["application/json"]["schema"].take();
        let session = object(&["session_id"], json!({"session_id": required_text(limits::NAME_BYTES)}));
        operation["requestBody"]["content"]["application/json"]["schema"] = json!({"allOf": [schema, session]});
    }
    operation
}

fn write(
    summary: &str,
    description: &str,
    body: &str,
    ok: &str,
    problems: &[&'static Kind],
    parameters: Vec<Value>,
) -> Value {
    let mut operation = operation(summary, ok, &[KEY, WRITE, problems].concat());
    operation["description"] = description.into();
    operation["security"] = json!([{"key": []}]);
    operation["parameters"] = parameters.into();
    let body = json!({"schema": {"$ref": format!("#/components/schemas/{body}")}});
    operation["requestBody"] = json!({"required": true, "content": {"application/json": body}});
    operation
}

fn read(summary: &str, ok: &str, parameters: Vec<Value>) -> Value {
    let mut operation = operation(summary, ok, &[KEY, READ].concat());
    operation["security"] = json!([{"key": []}]);
    operation["parameters"] = parameters.into();
    operation
}

fn open(summary: &str, ok: &str, problems: &[&'static Kind]) -> Value {
    operation(summary, ok, problems)
}

fn page() -> Value {
    let mut operation = operation("Read this document as a page", "Document", &[]);
    operation["responses"]["200"]["content"] = json!({"text/html": {"schema": {"type": "string"}}});
    operation
}

fn operation(summary: &str, ok: &str, problems: &[&'static Kind]) -> Value {
    let mut by_status = BTreeMap::<_, Vec<_>>::new();
    for kind in problems.iter().copied().chain([&RATE_LIMITED]) {
        by_status.entry(kind.status).or_default().push(kind);
    }
    let mut responses = json!({"200": {
        "description": "Done.",
        "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{ok}")}}},
    }});
    for (status, kinds) in by_status {
        responses[status.to_string()] = refusal(status, &kinds);
    }
    json!({"summary": summary, "responses": responses})
}

/// The response for problems that share a status.
fn refusal(status: u16, kinds: &[&Kind]) -> Value {
    let described: Vec<_> = kinds.iter().map(|kind| format!("`{}`: {}.", kind.code, kind.title)).collect();
    let codes: Vec<_> = kinds.iter().map(|kind| kind.code).collect();
    let this = json!({"properties": {"code": {"enum": codes}, "status": {"const": status}}});
    let schema = json!({"allOf": [{"$ref": "#/components/schemas/Problem"}, this]});
    let mut refusal = json!({
        "description": described.join(" "),
        "content": {"application/problem+json": {"schema": schema}},
    });
    let seconds =
        json!({"description": "How many seconds to wait before a retry.", "schema": {"type": "integer", "minimum": 1}});
    match status {
        415 => {
            let gzip = json!({"description": "Set with `unsupported_encoding`.", "schema": {"const": "gzip"}});
            refusal["headers"] = json!({"Accept-Encoding": gzip});
        }
        401 => refusal["headers"] = json!({"WWW-Authenticate": {"schema": {"type": "string"}}}),
        429 | 503 => refusal["headers"] = json!({"Retry-After": seconds}),
        _ => {}
    }
    refusal
}
