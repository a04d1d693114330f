//! The Lambda function as it is deployed: the real binary against a Lambda Runtime API, with the events
//! that each front door sends. It must answer just as the server does, which runs beside it on the same stores.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod lambda_runtime;
mod local_aws;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use lambda_runtime::{Function, ORIGIN, command, scratch, sites};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tallymark::EventId;
use tokio::net::{TcpListener, TcpStream};

// ---- requests, and how each front door wraps them ----

#[derive(Clone, Debug)]
struct Call {
    method: &'static str,
    path: &'static str,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
struct Answer {
    status: u64,
    headers: BTreeMap<String, String>,
    body: String,
}

/// What belongs to one request alone, and what only a connection needs.
const NOT_COMPARED: [&str; 4] = ["x-request-id", "content-length", "connection", "date"];

impl Call {
    fn new(method: &'static str, path: &'static str, key: Option<&str>, body: &Value) -> Self {
        let mut headers = vec![("Content-Type", "application/json".to_owned())];
        // Servers send none.
        if !key.is_some_and(|key| key.starts_with("tms_")) {
            headers.push(("Origin", ORIGIN.into()));
        }
        headers.extend(key.map(|key| ("Authorization", format!("Basic {}", STANDARD.encode(format!("shop:{key}"))))));
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        Self { method, path, query: Vec::new(), headers, body }
    }

    fn query(mut self, name: &'static str, value: &str) -> Self {
        self.query.push((name, value.into()));
        self
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }

    /// The same compressed. Front doors pass on as base64 what is no text.
    fn gzip(self) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.body).unwrap();
        Self { body: encoder.finish().unwrap(), ..self }.header("Content-Encoding", "gzip")
    }

    fn cut(mut self) -> Self {
        self.body.truncate(self.body.len() - 9);
        self
    }

    fn raw_query(&self) -> String {
        let encoded = |text: &str| -> String {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
            text.bytes().map(|b| if plain(b) { char::from(b).into() } else { format!("%{b:02X}") }).collect()
        };
        self.query.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
    }

    fn body_in(&self, event: &mut Value, base64: bool) {
        let body = match std::str::from_utf8(&self.body) {
            Ok(text) if !base64 => text.to_owned(),
            _ => STANDARD.encode(&self.body),
        };
        let base64 = base64 || std::str::from_utf8(&self.body).is_err();
        event["body"] = if body.is_empty() { Value::Null } else { body.into() };
        event["isBase64Encoded"] = base64.into();
    }

    /// As an HTTP API or a Function URL passes it on.
    fn version_2(&self, captured: &str, base64: bool) -> Value {
        let mut event: Value = serde_json::from_str(captured).unwrap();
        let stage = event["requestContext"]["stage"].as_str().unwrap().to_owned();
        let path = if stage == "$default" { self.path.to_owned() } else { format!("/{stage}{}", self.path) };
        event["rawPath"] = path.clone().into();
        event["rawQueryString"] = self.raw_query().into();
        if !self.query.is_empty() {
            event["queryStringParameters"] = self.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        }
        event["requestContext"]["http"]["method"] = self.method.into();
        event["requestContext"]["http"]["path"] = path.into();
        let headers = event["headers"].as_object_mut().unwrap();
        headers.retain(|name, _| {
            !["authorization", "content-type", "content-encoding", "origin"].contains(&name.as_str())
        });
        headers.insert("content-length".into(), self.body.len().to_string().into());
        headers.extend(self.headers.iter().map(|(name, value)| (name.to_lowercase(), value.as_str().into())));
        self.body_in(&mut event, base64);
        event
    }

    /// As a REST API passes it on.
    fn version_1(&self, captured: &str, base64: bool) -> Value {
        let mut event: Value = serde_json::from_str(captured).unwrap();
        let stage = event["requestContext"]["stage"].as_str().unwrap().to_owned();
        event["path"] = self.path.into();
        event["httpMethod"] = self.method.into();
        event["requestContext"]["path"] = format!("/{stage}{}", self.path).into();
        event["requestContext"]["httpMethod"] = self.method.into();
        if !self.query.is_empty() {
            event["queryStringParameters"] = self.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
            event["multiValueQueryStringParameters"] =
                self.query.iter().map(|(name, value)| (*name, json!([value]))).collect();
        }
        self.headers_in(&mut event);
        self.body_in(&mut event, base64);
        event
    }

    /// As a load balancer passes it on: with all values or with one of each, as the event has it.
    fn load_balancer(&self, captured: &str, base64: bool) -> Value {
        let mut event: Value = serde_json::from_str(captured).unwrap();
        event["path"] = self.path.into();
        event["httpMethod"] = self.method.into();
        // Taken apart, but not decoded.
        let raw = self.raw_query();
        let query = raw.split_terminator('&').map(|pair| pair.split_once('=').unwrap());
        if event.get("multiValueHeaders").is_some() {
            event["multiValueQueryStringParameters"] = query.map(|(name, value)| (name, json!([value]))).collect();
        } else {
            event["queryStringParameters"] = query.collect();
        }
        self.headers_in(&mut event);
        self.body_in(&mut event, base64);
        event
    }

    fn headers_in(&self, event: &mut Value) {
        for (all, is_all) in [("headers", false), ("multiValueHeaders", true)] {
            let Some(headers) = event.get_mut(all).and_then(Value::as_object_mut) else { continue };
            let own = ["authorization", "content-type", "content-encoding", "origin"];
            headers.retain(|name, _| !own.contains(&name.to_lowercase().as_str()));
            for (name, value) in &self.headers {
                headers.insert((*name).into(), if is_all { json!([value]) } else { json!(value) });
            }
        }
    }
}

