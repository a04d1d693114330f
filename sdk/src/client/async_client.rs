//! The async client.

use crate::client::clock::wall_clock;
use crate::client::error::Error;
use crate::client::handle::Handle;
use crate::client::hooks::is_hook;
use crate::client::outcome::Outcome;
use crate::client::random::system_random;
use crate::client::recording::Recording;
use crate::client::report::Report;
use crate::client::shared::{Command, Shared};
use crate::core::id::EventId;
use crate::core::outbox::Stats;
use crate::event::Event;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Tracks events and delivers them in the background. Clones are cheap and share one queue.
///
/// The client works in a thread of its own and needs no runtime. It belongs to the process that built it: after a fork,
/// build one in each child. When the last clone is dropped, the client goes on sending for up to 5 seconds, if the
/// process lives that long; events in a spool's directory are safe either way. Call [`shutdown`](Client::shutdown) to
/// learn whether all events were delivered.
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

/// The longest time to wait, a year, where an [`Instant`] cannot hold what the caller asked for.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Client {
    /// A client that validates events and then discards them. For tests, and for services that may run without a
    /// collector.
    pub fn disabled() -> Self {
        Self { inner: Inner::Disabled }
    }

    /// A client that records events instead of sending them, and its recording. For tests of what a service tracks.
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

    pub(super) fn live(handle: Handle) -> Self {
        Self { inner: Inner::Live(Arc::new(handle)) }
    }

    /// Queues an event and returns its id.
    ///
    /// It never waits for the network, so it can be called from sync and async code and from many threads. In memory it
    /// takes about a microsecond. A spool adds one `write` to a file, and
    /// [`Durability::Power`](crate::Durability::Power) a sync of the disk.
    ///
    /// # Errors
    ///
    /// If the event exceeds a limit, if the queue is full and every batch in it is in flight, if the event cannot be
    /// stored, after a shutdown, or in a process that was forked from the client's.
    pub fn track(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        let event = event.into();
        if let Inner::Live(handle) = &self.inner {
            return handle.push(&event, None);
        }
        // These ids are never sent, so they need not be unique if the system has no random bits.
        let encoded = event.encode(wall_clock(), &mut system_random)?;
        if let Inner::Recording(recording) = &self.inner {
            recording.add(event);
        }
        Ok(encoded.event_id)
    }

    /// Queues an event and waits for its [`Outcome`].
    ///
    /// For importers. Events that wait at the same time are sent together. If the batch can no longer be read from the
    /// spool, the outcome is [`Reason::Storage`](crate::Reason::Storage), unless the collector has answered for the
    /// event.
    ///
    /// # Errors
    ///
    /// As [`track`](Client::track), or if the client is shut down before the collector answers. With a spool, the event
    /// may still be delivered later.
    pub async fn track_confirmed(&self, event: impl Into<Event>) -> Result<Outcome, Error> {
        let (sender, outcome) = oneshot::channel();
        self.track_then(event, move |outcome| _ = sender.send(outcome))?;
        outcome.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    /// Queues an event, and calls `on_outcome` with its outcome, or never if the client ends first.
    pub(super) fn track_then(
        &self,
        event: impl Into<Event>,
        on_outcome: impl FnOnce(Result<Outcome, Error>) + Send + 'static,
    ) -> Result<(), Error> {
        let Inner::Live(handle) = &self.inner else {
            self.track(event)?;
            on_outcome(Ok(Outcome::Delivered));
            return Ok(());
        };
        handle.push(&event.into(), Some(Box::new(on_outcome))).map(|_| ())
    }

    /// Sends what is queued, and waits until every event tracked before is delivered, rejected or dropped, or until
    /// `timeout` is over.
    pub async fn flush(&self, timeout: Duration) -> Report {
        self.flush_as(false, timeout).await
    }

    async fn flush_as(&self, is_last: bool, timeout: Duration) -> Report {
        let (reply, complete) = oneshot::channel();
        self.request_flush(timeout, is_last, move |complete| _ = reply.send(complete));
        let complete = complete.await.unwrap_or(false);
        self.report(complete)
    }

    /// Like [`flush`](Client::flush), and ends the client: from now on, every clone refuses events.
    ///
    /// The next client that uses the spool's directory delivers what is left in it. In the remaining time, `shutdown`
    /// waits until the [hooks](crate::Builder::on_loss) have been called for everything, unless a hook calls it.
    ///
    /// It returns early if the collector refuses the credentials, because waiting does not help then. The report says
    /// so.
    pub async fn shutdown(&self, timeout: Duration) -> Report {
        let start = Instant::now();
        self.close();
        let report = self.flush_as(true, timeout).await;
        let (reply, done) = oneshot::channel();
        self.request_stop(timeout.saturating_sub(start.elapsed()), move || _ = reply.send(()));
        let _ = done.await;
        report
    }

    /// Replaces the key, and retries at once if a wrong key has paused sending.
    ///
    /// # Errors
    ///
    /// If the key has a control character, such as the end of the line that it was read from, or in a process that was
    /// forked from the client's. A wrong key is no error here: only the collector can tell.
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

    pub(super) fn close(&self) {
        if let Some(shared) = self.shared() {
            shared.state().closed = true;
        }
    }

    /// `is_last` if the client is being shut down.
    pub(super) fn request_flush(&self, timeout: Duration, is_last: bool, reply: impl FnOnce(bool) + Send + 'static) {
        match &self.inner {
            Inner::Live(handle) if handle.is_here() => {
                let now = Instant::now();
                let deadline = now.checked_add(timeout).unwrap_or(now + FOREVER);
                handle.command(Command::Flush { deadline, is_last, reply: Box::new(reply) });
            }
            Inner::Live(_) => reply(false),
            Inner::Recording(_) | Inner::Disabled => reply(true),
        }
    }

    pub(super) fn request_stop(&self, patience: Duration, done: impl FnOnce() + Send + 'static) {
        if let Inner::Live(handle) = &self.inner
            && handle.is_here()
        {
            // A hook that waited for the hooks would wait for itself.
            let patience = if is_hook() { Duration::ZERO } else { patience };
            handle.command(Command::Stop { patience, done: Box::new(done) });
        }
    }

    pub(super) fn report(&self, complete: bool) -> Report {
        match self.shared() {
            Some(shared) => shared.state().report(complete),
            None => Report::new(Stats::default(), complete, 0),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::blocking;
    use crate::client::clock::SystemClock;
    use crate::client::random::Generator;
    use crate::client::sender::Sender;
    use crate::client::storage::Storage;
    use crate::core::outbox::{Config, Outbox};
    use tokio::sync::mpsc;

    /// A client whose worker does nothing, and the commands it gets.
    fn without_worker() -> (Client, mpsc::UnboundedReceiver<Command>) {
        let builder = Client::builder("http://127.0.0.1:9", "shop", "key");
        let generator = || Generator::seeded().unwrap();
        let mut clock = SystemClock::start();
        let outbox = Outbox::new(clock.read(), Config::default(), Storage::memory(), generator()).unwrap();
        let (commands, received) = mpsc::unbounded_channel();
        let shared = Shared::new(outbox, clock, generator(), Sender::new(builder.sender()).unwrap());
        (Client::live(Handle::new(Arc::new(shared), commands)), received)
    }

    #[test]
    fn a_forked_process_tracks_nothing_and_does_not_block() {
        let (client, mut received) = without_worker();
        let Inner::Live(handle) = &client.inner else { panic!("not live") };
        let forked = handle.forked();
        // As if another thread had held the lock during the fork: the forked process has no thread that releases it.
        let _state = handle.shared().unwrap().state();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let forked = blocking::Client::from(Client::live(forked));
            assert!(forked.track(Event::custom("n")).unwrap_err().is_closed());
            assert!(forked.track_confirmed(Event::custom("n")).unwrap_err().is_closed());
            assert!(forked.set_key("other").unwrap_err().is_closed());
            assert!(!forked.flush(FOREVER).is_complete());
            assert!(!forked.shutdown(FOREVER).is_complete());
            assert_eq!(forked.stats(), Stats::default());
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(received.try_recv().is_err());
    }

    #[test]
    fn a_busy_worker_gets_one_command() {
        let (client, mut received) = without_worker();
        let events = |number| (0..number).for_each(|_| _ = client.track(Event::custom("n")).unwrap());
        events(1_000);
        assert_eq!(received.len(), 1);
        assert!(matches!(received.try_recv(), Ok(Command::Poll)));
        client.shared().unwrap().state().poll_requested = false;
        events(1_000);
        assert_eq!(received.len(), 1);
    }

    #[test]
    #[cfg(all(unix, feature = "spool"))]
    fn an_event_whose_sync_fails_is_not_accepted_also_if_it_fills_its_batch() {
        let folder = std::env::temp_dir().join(format!("tallymark-sync-{:016x}", rand::random::<u64>()));
        let client = Client::builder("http://127.0.0.1:9", "shop", "key")
            // The order of the two makes no difference.
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
