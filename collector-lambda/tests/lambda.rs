//! The Lambda function as it is deployed: the real binary against a Lambda Runtime API, with the events
//! that each front door sends. It must answer just as the router does under the server.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod local;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tallymark::EventId;
use tallymark_collector::dynamodb::DynamoDb;
use tallymark_collector::firehose::Firehose;
use tallymark_collector::routes::{self, Collector};
use tallymark_collector::site::Sites;
use tallymark_collector::store::{Counters, Lake, Store};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tower::ServiceExt;

/// Nothing here takes as long, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
const ORIGIN: &str = "https://shop.example";

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
    /// Those that say what a client, a page or a cache may do. `x-request-id` is each request's own.
    headers: BTreeMap<&'static str, String>,
    body: String,
}

const HEADERS: [&str; 14] = [
    "content-type",
    "cache-control",
    "referrer-policy",
    "x-content-type-options",
    "www-authenticate",
    "allow",
    "accept-encoding",
    "vary",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
    "access-control-allow-credentials",
];

impl Call {
    fn new(method: &'static str, path: &'static str, key: Option<&str>, body: &Value) -> Self {
        let mut headers = vec![("Content-Type", "application/json".to_owned()), ("Origin", ORIGIN.into())];
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

    /// As a server gets it.
    fn request(&self) -> Request<Body> {
        let mut request = Request::builder().method(self.method).uri(format!("{}?{}", self.path, self.raw_query()));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        request.body(Body::from(self.body.clone())).unwrap()
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
        for all in ["headers", "multiValueHeaders"] {
            let headers = event[all].as_object_mut().unwrap();
            headers.retain(|name, _| !["Authorization", "Content-Type", "Origin"].contains(&name.as_str()));
            for (name, value) in &self.headers {
                let value = if all == "headers" { json!(value) } else { json!([value]) };
                headers.insert((*name).into(), value);
            }
        }
        self.body_in(&mut event, base64);
        event
    }
}

impl Answer {
    /// From what the function gives to its front door.
    fn from_event(event: &Value) -> Self {
        let header = |name: &str| {
            let within = |all: &str| {
                let value = event[all].as_object()?.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?.1;
                // Of several values, the last is the single one.
                let value = value.as_array().map_or(value, |values| values.last().unwrap());
                Some(value.as_str().unwrap().to_owned())
            };
            within("multiValueHeaders").or_else(|| within("headers"))
        };
        assert!(header("x-request-id").is_some(), "{event}");
        // A REST API returns base64 undecoded, unless it is told which types are binary.
        assert_ne!(event["isBase64Encoded"], true, "{event}");
        Self {
            status: event["statusCode"].as_u64().unwrap(),
            headers: HEADERS.into_iter().filter_map(|name| Some((name, header(name)?))).collect(),
            body: event["body"].as_str().unwrap_or_default().into(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

// ---- the function, and the service that runs it ----

type Answers = Arc<Mutex<HashMap<String, oneshot::Sender<Value>>>>;

/// The function and its Runtime API. One event at a time, as Lambda does it.
struct Function {
    process: Child,
    events: mpsc::UnboundedSender<(String, Value)>,
    answers: Answers,
    log: PathBuf,
}

#[derive(Clone)]
struct Runtime {
    events: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<(String, Value)>>>,
    answers: Answers,
}

async fn next(State(runtime): State<Runtime>) -> impl IntoResponse {
    let (id, event) = runtime.events.lock().await.recv().await.unwrap();
    let headers = [
        ("lambda-runtime-aws-request-id", id),
        ("lambda-runtime-deadline-ms", "4102444800000".into()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:collector".into()),
        ("lambda-runtime-trace-id", "Root=1-691f2c1a-3f0a6b1c2d4e5f6071829304;Parent=0;Sampled=0".into()),
    ];
    (headers, axum::Json(event))
}

async fn respond(State(runtime): State<Runtime>, Path(id): Path<String>, body: Bytes) -> StatusCode {
    let answer = runtime.answers.lock().unwrap().remove(&id).unwrap();
    answer.send(serde_json::from_slice(&body).unwrap()).unwrap();
    StatusCode::ACCEPTED
}

fn scratch(extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("lambda-{:016x}.{extension}", rand::random::<u64>()))
}

fn command(variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallymark-lambda"));
    command.env_clear().envs(variables.iter().copied()).envs([
        ("AWS_LAMBDA_FUNCTION_NAME", "collector"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/collector"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "2026/11/20/[$LATEST]0123456789abcdef"),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023"),
        ("AWS_REGION", local::REGION),
        ("AWS_ACCESS_KEY_ID", local::KEY),
        ("AWS_SECRET_ACCESS_KEY", local::KEY),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("_HANDLER", "bootstrap"),
    ]);
    command
}

impl Function {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let (events, queue) = mpsc::unbounded_channel();
        let answers = Answers::default();
        let runtime = Runtime { events: Arc::new(tokio::sync::Mutex::new(queue)), answers: Arc::clone(&answers) };
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(respond))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(respond))
            .with_state(runtime);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, router).await });
        let log = scratch("log");
        let stdout = std::fs::File::create(&log).unwrap();
        let process = command(variables).env("AWS_LAMBDA_RUNTIME_API", address).stdout(stdout).spawn().unwrap();
        Self { process, events, answers, log }
    }

    async fn invoke(&self, event: Value) -> Value {
        let (answer, answered) = oneshot::channel();
        let id = EventId::new(0, &mut rand::random::<u64>).to_string();
        self.answers.lock().unwrap().insert(id.clone(), answer);
        self.events.send((id, event)).unwrap();
        tokio::time::timeout(PATIENCE, answered).await.expect("the function answers").unwrap()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

// ---- both beside each other ----

struct Keys {
    secret: String,
    write: String,
}

fn sites() -> (String, Keys) {
    let path = scratch("json");
    let keys = tallymark_collector::site::add(&path, "shop", &[ORIGIN.into()], false, |_| Ok(())).unwrap();
    let json = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    (json, Keys { secret: keys.secret_key, write: keys.write_key })
}

async fn router(sites: &str, stream: &str, table: &str) -> Router {
    let config = local::config(local::endpoint()).await;
    let lake = Lake::Firehose(Firehose::new(&config, stream));
    let store = Store::new(lake, Counters::DynamoDb(DynamoDb::new(&config, table)));
    routes::router(Arc::new(Collector { sites: Sites::from_json(sites).unwrap(), store }))
}

async fn ask(router: &Router, call: &Call) -> Answer {
    let response = router.clone().oneshot(call.request()).await.unwrap();
    let header = |name| Some(response.headers().get_all(name).iter().next_back()?.to_str().unwrap().to_owned());
    let headers = HEADERS.into_iter().filter_map(|name| Some((name, header(name)?))).collect();
    let status = response.status().as_u16().into();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    Answer { status, headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

fn batch() -> Value {
    let id = || EventId::new(1_767_225_600_000, &mut rand::random::<u64>).to_string();
    json!({"batch_id": id(), "sdk": "test/1", "events": [
        {"event_id": id(), "event_type": "page_view", "url": "https://shop.example/ä?a=1&b=2#c", "session_id": "s"},
        {"event_id": id(), "event_type": "button_click", "button_id": "buy", "session_id": "s"},
        {"event_id": id(), "event_type": "custom"},
    ]})
}

/// A door: how it wraps a request.
type Door = fn(&Call, bool) -> Value;

const DOORS: [(&str, Door); 3] = [
    ("HTTP API", |call, base64| call.version_2(include_str!("data/http-api.json"), base64)),
    ("Function URL", |call, base64| call.version_2(include_str!("data/function-url.json"), base64)),
    // Its stage has the name of a part of a route.
    ("REST API", |call, base64| call.version_1(include_str!("data/rest-api.json"), base64)),
];

#[tokio::test]
async fn every_door_answers_as_the_router_does() {
    let (sites, keys) = sites();
    let (stream, table) = (local::new_stream().await, local::new_table().await);
    let router = router(&sites, &stream, &table).await;
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local::endpoint()),
        ("TALLYMARK_STREAM", &stream),
        ("TALLYMARK_TABLE", &table),
        ("TALLYMARK_SITES", &sites),
    ])
    .await;
    let (secret, write) = (Some(keys.secret.as_str()), Some(keys.write.as_str()));

    let mut batches = 0;
    for (door, event) in DOORS {
        for base64 in [false, true] {
            let answer = async |call: &Call| Answer::from_event(&function.invoke(event(call, base64)).await);

            let call = Call::new("POST", "/v1/batch", write, &batch());
            let first = answer(&call).await;
            assert_eq!(
                (first.status, first.headers["content-type"].as_str()),
                (200, "application/json"),
                "{door}: {first:?}"
            );
            let receipt = first.json();
            assert_eq!((&receipt["accepted"], &receipt["duplicate"]), (&json!(2), &json!(false)), "{door}");
            assert_eq!(receipt["rejected"][0]["index"], 2, "{door}");
            batches += 1;

            let track = json!({"name": "charge", "value": 100});
            let key = format!("{door}-{base64}");
            let same = [
                // A replay gets the same receipt, whoever answers it and however it is encoded.
                call.clone(),
                call.clone().gzip(),
                call.clone().gzip().cut(),
                call.clone().header("Content-Encoding", "br"),
                Call::new("POST", "/button/click", secret, &json!({"session_id": "s", "button_id": 7})).gzip(),
                Call::new("POST", "/track", secret, &json!({"name": "x".repeat(40 * 1024)})).gzip(),
                Call::new("POST", "/track", secret, &track).header("Idempotency-Key", &key),
                Call::new("GET", "/web/page_view/count", secret, &Value::Null)
                    .query("url", "https://shop.example/ä?a=1&b=2#c"),
                Call::new("GET", "/v1/counts/top", secret, &Value::Null).query("event_type", "button_click"),
                Call::new("GET", "/v1/limits", None, &Value::Null),
                Call::new("POST", "/v1/batch", None, &batch()),
                Call::new("POST", "/v1/batch", Some("wrong"), &batch()),
                Call::new("POST", "/v1/batch", write, &batch()).header("Origin", "https://other.example"),
                Call::new("GET", "/v1/counts", write, &Value::Null).query("event_type", "custom"),
                Call::new("POST", "/v1/batch", secret, &json!({"batch_id": 1})),
                Call::new("POST", "/button/click", secret, &json!({"session_id": "s"})),
                Call::new("GET", "/v1/v1/batch", secret, &Value::Null),
                Call::new("GET", "/v1", secret, &Value::Null),
                Call::new("GET", "/v1/batch", secret, &Value::Null),
                Call::new("OPTIONS", "/v1/batch", None, &Value::Null)
                    .header("Access-Control-Request-Method", "POST")
                    .header("Access-Control-Request-Headers", "authorization,content-type"),
            ];
            let mut statuses = Vec::new();
            for call in &same {
                let answer = answer(call).await;
                assert_eq!(answer, ask(&router, call).await, "{door}: {} {}", call.method, call.path);
                statuses.push(answer.status);
            }
            assert_eq!(
                statuses,
                [200, 200, 400, 415, 422, 413, 200, 200, 200, 200, 401, 401, 403, 403, 400, 422, 404, 404, 405, 200],
                "{door}"
            );
            assert_eq!(answer(&call).await.json(), {
                let mut again = receipt;
                again["duplicate"] = true.into();
                again
            });
            let count = answer(&same[7]).await.json();
            assert_eq!(count["count"], batches, "{door}");
            let top = answer(&same[8]).await.json();
            assert_eq!(top["top"], json!([{"key": "buy", "count": batches}]), "{door}");
        }
    }
    // Each batch went to the lake once, and each tracked event too.
    assert_eq!(local::lines(&stream).await.len(), 2 * batches + batches);
}

