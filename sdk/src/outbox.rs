//! The pure outbox: decides when to seal, send, retry, give up and drop.
//!
//! It does no I/O but through its [`Spool`], reads no clock and draws no randomness of its own. A driver
//! gives it events with [`push`](Outbox::push), does what [`poll`](Outbox::poll) says, and reports what
//! came of it with [`answer`](Outbox::answer). Times are milliseconds since the Unix epoch.
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
use crate::retry::Backoff;
use crate::spool::{Recovered, Spool};
use core::fmt;
#[cfg(feature = "client")]
use std::collections::BTreeMap;

/// In milliseconds.
const CENTURY: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// What the outbox goes by.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// A batch is sealed when it holds this many events. At most [`limits::BATCH_EVENTS`](crate::limits::BATCH_EVENTS).
    pub batch_events: usize,
    /// A batch is sealed before its body would be longer than this. At most
    /// [`limits::BATCH_BYTES`](crate::limits::BATCH_BYTES).
    pub batch_bytes: usize,
    /// A batch is sealed when its first event is this old, in milliseconds.
    pub batch_age: u64,
    /// How many batches may be on their way at once.
    pub in_flight: usize,
    /// How many bytes may be queued; beyond that the oldest batch goes.
    pub queue_bytes: usize,
    /// How old a batch may get, in milliseconds. Keep it below the time for which the collector
    /// remembers batches (30 days), or a late repetition may be counted again.
    pub queue_age: u64,
    /// When a failed send is tried again.
    pub backoff: Backoff,
    /// How long to wait after 401 or 403, in milliseconds, unless [`Outbox::resume`] is called.
    pub pause: u64,
    /// Names the client in each batch, such as `tallymark-rust/0.1.0`.
    pub sdk: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            batch_events: 100,
            batch_bytes: 256 * 1024,
            batch_age: 5_000,
            in_flight: 4,
            queue_bytes: 64 * 1024 * 1024,
            queue_age: 7 * 24 * 60 * 60 * 1000,
            backoff: Backoff { base: 500, max: 5 * 60 * 1000 },
            pause: 5 * 60 * 1000,
            sdk: concat!("tallymark-rust/", env!("CARGO_PKG_VERSION")).into(),
        }
    }
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Send this, report with [`Outbox::answer`], and ask again at once.
    Send(Attempt),
    /// Nothing until then, or until something is pushed, flushed or answered.
    WaitUntil(u64),
    /// Nothing until something is pushed or answered.
    Idle,
}

/// A point in the stream of events, made by [`Outbox::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

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

/// Why nothing is sent although something is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pause {
    /// 401: the credentials are missing or wrong.
    Unauthorized,
    /// 403: the key or the page's origin is not allowed.
    Forbidden,
}

/// Where every event has gone: `made + adopted = delivered + rejected + dropped + queued`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events pushed.
    pub made: u64,
    /// Events found in the spool at the start.
    pub adopted: u64,
    /// Events the collector has taken.
    pub delivered: u64,
    /// Events the collector has refused for good.
    pub rejected: u64,
    /// Events dropped here, by reason.
    pub dropped: Losses,
    /// Events still to be delivered.
    pub queued: u64,
    /// Why sending has stopped, if it has.
    pub paused: Option<Pause>,
    /// Sends that failed, since the last that did not.
    pub failures: u32,
}

/// The outbox. See the [module documentation](self).
#[derive(Debug)]
pub struct Outbox<S, R> {
    config: Config,
    spool: S,
    random: R,
    open: Option<Open>,
    /// Never tried, in the order in which they were sealed.
    fresh: Queue,
    /// Tried before, as they are or as parts of others. So all of them are older than what is fresh.
    tried: Vec<Sealed>,
    /// Where the search among the tried ones goes on. From their start each time, many would take for ever.
    next: usize,
    /// None of the tried ones is due before this.
    due: u64,
    /// None of the tried ones expires before this.
    expiry: u64,
    /// On their way: a handful.
    flying: Vec<Sealed>,
    bytes: usize,
    /// Counts flushes.
    epoch: u32,
    needs_poll: bool,
    /// No attempt before this, for any batch: the destination is resting.
    rest_until: u64,
    failures: u32,
    paused: Option<Pause>,
    /// Losses that no batch has reported yet.
    unreported: Losses,
    /// The events of which somebody wants to know what becomes of them: their places in a batch, and who.
    #[cfg(feature = "client")]
    watched: BTreeMap<BatchId, Vec<(u32, Watcher)>>,
    #[cfg(feature = "client")]
    fates: Vec<(Watcher, Fate)>,
    stats: Stats,
}

