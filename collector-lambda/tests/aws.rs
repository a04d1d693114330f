//! Firehose and DynamoDB behind the collector: against local AWS, through a proxy that injects faults, and
//! against a Firehose that fails as configured.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod local_aws;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::AttributeValue;
use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tallymark::{BatchId, EventId, Receipt};
use tallymark_collector::Error;
use tallymark_collector::faults::{Plan, Proxy, Rule};
use tallymark_collector::ingest::checked_batch::{Accepted, CheckedBatch, Fingerprint, Sdk};
use tallymark_collector::sites::KeyScope;
use tallymark_collector::store::Store;
use tallymark_collector::store::aws::dynamodb::DynamoDb;
use tallymark_collector::store::aws::firehose::Firehose;
use tallymark_collector::store::query::Query;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const HOUR: u64 = 3_600_000;
/// 2100-01-01 00:00 UTC. Not in the past: the table would forget the batches.
const NOW: u64 = 4_102_444_800_000;

// ---- batches ----

/// A batch of events of these types and keys, all in the hour of `NOW`.
fn batch<K: Into<String>>(events: impl IntoIterator<Item = (&'static str, K)>) -> CheckedBatch {
    let batch_id = BatchId::new(NOW, &mut rand::random::<u64>);
    let events = (0..).zip(events).map(|(index, (event_type, key))| {
        let (key, event_id) = (key.into(), EventId::new(NOW, &mut rand::random::<u64>));
        let line = json!({"event_id": event_id, "event_type": event_type, "key": key, "batch_id": batch_id});
        Accepted { index, event_type, counter_key: key, hour: NOW / HOUR, line: line.to_string() }
    });
    CheckedBatch {
        username: "shop".into(),
        scope: KeyScope::Secret,
        repeatable: true,
        sdk: Sdk::None,
        batch_id,
        fingerprint: Fingerprint([7; 16]),
        received_at: NOW,
        events: events.collect(),
        rejected: Vec::new(),
        retry: Vec::new(),
        lost: BTreeMap::new(),
    }
}

/// More counters than ten transactions may hold.
fn wide_batch() -> CheckedBatch {
    batch((0..500).map(|n| ("page_view", format!("https://shop.example/{n}"))))
}

/// The batch with lines so long that each is a record of its own.
fn padded(mut batch: CheckedBatch) -> CheckedBatch {
    for event in &mut batch.events {
        event.line.pop();
        event.line.push_str(&format!(r#","pad":"{:x<4800}"}}"#, ""));
        assert!((4_864..5_120).contains(&event.line.len()));
    }
    batch
}

/// The batch as it comes again, five hours later, to a collector that knows nothing of the first time.
fn later(batch: &CheckedBatch) -> CheckedBatch {
    let mut batch = CheckedBatch { received_at: batch.received_at + 5 * HOUR, retry: Vec::new(), ..batch.clone() };
    for event in &mut batch.events {
        event.hour += 5;
    }
    batch
}

fn event_ids<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event_id"].as_str().unwrap().to_owned();
    lines.into_iter().map(id).collect()
}

fn of(event_type: &str, key: &str) -> Query {
    Query { username: "shop".into(), event_type: event_type.into(), counter_key: key.into() }
}

async fn total(table: &DynamoDb, event_type: &str, key: &str) -> u64 {
    table.count(&of(event_type, key), None).await.unwrap()
}

async fn table_of(config: &SdkConfig) -> DynamoDb {
    DynamoDb::new(config, local_aws::new_table().await)
}

/// Whether a wide batch is counted: each key once, and in the hour of `NOW` only.
async fn assert_wide_counted_once(table: &DynamoDb) {
    assert_eq!(total(table, "page_view", "").await, 500);
    assert_eq!(table.series(&of("page_view", ""), 0..u64::MAX).await.unwrap(), [(NOW / HOUR, 500)]);
    let top = table.top(&of("page_view", ""), 1_000).await.unwrap();
    assert_eq!(top.len(), 500);
    assert_eq!(top.iter().filter(|(_, count)| *count != 1).collect::<Vec<_>>(), [] as [&(String, u64); 0]);
    for n in [0, 47, 48, 49, 250, 499] {
        let key = format!("https://shop.example/{n}");
        assert_eq!(table.series(&of("page_view", &key), 0..u64::MAX).await.unwrap(), [(NOW / HOUR, 1)], "{key}");
    }
}

// ---- servers that fail ----

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await });
    endpoint
}

