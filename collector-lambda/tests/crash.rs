//! The collector is killed in the middle of a stream of batches, again and again. What was answered is
//! counted and stored exactly once; what is sent again is not counted again.
#![cfg(feature = "server")]

mod support;

use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Collector, batch};

const ROUNDS: u64 = 12;
const SENDERS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_loses_nothing_that_was_answered_and_counts_nothing_twice() {
    // Moves to the lake as often as can be, so that many crashes hit one.
    let mut collector = Collector::start(&["--lake-roll-interval", "1s"]);
    let answered = Arc::new(Mutex::new(Vec::new()));
    let unanswered = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..ROUNDS {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let url = format!("{}/v1/batch", collector.url);
                let (http, key) = (reqwest::Client::new(), collector.secret_key.clone());
                let (answered, unanswered) = (Arc::clone(&answered), Arc::clone(&unanswered));
                tokio::spawn(async move {
                    loop {
                        let batch = batch(7);
                        let sent = http.post(&url).basic_auth("shop", Some(&key)).json(&batch).send().await;
                        match sent {
                            Ok(response) if response.status() == 200 => answered.lock().unwrap().push(batch),
                            _ => {
                                unanswered.lock().unwrap().push(batch);
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        // A crash at a moment that nobody chose. The senders end by themselves once it is dead.
        tokio::time::sleep(Duration::from_millis(50 + rand::random::<u64>() % 1_200)).await;
        collector.kill();
        for sender in senders {
            sender.await.unwrap();
        }
        collector.restart();
    }

    let answered = std::mem::take(&mut *answered.lock().unwrap());
    let unanswered = std::mem::take(&mut *unanswered.lock().unwrap());
    assert!(answered.len() > 100, "only {} batches were answered", answered.len());
    // Of the unanswered batches some were committed and some were not. Sent again, all are, once.
    for batch in &unanswered {
        let response = collector.post("/v1/batch", batch).send().await.unwrap();
        assert_eq!(response.status(), 200);
    }
    for batch in answered.iter().rev().take(200) {
        let receipt: Value = collector.post("/v1/batch", batch).send().await.unwrap().json().await.unwrap();
        assert_eq!(receipt["duplicate"], true, "an answered batch was forgotten");
    }
    let batches = answered.len() + unanswered.len();
    assert_eq!(collector.total("custom").await, 7 * batches as u64);
    let keys = collector.get("/v1/counts/top?event_type=custom").await;
    let by_key: u64 = keys["top"].as_array().unwrap().iter().map(|key| key["count"].as_u64().unwrap()).sum();
    assert_eq!(by_key, 7 * batches as u64);

    collector.stop();
    let lake = collector.lake();
    for batch in answered.iter().chain(&unanswered) {
        for event in batch["events"].as_array().unwrap() {
            assert_eq!(lake.get(event["event_id"].as_str().unwrap()), Some(&1));
        }
    }
    assert_eq!(lake.len(), 7 * batches);
    println!("{ROUNDS} kills, {batches} batches, {} of them unanswered: none lost, none twice", unanswered.len());
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_seals_the_lake() {
    let mut collector = Collector::start(&[]);
    let url = format!("{}/v1/batch", collector.url);
    let (http, key) = (collector.http.clone(), collector.secret_key.clone());
    let sender = tokio::spawn(async move {
        let mut answered = Vec::new();
        loop {
            let batch = batch(3);
            match http.post(&url).basic_auth("shop", Some(&key)).json(&batch).send().await {
                Ok(response) if response.status() == 200 => answered.push(batch),
                Ok(response) => panic!("answered {}", response.status()),
                Err(_) => return answered,
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let collector = tokio::task::spawn_blocking(move || {
        collector.stop();
        collector
    });
    let collector = collector.await.unwrap();
    let answered = sender.await.unwrap();
    assert!(!answered.is_empty());
    let lake = collector.lake();
    for batch in &answered {
        for event in batch["events"].as_array().unwrap() {
            assert_eq!(lake.get(event["event_id"].as_str().unwrap()), Some(&1));
        }
    }
}