impl Answer {
    /// From what the function gives to its front door, in the shape that this door wants.
    fn from_event(door: &Door, event: &Value) -> Self {
        let (wanted, other) =
            if door.all_values { ("multiValueHeaders", "headers") } else { ("headers", "multiValueHeaders") };
        assert_eq!(event.get(other), None, "{event}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let headers = event[wanted].as_object().unwrap().iter().map(|(name, value)| {
            let all = value.as_array().map(|all| all.iter().map(text).collect::<Vec<_>>().join(", "));
            assert_eq!(all.is_some(), door.all_values, "{event}");
            (name.clone(), all.unwrap_or_else(|| text(value)))
        });
        // A REST API returns base64 undecoded, unless it is configured with the binary types.
        assert_eq!(event["isBase64Encoded"], false, "{event}");
        assert_eq!(event.get("statusDescription").is_some(), door.is_load_balancer(), "{event}");
        Self::new(event["statusCode"].as_u64().unwrap(), headers, text(&event["body"]))
    }

    fn new(status: u64, headers: impl Iterator<Item = (String, String)>, body: String) -> Self {
        let mut headers: BTreeMap<_, _> = headers.collect();
        assert!(headers.contains_key("x-request-id"), "{headers:?}");
        headers.retain(|name, _| !NOT_COMPARED.contains(&name.as_str()));
        Self { status, headers, body }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

// ---- both beside each other ----

/// The server on the same stores.
struct Server {
    process: Child,
    url: String,
    folder: PathBuf,
}

impl Server {
    fn start(sites: &str, stream: &str, table: &str) -> Self {
        let folder = scratch("server");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("sites.json"), sites).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_tallymark-collector"))
            .current_dir(&folder)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir", "data", "--sites", "sites.json"])
            .args(["--lake", &format!("firehose:{stream}"), "--counters", &format!("dynamodb:{table}")])
            .envs([("AWS_ENDPOINT_URL", local_aws::endpoint()), ("AWS_REGION", local_aws::REGION)])
            .envs([("AWS_ACCESS_KEY_ID", local_aws::KEY), ("AWS_SECRET_ACCESS_KEY", local_aws::KEY)])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
        Self { process, url, folder }
    }

    async fn ask(&self, call: &Call) -> Answer {
        let url = format!("{}{}?{}", self.url, call.path, call.raw_query());
        let mut request = reqwest::Client::new().request(call.method.parse().unwrap(), url);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let response = request.body(call.body.clone()).send().await.unwrap();
        let all = |name| response.headers().get_all(name).iter().map(|value| value.to_str().unwrap());
        let header = |name| (String::from(name), all(name).collect::<Vec<_>>().join(", "));
        let headers: Vec<_> = response.headers().keys().map(|name| header(name.as_str())).collect();
        Answer::new(response.status().as_u16().into(), headers.into_iter(), response.text().await.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn batch() -> Value {
    let id = || EventId::new(1_767_225_600_000, &mut rand::random::<u64>).to_string();
    json!({"batch_id": id(), "sdk": "test/1", "events": [
        {"event_id": id(), "event_type": "page_view", "url": "https://shop.example/ä?a=1&b=2#c", "session_id": "s"},
        {"event_id": id(), "event_type": "button_click", "button_id": "buy", "session_id": "s"},
        {"event_id": id(), "event_type": "custom"},
    ]})
}

struct Door {
    name: &'static str,
    /// How it wraps a request, with the body as base64 or as it is.
    event: fn(&Call, bool) -> Value,
    /// Whether it takes all values of a header, or one.
    all_values: bool,
}

const DOORS: [Door; 5] = [
    Door {
        name: "HTTP API",
        event: |call, base64| call.version_2(include_str!("data/http-api.json"), base64),
        all_values: false,
    },
    Door {
        name: "Function URL",
        event: |call, base64| call.version_2(include_str!("data/function-url.json"), base64),
        all_values: false,
    },
    Door {
        // Its stage has the name of a part of a route.
        name: "REST API",
        event: |call, base64| call.version_1(include_str!("data/rest-api.json"), base64),
        all_values: true,
    },
    Door {
        name: "load balancer",
        event: |call, base64| call.load_balancer(include_str!("data/alb.json"), base64),
        all_values: false,
    },
    Door {
        name: "load balancer with all values",
        event: |call, base64| call.load_balancer(include_str!("data/alb-multi-value.json"), base64),
        all_values: true,
    },
];

impl Door {
    fn is_load_balancer(&self) -> bool {
        self.name.starts_with("load balancer")
    }

    async fn ask(&self, function: &Function, call: &Call, base64: bool) -> Answer {
        Answer::from_event(self, &function.invoke((self.event)(call, base64)).await)
    }
}

/// A function and a server on the same stores.
async fn both(sites: &str, stream: &str, table: &str) -> (Function, Server) {
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("TALLYMARK_DELIVERY_STREAM", stream),
        ("TALLYMARK_COUNTERS_TABLE", table),
        ("TALLYMARK_SITES", sites),
    ])
    .await;
    (function, Server::start(sites, stream, table))
}

/// What everybody may ask for.
const OPEN: [&str; 5] = ["/v1/limits", "/health", "/ready", "/openapi.json", "/docs"];
/// A key with all that means something in a query.
const KEY: &str = "a+b&c=d %2B%20ä#?/;<>\"";

#[tokio::test]
async fn every_door_answers_as_the_server_does() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, server) = both(&sites, &stream, &table).await;
    let (secret, write) = (Some(keys.secret.as_str()), Some(keys.write.as_str()));
    let click = json!({"session_id": "s", "button_id": KEY});
    let get = |path, key| Call::new("GET", path, key, &Value::Null);
    let post = |path, key, body: &Value| Call::new("POST", path, key, body);
    let mut batches = 0;
    for door in &DOORS {
        for (base64, gzip) in [(false, false), (false, true), (true, false), (true, true)] {
            let encoded = |call: Call| if gzip { call.gzip() } else { call };
            let case = format!("{}, base64 {base64}, gzip {gzip}", door.name);

            let call = encoded(post("/v1/batch", write, &batch()));
            let first = door.ask(&function, &call, base64).await;
            let receipt = first.json();
            assert_eq!((first.status, &receipt["accepted"], &receipt["duplicate"]), (200, &json!(2), &json!(false)));
            assert_eq!(receipt["rejected"][0]["index"], 2, "{case}");
            // A replay gets the same receipt from every door.
            let again = door.ask(&function, &call, base64).await;
            assert_eq!(again.body, first.body.replace(r#""duplicate":false"#, r#""duplicate":true"#), "{case}");
            assert_eq!((&again, &again.headers), (&server.ask(&call).await, &first.headers), "{case}");
            batches += 1;

            let key = case.as_str();
            let too_many = json!({"batch_id": receipt["batch_id"], "events": vec![json!({}); 501]});
            let posts = [
                (200, post("/button/click", secret, &click).header("Idempotency-Key", &format!("{key}, click"))),
                (200, post("/track", write, &json!({"name": "n", "value": 100})).header("Idempotency-Key", key)),
                (400, post("/v1/batch", secret, &json!({"batch_id": 1}))),
                (400, post("/v1/batch", secret, &json!([]))),
                (401, post("/v1/batch", None, &batch())),
                (401, post("/v1/batch", Some("wrong"), &batch())),
                (403, post("/v1/batch", write, &batch()).header("Origin", "https://other.example")),
                (404, post("/v1/v1/batch", secret, &batch())),
                (405, post("/health", secret, &batch())),
                (413, post("/v1/batch", secret, &json!({"batch_id": "x".repeat(513 * 1024)}))),
                (413, post("/v1/batch", secret, &too_many)),
                (413, post("/track", secret, &json!({"name": "x".repeat(40 * 1024)}))),
                (415, post("/v1/batch", secret, &batch()).header("Content-Type", "text/plain")),
                (422, post("/button/click", secret, &json!({"session_id": "s"}))),
                (422, post("/track", secret, &json!([]))),
                (422, post("/track", write, &json!({"other": key})).header("Idempotency-Key", key)),
            ];
            let posts = posts.map(|(status, call)| (status, encoded(call)));
            let others = [
                (400, post("/v1/batch", write, &batch()).gzip().cut()),
                (415, call.clone().header("Content-Encoding", "br")),
                (200, get("/button/click/count", secret).query("button_id", KEY)),
                (200, get("/web/page_view/count", secret).query("url", "https://shop.example/ä?a=1&b=2#c")),
                (200, get("/v1/counts", secret).query("event_type", "button_click").query("key", KEY)),
                (200, get("/v1/counts/top", secret).query("event_type", "button_click").query("limit", "9")),
                (403, get("/v1/counts", write).query("event_type", "custom")),
                (404, get("/v1", secret)),
                (405, get("/v1/batch", secret)),
                (422, get("/v1/counts", secret).query("event_type", KEY)),
                (422, get("/v1/counts", secret)),
                (200, Call::new("HEAD", "/health", None, &Value::Null)),
            ];
            for (status, call) in posts.iter().chain(&others) {
                let answer = door.ask(&function, call, base64).await;
                assert_eq!(answer, server.ask(call).await, "{case}: {} {}", call.method, call.path);
                assert_eq!(answer.status, *status, "{case}: {answer:?}");
            }
            for path in OPEN {
                let call = get(path, None);
                let answer = door.ask(&function, &call, base64).await;
                assert_eq!((answer.status, &answer), (200, &server.ask(&call).await), "{case}: {path}");
            }

            let count = door.ask(&function, &others[2].1, base64).await.json();
            assert_eq!(count, json!({"count": batches}), "{case}");
            let top = door.ask(&function, &others[5].1, base64).await.json();
            assert_eq!(top["top"].as_array().unwrap().len(), 2, "{case}: {top}");
        }
    }
    // Each batch went to the lake once, and each single event too.
    assert_eq!(local_aws::lines(&stream).await.len(), 2 * batches + 2 * batches);
}

#[tokio::test]
async fn every_door_says_when_nothing_can_be_stored() {
    let (sites, keys) = sites();
    let stream = local_aws::new_stream().await;
    let (function, server) = both(&sites, &stream, "no-such-table").await;
    let calls = [
        Call::new("POST", "/v1/batch", Some(&keys.write), &batch()),
        Call::new("POST", "/track", Some(&keys.secret), &json!({"name": "n"})).gzip(),
        Call::new("GET", "/button/click/count", Some(&keys.secret), &Value::Null).query("button_id", "b"),
        Call::new("GET", "/ready", None, &Value::Null),
    ];
    for door in &DOORS {
        for (call, base64) in calls.iter().zip([false, true, false, false]) {
            let answer = door.ask(&function, call, base64).await;
            assert_eq!((answer.status, &answer), (503, &server.ask(call).await), "{}: {}", door.name, call.path);
            assert!(answer.headers["retry-after"].parse::<u32>().unwrap() > 0);
        }
    }
}

#[tokio::test]
async fn a_preflight_is_answered_the_same_at_every_door() {
    let (sites, _) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, server) = both(&sites, &stream, &table).await;
    for (origin, path) in
        [(ORIGIN, "/v1/batch"), (ORIGIN, "/track"), (ORIGIN, "/nothing"), ("https://other.example", "/v1/batch")]
    {
        let call = Call::new("OPTIONS", path, None, &Value::Null)
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "authorization,content-type,content-encoding");
        for door in &DOORS {
            let answer = door.ask(&function, &call, false).await;
            assert_eq!(answer, server.ask(&call).await, "{}: {path}", door.name);
            let header = |name: &str| answer.headers.get(name).map(String::as_str);
            assert_eq!(header("access-control-allow-origin"), Some(origin), "{}", door.name);
            assert!(header("access-control-allow-headers").unwrap().contains("authorization"), "{answer:?}");
            assert_eq!(header("access-control-max-age"), Some("7200"));
            assert!(header("vary").unwrap().contains("origin"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_load_balancer_may_ask_whether_it_is_well() {
    let (sites, _) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, _server) = both(&sites, &stream, &table).await;
    let event = serde_json::from_str(include_str!("data/alb-health.json")).unwrap();
    let answer = Answer::from_event(&DOORS[3], &function.invoke(event).await);
    assert_eq!((answer.status, answer.json()), (200, json!({"status": "ok"})));
}

/// An HTTP API hands on as text what is declared as JSON, whatever its encoding.
#[tokio::test]
async fn a_body_that_the_front_door_has_damaged_is_kept_by_its_client() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, _server) = both(&sites, &stream, &table).await;
    for door in &DOORS {
        let call = Call::new("POST", "/v1/batch", Some(&keys.write), &batch()).gzip();
        let mut event = (door.event)(&call, false);
        event["body"] = String::from_utf8_lossy(&call.body).into();
        event["isBase64Encoded"] = false.into();
        let answer = Answer::from_event(door, &function.invoke(event).await);
        assert_eq!((answer.status, &answer.json()["code"]), (408, &json!("request_timeout")), "{}", door.name);
    }
    assert!(function.log().contains("the front door has damaged a gzip body"));
}

/// What may be in a request that a stranger has made up, and that front doors hand on.
#[tokio::test]
async fn nothing_that_strangers_send_harms_the_function() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (mut function, server) = both(&sites, &stream, &table).await;
    function.is_ready().await;
    for door in &DOORS {
        let call = Call::new("POST", "/track", Some(&keys.secret), &json!({"name": "n"}));
        for host in ["a b", "[", ":99999", "ä", "", "%"] {
            let call = call.clone().header("Host", host).header("X-Note", "ä\u{1f600}").header("Cookie", "a=\"ä\"");
            assert_eq!(door.ask(&function, &call, false).await.status, 200, "{}: {host}", door.name);
        }
        // Twice is not once, wherever both get through.
        let mut event = (door.event)(&call, false);
        if door.all_values {
            event["multiValueHeaders"]["Content-Encoding"] = json!(["identity", "identity"]);
            assert_eq!(Answer::from_event(door, &function.invoke(event).await).status, 415, "{}", door.name);
        }

        let call = Call::new("GET", "/button/click/count", Some(&keys.secret), &Value::Null);
        for raw in ["button_id=<\"ä\">{|}^`\\", "button_id=%", "button_id=%zz%ff", "button_id", "=", "&&", "<", ""] {
            let mut event = (door.event)(&call, false);
            match door.name {
                "HTTP API" | "Function URL" => event["rawQueryString"] = raw.into(),
                _ => {
                    let pairs = raw.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                    let (one, all): (Map<_, _>, Map<_, _>) =
                        pairs.map(|(name, value)| ((name.into(), json!(value)), (name.into(), json!([value])))).unzip();
                    event["queryStringParameters"] = one.into();
                    event["multiValueQueryStringParameters"] = all.into();
                }
            }
            let status = function.invoke(event).await["statusCode"].clone();
            assert!([json!(200), json!(422)].contains(&status), "{}: {raw}: {status}", door.name);
        }
        for path in ["", "/", "//", "/ä b", "/%", "/%2e%2e/v1/limits", "/?", "/#", "*"] {
            let answer = door.ask(&function, &Call { path, ..call.clone() }, false).await;
            assert_eq!(answer.status, 404, "{}: {path}", door.name);
        }
    }
    // All by the same process, which serves on.
    let call = Call::new("GET", "/v1/limits", None, &Value::Null);
    assert_eq!(DOORS[0].ask(&function, &call, false).await, server.ask(&call).await);
    assert!(!function.log().contains("panicked"));
}

