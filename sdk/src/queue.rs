//! The pure queue: decides when to seal, send, retry, give up and drop.
//!
//! It knows batches by name, and how many events and bytes each has. What is in them, and where they are, is its
//! [`Store`]'s: text in a [`Spool`](crate::Spool) for the [`Outbox`](crate::Outbox), whatever a page may keep for the
//! browser tracker. It does no I/O but through that, reads no clock and draws no randomness of its own. Times are
//! milliseconds since the Unix epoch.

use crate::body::CLOSING_BYTES;
use crate::id::Random;
use crate::loss::{Losses, Reason};
use crate::retry::Backoff;
use core::ops::Range;

/// In milliseconds.
const CENTURY: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// Where a queue's batches are.
pub trait Store {
    /// What a batch is called.
    type Batch: Copy + PartialEq;
    /// What an event is handed over as.
    type Event: ?Sized;
    /// What can go wrong.
    type Error;

    /// Stores an event as the first of a new batch. Returns the batch and its bytes.
    fn begin(
        &mut self,
        now: u64,
        event: &Self::Event,
        random: &mut impl Random,
    ) -> Result<(Self::Batch, usize), Self::Error>;

    /// Stores an event in a batch that was begun. Returns how many bytes that adds.
    fn extend(&mut self, batch: Self::Batch, event: &Self::Event) -> Result<usize, Self::Error>;

    /// Makes a batch final, with the losses that it shall report. Returns how many bytes that adds. If it fails, the
    /// events are there all the same, and only the report is not.
    fn seal(&mut self, batch: Self::Batch, lost: &Losses) -> Result<usize, Self::Error>;

    /// Stores some events of a batch as another, final batch. Part 0 is those that the collector has asked for again, as
    /// many as the range is long; parts 1 and 2 are halves. Returns it and its bytes.
    fn part(&mut self, whole: Self::Batch, number: u8, events: Range<u32>)
    -> Result<(Self::Batch, usize), Self::Error>;

    /// Forgets a batch.
    fn remove(&mut self, batch: Self::Batch) -> Result<(), Self::Error>;

    /// Takes note that a batch is given up. It is removed next.
    fn dropped(&mut self, _batch: Self::Batch, _reason: Reason) {}
}

/// What the queue goes by.
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
    /// How long to wait after 401 or 403, in milliseconds, unless [`resume`](Queue::resume) is called.
    pub pause: u64,
}

impl Config {
    /// As a service's client has it.
    pub const DEFAULT: Self = Self {
        batch_events: 100,
        batch_bytes: 256 * 1024,
        batch_age: 5_000,
        in_flight: 4,
        queue_bytes: 64 * 1024 * 1024,
        queue_age: 7 * 24 * 60 * 60 * 1000,
        backoff: Backoff { base: 500, max: 5 * 60 * 1000 },
        pause: 5 * 60 * 1000,
    };

