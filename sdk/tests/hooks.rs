//! What a service notices of the client: hooks, confirmations, reports, threads and runtimes.
#![cfg(all(feature = "client", feature = "spool"))]

#[path = "faults/collector.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod collector;

use collector::{Act, Collector, Folder, PATIENCE, wait_until};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderName, HeaderValue};
use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tallymark::{Backoff, Builder, Client, Custom, Event, EventId, Outcome, Reason, Report, blocking};

fn builder(endpoint: &str) -> Builder {
    Client::builder(endpoint, "shop", "tms_secret")
        .backoff(Backoff { base: 1, max: 10 })
        .timeout(Duration::from_millis(500))
        .batch_age(Duration::from_millis(20))
}

/// What the hooks were called with.
#[derive(Clone, Default)]
struct Heard {
    losses: Arc<Mutex<HashMap<Reason, u64>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Heard {
    fn listen(&self, builder: Builder) -> Builder {
        let (losses, errors) = (Arc::clone(&self.losses), Arc::clone(&self.errors));
        builder.on_loss(move |reason, events| *losses.lock().unwrap().entry(reason).or_default() += events).on_error(
            move |error| {
                let kind = [
                    ("send", error.is_send()),
                    ("credentials", error.is_credentials()),
                    ("rejected", error.is_rejected()),
                    ("storage", error.is_storage()),
                ];
                let kind: Vec<_> = kind.iter().filter(|(_, is_it)| *is_it).map(|(kind, _)| *kind).collect();
                errors.lock().unwrap().push(kind.join("+"));
            },
        )
    }

    #[track_caller]
    fn expect_loss(&self, reason: Reason, events: u64) {
        wait_until("the loss is reported", || self.losses.lock().unwrap().get(&reason) == Some(&events));
        assert_eq!(self.losses.lock().unwrap().len(), 1);
    }

    #[track_caller]
    fn expect_error(&self, kind: &str) {
        wait_until("the error is reported", || self.errors.lock().unwrap().iter().any(|error| error == kind));
    }
}

fn track(client: &Client, events: usize) -> Vec<EventId> {
    (0..events).map(|number| client.track(Custom::new("n").property("number", number)).unwrap()).collect()
}

#[test]
fn every_loss_is_reported_with_its_reason() {
    let refusing = |status| Collector::start(move |_| Act::Status(status, None));
    for (status, reason) in
        [(400, Reason::Refused), (415, Reason::Refused), (422, Reason::Refused), (413, Reason::TooLarge)]
    {
        let (heard, collector) = (Heard::default(), refusing(status));
        let client = heard.listen(builder(&collector.endpoint())).build_blocking().unwrap();
        client.track(Event::custom("n")).unwrap();
        assert!(client.shutdown(PATIENCE).is_complete());
        heard.expect_loss(reason, 1);
        heard.expect_error("send");
    }

    let (heard, collector) = (Heard::default(), refusing(503));
    let client = heard.listen(builder(&collector.endpoint()).queue_bytes(2_000).batch_events(5)).build().unwrap();
    for _ in 0..100 {
        // Refused if every queued batch is in flight. That counts as dropped too.
        let refused = client.track(Event::custom("n")).err();
        assert!(refused.is_none_or(|error| error.is_queue_full()));
    }
    assert!(client.stats().dropped.total() > 50);
    heard.expect_loss(Reason::QueueFull, client.stats().dropped.total());

    let heard = Heard::default();
    let client =
        heard.listen(builder(&collector.endpoint()).queue_age(Duration::from_millis(50))).build_blocking().unwrap();
    client.track(Event::custom("n")).unwrap();
    assert!(client.flush(PATIENCE).is_complete());
    heard.expect_loss(Reason::Expired, 1);
}

#[test]
fn errors_of_the_disk_are_reported() {
    let collector = Collector::start(|_| Act::Status(503, None));
    let (heard, folder) = (Heard::default(), Folder::new());
    let client = heard.listen(builder(&collector.endpoint())).spool(&folder.0).build_blocking().unwrap();
    client.track(Event::custom("on disk")).unwrap();
    let report = client.flush(Duration::from_millis(20));
    assert_eq!((report.on_disk(), report.in_memory()), (1, 0));
    // Root may write anywhere, but not to a folder that does not exist.
    std::fs::remove_dir_all(&folder.0).unwrap();
    client.track(Event::custom("in memory")).unwrap();
    heard.expect_error("storage");
    heard.expect_loss(Reason::Storage, 1);
    let report = client.shutdown(Duration::from_millis(20));
    assert_eq!((report.on_disk(), report.in_memory()), (0, 1));
}

#[test]
fn errors_are_reported_by_kind() {
    for (act, kind) in [(401, "credentials"), (403, "credentials"), (503, "send"), (302, "send"), (200, "rejected")] {
        let heard = Heard::default();
        let collector = Collector::start(move |_| match act {
            200 => Act::Partly { retry: Vec::new(), rejected: vec![0] },
            status => Act::Status(status, None),
        });
        let client = heard.listen(builder(&collector.endpoint())).build().unwrap();
        client.track(Event::custom("n")).unwrap();
        heard.expect_error(kind);
    }
}

#[test]
fn hooks_may_panic_block_and_call_the_client() {
    let collector = Collector::start(|request| match request.text().contains("poison") {
        true => Act::Status(413, None),
        false => Act::Take,
    });
    let calls = Arc::new(AtomicUsize::new(0));
    let own: Arc<OnceLock<blocking::Client>> = Arc::default();
    let (counted, cell) = (Arc::clone(&calls), Arc::clone(&own));
    let client = builder(&collector.endpoint())
        .on_loss(move |_, _| {
            let client = cell.wait();
            match counted.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("a hook of ours, on purpose"),
                1 => {
                    client.track(Event::custom("from a hook")).unwrap();
                    assert!(client.flush(PATIENCE).is_complete());
                    counted.fetch_add(10, Ordering::Relaxed);
                }
                _ => std::thread::park(),
            }
        })
        .build_blocking()
        .unwrap();
    own.set(client.clone()).unwrap();
    for (round, calls_after) in [(0, 1), (1, 12), (2, 13)] {
        client.track(Event::custom("poison")).unwrap();
        wait_until("the hook is called", || calls.load(Ordering::Relaxed) == calls_after);
        client.track(Event::custom("another")).unwrap();
        assert!(client.flush(PATIENCE).is_complete(), "round {round}");
    }
    // The hook blocks forever now.
    for _ in 0..300 {
        client.track(Event::custom("poison")).unwrap();
        client.flush(PATIENCE);
    }
    client.track(Event::custom("the last")).unwrap();
    let report = client.flush(PATIENCE);
    assert!(report.is_complete());
    assert_eq!((report.stats.delivered, report.stats.dropped.total()), (5, 303));
    assert!(client.shutdown(Duration::from_millis(20)).is_complete());
}

