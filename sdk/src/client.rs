//! The handle that services hold: takes events, and asks the worker for the rest.

use crate::builder::Builder;
use crate::error::{Error, Kind};
use crate::event::{Encoded, Event};
use crate::id::EventId;
use crate::loss::Reason;
use crate::outbox::{Outbox, PushError, Stats, Watcher};
use crate::sender::{Sender, milliseconds, wall_clock};
use crate::storage::Storage;
use crate::worker;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Tracks events and delivers them in the background. Clones are cheap and share one queue.
///
/// It works in a thread of its own and needs no runtime. When the last clone is dropped, what is queued is
/// sent for a few seconds more, if the process lives that long; what is in a spool's directory is safe
/// either way. To know what became of it, use [`shutdown`](Client::shutdown).
///
/// ```no_run
/// use std::time::Duration;
/// use tallymark::{Client, PageView};
///
/// # async fn example() -> Result<(), tallymark::Error> {
/// let client = Client::builder("https://collect.shop.example", "shop", "tms_…").spool("/var/lib/shop/events").build()?;
/// client.track(PageView::new("https://shop.example/").session_id("s1"))?;
///
/// let report = client.shutdown(Duration::from_secs(10)).await;
/// println!("{} delivered, {} on disk", report.stats.delivered, report.on_disk());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Inner,
}

#[derive(Clone)]
enum Inner {
    Live(Arc<Handle>),
    Recording(Recording),
    Disabled,
}

/// What the clones of a live client share. The worker has only [`Shared`], so it notices when they are gone.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
}

pub(crate) type Random = fn() -> u64;

/// Longer than a process lives: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What clients and the worker share.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) sender: Sender,
    pub(crate) clock: Clock,
}

type Then = Box<dyn FnOnce(Result<Outcome, Error>) + Send>;

pub(crate) struct State {
    pub(crate) outbox: Outbox<Storage, Random>,
    /// Who waits for the fate of an event, by a number: several may wait for events of the same id.
    pub(crate) waiting: HashMap<Watcher, Then>,
    watchers: Watcher,
    pub(crate) closed: bool,
    /// The events that were in memory when the worker ended.
    pub(crate) forgotten: Option<u64>,
}

/// What a client asks of the worker.
pub(crate) enum Command {
    /// Look at the outbox: there is something to do.
    Poll,
    /// Send what there is as soon as nothing is on its way.
    Hurry,
    /// Send what there is, and say when all that was tracked before is answered for.
    Flush { deadline: Instant, reply: Box<dyn FnOnce(bool) + Send> },
    /// End, and say so when the hooks have been told everything, or when that takes too long.
    Stop { patience: Duration, done: Box<dyn FnOnce() + Send> },
}

/// What became of one event; see [`Client::track_confirmed`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The collector has stored and counted it.
    Delivered,
    /// The collector has refused it for good.
    Rejected {
        /// A stable code, such as `name_too_long`.
        code: String,
        /// The same for people.
        message: String,
    },
    /// It was dropped here.
    Dropped(Reason),
}

/// What a client has done with its events; see [`Client::flush`] and [`Client::shutdown`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Where every event has gone.
    pub stats: Stats,
    complete: bool,
    volatile: u64,
}

impl Report {
    /// Whether every event tracked before has been delivered, rejected or dropped.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Events that are queued in the spool's directory. After a shutdown the next client to use the
    /// directory delivers them.
    pub fn on_disk(&self) -> u64 {
        self.stats.queued - self.in_memory()
    }

    /// Events that are queued in memory. After a shutdown they are lost.
    pub fn in_memory(&self) -> u64 {
        self.volatile.min(self.stats.queued)
    }
}

impl Client {
    /// A client for the collector at `endpoint` (such as `https://collect.shop.example`), with the site's
    /// `username` and one of its keys: the secret key, on a server.
    pub fn builder(endpoint: impl Into<String>, username: impl Into<String>, key: impl Into<String>) -> Builder {
        Builder::new(endpoint.into(), username.into(), key.into())
    }

    /// A client that checks events and then forgets them. For tests, and for services that may run without
    /// a collector.
    pub fn disabled() -> Self {
        Self { inner: Inner::Disabled }
    }

    /// A client that only notes what it is told, and the notes. For tests of what a service tracks.
    ///
    /// ```
    /// use tallymark::{ButtonClick, Client};
    ///
    /// let (client, recording) = Client::recording();
    /// client.track(ButtonClick::new("buy"))?;
    /// assert_eq!(recording.events()[0].key(), "buy");
    /// # Ok::<(), tallymark::Error>(())
    /// ```
    pub fn recording() -> (Self, Recording) {
        let recording = Recording::default();
        (Self { inner: Inner::Recording(recording.clone()) }, recording)
    }

