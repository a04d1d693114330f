//! The Rust client and the real collector: a process that tracks into a spool is killed at moments nobody
//! chose, again and again, and every event whose `track` returned is counted exactly once.
#![cfg(feature = "server")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Collector, Folder};
use tallymark::{Backoff, Client, Custom};

const ROUNDS: usize = 40;
const LIFE: &str = "TALLYMARK_TEST_LIFE";

fn client(url: &str, key: &str, spool: &str) -> Client {
    Client::builder(url, "shop", key)
        .spool(spool)
        .batch_events(20)
        .batch_age(Duration::from_millis(20))
        .backoff(Backoff { base: 5, max: 50 })
        .build()
        .unwrap()
}

/// What the killed processes run: says the id of each event once `track` has returned. Without the variable,
/// as in any run of the tests, it does nothing.
#[test]
fn a_life() {
    let Ok(life) = std::env::var(LIFE) else { return };
    let [url, key, spool] = life.split('|').collect::<Vec<_>>()[..] else { panic!("{life}") };
    let client = client(url, key, spool);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for n in 0..20_000 {
                    let id = client.track(Custom::new("tick").property("n", n)).unwrap();
                    let _ = std::io::stdout().write_all(format!("\n+{id}\n").as_bytes());
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
    });
}

#[test]
fn kill_9_loses_and_doubles_nothing_at_a_real_collector() {
    let mut collector = Collector::start(&[]);
    let folder = Folder::new();
    let spool = folder.0.join("spool").to_str().unwrap().to_owned();
    let mut tracked = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_life", "--exact", "--nocapture"])
            .env(LIFE, format!("{}|{}|{spool}", collector.url, collector.secret_key))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader = std::thread::spawn(move || {
            let ids = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix('+').map(str::to_owned));
            // The last line may be cut off.
            ids.filter(|id| id.len() == 36).collect::<Vec<_>>()
        });
        std::thread::sleep(Duration::from_millis(30 + rand::random::<u64>() % 150));
        child.kill().unwrap();
        child.wait().unwrap();
        tracked.extend(reader.join().unwrap());
        // The collector, too, dies in between, and is back for the next life.
        if round % 10 == 9 {
            collector.kill();
            collector.restart();
        }
    }
    assert!(tracked.len() > ROUNDS, "only {} events were tracked", tracked.len());

    let last = tallymark::blocking::Client::from(client(&collector.url, &collector.secret_key, &spool));
    let report = last.shutdown(Duration::from_secs(60));
    assert!(report.is_complete() && report.stats.dropped.total() == 0, "{report:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let counted = runtime.block_on(collector.total("custom"));
    collector.stop();
    let lake = collector.lake();
    for id in &tracked {
        assert_eq!(lake.get(id), Some(&1), "{id}");
    }
    assert!(lake.values().all(|times| *times == 1));
    assert_eq!(counted, lake.len() as u64);
    println!("{ROUNDS} kills, {} events tracked, {counted} counted: none lost, none twice", tracked.len());
}
