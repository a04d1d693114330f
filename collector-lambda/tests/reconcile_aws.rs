//! `reconcile` for S3 and DynamoDB, against local AWS: counters that are right are found to be, whatever is under way,
//! and what is not is named exactly and repaired once.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod local_aws;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use tallymark::{BatchId, EventId};
use tallymark_collector::ingest::checked_batch::{Accepted, CheckedBatch, Fingerprint, Sdk};
use tallymark_collector::sites::KeyScope;
use tallymark_collector::store::Store;
use tallymark_collector::store::aws::dynamodb::DynamoDb;
use tallymark_collector::store::aws::firehose::Firehose;
use tallymark_collector::store::query::{DAY, HOUR, Query};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Noon of a day so many days ago.
fn days_ago(days: u64) -> u64 {
    now() / DAY * DAY - days * DAY + DAY / 2
}

/// A batch that was received then, of events of these types and keys that happened then.
fn batch<K: Into<String>>(received_at: u64, events: impl IntoIterator<Item = (&'static str, K, u64)>) -> CheckedBatch {
    let batch_id = BatchId::new(received_at, &mut rand::random::<u64>);
    let events = (0..).zip(events).map(|(index, (event_type, key, occurred_at))| {
        let (key, event_id) = (key.into(), EventId::new(received_at, &mut rand::random::<u64>));
        let name = match event_type {
            "page_view" => "url",
            "button_click" => "button_id",
            _ => "name",
        };
        let line = json!({"event_id": event_id, "event_type": event_type, name: key, "occurred_at": occurred_at,
            "username": "shop", "batch_id": batch_id, "received_at": received_at});
        Accepted { index, event_type, counter_key: key, hour: occurred_at / HOUR, line: line.to_string() }
    });
    CheckedBatch {
        username: "shop".into(),
        scope: KeyScope::Secret,
        repeatable: true,
        sdk: Sdk::None,
        batch_id,
        fingerprint: Fingerprint([7; 16]),
        received_at,
        events: events.collect(),
        rejected: Vec::new(),
        retry: Vec::new(),
        lost: BTreeMap::from([("queue_full".into(), 2)]),
    }
}

/// Custom events of one name that happened then.
fn custom(name: &str, events: usize, occurred_at: u64) -> CheckedBatch {
    batch(now(), (0..events).map(|_| ("custom", name, occurred_at)))
}

/// More counters than ten transactions may hold.
fn wide_batch() -> CheckedBatch {
    batch(now(), (0..300).map(|n| ("page_view", format!("https://shop.example/{n}"), days_ago(n % 3))))
}

/// The batch as it comes again later, to a collector that corrects its times by as much.
fn later(batch: &CheckedBatch) -> CheckedBatch {
    let mut batch = batch.clone();
    batch.received_at += HOUR;
    for event in &mut batch.events {
        event.hour += 1;
        let mut line: serde_json::Value = serde_json::from_str(&event.line).unwrap();
        for time in ["occurred_at", "received_at"] {
            line[time] = (line[time].as_u64().unwrap() + HOUR).into();
        }
        event.line = line.to_string();
    }
    batch
}

fn text(batch: &CheckedBatch) -> String {
    batch.events.iter().map(|event| format!("{}\n", event.line)).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// A table, and a bucket that a delivery stream of the same name fills.
struct Site {
    table: String,
    stream: String,
    config: SdkConfig,
    /// Where DynamoDB is for `reconcile`.
    dynamodb: String,
}

impl Site {
    async fn new() -> Self {
        let config = local_aws::config(local_aws::endpoint()).await;
        let dynamodb = local_aws::endpoint().to_owned();
        Self { table: local_aws::new_table().await, stream: local_aws::new_stream().await, config, dynamodb }
    }

    fn counters(&self) -> DynamoDb {
        DynamoDb::new(&self.config, &self.table)
    }

    async fn commit(&self, batch: CheckedBatch) {
        let lake = Firehose::new(&self.config, &self.stream);
        Store::aws(lake, self.counters()).commit(batch).await.unwrap();
    }

    /// Stores the events and does not count them.
    async fn store(&self, batch: &CheckedBatch) {
        let refused = Firehose::new(&self.config, &self.stream).put(batch).await.unwrap();
        assert_eq!(refused, [] as [u32; 0]);
    }

    async fn put(&self, key: &str, body: impl Into<reqwest::Body>) {
        let put = reqwest::Client::new().put(format!("{}/{}/{key}", local_aws::endpoint(), self.stream)).body(body);
        assert!(put.send().await.unwrap().status().is_success());
    }

    async fn objects(&self) -> Vec<String> {
        let list = reqwest::get(format!("{}/{}?list-type=2", local_aws::endpoint(), self.stream)).await.unwrap();
        let list = list.text().await.unwrap();
        list.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap().to_owned()).collect()
    }

    async fn delete(&self, object: &str) {
        let url = format!("{}/{}/{object}", local_aws::endpoint(), self.stream);
        assert!(reqwest::Client::new().delete(url).send().await.unwrap().status().is_success());
    }

    /// Adds to a counter behind the collector's back.
    async fn add(&self, pk: &str, sk: &str, attribute: &str, n: i64) {
        let call = Client::new(&self.config).update_item().table_name(&self.table);
        let call = call.key("pk", AttributeValue::S(pk.into())).key("sk", AttributeValue::S(sk.into()));
        let call = call.update_expression("ADD #n :n").expression_attribute_names("#n", attribute);
        call.expression_attribute_values(":n", AttributeValue::N(n.to_string())).send().await.unwrap();
    }

    /// Forgets all batches, as time to live does.
    async fn forget_batches(&self) {
        let client = Client::new(&self.config);
        for (pk, sk) in self.items().await.into_keys().filter(|(pk, _)| pk.starts_with("b#")) {
            let call = client.delete_item().table_name(&self.table).key("pk", AttributeValue::S(pk));
            call.key("sk", AttributeValue::S(sk)).send().await.unwrap();
        }
    }

    async fn items(&self) -> BTreeMap<(String, String), HashMap<String, AttributeValue>> {
        let scan = Client::new(&self.config).scan().table_name(&self.table).consistent_read(true);
        let mut items = scan.into_paginator().items().send();
        let mut found = BTreeMap::new();
        while let Some(item) = items.next().await {
            let item = item.unwrap();
            let text = |name: &str| item[name].as_s().unwrap().clone();
            found.insert((text("pk"), text("sk")), item);
        }
        found
    }

    /// Runs `reconcile`: whether it was content, what it said, and what on the side.
    async fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tallymark-collector"));
        command
            .args(["reconcile", "--firehose-delay", "0s", "--lake", &format!("s3://{}", self.stream)])
            .args(["--counters", &format!("dynamodb:{}", self.table)])
            .args(arguments)
            .env("AWS_ENDPOINT_URL", local_aws::endpoint())
            .env("AWS_ENDPOINT_URL_DYNAMODB", &self.dynamodb)
            .env("AWS_REGION", local_aws::REGION)
            .env("AWS_ACCESS_KEY_ID", local_aws::KEY)
            .env("AWS_SECRET_ACCESS_KEY", local_aws::KEY);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    async fn content(&self, arguments: &[&str]) -> String {
        let (content, said, aside) = self.run(arguments).await;
        assert!(content, "{arguments:?}: {said}{aside}");
        said
    }

    async fn not_content(&self, arguments: &[&str]) -> String {
        let (content, said, aside) = self.run(arguments).await;
        assert!(!content, "{arguments:?}: {said}{aside}");
        said
    }

    /// What it says of a lake of so many events, of which so many may not be counted, if all is right.
    async fn assert_right(&self, events: u64, maybe: u64) {
        let all_right = format!("{events} events stored, {maybe} of them perhaps not counted: 0 counters differ\n");
        assert_eq!(self.content(&[]).await, all_right);
    }
}

/// The day so many days ago, as people write it.
fn day(days: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(days_ago(days));
    humantime::format_rfc3339_seconds(at).to_string()[..10].to_owned()
}

fn day_sk(key: &str, at: u64) -> String {
    format!("d{key}#{:09}", at / DAY)
}

/// Local DynamoDB behind a proxy, where each transaction meets the next fate; when there are none left, all arrive.
#[derive(Clone, Copy)]
enum Fate {
    Arrives,
    /// It takes effect, and the answer is lost.
    AnswerLost,
    Denied,
}

async fn proxy(fates: impl IntoIterator<Item = Fate>) -> String {
    let fates = Arc::new(Mutex::new(fates.into_iter().collect::<VecDeque<_>>()));
    let handler = move |headers: HeaderMap, body: Bytes| {
        let is_transaction = headers["x-amz-target"].to_str().unwrap().ends_with(".TransactWriteItems");
        let fate = is_transaction.then(|| fates.lock().unwrap().pop_front()).flatten().unwrap_or(Fate::Arrives);
        async move { meet(fate, headers, body).await }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(handler)).await });
    endpoint
}

