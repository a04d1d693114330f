//! A collector on loopback that follows the contract exactly, except for what a test's script does to a request. With
//! helpers for the tests that use it.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tallymark::{Batch, BatchId, EventId, Receipt, Rejected};
use tokio::sync::oneshot;

/// Longer than anything here takes. A wait that reaches it is a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the collector does with a request.
pub(crate) enum Act {
    Take,
    /// Accepts all but some events: those asked for again, and those rejected.
    Partly {
        retry: Vec<u32>,
        rejected: Vec<u32>,
    },
    /// Accepts the batch at once, and answers later.
    AnswerLate(Duration),
    /// Accepts the batch later, even if the client no longer waits for the answer.
    TakeLate(Duration),
    /// Does not accept the batch, and answers this, with a `Retry-After`.
    Status(u16, Option<String>),
    /// A proxy answers 200 with this text.
    Say(&'static str),
}

pub(crate) struct Request {
    /// The number of requests before this one.
    pub(crate) number: usize,
    pub(crate) at: Instant,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn batch_id(&self) -> BatchId {
        BatchId::parse(&self.text()[13..49]).unwrap()
    }

    pub(crate) fn events(&self) -> usize {
        ids(self.text()).count()
    }
}

/// What the collector has counted: each batch once.
pub(crate) struct Ledger {
    books: Mutex<Books>,
    /// The path of the collector. Another test may get the same port later, while this test's clients are still
    /// sending, so each test has a path of its own.
    pub(crate) path: String,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { books: Mutex::default(), path: format!("/{:016x}", rand::random::<u64>()) }
    }
}

#[derive(Default)]
struct Books {
    requests: usize,
    batches: HashMap<BatchId, (Vec<u8>, Receipt)>,
    counted: HashMap<EventId, u32>,
    lost: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

impl Ledger {
    /// How often each event was counted.
    pub(crate) fn counted(&self) -> HashMap<EventId, u32> {
        let books = self.books.lock().unwrap();
        assert!(books.wrong.is_empty(), "{:?}", books.wrong);
        books.counted.clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.books.lock().unwrap().requests
    }

    pub(crate) fn batches(&self) -> usize {
        self.books.lock().unwrap().batches.len()
    }

    /// What clients have reported as lost, by reason.
    pub(crate) fn lost(&self) -> BTreeMap<String, u64> {
        self.books.lock().unwrap().lost.clone()
    }

    fn take(&self, request: &Request, retry: Vec<u32>, rejected: &[u32]) -> Response {
        let mut books = self.books.lock().unwrap();
        let batch: Batch = match plain(request).and_then(|body| Ok(serde_json::from_slice(&body)?)) {
            Ok(batch) => batch,
            Err(error) => {
                books.wrong.push(format!("no batch: {error}"));
                return StatusCode::BAD_REQUEST.into_response();
            }
        };
        if let Some((first, receipt)) = books.batches.get(&batch.batch_id) {
            let receipt = Receipt { duplicate: true, ..receipt.clone() };
            // Compression makes no difference, so compare the text.
            if *first != plain(request).unwrap() {
                books.wrong.push(format!("the body of {} has changed", batch.batch_id));
            }
            return answer(&receipt);
        }
        let mut receipt = Receipt {
            batch_id: batch.batch_id,
            received_at: 1,
            duplicate: false,
            accepted: 0,
            rejected: Vec::new(),
            retry,
        };
        for (index, event) in (0..).zip(&batch.events) {
            let event_id = event["event_id"].as_str().and_then(EventId::parse);
            if rejected.contains(&index) {
                let (code, message) = ("name_too_long".into(), "`name` is too long".into());
                // The client must go by the index: some events have no id that can be read.
                receipt.rejected.push(Rejected { index, event_id: None, code, message });
            } else if !receipt.retry.contains(&index) {
                receipt.accepted += 1;
                match event_id {
                    Some(id) => *books.counted.entry(id).or_default() += 1,
                    None => books.wrong.push(format!("no event: {event}")),
                }
            }
        }
        for (reason, events) in batch.lost {
            *books.lost.entry(reason).or_default() += events;
        }
        books.batches.insert(batch.batch_id, (plain(request).unwrap(), receipt.clone()));
        answer(&receipt)
    }
}

fn answer(receipt: &Receipt) -> Response {
    serde_json::to_string(receipt).unwrap().into_response()
}

/// The uncompressed body.
fn plain(request: &Request) -> std::io::Result<Vec<u8>> {
    #[cfg(feature = "gzip")]
    if request.headers.contains_key("content-encoding") {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*request.body), &mut text)?;
        return Ok(text);
    }
    Ok(request.body.clone())
}

type Script = Arc<dyn Fn(&Request) -> Act + Send + Sync>;

/// A running collector in a thread of its own. Dropping it closes its port and all connections.
pub(crate) struct Collector {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Collector {
    pub(crate) fn start(script: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        Self::open(TcpListener::bind("127.0.0.1:0").unwrap(), Arc::default(), script)
    }

    pub(crate) fn open(
        listener: TcpListener,
        ledger: Arc<Ledger>,
        script: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let route = format!("{}/v1/batch", ledger.path);
        let (stop, stopped) = oneshot::channel::<()>();
        let state = (Arc::clone(&ledger), Arc::new(script) as Script);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = Router::new().route(&route, post(take)).with_state(state);
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { ledger, address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}{}", self.address, self.ledger.path)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn take(State((ledger, script)): State<(Arc<Ledger>, Script)>, headers: HeaderMap, body: Bytes) -> Response {
    let number = {
        let mut books = ledger.books.lock().unwrap();
        books.requests += 1;
        books.requests - 1
    };
    let request = Request { number, at: Instant::now(), headers, body: body.into() };
    match script(&request) {
        Act::Take => ledger.take(&request, Vec::new(), &[]),
        Act::Partly { retry, rejected } => ledger.take(&request, retry, &rejected),
        Act::AnswerLate(wait) => {
            let answer = ledger.take(&request, Vec::new(), &[]);
            tokio::time::sleep(wait).await;
            answer
        }
        Act::TakeLate(wait) => {
            let take = async move {
                tokio::time::sleep(wait).await;
                ledger.take(&request, Vec::new(), &[])
            };
            tokio::spawn(take).await.unwrap()
        }
        Act::Status(status, retry_after) => {
            let status = StatusCode::from_u16(status).unwrap();
            match retry_after {
                Some(wait) => (status, [("retry-after", wait)]).into_response(),
                None => status.into_response(),
            }
        }
        Act::Say(text) => text.into_response(),
    }
}

/// The ids of the events in a text, in any surroundings.
fn ids(text: &str) -> impl Iterator<Item = EventId> {
    text.split("{\"event_id\":\"").skip(1).filter_map(|rest| EventId::parse(rest.get(..36)?))
}

/// A directory that is removed when the test ends.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tallymark-test-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The events in all files of the directory.
    pub(crate) fn events(&self) -> HashSet<EventId> {
        let mut found = HashSet::new();
        collect(&self.0, &mut found);
        found
    }
}

fn collect(folder: &Path, found: &mut HashSet<EventId>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.extend(ids(&String::from_utf8_lossy(&bytes)));
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits until `is_so` returns `true`.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
