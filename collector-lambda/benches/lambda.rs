//! What starting the Lambda costs, its first request and those after, against local AWS behind TLS. `BOOTSTRAP` names
//! the program, and `make bench-lambda` the one that is deployed.
#![expect(clippy::unwrap_used, reason = "what goes wrong here ends it")]

#[path = "../tests/lambda_runtime/mod.rs"]
mod lambda_runtime;
#[path = "../tests/local_aws/mod.rs"]
mod local_aws;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lambda_runtime::{Function, scratch, sites};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tallymark::EventId;

const STARTS: usize = 20;
const REQUESTS: usize = 500;
const EVENTS: usize = 10;

#[tokio::main]
async fn main() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let tls = Tls::start();
    println!("Against local AWS, medians of {STARTS} starts; batches of {EVENTS} events.\n");
    println!(
        "| AWS over | start | first request | second | later p50 | later p99 | memory | with its peak | threads |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (name, endpoint) in [("HTTP", local_aws::endpoint()), ("TLS", &tls.url)] {
        let variables = [
            ("AWS_ENDPOINT_URL", endpoint),
            ("SSL_CERT_FILE", tls.certificate.as_str()),
            ("TALLYMARK_DELIVERY_STREAM", &stream),
            ("TALLYMARK_COUNTERS_TABLE", &table),
            ("TALLYMARK_SITES", &sites),
        ];
        let (mut starts, mut firsts, mut seconds, mut last) = (Vec::new(), Vec::new(), Vec::new(), None);
        for _ in 0..STARTS {
            let started = Instant::now();
            let mut function = Function::start(&variables).await;
            function.is_ready().await;
            starts.push(started.elapsed());
            firsts.push(request(&function, &keys.write).await);
            seconds.push(request(&function, &keys.write).await);
            last = Some(function);
        }
        let function = last.unwrap();
        let mut later = Vec::new();
        for _ in 0..REQUESTS {
            later.push(request(&function, &keys.write).await);
        }
        let memory = |name| format!("{:.1} MB", function.status(name) as f64 / 1024.0);
        let [start, first, second, p50] = [&mut starts, &mut firsts, &mut seconds, &mut later].map(|all| at(all, 0.5));
        println!(
            "| {name} | {start} | {first} | {second} | {p50} | {} | {} | {} | {} |",
            at(&mut later, 0.99),
            memory("VmRSS"),
            memory("VmHWM"),
            function.status("Threads")
        );
    }
}

/// Sends a new batch, and says how long the answer took.
async fn request(function: &Function, key: &str) -> Duration {
    let id = || EventId::new(1_767_225_600_000, &mut rand::random::<u64>).to_string();
    let events: Vec<_> = (0..EVENTS)
        .map(|n| json!({"event_id": id(), "event_type": "button_click", "button_id": n.to_string(), "session_id": "s"}))
        .collect();
    let mut event: Value = serde_json::from_str(include_str!("../tests/data/http-api.json")).unwrap();
    event["headers"]["authorization"] = format!("Basic {}", STANDARD.encode(format!("shop:{key}"))).into();
    event["body"] = json!({"batch_id": id(), "sdk": "bench/1", "events": events}).to_string().into();
    let asked = Instant::now();
    let answer = function.invoke(event).await;
    let took = asked.elapsed();
    let receipt: Value = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
    assert_eq!(receipt["accepted"], EVENTS, "{answer}");
    took
}

fn at(all: &mut [Duration], share: f64) -> String {
    all.sort();
    let took = all[((all.len() - 1) as f64 * share).round() as usize];
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

/// Local AWS behind TLS, with a certificate made for this.
struct Tls {
    process: Child,
    url: String,
    certificate: String,
}

impl Tls {
    fn start() -> Self {
        let certificate = scratch("pem").into_os_string().into_string().unwrap();
        let mut process = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/venv/bin/python"))
            .args([concat!(env!("CARGO_MANIFEST_DIR"), "/benches/tls.py"), &certificate, local_aws::endpoint()])
            // It ends when its input does, and that is with this process.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, url: line.trim().into(), certificate }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.certificate);
    }
}