async fn meet(fate: Fate, mut headers: HeaderMap, body: Bytes) -> Response {
    let problem = |status, code: &str| {
        (status, [("x-amzn-errortype", code.to_owned())], json!({"__type": code}).to_string()).into_response()
    };
    if matches!(fate, Fate::Denied) {
        return problem(StatusCode::BAD_REQUEST, "AccessDeniedException");
    }
    headers.remove(header::CONTENT_LENGTH);
    let mut body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    if matches!(fate, Fate::AnswerLost) {
        // So that only the collector can know it again.
        body.as_object_mut().unwrap().remove("ClientRequestToken");
    }
    let call =
        reqwest::Client::new().post(format!("{}/", local_aws::endpoint())).headers(headers).body(body.to_string());
    let answer = call.send().await.unwrap();
    let status = answer.status();
    let code = answer.headers().get("x-amzn-errortype").cloned();
    let bytes = answer.bytes().await.unwrap();
    if matches!(fate, Fate::AnswerLost) {
        assert_eq!(status, 200, "it takes effect");
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError");
    }
    let mut response = (status, bytes).into_response();
    if let Some(code) = code {
        response.headers_mut().insert("x-amzn-errortype", code);
    }
    response
}

#[tokio::test]
async fn counters_of_all_kinds_are_found_right() {
    let site = Site::new().await;
    let long = format!("https://shop.example/{}", "ü".repeat(1_000));
    let mixed = batch(
        now(),
        [
            ("page_view", long.as_str(), days_ago(1)),
            ("page_view", long.as_str(), days_ago(1) + HOUR),
            ("page_view", "https://shop.example/#a#000000001", days_ago(400)),
            ("button_click", "!buy", days_ago(2)),
            ("button_click", "", days_ago(2)),
            ("custom", "charge", now()),
        ],
    );
    // What is counted by nothing is not valid, so it never gets here.
    let mixed = CheckedBatch {
        events: mixed.events.into_iter().filter(|event| !event.counter_key.is_empty()).collect(),
        ..mixed
    };
    site.commit(mixed.clone()).await;
    let wide = wide_batch();
    site.commit(wide.clone()).await;
    // Again, to a collector that knows it, and to one that does not.
    site.commit(wide.clone()).await;
    site.store(&later(&mixed)).await;
    // Spread over shards.
    let shop = "c#shop#page_view#";
    for (sk, attribute) in [("t#".into(), "n"), (day_sk("#", days_ago(1)), "h12")] {
        site.add(&format!("{shop}0"), &sk, attribute, -1).await;
        site.add(&format!("{shop}3"), &sk, attribute, 1).await;
    }
    site.add("s#shop#page_view", "s", "shards", 4).await;
    // Compressed, twice, and with no newline at the end.
    let compressed = custom("gzip", 4, days_ago(1));
    site.counters().commit(&compressed).await.unwrap();
    site.put("2026/compressed.gz", gzip(&text(&compressed))).await;
    site.put("2026/members", [gzip(&text(&compressed)), gzip(&text(&mixed))].concat()).await;
    site.put("2026/cut", text(&compressed).trim_end().to_owned()).await;
    // Not part of the comparison.
    site.put("errors/processing-failed/2026", "not a line").await;
    site.put("2026/", "").await;
    site.assert_right(5 + 300 + 4, 0).await;
}

