//! The handle that services hold: takes events, and asks the worker for the rest.

use crate::builder::Builder;
use crate::error::{Error, Kind};
use crate::event::{Encoded, Event};
use crate::id::{self, EventId};
use crate::loss::Reason;
use crate::outbox::{Outbox, PushError, Stats, Watcher};
use crate::sender::{Sender, milliseconds, wall_clock};
use crate::storage::Storage;
use crate::worker;
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Tracks events and delivers them in the background. Clones are cheap and share one queue.
///
/// It works in a thread of its own, needs no runtime, and belongs to the process that built it: after a fork, build one
/// in each child. When the last clone is dropped, what is queued is
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
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    /// The process that has the worker.
    process: u32,
}

/// Longer than a process lives: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What clients and the worker share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// For the ids of events, which are made without waiting for the state.
    ids: Generator,
    pub(crate) sender: Sender,
    pub(crate) clock: Clock,
}

type Then = Box<dyn FnOnce(Result<Outcome, Error>) + Send>;

pub(crate) struct State {
    pub(crate) outbox: Outbox<Storage, Generator>,
    /// Who waits for the fate of an event, by a number: several may wait for events of the same id.
    pub(crate) waiting: HashMap<Watcher, Then>,
    watchers: Watcher,
    /// Whether a poll was asked for and has not begun. Another would only pile up before a worker that is held up.
    pub(crate) asked: bool,
    /// Send what there is as soon as nothing is on its way.
    pub(crate) hurry: bool,
    pub(crate) closed: bool,
    /// The events that were in memory when the worker ended.
    pub(crate) forgotten: Option<u64>,
}

/// What a client asks of the worker.
pub(crate) enum Command {
    /// Look at the outbox: there is something to do.
    Poll,
    /// Send what there is, and say when all that was tracked before is answered for.
    Flush { deadline: Instant, reply: Box<dyn FnOnce(bool) + Send> },
    /// End, and say so when the hooks have been told everything, or when that takes too long.
    Stop { patience: Duration, done: Box<dyn FnOnce() + Send> },
}

