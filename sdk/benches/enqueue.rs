//! The cost of `track()` for its caller: in memory, with a spool (one `write` per event) and with `Durability::Power`
//! (one sync).
//!
//! Criterion measures the mean per event for 1 and 4 threads while the collector answers, and the same by hand: the
//! event's JSON alone, with one `write`, and with one sync. Then follow the median and the 99th percentile of single
//! calls, alternately with a collector that answers and one that has stalled. During a stall the queue grows, so in
//! memory the 99th percentile shows what the operating system needs for new pages. Compare within one run;
//! `TALLYMARK_BENCH_DIR` chooses the disk.

mod support;

use criterion::{BenchmarkId, Criterion};
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use support::{Folder, PATIENCE, Sink, client, event};
use tallymark::blocking::Client;
use tallymark::{Durability, Event};

const WHERE: [(&str, Option<Durability>); 3] =
    [("memory", None), ("spool", Some(Durability::Process)), ("power", Some(Durability::Power))];

/// Fewer than the queue holds, so that nothing is dropped.
const CHUNK: u64 = 50_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().measurement_time(Duration::from_secs(3));
    by_hand(&mut criterion);
    track(&mut criterion);
    criterion.final_summary();
    // `cargo test --benches` only wants to know whether it runs.
    if std::env::args().any(|argument| argument == "--bench") {
        percentiles();
    }
}

fn start(endpoint: &str, durability: Option<Durability>, folder: &Folder) -> Client {
    let builder = client(endpoint);
    let builder = match durability {
        Some(durability) => builder.spool(&folder.0).durability(durability),
        None => builder,
    };
    builder.build_blocking().unwrap()
}

fn by_hand(criterion: &mut Criterion) {
    let json = || Event::from(event()).encode(1_763_673_600_000, &mut rand::random::<u64>).unwrap().json;
    let mut group = criterion.benchmark_group("by hand");
    group.bench_function("json", |bencher| bencher.iter(|| black_box(json())));
    let folder = Folder::new("by-hand");
    let mut file = File::create(folder.0.join("write")).unwrap();
    group.bench_function("json, write", |bencher| bencher.iter(|| file.write_all(json().as_bytes()).unwrap()));
    let mut file = File::create(folder.0.join("sync")).unwrap();
    group.sample_size(20).bench_function("json, write, sync", |bencher| {
        bencher.iter(|| {
            file.write_all(json().as_bytes()).unwrap();
            file.sync_data().unwrap();
        });
    });
}

fn track(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("track");
    group.sample_size(20);
    for (name, durability) in WHERE {
        for threads in [1, 4] {
            let folder = Folder::new("track");
            let (_sink, endpoint) = Sink::start();
            let client = start(&endpoint, durability, &folder);
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter_custom(|events| {
                    let mut elapsed = Duration::ZERO;
                    let mut left = events;
                    while left > 0 {
                        let chunk = left.min(CHUNK);
                        left -= chunk;
                        elapsed += timed(&client, threads, chunk);
                        assert!(client.flush(PATIENCE).is_complete());
                    }
                    elapsed
                });
            });
            assert_eq!(client.shutdown(PATIENCE).stats.dropped.total(), 0);
        }
    }
}

/// How long it takes so many threads to track so many events together.
fn timed(client: &Client, threads: u64, events: u64) -> Duration {
    let (begin, end) = (Barrier::new(threads as usize + 1), Barrier::new(threads as usize + 1));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let share = events / threads + u64::from(thread < events % threads);
            let (begin, end) = (&begin, &end);
            scope.spawn(move || {
                begin.wait();
                for _ in 0..share {
                    client.track(event()).unwrap();
                }
                end.wait();
            });
        }
        begin.wait();
        let start = Instant::now();
        end.wait();
        start.elapsed()
    })
}

/// Percentiles of single calls. Rounds with and without a stall take turns, so that whatever else the machine
/// does meets both; the medians over the rounds are printed.
fn percentiles() {
    println!("\nsingle calls, median of 7 rounds:   p50 and p99 answered,  p50 and p99 stalled");
    for (name, durability) in WHERE {
        for threads in [1, 4] {
            let events = if durability == Some(Durability::Power) { 2_000 } else { CHUNK };
            let mut results = [Vec::new(), Vec::new()];
            for round in 0..14 {
                let stalled = round % 2 == 1;
                let folder = Folder::new("percentiles");
                let (sink, endpoint) = Sink::start();
                let client = start(&endpoint, durability, &folder);
                // The connection is there, and so is everything that is made once.
                client.track(event()).unwrap();
                assert!(client.flush(PATIENCE).is_complete());
                sink.stall(stalled);
                results[usize::from(stalled)].push(single_calls(&client, threads, events));
                sink.stall(false);
                let report = client.shutdown(PATIENCE);
                assert!(report.is_complete() && report.stats.dropped.total() == 0);
            }
            let [answered, stalled] = results.map(|rounds| {
                let median = |which: fn(&(f64, f64)) -> f64| {
                    let mut values: Vec<f64> = rounds.iter().map(which).collect();
                    values.sort_by(f64::total_cmp);
                    values[values.len() / 2]
                };
                format!("{:8.2} µs {:8.2} µs", median(|round| round.0), median(|round| round.1))
            });
            println!("{name:>8}, {threads} threads:             {answered}   {stalled}");
        }
    }
}

fn single_calls(client: &Client, threads: u64, events: u64) -> (f64, f64) {
    let calls = |share: u64| {
        let mut took = Vec::with_capacity(share as usize);
        for _ in 0..share {
            let start = Instant::now();
            client.track(event()).unwrap();
            took.push(start.elapsed());
        }
        took
    };
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| calls(events / threads))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    took.sort();
    let percentile = |hundredth: usize| took[took.len() * hundredth / 100].as_secs_f64() * 1e6;
    (percentile(50), percentile(99))
}