/// Passes connections on, and counts them.
async fn counted(to: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to.trim_start_matches("http://")).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    (url, count)
}

#[tokio::test]
async fn the_first_request_finds_all_connections_open() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let config = local_aws::config(local_aws::endpoint()).await;
    let secrets = aws_sdk_secretsmanager::Client::new(&config);
    secrets.create_secret().name(&table).secret_string(&sites).send().await.unwrap();
    let to_firehose = counted(local_aws::endpoint()).await;
    let to_dynamodb = counted(local_aws::endpoint()).await;
    let to_secrets = counted(local_aws::endpoint()).await;
    let mut function = Function::start(&[
        ("AWS_ENDPOINT_URL_FIREHOSE", &to_firehose.0),
        ("AWS_ENDPOINT_URL_DYNAMODB", &to_dynamodb.0),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &to_secrets.0),
        ("TALLYMARK_DELIVERY_STREAM", &stream),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES_SECRET", &table),
        ("TALLYMARK_SITES_REFRESH_SECONDS", "0"),
    ])
    .await;
    function.is_ready().await;
    let opened = || [&to_firehose, &to_dynamodb, &to_secrets].map(|(_, count)| count.load(Ordering::Relaxed));
    assert_eq!(opened(), [1, 1, 1]);
    for _ in 0..3 {
        let call = Call::new("POST", "/v1/batch", Some(&keys.write), &batch());
        assert_eq!(DOORS[0].ask(&function, &call, false).await.json()["accepted"], 2);
    }
    assert_eq!(opened(), [1, 1, 1]);
    // Lambda gives a part of one processor: more threads would only wait for each other. An emulator has one of its own.
    let emulators = std::env::var("BOOTSTRAP").is_ok_and(|program| program.contains("qemu"));
    assert_eq!(function.status("Threads"), 1 + u64::from(emulators));
}

