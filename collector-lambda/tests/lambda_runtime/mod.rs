//! The Lambda's real binary, and a Lambda Runtime API that runs it: one event at a time, as Lambda does it.
#![allow(dead_code, unreachable_pub, reason = "each program uses a part of this")]

use super::local_aws;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

/// Nothing here takes as long, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
pub const ORIGIN: &str = "https://shop.example";

/// An id, an event, and when it must be answered, in milliseconds since the Unix epoch.
type Invocation = (String, Value, u64);
type Answers = Arc<Mutex<HashMap<String, oneshot::Sender<Value>>>>;

/// The function and its Runtime API.
pub struct Function {
    process: Child,
    events: mpsc::UnboundedSender<Invocation>,
    answers: Answers,
    asked: watch::Receiver<u64>,
    log: PathBuf,
}

#[derive(Clone)]
struct Runtime {
    events: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Invocation>>>,
    answers: Answers,
    asked: watch::Sender<u64>,
}

async fn next(State(runtime): State<Runtime>) -> impl IntoResponse {
    runtime.asked.send_modify(|asked| *asked += 1);
    let Some((id, event, deadline)) = runtime.events.lock().await.recv().await else {
        // Nobody will ask it anything any more.
        return std::future::pending().await;
    };
    let headers = [
        ("lambda-runtime-aws-request-id", id),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
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

pub fn scratch(extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("lambda-{:016x}.{extension}", rand::random::<u64>()))
}

/// The program with what Lambda tells it. `BOOTSTRAP` names another than the one built for this, such as that of a
/// package, after the emulator it needs, if any.
pub fn command(variables: &[(&str, &str)]) -> Command {
    let program = std::env::var("BOOTSTRAP").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tallymark-lambda").into());
    let mut words = program.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command.env_clear().envs(variables.iter().copied()).envs([
        ("AWS_LAMBDA_FUNCTION_NAME", "collector"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/collector"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "2026/11/20/[$LATEST]0123456789abcdef"),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023"),
        ("AWS_REGION", local_aws::REGION),
        ("AWS_ACCESS_KEY_ID", local_aws::KEY),
        ("AWS_SECRET_ACCESS_KEY", local_aws::KEY),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("_HANDLER", "bootstrap"),
    ]);
    command
}

impl Function {
    pub async fn start(variables: &[(&str, &str)]) -> Self {
        let (events, queue) = mpsc::unbounded_channel();
        let answers = Answers::default();
        let (ask, asked) = watch::channel(0);
        let events_of = Arc::new(tokio::sync::Mutex::new(queue));
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(respond))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(respond))
            .with_state(Runtime { events: events_of, answers: Arc::clone(&answers), asked: ask });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async { axum::serve(listener, router).await });
        let log = scratch("log");
        let stdout = std::fs::File::create(&log).unwrap();
        let process = command(variables).env("AWS_LAMBDA_RUNTIME_API", address).stdout(stdout).spawn().unwrap();
        Self { process, events, answers, asked, log }
    }

    /// Waits until it asks for its first event: until then, it is being initialised.
    pub async fn is_ready(&mut self) {
        let asked = self.asked.wait_for(|asked| *asked > 0);
        tokio::time::timeout(PATIENCE, asked).await.expect("the function starts").unwrap();
    }

    pub async fn invoke(&self, event: Value) -> Value {
        self.invoke_by(event, 4_102_444_800_000).await
    }

    /// The same with a deadline, in milliseconds since the Unix epoch.
    pub async fn invoke_by(&self, event: Value, deadline: u64) -> Value {
        let (answer, answered) = oneshot::channel();
        let id = format!("{:032x}", rand::random::<u128>());
        self.answers.lock().unwrap().insert(id.clone(), answer);
        self.events.send((id, event, deadline)).unwrap();
        tokio::time::timeout(PATIENCE, answered).await.expect("the function answers").unwrap()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// A figure that the system keeps of the process.
    pub fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.log);
    }
}

pub struct Keys {
    pub secret: String,
    pub write: String,
}

/// A list of one site, and its keys.
pub fn sites() -> (String, Keys) {
    let path = scratch("json");
    let keys = tallymark_collector::sites::file::add(&path, "shop", &[ORIGIN.into()], false, |_| Ok(())).unwrap();
    let json = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    (json, Keys { secret: keys.secret_key, write: keys.write_key })
}