    /// The nearest that is possible.
    pub(crate) fn possible(mut self) -> Self {
        self.batch_events = self.batch_events.clamp(1, crate::limits::BATCH_EVENTS);
        self.batch_bytes = self.batch_bytes.min(crate::limits::BATCH_BYTES);
        self.in_flight = self.in_flight.max(1);
        // Whoever asks for ever gets a century, and sums of times stay far from the largest number.
        for time in [&mut self.batch_age, &mut self.backoff.max, &mut self.pause] {
            *time = (*time).min(CENTURY);
        }
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Next<T> {
    /// Send this, report what came of it, and ask again at once.
    Send(T),
    /// Nothing until then, or until something is pushed, flushed or answered.
    WaitUntil(u64),
    /// Nothing until something is pushed or answered.
    Idle,
}

/// A point in the stream of events, made by [`Queue::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

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
    /// Events that earlier lives have left.
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

impl Stats {
    const NONE: Self = Self {
        made: 0,
        adopted: 0,
        delivered: 0,
        rejected: 0,
        dropped: Losses::NONE,
        queued: 0,
        paused: None,
        failures: 0,
    };
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
pub enum NotStored<E> {
    /// The queue is full of batches that are on their way.
    Full,
    /// The store failed.
    Failed(E),
}

/// The queue. See the [module documentation](self).
#[derive(Debug)]
pub struct Queue<S: Store, R> {
    config: Config,
    store: S,
    random: R,
    open: Option<Open<S::Batch>>,
    /// Never tried, in the order in which they were sealed.
    fresh: Fifo<Sealed<S::Batch>>,
    /// Tried before, as they are or as parts of others. So all of them are older than what is fresh.
    tried: Vec<Sealed<S::Batch>>,
    /// Where the search among the tried ones goes on. From their start each time, many would take for ever.
    next: usize,
    /// None of the tried ones is due before this.
    due: u64,
    /// None of the tried ones expires before this.
    expiry: u64,
    /// On their way: a handful.
    flying: Vec<Sealed<S::Batch>>,
    bytes: usize,
    /// Counts flushes.
    epoch: u32,
    needs_poll: bool,
    /// No attempt before this, for any batch: the destination is resting.
    rest_until: u64,
    /// Losses that no batch has reported yet.
    unreported: Losses,
    stats: Stats,
}

#[derive(Debug)]
struct Open<B> {
    batch: B,
    events: u32,
    bytes: usize,
    opened_at: u64,
}

#[derive(Debug)]
struct Sealed<B> {
    batch: B,
    made_at: u64,
    events: u32,
    bytes: usize,
    attempts: u32,
    not_before: u64,
    /// How often had been flushed when its events were pushed.
    epoch: u32,
    /// The losses this batch reports, to be reported anew if it is dropped.
    lost: Losses,
}

impl<B> Sealed<B> {
    fn new(batch: B, made_at: u64, events: u32, bytes: usize) -> Self {
        Self { batch, made_at, events, bytes, attempts: 0, not_before: 0, epoch: 0, lost: Losses::NONE }
    }

    /// A batch from a future that far off was made by a wrong clock. It would outlive the collector's memory of it.
    fn is_older(&self, age: u64, now: u64) -> bool {
        self.made_at.abs_diff(now) > age
    }
}

/// First in, first out, each at little cost however many there are. A `VecDeque` costs the browser a kilobyte.
#[derive(Debug)]
struct Fifo<T> {
    /// The last is the first to go.
    front: Vec<T>,
    back: Vec<T>,
}

impl<T> Fifo<T> {
    const fn new() -> Self {
        Self { front: Vec::new(), back: Vec::new() }
    }

    fn first(&self) -> Option<&T> {
        self.front.last().or(self.back.first())
    }

    fn push(&mut self, item: T) {
        self.back.push(item);
    }

    fn pop(&mut self) -> Option<T> {
        if self.front.is_empty() {
            core::mem::swap(&mut self.front, &mut self.back);
            self.front.reverse();
        }
        self.front.pop()
    }
}

impl<S: Store, R: Random> Queue<S, R> {
    /// An empty queue. What `config` asks for beyond the limits is not checked.
    pub const fn new(config: Config, store: S, random: R) -> Self {
        Self {
            config,
            store,
            random,
            open: None,
            fresh: Fifo::new(),
            tried: Vec::new(),
            next: 0,
            due: 0,
            expiry: u64::MAX,
            flying: Vec::new(),
            bytes: 0,
            epoch: 0,
            needs_poll: true,
            rest_until: 0,
            unreported: Losses::NONE,
            stats: Stats::NONE,
        }
    }

    /// Goes on with a sealed batch of an earlier life.
    pub fn adopt(&mut self, batch: S::Batch, made_at: u64, events: u32, bytes: usize) {
        self.stats.adopted += u64::from(events);
        self.stats.queued += u64::from(events);
        self.bytes += bytes;
        self.enqueue(Sealed { epoch: self.epoch, ..Sealed::new(batch, made_at, events, bytes) });
    }

    /// Counts events that were lost before they came into the queue: as adopted, and as dropped.
    pub fn lose(&mut self, reason: Reason, events: u32) {
        self.stats.adopted += u64::from(events);
        self.drop_events(reason, events);
    }

    /// Stores an event of so many bytes. Returns its batch, and its place in that.
    pub fn push(&mut self, now: u64, event: &S::Event, bytes: usize) -> Result<(S::Batch, u32), NotStored<S::Error>> {
        self.stats.made += 1;
        if !self.make_room(bytes) {
            self.drop_events(Reason::QueueFull, 1);
            return Err(NotStored::Full);
        }
        if self.open.as_ref().is_some_and(|open| open.bytes + bytes + CLOSING_BYTES > self.config.batch_bytes) {
            self.seal();
        }
        let mut appended = self.append(now, event);
        if appended.is_err() && self.open.is_some() {
            // What is stored stays as it is. A new batch may fare better.
            self.seal();
            appended = self.append(now, event);
        }
        let place = match appended {
            Ok(place) => place,
            Err(error) => {
                self.drop_events(Reason::Storage, 1);
                return Err(NotStored::Failed(error));
            }
        };
        if self.open.as_ref().is_some_and(|open| open.events as usize >= self.config.batch_events) {
            self.seal();
        }
        Ok(place)
    }

    /// Seals what is open, whatever its size and age, so that the next [`poll`](Queue::poll) may send it.
    /// [`is_settled`](Queue::is_settled) tells when all that was pushed before has been answered for.
    pub fn flush(&mut self) -> Mark {
        self.seal();
        self.epoch += 1;
        Mark(self.epoch)
    }

    /// Whether everything pushed before that [`flush`](Queue::flush) is delivered, rejected or dropped.
    pub fn is_settled(&self, mark: Mark) -> bool {
        // Of the fresh ones, the first is the oldest.
        self.flying.iter().chain(&self.tried).chain(self.fresh.first()).all(|batch| batch.epoch >= mark.0)
    }

    /// Whether something has happened since the last [`poll`](Queue::poll) that makes another worth while.
    pub fn needs_poll(&self) -> bool {
        self.needs_poll
    }

    /// What to do now.
    pub fn poll(&mut self, now: u64) -> Next<S::Batch> {
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
                Ok(batch) if batch.is_older(self.config.queue_age, now) => self.give_up(&batch, Reason::Expired),
                Ok(batch) => {
                    let name = batch.batch;
                    self.flying.push(batch);
                    return Next::Send(name);
                }
                Err(wake) => return wake.map_or(Next::Idle, Next::WaitUntil),
            }
        }
    }

    /// How many events there are in a batch that is on its way.
    pub fn flying(&self, batch: S::Batch) -> Option<u32> {
        self.flying.iter().find(|flying| flying.batch == batch).map(|flying| flying.events)
    }

    /// Reports the collector's receipt for a batch: how many events it took, how many it refused for good, and how many
    /// it asks for again. A receipt that does not add up counts as no answer, so that whatever a captive portal says is
    /// not taken for one.
    pub fn receipt(&mut self, now: u64, batch: S::Batch, accepted: u32, rejected: u32, retry: u32) -> Settled {
        let Some(batch) = self.land(batch) else { return Settled::default() };
        if u64::from(accepted) + u64::from(rejected) + u64::from(retry) != u64::from(batch.events) {
            self.put_off(batch, now, None);
            return Settled::default();
        }
        self.recovered();
        let attempts = batch.attempts + 1;
        let not_before = now + self.config.backoff.delay(attempts, None, &mut self.random);
        if retry == 0 {
            self.forget(&batch);
        } else if !self.divide(&batch, attempts, not_before, &[(0, 0..retry)]) {
            self.put_off(batch, now, None);
            return Settled::default();
        }
        let (delivered, rejected) = (u64::from(accepted), u64::from(rejected));
        self.stats.delivered += delivered;
        self.stats.rejected += rejected;
        self.stats.queued -= delivered + rejected;
        Settled { delivered, rejected, dropped: 0 }
    }

    /// Reports that a batch got another answer, with `Retry-After` in milliseconds from now, or with status 0 none that
    /// could be understood, so that it may or may not have arrived.
    pub fn failed(&mut self, now: u64, batch: S::Batch, status: u16, retry_after: Option<u64>) -> Settled {
        let dropped = self.stats.dropped.total();
        let Some(batch) = self.land(batch) else { return Settled::default() };
        match status {
            401 => self.pause(batch, now, Pause::Unauthorized),
            403 => self.pause(batch, now, Pause::Forbidden),
            413 => {
                self.recovered();
                let (half, events) = (batch.events / 2, batch.events);
                if half == 0 {
                    self.give_up(&batch, Reason::TooLarge);
                } else if self.divide(&batch, 1, 0, &[(1, 0..half), (2, half..events)]) {
                    self.unreported.merge(&batch.lost);
                } else {
                    self.put_off(batch, now, None);
                }
            }
            // Final, by the contract. Any other status may come from something on the way, so it is kept.
            400 | 415 | 422 => {
                self.recovered();
                self.give_up(&batch, Reason::Refused);
            }
            _ => self.put_off(batch, now, retry_after),
        }
        Settled { dropped: self.stats.dropped.total() - dropped, ..Settled::default() }
    }

    /// Gives up a batch that was to be sent and cannot be read.
    pub fn gone(&mut self, batch: S::Batch) {
        if let Some(batch) = self.land(batch) {
            self.give_up(&batch, Reason::Storage);
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
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How many bytes may still be queued before the oldest batch goes.
    pub fn room(&self) -> usize {
        self.config.queue_bytes.saturating_sub(self.bytes)
    }

    /// Where the batches are.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Where the batches are, for what it can do beyond that.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The randomness, for what else needs some.
    pub fn random_mut(&mut self) -> &mut R {
        &mut self.random
    }

    fn append(&mut self, now: u64, event: &S::Event) -> Result<(S::Batch, u32), S::Error> {
        let place = if let Some(open) = &mut self.open {
            let bytes = self.store.extend(open.batch, event)?;
            open.events += 1;
            open.bytes += bytes;
            self.bytes += bytes;
            (open.batch, open.events - 1)
        } else {
            let (batch, bytes) = self.store.begin(now, event, &mut self.random)?;
            self.bytes += bytes;
            self.needs_poll = true;
            self.open = Some(Open { batch, events: 1, bytes, opened_at: now });
            (batch, 0)
        };
        self.stats.queued += 1;
        Ok(place)
    }

    fn seal(&mut self) {
        let Some(open) = self.open.take() else { return };
        let mut sealed = Sealed::new(open.batch, open.opened_at, open.events, open.bytes);
        sealed.epoch = self.epoch;
        if let Ok(bytes) = self.store.seal(open.batch, &self.unreported) {
            sealed.lost = core::mem::take(&mut self.unreported);
            sealed.bytes += bytes;
            self.bytes += bytes;
        }
        self.enqueue(sealed);
    }

    fn enqueue(&mut self, batch: Sealed<S::Batch>) {
        self.needs_poll = true;
        if batch.attempts == 0 {
            self.fresh.push(batch);
        } else {
            self.due = self.due.min(batch.not_before);
            self.expiry = self.expiry.min(batch.made_at.saturating_add(self.config.queue_age));
            self.tried.push(batch);
        }
    }

    /// Takes the batch to send now out of the queue, or else says when there may be one.
    fn choose(&mut self, now: u64) -> Result<Sealed<S::Batch>, Option<u64>> {
        let sealing = self.open.as_ref().map(|open| open.opened_at + self.config.batch_age);
        // While the destination fails, one batch at a time finds out whether it still does.
        let most = if self.stats.failures > 0 { 1 } else { self.config.in_flight };
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

    /// Takes back a batch that was on its way.
    fn land(&mut self, batch: S::Batch) -> Option<Sealed<S::Batch>> {
        let at = self.flying.iter().position(|flying| flying.batch == batch)?;
        Some(self.flying.swap_remove(at))
    }

    /// Replaces the batch by parts of it, each with its number. The parts are stored before the whole is removed, and
    /// sent only after: whoever finds both knows that no part was ever sent. `false` if the store failed, and then
    /// all is as it was.
    fn divide(&mut self, whole: &Sealed<S::Batch>, attempts: u32, not_before: u64, parts: &[(u8, Range<u32>)]) -> bool {
        let Sealed { batch, made_at, epoch, .. } = *whole;
        let before = self.tried.len();
        for (number, events) in parts {
            let Ok((part, bytes)) = self.store.part(batch, *number, events.clone()) else { break };
            let events = events.end - events.start;
            self.enqueue(Sealed { attempts, not_before, epoch, ..Sealed::new(part, made_at, events, bytes) });
        }
        let divided = self.tried.len() == before + parts.len() && self.store.remove(batch).is_ok();
        if divided {
            self.bytes -= whole.bytes;
            self.bytes += self.tried[before..].iter().map(|part| part.bytes).sum::<usize>();
        } else {
            while self.tried.len() > before {
                if let Some(part) = self.tried.pop() {
                    let _ = self.store.remove(part.batch);
                }
            }
        }
        divided
    }

    fn forget(&mut self, batch: &Sealed<S::Batch>) {
        // If this fails, the batch is sent again by a later life, and the collector knows it.
        let _ = self.store.remove(batch.batch);
        self.bytes -= batch.bytes;
    }

    fn give_up(&mut self, batch: &Sealed<S::Batch>, reason: Reason) {
        self.unreported.merge(&batch.lost);
        self.stats.queued -= u64::from(batch.events);
        self.store.dropped(batch.batch, reason);
        self.drop_events(reason, batch.events);
        self.forget(batch);
    }

    fn drop_events(&mut self, reason: Reason, events: u32) {
        self.stats.dropped.add(reason, events);
        self.unreported.add(reason, events);
    }

    fn make_room(&mut self, bytes: usize) -> bool {
        while self.bytes + bytes > self.config.queue_bytes {
            let tried = self.tried.iter().enumerate().min_by_key(|(_, batch)| batch.made_at);
            let oldest = match tried.map(|(at, _)| at) {
                Some(at) => self.tried.swap_remove(at),
                None => match self.fresh.pop() {
                    Some(batch) => batch,
                    None => return false,
                },
            };
            self.give_up(&oldest, Reason::QueueFull);
        }
        true
    }

    fn expire(&mut self, now: u64) {
        let age = self.config.queue_age;
        while self.fresh.first().is_some_and(|batch| batch.is_older(age, now)) {
            if let Some(batch) = self.fresh.pop() {
                self.give_up(&batch, Reason::Expired);
            }
        }
        if now > self.expiry {
            self.expiry = u64::MAX;
            let mut at = 0;
            while let Some(batch) = self.tried.get(at) {
                if batch.is_older(age, now) {
                    let batch = self.tried.swap_remove(at);
                    self.give_up(&batch, Reason::Expired);
                } else {
                    self.expiry = self.expiry.min(batch.made_at.saturating_add(age));
                    at += 1;
                }
            }
        }
    }

    fn put_off(&mut self, mut batch: Sealed<S::Batch>, now: u64, retry_after: Option<u64>) {
        batch.attempts += 1;
        batch.not_before = now + self.config.backoff.delay(batch.attempts, retry_after, &mut self.random);
        self.enqueue(batch);
        self.stats.failures += 1;
        self.rest_until = now + self.config.backoff.delay(self.stats.failures, retry_after, &mut self.random);
    }

    fn pause(&mut self, mut batch: Sealed<S::Batch>, now: u64, pause: Pause) {
        batch.attempts += 1;
        self.enqueue(batch);
        self.stats.failures += 1;
        self.stats.paused = Some(pause);
        self.rest_until = now + self.config.pause;
    }

    /// The destination answers, whatever it says.
    fn recovered(&mut self) {
        self.stats.failures = 0;
        self.stats.paused = None;
        self.rest_until = 0;
    }

    /// `then`, if that is still to come. Further off than any wait can be means that the clock was set
    /// back, and then there is nothing to wait for.
    fn until(&self, then: u64, now: u64) -> Option<u64> {
        let longest = self.config.backoff.longest().max(self.config.pause);
        (then > now && then - now <= longest).then_some(then)
    }
}