#[tokio::test]
async fn sites_come_from_a_secret() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let config = local_aws::config(local_aws::endpoint()).await;
    let secrets = aws_sdk_secretsmanager::Client::new(&config);
    let secret = secrets.create_secret();
    secret.name(&table).secret_string(&sites).send().await.unwrap();
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("TALLYMARK_DELIVERY_STREAM", &stream),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES_SECRET", &table),
        ("TALLYMARK_SITES_REFRESH_SECONDS", "0"),
    ])
    .await;
    let call = Call::new("POST", "/v1/batch", Some(&keys.secret), &batch());
    let answer = DOORS[0].ask(&function, &call, false).await;
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(2)));

    // Another list of sites in the secret; then one that is none, which changes nothing.
    let (others, other_keys) = self::sites();
    for (list, key, status) in
        [(others.as_str(), &keys.secret, 401), (&others, &other_keys.secret, 200), ("{", &other_keys.secret, 200)]
    {
        secrets.put_secret_value().secret_id(&table).secret_string(list).send().await.unwrap();
        let call = Call::new("POST", "/v1/batch", Some(key), &batch());
        assert_eq!(DOORS[0].ask(&function, &call, false).await.status, status);
    }
    assert!(function.log().contains("the previous sites stay in use"));
}

#[tokio::test]
async fn the_list_of_sites_may_be_binary_and_begin_with_a_byte_order_mark() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let secrets = aws_sdk_secretsmanager::Client::new(&local_aws::config(local_aws::endpoint()).await);
    let binary = aws_sdk_secretsmanager::primitives::Blob::new(format!("\u{feff}{sites}"));
    secrets.create_secret().name(&table).secret_binary(binary).send().await.unwrap();
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("TALLYMARK_DELIVERY_STREAM", &stream),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES_SECRET", &table),
    ])
    .await;
    let call = Call::new("POST", "/v1/batch", Some(&keys.secret), &batch());
    assert_eq!(DOORS[0].ask(&function, &call, false).await.status, 200);
}