#[test]
fn a_slow_hook_gets_everything_before_a_shutdown_returns() {
    const MORE: usize = 400;
    let collector = Collector::start(|_| Act::Status(413, None));
    let lost = Arc::new(AtomicUsize::new(0));
    let errors: Arc<Mutex<Vec<String>>> = Arc::default();
    let released = Arc::new(AtomicBool::new(false));
    let (counted, told, held) = (Arc::clone(&lost), Arc::clone(&errors), Arc::clone(&released));
    let client = builder(&collector.endpoint())
        .on_loss(move |_, events| _ = counted.fetch_add(events as usize, Ordering::Relaxed))
        .on_error(move |error| {
            told.lock().unwrap().push(error.to_string());
            wait_until("the hook may go on", || held.load(Ordering::Relaxed));
        })
        .build_blocking()
        .unwrap();
    let lose = || {
        client.track(Event::custom("n")).unwrap();
        assert!(client.flush(PATIENCE).is_complete());
    };
    lose();
    wait_until("the hook is called", || !errors.lock().unwrap().is_empty());
    (0..MORE).for_each(|_| lose());
    released.store(true, Ordering::Relaxed);
    client.shutdown(PATIENCE);
    assert_eq!(lost.load(Ordering::Relaxed), 1 + MORE);
    let errors = errors.lock().unwrap();
    let untold = 1 + MORE - (errors.len() - 1);
    assert_eq!(*errors.last().unwrap(), format!("{untold} more errors came while `on_error` was busy"));
    assert!(errors.len() > 200);
}

