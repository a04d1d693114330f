//! The fault table: what happens to events when something breaks. It prints the table in FAULTS.md:
//!
//! ```sh
//! cargo test -p tallymark --test faults -- --nocapture
//! ```
#![cfg(all(unix, feature = "client", feature = "spool"))]

#[path = "faults/collector.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod collector;

use collector::{Act, Collector, Folder, Ledger, PATIENCE, Request, wait_until};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tallymark::blocking::Client;
use tallymark::{Backoff, Builder, ButtonClick, Custom, EventId, Losses, PageView, Reason, Report};

/// The number of events that a client tracks in one row.
const EVENTS: usize = 200;

#[test]
fn the_fault_table() {
    const ROWS: &[Fault] = &[
        ("503 for a while", unavailable),
        ("429 with `Retry-After` in seconds", too_many_for_seconds),
        ("429 with `Retry-After` as a date", too_many_until_a_date),
        ("connection refused, then the collector is up", refused),
        ("connection reset in the middle of a body", reset),
        ("answer lost after the collector has counted", answer_lost),
        ("answer cut off in the middle", answer_cut),
        ("answer later than the time limit", answer_late),
        ("a captive portal answers 200", captive_portal),
        ("events asked for again, one by one", asked_again),
        ("413: batches are too large", too_large),
        ("413: one event is too large", poisoned),
        ("401, then `set_key`", unauthorized),
        ("401 to the old key after `set_key`", unauthorized_late),
        ("403 until the end", forbidden),
        ("the name is not found, then it is", no_name),
        ("the name is not found; another client follows", no_name_until_the_end),
        ("dropped without a flush; another client follows", dropped),
        ("SIGTERM; another client follows", terminated),
        ("kill -9; another client follows", killed),
        ("disk full", disk_full),
        ("no file descriptors left for a while", no_descriptors),
        ("two processes, one directory", two_processes),
    ];
    // The rows mostly wait, so they run in parallel.
    let rows: Vec<Row> = std::thread::scope(|scope| {
        let running: Vec<_> = ROWS.iter().map(|(_, row)| scope.spawn(row)).collect();
        running
            .into_iter()
            .zip(ROWS)
            .map(|(row, (fault, _))| row.join().unwrap_or_else(|_| panic!("failed: {fault}")))
            .collect()
    });
    let mut table = String::from(
        "| fault | made | counted | lost | counted twice | still on disk | dropped and reported |\n|---|--:|--:|--:|--:|--:|---|\n",
    );
    for ((fault, _), Row { made, counted, lost, twice, on_disk, dropped }) in ROWS.iter().zip(rows) {
        let dropped: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| dropped.of(**reason) > 0)
            .map(|reason| format!("{} {}", dropped.of(*reason), reason.as_str()))
            .collect();
        table += &format!("| {fault} | {made} | {counted} | {lost} | {twice} | {on_disk} | {} |\n", dropped.join(", "));
    }
    println!("{table}");
    assert!(include_str!("../FAULTS.md").contains(&table), "FAULTS.md holds another table");
}