/// An answer that breaks off, and the connection with it.
fn cut() -> Response {
    struct Cut;
    impl hyper::body::Body for Cut {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(Some(Err(std::io::Error::other("cut"))))
        }
    }
    ([(header::CONTENT_LENGTH, "100")], Body::new(Cut)).into_response()
}

fn refused(status: u16, code: &str, more: &Value) -> Response {
    let mut body = json!({"__type": format!("com.amazonaws#{code}"), "message": "injected"});
    body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    (StatusCode::from_u16(status).unwrap(), [("x-amzn-errortype", code)], Json(body)).into_response()
}

/// Local AWS behind a proxy that goes by these rules. Reads come in the smallest pieces the protocol knows.
async fn proxied<S: AsRef<str>>(rules: impl IntoIterator<Item = S>) -> (SdkConfig, Proxy) {
    let proxy = Proxy::start("127.0.0.1:0", local_aws::endpoint(), plan(rules)).await.unwrap();
    (local_aws::config(&proxy.endpoint()).await, proxy)
}

fn plan<S: AsRef<str>>(rules: impl IntoIterator<Item = S>) -> Plan {
    let mut rules: Vec<Rule> = rules.into_iter().map(|rule| rule.as_ref().parse().unwrap()).collect();
    rules.extend(["Query=partial", "BatchGetItem=partial"].map(|rule| rule.parse::<Rule>().unwrap()));
    Plan { rules, ..Plan::default() }
}

fn transactions(proxy: &Proxy) -> u64 {
    proxy.report().calls["TransactWriteItems"]
}

/// A Firehose whose answer depends on the number of the call and the lines in it.
struct FakeFirehose {
    config: SdkConfig,
    /// The lines of each call.
    calls: Arc<Mutex<Vec<Vec<String>>>>,
}

impl FakeFirehose {
    async fn start(answer: impl Fn(usize, &[String]) -> Response + Clone + Send + Sync + 'static) -> Self {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let handler = move |body: Bytes| async move {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let line =
                |record: &Value| String::from_utf8(STANDARD.decode(record["Data"].as_str().unwrap()).unwrap()).unwrap();
            let lines: Vec<_> = body["Records"].as_array().unwrap().iter().map(line).collect();
            let mut seen = seen.lock().unwrap();
            seen.push(lines.clone());
            answer(seen.len(), &lines)
        };
        let router = Router::new().fallback(handler).layer(axum::extract::DefaultBodyLimit::disable());
        let endpoint = serve(router).await;
        Self { config: local_aws::config(&endpoint).await, calls }
    }

    /// Takes each line or not.
    async fn taking(takes: impl Fn(usize, &str) -> bool + Clone + Send + Sync + 'static) -> Self {
        Self::start(move |call, lines| {
            let entries: Vec<_> = lines.iter().map(|line| entry(takes(call, line))).collect();
            answer(&entries)
        })
        .await
    }

    async fn put(&self, batch: &CheckedBatch) -> Result<Vec<u32>, Error> {
        Firehose::new(&self.config, "lake").put(batch).await
    }

    fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().unwrap().clone()
    }
}

fn entry(taken: bool) -> Value {
    if taken {
        json!({"RecordId": "r"})
    } else {
        json!({"ErrorCode": "ServiceUnavailableException", "ErrorMessage": "Slow down."})
    }
}

fn answer(entries: &[Value]) -> Response {
    let failed = entries.iter().filter(|entry| entry.get("ErrorCode").is_some()).count();
    Json(json!({"FailedPutCount": failed, "RequestResponses": entries})).into_response()
}

fn with_newlines(batch: &CheckedBatch) -> Vec<String> {
    batch.events.iter().map(|event| format!("{}\n", event.line)).collect()
}

// ---- Firehose ----

