//! What comes to a door on the open internet: bombs, floods, crumbs and broken requests. The process lives, its
//! memory stays small, others are served, and who deserves an answer gets a clear one.
#![cfg(feature = "server")]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use support::{Collector, batch, lake_lines, uuid};

/// What a collector may have taken at most, whatever was done to it. A debug build takes 60 MB for itself.
const MEMORY: u64 = 200 << 20;

/// A connection that nobody waits for too long.
fn connect(collector: &Collector) -> TcpStream {
    let stream = TcpStream::connect(collector.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// All that is answered until the connection is closed. Who is refused may find it closed while still sending.
fn talk(collector: &Collector, bytes: &[u8]) -> String {
    let mut stream = connect(collector);
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut piece = [0; 65536];
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

/// The head of a request with the secret key, up to its last line.
fn head(collector: &Collector, line: &str) -> String {
    let credentials = STANDARD.encode(format!("shop:{}", collector.secret_key));
    format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {credentials}\r\ncontent-type: application/json\r\n")
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

/// It lives, it has counted nothing, and it has not taken much.
async fn is_unharmed(collector: &Collector, counted: u64) {
    assert_eq!(collector.post("/v1/batch", &batch(1)).send().await.unwrap().status(), 200);
    assert_eq!(collector.total("custom").await, counted + 1);
    let memory = collector.peak_memory();
    assert!(memory < MEMORY, "it took {memory} bytes");
}

#[tokio::test]
async fn bombs_of_every_build_are_defused() {
    let collector = Collector::start(&[]);
    let zeros = gzip(&vec![0; 1 << 20]);
    let limit = 512 * 1024;
    let many = |member: &[u8], bytes: usize| member.repeat(bytes / member.len());
    let bombs = [
        // Ten gigabytes of zeros: too large even when compressed.
        (many(&zeros, 10_000 * zeros.len()), 413, "body_too_large"),
        // As many as may be sent.
        (many(&zeros, limit), 413, "body_too_large"),
        (gzip(&gzip(&many(&zeros, limit))), 400, "invalid_json"),
        (many(&gzip(b""), limit), 400, "invalid_encoding"),
        (many(&gzip(b" "), limit), 400, "invalid_encoding"),
    ];
    let mut requests = tokio::task::JoinSet::new();
    for (bomb, status, code) in bombs {
        for _ in 0..16 {
            let request = collector.post("/v1/batch", &Value::Null).header("content-encoding", "gzip");
            let answer = request.body(bomb.clone()).send();
            requests.spawn(async move {
                // Who sends ten gigabytes is not listened to until the end, and may not see the answer.
                let Ok(answer) = answer.await else { return assert_eq!(code, "body_too_large") };
                assert_eq!(answer.status(), status);
                assert_eq!(answer.json::<Value>().await.unwrap()["code"], code);
            });
        }
    }
    requests.join_all().await;
    is_unharmed(&collector, 0).await;
}

#[tokio::test]
async fn nesting_without_end_is_refused_where_it_is() {
    let collector = Collector::start(&[]);
    let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let post = async |path: &str, body: String| {
        let answer = collector.post(path, &Value::Null).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    for levels in [200, 15_000, 100_000] {
        let deep = deep(levels);
        for body in [deep.clone(), format!(r#"{{"batch_id":{deep},"events":[]}}"#)] {
            assert_eq!(post("/v1/batch", body).await.0, 400);
        }
        let (id, event) = (uuid(), r#"{"event_type":"custom","name":"n"}"#);
        let inside = format!(r#"{{"event_type":"custom","name":"n","properties":{{"a":{deep}}}}}"#);
        let (status, receipt) =
            post("/v1/batch", format!(r#"{{"batch_id":"{id}","x":{deep},"events":[{deep},{inside},{event}]}}"#)).await;
        if levels <= 15_000 {
            assert_eq!((status, &receipt["accepted"]), (200, &json!(1)), "{receipt}");
            assert_eq!(post("/track", format!(r#"{{"a":{deep}}}"#)).await.1["code"], "invalid_event");
        } else {
            assert_eq!(status, 413);
        }
        // In a query it is text like any other.
        let url = format!("{}/web/page_view/count?url={}", collector.url, &deep[..deep.len().min(30_000)]);
        let request = collector.http.get(url).basic_auth("shop", Some(&collector.secret_key));
        assert_eq!(request.send().await.unwrap().json::<Value>().await.unwrap(), json!({"count": 0}));
    }
    is_unharmed(&collector, 2).await;
}

#[tokio::test]
async fn heads_without_end_are_cut_off() {
    let collector = Collector::start(&[]);
    let get = head(&collector, "GET /health");
    let many = |headers: usize| (0..headers).map(|n| format!("x-{n}: {n}\r\n")).collect::<String>();
    assert_eq!(statuses(&talk(&collector, format!("{get}{}connection: close\r\n\r\n", many(90)).as_bytes())), ["200"]);
    let flood = "x".repeat(8 << 20);
    let floods = [
        format!("{get}{}\r\n", many(2_000)),
        format!("{get}x: {flood}\r\n\r\n"),
        format!("{get}{flood}: x\r\n\r\n"),
        format!("GET /{flood} HTTP/1.1\r\nhost: x\r\n\r\n"),
        flood,
    ];
    for flood in floods {
        let answer = talk(&collector, flood.as_bytes());
        // Cut off in the middle, it may not see why.
        let known = ["400", "414", "431"].iter().any(|status| statuses(&answer) == [*status]) || answer.is_empty();
        assert!(known, "{answer}");
    }
    is_unharmed(&collector, 0).await;
}

#[tokio::test]
async fn two_hundred_slow_clients_delay_nobody() {
    // All of them have one address here, so that limit would help the others out.
    let collector = Collector::start(&["--rate-limit-per-address", "0"]);
    let post = head(&collector, "POST /v1/batch");
    let pages = (head(&collector, "GET /docs") + "\r\n").repeat(100);
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut stream = connect(&collector);
        match n % 4 {
            0 => write!(stream, "{post}content-length: 500000\r\n\r\n{{").unwrap(),
            1 => write!(stream, "{post}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\n").unwrap(),
            2 => stream.write_all(&post.as_bytes()[..post.len() / 2]).unwrap(),
            // Asks and asks, and reads nothing.
            _ => stream.write_all(pages.as_bytes()).unwrap(),
        }
        slow.push(stream);
    }
    for _ in 0..5 {
        assert_eq!(collector.post("/v1/batch", &batch(1)).send().await.unwrap().status(), 200);
    }
    // The others are cut off after a minute. They are all there still, so nobody had to wait for that.
    for stream in slow.iter().step_by(4) {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.peek(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    is_unharmed(&collector, 5).await;
    drop(slow);
    is_unharmed(&collector, 6).await;
}

#[tokio::test]
async fn a_request_that_can_be_read_in_two_ways_hides_no_other() {
    let collector = Collector::start(&[]);
    let post = head(&collector, "POST /track");
    let track = |name: &str| format!("{{\"name\":\"{name}\"}}");
    let chunked = format!("c\r\n{}\r\n0\r\n\r\n", track("n"));
    let hidden = format!("{post}content-length: 17\r\nconnection: close\r\n\r\n{}", track("hidden"));
    let cases = [
        // What both are is what they say of chunks, and it is the connection's last request.
        ("transfer-encoding: chunked\r\ncontent-length: 4", &chunked, "200"),
        ("content-length: 4\r\ntransfer-encoding: chunked", &chunked, "200"),
        ("content-length: 12\r\ncontent-length: 13", &track("n"), "400"),
        ("content-length: 12, 13", &track("n"), "400"),
        ("content-length: +12", &track("n"), "400"),
        ("content-length: 0x0c", &track("n"), "400"),
        ("content-length: -1", &track("n"), "400"),
        ("content-length: 18446744073709551628", &track("n"), "400"),
        ("content-length : 12", &track("n"), "400"),
        (" content-length: 12", &track("n"), "400"),
        ("x: a\rcontent-length: 12", &track("n"), "400"),
        ("transfer-encoding: chunked, identity", &chunked, "400"),
        ("transfer-encoding: xchunked", &chunked, "400"),
        ("transfer-encoding : chunked", &chunked, "400"),
        // The head is good, and the body never comes whole.
        ("transfer-encoding: chunked", &chunked.replace("c\r\n", "fffffffffffffffff\r\n"), "408"),
        ("transfer-encoding: chunked", &chunked.replace("c\r\n", "-c\r\n"), "408"),
        ("transfer-encoding: chunked", &chunked.replace("\r\n", "\n"), "408"),
        ("transfer-encoding: chunked", &chunked.replace("c\r\n", &format!("c;{}\r\n", "x".repeat(100_000))), "408"),
    ];
    for (lines, body, status) in cases {
        let answer = talk(&collector, format!("{post}{lines}\r\n\r\n{body}{hidden}").as_bytes());
        assert_eq!(statuses(&answer), [status], "{lines} {}", &body[..20.min(body.len())]);
    }
    for broken in ["GET /\r\n\r\n", "GET / HTTP/0.9\r\n\r\n", "\x16\x03\x01\x02\0", "\0", "GET /a\0b HTTP/1.1\r\n\r\n"]
    {
        assert_eq!(statuses(&talk(&collector, broken.as_bytes())), ["400"], "{broken:?}");
    }
    assert_eq!(talk(&collector, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "");
    assert_eq!(collector.get("/v1/counts?event_type=custom&key=hidden").await["total"], 0);
    is_unharmed(&collector, 2).await;
}

#[tokio::test]
async fn requests_in_a_row_and_requests_that_ask_first_are_answered_in_turn() {
    let collector = Collector::start(&[]);
    let (post, get) = (head(&collector, "POST /track"), head(&collector, "GET /nowhere") + "\r\n");
    let track = format!("{post}content-length: 2\r\n\r\n{{}}");
    let row = format!("{track}{get}{track}{get}{post}content-length: 2\r\nconnection: close\r\n\r\n[]");
    assert_eq!(statuses(&talk(&collector, row.as_bytes())), ["200", "404", "200", "404", "422"]);
    let asks = |head: &str, length: usize| {
        format!("{head}expect: 100-continue\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
    };
    assert_eq!(statuses(&talk(&collector, (asks(&post, 2) + "{}").as_bytes())), ["100", "200"]);
    // Refused before a byte of the body has to be sent.
    assert_eq!(statuses(&talk(&collector, asks(&post, 1 << 30).as_bytes())), ["413"]);
    let stranger = "POST /track HTTP/1.1\r\nhost: x\r\n";
    assert_eq!(statuses(&talk(&collector, asks(stranger, 2).as_bytes())), ["401"]);
    // Two keys: who stands in front of this may have believed the other.
    let two =
        head(&collector, "GET /v1/counts?event_type=custom") + "authorization: Basic eDp5\r\nconnection: close\r\n\r\n";
    let answer = talk(&collector, two.as_bytes());
    assert_eq!(statuses(&answer), ["401"]);
    assert!(answer.contains("auth_malformed"), "{answer}");
    is_unharmed(&collector, 3).await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_no_trouble() {
    let collector = Collector::start(&[]);
    let get = async |path: &str| {
        let request = head(&collector, &format!("GET {path}")) + "connection: close\r\n\r\n";
        statuses(&talk(&collector, request.as_bytes())).join(" ")
    };
    for key in ["%00", "%ff%fe", "%f0%9f%98", "%", "%zz", "%0d%0aset-cookie:%20a=b", "+", "'%20OR%201=1--"] {
        assert_eq!(get(&format!("/button/click/count?button_id={key}")).await, "200", "{key}");
        assert_eq!(get(&format!("/v1/counts?event_type=custom&key={key}")).await, "200", "{key}");
        assert_eq!(get(&format!("/v1/counts?event_type={key}")).await, "422", "{key}");
        assert_eq!(get(&format!("/v1/counts?event_type=custom&{key}=1")).await, "422", "{key}");
    }
    assert_eq!(get("/v1/counts?event_type=custom&event_type=custom").await, "422");
    assert_eq!(get("/v1/counts?event_type=custom&form=1763673600000").await, "422", "it is spelt `from`");
    for path in ["/%00", "/%ff", "/..%2f..%2fsites.json", "//", "/v1/batch/", "/V1/counts", "/v1%2fcounts", "*"] {
        assert_eq!(get(path).await, "404", "{path}");
    }
    let mut odd = head(&collector, "POST /track").into_bytes();
    for name in ["user-agent", "tallymark-sent-at", "x-request-id", "x-forwarded-for", "referer", "cookie"] {
        odd.extend_from_slice(name.as_bytes());
        odd.extend_from_slice(b": \xff\xfe\x80\r\n");
    }
    odd.extend_from_slice(b"connection: close\r\ncontent-length: 2\r\n\r\n{}");
    assert_eq!(statuses(&talk(&collector, &odd)), ["200"]);
    let mut odd = head(&collector, "POST /track").into_bytes();
    odd.extend_from_slice(b"origin: \xff\xfe\x80\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}");
    assert_eq!(statuses(&talk(&collector, &odd)), ["403"], "no page of the collector's own");
    is_unharmed(&collector, 1).await;
}

/// Names that are there twice, numbers that are none, halves of characters: each event is one or is refused, and what
/// is stored is what is counted.
#[tokio::test]
async fn json_with_more_than_one_meaning_gets_one() {
    let mut collector = Collector::start(&[]);
    let id = uuid();
    let post = async |body: String| {
        let answer = collector.post("/v1/batch", &Value::Null).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    for twice in ["batch_id", "events", "lost", "sent_at", "sdk"] {
        let body = json!({"batch_id": uuid(), "events": [], "lost": {}, "sent_at": 1, "sdk": "a"}).to_string();
        let again = json!({"batch_id": uuid(), "events": [], "lost": {}, "sent_at": 1, "sdk": "a"})[twice].to_string();
        let (status, problem) = post(body.replacen('{', &format!("{{\"{twice}\":{again},"), 1)).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_batch")), "{twice}");
    }
    let events = [
        // Of two, the last counts, in the lake as in the counters.
        format!(r#"{{"event_type":"page_view","event_type":"custom","name":"first","name":"last","event_id":"{id}"}}"#),
        format!(r#"{{"event_type":"custom","name":"again","event_id":"{}","event_id":"{id}"}}"#, uuid()),
        r#"{"event_type":"custom","name":"exact","occurred_at":-0,"weight":1.0,"properties":{"n":-0.0,"big":18446744073709551616}}"#.into(),
        r#"{"event_type":"custom","name":"n","weight":1e400}"#.into(),
        r#"{"event_type":"custom","name":"n","occurred_at":-1}"#.into(),
        r#"{"event_type":"custom","name":"n","occurred_at":18446744073709551616}"#.into(),
        r#"{"event_type":"custom","name":"n","weight":NaN}"#.into(),
        r#"{"event_type":"custom","name":"\udc00\ud800"}"#.into(),
        r#"{"event_type":"custom","name":"line\nand\u2028and\u0000"}"#.into(),
    ];
    let (_, receipt) = post(format!(r#"{{"batch_id":"{}","events":[{}]}}"#, uuid(), events.join(","))).await;
    let refused: Vec<_> = receipt["rejected"].as_array().unwrap().iter().map(|r| (&r["index"], &r["code"])).collect();
    let expected = [
        (1, "event_id_repeated"),
        (3, "invalid_json"),
        (4, "invalid_event"),
        (5, "invalid_event"),
        (6, "invalid_json"),
    ];
    // The lone surrogates of event 7 have become U+FFFD.
    let expected = expected.map(|(index, code)| (json!(index), json!(code)));
    assert_eq!(refused, expected.iter().map(|(index, code)| (index, code)).collect::<Vec<_>>());
    assert_eq!(receipt["accepted"], 4);
    assert_eq!(collector.get("/v1/counts?event_type=custom&key=%EF%BF%BD%EF%BF%BD").await["total"], 1);
    assert_eq!(collector.get("/v1/counts?event_type=custom&key=last").await["total"], 1);
    assert_eq!(collector.total("page_view").await, 0);
    collector.stop();
    let mut names: Vec<_> = lake_lines(&collector.data_dir()).iter().map(|line| line["name"].to_string()).collect();
    names.sort_unstable();
    assert_eq!(names, ["\"exact\"", "\"last\"", "\"line\\nand\u{2028}and\\u0000\"", "\"\u{fffd}\u{fffd}\""]);
}

/// What careless serializers write: each harms its own event at most.
#[tokio::test]
async fn one_bad_event_harms_no_other() {
    let collector = Collector::start(&[]);
    let bad: [(&[u8], bool); 9] = [
        (b"NaN", false),
        (b"-Infinity", false),
        (b"1e400", false),
        (b"\"\\ud800\"", true),
        (b"\"\\ud83d\\u0041\"", true),
        (b"\"a\nb\"", true),
        (b"\"C:\\dir\"", true),
        (b"\"\xff\"", true),
        (b"\"\\u00\"", true),
    ];
    let mut expected = 0;
    for (value, is_repaired) in bad {
        let event = |value: &[u8]| [br#"{"event_type":"custom","name":"n","properties":{"a":"#, value, b"}}"].concat();
        let batch_id = uuid();
        let start = format!(r#"{{"batch_id":"{batch_id}","events":["#);
        let body = [start.as_bytes(), &event(b"1"), b",", &event(value), b",", &event(b"2"), b"]}"].concat();
        for duplicate in [false, true] {
            let answer = collector.post("/v1/batch", &Value::Null).body(body.clone()).send().await.unwrap();
            let value = String::from_utf8_lossy(value);
            assert_eq!(answer.status(), 200, "{value}");
            let receipt: Value = answer.json().await.unwrap();
            assert_eq!(
                (&receipt["accepted"], &receipt["duplicate"]),
                (&json!(2 + u32::from(is_repaired)), &json!(duplicate))
            );
            let refused = receipt["rejected"].as_array().unwrap();
            assert_eq!(refused.len(), usize::from(!is_repaired), "{value}");
            assert!(
                refused.iter().all(|refused| refused["index"] == 1 && refused["code"] == "invalid_json"),
                "{value}"
            );
        }
        expected += 2 + u64::from(is_repaired);
    }
    assert_eq!(collector.total("custom").await, expected);
}

/// What is read until there is a whole response without a body, or the other side closes.
fn read_some(stream: &mut TcpStream) -> String {
    let mut piece = [0; 4096];
    let read = stream.read(&mut piece).unwrap_or(0);
    String::from_utf8_lossy(&piece[..read]).into_owned()
}

#[tokio::test]
async fn connections_may_be_idle_apart_from_slow_heads() {
    let collector = Collector::start(&["--keep-alive", "1s"]);
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut idle = connect(&collector);
    idle.write_all(request).unwrap();
    assert!(read_some(&mut idle).contains("200 OK"));
    // A head may take longer than a connection may be idle.
    let mut slow = connect(&collector);
    for (start, end) in [(0, 10), (10, request.len()), (0, 10), (10, request.len())] {
        slow.write_all(&request[start..end]).unwrap();
        if end == request.len() {
            assert!(read_some(&mut slow).contains("200 OK"));
        } else {
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    }
    assert_eq!(idle.read(&mut [0; 10]).unwrap(), 0, "it was idle for too long");
}

#[tokio::test]
async fn a_large_body_that_is_refused_does_not_lose_the_answer() {
    let collector = Collector::start(&[]);
    for length in [1_500_000, 5_000_000, 12_000_000] {
        for _ in 0..5 {
            let request = head(&collector, "POST /v1/batch") + &format!("content-length: {length}\r\n\r\n");
            let mut stream = connect(&collector);
            // As simple clients do: all of the request first.
            stream.write_all(request.as_bytes()).unwrap();
            stream.write_all(&vec![b' '; length]).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(statuses(&answer), ["413"], "{length} bytes");
            assert!(answer.contains("connection: close"), "{answer}");
        }
    }
    // Nobody sends for ever.
    let mut stream = connect(&collector);
    stream.write_all((head(&collector, "POST /v1/batch") + "content-length: 9999999999\r\n\r\n").as_bytes()).unwrap();
    let piece = vec![b' '; 1 << 20];
    let sent = (0..200).take_while(|_| stream.write_all(&piece).is_ok()).count();
    assert!(sent < 100, "it took {sent} MiB");
    is_unharmed(&collector, 0).await;
}

#[tokio::test]
async fn a_connection_is_closed_with_its_last_answer_when_the_collector_stops() {
    let mut collector = Collector::start(&[]);
    let mut stream = connect(&collector);
    let request = head(&collector, "POST /track") + "expect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    assert!(read_some(&mut stream).contains("100 Continue"), "it is in flight");
    collector.signal("-TERM");
    let address = collector.url.strip_prefix("http://").unwrap().to_owned();
    while TcpStream::connect(&address).is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stream.write_all(b"{}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK") && answer.contains("connection: close"), "{answer}");
    collector.stop();
}
