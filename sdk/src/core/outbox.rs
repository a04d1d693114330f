//! The outbox: a [`Queue`] of batches that are text in a [`Spool`].
//!
//! It does no I/O beyond that spool, reads no clock and makes no random numbers. A driver passes it events with
//! [`push`](Outbox::push), sends what [`poll`](Outbox::poll) returns, and reports the result with
//! [`answer`](Outbox::answer). The outbox keeps each batch until the collector has answered for it. Times are
//! milliseconds of a [`Clock`].
//!
//! ```
//! use tallymark::outbox::{Answer, Clock, Config, Next, Outbox};
//! use tallymark::{Event, MemorySpool};
//!
//! let mut seed = 7u64;
//! let random = move || { seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1); seed };
//! let now = 1_763_673_600_000;
//! let mut outbox = Outbox::new(&Clock::start(now, 0), Config::default(), MemorySpool::new(), random)?;
//!
//! outbox.push(now, &Event::button_click("buy"))?;
//! outbox.flush();
//! let Next::Send(attempt) = outbox.poll(now) else { panic!("nothing to send") };
//! assert!(attempt.body.contains(r#""button_id":"buy""#));
//!
//! // The collector accepted it.
//! outbox.answer(now + 20, attempt.batch_id, Answer::Receipt { accepted: 1, rejected: 0, retry: &[] });
//! assert_eq!(outbox.stats().delivered, 1);
//! assert!(matches!(outbox.poll(now + 20), Next::Idle));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::core::body;
use crate::core::id::{BatchId, EventId, Random, parts};
use crate::core::loss::{Losses, Reason};
use crate::core::queue::{self, BatchStore, NotStored, Queue};
pub use crate::core::queue::{Clock, Config, Mark, Pause, Settled, Stats};
#[cfg(feature = "client")]
use crate::core::settlement::{Settlement, Watched, Watcher};
use crate::event::{Encoded, Event, InvalidEvent};
use crate::spool::{Recovered, Segment, Spool};
use core::fmt;
use core::ops::Range;

/// Names this client in each batch and as the user agent.
pub(crate) const SDK: &str = concat!("tallymark-rust/", env!("CARGO_PKG_VERSION"));

/// What to do next.
pub type Next = queue::Next<Attempt>;

/// One attempt to deliver a batch.
#[derive(Debug, PartialEq)]
pub struct Attempt {
    /// The batch.
    pub batch_id: BatchId,
    /// Its body: the same bytes at every attempt.
    pub body: String,
    /// The number of events in it.
    pub events: u32,
}

/// The result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The collector's receipt for this batch. A receipt that does not add up counts as [`Answer::None`], because a
    /// captive portal may have written it.
    Receipt {
        /// The number of events accepted.
        accepted: u32,
        /// The number of events rejected.
        rejected: u32,
        /// Indexes of events to send again, in a new batch.
        retry: &'a [u32],
    },
    /// Any other status.
    Status {
        /// The HTTP status.
        status: u16,
        /// `Retry-After`, in milliseconds from now.
        retry_after: Option<u64>,
    },
    /// No answer that could be understood. The batch may or may not have arrived.
    None,
}

/// The outbox. See the [module documentation](self).
#[derive(Debug)]
pub struct Outbox<S: Spool, R> {
    queue: Queue<SpoolStore<S>, R>,
}

/// Stores the queue's batches as text in a spool.
#[derive(Debug)]
struct SpoolStore<S> {
    spool: S,
    /// The indexes that the last receipt asks for again.
    retry: Vec<u32>,
    #[cfg(feature = "client")]
    watched: Watched,
}

impl<S: Spool> BatchStore for SpoolStore<S> {
    type Batch = BatchId;
    type Event = Encoded;
    type Error = S::Error;

    fn begin(&mut self, event: &Encoded, random: &mut impl Random) -> Result<(BatchId, usize), S::Error> {
        let batch = BatchId::new(event.encoded_at, random);
        let text = body::opening(batch, SDK) + &body::event(&event.json, true);
        self.spool.append(batch, &text)?;
        Ok((batch, text.len()))
    }

    fn extend(&mut self, batch: BatchId, event: &Encoded) -> Result<usize, S::Error> {
        let text = body::event(&event.json, false);
        self.spool.append(batch, &text)?;
        Ok(text.len())
    }

    fn seal(&mut self, batch: BatchId, lost: &Losses) -> Result<usize, S::Error> {
        let closing = body::closing(lost);
        self.spool.seal(batch, &closing)?;
        Ok(closing.len())
    }

