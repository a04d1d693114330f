//! The async client: a task that drives the [`Outbox`](crate::Outbox) over HTTP.

use crate::error::Error;
use crate::event::Event;
use crate::id::EventId;
use crate::outbox::{Answer, Attempt, Config, Mark, Next, Outbox, PushError, Stats};
use crate::retry::Backoff;
use crate::spool::MemorySpool;
use crate::wire::Receipt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a client whose last handle was dropped goes on delivering what it holds.
const DROP_GRACE: Duration = Duration::from_secs(5);
/// A receipt is never longer than this.
const RECEIPT_BYTES: usize = 1024 * 1024;

/// Tracks events and delivers them in the background. Clones are cheap and share one queue.
///
/// ```no_run
/// use std::time::Duration;
/// use tallymark::{Client, PageView};
///
/// # async fn example() -> Result<(), tallymark::Error> {
/// let client = Client::builder("https://collect.shop.example", "shop", "tms_…").build()?;
/// client.track(PageView::new("https://shop.example/").session_id("s1"))?;
///
/// let report = client.shutdown(Duration::from_secs(10)).await;
/// assert!(report.is_complete());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
}

/// What the clones share; the task has only what is in [`Shared`], so it notices when they are gone.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop(Stop::WithinGrace);
    }
}

type Random = fn() -> u64;

struct Shared {
    outbox: Mutex<Outbox<MemorySpool, Random>>,
    /// Wakes the task.
    wake: Notify,
    /// Changes whenever something was settled, and at the end.
    settled: watch::Sender<()>,
    stop: watch::Sender<Stop>,
    closed: AtomicBool,
    epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    No,
    /// Deliver what there is, but not for long.
    WithinGrace,
    Now,
}

/// What a client has done with its events; see [`Client::flush`] and [`Client::shutdown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Where every event has gone. What is still `queued` after a shutdown was held in memory and is lost.
    pub stats: Stats,
    complete: bool,
}