    pub(crate) fn live(handle: Handle) -> Self {
        Self { inner: Inner::Live(Arc::new(handle)) }
    }

    /// Queues an event and returns its id. Does not wait for the network, so it can be called from sync and
    /// async code and from many threads. In memory it takes well under a microsecond; with a spool it takes
    /// one `write` to a file, and with [`Durability::Power`](crate::Durability::Power) a sync of the disk.
    ///
    /// # Errors
    ///
    /// If the event breaks a limit, if the queue is full of batches on their way, if neither the spool nor
    /// memory takes it, or after a shutdown.
    pub fn track(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        let event = event.into();
        let encoded = event.encode(wall_clock(), &mut rand::random::<u64>)?;
        match &self.inner {
            Inner::Live(handle) => handle.push(&encoded, None)?,
            Inner::Recording(recording) => recording.add(event),
            Inner::Disabled => {}
        }
        Ok(encoded.event_id)
    }

    /// Queues an event and waits until it is known what became of it. For importers; events that are
    /// confirmed at the same time travel together. An event whose batch can no longer be read from the spool
    /// is dropped with [`Reason::Storage`]; once the collector has answered for it, that is what counts.
    ///
    /// # Errors
    ///
    /// As [`track`](Client::track), or if the client is shut down before the answer has come. With a spool
    /// the event may then still be delivered later.
    pub async fn track_confirmed(&self, event: impl Into<Event>) -> Result<Outcome, Error> {
        let (known, outcome) = oneshot::channel();
        self.track_then(event, move |outcome| _ = known.send(outcome))?;
        outcome.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    /// Queues an event, and calls `then` once it is known what became of it; never, if the client ends first.
    pub(crate) fn track_then(
        &self,
        event: impl Into<Event>,
        then: impl FnOnce(Result<Outcome, Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let Inner::Live(handle) = &self.inner else {
            self.track(event)?;
            then(Ok(Outcome::Delivered));
            return Ok(());
        };
        let encoded = event.into().encode(wall_clock(), &mut rand::random::<u64>)?;
        handle.push(&encoded, Some(Box::new(then)))?;
        handle.command(Command::Hurry);
        Ok(())
    }

    /// Sends what is queued, and waits until all that was tracked before is answered for, or until
    /// `timeout` is over.
    pub async fn flush(&self, timeout: Duration) -> Report {
        let (reply, complete) = oneshot::channel();
        self.ask_to_flush(timeout, move |complete| _ = reply.send(complete));
        let complete = complete.await.unwrap_or(false);
        self.report(complete)
    }

    /// Like [`flush`](Client::flush), and takes no more events from then on, through any clone. What is left
    /// in a spool's directory is free for the next client to deliver. In what is left of the time it waits for
    /// [hooks](Builder::on_loss) that have still to be told something, unless it is called by one.
    pub async fn shutdown(&self, timeout: Duration) -> Report {
        let start = Instant::now();
        self.close();
        let report = self.flush(timeout).await;
        let (reply, done) = oneshot::channel();
        self.ask_to_stop(timeout.saturating_sub(start.elapsed()), move || _ = reply.send(()));
        let _ = done.await;
        report
    }

    /// Uses another key from now on, and sends at once what a wrong one has held up.
    ///
    /// # Errors
    ///
    /// If the key has a control character, such as the end of the line that it was read from. Whether it is the
    /// right one, only the collector can say.
    pub fn set_key(&self, key: &str) -> Result<(), Error> {
        if let Inner::Live(handle) = &self.inner {
            let mut state = handle.shared.state();
            handle.shared.sender.set_key(key)?;
            state.outbox.resume();
            drop(state);
            handle.command(Command::Poll);
        }
        Ok(())
    }

    /// Where every event has gone so far.
    pub fn stats(&self) -> Stats {
        match &self.inner {
            Inner::Live(handle) => handle.shared.state().outbox.stats(),
            Inner::Recording(_) | Inner::Disabled => Stats::default(),
        }
    }

    pub(crate) fn close(&self) {
        if let Inner::Live(handle) = &self.inner {
            handle.shared.state().closed = true;
        }
    }

    pub(crate) fn ask_to_flush(&self, timeout: Duration, reply: impl FnOnce(bool) + Send + 'static) {
        match &self.inner {
            Inner::Live(handle) => {
                let now = Instant::now();
                let deadline = now.checked_add(timeout).unwrap_or(now + FOREVER);
                handle.command(Command::Flush { deadline, reply: Box::new(reply) });
            }
            Inner::Recording(_) | Inner::Disabled => reply(true),
        }
    }

    pub(crate) fn ask_to_stop(&self, patience: Duration, done: impl FnOnce() + Send + 'static) {
        if let Inner::Live(handle) = &self.inner {
            // A hook would wait for itself.
            let patience = if worker::is_hook() { Duration::ZERO } else { patience };
            handle.command(Command::Stop { patience, done: Box::new(done) });
        }
    }

    pub(crate) fn report(&self, complete: bool) -> Report {
        match &self.inner {
            Inner::Live(handle) => handle.shared.state().report(complete),
            Inner::Recording(_) | Inner::Disabled => Report { complete, ..Report::default() },
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Handle {
    /// Stores an event, for somebody who may want to know what becomes of it.
    fn push(&self, encoded: &Encoded, then: Option<Then>) -> Result<(), Error> {
        let shared = &self.shared;
        let mut state = shared.state();
        if state.closed {
            return Err(Error::closed());
        }
        let pushed = state.push(shared.clock.now(), encoded, then);
        let needs_poll = state.outbox.needs_poll();
        #[cfg(feature = "spool")]
        let unsynced = pushed.as_ref().ok().and_then(|()| state.outbox.spool().unsynced());
        drop(state);
        if needs_poll {
            self.command(Command::Poll);
        }
        #[cfg(feature = "spool")]
        if let Some(unsynced) = unsynced {
            unsynced.wait().map_err(|error| Error::new(Kind::Storage).because(error))?;
        }
        pushed.map_err(|error| match error {
            PushError::Invalid(invalid) => invalid.into(),
            PushError::QueueFull => Error::new(Kind::QueueFull),
            PushError::Storage(error) => Error::new(Kind::Storage).because(error),
        })
    }

    fn command(&self, command: Command) {
        // After a shutdown nobody listens. What waits for an answer notices that it never comes.
        let _ = self.commands.send(command);
    }
}

impl Shared {
    pub(crate) fn new(outbox: Outbox<Storage, Random>, sender: Sender, clock: Clock) -> Self {
        let state = State { outbox, waiting: HashMap::new(), watchers: 0, closed: false, forgotten: None };
        Self { state: Mutex::new(state), sender, clock }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // The outbox is never left half changed by a panic, for nothing in it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, now: u64, encoded: &Encoded, then: Option<Then>) -> Result<(), PushError<std::io::Error>> {
        let Some(then) = then else { return self.outbox.push_encoded(now, encoded) };
        self.outbox.push_watched(now, encoded, self.watchers)?;
        self.waiting.insert(self.watchers, then);
        self.watchers += 1;
        Ok(())
    }

    pub(crate) fn report(&self, complete: bool) -> Report {
        let stats = self.outbox.stats();
        let volatile = self.forgotten.unwrap_or_else(|| self.outbox.spool().volatile());
        // After a shutdown nobody answers a flush, and yet nothing may be left.
        Report { stats, complete: complete || stats.queued == 0, volatile }
    }
}

/// The outbox's clock: it starts at the wall clock's time and never jumps.
pub(crate) struct Clock {
    wall: u64,
    start: std::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { wall: wall_clock(), start: std::time::Instant::now() }
    }

    pub(crate) fn now(&self) -> u64 {
        self.wall + milliseconds(self.start.elapsed())
    }
}

/// What a [recording](Client::recording) client was told.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    events: Arc<Mutex<Vec<Event>>>,
}

impl Recording {
    /// The events so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

#[cfg(all(test, unix, feature = "spool"))]
mod tests {
    use super::*;

    #[test]
    fn an_event_whose_sync_fails_is_not_accepted_also_if_it_fills_its_batch() {
        let folder = std::env::temp_dir().join(format!("tallymark-sync-{:016x}", rand::random::<u64>()));
        let client = Client::builder("http://127.0.0.1:9", "shop", "key")
            .spool(&folder)
            .durability(crate::Durability::Power)
            .batch_age(Duration::MAX)
            .batch_events(3)
            .build()
            .unwrap();
        let Inner::Live(handle) = &client.inner else { panic!("not live") };
        client.track(Event::custom("synced")).unwrap();
        match handle.shared.state().outbox.spool_mut() {
            Storage::Directory(directory) => directory.break_syncs(),
            Storage::Memory(_) => panic!("not in a directory"),
        }
        for place in ["in the middle", "the last"] {
            let error = client.track(Event::custom(place)).unwrap_err();
            assert!(error.is_storage(), "{place}: {error}");
        }
        client.track(Event::custom("in the next batch")).unwrap();
        drop(client);
        let _ = std::fs::remove_dir_all(folder);
    }
}