type Fault = (&'static str, fn() -> Row);

struct Row {
    made: usize,
    counted: usize,
    /// Neither counted, nor on disk, nor reported as dropped.
    lost: usize,
    twice: usize,
    on_disk: usize,
    dropped: Losses,
}

/// Compares the ids that `track` returned with those in the collector and in the files.
#[track_caller]
fn compare(made: &[EventId], ledger: &Ledger, folder: &Folder, dropped: Losses) -> Row {
    let made: HashSet<_> = made.iter().copied().collect();
    let counted = ledger.counted();
    // A counted batch may still be on disk, if its answer was lost.
    let mut on_disk = folder.events();
    on_disk.retain(|id| !counted.contains_key(id));
    assert!(counted.keys().chain(&on_disk).all(|id| made.contains(id)), "there is more than was made");
    let missing = made.iter().filter(|id| !counted.contains_key(id) && !on_disk.contains(id)).count();
    let row = Row {
        made: made.len(),
        counted: counted.len(),
        lost: missing - dropped.total() as usize,
        twice: counted.values().filter(|times| **times > 1).count(),
        on_disk: on_disk.len(),
        dropped,
    };
    assert_eq!((row.lost, row.twice), (0, 0));
    row
}

/// A row in which every event arrives.
#[track_caller]
fn all_counted(made: &[EventId], ledger: &Ledger, folder: &Folder) -> Row {
    let row = compare(made, ledger, folder, Losses::default());
    assert_eq!((row.counted, row.on_disk), (made.len(), 0));
    assert!(folder.events().is_empty(), "what was answered for is removed");
    row
}

fn builder(endpoint: &str, folder: &Folder) -> Builder {
    tallymark::Client::builder(endpoint, "shop", "old")
        .spool(&folder.0)
        .batch_events(20)
        .batch_age(Duration::from_millis(50))
        .backoff(Backoff { base: 4, max: 40 })
        .timeout(Duration::from_millis(400))
}

fn track(client: &Client, events: usize) -> Vec<EventId> {
    let track = |number| match number % 3 {
        0 => client.track(PageView::new("https://shop.example/").title("Shop").session_id("s1")),
        1 => client.track(ButtonClick::new("buy").session_id("s1")),
        _ => client.track(Custom::new("charge").property("value", number).session_id("s1")),
    };
    (0..events).map(|number| track(number).unwrap()).collect()
}

#[track_caller]
fn finish(client: &Client) -> Report {
    let report = client.shutdown(PATIENCE);
    assert!(report.is_complete(), "{report:?}");
    report
}

/// Tracks, delivers, and compares.
fn through(script: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Row {
    let (collector, folder) = (Collector::start(script), Folder::new());
    let client = builder(&collector.endpoint(), &folder).build_blocking().unwrap();
    let made = track(&client, EVENTS);
    finish(&client);
    all_counted(&made, &collector.ledger, &folder)
}

fn unavailable() -> Row {
    through(|request| if request.number < 12 { Act::Status(503, None) } else { Act::Take })
}

fn too_many_for_seconds() -> Row {
    too_many(|| "1".into())
}

fn too_many_until_a_date() -> Row {
    // A date has whole seconds, so this is at least one second.
    too_many(|| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2)))
}

/// One batch gets one 429, and the client waits as long as the answer asks for.
fn too_many(retry_after: fn() -> String) -> Row {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let script = move |request: &Request| {
        seen.lock().unwrap().push(request.at);
        if request.number == 0 { Act::Status(429, Some(retry_after())) } else { Act::Take }
    };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let client = builder(&collector.endpoint(), &folder)
        .batch_events(EVENTS)
        .batch_age(PATIENCE)
        .backoff(Backoff { base: 4, max: 5_000 })
        .build_blocking()
        .unwrap();
    let made = track(&client, EVENTS);
    finish(&client);
    let times = times.lock().unwrap();
    assert!(times[1] - times[0] > Duration::from_millis(990), "came back too early: {:?}", times[1] - times[0]);
    all_counted(&made, &collector.ledger, &folder)
}

fn refused() -> Row {
    let folder = Folder::new();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ledger = Arc::<Ledger>::default();
    let client = builder(&format!("http://{address}{}", ledger.path), &folder).build_blocking().unwrap();
    let made = track(&client, EVENTS);
    wait_until("some sends have failed", || client.stats().failures > 3);
    let mut listener = None;
    wait_until("the port is to be had again", || {
        listener = TcpListener::bind(address).ok();
        listener.is_some()
    });
    let collector = Collector::open(listener.unwrap(), ledger, |_| Act::Take);
    finish(&client);
    all_counted(&made, &collector.ledger, &folder)
}

/// What the network does to a connection.
#[derive(Clone, Copy)]
enum Cut {
    /// Resets it after this many bytes of the request.
    Request(usize),
    /// Closes it when the answer arrives.
    Answer,
    /// Closes it after the head and some bytes of the answer.
    AnswerBody(usize),
}

/// A proxy to the collector that cuts the first connections.
fn network(collector: &Collector, cuts: Vec<Cut>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}{}", listener.local_addr().unwrap(), collector.ledger.path);
    let collector = collector.address;
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    // Ends with the test.
    std::thread::spawn(move || {
        for (number, near) in listener.incoming().enumerate() {
            let (near, cut, count) = (near.unwrap(), cuts.get(number).copied(), Arc::clone(&count));
            std::thread::spawn(move || {
                let _ = pass(near, collector, cut);
                count.fetch_add(usize::from(cut.is_some()), Ordering::Relaxed);
            });
        }
    });
    (endpoint, done)
}

