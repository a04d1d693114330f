//! The collector on local AWS through the proxy that injects faults: whatever goes wrong, and wherever it is
//! killed, once the client has retried to the end every accepted event is counted once and is in the lake.
//!
//! `TALLYMARK_SEED=… cargo test … chance` runs the random run of that seed again, and `TALLYMARK_RUNS=…` another
//! number of them.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod local_aws;
mod support;

use aws_config::SdkConfig;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use support::Collector;
use tallymark::{BatchId, EventId, Receipt};
use tallymark_collector::Error;
use tallymark_collector::faults::{Fault, Plan, Proxy, Release, Report, Rule};
use tallymark_collector::ingest::checked_batch::CheckedBatch;
use tallymark_collector::ingest::{Arrival, prepare_batch};
use tallymark_collector::sites::{KeyScope, Site};
use tallymark_collector::store::Store;
use tallymark_collector::store::aws::dynamodb::DynamoDb;
use tallymark_collector::store::aws::firehose::Firehose;
use tallymark_collector::store::query::{HOUR, Query};
use tokio::task::JoinSet;

/// 2100-01-01 00:00 UTC. Not in the past: the table would forget the batches.
const NOW: u64 = 4_102_444_800_000;
const RUNS: u64 = 1_000;
/// Random runs at a time. What takes long in them is waiting.
const WORKERS: u64 = 16;
const TYPES: [(&str, &str); 3] = [("page_view", "url"), ("button_click", "button_id"), ("custom", "name")];

// ---- what a client sends ----

/// An event as its client made it.
#[derive(Clone)]
struct Made {
    id: String,
    event_type: &'static str,
    key: String,
    occurred_at: Option<u64>,
    json: Value,
    is_valid: bool,
}

impl Made {
    fn new(
        random: &mut StdRng,
        (event_type, field): (&'static str, &str),
        key: &str,
        occurred_at: Option<u64>,
    ) -> Self {
        let id = EventId::new(NOW, &mut || random.random()).to_string();
        let mut json = json!({"event_id": id, "event_type": event_type, field: key});
        if let Some(time) = occurred_at {
            json["occurred_at"] = time.into();
        }
        Self { id, event_type, key: key.into(), occurred_at, json, is_valid: true }
    }

    /// The same, so that no collector may accept it.
    fn spoiled(mut self, random: &mut StdRng) -> Self {
        self.is_valid = false;
        match random.random_range(0..3) {
            0 => self.json["event_type"] = "purchase".into(),
            1 => self.json["session_id"] = "x".repeat(129).into(),
            _ => self.json["occurred_at"] = "yesterday".into(),
        }
        self
    }
}

/// A batch as its client keeps it: the bytes stay the same.
#[derive(Clone)]
struct Sent {
    batch_id: BatchId,
    body: String,
    events: Vec<Made>,
    lost: BTreeMap<String, u64>,
    /// How much longer its lines are made than any client may.
    padding: usize,
}

impl Sent {
    fn new(random: &mut StdRng, events: Vec<Made>, lost: BTreeMap<String, u64>) -> Self {
        let batch_id = BatchId::new(NOW, &mut || random.random());
        let all: Vec<_> = events.iter().map(|event| &event.json).collect();
        let body = json!({"batch_id": batch_id, "sdk": "test/1", "lost": lost, "events": all}).to_string();
        Self { batch_id, body, events, lost, padding: 0 }
    }

    /// Of 1 to 60 events.
    fn random(random: &mut StdRng) -> Self {
        let is_wide = random.random_bool(0.4);
        let events = (0..random.random_range(1..=60)).map(|n| {
            let kind = TYPES[random.random_range(0..3)];
            let n = if is_wide { n } else { random.random_range(0..5) };
            let key = match kind.0 {
                "page_view" if random.random_bool(0.1) => format!("https://shop.example/?q={:x<1500}{n}", ""),
                "page_view" => format!("https://shop.example/{n}"),
                _ => format!("key {n}"),
            };
            let occurred_at = random.random_bool(0.9).then(|| NOW - random.random_range(0..50 * HOUR));
            let event = Made::new(random, kind, &key, occurred_at);
            if random.random_bool(0.1) { event.spoiled(random) } else { event }
        });
        let events = events.collect();
        let lost = random.random_bool(0.3).then(|| ("queue_full".into(), random.random_range(1..9)));
        Self::new(random, events, lost.into_iter().collect())
    }

