//! The pure outbox: events go in, batches come out, and each is kept until the collector has answered for it.
//!
//! When to seal, send, retry, give up and drop is decided by its [`Queue`]. Here batches are text, kept in a [`Spool`].
//! It does no I/O but through that, reads no clock and draws no randomness of its own. A driver gives it events with
//! [`push`](Outbox::push), does what [`poll`](Outbox::poll) says, and reports what came of it with
//! [`answer`](Outbox::answer). Times are milliseconds since the Unix epoch.
//!
//! ```
//! use tallymark::outbox::{Answer, Config, Next, Outbox};
//! use tallymark::{Event, MemorySpool};
//!
//! let mut seed = 7u64;
//! let random = move || { seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1); seed };
//! let mut outbox = Outbox::new(Config::default(), MemorySpool::new(), random)?;
//!
//! let now = 1_763_673_600_000;
//! outbox.push(now, &Event::button_click("buy"))?;
//! outbox.flush();
//! let Next::Send(attempt) = outbox.poll(now) else { panic!("nothing to send") };
//! assert!(attempt.body.contains(r#""button_id":"buy""#));
//!
//! // The collector took it.
//! outbox.answer(now + 20, attempt.batch_id, Answer::Receipt { accepted: 1, rejected: 0, retry: &[] });
//! assert_eq!(outbox.stats().delivered, 1);
//! assert!(matches!(outbox.poll(now + 20), Next::Idle));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::body;
use crate::event::{Encoded, Event, InvalidEvent};
use crate::id::{BatchId, EventId, Random, parts};
use crate::loss::{Losses, Reason};
use crate::queue::{self, NotStored, Queue, Store};
pub use crate::queue::{Config, Mark, Pause, Settled, Stats};
use crate::spool::{Recovered, Spool};
use core::fmt;
use core::ops::Range;
#[cfg(feature = "client")]
use std::collections::BTreeMap;

/// Names this client in each batch.
const SDK: &str = concat!("tallymark-rust/", env!("CARGO_PKG_VERSION"));

/// What to do next.
pub type Next = queue::Next<Attempt>;

/// One try at delivering a batch.
#[derive(Debug, PartialEq)]
pub struct Attempt {
    /// The batch.
    pub batch_id: BatchId,
    /// Its body, the same at every attempt.
    pub body: String,
    /// How many events it holds.
    pub events: u32,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The collector's receipt for this batch: how many events it took, how many it refused for good,
    /// and the indexes of those it asks for again. A receipt that does not add up counts as no answer,
    /// so that whatever a captive portal says is not taken for one.
    Receipt {
        /// Events taken.
        accepted: u32,
        /// Events refused.
        rejected: u32,
        /// Indexes of events to send again, in a new batch.
        retry: &'a [u32],
    },
    /// Another status, with `Retry-After` in milliseconds from now.
    Status {
        /// The HTTP status.
        status: u16,
        /// The wait the server asks for, in milliseconds.
        retry_after: Option<u64>,
    },
    /// No answer that could be understood, so the batch may or may not have arrived.
    None,
}

/// The outbox. See the [module documentation](self).
#[derive(Debug)]
pub struct Outbox<S: Spool, R> {
    queue: Queue<Texts<S>, R>,
}

/// The queue's batches as text in a spool.
#[derive(Debug)]
struct Texts<S> {
    spool: S,
    /// The places of the events that the collector has asked for again.
    asked: Vec<u32>,
    #[cfg(feature = "client")]
    watched: Watched,
}

impl<S: Spool> Store for Texts<S> {
    type Batch = BatchId;
    type Event = str;
    type Error = S::Error;

    fn begin(&mut self, now: u64, json: &str, random: &mut impl Random) -> Result<(BatchId, usize), S::Error> {
        let batch = BatchId::new(now, random);
        let text = body::opening(batch, SDK) + &body::event(json, true);
        self.spool.append(batch, &text)?;
        Ok((batch, text.len()))
    }

    fn extend(&mut self, batch: BatchId, json: &str) -> Result<usize, S::Error> {
        let text = body::event(json, false);
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
        let (asked, range) = (&self.asked, events.clone());
        let keep = |index| if number == 0 { asked.contains(&index) } else { range.contains(&index) };
        let (text, _) = body::part(&self.spool.read(whole)?, part, keep, &body::closing(&Losses::default()));
        if let Err(error) = self.spool.append(part, &text).and_then(|()| self.spool.seal(part, "")) {
            let _ = self.spool.remove(part);
            return Err(error);
        }
        #[cfg(feature = "client")]
        self.watched.part(part, if number == 0 { asked.clone() } else { events.collect() });
        Ok((part, text.len()))
    }