fn pass(mut near: TcpStream, collector: SocketAddr, cut: Option<Cut>) -> std::io::Result<()> {
    if let Some(Cut::Request(bytes)) = cut {
        near.read_exact(&mut vec![0; bytes])?;
        // Closing a socket with unread bytes resets the connection.
        near.peek(&mut [0])?;
        return Ok(());
    }
    let mut far = TcpStream::connect(collector)?;
    let (mut request, mut onward) = (near.try_clone()?, far.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut request, &mut onward);
        onward.shutdown(Shutdown::Both)
    });
    let Some(cut) = cut else {
        std::io::copy(&mut far, &mut near)?;
        return near.shutdown(Shutdown::Both);
    };
    let mut answer = Vec::new();
    loop {
        let mut some = [0; 512];
        let read = far.read(&mut some)?;
        assert!(read > 0, "the answer is shorter than expected");
        answer.extend_from_slice(&some[..read]);
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        match (cut, head) {
            (Cut::AnswerBody(bytes), Some(head)) if answer.len() >= head + bytes => {
                near.write_all(&answer[..head + bytes])?;
                return near.shutdown(Shutdown::Both);
            }
            (Cut::Answer, _) => return near.shutdown(Shutdown::Both),
            _ => {}
        }
    }
}

fn through_network(cuts: Vec<Cut>) -> Row {
    let (collector, folder) = (Collector::start(|_| Act::Take), Folder::new());
    let expected = cuts.len();
    let (endpoint, cut) = network(&collector, cuts);
    let client = builder(&endpoint, &folder).build_blocking().unwrap();
    let made = track(&client, EVENTS);
    finish(&client);
    assert_eq!(cut.load(Ordering::Relaxed), expected, "connections were cut");
    all_counted(&made, &collector.ledger, &folder)
}

fn reset() -> Row {
    through_network(vec![Cut::Request(1_500); 6])
}

fn answer_lost() -> Row {
    through_network(vec![Cut::Answer; 6])
}

fn answer_cut() -> Row {
    through_network(vec![Cut::AnswerBody(0), Cut::AnswerBody(1), Cut::AnswerBody(60), Cut::AnswerBody(100)])
}

fn answer_late() -> Row {
    through(|request| match request.number {
        0 | 3 => Act::AnswerLate(PATIENCE),
        // Counted after the client has given up, perhaps after its retry.
        1 | 4 => Act::TakeLate(Duration::from_millis(600)),
        _ => Act::Take,
    })
}

fn captive_portal() -> Row {
    through(|request| match request.number {
        0..4 => Act::Say("<!doctype html><title>Welcome</title>Please accept our terms."),
        4 => Act::Say(""),
        5 => Act::Say("{}"),
        6 => Act::Say(
            r#"{"batch_id":"019aa323-6c18-7fff-bfff-ffffffffffff","received_at":0,"duplicate":false,"accepted":20,"rejected":[],"retry":[]}"#,
        ),
        7 => Act::Status(302, None),
        8 => Act::Status(511, None),
        _ => Act::Take,
    })
}