#[tokio::test]
async fn each_kind_of_damage_is_named_and_repaired() {
    let site = Site::new().await;
    site.commit(custom("a", 5, days_ago(1))).await;
    let before = site.objects().await;
    site.commit(custom("b", 3, days_ago(2))).await;
    site.commit(batch(now(), (0..3).map(|_| ("page_view", "k".repeat(1_500), days_ago(1))))).await;
    site.assert_right(11, 0).await;

    let shop = "c#shop#custom#0";
    // Too high, and over shards; too low; in another hour; of a key that there never was; of a long key.
    site.add(shop, "t#a", "n", 1).await;
    site.add("c#shop#custom#1", "t#a", "n", 6).await;
    site.add(shop, "t#b", "n", -1).await;
    site.add(shop, &day_sk("#b", days_ago(2)), "h12", -2).await;
    site.add(shop, &day_sk("#b", days_ago(2)), "h13", 2).await;
    site.add(shop, "t#never", "n", 3).await;
    let items = site.items().await;
    let long = items.keys().find(|(pk, sk)| pk.starts_with("c#shop#page_view") && sk.starts_with("d!")).unwrap();
    site.add(&long.0, &long.1, "h12", 1).await;

    let said = site.not_content(&[]).await;
    let lines: Vec<_> = said.lines().collect();
    let hour = |days: u64, hour: u64| format!("{}T{hour}:00Z", day(days));
    let mut expected = vec![
        "shop custom \"a\" in total: counted 12, stored 5".into(),
        "shop custom \"b\" in total: counted 2, stored 3".into(),
        format!("shop custom \"b\" in the hour {}: counted 1, stored 3", hour(2, 12)),
        format!("shop custom \"b\" in the hour {}: counted 2, stored 0", hour(2, 13)),
        "shop custom \"never\" in total: counted 3, stored 0".into(),
        format!("shop page_view {:?} in the hour {}: counted 4, stored 3", "k".repeat(1_500), hour(1, 12)),
        "11 events stored, 0 of them perhaps not counted: 6 counters differ".into(),
    ];
    expected.sort();
    let mut sorted = lines.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected);
    assert_eq!(site.not_content(&[]).await, said, "it was changed without being asked for");

    let repaired = site.content(&["--repair"]).await;
    assert!(repaired.ends_with("6 counters differ\nrepaired\n"), "{repaired}");
    site.assert_right(11, 0).await;
    // As who asks sees it.
    let query = |key: &str| Query { username: "shop".into(), event_type: "custom".into(), counter_key: key.into() };
    site.add("s#shop#custom", "s", "shards", 2).await;
    let counters = site.counters();
    for (key, count) in [("a", 5), ("b", 3), ("never", 0), ("", 8)] {
        assert_eq!(counters.count(&query(key), None).await.unwrap(), count, "{key}");
    }
    assert_eq!(counters.series(&query("b"), 0..u64::MAX).await.unwrap(), [(days_ago(2) / HOUR, 3)]);
    assert_eq!(counters.top(&query(""), 10).await.unwrap(), [("a".into(), 5), ("b".into(), 3)]);

    let items = site.items().await;
    site.content(&["--repair"]).await;
    assert_eq!(site.items().await, items, "there was nothing more to do");

    // An object that is gone.
    let after = site.objects().await;
    let gone: Vec<_> = before.iter().filter(|object| after.contains(object)).collect();
    assert_eq!(gone.len(), 1);
    site.delete(gone[0]).await;
    let said = site.not_content(&[]).await;
    assert!(said.contains("shop custom all keys in total: counted 8, stored 3\n"), "{said}");
    assert!(said.contains("shop custom \"a\" in total: counted 5, stored 0\n"), "{said}");
    assert!(said.ends_with("\n6 events stored, 0 of them perhaps not counted: 4 counters differ\n"), "{said}");
}