#[test]
fn a_hook_may_shut_down_its_client() {
    let collector = Collector::start(|_| Act::Status(413, None));
    let own: Arc<OnceLock<blocking::Client>> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let (cell, told) = (Arc::clone(&own), Arc::clone(&done));
    let client = builder(&collector.endpoint())
        .on_loss(move |_, _| {
            assert!(cell.wait().shutdown(Duration::MAX).is_complete());
            told.store(true, Ordering::Relaxed);
        })
        .build_blocking()
        .unwrap();
    own.set(client.clone()).unwrap();
    client.track(Event::custom("n")).unwrap();
    wait_until("the hook has shut it down", || done.load(Ordering::Relaxed));
    assert!(client.track(Event::custom("n")).unwrap_err().is_closed());
}

#[test]
fn a_receipt_that_does_not_add_up_is_reported_and_the_batch_is_kept() {
    for (retry, rejected) in [(vec![1], vec![]), (vec![0, 0], vec![]), (vec![0], vec![0])] {
        let collector = Collector::start(move |_| Act::Partly { retry: retry.clone(), rejected: rejected.clone() });
        let heard = Heard::default();
        let client = heard.listen(builder(&collector.endpoint())).build().unwrap();
        client.track(Event::custom("n")).unwrap();
        heard.expect_error("send");
        assert_eq!(client.stats().queued, 1);
    }
}

#[test]
fn a_blocking_client_works_inside_a_runtime_and_outside() {
    let collector = Collector::start(|_| Act::Take);
    let work = || {
        let client = builder(&collector.endpoint()).build_blocking().unwrap();
        client.track(Event::custom("n")).unwrap();
        assert_eq!(client.track_confirmed(Event::custom("n")).unwrap(), Outcome::Delivered);
        assert!(client.flush(PATIENCE).is_complete());
        client.set_key("other").unwrap();
        client.track(Event::custom("n")).unwrap();
        let report = client.shutdown(PATIENCE);
        assert_eq!((report.stats.delivered, report.stats.queued, report.is_complete()), (3, 0, true));
        assert!(client.track_confirmed(Event::custom("n")).unwrap_err().is_closed());
    };
    work();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { work() });
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    threads.block_on(async { tokio::spawn(async {}).await.unwrap() });
    threads.block_on(async { work() });
}