#[tokio::test]
async fn a_preflight_names_what_a_page_may_send() {
    let (sites, _) = sites();
    let (stream, table) = (local::new_stream().await, local::new_table().await);
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local::endpoint()),
        ("TALLYMARK_STREAM", &stream),
        ("TALLYMARK_TABLE", &table),
        ("TALLYMARK_SITES", &sites),
    ])
    .await;
    let call = Call::new("OPTIONS", "/v1/batch", None, &Value::Null)
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", "authorization,content-type");
    for (door, event) in DOORS {
        let answer = function.invoke(event(&call, false)).await;
        let header = |name: &str| {
            let value = &answer["headers"][name];
            let value = if value.is_null() { &answer["multiValueHeaders"][name][0] } else { value };
            value.as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(header("access-control-allow-origin"), ORIGIN, "{door}: {answer}");
        assert!(header("access-control-allow-headers").contains("authorization"), "{door}: {answer}");
    }
}

#[tokio::test]
async fn sites_come_from_a_secret() {
    let (sites, keys) = sites();
    let (stream, table) = (local::new_stream().await, local::new_table().await);
    let config = local::config(local::endpoint()).await;
    let secrets = aws_sdk_secretsmanager::Client::new(&config);
    let secret = secrets.create_secret();
    secret.name(&table).secret_string(&sites).send().await.unwrap();
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local::endpoint()),
        ("TALLYMARK_STREAM", &stream),
        ("TALLYMARK_TABLE", &table),
        ("TALLYMARK_SITES_SECRET", &table),
        ("TALLYMARK_SITES_REFRESH_SECONDS", "0"),
    ])
    .await;
    let call = Call::new("POST", "/v1/batch", Some(&keys.secret), &batch());
    let answer = Answer::from_event(&function.invoke(DOORS[0].1(&call, false)).await);
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(2)));

    // Another list of sites in the secret; then one that is none, which changes nothing.
    let (others, other_keys) = self::sites();
    for (list, key, status) in
        [(others.as_str(), &keys.secret, 401), (&others, &other_keys.secret, 200), ("{", &other_keys.secret, 200)]
    {
        secrets.put_secret_value().secret_id(&table).secret_string(list).send().await.unwrap();
        let call = Call::new("POST", "/v1/batch", Some(key), &batch());
        assert_eq!(Answer::from_event(&function.invoke(DOORS[0].1(&call, false)).await).status, status);
    }
    assert!(std::fs::read_to_string(&function.log).unwrap().contains("the sites stay as they were"));
}