/// An address that takes connections and never answers.
async fn silence() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    url
}

#[tokio::test]
async fn a_silent_secrets_manager_stops_neither_the_start_nor_documentation_but_events_are_kept_by_clients() {
    let (stream, table, silence) = (local_aws::new_stream().await, local_aws::new_table().await, silence().await);
    let mut function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &silence),
        ("TALLYMARK_DELIVERY_STREAM", &stream),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES_SECRET", &table),
    ])
    .await;
    function.is_ready().await;
    let call = Call::new("POST", "/v1/batch", Some("tms_any"), &batch());
    let event = (DOORS[0].event)(&call, false);
    let answer = function.invoke(event).await;
    // Not 401: the key may well be good.
    assert_eq!((&answer["statusCode"], &answer["headers"]["retry-after"]), (&json!(503), &json!("2")));
    assert!(function.log().contains("the list of sites cannot be read yet"));
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

#[tokio::test]
async fn a_client_gets_503_before_lambda_ends_the_function() {
    let (sites, keys) = sites();
    let (table, silence) = (local_aws::new_table().await, silence().await);
    let mut function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("AWS_ENDPOINT_URL_FIREHOSE", &silence),
        ("TALLYMARK_DELIVERY_STREAM", "silent"),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES", &sites),
    ])
    .await;
    function.is_ready().await;
    let call = Call::new("POST", "/v1/batch", Some(&keys.secret), &batch());
    for left in [0, 1500] {
        let deadline = now() + left;
        let answer = function.invoke_by((DOORS[0].event)(&call, false), deadline).await;
        assert_eq!((&answer["statusCode"], &answer["headers"]["retry-after"]), (&json!(503), &json!("2")), "{left}");
        assert!(left == 0 || now() < deadline);
    }
    assert!(function.log().contains("the function's time is up"));
}