#[tokio::test]
async fn only_the_record_that_failed_is_sent_again() {
    let batch = padded(batch([("custom", "a"), ("custom", "b"), ("custom", "c")]));
    let firehose = FakeFirehose::taking(|call, line| call > 2 || !line.contains(r#""key":"b""#)).await;
    assert_eq!(firehose.put(&batch).await.unwrap(), [] as [u32; 0]);
    let lines = with_newlines(&batch);
    let b = vec![lines[1].clone()];
    assert_eq!(firehose.calls(), [lines, b.clone(), b]);
}

#[tokio::test]
async fn a_record_that_always_fails_is_returned_and_its_neighbours_are_sent_once() {
    let mut batch = padded(batch([("custom", "a"), ("custom", "b"), ("custom", "c")]));
    // Indexes are those of the batch as it was sent, where others may have been rejected.
    (batch.events[0].index, batch.events[1].index, batch.events[2].index) = (1, 4, 7);
    let firehose = FakeFirehose::taking(|_, line| !line.contains(r#""key":"b""#)).await;
    assert_eq!(firehose.put(&batch).await.unwrap(), [4]);
    let (first, rest) = firehose.calls().split_first().map(|(first, rest)| (first.clone(), rest.to_vec())).unwrap();
    let lines = with_newlines(&batch);
    assert_eq!(first, lines);
    assert!(rest.len() > 2 && rest.iter().all(|call| *call == [lines[1].clone()]), "{rest:?}");
}

#[tokio::test]
async fn what_a_cut_connection_leaves_open_is_not_stored() {
    let batch = padded(batch([("custom", "a"), ("custom", "b")]));
    let firehose = FakeFirehose::start(|_, _| cut()).await;
    assert!(firehose.put(&batch).await.unwrap_err().is_unavailable());
    let firehose =
        FakeFirehose::start(|call, _| if call == 1 { answer(&[entry(true), entry(false)]) } else { cut() }).await;
    assert_eq!(firehose.put(&batch).await.unwrap(), [1]);

    let firehose = FakeFirehose::start(|call, lines| match call {
        1 => cut(),
        2 => refused(500, "InternalFailure", &Value::Null),
        _ => answer(&vec![entry(true); lines.len()]),
    })
    .await;
    assert_eq!(firehose.put(&batch).await.unwrap(), [] as [u32; 0]);
    assert_eq!(firehose.calls(), vec![with_newlines(&batch); 3]);
}

#[tokio::test]
async fn what_an_answer_does_not_name_is_not_stored() {
    let batch = padded(batch([("custom", "a"), ("custom", "b"), ("custom", "c")]));
    let firehose = FakeFirehose::start(|call, lines| match call {
        // It says that nothing failed, but has no word on the last two.
        1 => answer(&[entry(true)]),
        2 => answer(&[json!({}), entry(true)]),
        _ => answer(&vec![entry(true); lines.len()]),
    })
    .await;
    assert_eq!(firehose.put(&batch).await.unwrap(), [] as [u32; 0]);
    let lines = with_newlines(&batch);
    assert_eq!(firehose.calls(), [lines.clone(), lines[1..].to_vec(), lines[1..2].to_vec()]);
}

#[tokio::test]
async fn a_call_holds_500_records_and_4_mib() {
    let many = padded(batch((0..1001).map(|n| ("custom", n.to_string()))));
    let firehose = FakeFirehose::taking(|_, _| true).await;
    assert_eq!(firehose.put(&many).await.unwrap(), [] as [u32; 0]);
    assert_eq!(firehose.calls().iter().map(Vec::len).collect::<Vec<_>>(), [500, 500, 1]);

    let mut big = batch((0..9).map(|n| ("custom", n.to_string())));
    for event in &mut big.events {
        event.line = "x".repeat(1024 * 1000 - 1);
    }
    let firehose = FakeFirehose::taking(|_, _| true).await;
    assert_eq!(firehose.put(&big).await.unwrap(), [] as [u32; 0]);
    assert_eq!(firehose.calls().iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 1]);
}

#[tokio::test]
async fn little_is_billed_for_nothing() {
    // From lines of a hundred bytes to lines of many kilobytes.
    for bytes in [100, 300, 700, 1_500, 2_400, 3_000, 6_000, 20_000] {
        let mut batch = batch((0..100).map(|n| ("custom", n.to_string())));
        for event in &mut batch.events {
            event.line = format!("{:x<1$}", event.index, bytes + event.index as usize % 7);
        }
        let firehose = FakeFirehose::taking(|_, _| true).await;
        assert_eq!(firehose.put(&batch).await.unwrap(), [] as [u32; 0]);
        let records = firehose.calls().concat();
        assert_eq!(records.concat(), with_newlines(&batch).concat());
        let sent = records.iter().map(String::len).sum::<usize>();
        let billed = records.iter().map(|record| record.len().next_multiple_of(5 * 1024)).sum::<usize>();
        assert!(billed < sent + sent / 10 + 5 * 1024, "{billed} for {sent}, in {} records", records.len());
        assert!(records.iter().all(|record| record.len() <= 60 * 1024), "a failure is not of everything");
    }
}

#[tokio::test]
async fn the_lines_of_a_record_that_failed_come_back_together() {
    let mut batch = batch((0..40).map(|n| ("custom", n.to_string())));
    for event in &mut batch.events {
        event.line = format!("{:x<500}", format!("{}-", event.index));
    }
    let firehose = FakeFirehose::taking(|_, record| !record.contains("\n12-")).await;
    // Ten lines of 501 bytes are a record.
    assert_eq!(firehose.put(&batch).await.unwrap(), Vec::from_iter(10..20));
    let store = Store::aws(
        Firehose::new(&firehose.config, "lake"),
        table_of(&local_aws::config(local_aws::endpoint()).await).await,
    );
    let receipt = store.commit(batch).await.unwrap();
    assert_eq!((receipt.accepted, receipt.retry), (30, Vec::from_iter(10..20)));
}

#[tokio::test]
async fn the_wait_that_a_sink_asks_for_is_kept_and_passed_on() {
    let asking = |status, code: &'static str, header: &'static str, value: &'static str| {
        let mut response = refused(status, code, &Value::Null);
        response.headers_mut().insert(header, value.parse().unwrap());
        response
    };
    let batch = batch([("custom", "a")]);
    for (status, code, header, value, expected, calls) in [
        (503, "ServiceUnavailableException", "retry-after", "17", 17, 1),
        (503, "ServiceUnavailableException", "x-amz-retry-after", "900000", 60, 1),
        (400, "ThrottlingException", "x-other", "1", 5, 2),
        (500, "InternalFailure", "x-other", "1", 2, 2),
        (400, "AccessDeniedException", "x-other", "1", 30, 1),
    ] {
        let firehose = FakeFirehose::start(move |_, _| asking(status, code, header, value)).await;
        let error = firehose.put(&batch).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(expected)), "{code}");
        assert!(firehose.calls().len() >= calls && (calls > 1 || firehose.calls().len() == 1), "{code}");
    }
    let dead = FakeFirehose::taking(|_, _| false).await;
    assert_eq!(dead.put(&batch).await.unwrap_err().retry_after(), Some(Duration::from_secs(5)));
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_named_in_the_log_and_not_in_the_answer() {
    let batch = batch([("custom", "a")]);
    for code in ["ResourceNotFoundException", "AccessDeniedException"] {
        let firehose = FakeFirehose::start(move |_, _| refused(400, code, &Value::Null)).await;
        let error = firehose.put(&batch).await.unwrap_err();
        assert!(error.is_unavailable());
        assert_eq!(error.to_string(), "The lake cannot be used now");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, format!("the delivery stream lake cannot be used ({code})"));
        assert_eq!(firehose.calls().len(), 1, "no use in asking again");
    }
}