#[tokio::test]
async fn the_address_of_a_page_is_what_its_front_door_says() {
    let (sites, keys) = sites();
    let mut sites: Value = serde_json::from_str(&sites).unwrap();
    sites["sites"][0]["store_ip"] = true.into();
    let (stream, table) = (local::new_stream().await, local::new_table().await);
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local::endpoint()),
        ("TALLYMARK_STREAM", &stream),
        ("TALLYMARK_TABLE", &table),
        ("TALLYMARK_SITES", &sites.to_string()),
    ])
    .await;
    for (_, event) in DOORS {
        let call = Call::new("POST", "/track", Some(&keys.write), &json!({"name": "n"}));
        let mut event = event(&call, false);
        for pointer in ["/requestContext/http/sourceIp", "/requestContext/identity/sourceIp"] {
            if let Some(address) = event.pointer_mut(pointer) {
                *address = "198.51.100.7".into();
            }
        }
        assert_eq!(function.invoke(event).await["statusCode"], 200);
    }
    let lines = local::lines(&stream).await;
    assert_eq!(lines.len(), DOORS.len());
    assert!(lines.iter().all(|line| line["ipaddress"] == "198.51.100.7"), "{lines:?}");
}

#[tokio::test]
async fn no_key_is_logged_at_any_level() {
    let (sites, keys) = sites();
    let (stream, table) = (local::new_stream().await, local::new_table().await);
    let function = Function::start(&[
        ("AWS_ENDPOINT_URL", local::endpoint()),
        ("TALLYMARK_STREAM", &stream),
        ("TALLYMARK_TABLE", &table),
        ("TALLYMARK_SITES", &sites),
        ("RUST_LOG", "trace"),
    ])
    .await;
    let wrong = "a-key-with-a-typo";
    for (key, status) in [(keys.secret.as_str(), 200), (&keys.write, 200), (wrong, 401)] {
        let call = Call::new("POST", "/v1/batch", Some(key), &batch());
        let answer = Answer::from_event(&function.invoke(DOORS[0].1(&call, false)).await);
        assert_eq!(answer.status, status);
    }
    let log = std::fs::read_to_string(&function.log).unwrap();
    assert!(log.contains(r#""level":"TRACE""#));
    for key in [keys.secret.as_str(), &keys.write, wrong] {
        assert!(!log.contains(key));
        assert!(!log.contains(&STANDARD.encode(format!("shop:{key}"))));
    }
}

#[test]
fn a_function_that_is_not_set_up_says_what_is_missing() {
    let stream = ("TALLYMARK_STREAM", "lake");
    let table = ("TALLYMARK_TABLE", "counters");
    let sites = ("TALLYMARK_SITES", r#"{"sites": 7}"#);
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[table, sites], "TALLYMARK_STREAM is not set"),
        (&[stream, sites], "TALLYMARK_TABLE is not set"),
        (&[stream, table], "set one of the variables TALLYMARK_SITES_SECRET"),
        (&[stream, table, sites, ("TALLYMARK_SITES_SECRET", "s")], "set one of the variables TALLYMARK_SITES_SECRET"),
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