#[derive(Debug)]
struct Open {
    batch_id: BatchId,
    events: u32,
    bytes: usize,
    opened_at: u64,
}

#[derive(Debug)]
struct Sealed {
    batch_id: BatchId,
    events: u32,
    bytes: usize,
    attempts: u32,
    not_before: u64,
    /// How often had been flushed when its events were pushed.
    epoch: u32,
    /// The losses this batch reports, to be reported anew if it is dropped.
    lost: Losses,
}

/// A part of a batch: its number among the parts, and which events it holds.
type Part<'a> = (u8, &'a dyn Fn(u32) -> bool);

impl Sealed {
    fn new(batch_id: BatchId, events: u32, bytes: usize) -> Self {
        let lost = Losses::default();
        Self { batch_id, events, bytes, attempts: 0, not_before: 0, epoch: 0, lost }
    }

    fn adds_up(&self, accepted: u32, rejected: u32, retry: &[u32]) -> bool {
        let answered = u64::from(accepted) + u64::from(rejected) + retry.len() as u64;
        let distinct = retry.iter().enumerate().all(|(n, index)| *index < self.events && !retry[..n].contains(index));
        answered == u64::from(self.events) && distinct
    }

    /// A batch from a future that far off was made by a wrong clock. It would outlive the collector's memory of it.
    fn is_older(&self, age: u64, now: u64) -> bool {
        self.batch_id.made_at().abs_diff(now) > age
    }
}

/// First in, first out, each at little cost however many there are. A `VecDeque` costs the browser a kilobyte.
#[derive(Debug, Default)]
struct Queue {
    /// The last is the first to go.
    front: Vec<Sealed>,
    back: Vec<Sealed>,
}

impl Queue {
    fn first(&self) -> Option<&Sealed> {
        self.front.last().or(self.back.first())
    }

    fn push(&mut self, batch: Sealed) {
        self.back.push(batch);
    }

    fn pop(&mut self) -> Option<Sealed> {
        if self.front.is_empty() {
            self.front = core::mem::take(&mut self.back);
            self.front.reverse();
        }
        self.front.pop()
    }
}

/// Whoever wants to know what becomes of an event, by a number of theirs.
#[cfg(feature = "client")]
pub(crate) type Watcher = u64;

/// What became of an event: answered for by the collector, with its place in the batch, or dropped.
#[cfg(feature = "client")]
pub(crate) type Fate = Result<u32, Reason>;

impl<S: Spool, R: Random> Outbox<S, R> {
    /// An outbox that goes on with whatever `spool` holds.
    pub fn new(mut config: Config, mut spool: S, random: R) -> Result<Self, S::Error> {
        config.batch_events = config.batch_events.clamp(1, crate::limits::BATCH_EVENTS);
        config.batch_bytes = config.batch_bytes.min(crate::limits::BATCH_BYTES);
        config.in_flight = config.in_flight.max(1);
        // Whoever asks for ever gets a century, and sums of times stay far from the largest number.
        for time in [&mut config.batch_age, &mut config.backoff.max, &mut config.pause] {
            *time = (*time).min(CENTURY);
        }
        let found = spool.recover()?;
        let mut outbox = Self {
            config,
            spool,
            random,
            open: None,
            fresh: Queue::default(),
            tried: Vec::new(),
            next: 0,
            due: 0,
            expiry: u64::MAX,
            flying: Vec::new(),
            bytes: 0,
            epoch: 0,
            needs_poll: true,
            rest_until: 0,
            failures: 0,
            paused: None,
            unreported: Losses::default(),
            #[cfg(feature = "client")]
            watched: BTreeMap::new(),
            #[cfg(feature = "client")]
            fates: Vec::new(),
            stats: Stats::default(),
        };
        outbox.take_over(found)?;
        Ok(outbox)
    }

