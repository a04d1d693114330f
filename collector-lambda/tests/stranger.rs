//! Attacks of a stranger with the public write key, and of a page in a browser that remembers the secret key.

mod support;

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use support::{Collector, ORIGIN, batch, now, uuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DAY: u64 = 86_400_000;

async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

fn with_write_key(collector: &Collector, path: &str, body: &Value) -> RequestBuilder {
    let request = collector.http.post(format!("{}{path}", collector.url)).header("origin", ORIGIN);
    request.basic_auth("shop", Some(&collector.write_key)).json(body)
}

fn event(occurred_at: u64) -> Value {
    json!({"event_id": uuid(), "event_type": "custom", "name": "n", "occurred_at": occurred_at})
}

/// A browser adds a remembered password to requests of every page, and tells where they come from.
#[tokio::test]
async fn the_secret_key_is_refused_from_pages() {
    let collector = Collector::start(&[]);
    let own = collector.url.clone();
    for (headers, allowed) in [
        (&[][..], true),
        (&[("origin", own.as_str())], true),
        (&[("sec-fetch-site", "same-origin"), ("origin", "https://behind-a-proxy.example")], true),
        (&[("sec-fetch-site", "none")], true),
        (&[("origin", "https://evil.example")], false),
        (&[("origin", "null")], false),
        (&[("origin", ORIGIN)], false),
        (&[("origin", own.as_str()), ("origin", "https://evil.example")], false),
        (&[("origin", own.as_str()), ("sec-fetch-site", "same-site")], false),
        (&[("sec-fetch-site", "same-site")], false),
        (&[("sec-fetch-site", "cross-site")], false),
    ] {
        let read = collector.http.get(format!("{own}/v1/counts?event_type=custom"));
        for request in [collector.post("/v1/batch", &batch(1)), read.basic_auth("shop", Some(&collector.secret_key))] {
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let (status, body) = answer(request).await;
            if allowed {
                assert_eq!(status, 200, "{headers:?}: {body}");
            } else {
                assert_eq!(
                    (status, &body["code"]),
                    (StatusCode::FORBIDDEN, &json!("origin_not_allowed")),
                    "{headers:?}"
                );
            }
        }
    }
    assert_eq!(collector.total("custom").await, 4);
}

/// What a page may send without a preflight: no type, or one of a form.
#[tokio::test]
async fn a_body_without_a_type_is_refused() {
    let collector = Collector::start(&[]);
    for (path, body) in [
        ("/v1/batch", batch(1)),
        ("/track", json!({"name": "n"})),
        ("/button/click", json!({"session_id": "s", "button_id": "b"})),
        ("/web/page_view", json!({"session_id": "s", "url": "https://shop.example/"})),
    ] {
        let request = || collector.http.post(format!("{}{path}", collector.url)).body(body.to_string());
        for request in [request(), request().header("content-type", "text/plain")] {
            let (status, body) = answer(request.basic_auth("shop", Some(&collector.secret_key))).await;
            assert_eq!((status.as_u16(), &body["code"]), (415, &json!("unsupported_media_type")), "{path}");
        }
    }
    assert_eq!(collector.total("custom").await, 0);
}

#[tokio::test]
async fn the_write_key_cannot_rewrite_the_past() {
    let collector = Collector::start(&[]);
    let events = json!([event(0), event(now() - 31 * DAY), event(now() - 29 * DAY)]);
    let body = json!({"batch_id": uuid(), "events": events, "lost": {"queue_full": 1_000_000_000}});
    let (status, receipt) = answer(with_write_key(&collector, "/v1/batch", &body)).await;
    assert_eq!((status.as_u16(), &receipt["accepted"]), (200, &json!(1)));
    for rejected in receipt["rejected"].as_array().unwrap() {
        assert_eq!(rejected["code"], "occurred_at_too_old");
        let message = rejected["message"].as_str().unwrap();
        assert!(message.contains("30 days") && message.contains("secret key"), "{message}");
    }
    assert_eq!(receipt["rejected"].as_array().unwrap().len(), 2);
    assert_eq!(collector.total("lost").await, 10_000, "more than a page can lose is not believed");
    // By the clock of the device it is as old as it says, whatever that clock shows.
    let body = json!({"batch_id": uuid(), "events": [event(1_000)]});
    let request = with_write_key(&collector, "/v1/batch", &body).header("tallymark-sent-at", "2000");
    assert_eq!(answer(request).await.1["accepted"], 1);
    let click = json!({"session_id": "s", "button_id": "b", "occurred_at": now() - 31 * DAY});
    let (status, problem) = answer(with_write_key(&collector, "/button/click", &click)).await;
    assert_eq!((status.as_u16(), &problem["code"]), (422, &json!("invalid_event")));
    assert!(problem["detail"].as_str().unwrap().contains("occurred_at_too_old"), "{problem}");
    // A server imports what it likes.
    let imported = json!({"batch_id": uuid(), "events": [event(0)]});
    assert_eq!(answer(collector.post("/v1/batch", &imported)).await.1["accepted"], 1);
}

/// Clients choose ids, so a stranger can send the id of a genuine event, or one id in two batches.
#[tokio::test]
async fn ids_that_a_stranger_repeats_change_no_genuine_count_and_jam_no_command() {
    let mut collector = Collector::start(&[]);
    let genuine = json!({"event_id": uuid(), "event_type": "custom", "name": "order", "occurred_at": now()});
    let junk = json!({"event_id": genuine["event_id"], "event_type": "custom", "name": "junk", "occurred_at": now()});
    let body = |event: &Value| json!({"batch_id": uuid(), "events": [event]});
    for _ in 0..2 {
        assert_eq!(answer(with_write_key(&collector, "/v1/batch", &body(&junk))).await.1["accepted"], 1);
    }
    assert_eq!(answer(collector.post("/v1/batch", &body(&genuine))).await.1["accepted"], 1);
    collector.stop();
    for command in [&["verify"][..], &["reconcile"], &["reconcile", "--repair"], &["reconcile"]] {
        let (succeeded, said) = collector.run(command);
        assert!(succeeded && said.contains("3 events"), "{command:?}: {said}");
    }
    collector.restart();
    for (name, count) in [("order", 1), ("junk", 2)] {
        let counted = collector.get(&format!("/v1/counts?event_type=custom&key={name}")).await;
        assert_eq!(counted["total"], count, "{name}");
    }
}

#[tokio::test]
async fn a_transfer_encoding_that_is_not_decoded_is_refused() {
    let collector = Collector::start(&[]);
    let mut stream = TcpStream::connect(collector.url.strip_prefix("http://").unwrap()).await.unwrap();
    let request = collector.post("/track", &json!({})).build().unwrap();
    let authorization = request.headers()["authorization"].to_str().unwrap();
    let head = format!(
        "POST /track HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\ncontent-type: application/json\r\n\
         transfer-encoding: gzip, chunked\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"2\r\n{}\r\n0\r\n\r\n").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 415 ") && response.contains("unsupported_encoding"), "{response}");
    assert_eq!(collector.total("custom").await, 0);
}
