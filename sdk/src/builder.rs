//! Setting up a client.

use crate::client::Client;
#[cfg(feature = "spool")]
use crate::directory::Durability;
use crate::error::Error;
use crate::loss::Reason;
use crate::outbox::Config;
use crate::retry::Backoff;
use crate::sender::{Sender, milliseconds};
use crate::worker;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
#[cfg(feature = "spool")]
use std::path::PathBuf;
use std::time::Duration;

pub(crate) type OnLoss = Box<dyn Fn(Reason, u64) + Send>;
pub(crate) type OnError = Box<dyn Fn(&Error) + Send>;

/// Sets up a [`Client`].
pub struct Builder {
    pub(crate) endpoint: String,
    pub(crate) username: String,
    pub(crate) key: String,
    pub(crate) config: Config,
    pub(crate) timeout: Duration,
    pub(crate) http: Option<reqwest::Client>,
    pub(crate) headers: HeaderMap,
    #[cfg(feature = "gzip")]
    pub(crate) gzip_above: Option<usize>,
    #[cfg(feature = "spool")]
    pub(crate) spool: Option<PathBuf>,
    #[cfg(feature = "spool")]
    pub(crate) durability: Durability,
    pub(crate) on_loss: Option<OnLoss>,
    pub(crate) on_error: Option<OnError>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key nor an endpoint or header, which may hold a credential.
        f.debug_struct("Builder")
            .field("username", &self.username)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(endpoint: String, username: String, key: String) -> Self {
        Self {
            endpoint,
            username,
            key,
            config: Config::default(),
            timeout: Duration::from_secs(30),
            http: None,
            headers: HeaderMap::new(),
            #[cfg(feature = "gzip")]
            gzip_above: None,
            #[cfg(feature = "spool")]
            spool: None,
            #[cfg(feature = "spool")]
            durability: Durability::default(),
            on_loss: None,
            on_error: None,
        }
    }

    /// Keeps events in files below `directory` until they are delivered, so that they outlive the process.
    /// Several processes may use one directory; what a dead one has left there, another delivers: the next to
    /// start, or within about a minute one that runs. Without this, events are held in memory.
    #[cfg(feature = "spool")]
    pub fn spool(mut self, directory: impl Into<PathBuf>) -> Self {
        self.spool = Some(directory.into());
        self
    }

    /// What events survive once they are tracked. Default [`Durability::Process`]. It is about a
    /// [`spool`](Builder::spool); without one, events survive nothing.
    #[cfg(feature = "spool")]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sends a batch when it holds this many events. Default 100, at most 500.
    pub fn batch_events(mut self, events: usize) -> Self {
        self.config.batch_events = events;
        self
    }

    /// Sends a batch before its body gets longer than this. Default 256 KiB, at most 512 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.config.batch_bytes = bytes;
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

    /// How long events may be queued; older ones are dropped and counted. Default 7 days. Keep it below
    /// 30 days, for which the collector remembers batches.
    pub fn queue_age(mut self, age: Duration) -> Self {
        self.config.queue_age = milliseconds(age);
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

    /// Sends with this HTTP client, for a proxy or certificates of your own. Turn its redirects off: one would carry
    /// events to somewhere else. What answers there is not believed, and the batch is kept.
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.http = Some(client);
        self
    }

    /// Sends this header with every request. Of the same name, the last one holds; the client's own, such as the
    /// credentials, cannot be replaced.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Compresses bodies longer than this. A collector that does not take that gets them as they are.
    #[cfg(feature = "gzip")]
    pub fn gzip_above(mut self, bytes: usize) -> Self {
        self.gzip_above = Some(bytes);
        self
    }

    /// Called when events were dropped, with the reason and how many. It has a thread of its own, so it may
    /// take its time, and call the client; a panic in it is caught. What is dropped while it is busy is told
    /// afterwards, in one call for each reason, so in the end the numbers add up to those in [`Stats`](crate::Stats). A
    /// [`shutdown`](Client::shutdown) waits for that in what is left of its time.
    pub fn on_loss(mut self, hook: impl Fn(Reason, u64) + Send + 'static) -> Self {
        self.on_loss = Some(Box::new(hook));
        self
    }

    /// Called with what went wrong in the background: a send, the credentials, the spool, a refused event.
    /// It has a thread of its own, so it may take its time, and call the client; a panic in it is caught. If
    /// hundreds come while it is busy, the last call says how many were left out.
    pub fn on_error(mut self, hook: impl Fn(&Error) + Send + 'static) -> Self {
        self.on_error = Some(Box::new(hook));
        self
    }

    /// Starts the client. It works in a thread of its own, so no runtime is needed.
    ///
    /// # Errors
    ///
    /// If the endpoint is no `http` or `https` URL, or has credentials, a query or a fragment, if it is `https` and there
    /// is neither the feature `rustls` nor an [`http_client`](Builder::http_client) for it, if the username has a colon,
    /// if it or the key has a control character, such as a line's end, if the spool's directory cannot be used, or if
    /// the system gives no thread or no random numbers.
    pub fn build(self) -> Result<Client, Error> {
        let sender = Sender::new(&self)?;
        worker::start(self, sender)
    }

    /// Starts a client whose calls block, for programs without async.
    ///
    /// # Errors
    ///
    /// As [`build`](Builder::build).
    pub fn build_blocking(self) -> Result<crate::blocking::Client, Error> {
        self.build().map(crate::blocking::Client::from)
    }
}