/// Tracks and delivers alternately, so that batches are divided while others are open.
fn through_by_turns(script: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Row {
    let (collector, folder) = (Collector::start(script), Folder::new());
    let client = builder(&collector.endpoint(), &folder).batch_age(PATIENCE).build_blocking().unwrap();
    let mut made = Vec::new();
    while made.len() < EVENTS {
        made.extend(track(&client, 25));
        let sealed = (made.len() / 20 * 20) as u64;
        wait_until("sealed batches are delivered", || client.stats().delivered == sealed);
    }
    finish(&client);
    all_counted(&made, &collector.ledger, &folder)
}

fn asked_again() -> Row {
    // The first event of each batch is asked for again, until it comes alone.
    through_by_turns(|request| {
        let retry = if request.events() > 1 { vec![0] } else { Vec::new() };
        Act::Partly { retry, rejected: Vec::new() }
    })
}

fn too_large() -> Row {
    through_by_turns(|request| if request.events() > 3 { Act::Status(413, None) } else { Act::Take })
}

fn poisoned() -> Row {
    let script = |request: &Request| match request.text().contains("poison") {
        true => Act::Status(413, None),
        false => Act::Take,
    };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let client = builder(&collector.endpoint(), &folder).build_blocking().unwrap();
    let mut made = track(&client, EVENTS / 2);
    made.push(client.track(Custom::new("poison")).unwrap());
    assert!(client.flush(PATIENCE).is_complete());
    made.extend(track(&client, EVENTS / 2 - 1));
    let report = finish(&client);
    assert_eq!((report.stats.dropped.of(Reason::TooLarge), report.stats.dropped.total()), (1, 1));
    assert_eq!(collector.ledger.lost().into_iter().collect::<Vec<_>>(), [("too_large".into(), 1)]);
    let row = compare(&made, &collector.ledger, &folder, report.stats.dropped);
    assert_eq!((row.counted, row.on_disk), (made.len() - 1, 0));
    row
}

/// `shop:new`, the credentials that the collector knows.
const NEW_KEY: &str = "Basic c2hvcDpuZXc=";

fn unauthorized() -> Row {
    let script = |request: &Request| match request.headers["authorization"] == NEW_KEY {
        true => Act::Take,
        false => Act::Status(401, None),
    };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let client = builder(&collector.endpoint(), &folder).build_blocking().unwrap();
    let made = track(&client, EVENTS);
    assert!(!client.flush(Duration::from_millis(100)).is_complete());
    wait_until("the client has paused", || client.stats().paused.is_some());
    client.set_key("new").unwrap();
    finish(&client);
    all_counted(&made, &collector.ledger, &folder)
}

fn unauthorized_late() -> Row {
    let released = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&released);
    let script = move |request: &Request| {
        if request.headers["authorization"] == NEW_KEY {
            return Act::Take;
        }
        // In the collector's thread, so no other request is answered before.
        wait_until("the key is replaced", || held.load(Ordering::Relaxed));
        Act::Status(401, None)
    };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let client = builder(&collector.endpoint(), &folder).timeout(PATIENCE).build_blocking().unwrap();
    let made = track(&client, EVENTS);
    wait_until("a request is there", || collector.ledger.requests() > 0);
    client.set_key("new").unwrap();
    released.store(true, Ordering::Relaxed);
    finish(&client);
    all_counted(&made, &collector.ledger, &folder)
}

fn forbidden() -> Row {
    let (collector, folder) = (Collector::start(|_| Act::Status(403, None)), Folder::new());
    let client = builder(&collector.endpoint(), &folder).build_blocking().unwrap();
    let made = track(&client, EVENTS);
    wait_until("the client has paused", || client.stats().paused.is_some());
    let report = client.shutdown(Duration::from_millis(50));
    assert_eq!((report.is_complete(), report.on_disk(), report.in_memory()), (false, EVENTS as u64, 0));
    let row = compare(&made, &collector.ledger, &folder, report.stats.dropped);
    assert_eq!((row.counted, row.on_disk), (0, EVENTS));
    row
}

/// Resolves names only while it is switched on.
#[derive(Clone)]
struct Names {
    works: Arc<AtomicBool>,
    address: SocketAddr,
}

impl Resolve for Names {
    fn resolve(&self, _: Name) -> Resolving {
        let found: Result<Addrs, _> = match self.works.load(Ordering::Relaxed) {
            true => Ok(Box::new(std::iter::once(self.address))),
            false => Err("no such name".into()),
        };
        Box::pin(std::future::ready(found))
    }
}

fn resolving(collector: &Collector, folder: &Folder) -> (Client, Arc<AtomicBool>) {
    let works = Arc::new(AtomicBool::new(false));
    let names = Names { works: Arc::clone(&works), address: collector.address };
    let http = reqwest::Client::builder().dns_resolver(Arc::new(names)).no_proxy().build().unwrap();
    let endpoint = format!("http://collect.shop.example:{}{}", collector.address.port(), collector.ledger.path);
    (builder(&endpoint, folder).http_client(http).build_blocking().unwrap(), works)
}