    /// Goes on with what others have left in the spool since, as far as there is room in the queue. Returns how many
    /// events that is.
    pub fn adopt(&mut self) -> Result<u64, S::Error> {
        let before = self.stats.adopted;
        let found = self.spool.adopt(self.config.queue_bytes.saturating_sub(self.bytes))?;
        self.take_over(found)?;
        Ok(self.stats.adopted - before)
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
                self.spool.remove(segment.batch_id)?;
                continue;
            }
            self.stats.adopted += u64::from(segment.events);
            self.stats.queued += u64::from(segment.events);
            self.bytes += segment.bytes;
            self.enqueue(Sealed::new(segment.batch_id, segment.events, segment.bytes));
        }
        self.stats.adopted += u64::from(found.corrupt);
        self.lose(Reason::Storage, found.corrupt);
        Ok(())
    }

    /// Checks, stamps and stores an event. When this returns `Ok`, the event is in the spool.
    pub fn push(&mut self, now: u64, event: &Event) -> Result<EventId, PushError<S::Error>> {
        let encoded = event.encode(now, &mut self.random).map_err(PushError::Invalid)?;
        self.push_encoded(now, &encoded)?;
        Ok(encoded.event_id)
    }

    /// Stores an event that has been encoded already, say by another thread.
    pub fn push_encoded(&mut self, now: u64, event: &Encoded) -> Result<(), PushError<S::Error>> {
        self.store(now, event).map(|_| ())
    }

    /// Stores an event, and tells its batch and its place in that.
    fn store(&mut self, now: u64, event: &Encoded) -> Result<(BatchId, u32), PushError<S::Error>> {
        self.stats.made += 1;
        let bytes = event.json.len() + 2;
        if !self.make_room(bytes) {
            self.lose(Reason::QueueFull, 1);
            return Err(PushError::QueueFull);
        }
        if self.open.as_ref().is_some_and(|open| open.bytes + bytes + body::CLOSING_BYTES > self.config.batch_bytes) {
            self.seal();
        }
        let mut appended = self.append(now, &event.json);
        if appended.is_err() && self.open.is_some() {
            // What is stored stays as it is. A new segment may fare better.
            self.seal();
            appended = self.append(now, &event.json);
        }
        let place = match appended {
            Ok(place) => place,
            Err(error) => {
                self.lose(Reason::Storage, 1);
                return Err(PushError::Storage(error));
            }
        };
        if self.open.as_ref().is_some_and(|open| open.events as usize >= self.config.batch_events) {
            self.seal();
        }
        Ok(place)
    }

    /// Seals what is open, whatever its size and age, so that the next [`poll`](Outbox::poll) may send it.
    /// [`is_settled`](Outbox::is_settled) tells when all that was pushed before has been answered for.
    pub fn flush(&mut self) -> Mark {
        self.seal();
        self.epoch += 1;
        Mark(self.epoch)
    }

    /// Whether everything pushed before that [`flush`](Outbox::flush) is delivered, rejected or dropped.
    pub fn is_settled(&self, mark: Mark) -> bool {
        // Of the fresh ones, the first is the oldest.
        self.flying.iter().chain(&self.tried).chain(self.fresh.first()).all(|batch| batch.epoch >= mark.0)
    }

    /// Whether something has happened since the last [`poll`](Outbox::poll) that makes another worth
    /// while. Lets a driver sleep through pushes that only fill an open batch.
    pub fn needs_poll(&self) -> bool {
        self.needs_poll
    }

    /// What to do now.
    pub fn poll(&mut self, now: u64) -> Next {
        self.needs_poll = false;
        if let Some(open) = &mut self.open {
            // A clock set back must not keep a batch open.
            open.opened_at = open.opened_at.min(now);
            if now - open.opened_at >= self.config.batch_age {
                self.seal();
            }
        }
        self.expire(now);
        loop {
            match self.choose(now) {
                Ok(batch) if batch.is_older(self.config.queue_age, now) => self.drop_batch(&batch, Reason::Expired),
                Ok(batch) => {
                    if let Some(attempt) = self.attempt(batch, now) {
                        return Next::Send(attempt);
                    }
                }
                Err(wake) => return wake.map_or(Next::Idle, Next::WaitUntil),
            }
        }
    }

    /// Reports what came of the attempt to send `batch`. Returns what it settled.
    pub fn answer(&mut self, now: u64, batch: BatchId, answer: Answer<'_>) -> Settled {
        let before = self.stats;
        let Some(at) = self.flying.iter().position(|flying| flying.batch_id == batch) else {
            return Settled::default();
        };
        let batch = self.flying.swap_remove(at);
        match answer {
            Answer::Receipt { accepted, rejected, retry } if batch.adds_up(accepted, rejected, retry) => {
                self.recovered();
                let attempts = batch.attempts + 1;
                let not_before = now + self.config.backoff.delay(attempts, None, &mut self.random);
                self.note(batch.batch_id, |index| !retry.contains(&index), None);
                if retry.is_empty() {
                    self.forget(&batch);
                } else if !self.divide(&batch, attempts, not_before, &[(0, &|index| retry.contains(&index))]) {
                    self.put_off(batch, now, None);
                    return Settled::default();
                }
                self.stats.delivered += u64::from(accepted);
                self.stats.rejected += u64::from(rejected);
                self.stats.queued -= u64::from(accepted) + u64::from(rejected);
            }
            Answer::Status { status: 401, .. } => self.pause(batch, now, Pause::Unauthorized),
            Answer::Status { status: 403, .. } => self.pause(batch, now, Pause::Forbidden),
            Answer::Status { status: 413, .. } => {
                self.recovered();
                let half = batch.events / 2;
                if half == 0 {
                    self.drop_batch(&batch, Reason::TooLarge);
                } else if self.divide(&batch, 1, 0, &[(1, &|index| index < half), (2, &|index| index >= half)]) {
                    self.unreported.merge(&batch.lost);
                } else {
                    self.put_off(batch, now, None);
                }
            }
            // Final, by the contract. Any other status may come from something on the way, so it is kept.
            Answer::Status { status: 400 | 415 | 422, .. } => {
                self.recovered();
                self.drop_batch(&batch, Reason::Refused);
            }
            Answer::Status { retry_after, .. } => self.put_off(batch, now, retry_after),
            Answer::Receipt { .. } | Answer::None => self.put_off(batch, now, None),
        }
        Settled {
            delivered: self.stats.delivered - before.delivered,
            rejected: self.stats.rejected - before.rejected,
            dropped: self.stats.dropped.total() - before.dropped.total(),
        }
    }

    /// Ends a pause or a rest at once: the credentials were replaced, the network is back.
    pub fn resume(&mut self) {
        self.recovered();
        self.due = 0;
        for batch in &mut self.tried {
            batch.not_before = 0;
        }
    }

    /// Where every event has gone.
    pub fn stats(&self) -> Stats {
        Stats { paused: self.paused, failures: self.failures, ..self.stats }
    }

    /// The spool.
    pub fn spool(&self) -> &S {
        &self.spool
    }

    /// The spool, for what it can do beyond being one.
    pub fn spool_mut(&mut self) -> &mut S {
        &mut self.spool
    }

    /// The batches that are on their way.
    pub fn batches(&self) -> impl Iterator<Item = BatchId> + '_ {
        self.flying.iter().map(|batch| batch.batch_id)
    }

    fn append(&mut self, now: u64, json: &str) -> Result<(BatchId, u32), S::Error> {
        let place = if let Some(open) = &mut self.open {
            let text = body::event(json, false);
            self.spool.append(open.batch_id, &text)?;
            open.events += 1;
            open.bytes += text.len();
            self.bytes += text.len();
            (open.batch_id, open.events - 1)
        } else {
            let batch_id = BatchId::new(now, &mut self.random);
            let text = body::opening(batch_id, &self.config.sdk) + &body::event(json, true);
            self.spool.append(batch_id, &text)?;
            self.bytes += text.len();
            self.needs_poll = true;
            self.open = Some(Open { batch_id, events: 1, bytes: text.len(), opened_at: now });
            (batch_id, 0)
        };
        self.stats.queued += 1;
        Ok(place)
    }

    fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        let mut lost = core::mem::take(&mut self.unreported);
        let closing = body::closing(&lost);
        let mut bytes = open.bytes + closing.len();
        if self.spool.seal(open.batch_id, &closing).is_err() {
            // The events are there all the same; only the report is not.
            self.unreported = core::mem::take(&mut lost);
            bytes = open.bytes;
        }
        self.bytes += bytes - open.bytes;
        let epoch = self.epoch;
        self.enqueue(Sealed { epoch, lost, ..Sealed::new(open.batch_id, open.events, bytes) });
    }

    fn enqueue(&mut self, batch: Sealed) {
        self.needs_poll = true;
        if batch.attempts == 0 {
            self.fresh.push(batch);
        } else {
            self.due = self.due.min(batch.not_before);
            self.expiry = self.expiry.min(batch.batch_id.made_at().saturating_add(self.config.queue_age));
            self.tried.push(batch);
        }
    }

    /// Takes the batch to send now out of the queue, or else says when there may be one.
    fn choose(&mut self, now: u64) -> Result<Sealed, Option<u64>> {
        let sealing = self.open.as_ref().map(|open| open.opened_at + self.config.batch_age);
        // While the destination fails, one batch at a time finds out whether it still does.
        let most = if self.failures > 0 { 1 } else { self.config.in_flight };
        if self.flying.len() >= most || self.fresh.first().or(self.tried.first()).is_none() {
            return Err(sealing);
        }
        let mut wake = self.until(self.rest_until, now);
        if wake.is_none() {
            // A batch that keeps failing gives way to those that were never tried.
            if let Some(batch) = self.fresh.pop() {
                return Ok(batch);
            }
            wake = self.until(self.due, now);
        }
        if wake.is_none() {
            let (next, all) = (self.next.min(self.tried.len()), self.tried.len());
            let is_due = |at: &usize| self.until(self.tried[*at].not_before, now).is_none();
            if let Some(at) = (next..all).chain(0..next).find(is_due) {
                self.next = at;
                return Ok(self.tried.swap_remove(at));
            }
            self.due = self.tried.iter().map(|batch| batch.not_before).min().unwrap_or_default();
            wake = Some(self.due);
        }
        Err(wake.map(|wake| sealing.map_or(wake, |sealing| wake.min(sealing))))
    }

    fn attempt(&mut self, batch: Sealed, now: u64) -> Option<Attempt> {
        let Sealed { batch_id, events, .. } = batch;
        match self.spool.read(batch_id) {
            Ok(body) => {
                self.flying.push(batch);
                return Some(Attempt { batch_id, body, events });
            }
            Err(error) if S::may_pass(&error) => self.put_off(batch, now, None),
            Err(_) => self.drop_batch(&batch, Reason::Storage),
        }
        None
    }

    /// Replaces the batch by parts of it. The parts are stored before the whole is removed, and sent only
    /// after: whoever finds both knows that no part was ever sent. `false` if the spool failed, and then
    /// all is as it was.
    fn divide(&mut self, batch: &Sealed, attempts: u32, not_before: u64, parts: &[Part<'_>]) -> bool {
        let Sealed { batch_id: parent, epoch, .. } = *batch;
        let Ok(text) = self.spool.read(parent) else { return false };
        let closing = body::closing(&Losses::default());
        let mut children = Vec::new();
        let mut failed = false;
        for (number, keep) in parts {
            let child = parent.child(*number);
            let (part, events) = body::part(&text, child, keep, &closing);
            children.push(Sealed { attempts, not_before, epoch, ..Sealed::new(child, events, part.len()) });
            failed |= self.spool.append(child, &part).is_err() || self.spool.seal(child, "").is_err();
        }
        if failed || self.spool.remove(parent).is_err() {
            for child in children {
                let _ = self.spool.remove(child.batch_id);
            }
            return false;
        }
        #[cfg(feature = "client")]
        self.watch_parts(parent, parts);
        self.bytes -= batch.bytes;
        for child in children {
            self.bytes += child.bytes;
            self.enqueue(child);
        }
        true
    }

    fn forget(&mut self, batch: &Sealed) {
        // If this fails, the batch is sent again by a later life, and the collector knows it.
        let _ = self.spool.remove(batch.batch_id);
        self.bytes -= batch.bytes;
    }

    fn drop_batch(&mut self, batch: &Sealed, reason: Reason) {
        self.unreported.merge(&batch.lost);
        self.stats.queued -= u64::from(batch.events);
        self.note(batch.batch_id, |_| true, Some(reason));
        self.lose(reason, batch.events);
        self.forget(batch);
    }

    /// Notes what became of some events of a batch.
    #[cfg(feature = "client")]
    fn note(&mut self, batch: BatchId, which: impl Fn(u32) -> bool, dropped: Option<Reason>) {
        let Some(mut watched) = self.watched.remove(&batch) else { return };
        watched.retain(|(index, watcher)| {
            if which(*index) {
                self.fates.push((*watcher, dropped.map_or(Ok(*index), Err)));
            }
            !which(*index)
        });
        if !watched.is_empty() {
            self.watched.insert(batch, watched);
        }
    }

    #[cfg(not(feature = "client"))]
    #[expect(clippy::needless_pass_by_ref_mut, clippy::unused_self, reason = "the same call with and without")]
    fn note(&mut self, _: BatchId, _: impl Fn(u32) -> bool, _: Option<Reason>) {}

    fn lose(&mut self, reason: Reason, events: u32) {
        self.stats.dropped.add(reason, events);
        self.unreported.add(reason, events);
    }

    fn make_room(&mut self, bytes: usize) -> bool {
        while self.bytes + bytes > self.config.queue_bytes {
            let tried = self.tried.iter().enumerate().min_by_key(|(_, batch)| batch.batch_id.made_at());
            let oldest = match tried.map(|(at, _)| at) {
                Some(at) => self.tried.swap_remove(at),
                None => match self.fresh.pop() {
                    Some(batch) => batch,
                    None => return false,
                },
            };
            self.drop_batch(&oldest, Reason::QueueFull);
        }
        true
    }

    fn expire(&mut self, now: u64) {
        let age = self.config.queue_age;
        while self.fresh.first().is_some_and(|batch| batch.is_older(age, now)) {
            if let Some(batch) = self.fresh.pop() {
                self.drop_batch(&batch, Reason::Expired);
            }
        }
        if now > self.expiry {
            self.expiry = u64::MAX;
            for batch in core::mem::take(&mut self.tried) {
                if batch.is_older(age, now) {
                    self.drop_batch(&batch, Reason::Expired);
                } else {
                    self.enqueue(batch);
                }
            }
        }
    }

    fn put_off(&mut self, mut batch: Sealed, now: u64, retry_after: Option<u64>) {
        batch.attempts += 1;
        batch.not_before = now + self.config.backoff.delay(batch.attempts, retry_after, &mut self.random);
        self.enqueue(batch);
        self.failures += 1;
        self.rest_until = now + self.config.backoff.delay(self.failures, retry_after, &mut self.random);
    }

    fn pause(&mut self, mut batch: Sealed, now: u64, pause: Pause) {
        batch.attempts += 1;
        self.enqueue(batch);
        self.failures += 1;
        self.paused = Some(pause);
        self.rest_until = now + self.config.pause;
    }

    /// The destination answers, whatever it says.
    fn recovered(&mut self) {
        self.failures = 0;
        self.paused = None;
        self.rest_until = 0;
    }

    /// `then`, if that is still to come. Further off than any wait can be means that the clock was set
    /// back, and then there is nothing to wait for.
    fn until(&self, then: u64, now: u64) -> Option<u64> {
        let longest = self.config.backoff.longest().max(self.config.pause);
        (then > now && then - now <= longest).then_some(then)
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
        self.watched.entry(batch).or_default().push((index, watcher));
        Ok(())
    }

    /// What has become of watched events since this was last asked.
    pub(crate) fn take_fates(&mut self) -> Vec<(Watcher, Fate)> {
        core::mem::take(&mut self.fates)
    }

    /// Finds the watched events of a batch again in its parts.
    fn watch_parts(&mut self, parent: BatchId, parts: &[Part<'_>]) {
        for (index, watcher) in self.watched.remove(&parent).unwrap_or_default() {
            if let Some((number, keep)) = parts.iter().find(|(_, keep)| keep(index)) {
                let place = (0..index).filter(|before| keep(*before)).count() as u32;
                self.watched.entry(parent.child(*number)).or_default().push((place, watcher));
            }
        }
    }
}

/// What one answer settled, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Taken by the collector.
    pub delivered: u64,
    /// Refused by the collector for good.
    pub rejected: u64,
    /// Dropped here.
    pub dropped: u64,
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