    /// Of so many keys.
    fn wide(random: &mut StdRng, keys: usize) -> Self {
        let key = |n| format!("https://shop.example/{n}");
        let events = (0..keys).map(|n| Made::new(random, TYPES[0], &key(n), Some(NOW - n as u64 % 3 * HOUR)));
        let mut events: Vec<_> = events.collect();
        for event in [3, 50] {
            events[event] = events[event].clone().spoiled(random);
        }
        Self::new(random, events, BTreeMap::from([("queue_full".into(), 7)]))
    }

    fn prepared(&self, username: &str, received_at: u64) -> CheckedBatch {
        let site = Site {
            username: username.into(),
            secret_key_sha256: String::new(),
            write_key_sha256: String::new(),
            old_secret_key: None,
            old_write_key: None,
            origins: Vec::new(),
            store_ip: false,
        };
        let arrival = Arrival { received_at, ..Arrival::default() };
        let mut batch = prepare_batch(&site, KeyScope::Secret, self.body.as_bytes(), arrival).ok().unwrap();
        for event in batch.events.iter_mut().filter(|_| self.padding > 0) {
            event.line.truncate(event.line.len() - 1);
            event.line.push_str(&format!(",\"padding\":\"{:x<1$}\"}}", "", self.padding));
        }
        batch
    }
}

/// What one client has been told, which is what must be counted.
#[derive(Default)]
struct Ledger {
    username: String,
    /// By event type and key, by hour.
    counts: BTreeMap<(&'static str, String), BTreeMap<u64, u64>>,
    stored: BTreeSet<String>,
    /// Events that were rejected.
    refused: BTreeSet<String>,
}

impl Ledger {
    fn of(username: &str) -> Self {
        Self { username: username.into(), ..Self::default() }
    }

    /// Enters the receipt of a batch. Returns the events to send again.
    fn enter(&mut self, sent: &Sent, receipt: &Receipt) -> Vec<Made> {
        let rejected: Vec<_> = receipt.rejected.iter().map(|rejected| rejected.index as usize).collect();
        let invalid: Vec<_> = (0..sent.events.len()).filter(|&index| !sent.events[index].is_valid).collect();
        assert_eq!((receipt.batch_id, rejected), (sent.batch_id, invalid));
        let mut retry = Vec::new();
        let mut accepted = 0;
        for (index, event) in (0..).zip(&sent.events) {
            if !event.is_valid {
                self.refused.insert(event.id.clone());
            } else if receipt.retry.contains(&index) {
                retry.push(event.clone());
            } else {
                accepted += 1;
                // No event is of the future.
                let hour = event.occurred_at.map_or(receipt.received_at, |time| time.min(receipt.received_at)) / HOUR;
                self.add(event.event_type, &event.key, hour, 1);
                assert!(self.stored.insert(event.id.clone()), "{} was accepted twice", event.id);
            }
        }
        assert_eq!((receipt.accepted, receipt.retry.len()), (accepted, retry.len()));
        for (reason, n) in &sent.lost {
            self.add("lost", reason, receipt.received_at / HOUR, *n);
        }
        retry
    }

    fn add(&mut self, event_type: &'static str, key: &str, hour: u64, n: u64) {
        *self.counts.entry((event_type, key.into())).or_default().entry(hour).or_default() += n;
    }

    /// Asserts that the counters say exactly this: each key, the hours of all keys together, and those
    /// of a few.
    async fn assert_answered(&self, place: &Place) {
        let (store, username) = (place.direct(), &self.username);
        for event_type in TYPES.map(|(event_type, _)| event_type).into_iter().chain(["lost"]) {
            let query = |key: &str| Query {
                username: username.clone(),
                event_type: event_type.into(),
                counter_key: key.into(),
            };
            let of_type: Vec<_> = self.counts.iter().filter(|((of, _), _)| *of == event_type).collect();
            let by_key: BTreeMap<_, u64> =
                of_type.iter().map(|((_, key), hours)| (key.clone(), hours.values().sum())).collect();
            let top = patiently(|| store.top(query(""), 1_000)).await;
            assert_eq!(top.into_iter().collect::<BTreeMap<_, _>>(), by_key, "keys of {event_type} of {username}");
            let mut by_hour = BTreeMap::<u64, u64>::new();
            for (hour, n) in of_type.iter().flat_map(|(_, hours)| hours.iter()) {
                *by_hour.entry(*hour).or_default() += n;
            }
            let total = patiently(|| store.count(query(""), None)).await;
            assert_eq!(total, by_hour.values().sum::<u64>(), "the total of {event_type} of {username}");
            let series = patiently(|| store.series(query(""), 0..u64::MAX)).await;
            assert_eq!(series, Vec::from_iter(by_hour), "hours of {event_type} of {username}");
            for ((_, key), hours) in of_type.iter().take(3) {
                let series = patiently(|| store.series(query(key), 0..u64::MAX)).await;
                assert_eq!(series, Vec::from_iter((*hours).clone()), "hours of {key} of {username}");
                assert_eq!(patiently(|| store.count(query(key), None)).await, by_key[key], "{key} of {username}");
            }
        }
    }

