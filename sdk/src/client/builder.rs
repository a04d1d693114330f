//! The settings of a client.

use crate::client::async_client::Client;
use crate::client::blocking;
use crate::client::clock::{SystemClock, milliseconds};
use crate::client::error::Error;
use crate::client::handle::Handle;
use crate::client::hooks::{Hooks, OnError, OnLoss};
use crate::client::random::Generator;
use crate::client::sender::Sender;
use crate::client::sender_config::SenderConfig;
use crate::client::shared::Shared;
use crate::client::storage::Storage;
use crate::client::worker;
use crate::core::limits;
use crate::core::loss::Reason;
use crate::core::outbox::{Config, Outbox};
use crate::core::retry::Backoff;
#[cfg(feature = "spool")]
use crate::spool::Durability;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use std::io;
#[cfg(feature = "spool")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Builds a [`Client`].
pub struct Builder {
    sender: SenderConfig,
    config: Config,
    #[cfg(feature = "spool")]
    spool: Option<PathBuf>,
    #[cfg(feature = "spool")]
    durability: Durability,
    on_loss: Option<OnLoss>,
    on_error: Option<OnError>,
}

impl Client {
    /// A builder of a client for the collector at `endpoint`, such as `https://collect.shop.example`, with the
    /// `username` of a site and one of its keys: on a server, the secret key.
    pub fn builder(endpoint: impl Into<String>, username: impl Into<String>, key: impl Into<String>) -> Builder {
        Builder::new(endpoint.into(), username.into(), key.into())
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the key, nor the endpoint and the headers, which may contain credentials.
        f.debug_struct("Builder")
            .field("username", &self.sender.username)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(endpoint: String, username: String, key: String) -> Self {
        let sender = SenderConfig {
            endpoint,
            username,
            key,
            timeout: Duration::from_secs(30),
            http: None,
            headers: HeaderMap::new(),
            #[cfg(feature = "gzip")]
            gzip_above: None,
        };
        Self {
            sender,
            config: Config::default(),
            #[cfg(feature = "spool")]
            spool: None,
            #[cfg(feature = "spool")]
            durability: Durability::default(),
            on_loss: None,
            on_error: None,
        }
    }

    /// Stores events in files below `directory` until they are delivered, so that they outlive the process. Default: in
    /// memory.
    ///
    /// Several processes may use one directory. Events that a process leaves there are delivered by the next one to
    /// start, or within about a minute by one that runs.
    #[cfg(feature = "spool")]
    pub fn spool(mut self, directory: impl Into<PathBuf>) -> Self {
        self.spool = Some(directory.into());
        self
    }

    /// What events in a [`spool`](Builder::spool) survive. Default: [`Durability::Process`].
    #[cfg(feature = "spool")]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sends a batch when it holds this many events. Default: 100; at most 500.
    pub fn batch_events(mut self, events: usize) -> Self {
        self.config.batch_events = events;
        self
    }

    /// Sends a batch before its body gets longer than this. Default: 256 KiB; at most 512 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.config.batch_bytes = bytes;
        self
    }

    /// Sends a batch when its first event is this old. Default: 5 s.
    pub fn batch_age(mut self, age: Duration) -> Self {
        self.config.batch_age = milliseconds(age);
        self
    }