fn no_name() -> Row {
    let (collector, folder) = (Collector::start(|_| Act::Take), Folder::new());
    let (client, works) = resolving(&collector, &folder);
    let made = track(&client, EVENTS);
    wait_until("some sends have failed", || client.stats().failures > 3);
    works.store(true, Ordering::Relaxed);
    finish(&client);
    all_counted(&made, &collector.ledger, &folder)
}

fn no_name_until_the_end() -> Row {
    let (collector, folder) = (Collector::start(|_| Act::Take), Folder::new());
    let (client, _) = resolving(&collector, &folder);
    let made = track(&client, EVENTS);
    wait_until("some sends have failed", || client.stats().failures > 3);
    let report = client.shutdown(Duration::from_millis(50));
    assert_eq!((report.on_disk(), folder.events().len()), (EVENTS as u64, EVENTS));
    deliver(&collector, &folder);
    all_counted(&made, &collector.ledger, &folder)
}

/// A client without events of its own delivers what is in the directory.
fn deliver(collector: &Collector, folder: &Folder) {
    let client = builder(&collector.endpoint(), folder).build_blocking().unwrap();
    let report = finish(&client);
    assert_eq!(report.stats.dropped.total(), 0);
}

/// Another process: this test again, in a part that an environment variable names.
struct Process {
    child: Child,
    lines: Box<dyn Iterator<Item = std::io::Result<String>>>,
    made: Vec<EventId>,
}

const PART: &str = "TALLYMARK_TEST_PART";
const SPOOL: &str = "TALLYMARK_TEST_SPOOL";
const ENDPOINT: &str = "TALLYMARK_TEST_ENDPOINT";

impl Process {
    /// `before` is shell text for limits and signals.
    fn start(part: &str, before: &str, collector: &Collector, folder: &Folder) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", &format!("{before} exec \"$0\" --exact child --nocapture")])
            .arg(std::env::current_exe().unwrap())
            .env(PART, part)
            .env(SPOOL, &folder.0)
            .env(ENDPOINT, collector.endpoint())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Box::new(BufReader::new(child.stdout.take().unwrap()).lines());
        Self { child, lines, made: Vec::new() }
    }

    /// Collects the ids that it prints, until it prints something else.
    fn hear(&mut self, word: &str) {
        for line in &mut self.lines {
            let line = line.unwrap();
            // The test harness writes to the same lines.
            if let Some(id) = line.split_once("made ").and_then(|(_, id)| EventId::parse(id)) {
                self.made.push(id);
            } else if line.ends_with(word) {
                return;
            }
        }
        panic!("the process has ended without saying {word}");
    }

    fn tell(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn end(mut self) -> Vec<EventId> {
        self.hear("bye");
        assert!(self.child.wait().unwrap().success());
        std::mem::take(&mut self.made)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the code of the other processes.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let folder = std::mem::ManuallyDrop::new(Folder(std::env::var_os(SPOOL).unwrap().into()));
    let errors = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&errors);
    let client = builder(&std::env::var(ENDPOINT).unwrap(), &folder)
        .on_error(move |error| _ = noted.fetch_add(usize::from(error.is_storage()), Ordering::Relaxed))
        .build_blocking()
        .unwrap();
    match part.as_str() {
        "drop" => {
            told(&track(&client, EVENTS));
            say("made all");
            hear();
            drop(client);
        }
        "wait" => {
            told(&track(&client, EVENTS));
            say("made all");
            hear();
        }
        "share" => {
            say("ready");
            hear();
            told(&track(&client, EVENTS));
            finish(&client);
        }
        "full" => {
            let mut made = Vec::new();
            for number in 0..EVENTS {
                // Some events do not fit into the file.
                let length = if number % 30 == 25 { 9_000 } else { 10 };
                made.push(client.track(Custom::new("order").property("text", "x".repeat(length))).unwrap());
            }
            told(&made);
            let report = client.flush(Duration::from_millis(100));
            assert!(report.in_memory() > 0 && report.on_disk() > 0, "{report:?}");
            assert_eq!(report.in_memory() + report.on_disk(), EVENTS as u64);
            wait_until("the hook is called", || errors.load(Ordering::Relaxed) > 0);
            say("made all");
            hear();
            assert_eq!(finish(&client).stats.dropped.total(), 0);
        }
        "descriptors" => {
            told(&track(&client, EVENTS));
            assert!(!client.flush(Duration::from_millis(100)).is_complete());
            let mut hoard = Vec::new();
            while hoard.len() < 10_000 {
                match File::open("/dev/null") {
                    Ok(file) => hoard.push(file),
                    Err(_) if hoard.is_empty() => panic!("no descriptor at all"),
                    Err(_) => break,
                }
            }
            let failures = client.stats().failures;
            // Some more attempts, which cannot open the file.
            wait_until("it was tried again", || {
                client.stats().failures > failures + 3 || client.stats().dropped.total() > 0
            });
            drop(hoard);
            say("made all");
            hear();
            assert_eq!(finish(&client).stats.dropped.total(), 0);
        }
        other => panic!("no such part: {other}"),
    }
    say("bye");
}

