//! What the clones of a client and its worker share.

use crate::client::clock::SystemClock;
use crate::client::error::Error;
use crate::client::outcome::Outcome;
use crate::client::random::Generator;
use crate::client::report::Report;
use crate::client::sender::Sender;
use crate::client::storage::Storage;
use crate::core::outbox::{Outbox, PushError};
use crate::core::settlement::Watcher;
use crate::event::Encoded;
use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) struct Shared {
    state: Mutex<State>,
    /// For the ids of events, which are made without locking the state.
    pub(super) ids: Generator,
    pub(super) sender: Sender,
}

/// Called with the outcome of an event.
pub(super) type OnOutcome = Box<dyn FnOnce(Result<Outcome, Error>) + Send>;

pub(super) struct State {
    pub(super) outbox: Outbox<Storage, Generator>,
    pub(super) clock: SystemClock,
    /// The callers that wait for an outcome. By number, because several may wait for events of the same id.
    pub(super) waiting: HashMap<Watcher, OnOutcome>,
    next_watcher: Watcher,
    /// Whether a [`Command::Poll`] was sent that the worker has not received. More of them would only pile up.
    pub(super) poll_requested: bool,
    /// Whether to seal and send the open batch as soon as nothing is in flight.
    pub(super) flush_requested: bool,
    pub(super) closed: bool,
    /// The number of events that were in memory when the worker ended.
    pub(super) volatile_at_end: Option<u64>,
}

/// A request to the worker.
pub(super) enum Command {
    /// Poll the outbox.
    Poll,
    /// Send what is queued, and report whether every event tracked before is settled by the deadline.
    /// If it `is_last`, it ends early when the credentials are refused.
    Flush { deadline: Instant, is_last: bool, reply: Box<dyn FnOnce(bool) + Send> },
    /// End, and report when the hooks have been called for everything, or when `patience` is over.
    Stop { patience: Duration, done: Box<dyn FnOnce() + Send> },
}

impl Shared {
    pub(super) fn new(outbox: Outbox<Storage, Generator>, clock: SystemClock, ids: Generator, sender: Sender) -> Self {
        let state = State {
            outbox,
            clock,
            waiting: HashMap::new(),
            next_watcher: 0,
            poll_requested: false,
            flush_requested: false,
            closed: false,
            volatile_at_end: None,
        };
        Self { state: Mutex::new(state), ids, sender }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in the outbox panics, so it is consistent even if another thread panicked while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn push(
        &mut self,
        encoded: &Encoded,
        on_outcome: Option<OnOutcome>,
    ) -> Result<(), PushError<io::Error>> {
        let now = self.clock.read().now();
        let Some(on_outcome) = on_outcome else { return self.outbox.push_encoded(now, encoded) };
        self.outbox.push_watched(now, encoded, self.next_watcher)?;
        self.waiting.insert(self.next_watcher, on_outcome);
        self.next_watcher += 1;
        self.flush_requested = true;
        Ok(())
    }

    pub(super) fn report(&self, complete: bool) -> Report {
        let stats = self.outbox.stats();
        let volatile = self.volatile_at_end.unwrap_or_else(|| self.volatile());
        // After a shutdown no worker answers a flush, and yet there may be nothing left to send.
        Report::new(stats, complete || stats.queued == 0, volatile)
    }

    /// The number of queued events that end with the process.
    pub(super) fn volatile(&self) -> u64 {
        match self.outbox.spool() {
            // All of them. Counting them one by one would block the threads that track.
            Storage::Memory(_) => self.outbox.stats().queued,
            #[cfg(feature = "spool")]
            Storage::Directory(directory) => directory.volatile(),
        }
    }
}