    /// The most batches in flight at the same time. Default: 4.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.config.in_flight = batches;
        self
    }

    /// The most bytes of events in the queue. Beyond that the oldest batch is dropped and counted. Default: 64 MiB.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.config.queue_bytes = bytes;
        self
    }

    /// How long events may be queued. Older ones are dropped and counted. Default: 7 days. Keep it below the 30 days
    /// for which the collector remembers batches: an event that is retried later may be counted twice.
    pub fn queue_age(mut self, age: Duration) -> Self {
        self.config.queue_age = milliseconds(age);
        self
    }

    /// When to retry a failed send. Default: after a random delay below 0.5 s, which doubles up to 5 min.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// The most time that one request may take. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.sender.timeout = timeout;
        self
    }

    /// Sends with this HTTP client, for example one with a proxy or your own certificates.
    ///
    /// Turn its redirects off: a redirect sends events to another server. The client ignores the answer of that server
    /// and keeps the batch.
    pub fn http_client(mut self, client: reqwest::Client) -> Self {
        self.sender.http = Some(client);
        self
    }

    /// Sends this header with every request. If a header is set twice, the last value wins. The client's own headers,
    /// such as the credentials, cannot be replaced.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.sender.headers.insert(name, value);
        self
    }

    /// Compresses bodies longer than this many bytes. If the collector does not accept compressed bodies, the client
    /// sends them uncompressed. Default: no compression.
    #[cfg(feature = "gzip")]
    pub fn gzip_above(mut self, bytes: usize) -> Self {
        self.sender.gzip_above = Some(bytes);
        self
    }

    /// Calls `hook` when events were dropped, with the reason and the number of events.
    ///
    /// The hook runs in a thread of its own, so it may block and may call the client. A panic in it is caught. Events
    /// that are dropped while it is busy are reported afterwards, in one call for each reason, so the numbers add up to
    /// those in [`Stats`](crate::Stats). A [`shutdown`](Client::shutdown) waits for the hook in its remaining time.
    pub fn on_loss(mut self, hook: impl Fn(Reason, u64) + Send + 'static) -> Self {
        self.on_loss = Some(Box::new(hook));
        self
    }

    /// Calls `hook` with errors in the background: a failed send, wrong credentials, a failed spool, a rejected event.
    ///
    /// The hook runs in a thread of its own, so it may block and may call the client. A panic in it is caught. If more
    /// than 256 errors occur while it is busy, the last call says how many were left out.
    pub fn on_error(mut self, hook: impl Fn(&Error) + Send + 'static) -> Self {
        self.on_error = Some(Box::new(hook));
        self
    }

    /// Starts the client. It works in a thread of its own and needs no runtime.
    ///
    /// # Errors
    ///
    /// - The endpoint is not an `http` or `https` URL, or it has credentials, a query or a fragment.
    /// - The endpoint is `https`, and there is neither the feature `rustls` nor an
    ///   [`http_client`](Builder::http_client).
    /// - The endpoint is `https`, and the system has no root certificates. The feature `bundled-roots` brings some.
    /// - The username or the key is empty or has a control character, such as a line break, or the username has a
    ///   colon.
    /// - `batch_events`, `batch_bytes` or `in_flight` is 0 or above its limit.
    /// - The spool's directory cannot be used.
    /// - The system provides no thread or no random numbers.
    pub fn build(self) -> Result<Client, Error> {
        self.check_limits()?;
        let sender = Sender::new(&self.sender)?;
        let generator = || {
            Generator::seeded()
                .map_err(|error| Error::config("the system provides no random numbers").with_source(error))
        };
        let cannot_start = |error: io::Error| Error::config("cannot start the client's thread").with_source(error);
        let hooks = Hooks::start(self.on_loss, self.on_error).map_err(cannot_start)?;
        #[cfg(feature = "spool")]
        let storage = match &self.spool {
            Some(path) => Storage::directory(path, self.durability),
            None => Ok(Storage::memory()),
        };
        #[cfg(not(feature = "spool"))]
        let storage = Ok(Storage::memory());
        let cannot_use = |error: io::Error| Error::config("cannot use the spool's directory").with_source(error);
        let storage = storage.map_err(cannot_use)?;
        let mut clock = SystemClock::start();
        let mut outbox = Outbox::new(clock.read(), self.config, storage, generator()?).map_err(cannot_use)?;
        worker::adopt_all(&mut outbox, &mut clock, &hooks).map_err(cannot_use)?;
        let shared = Arc::new(Shared::new(outbox, clock, generator()?, sender));
        let commands = worker::start(Arc::clone(&shared), hooks).map_err(cannot_start)?;
        Ok(Client::live(Handle::new(shared, commands)))
    }

    fn check_limits(&self) -> Result<(), Error> {
        let Config { batch_events, batch_bytes, in_flight, .. } = self.config;
        for (name, value, most) in [
            ("batch_events", batch_events, limits::BATCH_EVENTS),
            ("batch_bytes", batch_bytes, limits::BATCH_BYTES),
            ("in_flight", in_flight, usize::MAX),
        ] {
            if value == 0 || value > most {
                let range = if most < usize::MAX { format!("from 1 to {most}") } else { "at least 1".into() };
                return Err(Error::config(format!("`{name}` must be {range}, got {value}")));
            }
        }
        Ok(())
    }

    /// Starts a client whose calls block.
    ///
    /// # Errors
    ///
    /// As [`build`](Builder::build).
    pub fn build_blocking(self) -> Result<blocking::Client, Error> {
        self.build().map(blocking::Client::from)
    }

    #[cfg(test)]
    pub(super) fn sender(&self) -> &SenderConfig {
        &self.sender
    }
}
