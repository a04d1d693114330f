//! The client against a scripted collector on loopback.
#![cfg(feature = "client")]

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use std::collections::VecDeque;
use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tallymark::{Backoff, Batch, ButtonClick, Client, Custom, Event, Properties, Receipt};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the collector does with the next request. After the last act it accepts everything.
enum Act {
    Status(u16, Option<&'static str>),
    /// Accepts the batch, but answers with this text.
    Say(&'static str),
    /// Accepts all but the first event, which it asks for again.
    RetryFirst,
    /// Accepts the batch and never answers.
    Hang,
    /// Redirects to this URL.
    Redirect(String),
}

#[derive(Default)]
struct Script {
    acts: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<(HeaderMap, String)>>,
}

impl Script {
    fn bodies(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

async fn take(State(script): State<Arc<Script>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let batch: Batch = serde_json::from_str(&body).unwrap();
    script.seen.lock().unwrap().push((headers, body));
    let act = script.acts.lock().unwrap().pop_front();
    let mut receipt = Receipt {
        batch_id: batch.batch_id,
        received_at: 0,
        duplicate: false,
        accepted: batch.events.len() as u32,
        rejected: Vec::new(),
        retry: Vec::new(),
    };
    match act {
        None => {}
        Some(Act::Status(status, retry_after)) => {
            let status = StatusCode::from_u16(status).unwrap();
            return match retry_after {
                Some(wait) => (status, [("retry-after", wait)]).into_response(),
                None => status.into_response(),
            };
        }
        Some(Act::Say(text)) => return text.into_response(),
        Some(Act::RetryFirst) => {
            receipt.accepted -= 1;
            receipt.retry.push(0);
        }
        Some(Act::Hang) => std::future::pending().await,
        Some(Act::Redirect(to)) => return (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
    }
    serde_json::to_string(&receipt).unwrap().into_response()
}

async fn collector(acts: impl IntoIterator<Item = Act>) -> (String, Arc<Script>) {
    let script = Arc::new(Script { acts: Mutex::new(acts.into_iter().collect()), ..Script::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/batch", post(take)).with_state(Arc::clone(&script));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (endpoint, script)
}

fn client(endpoint: &str) -> Client {
    let backoff = Backoff { base: 1, max: 5 };
    Client::builder(endpoint, "shop", "tms_secret")
        .backoff(backoff)
        .timeout(Duration::from_millis(500))
        .build()
        .unwrap()
}

#[tokio::test]
async fn what_is_tracked_arrives_with_its_id_and_the_credentials() {
    let (endpoint, script) = collector([]).await;
    let client = client(&endpoint);
    let id = client.track(ButtonClick::new("buy").session_id("s1")).unwrap();
    let report = client.flush(PATIENCE).await;
    assert!(report.is_complete());
    assert_eq!((report.stats.made, report.stats.delivered, report.stats.queued), (1, 1, 0));

    let (headers, body) = script.seen.lock().unwrap().pop().unwrap();
    assert_eq!(headers["authorization"], "Basic c2hvcDp0bXNfc2VjcmV0");
    assert_eq!(headers["content-type"], "application/json");
    assert!(headers["tallymark-sent-at"].to_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000_000);
    let batch: Batch = serde_json::from_str(&body).unwrap();
    let event = Event::decode(batch.events[0].clone()).unwrap();
    assert_eq!(event.event_id(), Some(id));
    assert_eq!(event.key(), "buy");
}

#[tokio::test]
async fn a_retry_sends_the_same_bytes() {
    let acts = [
        Act::Status(503, Some("0")),
        Act::Status(429, Some("Fri, 20 Nov 2020 00:00:00 GMT")),
        Act::Say("Welcome to the hotel's network"),
        Act::Say(
            r#"{"batch_id":"019aa323-6c18-7fff-bfff-ffffffffffff","received_at":0,"duplicate":false,"accepted":3,"rejected":[],"retry":[]}"#,
        ),
        Act::Hang,
        Act::Status(302, None),
        Act::Status(404, None),
    ];
    let attempts = acts.len() + 1;
    let (endpoint, script) = collector(acts).await;
    let client = client(&endpoint);
    for name in ["a", "b", "c"] {
        client.track(Event::custom(name)).unwrap();
    }
    let report = client.shutdown(PATIENCE).await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.stats.delivered, 3);
    let bodies = script.bodies();
    assert_eq!(bodies.len(), attempts);
    assert!(bodies.iter().all(|body| body == &bodies[0]));
}

#[tokio::test]
async fn events_that_are_asked_for_again_go_in_a_new_batch_under_their_ids() {
    let (endpoint, script) = collector([Act::RetryFirst]).await;
    let client = client(&endpoint);
    let first = client.track(Event::custom("a")).unwrap();
    client.track(Event::custom("b")).unwrap();
    let report = client.flush(PATIENCE).await;
    assert!(report.is_complete());
    assert_eq!(report.stats.delivered, 2);
    let bodies = script.bodies();
    let batches: Vec<Batch> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    assert_eq!(batches.len(), 2);
    assert_ne!(batches[0].batch_id, batches[1].batch_id);
    assert_eq!(batches[1].events, [batches[0].events[0].clone()]);
    assert_eq!(batches[1].events[0]["event_id"], first.to_string());
}

#[tokio::test]
async fn a_full_batch_is_sent_without_a_flush() {
    let (endpoint, script) = collector([]).await;
    let backoff = Backoff { base: 1, max: 5 };
    let client = Client::builder(&endpoint, "shop", "key").batch_events(10).backoff(backoff).build().unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || (0..25).for_each(|_| _ = client.track(Event::custom("n")).unwrap()))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    tokio::time::timeout(PATIENCE, async {
        while client.stats().delivered < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(script.bodies().iter().all(|body| serde_json::from_str::<Batch>(body).unwrap().events.len() == 10));
}

#[tokio::test]
async fn a_shutdown_that_cannot_deliver_says_so() {
    let (endpoint, _) = collector([Act::Status(401, None)]).await;
    let client = client(&endpoint);
    client.track(Event::custom("n")).unwrap();
    let report = client.shutdown(Duration::from_millis(200)).await;
    assert!(!report.is_complete());
    assert_eq!(report.stats.queued, 1);
    assert!(report.stats.paused.is_some());
    assert!(client.track(Event::custom("n")).unwrap_err().is_closed());
}

#[tokio::test]
async fn dropping_the_last_handle_still_delivers() {
    let (endpoint, script) = collector([Act::Status(503, None)]).await;
    let client = client(&endpoint);
    client.track(Event::custom("n")).unwrap();
    drop(client);
    tokio::time::timeout(PATIENCE, async {
        while script.bodies().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_invalid_event_is_refused_at_once() {
    let (endpoint, script) = collector([]).await;
    let client = client(&endpoint);
    let error = client.track(Event::custom("n".repeat(129))).unwrap_err();
    assert!(error.is_invalid());
    assert_eq!(error.source().unwrap().to_string(), "`name` is longer than 128 bytes");
    assert!(client.shutdown(PATIENCE).await.is_complete());
    assert!(script.bodies().is_empty());
}

#[tokio::test]
async fn the_answer_after_a_redirect_is_ignored() {
    let (elsewhere, reached) = collector([]).await;
    let (endpoint, script) = collector([Act::Redirect(format!("{elsewhere}/v1/batch"))]).await;
    let client = Client::builder(&endpoint, "shop", "key")
        .backoff(Backoff { base: 1, max: 5 })
        // This one follows redirects.
        .http_client(reqwest::Client::new())
        .build()
        .unwrap();
    client.track(Event::custom("n")).unwrap();
    assert!(client.flush(PATIENCE).await.is_complete());
    let (here, there) = (script.bodies(), reached.bodies());
    assert_eq!((here.len(), &here[1..]), (2, &there[..]), "the batch is sent again to the endpoint");
}

#[tokio::test]
async fn one_events_properties_do_not_cost_its_neighbours() {
    for text in ["{a}", r#"{"a":1e999}"#, r#"{"a":"\ud83d"}"#, "{}}", "{ ,}"] {
        let refused = Properties::from_stringified(text.into()).unwrap_err();
        assert_eq!(refused.code(), "invalid_properties", "{text}");
    }
    let (endpoint, script) = collector([]).await;
    let client = client(&endpoint);
    for text in ["{}", "{ }", r#"{"a":[]}"#, r#"{ "a":{} }"#] {
        let properties = Properties::from_stringified(text.into()).unwrap();
        client.track(Custom::new("n").properties(properties).property("b", 1)).unwrap();
    }
    assert!(client.flush(PATIENCE).await.is_complete());
    let batch: Batch = serde_json::from_str(&script.bodies()[0]).unwrap();
    assert_eq!(batch.events.len(), 4);
    assert!(batch.events.iter().all(|event| event["properties"]["b"] == 1));
}

#[test]
fn an_endpoint_that_would_swallow_the_path_is_refused() {
    for endpoint in ["http://127.0.0.1:9?region=eu", "http://127.0.0.1:9/?", "http://127.0.0.1:9/api#x"] {
        assert!(Client::builder(endpoint, "shop", "key").build().unwrap_err().is_config(), "{endpoint}");
    }
    Client::builder("http://127.0.0.1:9/api/", "shop", "key").build().unwrap();
}

/// A service's test may stop tokio's clock. The client uses its own.
#[test]
fn a_shutdown_keeps_to_its_time_where_tokios_clock_stands_still() {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let client = client("http://127.0.0.1:9");
            client.track(Event::custom("n")).unwrap();
            tokio::time::advance(Duration::from_secs(24 * 60 * 60)).await;
            ended.send(client.shutdown(Duration::from_millis(20)).await).unwrap();
        });
    });
    assert!(!end.recv_timeout(PATIENCE).unwrap().is_complete());
}

#[tokio::test]
async fn nothing_shows_the_key() {
    let builder = Client::builder("http://127.0.0.1:9", "shop", "tms_secret");
    assert!(!format!("{builder:?}").contains("tms_secret"));
    assert!(!format!("{:?}", builder.build().unwrap()).contains("tms_secret"));
    for endpoint in ["https://user:tms_secret@shop.example", "ftp://shop.example", "no url"] {
        let error = Client::builder(endpoint, "shop", "tms_secret").build().unwrap_err();
        assert!(error.is_config());
        assert!(!format!("{error} {error:?}").contains("tms_secret"));
    }
}

#[test]
fn the_client_is_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Client>();
    check::<tallymark::Error>();
    check::<tallymark::Report>();
}
