//! Rust analytics clients side by side, against one sink on loopback.
//!
//! `cargo run --release` prints two tables: what tracking costs and how fast events arrive, and how many of
//! 1,000 events are delivered, lost and delivered twice through four faults. `cargo run --release -- NAME`
//! runs the clients whose name contains NAME.
//!
//! The sink counts what it took, before anybody's deduplication but ours: Tallymark's collector counts a
//! repeated batch once, so the sink does too. PostHog and Amplitude drop repeated events by id later.

mod peers;
mod sink;

use peers::{KINDS, Kind};
use sink::{Mood, Sink};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const SPEED_EVENTS: usize = 20_000;
/// Clients that send in the caller's thread get fewer events, because they are slow.
const SPEED_EVENTS_SENDING: usize = 4_000;
const ROUNDS: usize = 5;
const FAULT_EVENTS: usize = 1_000;
const QUIET: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, which, name, address, folder] = &arguments[..] {
        return one_life(name, address, folder, which == "child");
    }
    let wanted = arguments.get(1).map_or("", String::as_str);
    let kinds = || KINDS.iter().filter(|kind| kind.name.contains(wanted));

    println!("| client | track, p50 | track, p99 | events/s until the last arrival | requests |");
    println!("|---|---|---|---|---|");
    for kind in kinds() {
        speed(kind);
    }
    println!("\nOf {FAULT_EVENTS} events: delivered / lost / twice.\n");
    println!(
        "| client | down for 2 s | 503 for 2 s | answers lost for 2 s | ends without a flush, worst of {ROUNDS} |"
    );
    println!("|---|---|---|---|---|");
    for kind in kinds() {
        let faults = [Fault::Down, Fault::Refuses, Fault::LosesAnswers].map(|fault| through(kind, fault));
        println!("| {} | {} | {} | {} | {} |", kind.name, faults[0], faults[1], faults[2], sudden_end(kind));
    }
}

fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tallymark-peers-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn speed(kind: &Kind) {
    let events = if kind.sends { SPEED_EVENTS_SENDING } else { SPEED_EVENTS };
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (sink, address, folder) = (Sink::new(events), sink::free_address(), folder());
        sink.listen(address);
        let mut peer = (kind.start)(&format!("http://{address}"), &folder);
        let begin = Instant::now();
        let mut calls: Vec<Duration> = (0..events)
            .map(|n| {
                let start = Instant::now();
                (peer.track)(n);
                start.elapsed()
            })
            .collect();
        (peer.finish)();
        let arrived = sink.settle(events, QUIET);
        calls.sort();
        let micros = |hundredth: usize| calls[events * hundredth / 100].as_secs_f64() * 1e6;
        let rate = arrived.distinct as f64 / (arrived.last - begin).as_secs_f64();
        rounds.push([micros(50), micros(99), rate, arrived.requests as f64, (events - arrived.distinct) as f64]);
        std::fs::remove_dir_all(folder).unwrap();
    }
    let median = |which: usize| {
        let mut values: Vec<f64> = rounds.iter().map(|round| round[which]).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    let missing = if median(4) > 0.0 { format!(" ({:.0} of {events} never came)", median(4)) } else { String::new() };
    let [p50, p99, rate, requests] = [0, 1, 2, 3].map(median);
    println!("| {} | {p50:.1} µs | {p99:.1} µs | {rate:.0}{missing} | {requests:.0} for {events} |", kind.name);
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Down,
    Refuses,
    LosesAnswers,
}

/// Tracks for a second, while the sink is at fault for two; ends the client in order a second later.
fn through(kind: &Kind, fault: Fault) -> String {
    let (sink, address, folder) = (Sink::new(FAULT_EVENTS), sink::free_address(), folder());
    match fault {
        Fault::Down => {}
        Fault::Refuses => sink.set(Mood::Refuses),
        Fault::LosesAnswers => sink.set(Mood::LosesAnswers),
    }
    if fault != Fault::Down {
        sink.listen(address);
    }
    let mending = sink.clone();
    let mended = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        match fault {
            Fault::Down => mending.listen(address),
            _ => mending.set(Mood::Takes),
        }
    });
    let mut peer = (kind.start)(&format!("http://{address}"), &folder);
    let mut held = Duration::ZERO;
    for n in 0..FAULT_EVENTS {
        let begin = Instant::now();
        (peer.track)(n);
        held += begin.elapsed();
        if n % 50 == 49 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    mended.join().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    (peer.finish)();
    let arrived = sink.settle(FAULT_EVENTS, QUIET);
    std::fs::remove_dir_all(folder).unwrap();
    let waited = if held > Duration::from_secs(1) { format!(" (held the caller {held:.1?})") } else { String::new() };
    format!("{} / {} / {}{waited}", arrived.distinct, FAULT_EVENTS - arrived.distinct, arrived.twice)
}

/// A process tracks everything and ends at once; where there is a disk, a next one starts and ends in order.
/// The number of events in flight at that moment varies, so this is the worst of several rounds.
fn sudden_end(kind: &Kind) -> String {
    let rounds = (0..ROUNDS).map(|_| {
        let (sink, address, folder) = (Sink::new(FAULT_EVENTS), sink::free_address(), folder());
        sink.listen(address);
        let life = |which: &str| {
            let this = std::env::current_exe().unwrap();
            let arguments = [which, kind.name, &address.to_string()];
            assert!(Command::new(this).args(arguments).arg(&folder).status().unwrap().success());
        };
        life("child");
        if kind.disk {
            life("next");
        }
        let arrived = sink.settle(FAULT_EVENTS, Duration::from_secs(2));
        std::fs::remove_dir_all(folder).unwrap();
        (arrived.distinct, arrived.twice)
    });
    let (distinct, twice) = rounds.min().unwrap();
    format!("{distinct} / {} / {twice}", FAULT_EVENTS - distinct)
}

fn one_life(name: &str, address: &str, folder: &str, tracks: bool) {
    let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let mut peer = (kind.start)(&format!("http://{address}"), &PathBuf::from(folder));
    if tracks {
        (0..FAULT_EVENTS).for_each(|n| (peer.track)(n));
        std::process::exit(0);
    }
    (peer.finish)();
}