fn told(made: &[EventId]) {
    made.iter().for_each(|id| say(&format!("made {id}")));
}

fn say(word: &str) {
    // Around the capture of the test harness.
    std::io::stdout().write_all(format!("\n{word}\n").as_bytes()).unwrap();
}

/// Waits for a line of the parent, and ends if the parent has ended.
fn hear() {
    if std::io::stdin().read(&mut [0]).unwrap_or(0) == 0 {
        std::process::abort();
    }
}

/// A process ends while the collector mostly fails, and another client continues.
fn after(part: &str, end: impl FnOnce(Process) -> Vec<EventId>) -> Row {
    let works = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&works);
    let script = move |request: &Request| match request.number % 2 {
        _ if state.load(Ordering::Relaxed) => Act::Take,
        // Counted, but the process ends before the answer.
        0 => Act::AnswerLate(PATIENCE),
        _ => Act::Status(503, None),
    };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let mut process = Process::start(part, "", &collector, &folder);
    process.hear("made all");
    wait_until("something was counted and something was not", || collector.ledger.requests() > 1);
    let made = end(process);
    works.store(true, Ordering::Relaxed);
    assert!(!folder.events().is_empty());
    deliver(&collector, &folder);
    assert_eq!(made.len(), EVENTS);
    all_counted(&made, &collector.ledger, &folder)
}

fn dropped() -> Row {
    after("drop", |mut process| {
        process.tell();
        process.end()
    })
}

fn terminated() -> Row {
    after("wait", |mut process| {
        assert!(Command::new("kill").arg(process.child.id().to_string()).status().unwrap().success());
        assert!(!process.child.wait().unwrap().success());
        std::mem::take(&mut process.made)
    })
}

fn killed() -> Row {
    after("wait", |mut process| {
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        std::mem::take(&mut process.made)
    })
}

/// The process may write only a few KiB to each file, and continues when a write fails.
fn disk_full() -> Row {
    under_limits("full", "trap '' XFSZ; ulimit -f 2;")
}

fn no_descriptors() -> Row {
    under_limits("descriptors", "ulimit -n 64;")
}

/// A process with a limit of the shell tracks while the collector is down, and delivers when it is up.
fn under_limits(part: &str, limits: &str) -> Row {
    let works = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&works);
    let script = move |_: &Request| if state.load(Ordering::Relaxed) { Act::Take } else { Act::Status(503, None) };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let mut process = Process::start(part, limits, &collector, &folder);
    process.hear("made all");
    works.store(true, Ordering::Relaxed);
    process.tell();
    let made = process.end();
    assert_eq!(made.len(), EVENTS);
    all_counted(&made, &collector.ledger, &folder)
}

fn two_processes() -> Row {
    let script = |request: &Request| if request.number % 5 == 1 { Act::Status(503, None) } else { Act::Take };
    let (collector, folder) = (Collector::start(script), Folder::new());
    let mut processes = [(); 2].map(|()| Process::start("share", "", &collector, &folder));
    processes.iter_mut().for_each(|process| process.hear("ready"));
    processes.iter_mut().for_each(Process::tell);
    let made: Vec<_> = processes.into_iter().flat_map(Process::end).collect();
    assert_eq!(made.len(), 2 * EVENTS);
    all_counted(&made, &collector.ledger, &folder)
}