    fn part(&mut self, whole: BatchId, number: u8, events: Range<u32>) -> Result<(BatchId, usize), S::Error> {
        let part = whole.child(number);
        let (retry, range) = (&self.retry, events.clone());
        let keep = |index| if number == 0 { retry.contains(&index) } else { range.contains(&index) };
        let (text, _) = body::part(&self.spool.read(whole)?, part, keep, &body::closing(&Losses::default()));
        if let Err(error) = self.spool.append(part, &text).and_then(|()| self.spool.seal(part, "")) {
            let _ = self.spool.remove(part);
            return Err(error);
        }
        #[cfg(feature = "client")]
        self.watched.part(part, if number == 0 { retry.clone() } else { events.collect() });
        Ok((part, text.len()))
    }

    fn remove(&mut self, batch: BatchId) -> Result<(), S::Error> {
        self.spool.remove(batch)?;
        #[cfg(feature = "client")]
        self.watched.removed(batch);
        Ok(())
    }

    #[cfg(feature = "client")]
    fn dropped(&mut self, batch: BatchId, reason: Reason) {
        self.watched.settle(batch, Some(reason));
    }
}

impl<S: Spool, R: Random> Outbox<S, R> {
    /// An outbox that continues with the batches in `spool`.
    ///
    /// # Errors
    ///
    /// If the spool cannot be read.
    pub fn new(clock: &Clock, config: Config, mut spool: S, random: R) -> Result<Self, S::Error> {
        let found = spool.recover()?;
        let store = SpoolStore {
            spool,
            retry: Vec::new(),
            #[cfg(feature = "client")]
            watched: Watched::default(),
        };
        let mut outbox = Self { queue: Queue::new(config.clamped(), store, random) };
        outbox.take_over(clock, found)?;
        Ok(outbox)
    }

    /// Takes over batches that others have abandoned in the spool since, if the queue has room. Returns the number of
    /// events taken over.
    ///
    /// # Errors
    ///
    /// If the spool cannot take over a batch. The batch stays where it is.
    pub fn adopt(&mut self, clock: &Clock) -> Result<u64, S::Error> {
        let before = self.queue.stats().adopted;
        let room = self.queue.room();
        let found = self.spool_mut().adopt(room)?;
        self.take_over(clock, found)?;
        Ok(self.queue.stats().adopted - before)
    }

    fn take_over(&mut self, clock: &Clock, found: Recovered) -> Result<(), S::Error> {
        let mut segments = found.segments;
        segments.sort_unstable_by_key(|segment| segment.batch_id);
        let parts = parts(segments.iter().map(|segment| segment.batch_id), |id| {
            segments.binary_search_by_key(&id, |segment| segment.batch_id).is_ok()
        });
        for segment in &segments {
            // A part whose whole is still there was never sent: a process ended while it divided the batch.
            if parts.contains(&segment.batch_id) {
                self.spool_mut().remove(segment.batch_id)?;
                continue;
            }
            let Segment { batch_id, events, bytes } = *segment;
            self.queue.adopt(batch_id, clock.time_of(batch_id.made_at()), events, bytes);
        }
        self.queue.lose(Reason::Storage, found.corrupt);
        Ok(())
    }

    /// Validates, encodes and stores an event. When this returns `Ok`, the event is in the spool.
    ///
    /// A driver whose clock may differ from the wall clock encodes events itself, with the wall clock, and calls
    /// [`push_encoded`](Outbox::push_encoded).
    ///
    /// # Errors
    ///
    /// If the event exceeds a limit or could not be stored.
    pub fn push(&mut self, now: u64, event: &Event) -> Result<EventId, PushError<S::Error>> {
        let encoded = event.encode(now, self.queue.random_mut()).map_err(PushError::Invalid)?;
        self.push_encoded(now, &encoded)?;
        Ok(encoded.event_id)
    }

    /// Stores an event that is already encoded, for example by another thread.
    ///
    /// # Errors
    ///
    /// If the event could not be stored.
    pub fn push_encoded(&mut self, now: u64, event: &Encoded) -> Result<(), PushError<S::Error>> {
        self.store(now, event).map(|_| ())
    }

    /// Stores an event. Returns its batch and its index in it.
    fn store(&mut self, now: u64, event: &Encoded) -> Result<(BatchId, u32), PushError<S::Error>> {
        self.queue.push(now, event, event.json.len() + 2).map_err(|not_stored| match not_stored {
            NotStored::Full => PushError::QueueFull,
            NotStored::Failed(error) => PushError::Storage(error),
        })
    }