#[tokio::test]
async fn what_is_under_way_is_neither_named_nor_counted() {
    let site = Site::new().await;
    site.commit(custom("a", 2, days_ago(1))).await;
    // Stored, and its client has not retried yet.
    let waiting = custom("a", 3, days_ago(1));
    site.store(&waiting).await;
    // Counted in part.
    let wide = wide_batch();
    let through = local_aws::config(&proxy([Fate::Arrives, Fate::Arrives, Fate::Denied]).await).await;
    site.store(&wide).await;
    DynamoDb::new(&through, &site.table).commit(&wide).await.unwrap_err();
    site.assert_right(305, 303).await;
    let said = site.content(&["--repair"]).await;
    assert!(!said.contains("repaired"), "{said}");
    // Beyond what that explains.
    site.add("c#shop#custom#0", "t#a", "n", 4).await;
    let said = site.not_content(&[]).await;
    assert!(said.starts_with("shop custom \"a\" in total: counted 6, stored 2 to 5\n305 events"), "{said}");
    site.content(&["--repair"]).await;
    site.add("c#shop#custom#0", "t#a", "n", -3).await;
    site.assert_right(305, 303).await;
    // They retry.
    site.commit(later(&waiting)).await;
    site.commit(later(&wide)).await;
    site.assert_right(305, 0).await;
}