/// What became of one event; see [`Client::track_confirmed`].
#[must_use = "it may not have been delivered"]
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
    /// memory takes it, after a shutdown, or in a process that was forked from the client's.
    pub fn track(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        let event = event.into();
        if let Inner::Live(handle) = &self.inner {
            return handle.push(&event, None);
        }
        // Nobody keeps these ids, so it does not matter if for once the system has no random bits.
        let encoded = event.encode(wall_clock(), &mut || SysRng.try_next_u64().unwrap_or_default())?;
        if let Inner::Recording(recording) = &self.inner {
            recording.add(event);
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
        handle.push(&event.into(), Some(Box::new(then))).map(|_| ())
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
    /// If the key has a control character, such as the end of the line that it was read from, or in a process that was
    /// forked from the client's. Whether it is the right one, only the collector can say.
    pub fn set_key(&self, key: &str) -> Result<(), Error> {
        if let Inner::Live(handle) = &self.inner {
            let shared = handle.shared().ok_or_else(Error::closed)?;
            let mut state = shared.state();
            shared.sender.set_key(key)?;
            state.outbox.resume();
            drop(state);
            handle.command(Command::Poll);
        }
        Ok(())
    }

    /// Where every event has gone so far.
    pub fn stats(&self) -> Stats {
        self.shared().map(|shared| shared.state().outbox.stats()).unwrap_or_default()
    }

    pub(crate) fn close(&self) {
        if let Some(shared) = self.shared() {
            shared.state().closed = true;
        }
    }

    pub(crate) fn ask_to_flush(&self, timeout: Duration, reply: impl FnOnce(bool) + Send + 'static) {
        match &self.inner {
            Inner::Live(handle) if handle.is_here() => {
                let now = Instant::now();
                let deadline = now.checked_add(timeout).unwrap_or(now + FOREVER);
                handle.command(Command::Flush { deadline, reply: Box::new(reply) });
            }
            Inner::Live(_) => reply(false),
            Inner::Recording(_) | Inner::Disabled => reply(true),
        }
    }

    pub(crate) fn ask_to_stop(&self, patience: Duration, done: impl FnOnce() + Send + 'static) {
        if let Inner::Live(handle) = &self.inner
            && handle.is_here()
        {
            // A hook would wait for itself.
            let patience = if worker::is_hook() { Duration::ZERO } else { patience };
            handle.command(Command::Stop { patience, done: Box::new(done) });
        }
    }

    pub(crate) fn report(&self, complete: bool) -> Report {
        match self.shared() {
            Some(shared) => shared.state().report(complete),
            None => Report { complete, ..Report::default() },
        }
    }

    fn shared(&self) -> Option<&Shared> {
        match &self.inner {
            Inner::Live(handle) => handle.shared(),
            Inner::Recording(_) | Inner::Disabled => None,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>, commands: mpsc::UnboundedSender<Command>) -> Self {
        Self { shared, commands, process: std::process::id() }
    }

    /// Whether this is the process that built the client. One forked from it has a copy without the worker, in which
    /// a lock may be held for ever, and whose files are the other's.
    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    fn shared(&self) -> Option<&Shared> {
        self.is_here().then_some(&self.shared)
    }

    /// Stores an event, for somebody who may want to know soon what becomes of it.
    fn push(&self, event: &Event, then: Option<Then>) -> Result<EventId, Error> {
        let shared = self.shared().ok_or_else(Error::closed)?;
        let encoded = event.encode(wall_clock(), &mut || shared.random())?;
        let mut state = shared.state();
        if state.closed {
            return Err(Error::closed());
        }
        let pushed = state.push(shared.clock.now(), &encoded, then);
        let ask = !state.asked && (state.hurry || state.outbox.needs_poll());
        state.asked |= ask;
        #[cfg(feature = "spool")]
        let unsynced = pushed.as_ref().ok().and_then(|()| state.outbox.spool().unsynced());
        drop(state);
        if ask {
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
        })?;
        Ok(encoded.event_id)
    }

    fn command(&self, command: Command) {
        // After a shutdown nobody listens. What waits for an answer notices that it never comes.
        let _ = self.commands.send(command);
    }
}

impl Shared {
    pub(crate) fn new(outbox: Outbox<Storage, Generator>, ids: Generator, sender: Sender) -> Self {
        let state = State {
            outbox,
            waiting: HashMap::new(),
            watchers: 0,
            asked: false,
            hurry: false,
            closed: false,
            forgotten: None,
        };
        Self { state: Mutex::new(state), ids, sender, clock: Clock::start() }
    }

    fn random(&self) -> u64 {
        self.ids.next()
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
        self.hurry = true;
        Ok(())
    }

    pub(crate) fn report(&self, complete: bool) -> Report {
        let stats = self.outbox.stats();
        let volatile = self.forgotten.unwrap_or_else(|| self.volatile());
        // After a shutdown nobody answers a flush, and yet nothing may be left.
        Report { stats, complete: complete || stats.queued == 0, volatile }
    }

    /// How many of the queued events end with the process.
    pub(crate) fn volatile(&self) -> u64 {
        match self.outbox.spool() {
            // All of them. To count them one by one would hold up whoever tracks meanwhile.
            Storage::Memory(_) => self.outbox.stats().queued,
            #[cfg(feature = "spool")]
            directory => directory.volatile(),
        }
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

/// Where ids and delays get their random bits: a counter, mixed well, whose start and key are the operating system's.
/// It is the client's own: a thread's generator would be gone while the thread ends, and the same in processes that were
/// forked from one. Threads share it without waiting for each other.
// On a cache line of its own: every thread writes to it, and the state is beside it.
#[repr(align(128))]
pub(crate) struct Generator {
    counter: AtomicU64,
    key: u64,
}

impl Generator {
    pub(crate) fn seeded() -> Result<Self, SysError> {
        Ok(Self { counter: SysRng.try_next_u64()?.into(), key: SysRng.try_next_u64()? })
    }

    fn next(&self) -> u64 {
        id::mix(self.counter.fetch_add(1, Ordering::Relaxed)) ^ self.key
    }
}

impl id::Random for Generator {
    fn random(&mut self) -> u64 {
        self.next()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocking;
    use crate::outbox::Config;

    /// A client whose worker is held up for ever, and what it has been asked.
    fn without_worker() -> (Client, mpsc::UnboundedReceiver<Command>) {
        let builder = Client::builder("http://127.0.0.1:9", "shop", "key");
        let generator = || Generator::seeded().unwrap();
        let outbox = Outbox::new(Config::default(), Storage::memory(), generator()).unwrap();
        let (commands, asked) = mpsc::unbounded_channel();
        let shared = Shared::new(outbox, generator(), Sender::new(&builder).unwrap());
        (Client::live(Handle::new(Arc::new(shared), commands)), asked)
    }

    #[test]
    fn in_a_forked_process_it_takes_nothing_and_waits_for_nobody() {
        let (client, mut asked) = without_worker();
        let Inner::Live(handle) = &client.inner else { panic!("not live") };
        let (shared, commands, process) = (Arc::clone(&handle.shared), handle.commands.clone(), handle.process ^ 1);
        // As if another thread had held the lock when the process was forked. It is not there to let go of it.
        let _state = handle.shared.state();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let forked = blocking::Client::from(Client::live(Handle { shared, commands, process }));
            assert!(forked.track(Event::custom("n")).unwrap_err().is_closed());
            assert!(forked.track_confirmed(Event::custom("n")).unwrap_err().is_closed());
            assert!(forked.set_key("other").unwrap_err().is_closed());
            assert!(!forked.flush(FOREVER).is_complete());
            assert!(!forked.shutdown(FOREVER).is_complete());
            assert_eq!(forked.stats(), Stats::default());
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(asked.try_recv().is_err());
    }

    #[test]
    fn a_worker_that_is_held_up_is_asked_once() {
        let (client, mut asked) = without_worker();
        let events = |number| (0..number).for_each(|_| _ = client.track(Event::custom("n")).unwrap());
        events(1_000);
        assert_eq!(asked.len(), 1);
        assert!(matches!(asked.try_recv(), Ok(Command::Poll)));
        client.shared().unwrap().state().asked = false;
        events(1_000);
        assert_eq!(asked.len(), 1);
    }

    #[test]
    #[cfg(all(unix, feature = "spool"))]
    fn an_event_whose_sync_fails_is_not_accepted_also_if_it_fills_its_batch() {
        let folder = std::env::temp_dir().join(format!("tallymark-sync-{:016x}", rand::random::<u64>()));
        let client = Client::builder("http://127.0.0.1:9", "shop", "key")
            // Which of the two is said first makes no difference.
            .durability(crate::Durability::Power)
            .spool(&folder)
            .batch_age(Duration::MAX)
            .batch_events(3)
            .build()
            .unwrap();
        for (synced, place) in [(1, "in the middle"), (2, "the last")] {
            (0..synced).for_each(|_| _ = client.track(Event::custom("synced")).unwrap());
            match client.shared().unwrap().state().outbox.spool_mut() {
                Storage::Directory(directory) => directory.break_syncs(),
                Storage::Memory(_) => panic!("not in a directory"),
            }
            let error = client.track(Event::custom(place)).map(|_| place).unwrap_err();
            assert!(error.is_storage(), "{place}: {error}");
        }
        client.track(Event::custom("in the next batch")).unwrap();
        drop(client);
        let _ = std::fs::remove_dir_all(folder);
    }
}
