//! `kill -9` at random moments: every event whose `track` has returned is counted once.
//!
//! Processes track as fast as they can from several threads, in one directory, and print each id after `track` has
//! returned. The collector is up, slow, failing or down, so that processes end in every stage: append, seal, send,
//! answer, divide and adopt. At the end, one client delivers what is left.
#![cfg(all(unix, feature = "client", feature = "spool"))]

#[path = "faults/collector.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod collector;

use collector::{Act, Collector, Folder, PATIENCE, Request};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tallymark::{Backoff, Builder, Client, Custom, Durability, EventId, PageView};

const ROUNDS: usize = 48;
const THREADS: usize = 3;
/// Events of one thread. More would only have to be delivered.
const EVENTS: usize = 600;

const PART: &str = "TALLYMARK_KILL_PART";
const SPOOL: &str = "TALLYMARK_KILL_SPOOL";
const ENDPOINT: &str = "TALLYMARK_KILL_ENDPOINT";

/// How the collector is in a round.
const STATES: [&str; 5] = ["up", "slow", "failing", "moody", "gone"];

fn script(state: &AtomicUsize, request: &Request) -> Act {
    let chance = rand::random::<u8>();
    let a_while = Duration::from_millis(u64::from(chance) % 40);
    // A batch that is too large once is always too large: by the contract, a batch that may be counted gets no 413.
    let too_large = request.events() > 20 && request.batch_id().uuid().as_bytes()[15] < 32;
    match STATES[state.load(Ordering::Relaxed)] {
        state if too_large && state != "failing" => Act::Status(413, None),
        "slow" if chance < 128 => Act::AnswerLate(a_while),
        "slow" => Act::TakeLate(a_while),
        "failing" => Act::Status(503, None),
        "moody" => match chance % 6 {
            0 => Act::Status(503, None),
            1 if request.events() > 1 => Act::Partly { retry: vec![0], rejected: Vec::new() },
            2 => Act::Say("Welcome to the hotel's network"),
            3 => Act::AnswerLate(a_while),
            _ => Act::Take,
        },
        _ => Act::Take,
    }
}

#[test]
fn what_was_tracked_outlives_kill_9() {
    let start = Instant::now();
    let state = Arc::new(AtomicUsize::new(0));
    let current = Arc::clone(&state);
    let collector = Collector::start(move |request| script(&current, request));
    let folder = Folder::new();
    let mut acknowledged = HashSet::new();
    let (mut processes, mut adopted) = (0, 0);
    for round in 0..ROUNDS {
        let at = round % STATES.len();
        state.store(at, Ordering::Relaxed);
        let endpoint = match STATES[at] {
            // Nothing listens there.
            "gone" => "http://127.0.0.1:1".into(),
            _ => collector.endpoint(),
        };
        let part = if round % 7 == 6 { "power" } else { "process" };
        adopted += usize::from(!folder.events().is_empty());
        let lives: Vec<_> = (0..1 + round % 2).map(|_| Life::start(part, &endpoint, &folder)).collect();
        for mut life in lives {
            processes += 1;
            // Now and then so early that it has hardly begun.
            if round % 5 != 4 {
                life.first.recv_timeout(PATIENCE).unwrap();
            }
            std::thread::sleep(Duration::from_micros(rand::random_range(0..100_000)));
            acknowledged.extend(life.kill());
        }
    }
    let before = collector.ledger.counted().len();
    state.store(0, Ordering::Relaxed);
    let last = builder(&collector.endpoint(), &folder).timeout(PATIENCE).build_blocking().unwrap();
    let report = last.shutdown(2 * PATIENCE);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!((report.stats.dropped.total(), report.stats.rejected), (0, 0));
    assert!(folder.events().is_empty());

    let counted = collector.ledger.counted();
    let missing = acknowledged.iter().filter(|id| !counted.contains_key(id)).count();
    let twice = counted.values().filter(|times| **times > 1).count();
    let extra = counted.keys().filter(|id| !acknowledged.contains(id)).count();
    println!(
        "{ROUNDS} rounds, {processes} processes killed, {} events acknowledged: {missing} lost, {twice} counted twice; \
         {extra} more whose `track` had not returned. {} batches; {adopted} rounds began with something to adopt; \
         {} events were left for the last client. {:.1} s",
        acknowledged.len(),
        collector.ledger.batches(),
        counted.len() - before,
        start.elapsed().as_secs_f32()
    );
    assert_eq!((missing, twice), (0, 0));
    // Each thread may have stored one event before it could report it.
    assert!(extra <= processes * THREADS, "{extra}");
    assert!(adopted > ROUNDS / 4 && acknowledged.len() > 1_000, "the test has hardly tested anything");
}

fn builder(endpoint: &str, folder: &Folder) -> Builder {
    Client::builder(endpoint, "shop", "tms_key")
        .spool(&folder.0)
        .batch_events(40)
        .batch_age(Duration::from_millis(10))
        .backoff(Backoff { base: 2, max: 20 })
        .timeout(Duration::from_millis(100))
}

/// One process, until it is killed.
struct Life {
    child: Child,
    acknowledged: Option<JoinHandle<Vec<EventId>>>,
    first: mpsc::Receiver<()>,
}

impl Life {
    fn start(part: &str, endpoint: &str, folder: &Folder) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(PART, part)
            .env(SPOOL, &folder.0)
            .env(ENDPOINT, endpoint)
            // When it closes, the child knows that the test has ended.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        let (begun, first) = mpsc::channel();
        let acknowledged = std::thread::spawn(move || {
            let mut ids = Vec::new();
            for line in told.lines() {
                // A line that is no id was cut by the kill, or is the test harness's.
                if let Some(id) = line.ok().and_then(|line| EventId::parse(&line)) {
                    ids.push(id);
                    let _ = begun.send(());
                }
            }
            ids
        });
        Self { child, acknowledged: Some(acknowledged), first }
    }

    fn kill(&mut self) -> Vec<EventId> {
        assert!(self.child.try_wait().unwrap().is_none(), "it ended before it was killed");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.acknowledged.take().unwrap().join().unwrap()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the code of the other processes.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let folder = Folder(std::env::var_os(SPOOL).unwrap().into());
    let durability = if part == "power" { Durability::Power } else { Durability::Process };
    let client = builder(&std::env::var(ENDPOINT).unwrap(), &folder).durability(durability).build().unwrap();
    // End the line that the test harness has begun.
    writeln!(std::io::stdout()).unwrap();
    for _ in 0..THREADS {
        let client = client.clone();
        std::thread::spawn(move || {
            for number in 0..EVENTS {
                let id = match number % 2 {
                    0 => client.track(PageView::new("https://shop.example/").session_id("s1")),
                    _ => client.track(Custom::new("charge").property("value", number)),
                };
                writeln!(std::io::stdout(), "{}", id.unwrap()).unwrap();
            }
        });
    }
    // Until it is killed, or the test has ended. Nothing is cleaned up then.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    std::process::abort();
}