#[tokio::test]
async fn what_firehose_does_not_take_is_not_counted_and_comes_back_to_the_client() {
    let batch = padded(batch([("custom", "a"), ("custom", "b"), ("custom", "c")]));
    let firehose = FakeFirehose::taking(|_, line| !line.contains(r#""key":"b""#)).await;
    let config = local_aws::config(local_aws::endpoint()).await;
    let table = table_of(&config).await;
    let store = Store::aws(Firehose::new(&firehose.config, "lake"), table.clone());
    let receipt = store.commit(batch.clone()).await.unwrap();
    assert_eq!((receipt.accepted, receipt.retry.as_slice()), (2, [1].as_slice()));
    assert_eq!(table.top(&of("custom", ""), 9).await.unwrap(), [("a".into(), 1), ("c".into(), 1)]);
    assert_eq!(store.commit(batch).await.unwrap(), Receipt { duplicate: true, ..receipt });

    let dead = FakeFirehose::taking(|_, _| false).await;
    let store = Store::aws(Firehose::new(&dead.config, "lake"), table.clone());
    assert!(store.commit(self::batch([("custom", "a")])).await.unwrap_err().is_unavailable());
    assert_eq!(total(&table, "custom", "").await, 2);
}

// ---- both ----

#[tokio::test]
async fn a_batch_replayed_by_fifty_at_once_is_counted_once() {
    let config = local_aws::config(local_aws::endpoint()).await;
    let (stream, table) = (local_aws::new_stream().await, table_of(&config).await);
    let store = Store::aws(Firehose::new(&config, &stream), table.clone());
    let store = Arc::new(store);
    let events = [("page_view", "https://shop.example/"), ("page_view", "https://shop.example/"), ("custom", "charge")];
    let mut batch = batch(events);
    batch.lost = BTreeMap::from([("queue_full".into(), 7)]);

    let mut receipts = JoinSet::new();
    for _ in 0..50 {
        let (store, batch) = (Arc::clone(&store), batch.clone());
        receipts.spawn(async move { store.commit(batch).await.unwrap() });
    }
    let receipts = receipts.join_all().await;
    assert_eq!(receipts.iter().filter(|receipt| !receipt.duplicate).count(), 1);
    for receipt in receipts {
        assert_eq!(receipt, Receipt { duplicate: receipt.duplicate, ..batch.receipt() });
    }
    assert_eq!(store.commit(later(&batch)).await.unwrap(), Receipt { duplicate: true, ..batch.receipt() });

    assert_eq!(total(&table, "page_view", "https://shop.example/").await, 2);
    assert_eq!(total(&table, "page_view", "").await, 2);
    assert_eq!(total(&table, "custom", "charge").await, 1);
    assert_eq!(total(&table, "lost", "queue_full").await, 7);
    assert_eq!(table.series(&of("lost", ""), 0..u64::MAX).await.unwrap(), [(NOW / HOUR, 7)]);

    // The lake has every event, possibly more than once: `event_id` tells.
    let lines = local_aws::lines(&stream).await;
    let found: BTreeSet<_> = lines.iter().map(|line| line["event_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(found, event_ids(batch.events.iter().map(|event| event.line.as_str())).into_iter().collect());
    let before = lines.len();
    store.commit(batch).await.unwrap();
    assert_eq!(local_aws::lines(&stream).await.len(), before, "a batch that is known does not go to the lake again");
}

// ---- DynamoDB ----

#[tokio::test]
async fn the_marker_holds_the_receipt_and_expires() {
    let config = local_aws::config(local_aws::endpoint()).await;
    let name = local_aws::new_table().await;
    let batch = batch([("custom", "a")]);
    DynamoDb::new(&config, &name).commit(&batch).await.unwrap();
    let pk = AttributeValue::S(format!("b#shop#secret#{}", batch.batch_id));
    let get = aws_sdk_dynamodb::Client::new(&config).get_item().table_name(name).key("pk", pk);
    let marker = get.key("sk", AttributeValue::S("m".into())).send().await.unwrap().item.unwrap();
    let days: u64 = 30;
    assert_eq!(marker["expires_at"].as_n().unwrap(), &(NOW / 1000 + days * 24 * 3600).to_string());
    assert_eq!(serde_json::from_str::<Receipt>(marker["receipt"].as_s().unwrap()).unwrap(), batch.receipt());
    assert!(!marker.contains_key("plan"));
}

#[tokio::test]
async fn a_batch_that_fits_no_transaction_is_counted_once() {
    let config = local_aws::config(local_aws::endpoint()).await;
    let table = table_of(&config).await;
    let batch = wide_batch();
    let mut receipts = JoinSet::new();
    for _ in 0..8 {
        let (table, batch) = (table.clone(), batch.clone());
        receipts.spawn(async move { table.commit(&batch).await.unwrap() });
    }
    let receipts = receipts.join_all().await;
    assert_eq!(receipts.iter().filter(|receipt| !receipt.duplicate).count(), 1);
    assert!(receipts.iter().all(|receipt| *receipt == Receipt { duplicate: receipt.duplicate, ..batch.receipt() }));
    assert_wide_counted_once(&table).await;
}

#[tokio::test]
async fn a_batch_cut_off_between_any_two_parts_is_finished_by_its_replay() {
    let direct = local_aws::config(local_aws::endpoint()).await;
    let (config, proxy) = proxied::<&str>([]).await;
    DynamoDb::new(&config, local_aws::new_table().await).commit(&wide_batch()).await.unwrap();
    let parts = transactions(&proxy);
    assert_eq!(parts, 11, "500 keys, with 98 counters a transaction");

    for done in 0..=parts {
        let name = local_aws::new_table().await;
        let (config, _proxy) = proxied([format!("TransactWriteItems#{}..=denied", done + 1)]).await;
        let mut batch = wide_batch();
        let cut_off = DynamoDb::new(&config, &name).commit(&batch).await;
        assert_eq!(cut_off.is_err(), done < parts);

        // It comes again later, when the clock says another hour.
        let table = DynamoDb::new(&direct, &name);
        let known = table.known(&later(&batch)).await.unwrap();
        let receipt = match known {
            Some(receipt) => receipt,
            None => {
                assert_eq!(done, 0, "only the first part can go missing whole");
                table.commit(&batch).await.unwrap()
            }
        };
        assert_eq!(receipt, Receipt { duplicate: done > 0, ..batch.receipt() });
        assert_wide_counted_once(&table).await;

        batch.received_at += 1;
        assert_eq!(table.commit(&batch).await.unwrap(), Receipt { duplicate: true, ..receipt });
        assert_eq!(total(&table, "page_view", "").await, 500);
    }
}

#[tokio::test]
async fn a_replay_counts_what_the_first_attempt_had_decided() {
    let direct = local_aws::config(local_aws::endpoint()).await;
    let name = local_aws::new_table().await;
    let (config, _proxy) = proxied(["TransactWriteItems#3..=denied"]).await;
    let mut batch = wide_batch();
    // The first attempt could not store these, refused others, and found some in other hours.
    batch.retry = (100..200).collect();
    for index in (0..20).rev() {
        let event = batch.events.remove(index * 3);
        batch.rejected.push(tallymark::Rejected {
            index: event.index,
            event_id: None,
            code: "test".into(),
            message: "test".into(),
        });
    }
    for event in &mut batch.events[300..] {
        event.hour -= u64::from(event.index % 3);
    }
    batch.lost = BTreeMap::from([("queue_full".into(), 7)]);
    DynamoDb::new(&config, &name).commit(&batch).await.unwrap_err();

    let table = DynamoDb::new(&direct, &name);
    let receipt = table.known(&later(&batch)).await.unwrap().unwrap();
    assert_eq!(receipt, Receipt { duplicate: true, ..batch.receipt() });
    assert_eq!(receipt.accepted, 380);
    let mut expected = BTreeMap::new();
    for event in batch.stored() {
        *expected.entry(event.hour).or_default() += 1;
        assert_eq!(total(&table, "page_view", &event.counter_key).await, 1, "{}", event.index);
    }
    assert_eq!(table.series(&of("page_view", ""), 0..u64::MAX).await.unwrap(), Vec::from_iter(expected));
    assert_eq!(table.top(&of("page_view", ""), 1_000).await.unwrap().len(), 380);
    assert_eq!(table.series(&of("lost", "queue_full"), 0..u64::MAX).await.unwrap(), [(NOW / HOUR, 7)]);
}

#[tokio::test]
async fn no_fault_on_the_way_counts_twice_or_never() {
    let all = ["after-cut", "cut", "conflict", "throttle", "error"];
    for fault in all {
        let (config, proxy) = proxied([1, 2].map(|n| format!("TransactWriteItems#{n}={fault}"))).await;
        let table = table_of(&config).await;
        let batch = batch([("custom", "a"), ("custom", "a"), ("custom", "b")]);
        let receipt = table.commit(&batch).await.unwrap();
        // It was this call that counted it, though it may have heard so only from the marker.
        assert_eq!(receipt, batch.receipt(), "{fault}");
        assert!(transactions(&proxy) > 1, "{fault}");
        assert_eq!(table.top(&of("custom", ""), 9).await.unwrap(), [("a".into(), 2), ("b".into(), 1)], "{fault}");
        assert_eq!(table.known(&batch).await.unwrap(), Some(Receipt { duplicate: true, ..receipt }));
    }

    // Each part of a wide batch in turn.
    let faults = (0..).zip(all.into_iter().chain(["after-cut"; 2]));
    let (config, _proxy) = proxied(faults.map(|(n, fault)| format!("TransactWriteItems#{}={fault}", 2 * n + 1))).await;
    let table = table_of(&config).await;
    let batch = wide_batch();
    assert_eq!(table.commit(&batch).await.unwrap(), batch.receipt());
    assert_wide_counted_once(&table).await;
}

#[tokio::test]
async fn counters_that_stay_busy_are_unavailable_and_the_batch_can_be_retried() {
    let (config, proxy) = proxied(["TransactWriteItems=conflict"]).await;
    let table = table_of(&config).await;
    let batch = batch([("custom", "a")]);
    let error = table.commit(&batch).await.unwrap_err();
    assert!(error.is_unavailable());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
    assert_eq!(table.known(&batch).await.unwrap(), None);
    proxy.follow(Plan::default());
    assert_eq!(table.commit(&batch).await.unwrap(), batch.receipt());
    assert_eq!(total(&table, "custom", "a").await, 1);
}

#[tokio::test]
async fn counters_that_conflict_are_split_and_every_reader_knows() {
    let direct = local_aws::config(local_aws::endpoint()).await;
    let name = local_aws::new_table().await;
    let reader = DynamoDb::new(&direct, &name);
    let shards = async |event_type: &str| {
        let key = ("pk", format!("s#shop#{event_type}"));
        let call = aws_sdk_dynamodb::Client::new(&direct).get_item().table_name(&name);
        let call = call.key(key.0, AttributeValue::S(key.1)).key("sk", AttributeValue::S("s".into()));
        let item = call.send().await.unwrap().item;
        item.map(|item| item["shards"].as_n().unwrap().clone())
    };
    let (config, proxy) = proxied::<&str>([]).await;
    let table = DynamoDb::new(&config, &name);
    for _ in 0..10 {
        table.commit(&batch([("custom", "a"), ("button_click", "a")])).await.unwrap();
    }
    assert_eq!((shards("custom").await, shards("button_click").await), (None, None), "nobody was in the way");

    // The second item of a transaction is of `button_click`: only that is split.
    let conflicts = |n| proxy.follow(plan((1..=n).map(|n| format!("TransactWriteItems#{n}=conflict:2"))));
    conflicts(3);
    table.commit(&batch([("custom", "a"), ("button_click", "a")])).await.unwrap();
    assert_eq!((shards("custom").await, shards("button_click").await), (None, Some("8".into())));
    // Who did not know learns it at the first conflict, and does not split again.
    let other = DynamoDb::new(&config, &name);
    conflicts(1);
    other.commit(&batch([("button_click", "a")])).await.unwrap();
    assert_eq!(shards("button_click").await, Some("8".into()));
    conflicts(8);
    other.commit(&batch([("button_click", "a")])).await.unwrap();
    assert_eq!(shards("button_click").await, Some("64".into()), "and there it ends");
    for _ in 0..87 {
        table.commit(&batch([("button_click", "a")])).await.unwrap();
        other.commit(&batch([("button_click", "a")])).await.unwrap();
    }
    for table in [&table, &reader] {
        assert_eq!(total(table, "button_click", "a").await, 187);
        assert_eq!(table.series(&of("button_click", "a"), 0..u64::MAX).await.unwrap(), [(NOW / HOUR, 187)]);
        assert_eq!(table.top(&of("button_click", ""), 9).await.unwrap(), [("a".into(), 187)]);
        assert_eq!(total(table, "custom", "a").await, 11);
    }
}

#[tokio::test]
async fn a_hot_key_from_sixteen_at_once_is_exact() {
    let config = local_aws::config(local_aws::endpoint()).await;
    let table = table_of(&config).await;
    let mut batches = JoinSet::new();
    for _ in 0..16 {
        let table = table.clone();
        batches.spawn(async move {
            for _ in 0..5 {
                table.commit(&batch([("button_click", "buy"); 20])).await.unwrap();
            }
        });
    }
    batches.join_all().await;
    assert_eq!(total(&table, "button_click", "buy").await, 1_600);
    assert_eq!(total(&table, "button_click", "").await, 1_600);
    assert_eq!(table.count(&of("button_click", "buy"), Some(NOW / HOUR..NOW / HOUR + 1)).await.unwrap(), 1_600);
    assert_eq!(table.series(&of("button_click", "buy"), 0..u64::MAX).await.unwrap(), [(NOW / HOUR, 1_600)]);
    assert_eq!(table.top(&of("button_click", ""), 1).await.unwrap(), [("buy".into(), 1_600)]);
}

#[tokio::test]
async fn keys_longer_than_a_sort_key_are_told_apart_and_answered_whole() {
    let (config, _proxy) = proxied::<&str>([]).await;
    let table = table_of(&config).await;
    let long = |end: &str| format!("https://shop.example/?q={:x<4000}{end}", "");
    let fitting = |bytes: usize| format!("https://shop.example/{:é<1$}", "", (bytes - 21) / 2);
    let keys = [long("a"), long("b"), long("b"), long("b"), fitting(1011), fitting(1011), fitting(1013)];
    table.commit(&batch(keys.clone().map(|key| ("page_view", key)))).await.unwrap();
    assert_eq!(
        table.top(&of("page_view", ""), 9).await.unwrap(),
        [(long("b"), 3), (fitting(1011), 2), (long("a"), 1), (fitting(1013), 1)]
    );
    for (key, count) in [(long("a"), 1), (long("b"), 3), (long("c"), 0), (fitting(1011), 2), (fitting(1013), 1)] {
        assert_eq!(total(&table, "page_view", &key).await, count);
        let series = table.series(&of("page_view", &key), 0..u64::MAX).await.unwrap();
        assert_eq!(series.iter().map(|(_, count)| count).sum::<u64>(), count);
    }
}

#[tokio::test]
async fn keys_that_look_like_parts_of_others_are_not_mixed_up() {
    // The proxy cuts every read into small pieces.
    let (config, _proxy) = proxied::<&str>([]).await;
    let table = table_of(&config).await;
    let (hour, day) = (NOW / HOUR, NOW / HOUR / 24);
    let hash = "!".to_owned() + &"0".repeat(64);
    let keys = ["a", "a#", &format!("a#{day:09}"), &format!("a#{day:09}#{day:09}"), "#a", "!a", &hash, "t#", "ä"];
    for (n, key) in (1..).zip(keys) {
        for step in 0..n {
            let mut batch = batch([("custom", key)]);
            batch.events[0].hour -= step % 4;
            table.commit(&batch).await.unwrap();
        }
    }
    for (n, key) in (1u64..).zip(keys) {
        assert_eq!(total(&table, "custom", key).await, n, "{key}");
        let series = table.series(&of("custom", key), 0..u64::MAX).await.unwrap();
        let expected: Vec<_> = (0..4).rev().map(|at| (hour - at, (n + 3 - at) / 4)).filter(|&(_, n)| n > 0).collect();
        assert_eq!(series, expected, "{key}");
        let two = table.count(&of("custom", key), Some(hour - 1..hour + 1)).await.unwrap();
        assert_eq!(two, series.iter().filter(|(at, _)| *at >= hour - 1).map(|(_, n)| n).sum::<u64>(), "{key}");
        assert_eq!(table.count(&of("custom", key), Some(hour + 1..hour + 9)).await.unwrap(), 0);
    }
    let top = table.top(&of("custom", ""), 4).await.unwrap();
    assert_eq!(top, (6..10).rev().map(|n| (keys[n - 1].to_owned(), n as u64)).collect::<Vec<_>>());
    let other = Query { username: "sho".into(), ..of("custom", "a") };
    assert_eq!(table.count(&other, None).await.unwrap(), 0);
    assert_eq!(total(&table, "page_view", "a").await, 0);
}

#[tokio::test]
async fn a_table_that_is_not_there_is_unavailable_at_once() {
    let table = DynamoDb::new(&local_aws::config(local_aws::endpoint()).await, "nowhere");
    let batch = batch([("custom", "a")]);
    let errors = [
        table.known(&batch).await.unwrap_err(),
        table.commit(&batch).await.unwrap_err(),
        table.count(&of("custom", "a"), None).await.unwrap_err(),
        table.series(&of("custom", "a"), 0..9).await.unwrap_err(),
        table.top(&of("custom", ""), 9).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_unavailable());
        assert_eq!(error.to_string(), "The counters cannot be used now");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "the table nowhere cannot be used (ResourceNotFoundException)");
    }
}

#[tokio::test]
async fn a_store_is_ready_when_both_its_sinks_are() {
    let config = local_aws::config(local_aws::endpoint()).await;
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    for (stream, table, ready) in [(&*stream, &*table, true), ("gone", &table, false), (&stream, "gone", false)] {
        let store = Store::aws(Firehose::new(&config, stream), DynamoDb::new(&config, table));
        assert_eq!(store.ready().await.is_ok(), ready, "{stream} and {table}");
    }
}