/// Like `wait_until`, but lets other tasks run.
async fn once(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_confirmation_says_what_became_of_the_event() {
    let collector = Collector::start(|request| match request.text() {
        text if text.contains("wrong") => Act::Partly { retry: Vec::new(), rejected: vec![0] },
        text if text.contains("poison") => Act::Status(413, None),
        text if text.contains("stuck") => Act::Status(503, None),
        // Refused once, then accepted.
        text if text.contains("again") && request.number == 1 => Act::Status(429, None),
        _ => Act::Take,
    });
    let client = builder(&collector.endpoint()).build().unwrap();
    let confirm = async |name: &str| client.track_confirmed(Event::custom(name)).await;
    assert_eq!(confirm("good").await.unwrap(), Outcome::Delivered);
    assert_eq!(confirm("again").await.unwrap(), Outcome::Delivered);
    assert_eq!(confirm("poison").await.unwrap(), Outcome::Dropped(Reason::TooLarge));
    let Outcome::Rejected { code, message } = confirm("wrong").await.unwrap() else { panic!("not rejected") };
    assert_eq!((code.as_str(), message.as_str()), ("name_too_long", "`name` is too long"));
    assert!(confirm("").await.unwrap_err().is_invalid());

    let (stuck, report) = tokio::join!(confirm("stuck"), async {
        once("some sends have failed", || collector.ledger.requests() >= 8).await;
        client.shutdown(Duration::from_millis(50)).await
    });
    assert!(stuck.unwrap_err().is_closed());
    assert_eq!((report.stats.queued, report.in_memory(), report.on_disk()), (1, 1, 0));
    assert!(confirm("late").await.unwrap_err().is_closed());
}

#[tokio::test]
async fn each_confirmation_is_about_its_own_event() {
    let all_tracked = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&all_tracked);
    let collector = Collector::start(move |request| match request.number {
        0 => {
            wait_until("all are tracked", || held.load(Ordering::Relaxed));
            Act::Take
        }
        // Of the four events, the second is rejected, and the first and the last are asked for again. Then the last is
        // rejected.
        1 => Act::Partly { retry: vec![0, 3], rejected: vec![1] },
        _ => Act::Partly { retry: Vec::new(), rejected: vec![1] },
    });
    let client = builder(&collector.endpoint()).batch_age(PATIENCE).timeout(PATIENCE).build().unwrap();
    // All events have the same id, which callers may choose.
    let id = EventId::new(1, &mut rand::random::<u64>);
    let confirm = async || match client.track_confirmed(Custom::new("n").event_id(id)).await.unwrap() {
        Outcome::Delivered => "delivered",
        Outcome::Rejected { .. } => "rejected",
        other => panic!("{other:?}"),
    };
    let others = async {
        once("the first is in flight", || collector.ledger.requests() > 0).await;
        tokio::join!(confirm(), confirm(), confirm(), confirm(), async {
            once("all are tracked", || client.stats().made == 5).await;
            all_tracked.store(true, Ordering::Relaxed);
        })
    };
    let (first, others) = tokio::join!(confirm(), others);
    assert_eq!(first, "delivered");
    assert_eq!(others, ("delivered", "rejected", "delivered", "rejected", ()));
}

#[test]
fn a_confirmation_comes_also_when_the_spool_cannot_be_read() {
    for (sent, expected) in [(true, Outcome::Delivered), (false, Outcome::Dropped(Reason::Storage))] {
        let gone = Arc::new(AtomicBool::new(false));
        let held = Arc::clone(&gone);
        let collector = Collector::start(move |_| {
            wait_until("the files are gone", || held.load(Ordering::Relaxed));
            if sent { Act::Take } else { Act::Status(503, None) }
        });
        let folder = Folder::new();
        let client = builder(&collector.endpoint()).timeout(PATIENCE).spool(&folder.0).build_blocking().unwrap();
        std::thread::scope(|scope| {
            let confirmation = scope.spawn(|| client.track_confirmed(Event::custom("n")).unwrap());
            wait_until("it is in flight", || collector.ledger.requests() > 0);
            std::fs::remove_dir_all(&folder.0).unwrap();
            gone.store(true, Ordering::Relaxed);
            assert_eq!(confirmation.join().unwrap(), expected);
        });
    }
}

#[tokio::test]
async fn confirmations_at_the_same_time_travel_together() {
    const CONFIRMATIONS: usize = 400;
    let all_tracked = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&all_tracked);
    let collector = Collector::start(move |_| {
        wait_until("all are tracked", || held.load(Ordering::Relaxed));
        Act::Take
    });
    let client = builder(&collector.endpoint()).batch_age(PATIENCE).timeout(PATIENCE).build().unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..CONFIRMATIONS {
        let client = client.clone();
        waiting.spawn(async move { client.track_confirmed(Event::custom("n")).await.unwrap() });
    }
    once("all are tracked", || client.stats().made == CONFIRMATIONS as u64).await;
    all_tracked.store(true, Ordering::Relaxed);
    for outcome in waiting.join_all().await {
        assert_eq!(outcome, Outcome::Delivered);
    }
    assert_eq!(collector.ledger.counted().len(), CONFIRMATIONS);
    // The first one alone, the others by hundreds.
    assert!(collector.ledger.batches() <= 5, "{} batches", collector.ledger.batches());
}