#[tokio::test]
async fn what_is_no_request_is_answered_quietly() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, _server) = both(&sites, &stream, &table).await;
    let scheduled = json!({"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}});
    for event in [scheduled, json!({"key1": "value1"}), json!({}), json!(null), json!([]), json!("warm"), json!(7)] {
        let answer = function.invoke(event.clone()).await;
        assert_eq!(answer, json!({"ignored": "the event is no HTTP request"}), "{event}");
    }
    assert!(!function.log().contains("ERROR"), "{}", function.log());
    // Somebody waits for an answer to this one, and must not take that for a receipt.
    let answer = function.invoke(json!({"requestContext": {"http": {}}})).await;
    assert!(answer["errorMessage"].as_str().unwrap().contains("no HTTP request"), "{answer}");

    // Members that are there and null are as good as absent.
    for door in &DOORS {
        let mut event = (door.event)(&Call::new("POST", "/v1/batch", Some(&keys.write), &batch()), false);
        for name in ["cookies", "pathParameters", "stageVariables", "isBase64Encoded", "queryStringParameters"] {
            event[name] = Value::Null;
        }
        event["requestContext"]["authorizer"] = Value::Null;
        for name in ["headers", "multiValueHeaders", "multiValueQueryStringParameters"] {
            if let Some(members) = event.get_mut(name).and_then(Value::as_object_mut) {
                members.insert("x-nothing".into(), Value::Null);
            }
        }
        assert_eq!(Answer::from_event(door, &function.invoke(event).await).status, 200, "{}", door.name);
    }
}

#[tokio::test]
async fn a_text_body_is_read_as_it_is_whatever_its_encoding_says() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, _server) = both(&sites, &stream, &table).await;
    for door in &DOORS {
        for encoding in ["gzip", "x-gzip", "GZIP"] {
            // As a REST API hands on what it has inflated.
            let call = Call::new("POST", "/v1/batch", Some(&keys.write), &batch()).header("Content-Encoding", encoding);
            let answer = door.ask(&function, &call, false).await;
            assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(2)), "{}: {encoding}", door.name);
            // What came as bytes is what it says it is, or refused.
            let answer = door.ask(&function, &call, true).await;
            assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("invalid_encoding")), "{}", door.name);
        }
        let call = Call::new("POST", "/v1/batch", Some(&keys.write), &batch()).header("Content-Encoding", "br");
        assert_eq!(door.ask(&function, &call, false).await.status, 415, "{}", door.name);
    }
}

