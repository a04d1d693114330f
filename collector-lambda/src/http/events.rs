//! The routes that take events: `POST /v1/batch`, and those that take one event.

use crate::http::app::{App, Shared};
use crate::http::auth::Writer;
use crate::http::body::json_body;
use crate::http::client_ip::ClientIp;
use crate::http::headers::{IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_BYTES, SENT_AT};
use crate::http::problem::{INVALID_IDEMPOTENCY_KEY, Problem};
use crate::ingest::checked_batch::{CheckedBatch, Sdk};
use crate::ingest::refusal::Refusal;
use crate::ingest::{self, Arrival};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, header};
use axum::{Extension, Json};
use serde_json::{Value, json};
use tallymark::{Event, Receipt, limits};

/// What became of the events of a request. It travels in the extensions of the response, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IngestCounts {
    /// Events in the body.
    pub received: u64,
    /// Of these, the ones stored and counted.
    pub accepted: u64,
    /// Of these, the ones refused. A retry would be refused again.
    pub rejected: u64,
    /// Of these, the ones that the client is asked to send again.
    pub deferred: u64,
    /// Whether the batch had been received before. Its events are counted already.
    pub duplicate: bool,
    /// The client library that sent the batch.
    pub sdk: Sdk,
}

impl IngestCounts {
    fn new(received: usize, sdk: Sdk, answer: Result<&Receipt, &Problem>) -> Self {
        let received = received as u64;
        let none = Self { received, accepted: 0, rejected: 0, deferred: 0, duplicate: false, sdk };
        match answer {
            Ok(receipt) => Self {
                accepted: receipt.accepted.into(),
                rejected: receipt.rejected.len() as u64,
                deferred: receipt.retry.len() as u64,
                duplicate: receipt.duplicate,
                ..none
            },
            // As clients understand the status: they retry what failed in the collector, and drop the rest.
            Err(problem) if problem.is_server_error() => Self { deferred: received, ..none },
            Err(_) => Self { rejected: received, ..none },
        }
    }
}

/// An answer, and what became of the events.
type Answer<T> = (Extension<IngestCounts>, Result<Json<T>, Problem>);

async fn commit(app: &App, batch: CheckedBatch) -> Answer<Receipt> {
    let (received, sdk) = (batch.events.len() + batch.rejected.len(), batch.sdk);
    let answer = app.collector.store.commit(batch).await.map_err(Problem::from);
    app.readiness.note(answer.as_ref().err());
    (Extension(IngestCounts::new(received, sdk, answer.as_ref())), answer.map(Json))
}

pub(crate) async fn batch(State(app): Shared, writer: Writer, request: Request) -> Result<Answer<Receipt>, Problem> {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let body = json_body(&headers, body, limits::BATCH_BYTES).await?;
    let batch = ingest::prepare_batch(&writer.site, writer.scope, &body, arrival(&headers, &extensions))?;
    // Other requests may use its share of the memory while this one waits for the disk.
    drop(body);
    Ok(commit(&app, batch).await)
}

pub(crate) async fn page_view(app: Shared, writer: Writer, request: Request) -> Result<Answer<Value>, Problem> {
    single(app, writer, request, |json| ingest::session_event("page_view", json)).await
}

pub(crate) async fn button_click(app: Shared, writer: Writer, request: Request) -> Result<Answer<Value>, Problem> {
    single(app, writer, request, |json| ingest::session_event("button_click", json)).await
}

pub(crate) async fn track(app: Shared, writer: Writer, request: Request) -> Result<Answer<Value>, Problem> {
    single(app, writer, request, |json| ingest::custom_event(&json)).await
}

async fn single(
    State(app): Shared,
    writer: Writer,
    request: Request,
    read: impl FnOnce(Value) -> Result<Event, Refusal>,
) -> Result<Answer<Value>, Problem> {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let idempotency_key = idempotency_key(&headers)?;
    let body = json_body(&headers, body, limits::EVENT_BYTES).await?;
    let arrival = arrival(&headers, &extensions);
    let batch = ingest::parse_event(&body)
        .and_then(read)
        .and_then(|event| ingest::prepare_event(&writer.site, writer.scope, event, &body, idempotency_key, arrival));
    let batch = match batch {
        Ok(batch) => batch,
        Err(refusal) => {
            let problem = Problem::from(refusal);
            return Ok((Extension(IngestCounts::new(1, Sdk::None, Err(&problem))), Err(problem)));
        }
    };
    drop(body);
    let (counts, answer) = commit(&app, batch).await;
    Ok((counts, answer.map(|_| Json(json!({"message": "Received"})))))
}

fn arrival<'a>(headers: &'a HeaderMap, extensions: &Extensions) -> Arrival<'a> {
    Arrival {
        received_at: crate::time::now(),
        sent_at: text(headers, &SENT_AT).and_then(|time| time.parse().ok()),
        useragent: text(headers, &header::USER_AGENT),
        address: ClientIp::of(extensions),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    if !headers.contains_key(IDEMPOTENCY_KEY) {
        return Ok(None);
    }
    match text(headers, &IDEMPOTENCY_KEY) {
        Some(key) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES => Ok(Some(key)),
        _ => Err(Problem::new(
            &INVALID_IDEMPOTENCY_KEY,
            format!("`Idempotency-Key` must be 1 to {IDEMPOTENCY_KEY_BYTES} visible ASCII characters."),
        )),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