#[tokio::test]
async fn events_that_were_stored_in_part_are_not_certain() {
    let site = Site::new().await;
    let whole = custom("a", 3, days_ago(1));
    site.store(&whole).await;
    site.counters().commit(&CheckedBatch { retry: vec![1], ..whole.clone() }).await.unwrap();
    site.assert_right(3, 3).await;
    // In a batch of its own, as the client sends it again.
    let again = CheckedBatch { events: vec![whole.events[1].clone()], ..custom("a", 0, 0) };
    let line = again.events[0].line.replace(&whole.batch_id.to_string(), &again.batch_id.to_string());
    let line = line.replace(&whole.received_at.to_string(), &again.received_at.to_string());
    let again = CheckedBatch { events: vec![Accepted { index: 0, line, ..again.events[0].clone() }], ..again };
    site.commit(again).await;
    site.assert_right(3, 2).await;
}

#[tokio::test]
async fn what_is_older_than_any_marker_must_be_counted() {
    let site = Site::new().await;
    let old = |events| batch(days_ago(40), (0..events).map(|_| ("custom", "a", days_ago(41))));
    let first = old(3);
    site.commit(first.clone()).await;
    // Its hour is that of one of the attempts.
    site.store(&later(&first)).await;
    site.forget_batches().await;
    site.assert_right(3, 0).await;
    // Given up between lake and counters.
    site.store(&old(2)).await;
    let said = site.not_content(&[]).await;
    assert!(said.contains("shop custom \"a\" in total: counted 3, stored 5\n"), "{said}");
    site.content(&["--repair"]).await;
    site.assert_right(5, 0).await;
}

