//! The router in this process: slow senders under a virtual clock, and bodies of every kind.
#![cfg(feature = "server")]

mod support;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::{Folder, uuid};
use tallymark_collector::http::metrics::Metrics;
use tallymark_collector::http::state::Collector;
use tallymark_collector::http::{self, Options};
use tallymark_collector::server::KEEP_ALIVE;
use tallymark_collector::sites::{self, Sites};
use tallymark_collector::store::Store;
use tallymark_collector::store::embedded::Embedded;
use tower::ServiceExt;

struct World {
    router: Router,
    metrics: Arc<Metrics>,
    authorization: String,
    folder: Folder,
}

fn world() -> World {
    use base64::Engine;
    let folder = Folder::new();
    let file = folder.0.join("sites.json");
    let keys = sites::file::add(&file, "shop", &[], false, |_| Ok(())).unwrap();
    let credentials = format!("shop:{}", keys.secret_key);
    let embedded = Embedded::open(&folder.0.join("data"), Duration::from_secs(3600)).unwrap();
    let metrics = Arc::new(Metrics::new(Some(embedded.clone())));
    let store = Store::embedded(embedded);
    let collector = Arc::new(Collector { sites: Sites::from_file(&file).unwrap(), store });
    let router = http::router(collector, Options { metrics: Some(Arc::clone(&metrics)), ..Options::BARE });
    let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
    World { router, metrics, authorization, folder }
}