#[tokio::test]
async fn the_context_of_an_authorizer_is_believed_only_from_an_http_api_and_only_if_configured() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let start = async |trust: &str| {
        Function::start(&[
            ("AWS_ENDPOINT_URL", local_aws::endpoint()),
            ("TALLYMARK_DELIVERY_STREAM", &stream),
            ("TALLYMARK_COUNTERS_TABLE", &table),
            ("TALLYMARK_SITES", &sites),
            ("TALLYMARK_TRUST_AUTHORIZER", trust),
        ])
        .await
    };
    let (trusting, other) = (start("true").await, start("").await);
    let mut read = Call::new("GET", "/button/click/count", None, &Value::Null).query("button_id", "b");
    // The authorizer has checked a secret key, which comes from a server.
    read.headers.retain(|(name, _)| *name != "Origin");
    let write = Call::new("POST", "/v1/batch", None, &batch());
    let with = |door: &Door, call: &Call, context: &Value| {
        let mut event = (door.event)(call, false);
        event["requestContext"]["authorizer"] = context.clone();
        event
    };
    let lambda = |username: &str, scope: &str| json!({"lambda": {"username": username, "scope": scope}});
    let (secret, public) = (lambda("shop", "secret"), lambda("shop", "write"));
    for door in &DOORS {
        let is_payload_2 = matches!(door.name, "HTTP API" | "Function URL");
        let status = |answer: Value| answer["statusCode"].as_u64().unwrap();
        let ask = async |function: &Function, call: &Call, context: &Value| {
            status(function.invoke(with(door, call, context)).await)
        };
        let expected = if is_payload_2 { [200, 403, 200] } else { [401; 3] };
        let answers = [
            ask(&trusting, &read, &secret).await,
            ask(&trusting, &read, &public).await,
            ask(&trusting, &write, &public).await,
        ];
        assert_eq!(answers, expected, "{}", door.name);
        // Origins are still the collector's to check.
        let elsewhere = write.clone().header("Origin", "https://other.example");
        assert_eq!(ask(&trusting, &elsewhere, &public).await, if is_payload_2 { 403 } else { 401 }, "{}", door.name);
        assert_eq!(ask(&other, &read, &secret).await, 401, "{}: not configured", door.name);
        // What is no such context is no key, and the request's own key is looked at.
        let odd = [
            json!({"username": "shop", "scope": "secret"}),
            json!({"jwt": {"claims": {"username": "shop", "scope": "secret"}}}),
            json!({"iam": {"username": "shop", "scope": "secret"}}),
            json!({"lambda": null}),
            json!({"lambda": {"username": 7, "scope": "secret"}}),
            json!({"lambda": {"username": "shop", "scope": "admin"}}),
            json!({"lambda": {"username": "shop"}}),
            json!("shop"),
            lambda("nobody", "secret"),
        ];
        for context in odd {
            assert_eq!(ask(&trusting, &read, &context).await, 401, "{}: {context}", door.name);
            let with_key =
                Call::new("GET", "/v1/counts", Some(&keys.secret), &Value::Null).query("event_type", "custom");
            assert_eq!(ask(&trusting, &with_key, &context).await, 200, "{}: {context}", door.name);
        }
        // A client's own words are elsewhere.
        let mut forged = (door.event)(&read, false);
        for name in ["headers", "queryStringParameters"] {
            forged[name]["requestContext"] = json!({"authorizer": secret}).to_string().into();
        }
        forged["body"] = json!({"requestContext": {"authorizer": secret}}).to_string().into();
        assert_eq!(status(trusting.invoke(forged).await), 401, "{}", door.name);
    }
}

#[tokio::test]
async fn cors_headers_may_be_left_to_the_front_door() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    for (cors, expected) in [("on", Some(ORIGIN)), ("off", None)] {
        let function = Function::start(&[
            ("AWS_ENDPOINT_URL", local_aws::endpoint()),
            ("TALLYMARK_DELIVERY_STREAM", &stream),
            ("TALLYMARK_COUNTERS_TABLE", &table),
            ("TALLYMARK_SITES", &sites),
            ("TALLYMARK_CORS", cors),
        ])
        .await;
        let call = Call::new("POST", "/v1/batch", Some(&keys.write), &batch());
        let answer = DOORS[0].ask(&function, &call, false).await;
        assert_eq!(answer.headers.get("access-control-allow-origin").map(String::as_str), expected);
        assert_eq!(answer.headers.contains_key("access-control-expose-headers"), expected.is_some());
    }
}

#[tokio::test]
async fn every_event_is_accounted_for_in_the_log() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let (function, _server) = both(&sites, &stream, &table).await;
    let call = Call::new("POST", "/v1/batch", Some(&keys.write), &batch());
    for _ in 0..2 {
        assert_eq!(DOORS[0].ask(&function, &call, false).await.status, 200);
    }
    let log = function.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let counts: Vec<_> = lines.iter().filter(|line| line.get("unaccounted").is_some()).collect();
    assert_eq!(counts.len(), 2);
    for line in counts {
        // As the template's metric filters read them.
        let numbers = ["received", "accepted", "rejected", "deferred", "unaccounted"].map(|name| line[name].as_u64());
        assert_eq!(numbers, [Some(3), Some(2), Some(1), Some(0), Some(0)]);
    }
}

