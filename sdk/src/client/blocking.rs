//! The blocking client, for programs without async.

use crate::client::async_client;
use crate::client::error::Error;
use crate::client::outcome::Outcome;
use crate::client::report::Report;
use crate::core::id::EventId;
use crate::core::outbox::Stats;
use crate::event::Event;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A [`Client`](crate::Client) whose calls block. Clones are cheap and share one queue.
///
/// It needs no runtime. Inside a runtime its waits block the thread.
///
/// ```no_run
/// use std::time::Duration;
/// use tallymark::{Client, Custom};
///
/// let client = Client::builder("https://collect.shop.example", "shop", "tms_…").build_blocking()?;
/// client.track(Custom::new("job_done").property("rows", 1_000))?;
/// let report = client.shutdown(Duration::from_secs(10));
/// assert!(report.is_complete());
/// # Ok::<(), tallymark::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    client: async_client::Client,
}

impl From<async_client::Client> for Client {
    fn from(client: async_client::Client) -> Self {
        Self { client }
    }
}

impl Client {
    /// Queues an event and returns its id, like [`Client::track`](crate::Client::track). It does not wait for the
    /// network.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn track(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        self.client.track(event)
    }

    /// Blocks like [`Client::track_confirmed`](crate::Client::track_confirmed) waits.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn track_confirmed(&self, event: impl Into<Event>) -> Result<Outcome, Error> {
        let (sender, outcome) = mpsc::channel();
        self.client.track_then(event, move |outcome| _ = sender.send(outcome))?;
        outcome.recv().unwrap_or_else(|_| Err(Error::closed()))
    }

    /// Blocks like [`Client::flush`](crate::Client::flush) waits.
    pub fn flush(&self, timeout: Duration) -> Report {
        self.flush_as(false, timeout)
    }

    fn flush_as(&self, is_last: bool, timeout: Duration) -> Report {
        let (reply, complete) = mpsc::channel();
        self.client.request_flush(timeout, is_last, move |complete| _ = reply.send(complete));
        self.client.report(complete.recv().unwrap_or(false))
    }

    /// Blocks like [`Client::shutdown`](crate::Client::shutdown) waits.
    pub fn shutdown(&self, timeout: Duration) -> Report {
        let start = Instant::now();
        self.client.close();
        let report = self.flush_as(true, timeout);
        let (reply, done) = mpsc::channel();
        self.client.request_stop(timeout.saturating_sub(start.elapsed()), move || _ = reply.send(()));
        let _ = done.recv();
        report
    }

    /// Replaces the key, like [`Client::set_key`](crate::Client::set_key).
    ///
    /// # Errors
    ///
    /// The same.
    pub fn set_key(&self, key: &str) -> Result<(), Error> {
        self.client.set_key(key)
    }

    /// Where every event has gone so far.
    pub fn stats(&self) -> Stats {
        self.client.stats()
    }
}