    fn remove(&mut self, batch: BatchId) -> Result<(), S::Error> {
        self.spool.remove(batch)?;
        #[cfg(feature = "client")]
        self.watched.divided(batch);
        Ok(())
    }

    #[cfg(feature = "client")]
    fn dropped(&mut self, batch: BatchId, reason: Reason) {
        self.watched.settle(batch, Some(reason));
    }
}

impl<S: Spool, R: Random> Outbox<S, R> {
    /// An outbox that goes on with whatever `spool` holds.
    pub fn new(config: Config, mut spool: S, random: R) -> Result<Self, S::Error> {
        let found = spool.recover()?;
        let texts = Texts {
            spool,
            asked: Vec::new(),
            #[cfg(feature = "client")]
            watched: Watched::default(),
        };
        let mut outbox = Self { queue: Queue::new(config.possible(), texts, random) };
        outbox.take_over(found)?;
        Ok(outbox)
    }

    /// Goes on with what others have left in the spool since, as far as there is room in the queue. Returns how many
    /// events that is.
    pub fn adopt(&mut self) -> Result<u64, S::Error> {
        let before = self.queue.stats().adopted;
        let room = self.queue.room();
        let found = self.spool_mut().adopt(room)?;
        self.take_over(found)?;
        Ok(self.queue.stats().adopted - before)
    }

    fn take_over(&mut self, found: Recovered) -> Result<(), S::Error> {
        let mut segments = found.segments;
        segments.sort_unstable_by_key(|segment| segment.batch_id);
        let parts = parts(segments.iter().map(|segment| segment.batch_id), |id| {
            segments.binary_search_by_key(&id, |segment| segment.batch_id).is_ok()
        });
        for segment in &segments {
            // A part beside its whole was never sent: an earlier life died while it divided the batch.
            if parts.contains(&segment.batch_id) {
                self.spool_mut().remove(segment.batch_id)?;
                continue;
            }
            self.queue.adopt(segment.batch_id, segment.batch_id.made_at(), segment.events, segment.bytes);
        }
        self.queue.lose(Reason::Storage, found.corrupt);
        Ok(())
    }

    /// Checks, stamps and stores an event. When this returns `Ok`, the event is in the spool.
    pub fn push(&mut self, now: u64, event: &Event) -> Result<EventId, PushError<S::Error>> {
        let encoded = event.encode(now, self.queue.random_mut()).map_err(PushError::Invalid)?;
        self.push_encoded(now, &encoded)?;
        Ok(encoded.event_id)
    }

    /// Stores an event that has been encoded already, say by another thread.
    pub fn push_encoded(&mut self, now: u64, event: &Encoded) -> Result<(), PushError<S::Error>> {
        self.store(now, event).map(|_| ())
    }

    /// Stores an event, and tells its batch and its place in that.
    fn store(&mut self, now: u64, event: &Encoded) -> Result<(BatchId, u32), PushError<S::Error>> {
        self.queue.push(now, &event.json, event.json.len() + 2).map_err(|not_stored| match not_stored {
            NotStored::Full => PushError::QueueFull,
            NotStored::Failed(error) => PushError::Storage(error),
        })
    }

    /// Seals what is open, whatever its size and age, so that the next [`poll`](Outbox::poll) may send it.
    /// [`is_settled`](Outbox::is_settled) tells when all that was pushed before has been answered for.
    pub fn flush(&mut self) -> Mark {
        self.queue.flush()
    }

    /// Whether everything pushed before that [`flush`](Outbox::flush) is delivered, rejected or dropped.
    pub fn is_settled(&self, mark: Mark) -> bool {
        self.queue.is_settled(mark)
    }

    /// Whether something has happened since the last [`poll`](Outbox::poll) that makes another worth
    /// while. Lets a driver sleep through pushes that only fill an open batch.
    pub fn needs_poll(&self) -> bool {
        self.queue.needs_poll()
    }