impl Report {
    /// Whether every event tracked before has been delivered, rejected or dropped.
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Client {
    /// A client for the collector at `endpoint` (such as `https://collect.shop.example`), with the site's
    /// `username` and one of its keys: the secret key, on a server.
    pub fn builder(endpoint: impl Into<String>, username: impl Into<String>, key: impl Into<String>) -> Builder {
        Builder {
            endpoint: endpoint.into(),
            username: username.into(),
            key: key.into(),
            config: Config::default(),
            timeout: Duration::from_secs(30),
        }
    }

    /// Queues an event and returns its id. Does not wait for the network or for anything else that takes
    /// long, so it can be called from sync and async code and from many threads.
    ///
    /// # Errors
    ///
    /// If the event breaks a limit, if the queue is full of batches on their way, or after a shutdown.
    pub fn track(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        let shared = &self.handle.shared;
        if shared.closed.load(Ordering::Acquire) {
            return Err(Error::closed());
        }
        let encoded = event.into().encode(wall_clock(), &mut rand::random::<u64>).map_err(Error::invalid)?;
        let mut outbox = shared.outbox();
        let pushed = outbox.push_encoded(shared.epoch.now(), &encoded);
        let needs_poll = outbox.needs_poll();
        drop(outbox);
        if needs_poll {
            shared.wake.notify_one();
        }
        match pushed {
            Ok(()) => Ok(encoded.event_id),
            Err(PushError::Invalid(invalid)) => Err(Error::invalid(invalid)),
            Err(PushError::QueueFull | PushError::Storage(_)) => Err(Error::queue_full()),
        }
    }

    /// Sends what is queued, and waits until all that was tracked before is answered for, or until
    /// `timeout` is over.
    pub async fn flush(&self, timeout: Duration) -> Report {
        let shared = &self.handle.shared;
        let mark = shared.outbox().flush();
        shared.wake.notify_one();
        let complete = tokio::time::timeout(timeout, shared.wait_for(mark)).await.unwrap_or(false);
        Report { stats: shared.outbox().stats(), complete }
    }

    /// Like [`flush`](Client::flush), and takes no more events from then on, through any clone.
    pub async fn shutdown(&self, timeout: Duration) -> Report {
        self.handle.shared.closed.store(true, Ordering::Release);
        let report = self.flush(timeout).await;
        self.handle.shared.stop(Stop::Now);
        report
    }

    /// Where every event has gone so far.
    pub fn stats(&self) -> Stats {
        self.handle.shared.outbox().stats()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Sets up a [`Client`].
#[derive(Clone)]
pub struct Builder {
    endpoint: String,
    username: String,
    key: String,
    config: Config,
    timeout: Duration,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor an endpoint, which may hold a credential.
        f.debug_struct("Builder")
            .field("username", &self.username)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Sends a batch when it holds this many events. Default 100, at most 500.
    pub fn batch_events(mut self, events: usize) -> Self {
        self.config.batch_events = events;
        self
    }

    /// Sends a batch when its first event is this old. Default 5 s.
    pub fn batch_age(mut self, age: Duration) -> Self {
        self.config.batch_age = milliseconds(age);
        self
    }

    /// How many batches may be on their way at once. Default 4.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.config.in_flight = batches;
        self
    }

    /// How many bytes of events may be queued. Beyond that the oldest batch is dropped and counted.
    /// Default 64 MiB.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.config.queue_bytes = bytes;
        self
    }

    /// When failed sends are tried again. Default: a random share of 0.5 s, doubling up to 5 min.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// How long one send may take. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts the client.
    ///
    /// # Errors
    ///
    /// If the endpoint is no plain `http` or `https` URL, if a credential cannot be sent in a header, or
    /// outside of a tokio runtime.
    pub fn build(self) -> Result<Client, Error> {
        let sender = Arc::new(Sender::new(&self)?);
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::config("build the client inside a tokio runtime").because(error))?;
        let random: Random = rand::random::<u64>;
        let outbox = match Outbox::new(self.config, MemorySpool::new(), random) {
            Ok(outbox) => outbox,
            Err(never) => match never {},
        };
        let shared = Arc::new(Shared {
            outbox: Mutex::new(outbox),
            wake: Notify::new(),
            settled: watch::Sender::new(()),
            stop: watch::Sender::new(Stop::No),
            closed: AtomicBool::new(false),
            epoch: Epoch::start(),
        });
        runtime.spawn(run(Arc::clone(&shared), sender));
        Ok(Client { handle: Arc::new(Handle { shared }) })
    }
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox<MemorySpool, Random>> {
        // The outbox is never left half changed by a panic, for nothing in it panics.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, how: Stop) {
        self.closed.store(true, Ordering::Release);
        self.stop.send_replace(how);
    }

    /// Whether it was reached before the task ended.
    async fn wait_for(&self, mark: Mark) -> bool {
        let mut settled = self.settled.subscribe();
        let mut stop = self.stop.subscribe();
        loop {
            settled.mark_unchanged();
            if self.outbox().is_settled(mark) {
                return true;
            }
            if *stop.borrow_and_update() == Stop::Now {
                return false;
            }
            tokio::select! {
                _ = settled.changed() => {}
                _ = stop.changed() => {}
            }
        }
    }
}

/// The task: does what the outbox says, until it is stopped.
async fn run(shared: Arc<Shared>, sender: Arc<Sender>) {
    let mut flying = JoinSet::new();
    let mut stop = shared.stop.subscribe();
    let mut deadline = None;
    loop {
        match *stop.borrow_and_update() {
            Stop::No => {}
            Stop::WithinGrace if deadline.is_none() => {
                deadline = Some(Instant::now() + DROP_GRACE);
                shared.outbox().flush();
            }
            Stop::WithinGrace => {}
            Stop::Now => break,
        }
        let now = shared.epoch.now();
        let next = shared.outbox().poll(now);
        // A poll may have dropped what is too old.
        shared.settled.send_replace(());
        let until = match next {
            Next::Send(attempt) => {
                let sender = Arc::clone(&sender);
                flying.spawn(async move { (attempt.batch_id, sender.send(attempt).await) });
                continue;
            }
            Next::WaitUntil(then) => Some(Instant::now() + Duration::from_millis(then.saturating_sub(now))),
            Next::Idle => None,
        };
        if deadline.is_some() && shared.outbox().stats().queued == 0 {
            break;
        }
        tokio::select! {
            Some(done) = flying.join_next(), if !flying.is_empty() => {
                // A send is never cancelled and does not panic, so there is always an outcome.
                if let Ok((batch, outcome)) = done {
                    let settled = shared.outbox().answer(shared.epoch.now(), batch, outcome.answer());
                    tracing::debug!(%batch, ?settled, "a batch was answered");
                    shared.settled.send_replace(());
                }
            }
            () = shared.wake.notified() => {}
            _ = stop.changed() => {}
            () = sleep_until(until) => {}
            () = sleep_until(deadline) => break,
        }
    }
    shared.closed.store(true, Ordering::Release);
    shared.stop.send_replace(Stop::Now);
}

