//! What the server has done so far, as Prometheus reads it. It is the operator's and no site's, so it has a
//! listener of its own. Every label has few values, whatever is asked.
//!
//! `received = accepted + rejected + retry` holds at all times: each event counts once, when its answer is made.
//! A batch that comes again is told apart, or it would count again what was accepted before.

use crate::http::Outcome;
use crate::http::problem::{Kind, METHOD_NOT_ALLOWED, NOT_FOUND, Problem};
use crate::store::embedded::Embedded;
use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper ends of the histogram's buckets, in seconds.
const BUCKETS: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

/// The figures of a server.
#[derive(Debug)]
pub struct Metrics {
    queue: Option<Embedded>,
    figures: Mutex<Figures>,
}

#[derive(Debug, Default)]
struct Figures {
    events: Outcome,
    batches: u64,
    duplicate_batches: u64,
    duplicate_events: u64,
    problems: BTreeMap<&'static str, u64>,
    requests: BTreeMap<(String, u16), u64>,
    durations: BTreeMap<String, Durations>,
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: Duration,
}

impl Metrics {
    /// All zero. What waits for the embedded store's writer is told if there is one.
    pub fn new(queue: Option<Embedded>) -> Self {
        Self { queue, figures: Mutex::default() }
    }

    /// The router, with every answer of it counted here.
    pub fn count(self: &Arc<Self>, router: Router) -> Router {
        let metrics = Arc::clone(self);
        router.layer(from_fn(move |request: Request, next: Next| {
            let metrics = Arc::clone(&metrics);
            async move {
                let started = Instant::now();
                let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
                let response = next.run(request).await;
                metrics.note(route, &response, started.elapsed());
                response
            }
        }))
    }

    /// What answers `GET /metrics`, and nothing else.
    pub fn router(self: Arc<Self>) -> Router {
        let text = move || {
            let text = self.text();
            async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
        };
        let missing = || async { Problem::new(&NOT_FOUND, "The figures are at /metrics.") };
        let refused = || async { Problem::new(&METHOD_NOT_ALLOWED, "The Allow header names the methods it takes.") };
        Router::new().route("/metrics", get(text)).fallback(missing).method_not_allowed_fallback(refused)
    }

    fn note(&self, route: String, response: &Response, took: Duration) {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = response.extensions().get::<Outcome>() {
            figures.note(*outcome);
        }
        if let Some(kind) = response.extensions().get::<&'static Kind>() {
            *figures.problems.entry(kind.code).or_default() += 1;
        }
        *figures.requests.entry((route.clone(), response.status().as_u16())).or_default() += 1;
        figures.durations.entry(route).or_default().note(took);
    }

    /// The figures in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Text::default();
        let figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let Outcome { received, accepted, rejected, retry, .. } = figures.events;
        text.counter("events_received", "Events that could be told apart, in batches that are new.", received);
        text.counter("events_accepted", "Of these, the ones stored and counted.", accepted);
        text.counter("events_rejected", "Of these, the ones refused for good.", rejected);
        text.counter("events_retry", "Of these, the ones to be sent again.", retry);
        text.counter(
            "batches",
            "Batches answered, also those that came again; a single event is one.",
            figures.batches,
        );
        text.counter("duplicate_batches", "Of these, the ones that were known.", figures.duplicate_batches);
        text.counter("duplicate_events", "Events in batches that were known.", figures.duplicate_events);
        text.about("problems_total", "counter", "Answers with a problem, by its code.");
        for (code, count) in &figures.problems {
            text.line("problems_total", &format!("{{code=\"{code}\"}}"), count);
        }
        text.about("requests_total", "counter", "Requests, by route and status.");
        for ((route, status), count) in &figures.requests {
            text.line("requests_total", &format!("{{route=\"{route}\",status=\"{status}\"}}"), count);
        }
        text.about("request_seconds", "histogram", "How long answers took, by route.");
        for (route, durations) in &figures.durations {
            let ends = BUCKETS.iter().map(ToString::to_string).chain(["+Inf".into()]);
            for (end, count) in ends.zip(durations.buckets.iter().chain([&durations.count])) {
                text.line("request_seconds_bucket", &format!("{{route=\"{route}\",le=\"{end}\"}}"), count);
            }
            text.line("request_seconds_sum", &format!("{{route=\"{route}\"}}"), durations.sum.as_secs_f64());
            text.line("request_seconds_count", &format!("{{route=\"{route}\"}}"), durations.count);
        }
        drop(figures);
        if let Some(queue) = &self.queue {
            let (batches, bytes) = queue.waiting();
            let about = "Transactions of the embedded store; each takes all batches that wait.";
            text.counter("transactions", about, queue.transactions());
            text.gauge("queue_batches", "Batches that wait for the writer of the embedded store.", batches);
            text.gauge("queue_bytes", "Memory held for batches until they are answered, in whole KiB.", bytes);
        }
        text.0
    }
}

impl Figures {
    fn note(&mut self, outcome: Outcome) {
        self.batches += 1;
        if outcome.duplicate {
            self.duplicate_batches += 1;
            self.duplicate_events += outcome.received;
            return;
        }
        self.events.received += outcome.received;
        self.events.accepted += outcome.accepted;
        self.events.rejected += outcome.rejected;
        self.events.retry += outcome.retry;
    }
}

impl Durations {
    fn note(&mut self, took: Duration) {
        for (count, end) in self.buckets.iter_mut().zip(BUCKETS) {
            *count += u64::from(took.as_secs_f64() <= end);
        }
        self.count += 1;
        self.sum += took;
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP tallymark_{name} {help}\n# TYPE tallymark_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "tallymark_{name}{labels} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let name = format!("{name}_total");
        self.about(&name, "counter", help);
        self.line(&name, "", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.about(name, "gauge", help);
        self.line(name, "", value);
    }
}