    /// What to do now.
    pub fn poll(&mut self, now: u64) -> Next {
        loop {
            let batch_id = match self.queue.poll(now) {
                queue::Next::Send(batch) => batch,
                queue::Next::WaitUntil(then) => return Next::WaitUntil(then),
                queue::Next::Idle => return Next::Idle,
            };
            match self.spool_mut().read(batch_id) {
                Ok(body) => {
                    let events = self.queue.flying(batch_id).unwrap_or_default();
                    return Next::Send(Attempt { batch_id, body, events });
                }
                Err(error) if S::may_pass(&error) => _ = self.queue.failed(now, batch_id, 0, None),
                Err(_) => self.queue.gone(batch_id),
            }
        }
    }

    /// Reports what came of the attempt to send `batch`. Returns what it settled.
    pub fn answer(&mut self, now: u64, batch: BatchId, answer: Answer<'_>) -> Settled {
        match answer {
            Answer::Receipt { accepted, rejected, retry } if self.are_places(batch, retry) => {
                self.queue.store_mut().asked = retry.into();
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

    /// Whether these are places of events in the batch, each named once.
    fn are_places(&self, batch: BatchId, indexes: &[u32]) -> bool {
        let events = self.queue.flying(batch).unwrap_or_default();
        indexes.iter().enumerate().all(|(n, index)| *index < events && !indexes[..n].contains(index))
    }

    /// Ends a pause or a rest at once: the credentials were replaced, the network is back.
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

    /// The spool, for what it can do beyond being one.
    pub fn spool_mut(&mut self) -> &mut S {
        &mut self.queue.store_mut().spool
    }
}

#[cfg(feature = "client")]
impl<S: Spool, R: Random> Outbox<S, R> {
    /// As [`push_encoded`](Outbox::push_encoded), and notes for `watcher` what becomes of the event. That is kept in
    /// memory, so it is known even if the spool cannot be read by then.
    pub(crate) fn push_watched(
        &mut self,
        now: u64,
        event: &Encoded,
        watcher: Watcher,
    ) -> Result<(), PushError<S::Error>> {
        let (batch, index) = self.store(now, event)?;
        self.queue.store_mut().watched.events.entry(batch).or_default().push((index, watcher));
        Ok(())
    }

    /// What has become of watched events since this was last asked.
    pub(crate) fn take_fates(&mut self) -> Vec<(Watcher, Fate)> {
        core::mem::take(&mut self.queue.store_mut().watched.fates)
    }
}

/// Whoever wants to know what becomes of an event, by a number of theirs.
#[cfg(feature = "client")]
pub(crate) type Watcher = u64;

/// What became of an event: answered for by the collector, with its place in the batch, or dropped.
#[cfg(feature = "client")]
pub(crate) type Fate = Result<u32, Reason>;

/// The events of which somebody wants to know what becomes of them.
#[cfg(feature = "client")]
#[derive(Debug, Default)]
struct Watched {
    /// By batch: their places in it, and who.
    events: BTreeMap<BatchId, Vec<(u32, Watcher)>>,
    /// The parts of the batch that is being divided, with the places that their events have in the whole.
    parts: Vec<(BatchId, Vec<u32>)>,
    fates: Vec<(Watcher, Fate)>,
}

#[cfg(feature = "client")]
impl Watched {
    fn settle(&mut self, batch: BatchId, dropped: Option<Reason>) {
        for (index, watcher) in self.events.remove(&batch).unwrap_or_default() {
            self.fates.push((watcher, dropped.map_or(Ok(index), Err)));
        }
    }

    fn part(&mut self, part: BatchId, mut places: Vec<u32>) {
        places.sort_unstable();
        self.parts.push((part, places));
    }

    /// The parts take the place of the whole, now that it is removed.
    fn divided(&mut self, whole: BatchId) {
        let parts = core::mem::take(&mut self.parts);
        // Or else a part was removed, since another could not be stored.
        if parts.iter().any(|(part, _)| *part == whole) {
            return;
        }
        for (part, places) in parts {
            let Some(watched) = self.events.get_mut(&whole) else { return };
            let found = watched.extract_if(.., |(index, _)| places.contains(index)).collect::<Vec<_>>();
            let place = |index| places.partition_point(|place| *place < index) as u32;
            self.events.entry(part).or_default().extend(found.into_iter().map(|(index, who)| (place(index), who)));
        }
    }
}

/// Why an event was not stored.
#[derive(Debug)]
pub enum PushError<E> {
    /// It breaks a limit. It was not counted as made.
    Invalid(InvalidEvent),
    /// The queue is full of batches that are on their way. Counted as dropped.
    QueueFull,
    /// The spool failed. Counted as dropped.
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