#[test]
fn what_is_tracked_while_somebody_shuts_down_is_delivered_or_refused() {
    const ROUNDS: usize = 200;
    const THREADS: usize = 3;
    // Some answers are late, so that shutdowns occur in every state.
    let collector = Collector::start(|request| match request.number % 3 {
        0 => Act::TakeLate(Duration::from_millis(2)),
        _ => Act::Take,
    });
    let http = reqwest::Client::new();
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let client = builder(&collector.endpoint()).batch_events(7).http_client(http.clone()).build_blocking().unwrap();
        let barrier = Barrier::new(THREADS + 1);
        let (accepted, report) = std::thread::scope(|scope| {
            let trackers: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut accepted = Vec::new();
                        barrier.wait();
                        loop {
                            match client.track(Event::custom("n")) {
                                Ok(id) => accepted.push(id),
                                Err(error) if error.is_closed() => return accepted,
                                Err(error) => panic!("{error}"),
                            }
                        }
                    })
                })
                .collect();
            barrier.wait();
            std::thread::sleep(Duration::from_micros(round as u64 % 20 * 10));
            let report = client.shutdown(PATIENCE);
            let accepted: Vec<_> = trackers.into_iter().flat_map(|tracker| tracker.join().unwrap()).collect();
            (accepted, report)
        });
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.stats.made, accepted.len() as u64);
        assert_eq!(report.stats.delivered, report.stats.made);
        all.extend(accepted);
    }
    let counted = collector.ledger.counted();
    assert_eq!(counted.len(), all.len());
    assert!(all.iter().all(|id| counted.get(id) == Some(&1)));
}

#[tokio::test]
async fn everybody_who_shuts_down_gets_a_true_report() {
    for works in [true, false] {
        let collector = Collector::start(move |_| if works { Act::Take } else { Act::Status(503, None) });
        let client = builder(&collector.endpoint()).build().unwrap();
        track(&client, 10);
        let wait = if works { PATIENCE } else { Duration::from_millis(50) };
        let (one, other) = tokio::join!(client.shutdown(wait), client.shutdown(wait));
        for report in [one, other, client.flush(wait).await, client.shutdown(wait).await] {
            let left = if works { 0 } else { 10 };
            assert_eq!((report.is_complete(), report.in_memory(), report.on_disk()), (works, left, 0));
        }
    }
}

#[tokio::test]
async fn no_wait_is_too_long() {
    let collector = Collector::start(|request| match request.number {
        0 => Act::Status(503, Some(u64::MAX.to_string())),
        _ => Act::Take,
    });
    let client = builder(&collector.endpoint())
        .batch_age(Duration::MAX)
        .queue_age(Duration::MAX)
        .timeout(Duration::MAX)
        .build()
        .unwrap();
    track(&client, 1);
    assert!(client.flush(Duration::MAX).await.is_complete());
    let forever = builder(&collector.endpoint()).backoff(Backoff { base: u64::MAX, max: u64::MAX }).build().unwrap();
    track(&forever, 1);
    assert!(forever.shutdown(Duration::MAX).await.is_complete());

    // A client that waits forever does no work.
    let failing = Collector::start(|_| Act::Status(503, Some(u64::MAX.to_string())));
    let waiting = builder(&failing.endpoint()).backoff(Backoff { base: u64::MAX, max: u64::MAX }).build().unwrap();
    track(&waiting, 1);
    assert!(!waiting.flush(Duration::from_millis(200)).await.is_complete());
    assert_eq!(failing.ledger.requests(), 1);
}

#[tokio::test]
async fn a_disabled_client_checks_and_a_recording_one_notes() {
    let (recording, notes) = Client::recording();
    for client in [Client::disabled(), recording.clone()] {
        client.track(Event::custom("a")).unwrap();
        assert!(client.track(Event::custom("")).unwrap_err().is_invalid());
        assert_eq!(client.track_confirmed(Event::custom("b")).await.unwrap(), Outcome::Delivered);
        client.set_key("any").unwrap();
        assert!(client.flush(PATIENCE).await.is_complete());
        assert!(client.shutdown(PATIENCE).await.is_complete());
        let client = blocking::Client::from(client);
        assert!(client.flush(PATIENCE).is_complete());
        assert!(client.shutdown(PATIENCE).is_complete());
    }
    assert_eq!(notes.events(), [Event::custom("a"), Event::custom("b")]);
}