impl World {
    fn request(&self, path: &str, body: Body) -> Request<Body> {
        Request::post(path)
            .header("authorization", &self.authorization)
            .header("content-type", "application/json")
            .body(body)
            .unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).header("authorization", &self.authorization).body(Body::empty()).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn figure(&self, name: &str) -> u64 {
        let text = self.metrics.text();
        let value =
            text.lines().find_map(|line| line.strip_prefix("tallymark_")?.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Checks the law, and answers its terms: received, accepted, rejected, deferred.
    fn conserved(&self) -> [u64; 4] {
        let terms = ["received", "accepted", "rejected", "deferred"];
        let terms = terms.map(|name| self.figure(&format!("events_{name}_total")));
        assert_eq!(terms[0], terms[1] + terms[2] + terms[3], "{terms:?}");
        terms
    }

    async fn post(&self, path: &str, body: Body) -> (StatusCode, Value) {
        let answer = self.router.clone().oneshot(self.request(path, body)).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

/// A body that never comes.
struct Stalled;

impl http_body::Body for Stalled {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

/// A body of which a byte comes every second.
struct Trickling(tokio::time::Interval);

impl http_body::Body for Trickling {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        self.0.poll_tick(context).map(|_| Some(Ok(http_body::Frame::data(bytes::Bytes::from_static(b" ")))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_byte_by_byte_is_not_waited_for() {
    let world = world();
    for path in ["/v1/batch", "/track"] {
        let started = tokio::time::Instant::now();
        let trickle = Trickling(tokio::time::interval(Duration::from_secs(1)));
        let (status, problem) = world.post(path, Body::new(trickle)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (408, &json!("request_timeout")));
        assert_eq!(started.elapsed().as_secs(), 60, "in all, however lively it is");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = world();
    let (status, problem) = world.post("/v1/batch", Body::new(Stalled)).await;
    assert_eq!(status, 408);
    assert_eq!(problem["code"], "request_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_sends_no_request_is_closed() {
    use tokio::io::AsyncReadExt;
    let world = world();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(tallymark_collector::server::serve(listener, world.router.clone(), KEEP_ALIVE, async {
        let _ = stopped.await;
    }));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
}

/// A disk that stalls while more comes than may wait: some are refused with a time to retry, and in the
/// end each is counted once.
#[tokio::test]
async fn a_store_that_cannot_keep_up_says_so_and_loses_nothing() {
    let world = world();
    let mut stall = Some(stall(&world));
    let mut left: Vec<_> = (0..1500).map(|_| support::batch(1).to_string()).collect();
    let mut refused = 0;
    for _ in 0..100 {
        let mut requests = tokio::task::JoinSet::new();
        for body in std::mem::take(&mut left) {
            let request = world.router.clone().oneshot(world.request("/v1/batch", Body::from(body.clone())));
            requests.spawn(async move { (body, request.await.unwrap()) });
        }
        while let Some(Ok((body, answer))) = requests.join_next().await {
            if answer.status() == 503 {
                let seconds = answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap();
                assert!((1..=60).contains(&seconds), "{seconds}");
                refused += 1;
                left.push(body);
                if stall.is_some() {
                    let (status, problem) = world.get("/ready").await;
                    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("not_ready")));
                    drop(stall.take());
                }
            } else {
                assert_eq!(answer.status(), 200);
            }
        }
        if left.is_empty() {
            break;
        }
    }
    assert!(refused > 0 && left.is_empty(), "{refused} were refused, {} still are", left.len());
    let request = Request::get("/v1/counts?event_type=custom").header("authorization", &world.authorization);
    let answer = world.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let counts: Value = serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(counts["total"], 1500);
    assert_eq!(world.get("/ready").await.0, 200, "storing has gone well since");
    assert_eq!(world.conserved(), [1500 + refused, 1500, 0, refused]);
    assert_eq!(world.figure("duplicate_events_total"), 0, "what was refused had not been stored");
    assert_eq!((world.figure("queue_batches"), world.figure("queue_bytes")), (0, 0));
}

/// Another who writes to the database, for as long as this is kept.
fn stall(world: &World) -> rusqlite::Connection {
    let stall = rusqlite::Connection::open(world.folder.0.join("data/tallymark.db")).unwrap();
    stall.execute_batch("BEGIN IMMEDIATE").unwrap();
    stall
}

impl World {
    fn send(&self, body: &Value) -> tokio::task::JoinHandle<StatusCode> {
        let request = self.request("/v1/batch", Body::from(body.to_string()));
        let answer = self.router.clone().oneshot(request);
        tokio::spawn(async { answer.await.unwrap().status() })
    }

    /// Waits until the writer has this many batches before it, and one that it cannot finish.
    async fn stuck(&self, waiting: u64) {
        for _ in 0..6_000 {
            if self.figure("queue_bytes") > 0 && self.figure("queue_batches") == waiting {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{} batches wait, and not {waiting}", self.figure("queue_batches"));
    }
}

#[tokio::test]
async fn what_is_answered_503_is_not_stored_later() {
    let world = world();
    let [begun, refused, abandoned] = [1, 2, 3].map(support::batch);
    let stall = stall(&world);
    let begun = world.send(&begun);
    world.stuck(0).await;
    let gone = world.send(&abandoned);
    world.stuck(1).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    // The one that the writer has begun waits for as long as it takes; this one only for so long.
    tokio::time::pause();
    assert_eq!(world.post("/v1/batch", Body::from(refused.to_string())).await.0, 503);
    tokio::time::resume();
    drop(stall);
    assert_eq!(begun.await.unwrap(), 200);
    // Behind the others, so they are through.
    assert_eq!(world.post("/track", Body::from("{}")).await.0, 200);
    assert_eq!(world.get("/v1/counts?event_type=custom").await.1["total"], 2);
    let (status, receipt) = world.post("/v1/batch", Body::from(refused.to_string())).await;
    assert_eq!((status.as_u16(), &receipt["duplicate"]), (200, &json!(false)));
    assert_eq!(world.conserved(), [6, 4, 0, 2]);
}

#[tokio::test]
async fn one_batch_that_cannot_be_written_does_not_harm_its_neighbours() {
    let world = world();
    let database = rusqlite::Connection::open(world.folder.0.join("data/tallymark.db")).unwrap();
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON held WHEN new.lines LIKE '%poison%'
        BEGIN SELECT RAISE(ABORT, 'it cannot be written'); END";
    database.execute_batch(poison).unwrap();
    let stall = stall(&world);
    let first = world.send(&support::batch(1));
    world.stuck(0).await;
    // All these come into one transaction.
    let poisoned = json!({"batch_id": uuid(), "events": [{"event_type": "custom", "name": "poison"}]});
    let sent = (0..20).map(|n| if n == 7 { poisoned.clone() } else { support::batch(1) });
    let sent: Vec<_> = sent.map(|batch| world.send(&batch)).collect();
    world.stuck(20).await;
    drop(stall);
    assert_eq!(first.await.unwrap(), 200);
    for (n, sent) in sent.into_iter().enumerate() {
        assert_eq!(sent.await.unwrap(), if n == 7 { 503 } else { 200 }, "batch {n}");
    }
    assert_eq!(world.get("/v1/counts?event_type=custom").await.1["total"], 20);
    database.execute_batch("DROP TRIGGER poison").unwrap();
    let (_, receipt) = world.post("/v1/batch", Body::from(poisoned.to_string())).await;
    assert_eq!((&receipt["accepted"], &receipt["duplicate"]), (&json!(1), &json!(false)));
    assert_eq!(world.get("/v1/counts?event_type=custom").await.1["total"], 21);
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_not_ready_though_nothing_was_sent() {
    let world = world();
    let stall = stall(&world);
    let (status, problem) = world.get("/ready").await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("not_ready")));
    assert_eq!(world.get("/health").await.0, 200);
    drop(stall);
    for _ in 0..600 {
        if world.get("/ready").await.0 == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it is never ready again");
}

#[tokio::test]
async fn every_event_is_in_the_figures_once() {
    let world = world();
    let mixed = json!({"batch_id": uuid(), "events": [
        {"event_type": "custom", "name": "good"}, {"event_type": "custom"}, {"event_type": "nothing"}, 7,
        {"event_type": "button_click", "button_id": "b"},
    ]});
    // Sent, accepted, rejected.
    for (sent, terms) in [(mixed.clone(), [5, 2, 3, 0]), (support::batch(10), [15, 12, 3, 0])] {
        assert_eq!(world.post("/v1/batch", Body::from(sent.to_string())).await.0, 200);
        assert_eq!(world.conserved(), terms);
        // The same again is the same events.
        assert_eq!(world.post("/v1/batch", Body::from(sent.to_string())).await.1["duplicate"], true);
        assert_eq!(world.conserved(), terms);
    }
    assert_eq!((world.figure("duplicate_batches_total"), world.figure("duplicate_events_total")), (2, 15));
    let other = json!({"batch_id": mixed["batch_id"], "events": [{"event_type": "custom", "name": "other"}]});
    assert_eq!(world.post("/v1/batch", Body::from(other.to_string())).await.1["code"], "id_reused");
    assert_eq!(world.conserved(), [16, 12, 4, 0]);
    assert_eq!(world.post("/track", Body::from(r#"{"name":"charge"}"#)).await.0, 200);
    assert_eq!(world.post("/web/page_view", Body::from(r#"{"url":"u"}"#)).await.0, 422);
    assert_eq!(world.conserved(), [18, 13, 5, 0]);
    // No events can be told apart in these.
    for body in ["", "{", "{}", &support::batch(501).to_string()] {
        assert!(world.post("/v1/batch", Body::from(body.to_owned())).await.0.is_client_error());
    }
    let stranger = Request::post("/v1/batch").body(Body::from(support::batch(3).to_string())).unwrap();
    assert_eq!(world.router.clone().oneshot(stranger).await.unwrap().status(), 401);
    for n in 0..20 {
        assert_eq!(world.get(&format!("/nowhere/{n}")).await.0, 404);
    }
    assert_eq!(world.conserved(), [18, 13, 5, 0]);
    assert_eq!(world.get("/v1/counts?event_type=custom").await.1["total"], 12);
    assert_eq!(world.get("/v1/counts?event_type=button_click").await.1["total"], 1);

    let text = world.metrics.text();
    for line in [
        r#"problems_total{code="auth_required"} 1"#,
        r#"problems_total{code="too_many_events"} 1"#,
        r#"http_requests_total{route="none",status="404"} 20"#,
        r#"http_requests_total{route="/v1/batch",status="200"} 4"#,
        r#"http_request_duration_seconds_bucket{route="/v1/batch",le="+Inf"} 10"#,
    ] {
        assert!(text.contains(&format!("tallymark_{line}\n")), "{line} is not in {text}");
    }
    assert!(!text.contains("nowhere") && !text.contains("shop"), "labels are nobody's to invent");
}

#[tokio::test]
async fn batches_are_counted_by_client_library() {
    let world = world();
    let named = ["tallymark-js/0.1.0", "tallymark-js/9.9.9", "tallymark-rust/0.1.0", "tallymark-js2/1", "", "\"}\n"];
    for sdk in named {
        let batch = json!({"batch_id": uuid(), "sdk": sdk, "events": []});
        assert_eq!(world.post("/v1/batch", Body::from(batch.to_string())).await.0, 200);
    }
    assert_eq!(world.post("/track", Body::from("{}")).await.0, 200);
    let of = |sdk: &str| world.figure(&format!("batches_total{{sdk=\"{sdk}\"}}"));
    assert_eq!((of("tallymark-js"), of("tallymark-rust"), of("other"), of("none")), (2, 1, 3, 1));
}

#[tokio::test]
async fn the_figures_are_at_one_path_and_nowhere_else() {
    let world = world();
    assert_eq!(world.get("/metrics").await.0, 404, "not on the public side");
    let router = Arc::clone(&world.metrics).router();
    let ask = async |path: &str| {
        let answer = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), kind)
    };
    assert_eq!(ask("/metrics").await, (200, "text/plain; version=0.0.4; charset=utf-8".into()));
    assert_eq!(ask("/v1/counts").await, (404, "application/problem+json".into()));
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("page_view")),
        Just(json!("custom")),
    ];
    let name = prop_oneof![
        Just("event_type".to_owned()),
        Just("event_id".to_owned()),
        Just("occurred_at".to_owned()),
        Just("name".to_owned()),
        Just("url".to_owned()),
        Just("properties".to_owned()),
        Just("weight".to_owned()),
        "[a-z]{1,4}",
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Whatever is sent, every event of a batch gets one verdict, and nothing else is more than a problem.
#[test]
fn any_body_gets_a_clear_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = world();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    proptest!(config, |(events in proptest::collection::vec(json(), 0..8), cut in 0..400usize, lost in json())| {
        runtime.block_on(async {
            let batch = json!({"batch_id": uuid(), "events": events});
            let (status, receipt) = world.post("/v1/batch", Body::from(batch.to_string())).await;
            prop_assert_eq!(status, 200);
            let verdicts = receipt["accepted"].as_u64().unwrap() + receipt["rejected"].as_array().unwrap().len() as u64;
            prop_assert_eq!(verdicts, events.len() as u64);

            let odd = json!({"batch_id": uuid(), "lost": lost, "events": []});
            let (status, _) = world.post("/v1/batch", Body::from(odd.to_string())).await;
            prop_assert!(status == 200 || status == 400);

            let mut bytes = batch.to_string().into_bytes();
            bytes.truncate(cut);
            for path in ["/v1/batch", "/track", "/web/page_view", "/button/click"] {
                let (status, problem) = world.post(path, Body::from(bytes.clone())).await;
                prop_assert!(status == 200 || problem["code"].is_string());
                prop_assert!(status.as_u16() < 500);
            }
            Ok(())
        })?;
    });
}
