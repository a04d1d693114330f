//! The OpenAPI document, made from the limits, the kinds of problems and the routes' own constants.

use crate::http::body::GZIP_MEMBERS;
use crate::http::headers::IDEMPOTENCY_KEY_BYTES;
use crate::http::limits::limits_json;
use crate::http::problem::*;
use crate::ingest::checked_batch::LOST;
use crate::ingest::{LOST_EVENTS, REASON_BYTES};
use crate::store::query::{SERIES_POINTS, TOP_KEYS};
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

/// What any key may meet.
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
                milliseconds since the Unix epoch. The lengths of text are bytes of UTF-8. A member that is null is \
                absent, and one that is not known is ignored; a parameter that is not known is refused where \
                parameters are taken. Bodies are JSON, plain or as a gzip of at most {GZIP_MEMBERS} members. A path \
                that is not here is answered 404 `not_found`, a method that is not here 405 `method_not_allowed`. \
                What can be got by GET answers HEAD too, and every path the preflights of browsers, without a key. \
                Every answer carries an `x-request-id`; one that does not is that of a proxy or a gateway in front, such as \
                Lambda's, with limits of its own, or of what is no HTTP/1.1 request: 400, or 431 if its head is too \
                large, without a body."),
        },
        "security": [],
        "paths": {
            "/v1/batch": {"post": write(
                "Send a batch",
                &format!(
                    "The same bytes under the same `batch_id` are counted once, however often they are sent. Each \
                     event gets its own verdict. A body has at most {} bytes, decoded, and {} events.",
                    limits::BATCH_BYTES, limits::BATCH_EVENTS
                ),
                "Batch", "Receipt", BATCH, vec![request_header(
                    "tallymark-sent-at",
                    "When it is sent, by the client's clock. The times of events are corrected by it; what is no \
                     number is not looked at.",
                    json!({"type": "string"}),
                )],
            )},
            "/web/page_view": {"post": single("Send a page view", "PageView")},
            "/button/click": {"post": single("Send a button click", "ButtonClick")},
            "/track": {"post": single("Send any JSON object as a custom event", "Track")},
            "/web/page_view/count": {"get": read("How often a page was viewed", "Count", vec![
                query("url", "The page, exactly as it was sent.", true, json!({"type": "string"})),
            ])},
            "/button/click/count": {"get": read("How often a button was clicked", "Count", vec![
                query("button_id", "The button.", true, json!({"type": "string"})),
            ])},
            "/v1/counts": {"get": read("A total, or a series", "Counts", vec![
                event_type(),
                query("key", "Only what has this url, button_id, name or reason.", false, json!({"type": "string"})),
                query("from", "From this time on, rounded down to a whole hour or interval.", false, time()),
                query("to", "Up to this time, rounded up; now unless given. It must be after `from`.", false, time()),
                query(
                    "interval",
                    &format!("Asks for a series of at most {SERIES_POINTS} steps: by hour of a day, or by day of 30 \
                              days, unless `from` says otherwise."),
                    false,
                    json!({"type": "string", "enum": ["hour", "day"]}),
                ),
            ])},
            "/v1/counts/top": {"get": read("The keys counted most", "Top", vec![
                event_type(),
                query("limit", "How many.", false,
                    json!({"type": "integer", "minimum": 1, "maximum": TOP_KEYS, "default": 10})),
            ])},
            "/v1/limits": {"get": open("The limits of batches and events", "Limits", &[])},
            "/health": {"get": open("Whether the process answers", "Status", &[])},
            "/ready": {"get": open(
                "Whether events can be stored: looks at the sinks, at most once a second", "Status", &[&NOT_READY])},
            "/openapi.json": {"get": open("This document", "Document", &[])},
            "/docs": {"get": page()},
        },
        "components": {
            "securitySchemes": {"key": {
                "type": "http", "scheme": "basic",
                "description": "The site's username, and as the password one of its keys. The secret key writes and \
                    reads. The write key only writes, and only from the site's origins.",
            }},
            "schemas": {
                "Batch": object(&["batch_id", "events"], json!({
                    "batch_id": {"type": "string", "format": "uuid"},
                    "sent_at": {"type": ["integer", "null"], "minimum": 0, "maximum": u64::MAX,
                        "description": "When it was sent; the header `tallymark-sent-at` goes before it."},
                    "sdk": {"type": ["string", "null"], "description": "Names the client."},
                    "lost": {
                        "type": "object", "maxProperties": limits::LOST_REASONS,
                        "propertyNames": {"pattern": format!("^[a-z0-9_]{{1,{REASON_BYTES}}}$")},
                        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": LOST_EVENTS},
                        "description": "Events the client has lost since it last said so, by reason.",
                    },
                    "events": {"type": "array", "maxItems": limits::BATCH_EVENTS, "items": {"anyOf": [
                        {"$ref": "#/components/schemas/Event"},
                        {"description": "Anything else is `rejected` in the receipt, and does its neighbours no harm."},
                    ]}},
                })),
                "Event": {
                    "description": format!("It has at most {} bytes.", limits::EVENT_BYTES),
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
                    "All of it becomes the `properties` of a custom event, nested at most {} deep. It is counted by \
                     its `name`, or else as `track`. `name`, `session_id`, `anonymous_id` and `user_id` are used \
                     where they are text of 1 to {} bytes.", limits::PROPERTIES_DEPTH, limits::NAME_BYTES)},
                "Receipt": object(&["batch_id", "received_at", "duplicate", "accepted", "rejected", "retry"], json!({
                    "batch_id": {"type": "string", "format": "uuid"},
                    "received_at": time(),
                    "duplicate": {"type": "boolean", "description": "Whether the batch had been received before."},
                    "accepted": {"type": "integer", "minimum": 0, "maximum": limits::BATCH_EVENTS},
                    "rejected": {"type": "array", "description": "The events refused for good.",
                        "items": object(&["index", "code", "message"], json!({
                            "index": index(),
                            "event_id": {"type": "string", "format": "uuid"},
                            "code": {"type": "string"},
                            "message": {"type": "string"},
                        }))},
                    "retry": {"type": "array", "items": index(),
                        "description": "The events to send again, with their ids, in a new batch."},
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
                        "description": "Stable; the words are not."},
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

/// What every event may have, and what one kind has on top.
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
                "description": "How many events a sampled one stands for."},
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
    query("event_type", "What to count; `lost` is what clients say they have lost, by reason.", true, event_types())
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
        "Makes it safe to send the same again: it is counted once.",
        json!({"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES, "pattern": "^[!-~]([\\t -~]*[!-~])?$"}),
    );
    let description = format!("A body has at most {} bytes, decoded.", limits::EVENT_BYTES);
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
    let mut operation = operation("This document, for people", "Document", &[]);
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

/// The problems that share a status.
fn refusal(status: u16, kinds: &[&Kind]) -> Value {
    let described: Vec<_> = kinds.iter().map(|kind| format!("`{}`: {}.", kind.code, kind.title)).collect();
    let codes: Vec<_> = kinds.iter().map(|kind| kind.code).collect();
    let this = json!({"properties": {"code": {"enum": codes}, "status": {"const": status}}});
    let schema = json!({"allOf": [{"$ref": "#/components/schemas/Problem"}, this]});
    let mut refusal = json!({
        "description": described.join(" "),
        "content": {"application/problem+json": {"schema": schema}},
    });
    let seconds = json!({"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}});
    match status {
        415 => {
            let gzip = json!({"description": "With `unsupported_encoding`.", "schema": {"const": "gzip"}});
            refusal["headers"] = json!({"Accept-Encoding": gzip});
        }
        401 => refusal["headers"] = json!({"WWW-Authenticate": {"schema": {"type": "string"}}}),
        429 | 503 => refusal["headers"] = json!({"Retry-After": seconds}),
        _ => {}
    }
    refusal
}