#[test]
fn four_threads_track_with_every_event_synced() {
    const THREADS: usize = 4;
    const EVENTS: usize = 250;
    let (collector, folder) = (Collector::start(|_| Act::Take), Folder::new());
    let client = builder(&collector.endpoint())
        .spool(&folder.0)
        .durability(tallymark::Durability::Power)
        .batch_events(30)
        .build_blocking()
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..EVENTS).for_each(|_| _ = client.track(Event::custom("n")).unwrap()));
        }
    });
    let report = client.shutdown(PATIENCE);
    assert!(report.is_complete());
    assert_eq!(report.stats.delivered, (THREADS * EVENTS) as u64);
    assert_eq!(collector.ledger.counted().len(), THREADS * EVENTS);
    assert!(folder.events().is_empty());
}

#[test]
fn the_client_outlives_the_runtime_that_built_it() {
    let collector = Collector::start(|_| Act::Take);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // It keeps connections of the first runtime.
    let client = runtime.block_on(async {
        let client = builder(&collector.endpoint()).http_client(reqwest::Client::new()).build().unwrap();
        assert_eq!(client.track_confirmed(Event::custom("n")).await.unwrap(), Outcome::Delivered);
        client
    });
    drop(runtime);
    let client = blocking::Client::from(client);
    assert_eq!(client.track_confirmed(Event::custom("n")).unwrap(), Outcome::Delivered);
    assert!(client.shutdown(PATIENCE).is_complete());
}

#[test]
fn a_resolver_that_panics_costs_a_try_and_no_event() {
    const PANICS: usize = 6;
    struct Moody(AtomicUsize, SocketAddr);
    impl Resolve for Moody {
        fn resolve(&self, _: Name) -> Resolving {
            assert!(self.0.fetch_add(1, Ordering::Relaxed) >= PANICS, "a resolver of ours, on purpose");
            let found: Addrs = Box::new([self.1].into_iter());
            Box::pin(std::future::ready(Ok(found)))
        }
    }
    let (collector, heard) = (Collector::start(|_| Act::Take), Heard::default());
    let resolver = Moody(AtomicUsize::new(0), collector.address);
    let http = reqwest::Client::builder().dns_resolver(Arc::new(resolver)).build().unwrap();
    let endpoint = format!("http://collector.example:{}{}", collector.address.port(), collector.ledger.path);
    // More panics than requests in flight at the same time.
    let client = heard.listen(builder(&endpoint)).in_flight(2).batch_events(1).http_client(http).build().unwrap();
    track(&client, 10);
    let client = blocking::Client::from(client);
    assert!(client.flush(PATIENCE).is_complete());
    assert_eq!(client.stats().delivered, 10);
    heard.expect_error("send");
}

/// As a guard in a thread does that tracks the end of the thread.
#[test]
fn a_thread_may_track_while_it_ends() {
    struct Guard(Client);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.track(Event::custom("at the end")).unwrap();
        }
    }
    thread_local! {
        static GUARD: RefCell<Option<Guard>> = const { RefCell::new(None) };
    }
    let collector = Collector::start(|_| Act::Take);
    let client = builder(&collector.endpoint()).build().unwrap();
    let (recording, notes) = Client::recording();
    for client in [client.clone(), recording] {
        std::thread::spawn(move || {
            GUARD.set(Some(Guard(client.clone())));
            client.track(Event::custom("before")).unwrap();
        })
        .join()
        .unwrap();
    }
    assert_eq!((client.stats().made, notes.events().len()), (2, 2));
}

