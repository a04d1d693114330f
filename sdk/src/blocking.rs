//! The client for programs without async.

use crate::client::{self, Outcome, Report};
use crate::error::Error;
use crate::event::Event;
use crate::id::EventId;
use crate::outbox::Stats;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A [`Client`](client::Client) whose calls block. Clones are cheap and share one queue.
///
/// It needs no runtime and may be used inside one, where its waits block the thread as any other would.
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
    client: client::Client,
}

impl From<client::Client> for Client {
    fn from(client: client::Client) -> Self {
        Self { client }
    }
}

impl Client {
    /// As [`Client::track`](client::Client::track), which does not wait either.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn track(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        self.client.track(event)
    }

    /// As [`Client::track_confirmed`](client::Client::track_confirmed), blocking.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn track_confirmed(&self, event: impl Into<Event>) -> Result<Outcome, Error> {
        let (known, outcome) = mpsc::channel();
        self.client.track_then(event, move |outcome| _ = known.send(outcome))?;
        outcome.recv().unwrap_or_else(|_| Err(Error::closed()))
    }

    /// As [`Client::flush`](client::Client::flush), blocking.
    pub fn flush(&self, timeout: Duration) -> Report {
        let (reply, complete) = mpsc::channel();
        self.client.ask_to_flush(timeout, move |complete| _ = reply.send(complete));
        self.client.report(complete.recv().unwrap_or(false))
    }

    /// As [`Client::shutdown`](client::Client::shutdown), blocking.
    pub fn shutdown(&self, timeout: Duration) -> Report {
        let start = Instant::now();
        self.client.close();
        let report = self.flush(timeout);
        let (reply, done) = mpsc::channel();
        self.client.ask_to_stop(timeout.saturating_sub(start.elapsed()), move || _ = reply.send(()));
        let _ = done.recv();
        report
    }

    /// As [`Client::set_key`](client::Client::set_key).
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