#[tokio::test]
async fn only_hours_from_a_day_on_are_compared_where_older_objects_have_expired() {
    let site = Site::new().await;
    site.commit(custom("a", 5, days_ago(9))).await;
    let expired = site.objects().await;
    site.commit(custom("a", 3, days_ago(2))).await;
    site.delete(&expired[0]).await;
    site.not_content(&[]).await;
    let said = site.content(&["--from", &day(8)]).await;
    assert_eq!(said, "3 events stored, 0 of them perhaps not counted: 0 counters differ\n");
    site.add("c#shop#custom#0", &day_sk("#a", days_ago(2)), "h12", 1).await;
    let said = site.not_content(&["--from", &day(8)]).await;
    assert!(said.contains("counted 4, stored 3\n3 events"), "{said}");
    site.content(&["--from", &day(8), "--repair"]).await;
    site.content(&["--from", &day(8)]).await;
    site.not_content(&["--from", &day(9)]).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_keeps_the_counters_as_they_are() {
    let site = Site::new().await;
    let known = custom("a", 3, days_ago(1));
    site.commit(known.clone()).await;
    site.add("c#shop#custom#0", "t#a", "n", 1).await;
    let wrong: [(Vec<u8>, &str); 6] = [
        (b"PAR1\x15\x04".to_vec(), "not newline-delimited JSON"),
        (
            (text(&known) + "{}\n{}\n").into_bytes(),
            "line 4: missing field `event_id` at line 1 column 2, and 1 more lines",
        ),
        (text(&known).replace("batch_id", "batch").into_bytes(), "line 1: missing field `batch_id`"),
        (gzip(&text(&known))[..40].to_vec(), "corrupt gzip stream"),
        (vec![b'x'; 3 << 20], "line 1 is too long"),
        (gzip(&"x".repeat(3 << 20)), "line 1 is too long"),
    ];
    for (body, why) in wrong {
        site.put("2026/wrong", body).await;
        let (content, said, aside) = site.run(&["--repair"]).await;
        assert!(!content && aside.contains("not repaired: what cannot be read"), "{said}{aside}");
        assert!(said.starts_with("2026/wrong: ") && said.contains(why), "{why}: {said}");
    }
    site.delete("2026/wrong").await;
    site.content(&["--repair"]).await;
    for object in site.objects().await {
        site.delete(&object).await;
    }
    let (content, _, aside) = site.run(&["--repair"]).await;
    assert!(!content && aside.contains("not repaired: nothing is stored here"), "{aside}");
    // Blank lines are nothing wrong.
    site.put("2026/back", format!("\n{}\n \r\n", text(&known))).await;
    site.assert_right(3, 0).await;
}

#[tokio::test]
async fn a_repair_is_made_once() {
    let mut site = Site::new().await;
    site.commit(wide_batch()).await;
    let damage = async |site: &Site| {
        for n in 0..150 {
            let key = format!("#https://shop.example/{n}");
            site.add("c#shop#page_view#0", &format!("t{key}"), "n", 1 - (n % 2) * 2).await;
        }
    };
    // Whose answer is lost, of the first transaction and of the last.
    for fates in [[Fate::AnswerLost, Fate::Arrives], [Fate::Arrives, Fate::AnswerLost]] {
        damage(&site).await;
        site.dynamodb = proxy(fates).await;
        site.content(&["--repair"]).await;
        site.assert_right(300, 0).await;
    }
    // That is cut off half-way.
    damage(&site).await;
    site.dynamodb = proxy([Fate::Arrives, Fate::Denied]).await;
    assert!(site.not_content(&["--repair"]).await.contains("150 counters differ"));
    let said = site.content(&["--repair"]).await;
    assert!(said.contains(": 51 counters differ\nrepaired\n"), "{said}");
    site.assert_right(300, 0).await;
    // By two at once.
    damage(&site).await;
    let (one, other) = tokio::join!(site.run(&["--repair"]), site.run(&["--repair"]));
    assert!(one.0 || other.0, "{one:?} {other:?}");
    site.assert_right(300, 0).await;
}

/// Clients that store and count late, and retry.
fn traffic(site: &Arc<Site>) -> Vec<JoinHandle<()>> {
    (0..3)
        .map(|_| {
            let site = Arc::clone(site);
            tokio::spawn(async move {
                let store = Store::aws(Firehose::new(&site.config, &site.stream), site.counters());
                let mut before = None;
                for _ in 0..30 {
                    let events = rand::random::<u64>() % 60;
                    let batch = batch(now(), (0..events).map(|n| ("custom", format!("n{}", n % 30), days_ago(n % 4))));
                    match rand::random::<u32>() % 8 {
                        // It comes later.
                        0 => site.store(&batch).await,
                        // It comes again.
                        1 => drop(store.commit(before.clone().unwrap_or_else(|| batch.clone())).await),
                        // The answer may say that it cannot be counted now; that is for the client to try again.
                        _ => drop(store.commit(batch.clone()).await),
                    }
                    before = Some(batch);
                }
            })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_named_while_events_come_in() {
    let site = Arc::new(Site::new().await);
    let senders = traffic(&site);
    while !senders.iter().all(JoinHandle::is_finished) {
        let said = site.content(&[]).await;
        assert!(said.ends_with(": 0 counters differ\n"), "{said}");
    }
    for sender in senders {
        sender.await.unwrap();
    }
    site.content(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_while_events_come_in_harms_no_other_counter() {
    let site = Arc::new(Site::new().await);
    site.add("c#shop#custom#0", "t#n1", "n", 1_000_000).await;
    site.put("2026/first", text(&custom("n1", 1, days_ago(1)))).await;
    let senders = traffic(&site);
    assert!(site.content(&["--repair"]).await.ends_with(": 1 counters differ\nrepaired\n"));
    for sender in senders {
        sender.await.unwrap();
    }
    // What was under way then may be too much by now, of that counter alone.
    let said = site.content(&["--repair"]).await;
    let named = said.lines().filter(|line| line.starts_with("shop "));
    assert_eq!(named.filter(|line| !line.contains("\"n1\" in total")).count(), 0, "{said}");
    site.content(&[]).await;
}

#[test]
fn a_command_that_says_too_little_or_too_much_is_refused() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tallymark-collector"));
        let output = command.arg("reconcile").args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&[]).contains("give --data-dir DIR, or --lake s3://BUCKET/PREFIX and --counters dynamodb:TABLE"));
    let both = ["--data-dir", "d", "--lake", "s3://b", "--counters", "dynamodb:t"];
    assert!(run(&both).contains("cannot be used with"), "{}", run(&both));
    assert!(run(&["--lake", "s3://b"]).contains("--counters <dynamodb:TABLE>"));
    assert!(run(&["--lake", "bucket", "--counters", "dynamodb:t"]).contains("use s3://BUCKET/PREFIX"));
    assert!(run(&["--lake", "s3://b", "--counters", "sqlite"]).contains("use dynamodb:TABLE"));
    assert!(run(&["--lake", "s3://b", "--counters", "dynamodb:t", "--from", "today"]).contains("use YYYY-MM-DD"));
}