    /// Seals the open batch, so that the next [`poll`](Outbox::poll) can send it.
    ///
    /// Pass the mark to [`is_settled`](Outbox::is_settled) to learn when every event pushed before it is settled.
    pub fn flush(&mut self) -> Mark {
        self.queue.flush()
    }

    /// Whether every event pushed before this [`flush`](Outbox::flush) is delivered, rejected or dropped.
    pub fn is_settled(&self, mark: Mark) -> bool {
        self.queue.is_settled(mark)
    }

    /// Whether the next [`poll`](Outbox::poll) may return something other than the last one did. A driver need not wake
    /// for pushes that only fill the open batch.
    pub fn needs_poll(&self) -> bool {
        self.queue.needs_poll()
    }

    /// Returns what to do now.
    pub fn poll(&mut self, now: u64) -> Next {
        loop {
            let batch_id = match self.queue.poll(now) {
                queue::Next::Send(batch) => batch,
                queue::Next::WaitUntil(then) => return Next::WaitUntil(then),
                queue::Next::Idle => return Next::Idle,
            };
            match self.spool_mut().read(batch_id) {
                Ok(body) => {
                    let events = self.queue.in_flight(batch_id).unwrap_or_default();
                    return Next::Send(Attempt { batch_id, body, events });
                }
                Err(error) if S::is_transient(&error) => _ = self.queue.failed(now, batch_id, 0, None),
                Err(_) => self.queue.unreadable(batch_id),
            }
        }
    }

    /// Reports the result of the attempt to send `batch`. Returns what it settled.
    pub fn answer(&mut self, now: u64, batch: BatchId, answer: Answer<'_>) -> Settled {
        match answer {
            Answer::Receipt { accepted, rejected, retry } if self.are_indexes(batch, retry) => {
                self.queue.store_mut().retry = retry.into();
                let settled = self.queue.receipt(now, batch, accepted, rejected, retry.len() as u32);
                #[cfg(feature = "client")]
                if settled != Settled::default() {
                    self.queue.store_mut().watched.settle(batch, None);
                }
                settled
            }
            Answer::Status { status, retry_after } => self.queue.failed(now, batch, status, retry_after),
            Answer::Receipt { .. } | Answer::None => self.queue.failed(now, batch, 0, None),
        }
    }

    /// Whether these are indexes of events in the batch, without repetitions.
    fn are_indexes(&self, batch: BatchId, indexes: &[u32]) -> bool {
        let events = self.queue.in_flight(batch).unwrap_or_default();
        indexes.iter().enumerate().all(|(n, index)| *index < events && !indexes[..n].contains(index))
    }

    /// Ends every pause and backoff, because the credentials were replaced or the network is back.
    pub fn resume(&mut self) {
        self.queue.resume();
    }

    /// Where every event has gone.
    pub fn stats(&self) -> Stats {
        *self.queue.stats()
    }

    /// The spool.
    pub fn spool(&self) -> &S {
        &self.queue.store().spool
    }

    /// The spool, for operations of its own.
    pub fn spool_mut(&mut self) -> &mut S {
        &mut self.queue.store_mut().spool
    }
}

#[cfg(feature = "client")]
impl<S: Spool, R: Random> Outbox<S, R> {
    /// Like [`push_encoded`](Outbox::push_encoded), and reports the settlement of the event to `watcher`. The watchers
    /// are in memory, so they get an answer even if the spool can no longer be read.
    pub(crate) fn push_watched(
        &mut self,
        now: u64,
        event: &Encoded,
        watcher: Watcher,
    ) -> Result<(), PushError<S::Error>> {
        let (batch, index) = self.store(now, event)?;
        self.queue.store_mut().watched.watch(batch, index, watcher);
        Ok(())
    }

    /// The settlements of watched events since the last call.
    pub(crate) fn take_settlements(&mut self) -> Vec<(Watcher, Settlement)> {
        self.queue.store_mut().watched.take()
    }
}

/// Why an event was not stored.
#[derive(Debug)]
pub enum PushError<E> {
    /// The event exceeds a limit. It is not counted as made.
    Invalid(InvalidEvent),
    /// The queue is full, and every batch in it is in flight. The event is counted as dropped.
    QueueFull,
    /// The spool failed. The event is counted as dropped.
    Storage(E),
}

impl<E> fmt::Display for PushError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(invalid) => invalid.fmt(f),
            Self::QueueFull => f.write_str("the queue is full"),
            Self::Storage(_) => f.write_str("the event could not be stored"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for PushError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Invalid(invalid) => Some(invalid),
            Self::QueueFull => None,
            Self::Storage(error) => Some(error),
        }
    }
}
