//! What a developer or an operator learns when a setting is wrong: errors of `build`, texts of errors, and the log.
#![cfg(all(feature = "client", feature = "spool"))]

#[path = "faults/collector.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod collector;

use collector::{Act, Collector, PATIENCE, wait_until};
use std::error::Error as _;
use std::io::{self, Write};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tallymark::{Backoff, Builder, Client, Event};

fn builder(endpoint: &str) -> Builder {
    Client::builder(endpoint, "shop", "tms_secret").backoff(Backoff { base: 1, max: 10 }).timeout(PATIENCE)
}

/// The text of the first error that the hook is called with after an event was tracked.
fn first_error(builder: Builder) -> String {
    let first: Arc<OnceLock<String>> = Arc::default();
    let told = Arc::clone(&first);
    let client = builder.batch_events(1).on_error(move |error| _ = told.set(error.to_string())).build().unwrap();
    client.track(Event::custom("n")).unwrap();
    wait_until("the hook is called", || first.get().is_some());
    first.get().unwrap().clone()
}

#[test]
fn errors_name_the_address_the_cause_and_the_cure() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = first_error(builder(&format!("http://{nobody}")));
    assert!(refused.starts_with(&format!("a batch could not be sent to http://{nobody}/v1/batch: ")), "{refused}");
    assert!(refused.contains("refused") && refused.ends_with("; it is kept and retried"), "{refused}");

    for (status, texts) in [
        (401, ["username and key", "set_key"]),
        (403, ["does not allow", "secret key"]),
        (404, ["check the path of the endpoint", "kept"]),
        (301, ["a redirect", "correct the endpoint"]),
        (422, ["refused", "dropped"]),
        (503, ["503", "kept and retried"]),
    ] {
        let collector = Collector::start(move |_| Act::Status(status, None));
        let error = first_error(builder(&collector.endpoint()));
        let endpoint = format!("{}/v1/batch answered {status}", collector.endpoint());
        assert!(error.starts_with(&endpoint) && texts.iter().all(|text| error.contains(text)), "{error}");
    }

    let client = builder(&format!("http://{nobody}")).build().unwrap();
    let invalid = client.track(Event::custom("n".repeat(129))).unwrap_err();
    assert_eq!(invalid.to_string(), "the event was not tracked: `name` is longer than 128 bytes");
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let endpoint = "http://127.0.0.1:9";
    for (builder, text) in [
        (Client::builder(endpoint, "", "key"), "username"),
        (Client::builder(endpoint, "shop", ""), "key"),
        (Client::builder("http://127.0.0.1:9/v1/batch", "shop", "key"), "/v1/batch"),
        (Client::builder("http://127.0.0.1:9/v1/batch/", "shop", "key"), "/v1/batch"),
        (Client::builder("collect.shop.example", "shop", "key"), "https://"),
        (builder(endpoint).batch_events(501), "`batch_events` must be from 1 to 500, got 501"),
        (builder(endpoint).batch_events(0), "`batch_events` must be from 1 to 500, got 0"),
        (builder(endpoint).batch_bytes(1 << 20), "`batch_bytes` must be from 1 to 524288, got 1048576"),
        (builder(endpoint).in_flight(0), "`in_flight` must be at least 1, got 0"),
    ] {
        let error = builder.build().unwrap_err();
        assert!(error.is_config() && error.to_string().contains(text), "{error}");
    }
    assert!(builder(endpoint).build().unwrap().set_key("").unwrap_err().is_config());
    builder(endpoint).batch_events(500).batch_bytes(512 * 1024).in_flight(1).build().unwrap();
}