    /// The same as the items of the table, all shards together.
    fn items(&self) -> Items {
        let mut items = Items::new();
        for ((event_type, key), hours) in &self.counts {
            for key in ["", key] {
                let key = match key.len() {
                    0..1_000 => format!("#{key}"),
                    _ => Sha256::digest(key).iter().fold("!".into(), |hash, byte| format!("{hash}{byte:02x}")),
                };
                let mut add = |sk: String, attribute: String, n| {
                    *items.entry((event_type.to_string(), sk)).or_default().entry(attribute).or_default() += n;
                };
                for (hour, n) in hours {
                    add(format!("t{key}"), "n".into(), n);
                    add(format!("d{key}#{:09}", hour / 24), format!("h{}", hour % 24), n);
                }
            }
        }
        items
    }

    /// Asserts that all this is in the table and in the lake, and nothing else is counted.
    fn assert_kept(&self, kept: &Kept) {
        let username = &self.username;
        assert_eq!(kept.items.get(username).unwrap_or(&Items::new()), &self.items(), "counters of {username}");
        self.assert_stored(&kept.lake);
    }

    fn assert_stored(&self, lake: &BTreeMap<String, u64>) {
        let missing: Vec<_> = self.stored.iter().filter(|id| !lake.contains_key(*id)).collect();
        assert!(missing.is_empty(), "accepted, but not in the lake: {missing:?}");
        let refused: Vec<_> = self.refused.iter().filter(|id| lake.contains_key(*id)).collect();
        assert!(refused.is_empty(), "refused, but in the lake: {refused:?}");
    }
}

/// Numbers by event type and sort key, and by attribute.
type Items = BTreeMap<(String, String), BTreeMap<String, u64>>;

/// All that a table and a lake hold.
struct Kept {
    /// By username.
    items: BTreeMap<String, Items>,
    /// Every event in the lake, and how often.
    lake: BTreeMap<String, u64>,
}

// ---- where it is sent ----

/// A stream and a table, behind a proxy of their own.
struct Place {
    proxy: Arc<Proxy>,
    config: SdkConfig,
    direct: SdkConfig,
    stream: String,
    table: String,
    /// What has become of all calls so far.
    report: Mutex<Report>,
}

impl Place {
    async fn new() -> Self {
        Self::at(&local_aws::new_stream().await, &local_aws::new_table().await).await
    }

    async fn at(stream: &str, table: &str) -> Self {
        let proxy = Proxy::start("127.0.0.1:0", local_aws::endpoint(), Plan::default()).await.unwrap();
        Self {
            config: local_aws::config(&proxy.endpoint()).await,
            direct: local_aws::config(local_aws::endpoint()).await,
            proxy: Arc::new(proxy),
            stream: stream.into(),
            table: table.into(),
            report: Mutex::default(),
        }
    }

    /// A collector that has just been started.
    fn collector(&self) -> Store {
        self.store(&self.config)
    }

    /// The same without the proxy.
    fn direct(&self) -> Store {
        self.store(&self.direct)
    }

    fn store(&self, config: &SdkConfig) -> Store {
        Store::aws(Firehose::new(config, &self.stream), DynamoDb::new(config, &self.table))
    }

    fn follow(&self, plan: Plan) {
        *self.report.lock().unwrap() += self.proxy.follow(plan);
    }

