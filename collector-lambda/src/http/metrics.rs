//! What the server has done since it started, for Prometheus. The metrics are for the operator and not for any site,
//! so they have a listener of their own. Every label has a bounded set of values, whatever clients send.
//!
//! `received = accepted + rejected + deferred` holds in every scrape: an event is counted when its request is answered.
//! Batches that were received before are counted apart, because their events are counted already.

use crate::http::events::IngestCounts;
use crate::http::problem::{Kind, METHOD_NOT_ALLOWED, NOT_FOUND, Problem};
use crate::store::embedded::Embedded;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds of the histogram's buckets, in seconds.
const BUCKETS: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

/// A label, and its value.
type Label<T> = [(&'static str, T); 1];
type Histograms = Family<Label<String>, Histogram, fn() -> Histogram>;

/// The metrics of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Locked for each update and each scrape, so that a scrape sees whole updates.
    instruments: Mutex<Instruments>,
}

#[derive(Debug, Default)]
struct Instruments {
    received: Counter,
    accepted: Counter,
    rejected: Counter,
    deferred: Counter,
    batches: Family<Label<&'static str>, Counter>,
    duplicate_batches: Counter,
    duplicate_events: Counter,
    problems: Family<Label<&'static str>, Counter>,
    requests: Family<[(&'static str, String); 2], Counter>,
    durations: Durations,
}

/// Request durations by route.
#[derive(Debug)]
struct Durations(Histograms);

impl Default for Durations {
    fn default() -> Self {
        Self(Histograms::new_with_constructor(|| Histogram::new(BUCKETS)))
    }
}

impl Metrics {
    /// Metrics that are all zero. If the embedded store is used, its queue is shown too.
    pub fn new(store: Option<Embedded>) -> Self {
        let instruments = Instruments::default();
        let mut registry = Registry::with_prefix("tallymark");
        instruments.register(&mut registry);
        if let Some(store) = store {
            registry.register_collector(Box::new(Queue(store)));
        }
        Self { registry, instruments: Mutex::new(instruments) }
    }

    /// The router of the metrics' own listener: `GET /metrics` and nothing else.
    pub fn router(self: Arc<Self>) -> Router {
        let text = move || {
            let text = self.text();
            async move { ([(header::CONTENT_TYPE, CONTENT_TYPE)], text) }
        };
        let missing = || async { Problem::new(&NOT_FOUND, "The metrics are at /metrics.") };
        let refused = || async { Problem::new(&METHOD_NOT_ALLOWED, "Use one of the methods in the Allow header.") };
        Router::new().route("/metrics", get(text)).fallback(missing).method_not_allowed_fallback(refused)
    }

    /// The metrics in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _whole = self.instruments.lock().unwrap_or_else(PoisonError::into_inner);
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // A String can always be written to.
            Err(fmt::Error) => String::new(),
        }
    }

    fn note(&self, route: &str, response: &Response, took: Duration) {
        let instruments = self.instruments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = response.extensions().get::<IngestCounts>() {
            instruments.note(counts);
        }
        if let Some(kind) = response.extensions().get::<&'static Kind>() {
            instruments.problems.get_or_create(&[("code", kind.code)]).inc();
        }
        let status = response.status().as_u16().to_string();
        instruments.requests.get_or_create(&[("route", route.into()), ("status", status)]).inc();
        instruments.durations.0.get_or_create(&[("route", route.into())]).observe(took.as_secs_f64());
    }
}

/// Counts each response. A middleware for axum.
pub(crate) async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    metrics.note(path.as_ref().map_or("none", MatchedPath::as_str), &response, started.elapsed());
    response
}

impl Instruments {
    fn register(&self, registry: &mut Registry) {
        registry.register("events_received", "Events in batches that were not received before.", self.received.clone());
        registry.register("events_accepted", "Events stored and counted.", self.accepted.clone());
        registry.register("events_rejected", "Events refused. A retry would be refused again.", self.rejected.clone());
        registry.register("events_deferred", "Events that the client is asked to send again.", self.deferred.clone());
        let help = "Batches answered, duplicates included, by client library. A single event is a batch.";
        registry.register("batches", help, self.batches.clone());
        let help = "Batches that had been received before.";
        registry.register("duplicate_batches", help, self.duplicate_batches.clone());
        let help = "Events in batches that had been received before.";
        registry.register("duplicate_events", help, self.duplicate_events.clone());
        registry.register("problems", "Responses with a problem, by its code.", self.problems.clone());
        registry.register("http_requests", "HTTP requests, by route and status.", self.requests.clone());
        let help = "Time from the head of a request to the head of its response, by route.";
        registry.register("http_request_duration_seconds", help, self.durations.0.clone());
    }

    fn note(&self, counts: &IngestCounts) {
        self.batches.get_or_create(&[("sdk", counts.sdk.as_str())]).inc();
        if counts.duplicate {
            self.duplicate_batches.inc();
            self.duplicate_events.inc_by(counts.received);
            return;
        }
        self.received.inc_by(counts.received);
        self.accepted.inc_by(counts.accepted);
        self.rejected.inc_by(counts.rejected);
        self.deferred.inc_by(counts.deferred);
    }
}

/// The queue of the embedded store's writer, read at each scrape.
#[derive(Debug)]
struct Queue(Embedded);

impl Collector for Queue {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (batches, bytes) = self.0.waiting();
        let help = "Transactions of the embedded store. Each commits all batches that wait.";
        show(&mut encoder, "store_transactions", help, &ConstCounter::new(self.0.transactions()))?;
        let help = "Batches that wait for the embedded store's writer.";
        show(&mut encoder, "queue_batches", help, &ConstGauge::new(batches as u64))?;
        let help = "Memory held for batches until they are answered, in whole KiB.";
        show(&mut encoder, "queue_bytes", help, &ConstGauge::new(bytes as u64))?;
        let help = "Size of the log (WAL) of the embedded store's database.";
        show(&mut encoder, "store_log_bytes", help, &ConstGauge::new(self.0.log_bytes()))
    }
}

fn show(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