#[test]
fn a_shutdown_does_not_wait_for_a_wrong_key() {
    for (status, reason) in [(401, "does not know the username and key (401)"), (403, "does not allow")] {
        let collector = Collector::start(move |_| Act::Status(status, None));
        let client = builder(&collector.endpoint()).build_blocking().unwrap();
        client.track(Event::custom("n")).unwrap();
        // Longer than a test runs.
        let report = client.shutdown(Duration::from_secs(3_600));
        assert!(!report.is_complete() && report.stats.paused.is_some());
        let text = report.to_string();
        assert!(text.starts_with("0 events delivered, 1 left in memory; ") && text.contains(reason), "{text}");
        // A pause from before gets one more try, in case the key is valid by now.
        let requests = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&requests);
        let collector = Collector::start(move |_| {
            *counted.lock().unwrap() += 1;
            if *counted.lock().unwrap() == 1 { Act::Status(status, None) } else { Act::Take }
        });
        let client = builder(&collector.endpoint()).batch_events(1).build_blocking().unwrap();
        client.track(Event::custom("n")).unwrap();
        wait_until("it is paused", || client.stats().paused.is_some());
        assert!(client.shutdown(Duration::from_secs(3_600)).is_complete());
    }
}

#[test]
fn stats_print_the_names_of_reasons() {
    let collector = Collector::start(|_| Act::Status(422, None));
    let client = builder(&collector.endpoint()).build_blocking().unwrap();
    client.track(Event::custom("n")).unwrap();
    let report = client.shutdown(PATIENCE);
    assert!(format!("{:?}", report.stats).contains(r#"dropped: {"refused": 1}"#), "{report:?}");
    assert_eq!(report.to_string(), "0 events delivered, 1 dropped");
}

/// What is logged, by all tests here.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_keeps_batches_from_being_delivered_is_logged_once_until_it_changes() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let collector = Collector::start(|request| match request.number {
        0..5 => Act::Status(503, None),
        5..8 => Act::Status(500, None),
        8 => Act::Status(401, None),
        9 => Act::Take,
        10..13 => Act::Status(404, None),
        _ => Act::Take,
    });
    let client = builder(&collector.endpoint()).batch_events(1).build_blocking().unwrap();
    client.track(Event::custom("n")).unwrap();
    wait_until("it is paused", || client.stats().paused.is_some());
    client.set_key("tms_other").unwrap();
    assert!(client.flush(PATIENCE).is_complete());
    client.track(Event::custom("n")).unwrap();
    assert!(client.shutdown(PATIENCE).is_complete());
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<_> = text.lines().filter(|line| line.contains(&collector.ledger.path)).collect();
    let expected =
        [("WARN", "503"), ("WARN", "401"), ("INFO", "delivered again"), ("WARN", "404"), ("INFO", "delivered again")];
    assert_eq!(ours.len(), expected.len(), "{text}");
    for (line, (level, word)) in ours.iter().zip(expected) {
        assert!(line.contains(level) && line.contains(word), "{line}");
    }
    assert!(!text.contains("tms_"));
}

/// Runs a test of this file again in a process with other variables.
fn run_again(name: &str, variables: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .envs(variables.iter().copied())
        .env("TALLYMARK_AGAIN", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn is_again() -> bool {
    std::env::var_os("TALLYMARK_AGAIN").is_some()
}

#[test]
fn an_error_names_the_proxy_that_was_used() {
    if !is_again() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = format!("http://anna:hunter2@{nobody}");
        return run_again("an_error_names_the_proxy_that_was_used", &[("http_proxy", &proxy), ("no_proxy", "")]);
    }
    let error = first_error(builder("http://collect.shop.example"));
    let nobody = std::env::var("http_proxy").unwrap().replace("anna:hunter2@", "");
    assert!(error.contains(&format!("through the proxy {nobody}: ")) && !error.contains("hunter2"), "{error}");
}

/// As in a slim container.
#[test]
#[cfg(all(feature = "rustls", target_os = "linux"))]
fn without_root_certificates_http_works_and_https_says_what_to_install() {
    let name = "without_root_certificates_http_works_and_https_says_what_to_install";
    if !is_again() {
        return run_again(name, &[("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")]);
    }
    let collector = Collector::start(|_| Act::Take);
    let client = builder(&collector.endpoint()).build_blocking().unwrap();
    client.track(Event::custom("n")).unwrap();
    assert!(client.shutdown(PATIENCE).is_complete());
    let https = builder("https://collect.shop.example").build();
    assert_eq!(https.is_ok(), cfg!(feature = "bundled-roots"));
    if let Err(error) = https {
        assert!(error.is_config() && error.source().is_some());
        assert!(error.to_string().contains("ca-certificates"), "{error}");
    }
}