/// Answers every call as AWS does when it has been asked too often.
async fn throttled() -> String {
    let app = axum::Router::new().fallback(|| async {
        (axum::http::StatusCode::BAD_REQUEST, r#"{"__type":"LimitExceededException","message":"Rate exceeded"}"#)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, app).await });
    url
}

#[tokio::test]
async fn a_function_is_ready_though_aws_is_asked_too_often_and_asks_seldom() {
    let (sites, _) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let ask = async |firehose: &str| {
        let variables = [
            ("AWS_ENDPOINT_URL", local_aws::endpoint()),
            ("AWS_ENDPOINT_URL_FIREHOSE", firehose),
            ("TALLYMARK_DELIVERY_STREAM", &stream),
            ("TALLYMARK_COUNTERS_TABLE", &table),
            ("TALLYMARK_SITES", &sites),
        ];
        let function = Function::start(&variables).await;
        let call = Call::new("GET", "/ready", None, &Value::Null);
        DOORS[0].ask(&function, &call, false).await.status
    };
    assert_eq!(ask(&throttled().await).await, 200);
    assert_eq!(ask("http://127.0.0.1:9").await, 503);
}

#[tokio::test]
async fn the_address_of_a_page_is_what_its_front_door_says() {
    let (sites, keys) = sites();
    let mut sites: Value = serde_json::from_str(&sites).unwrap();
    sites["sites"][0]["store_ip"] = true.into();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("TALLYMARK_DELIVERY_STREAM", &stream),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES", &sites.to_string()),
    ])
    .await;
    for door in &DOORS {
        let call = Call::new("POST", "/track", Some(&keys.write), &json!({"name": "n"}));
        let mut event = (door.event)(&call, false);
        for pointer in ["/requestContext/http/sourceIp", "/requestContext/identity/sourceIp"] {
            if let Some(address) = event.pointer_mut(pointer) {
                *address = "198.51.100.7".into();
            }
        }
        if door.is_load_balancer() {
            // The last is whom it got the request from, by a setting with the port; the others are hearsay.
            for pointer in ["/headers/x-forwarded-for", "/multiValueHeaders/x-forwarded-for/0"] {
                if let Some(addresses) = event.pointer_mut(pointer) {
                    *addresses = "192.0.2.1, 198.51.100.7:4711".into();
                }
            }
        }
        assert_eq!(function.invoke(event).await["statusCode"], 200, "{}", door.name);
    }
    let lines = local_aws::lines(&stream).await;
    assert_eq!(lines.len(), DOORS.len());
    assert!(lines.iter().all(|line| line["ipaddress"] == "198.51.100.7"), "{lines:?}");
}

#[tokio::test]
async fn no_key_is_logged_at_any_level() {
    let (sites, keys) = sites();
    let (stream, table) = (local_aws::new_stream().await, local_aws::new_table().await);
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local_aws::endpoint()),
        ("TALLYMARK_DELIVERY_STREAM", &stream),
        ("TALLYMARK_COUNTERS_TABLE", &table),
        ("TALLYMARK_SITES", &sites),
        ("RUST_LOG", "trace"),
    ])
    .await;
    let wrong = "a-key-with-a-typo";
    for (key, status) in [(keys.secret.as_str(), 200), (&keys.write, 200), (wrong, 401)] {
        let call = Call::new("POST", "/v1/batch", Some(key), &batch());
        let answer = DOORS[0].ask(&function, &call, false).await;
        assert_eq!(answer.status, status);
    }
    let log = function.log();
    assert!(log.contains(r#""level":"TRACE""#));
    for key in [keys.secret.as_str(), &keys.write, wrong] {
        assert!(!log.contains(key));
        assert!(!log.contains(&STANDARD.encode(format!("shop:{key}"))));
    }
}

#[test]
fn a_function_that_is_not_set_up_says_what_is_missing() {
    let stream = ("TALLYMARK_DELIVERY_STREAM", "lake");
    let table = ("TALLYMARK_COUNTERS_TABLE", "counters");
    let sites = ("TALLYMARK_SITES", r#"{"sites": 7}"#);
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[table, sites], "TALLYMARK_DELIVERY_STREAM is not set"),
        (&[stream, sites], "TALLYMARK_COUNTERS_TABLE is not set"),
        (&[stream, table], "set one of TALLYMARK_SITES_SECRET"),
        (&[stream, table, sites, ("TALLYMARK_SITES_SECRET", "s")], "set one of TALLYMARK_SITES_SECRET"),
        (&[stream, table, sites, ("TALLYMARK_TRUST_AUTHORIZER", "yes")], "it may be false or true"),
        (&[stream, table, sites, ("TALLYMARK_CORS", "*")], "it may be on or off"),
        // Nothing listens there, which keeps it from nothing but the warm-up.
        (&[stream, table, sites, ("AWS_ENDPOINT_URL", "http://127.0.0.1:9")], "the sites are not valid JSON"),
    ];
    for (variables, said) in cases {
        let output = command(variables).output().unwrap();
        assert!(!output.status.success());
        let log = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!((&last["level"], &last["message"]), (&json!("ERROR"), &json!("the collector cannot start")));
        assert!(last["cause"].as_str().unwrap().contains(said), "{last}");
    }
}