async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

struct Sender {
    http: reqwest::Client,
    url: Url,
    headers: HeaderMap,
}

/// What came of a send, with everything that an [`Answer`] borrows.
enum Outcome {
    Receipt(Receipt),
    Status(u16, Option<u64>),
    None,
}

impl Outcome {
    fn answer(&self) -> Answer<'_> {
        match self {
            Self::Receipt(receipt) => Answer::Receipt {
                accepted: receipt.accepted,
                rejected: u32::try_from(receipt.rejected.len()).unwrap_or(u32::MAX),
                retry: &receipt.retry,
            },
            Self::Status(status, retry_after) => Answer::Status { status: *status, retry_after: *retry_after },
            Self::None => Answer::None,
        }
    }
}

impl Sender {
    fn new(builder: &Builder) -> Result<Self, Error> {
        let url = format!("{}/v1/batch", builder.endpoint.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| Error::config("the endpoint is no URL").because(error))?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return Err(Error::config("the endpoint must be an http or https URL without credentials"));
        }
        if builder.username.contains(':') {
            return Err(Error::config("a username has no colon"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(AUTHORIZATION, basic(&builder.username, &builder.key)?);
        let http = reqwest::Client::builder()
            .timeout(builder.timeout)
            // A redirect would carry the events, and perhaps the key, to somewhere else.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tallymark-rust/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Error::config("the HTTP client cannot be set up").because(error))?;
        Ok(Self { http, url, headers })
    }

    async fn send(&self, attempt: Attempt) -> Outcome {
        let request = self
            .http
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header("tallymark-sent-at", wall_clock())
            .body(attempt.body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(batch = %attempt.batch_id, error = %error.without_url(), "a send failed");
                return Outcome::None;
            }
        };
        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = response.headers().get(RETRY_AFTER).and_then(retry_after);
            tracing::debug!(batch = %attempt.batch_id, %status, "a batch was not taken");
            return Outcome::Status(status.as_u16(), retry_after);
        }
        match receipt(response).await {
            // Whatever answers for another batch, or says nothing we know, is not the collector.
            Some(receipt) if receipt.batch_id == attempt.batch_id => Outcome::Receipt(receipt),
            _ => Outcome::None,
        }
    }
}

async fn receipt(mut response: reqwest::Response) -> Option<Receipt> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > RECEIPT_BYTES {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).ok()
}

fn basic(username: &str, key: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{key}"))))
        .map_err(|error| Error::config("the username or the key cannot be sent").because(error))?;
    header.set_sensitive(true);
    Ok(header)
}

/// A `Retry-After` in milliseconds from now: seconds, or an HTTP date.
fn retry_after(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let then = httpdate::parse_http_date(text).ok()?;
    Some(milliseconds(then.duration_since(SystemTime::now()).unwrap_or_default()))
}

/// The outbox's clock: it starts at the wall clock's time and never jumps.
struct Epoch {
    wall: u64,
    start: Instant,
}

impl Epoch {
    fn start() -> Self {
        Self { wall: wall_clock(), start: Instant::now() }
    }

    fn now(&self) -> u64 {
        self.wall + milliseconds(self.start.elapsed())
    }
}

fn wall_clock() -> u64 {
    milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