    /// Every event in the lake, and how often.
    async fn lake(&self) -> BTreeMap<String, u64> {
        let mut events = BTreeMap::new();
        for line in local_aws::lines(&self.stream).await {
            *events.entry(line["event_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        events
    }

    async fn kept(&self) -> Kept {
        let mut items = BTreeMap::<_, Items>::new();
        let mut pages =
            aws_sdk_dynamodb::Client::new(&self.direct).scan().table_name(&self.table).into_paginator().items().send();
        while let Some(item) = pages.next().await {
            let item = item.unwrap();
            let (pk, sk) = (item["pk"].as_s().unwrap(), item["sk"].as_s().unwrap());
            assert!(!item.contains_key("plan"), "a batch was left half-way: {pk}");
            if let ["c", username, event_type, _] = *pk.split('#').collect::<Vec<_>>() {
                let of_all_shards = items.entry(username.to_owned()).or_default();
                let sums = of_all_shards.entry((event_type.to_owned(), sk.clone())).or_default();
                for (name, value) in &item {
                    if let Ok(n) = value.as_n() {
                        *sums.entry(name.clone()).or_default() += n.parse::<u64>().unwrap();
                    }
                }
            }
        }
        Kept { items, lake: self.lake().await }
    }

    /// Lets a new collector commit a batch, and kills it if the proxy holds a call.
    async fn attempt(&self, batch: CheckedBatch) -> Attempt {
        let collector = self.collector();
        tokio::select! {
            result = collector.commit(batch) => match result {
                Ok(receipt) => Attempt::Receipt(receipt),
                Err(error) => {
                    assert!(error.is_unavailable(), "{error}");
                    Attempt::Unavailable
                }
            },
            () = self.proxy.held() => Attempt::Killed,
        }
    }
}

#[derive(Debug)]
enum Attempt {
    Receipt(Receipt),
    Unavailable,
    Killed,
}

/// What happens to the call that a killed collector was at.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Late {
    /// It never arrives.
    Never,
    /// It arrives while the client tries again.
    Meanwhile,
    /// It arrives when all is done.
    AtTheEnd,
}

fn rules<S: AsRef<str>>(rules: impl IntoIterator<Item = S>) -> Plan {
    let rules = rules.into_iter().map(|rule| rule.as_ref().parse::<Rule>().unwrap());
    Plan { rules: rules.collect(), ..Plan::default() }
}

/// Asks until there is an answer: a machine with much else to do may take longer than the collector waits for AWS.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> T {
    for _ in 0..20 {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.is_unavailable(), "{error}"),
        }
    }
    panic!("there is no answer");
}

/// Sends a batch to the end, the first attempt by this plan and the others without faults. What is to be retried goes
/// on in a new batch. Returns how many calls the first attempt took, if it succeeded.
async fn send_to_the_end(
    place: &Place,
    random: &mut StdRng,
    sent: &Sent,
    plan: Plan,
    late: Late,
) -> (Option<u64>, Ledger) {
    let username = format!("u{:016x}", random.random::<u64>());
    let mut ledger = Ledger::of(&username);
    place.follow(plan);
    let mut attempt = place.attempt(sent.prepared(&username, NOW)).await;
    let calls = matches!(attempt, Attempt::Receipt(_)).then(|| place.proxy.report().total());
    place.follow(Plan::default());
    let released = match late {
        Late::Never => {
            place.proxy.release(Release::Drop).await;
            None
        }
        Late::Meanwhile => {
            let proxy = Arc::clone(&place.proxy);
            Some(tokio::spawn(async move { proxy.release(Release::Deliver).await }))
        }
        Late::AtTheEnd => None,
    };
    let collector = place.collector();
    let mut left = VecDeque::from([sent.clone()]);
    for hour in 1..9 {
        let Some(sent) = left.pop_front() else { break };
        // The clock goes on meanwhile.
        let receipt = match std::mem::replace(&mut attempt, Attempt::Unavailable) {
            Attempt::Receipt(receipt) => receipt,
            _ => patiently(|| collector.commit(sent.prepared(&username, NOW + hour * HOUR))).await,
        };
        let again = patiently(|| collector.commit(sent.prepared(&username, NOW + 9 * HOUR))).await;
        assert_eq!(again, Receipt { duplicate: true, ..receipt.clone() });
        let retry = ledger.enter(&sent, &receipt);
        if !retry.is_empty() {
            left.push_back(Sent::new(random, retry, BTreeMap::new()));
        }
    }
    assert!(left.is_empty());
    if let Some(released) = released {
        released.await.unwrap();
    }
    place.proxy.release(Release::Deliver).await;
    (calls, ledger)
}

// ---- every fault at every call ----

/// Lets each call of a batch of several transactions meet this, one after the other.
async fn at_every_call(place: &Place, rule: impl Fn(u64) -> String, late: Late) -> Vec<Ledger> {
    let mut random = StdRng::seed_from_u64(rand::random());
    let mut ledgers = Vec::new();
    for n in 1..100 {
        let sent = Sent::wide(&mut random, 130);
        let (calls, ledger) = send_to_the_end(place, &mut random, &sent, rules([rule(n)]), late).await;
        ledgers.push(ledger);
        if calls.is_some_and(|calls| calls < n) {
            assert!(n > 5, "a read, a call to the lake, three transactions: {n}");
            return ledgers;
        }
    }
    panic!("there is no end to the calls");
}

/// The same for many kinds of fault at once, on one stream and table.
async fn each_at_every_call<R>(rules: impl IntoIterator<Item = (R, Late)>) -> usize
where
    R: Fn(u64) -> String + Send + Sync + 'static,
{
    let place = Place::new().await;
    let mut kinds = JoinSet::new();
    for (rule, late) in rules {
        let place = Place::at(&place.stream, &place.table).await;
        kinds.spawn(async move { at_every_call(&place, rule, late).await });
    }
    let ledgers: Vec<_> = kinds.join_all().await.into_iter().flatten().collect();
    let kept = place.kept().await;
    for ledger in &ledgers {
        ledger.assert_kept(&kept);
    }
    ledgers.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_at_any_call_loses_an_event_or_counts_one_twice() {
    // The first delay is shorter than the collector waits for an answer, the second is longer.
    let faults = Fault::RANDOM.map(|fault| fault.to_string());
    let faults = faults.into_iter().chain(["fail:1", "fail:2", "delay:2200"].map(Into::into));
    let runs = each_at_every_call(faults.map(|fault| (move |n| format!("*#{n}={fault}"), Late::Never))).await;
    println!("each fault at each call: {runs} runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_that_stays_from_any_call_on_loses_an_event_or_counts_one_twice() {
    let faults = ["throttle", "error", "cut", "after", "after-cut", "garbage", "twice"];
    let runs = each_at_every_call(faults.map(|fault| (move |n| format!("*#{n}..={fault}"), Late::Never))).await;
    println!("each fault from each call on: {runs} runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_killed_at_any_call_loses_no_event_and_counts_none_twice() {
    let kills =
        [("hold", Late::Never), ("hold", Late::Meanwhile), ("hold", Late::AtTheEnd), ("hold-after", Late::Never)];
    let runs = each_at_every_call(kills.map(|(hold, late)| (move |n| format!("*#{n}={hold}"), late))).await;
    println!("killed at each call: {runs} runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_several_calls_to_the_lake_survives_faults_at_each() {
    let place = Place::new().await;
    let mut random = StdRng::seed_from_u64(rand::random());
    let mut plans: Vec<(String, Late)> = Vec::new();
    for n in 1..=2 {
        for fault in ["fail", "fail:7", "throttle", "after", "after-cut", "cut", "twice", "garbage"] {
            plans.push((format!("PutRecordBatch#{n}={fault}"), Late::Never));
        }
        plans.push((format!("PutRecordBatch#{n}=hold"), Late::Meanwhile));
        plans.push((format!("PutRecordBatch#{n}=hold-after"), Late::Never));
    }
    let mut ledgers = Vec::new();
    for (rule, late) in plans {
        let sent = Sent { padding: 57_000, ..Sent::wide(&mut random, 80) };
        let (_, ledger) = send_to_the_end(&place, &mut random, &sent, rules([rule]), late).await;
        ledgers.push(ledger);
    }
    // Each was met, those at the second call too.
    assert_eq!(place.report.lock().unwrap().faults(), ledgers.len() as u64);
    let kept = place.kept().await;
    for ledger in &ledgers {
        ledger.assert_kept(&kept);
    }
}

// ---- chance ----

/// What the random runs went through.
#[derive(Default)]
struct Figures {
    events: AtomicU64,
    kills: AtomicU64,
    unavailable: AtomicU64,
    retried: AtomicU64,
    replays: AtomicU64,
}

/// One client with some batches, while everything goes wrong that can.
async fn run(place: &Place, seed: u64, figures: &Figures) -> Ledger {
    let mut random = StdRng::seed_from_u64(seed);
    let username = format!("u{seed:016x}");
    let mut ledger = Ledger::of(&username);
    let mut plan = Plan { seed, rate: 0.3, contention: random.random(), ..Plan::default() };
    let mut late = Late::Never;
    if random.random_bool(0.5) {
        let hold = if random.random() { "hold" } else { "hold-after" };
        late = [Late::Never, Late::Meanwhile, Late::AtTheEnd][random.random_range(0..3)];
        plan.rules = rules([format!("*#{}={hold}", random.random_range(1..9))]).rules;
    } else if random.random_bool(0.1) {
        // A record that is refused until the collector gives up: its events come back.
        let record = random.random_range(1..4);
        plan.rules = rules([format!("PutRecordBatch#1=fail:{record}"), "PutRecordBatch#2..=throttle".to_owned()]).rules;
    }
    place.follow(plan.clone());
    let may_kill = AtomicBool::new(true);
    let mut left: VecDeque<_> = (0..random.random_range(1..=3)).map(|_| Sent::random(&mut random)).collect();
    for _ in 0..20 {
        let Some(sent) = left.pop_front() else { break };
        let copies = if random.random_bool(0.3) { random.random_range(2..=3) } else { 1 };
        let step = random.random_range(0..HOUR);
        let deliver = async || {
            for attempt in 0..20 {
                if attempt == 4 {
                    place.follow(Plan::default());
                }
                let batch = sent.prepared(&username, NOW + attempt * step);
                let outcome = if may_kill.load(Relaxed) {
                    place.attempt(batch).await
                } else {
                    place.collector().commit(batch).await.map_or(Attempt::Unavailable, Attempt::Receipt)
                };
                match outcome {
                    Attempt::Receipt(receipt) => return receipt,
                    Attempt::Unavailable => _ = figures.unavailable.fetch_add(1, Relaxed),
                    Attempt::Killed => {
                        may_kill.store(false, Relaxed);
                        figures.kills.fetch_add(1, Relaxed);
                        let proxy = Arc::clone(&place.proxy);
                        match late {
                            Late::Never => proxy.release(Release::Drop).await,
                            Late::Meanwhile => drop(tokio::spawn(async move { proxy.release(Release::Deliver).await })),
                            Late::AtTheEnd => {}
                        }
                    }
                }
            }
            panic!("it is never answered");
        };
        let receipts = match copies {
            1 => vec![deliver().await],
            2 => <[_; 2]>::from(tokio::join!(deliver(), deliver())).into(),
            _ => <[_; 3]>::from(tokio::join!(deliver(), deliver(), deliver())).into(),
        };
        figures.replays.fetch_add(copies - 1, Relaxed);
        let receipt = Receipt { duplicate: true, ..receipts[0].clone() };
        assert!(receipts.iter().filter(|receipt| !receipt.duplicate).count() <= 1, "{receipts:?}");
        for other in receipts {
            assert_eq!(Receipt { duplicate: true, ..other }, receipt);
        }
        figures.events.fetch_add(u64::from(receipt.accepted), Relaxed);
        let retry = ledger.enter(&sent, &receipt);
        figures.retried.fetch_add(retry.len() as u64, Relaxed);
        if !retry.is_empty() {
            plan.rules.clear();
            place.follow(plan.clone());
            // Some clients never return, and their events are lost.
            if random.random_bool(0.85) {
                left.push_back(Sent::new(&mut random, retry, BTreeMap::new()));
            }
        }
        if random.random_bool(0.2) {
            assert_eq!(deliver().await, receipt);
            figures.replays.fetch_add(1, Relaxed);
        }
    }
    assert!(left.is_empty());
    place.follow(Plan::default());
    place.proxy.release(Release::Deliver).await;
    // It is the table that tells of each run. Now and then, what a client would see.
    if random.random_bool(0.05) {
        ledger.assert_answered(place).await;
    }
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chance_finds_no_way_to_lose_an_event_or_to_count_one_twice() {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let (first, runs) = match number("TALLYMARK_SEED") {
        Some(seed) => (seed, 1),
        None => (rand::random(), number("TALLYMARK_RUNS").unwrap_or(RUNS)),
    };
    println!("the first seed of {runs} is {first}");
    let began = Instant::now();
    let figures = Arc::new(Figures::default());
    let place = Place::new().await;
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        let place = Arc::new(Place::at(&place.stream, &place.table).await);
        let figures = Arc::clone(&figures);
        workers.spawn(async move {
            let mut ledgers = Vec::new();
            for n in (worker..runs).step_by(WORKERS as usize) {
                let seed = first.wrapping_add(n);
                let (place, figures) = (Arc::clone(&place), Arc::clone(&figures));
                match tokio::spawn(async move { run(&place, seed, &figures).await }).await {
                    Ok(ledger) => ledgers.push((seed, ledger)),
                    Err(error) => panic!("TALLYMARK_SEED={seed} makes it fail: {error}"),
                }
            }
            let report = place.report.lock().unwrap().clone();
            (ledgers, report)
        });
    }
    let mut sums = Report::default();
    let mut all = Vec::new();
    for (ledgers, report) in workers.join_all().await {
        all.extend(ledgers);
        sums += report;
    }
    println!("sent after {:?}", began.elapsed());
    let kept = place.kept().await;
    for (seed, ledger) in &all {
        let result = std::panic::catch_unwind(|| ledger.assert_kept(&kept));
        assert!(result.is_ok(), "TALLYMARK_SEED={seed} makes it fail");
    }
    let lines: u64 = kept.lake.values().sum();
    let Figures { events, kills, unavailable, retried, replays } = &*figures;
    print!("{sums}");
    println!(
        "{runs} random runs from seed {first} in {:?}: {events:?} events accepted, {lines} lines in the lake, {} calls, \
         {} faults, {kills:?} kills, {unavailable:?} answers 503, {retried:?} events to retry, {replays:?} replays",
        began.elapsed(),
        sums.total(),
        sums.faults(),
    );
}

// ---- the crowd ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_replaying_overlapping_batches_of_a_hot_key_are_exact() {
    let began = Instant::now();
    let place = Arc::new(Place::new().await);
    place.follow(Plan { contention: true, ..Plan::default() });
    let mut random = StdRng::seed_from_u64(rand::random());
    let batches: Vec<_> = (0..32)
        .map(|_| {
            let mut event = |key: &str| Made::new(&mut random, TYPES[1], key, Some(NOW));
            let events = (0..20).map(|n| event(if n < 15 { "buy" } else { "like" })).collect();
            Sent::new(&mut random, events, BTreeMap::new())
        })
        .collect();
    let batches = Arc::new(batches);
    // Four collectors, each with what it has learned so far.
    let collectors: Vec<_> = (0..4).map(|_| Arc::new(place.collector())).collect();
    let mut clients = JoinSet::new();
    for client in 0..64 {
        let (collector, batches) = (Arc::clone(&collectors[client % 4]), Arc::clone(&batches));
        clients.spawn(async move {
            let mut mine: Vec<_> = (client / 2..client / 2 + 8).map(|n| n % 32).collect();
            mine.shuffle(&mut rand::rng());
            let (mut receipts, mut retries) = (Vec::new(), 0);
            for n in mine {
                let receipt = loop {
                    match collector.commit(batches[n].prepared("shop", NOW)).await {
                        Ok(receipt) => break receipt,
                        Err(error) => assert!(error.is_unavailable() && retries < 100, "{error}"),
                    }
                    retries += 1;
                };
                receipts.push((n, receipt));
            }
            (receipts, retries)
        });
    }
    let answers = clients.join_all().await;
    let retries: u64 = answers.iter().map(|(_, retries)| retries).sum();
    let (mut ledger, mut told) = (Ledger::of("shop"), BTreeMap::new());
    for (n, receipt) in answers.iter().flat_map(|(receipts, _)| receipts) {
        let known = Receipt { duplicate: true, ..receipt.clone() };
        let (before, firsts) = told.entry(*n).or_insert_with(|| {
            assert!(ledger.enter(&batches[*n], receipt).is_empty());
            (known.clone(), 0)
        });
        assert_eq!(*before, known);
        *firsts += u64::from(!receipt.duplicate);
        assert!(*firsts <= 1, "two clients were told to be the first");
    }
    assert_eq!(told.len(), 32);
    ledger.assert_answered(&place).await;
    ledger.assert_kept(&place.kept().await);
    let report = place.proxy.report();
    print!("{report}");
    let of = |counts: &BTreeMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or_default();
    println!(
        "64 clients, 512 batches sent, 32 of them new, in {:?}: {} transactions, {} cancelled by conflicts, {} found the \
         batch known, {} splits tried, {retries} batches answered 503 and sent again",
        began.elapsed(),
        of(&report.calls, "TransactWriteItems"),
        of(&report.injected, "TransactWriteItems conflict"),
        of(&report.refused, "TransactWriteItems TransactionCanceledException"),
        of(&report.calls, "UpdateItem"),
    );
}

// ---- a real process ----

fn post(collector: &Collector, sent: &Sent) -> reqwest::RequestBuilder {
    collector.post("/v1/batch", &json!({})).body(sent.body.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_at_any_call_loses_no_event_and_counts_none_twice() {
    let began = Instant::now();
    let place = Place::new().await;
    let (lake, counters) = (format!("firehose:{}", place.stream), format!("dynamodb:{}", place.table));
    let endpoint = place.proxy.endpoint();
    let environment = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_REGION", local_aws::REGION),
        ("AWS_ACCESS_KEY_ID", local_aws::KEY),
        ("AWS_SECRET_ACCESS_KEY", local_aws::KEY),
    ];
    let mut collector = Collector::start_with(&environment, &["--lake", &lake, "--counters", &counters]);
    let mut random = StdRng::seed_from_u64(rand::random());
    let mut ledger = Ledger::of("shop");
    let mut kills = 0;
    let ways =
        [("hold", Late::Never), ("hold", Late::Meanwhile), ("hold", Late::AtTheEnd), ("hold-after", Late::Never)];
    for (n, (hold, late)) in (1..=6).flat_map(|n| ways.map(|way| (n, way))) {
        let sent = Sent::wide(&mut random, 130);
        place.follow(rules([format!("*#{n}={hold}")]));
        let first = tokio::select! {
            answer = post(&collector, &sent).send() => Some(answer.unwrap()),
            () = place.proxy.held() => None,
        };
        place.follow(Plan::default());
        if first.is_none() {
            collector.kill();
            kills += 1;
            match late {
                Late::Never => place.proxy.release(Release::Drop).await,
                Late::Meanwhile => {
                    let proxy = Arc::clone(&place.proxy);
                    drop(tokio::spawn(async move { proxy.release(Release::Deliver).await }));
                }
                Late::AtTheEnd => {}
            }
            collector.restart();
        }
        let mut again = post(&collector, &sent).send().await.unwrap();
        for _ in 0..20 {
            if again.status() != 503 {
                break;
            }
            again = post(&collector, &sent).send().await.unwrap();
        }
        assert_eq!(again.status(), 200);
        let receipt: Receipt = again.json().await.unwrap();
        if let Some(first) = first.filter(|first| first.status() == 200) {
            assert!(n > 5, "a read, a call to the lake, three transactions: {n}");
            assert_eq!(first.json::<Receipt>().await.unwrap(), Receipt { duplicate: false, ..receipt.clone() });
        }
        assert!(ledger.enter(&sent, &receipt).is_empty());
        place.proxy.release(Release::Deliver).await;
    }
    assert!(kills > 0);
    ledger.assert_answered(&place).await;
    ledger.assert_kept(&place.kept().await);
    println!("{kills} kills of a server in {:?}", began.elapsed());
}

// ---- the program ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_says_its_seed_and_what_it_has_done() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_tallymark-faults"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--to",
            local_aws::endpoint(),
            "--seed",
            "7",
            "--fault",
            "GetItem#2=throttle",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let endpoint = line.strip_prefix("listening on ").unwrap().split(',').next().unwrap();
    assert!(line.ends_with(", seed 7\n"), "{line}");
    let table = DynamoDb::new(&local_aws::config(endpoint).await, local_aws::new_table().await);
    let batch = Sent::wide(&mut StdRng::seed_from_u64(rand::random()), 60).prepared("shop", NOW);
    for _ in 0..2 {
        assert_eq!(table.known(&batch).await.unwrap(), None);
    }
    assert!(Command::new("kill").arg(process.id().to_string()).status().unwrap().success());
    let mut report = String::new();
    out.read_to_string(&mut report).unwrap();
    assert!(process.wait().unwrap().success());
    assert_eq!(report, "3 calls, 1 faults\n   calls       3  GetItem\ninjected       1  GetItem throttle\n");
}

#[test]
fn a_rule_that_cannot_be_meant_is_refused() {
    for rule in ["*=after", "PutRecordBatch#3=fail:2", "TransactWriteItems#2..=conflict:2", "GetItem#1=delay:0"] {
        assert!(rule.parse::<Rule>().is_ok(), "{rule}");
    }
    for rule in ["", "after", "*#0=cut", "*#x=cut", "*#1..2=cut", "*=explode", "*=cut:2", "*=fail:", "*=fail:-1"] {
        assert!(rule.parse::<Rule>().is_err(), "{rule}");
    }
}
