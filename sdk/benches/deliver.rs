//! Events per second from the first `track()` to the last receipt, with one client, one thread that tracks, and a
//! collector on loopback that costs almost nothing.
//!
//! Compares with `bare`: the same HTTP client and runtime posting prepared bodies of the same size, as many at the same
//! time, which is the upper limit.

#[expect(dead_code, reason = "not every bench stalls it")]
mod support;

use criterion::{BenchmarkId, Criterion, Throughput};
use std::time::{Duration, Instant};
use support::{Folder, PATIENCE, Sink, client, event};
use tallymark::{BatchId, Event};

const EVENTS: u64 = 100_000;
/// As the client does by default.
const AT_ONCE: usize = 4;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("deliver");
    group.throughput(Throughput::Elements(EVENTS)).sample_size(10).measurement_time(Duration::from_secs(6));
    for batch in [100, 500] {
        group.bench_function(BenchmarkId::new("bare", batch), |bencher| {
            let (_sink, endpoint) = Sink::start();
            bencher.iter_custom(|rounds| (0..rounds).map(|_| bare(&endpoint, batch)).sum());
        });
        for name in ["memory", "spool"] {
            group.bench_function(BenchmarkId::new(name, batch), |bencher| {
                let folder = Folder::new("deliver");
                let (_sink, endpoint) = Sink::start();
                let builder = client(&endpoint).batch_events(batch).in_flight(AT_ONCE);
                let builder = if name == "spool" { builder.spool(&folder.0) } else { builder };
                let client = builder.build_blocking().unwrap();
                bencher.iter_custom(|rounds| {
                    let start = Instant::now();
                    for _ in 0..rounds {
                        for _ in 0..EVENTS {
                            client.track(event()).unwrap();
                        }
                        assert!(client.flush(PATIENCE).is_complete());
                    }
                    start.elapsed()
                });
                let stats = client.shutdown(PATIENCE).stats;
                assert_eq!(stats.delivered, stats.made);
            });
        }
    }
    group.finish();
    criterion.final_summary();
}

fn bare(endpoint: &str, batch: usize) -> Duration {
    let json = Event::from(event()).encode(1_763_673_600_000, &mut rand::random::<u64>).unwrap().json;
    let id = BatchId::new(1_763_673_600_000, &mut rand::random::<u64>);
    let body = format!("{{\"batch_id\":\"{id}\",\"events\":[\n{}\n]}}", vec![json; batch].join(",\n"));
    let (http, url) = (reqwest::Client::new(), format!("{endpoint}/v1/batch"));
    let send = || {
        let request = http.post(&url).header("content-type", "application/json").body(body.clone());
        async move { assert!(request.send().await.unwrap().text().await.unwrap().contains("accepted")) }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let batches = EVENTS as usize / batch;
    let start = Instant::now();
    runtime.block_on(async {
        let mut flying = tokio::task::JoinSet::new();
        for _ in 0..batches {
            if flying.len() == AT_ONCE {
                flying.join_next().await.unwrap().unwrap();
            }
            flying.spawn(send());
        }
        flying.join_all().await;
    });
    start.elapsed()
}