#[test]
fn where_no_thread_can_be_started_that_is_an_error_also_inside_a_runtime() {
    const INSIDE: &str = "TALLYMARK_NO_THREADS";
    let name = "where_no_thread_can_be_started_that_is_an_error_also_inside_a_runtime";
    if std::env::var_os(INSIDE).is_none() {
        // A process in which no thread gets its stack. With one test thread, the test runs in the main thread.
        let mut process = Command::new(std::env::current_exe().unwrap());
        process
            .args([name, "--exact", "--test-threads=1"])
            .env(INSIDE, "1")
            .env("RUST_MIN_STACK", (1u64 << 50).to_string());
        let output = process.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refused = runtime.block_on(async { builder("http://127.0.0.1:9").build().unwrap_err() });
    assert!(refused.is_config());
    assert!(refused.source().is_some());
}

#[test]
fn a_report_tells_where_events_are() {
    let collector = Collector::start(|_| Act::Status(503, None));
    let where_are = |report: Report| (report.is_complete(), report.on_disk(), report.in_memory());
    let memory = builder(&collector.endpoint()).build_blocking().unwrap();
    assert_eq!(where_are(memory.flush(PATIENCE)), (true, 0, 0));
    memory.track(Event::custom("n")).unwrap();
    assert_eq!(where_are(memory.flush(Duration::from_millis(20))), (false, 0, 1));
    assert_eq!(where_are(memory.shutdown(Duration::from_millis(20))), (false, 0, 1));

    let folder = Folder::new();
    let disk = builder(&collector.endpoint()).spool(&folder.0).build_blocking().unwrap();
    disk.track(Event::custom("n")).unwrap();
    disk.track(Event::custom("n")).unwrap();
    let start = Instant::now();
    assert_eq!(where_are(disk.shutdown(Duration::from_millis(20))), (false, 2, 0));
    assert!(start.elapsed() < Duration::from_secs(5), "a shutdown keeps to its time");
    assert_eq!(folder.events().len(), 2);
    // The directory is free at once.
    let next = builder(&collector.endpoint()).spool(&folder.0).build_blocking().unwrap();
    assert_eq!((next.stats().adopted, next.stats().queued), (2, 2));
}

#[test]
fn handles_go_between_threads() {
    fn check<T: Send + Sync + Clone + 'static>() {}
    check::<Client>();
    check::<blocking::Client>();
    check::<tallymark::Recording>();
    check::<Report>();
    check::<Outcome>();
}

#[test]
fn nothing_that_can_be_printed_shows_the_key() {
    let shown: Arc<Mutex<String>> = Arc::default();
    let errors = Arc::clone(&shown);
    let collector = Collector::start(|request| match request.number {
        0 => Act::Status(503, None),
        1 => Act::Say("junk"),
        2 => Act::Partly { retry: Vec::new(), rejected: vec![0] },
        _ => Act::Status(401, None),
    });
    let secret = HeaderValue::from_static("tms_secret");
    let builder =
        builder(&collector.endpoint()).header(HeaderName::from_static("x-key"), secret).on_error(move |error| {
            let mut source: Option<&dyn std::error::Error> = Some(error);
            while let Some(cause) = source {
                *errors.lock().unwrap() += &format!("{cause} {cause:?}\n");
                source = cause.source();
            }
        });
    let mut text = format!("{builder:?} {builder:#?}");
    let client = builder.build_blocking().unwrap();
    let no_name = Client::builder(collector.endpoint(), "no:name", "tms_secret").build().unwrap_err();
    text += &format!("{client:?} {no_name:?}");
    client.track(Event::custom("n")).unwrap();
    client.flush(PATIENCE);
    client.track(Event::custom("n")).unwrap();
    wait_until("the credentials are refused", || shown.lock().unwrap().contains("username and key"));
    drop(collector);
    client.set_key("tms_secret").unwrap();
    // The collector is gone.
    wait_until("the credentials are refused", || shown.lock().unwrap().contains("could not be sent"));
    let report = client.shutdown(Duration::ZERO);
    text += &format!("{report:?} {client:?} {:?}", client.track(Event::custom("n")).unwrap_err());
    text += &shown.lock().unwrap();
    // The key, and as Basic auth has it.
    for secret in ["tms_secret", "dG1zX3NlY3JldA", "c2hvcDp0bXNfc2VjcmV0"] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn the_services_headers_are_sent_beside_the_clients() {
    let collector = Collector::start(|request| {
        let values = |name| request.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let right = values("x-tenant") == [b"seven"] && values("authorization") == [b"Basic c2hvcDp0bXNfc2VjcmV0"];
        if right { Act::Take } else { Act::Status(400, None) }
    });
    let mut builder = builder(&collector.endpoint());
    for (name, value) in [("x-tenant", "six"), ("x-tenant", "seven"), ("authorization", "Bearer of mine")] {
        builder = builder.header(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let client = builder.build_blocking().unwrap();
    assert_eq!(client.track_confirmed(Event::custom("n")).unwrap(), Outcome::Delivered);
}

#[test]
#[cfg(feature = "gzip")]
fn large_bodies_are_compressed_and_sent_plain_if_that_is_not_accepted() {
    let large = || Custom::new("n").property("text", "x".repeat(4_000));
    let is_gzip = |request: &collector::Request| request.body.starts_with(&[0x1f, 0x8b]);
    for refusal in [None, Some(415), Some(400)] {
        let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
        let noted = Arc::clone(&seen);
        let collector = Collector::start(move |request| {
            noted.lock().unwrap().push(is_gzip(request));
            assert_eq!(is_gzip(request), request.headers.contains_key("content-encoding"));
            match refusal {
                Some(status) if is_gzip(request) => Act::Status(status, None),
                _ => Act::Take,
            }
        });
        let client = builder(&collector.endpoint()).gzip_above(1_000).build_blocking().unwrap();
        for event in [Custom::new("small"), large(), large()] {
            assert_eq!(client.track_confirmed(event).unwrap(), Outcome::Delivered);
        }
        // It tries compression only once.
        let expected: &[bool] = if refusal.is_none() { &[false, true, true] } else { &[false, true, false, false] };
        assert_eq!(*seen.lock().unwrap(), expected);
        assert_eq!(collector.ledger.counted().len(), 3);
    }

    // A gateway that passes compressed bodies on as text damages them, and the collector behind it answers 408. A
    // network that is too slow for any body is answered the same, and is no reason to stop.
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let collector = Collector::start(move |request| {
        noted.lock().unwrap().push(is_gzip(request));
        if request.number < 2 || is_gzip(request) { Act::Status(408, None) } else { Act::Take }
    });
    let client = builder(&collector.endpoint()).gzip_above(1_000).build_blocking().unwrap();
    for _ in 0..2 {
        assert_eq!(client.track_confirmed(large()).unwrap(), Outcome::Delivered);
    }
    assert_eq!(*seen.lock().unwrap(), [true, false, true, false, false]);
    assert_eq!(collector.ledger.counted().len(), 2);

    // A batch that is refused uncompressed too was not refused for its compression, so compression continues.
    let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let collector = Collector::start(move |request| {
        noted.lock().unwrap().push(is_gzip(request));
        Act::Status(400, None)
    });
    let client = builder(&collector.endpoint()).gzip_above(1_000).build_blocking().unwrap();
    for _ in 0..2 {
        assert_eq!(client.track_confirmed(large()).unwrap(), Outcome::Dropped(Reason::Refused));
    }
    assert_eq!(*seen.lock().unwrap(), [true, false, true, false]);
}

#[test]
fn a_key_that_cannot_be_right_is_refused_at_once() {
    let client = Client::builder("http://127.0.0.1:9", "shop", "key").build().unwrap();
    assert!(client.set_key("with the end of its line\n").unwrap_err().is_config());
    client.set_key("käse").unwrap();
    for (username, key) in [("shop", "key\n"), ("shop\0", "key"), ("sh:op", "key")] {
        assert!(Client::builder("http://127.0.0.1:9", username, key).build().unwrap_err().is_config());
    }
}
