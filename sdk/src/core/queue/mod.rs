//! The queue: decides when to seal, send, retry, give up and drop batches.
//!
//! It knows each batch by name, event count, length and age only. The events are in its [`BatchStore`]: text in a
//! [`Spool`](crate::Spool) for the [`Outbox`](crate::Outbox), the page's storage for the browser tracker. The queue
//! does no I/O beyond that store, reads no clock and makes no random numbers. Times are milliseconds of a [`Clock`].

mod batch;
mod config;
mod fifo;
mod stats;
mod store;

pub use crate::core::clock::Clock;
pub use config::Config;
pub use stats::{Mark, Next, NotStored, Pause, Settled, Stats};
pub use store::BatchStore;

use crate::core::body::CLOSING_BYTES;
use crate::core::id::Random;
use crate::core::loss::{Losses, Reason};
use batch::{Open, Sealed};
use core::ops::Range;
use fifo::Fifo;

/// The queue. See the [module documentation](self).
#[derive(Debug)]
pub struct Queue<S: BatchStore, R> {
    config: Config,
    store: S,
    random: R,
    open: Option<Open<S::Batch>>,
    /// Not sent yet, in the order in which they were sealed.
    ready: Fifo<Sealed<S::Batch>>,
    /// Sent before, whole or as a part of another batch, so all of them are older than those in `ready`.
    retrying: Vec<Sealed<S::Batch>>,
    /// Where the search in `retrying` continues. Searching from the start each time would be quadratic.
    next: usize,
    /// No batch in `retrying` is due before this.
    due: u64,
    /// No batch in `retrying` expires before this.
    expiry: u64,
    /// Being sent; a handful.
    in_flight: Vec<Sealed<S::Batch>>,
    bytes: usize,
    /// Counts flushes.
    epoch: u32,
    needs_poll: bool,
    /// No batch is sent before this, because the destination failed.
    cooldown_until: u64,
    /// Losses that no batch has reported yet.
    unreported: Losses,
    stats: Stats,
}

impl<S: BatchStore, R: Random> Queue<S, R> {
    /// An empty queue. The caller keeps `config` within the limits.
    pub const fn new(config: Config, store: S, random: R) -> Self {
        Self {
            config,
            store,
            random,
            open: None,
            ready: Fifo::new(),
            retrying: Vec::new(),
            next: 0,
            due: 0,
            expiry: u64::MAX,
            in_flight: Vec::new(),
            bytes: 0,
            epoch: 0,
            needs_poll: true,
            cooldown_until: 0,
            unreported: Losses::NONE,
            stats: Stats::NONE,
        }
    }

    /// Takes over a sealed batch of an earlier process or page. [`Clock::time_of`] returns `made_at`.
    pub fn adopt(&mut self, batch: S::Batch, made_at: u64, events: u32, bytes: usize) {
        self.stats.adopted += u64::from(events);
        self.stats.queued += u64::from(events);
        self.bytes += bytes;
        self.enqueue(Sealed { epoch: self.epoch, ..Sealed::new(batch, made_at, events, bytes) });
    }

    /// Counts events that were lost before they reached the queue, as adopted and as dropped.
    pub fn lose(&mut self, reason: Reason, events: u32) {
        self.stats.adopted += u64::from(events);
        self.drop_events(reason, events);
    }

    /// Stores an event of `bytes` bytes. Returns its batch and its index in it.
    ///
    /// # Errors
    ///
    /// If the event was not stored. It is counted as made and as dropped.
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
            // The events stored so far are safe. A new batch may succeed, say in another file.
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

    /// Seals the open batch, so that the next [`poll`](Queue::poll) can send it.
    ///
    /// Pass the mark to [`is_settled`](Queue::is_settled) to learn when every event pushed before it is settled.
    pub fn flush(&mut self) -> Mark {
        self.seal();
        self.epoch += 1;
        Mark(self.epoch)
    }

    /// Whether every event pushed before this [`flush`](Queue::flush) is delivered, rejected or dropped.
    pub fn is_settled(&self, mark: Mark) -> bool {
        // `ready` is in order, so its first batch is the oldest.
        self.in_flight.iter().chain(&self.retrying).chain(self.ready.first()).all(|batch| batch.epoch >= mark.0)
    }

    /// Whether the next [`poll`](Queue::poll) may return something other than the last one did.
    pub fn needs_poll(&self) -> bool {
        self.needs_poll
    }

    /// Returns what to do now.
    pub fn poll(&mut self, now: u64) -> Next<S::Batch> {
        self.needs_poll = false;
        if let Some(open) = &mut self.open {
            // A clock that was set back must not keep a batch open.
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
                    self.in_flight.push(batch);
                    return Next::Send(name);
                }
                Err(wake) => return wake.map_or(Next::Idle, Next::WaitUntil),
            }
        }
    }

    /// The number of events in a batch that is in flight.
    pub fn in_flight(&self, batch: S::Batch) -> Option<u32> {
        self.in_flight.iter().find(|sealed| sealed.batch == batch).map(|sealed| sealed.events)
    }

    /// Reports the collector's receipt for a batch: how many events it accepted, rejected, and asks for again.
    ///
    /// A receipt that does not add up counts as no answer, because a captive portal may have written it.
    pub fn receipt(&mut self, now: u64, batch: S::Batch, accepted: u32, rejected: u32, retry: u32) -> Settled {
        let Some(batch) = self.take_in_flight(batch) else { return Settled::default() };
        if u64::from(accepted) + u64::from(rejected) + u64::from(retry) != u64::from(batch.events) {
            self.reschedule(batch, now, None);
            return Settled::default();
        }
        self.recovered();
        let attempts = batch.attempts + 1;
        let not_before = now + self.config.backoff.delay(attempts, None, &mut self.random);
        if retry == 0 {
            self.forget(&batch);
        } else if !self.divide(&batch, attempts, not_before, &[(0, 0..retry)]) {
            self.reschedule(batch, now, None);
            return Settled::default();
        }
        let (delivered, rejected) = (u64::from(accepted), u64::from(rejected));
        self.stats.delivered += delivered;
        self.stats.rejected += rejected;
        self.stats.queued -= delivered + rejected;
        Settled { delivered, rejected, dropped: 0 }
    }

    /// Reports that a batch got an answer other than a receipt, with `Retry-After` in milliseconds from now.
    ///
    /// Status 0 means that there was no answer that could be understood: the batch may or may not have arrived.
    pub fn failed(&mut self, now: u64, batch: S::Batch, status: u16, retry_after: Option<u64>) -> Settled {
        let dropped = self.stats.dropped.total();
        let Some(batch) = self.take_in_flight(batch) else { return Settled::default() };
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
                    self.reschedule(batch, now, None);
                }
            }
            // Final, by the contract. Any other status may come from a proxy, so the batch is kept.
            400 | 415 | 422 => {
                self.recovered();
                self.give_up(&batch, Reason::Refused);
            }
            _ => self.reschedule(batch, now, retry_after),
        }
        Settled { dropped: self.stats.dropped.total() - dropped, ..Settled::default() }
    }

    /// Drops a batch in flight whose content cannot be read.
    pub fn unreadable(&mut self, batch: S::Batch) {
        if let Some(batch) = self.take_in_flight(batch) {
            self.give_up(&batch, Reason::Storage);
        }
    }

    /// Ends every pause and backoff, because the credentials were replaced or the network is back.
    pub fn resume(&mut self) {
        self.recovered();
        self.due = 0;
        for batch in &mut self.retrying {
            batch.not_before = 0;
        }
    }

    /// Where every event has gone.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How many bytes can be queued before the oldest batch is dropped.
    pub fn room(&self) -> usize {
        self.config.queue_bytes.saturating_sub(self.bytes)
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store, for operations of its own.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The random numbers, for ids.
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
            let (batch, bytes) = self.store.begin(event, &mut self.random)?;
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
            self.ready.push(batch);
        } else {
            self.due = self.due.min(batch.not_before);
            self.expiry = self.expiry.min(batch.made_at.saturating_add(self.config.queue_age));
            self.retrying.push(batch);
        }
    }

    /// Takes the batch to send now out of the queue, or returns when there may be one.
    fn choose(&mut self, now: u64) -> Result<Sealed<S::Batch>, Option<u64>> {
        let sealing = self.open.as_ref().map(|open| open.opened_at + self.config.batch_age);
        // While the destination fails, send one batch at a time to see whether it has recovered.
        let most = if self.stats.failures > 0 { 1 } else { self.config.in_flight };
        if self.in_flight.len() >= most || self.ready.first().or(self.retrying.first()).is_none() {
            return Err(sealing);
        }
        let mut wake = self.until(self.cooldown_until, now);
        if wake.is_none() {
            // New batches first, so that a batch that keeps failing does not block them.
            if let Some(batch) = self.ready.pop() {
                return Ok(batch);
            }
            wake = self.until(self.due, now);
        }
        if wake.is_none() {
            let (next, all) = (self.next.min(self.retrying.len()), self.retrying.len());
            let is_due = |at: &usize| self.until(self.retrying[*at].not_before, now).is_none();
            if let Some(at) = (next..all).chain(0..next).find(is_due) {
                self.next = at;
                return Ok(self.retrying.swap_remove(at));
            }
            self.due = self.retrying.iter().map(|batch| batch.not_before).min().unwrap_or_default();
            wake = Some(self.due);
        }
        Err(wake.map(|wake| sealing.map_or(wake, |sealing| wake.min(sealing))))
    }

    /// Takes a batch out of those in flight.
    fn take_in_flight(&mut self, batch: S::Batch) -> Option<Sealed<S::Batch>> {
        let at = self.in_flight.iter().position(|sealed| sealed.batch == batch)?;
        Some(self.in_flight.swap_remove(at))
    }

    /// Replaces a batch by numbered parts of it. Returns `false`, and changes nothing, if the store failed.
    ///
    /// The parts are stored before the whole is removed, and sent only after that. So a process that finds both after a
    /// crash knows that no part was ever sent.
    fn divide(&mut self, whole: &Sealed<S::Batch>, attempts: u32, not_before: u64, parts: &[(u8, Range<u32>)]) -> bool {
        let Sealed { batch, made_at, epoch, .. } = *whole;
        let before = self.retrying.len();
        for (number, events) in parts {
            let Ok((part, bytes)) = self.store.part(batch, *number, events.clone()) else { break };
            let events = events.end - events.start;
            self.enqueue(Sealed { attempts, not_before, epoch, ..Sealed::new(part, made_at, events, bytes) });
        }
        let divided = self.retrying.len() == before + parts.len() && self.store.remove(batch).is_ok();
        if divided {
            self.bytes -= whole.bytes;
            self.bytes += self.retrying[before..].iter().map(|part| part.bytes).sum::<usize>();
        } else {
            while self.retrying.len() > before {
                if let Some(part) = self.retrying.pop() {
                    let _ = self.store.remove(part.batch);
                }
            }
        }
        divided
    }

    fn forget(&mut self, batch: &Sealed<S::Batch>) {
        // If this fails, a later process sends the batch again, and the collector recognises it.
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
            let oldest = self.retrying.iter().enumerate().min_by_key(|(_, batch)| batch.made_at);
            let oldest = match oldest.map(|(at, _)| at) {
                Some(at) => self.retrying.swap_remove(at),
                None => match self.ready.pop() {
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
        while self.ready.first().is_some_and(|batch| batch.is_older(age, now)) {
            if let Some(batch) = self.ready.pop() {
                self.give_up(&batch, Reason::Expired);
            }
        }
        if now > self.expiry {
            self.expiry = u64::MAX;
            let mut at = 0;
            while let Some(batch) = self.retrying.get(at) {
                if batch.is_older(age, now) {
                    let batch = self.retrying.swap_remove(at);
                    self.give_up(&batch, Reason::Expired);
                } else {
                    self.expiry = self.expiry.min(batch.made_at.saturating_add(age));
                    at += 1;
                }
            }
        }
    }

    fn reschedule(&mut self, mut batch: Sealed<S::Batch>, now: u64, retry_after: Option<u64>) {
        batch.attempts += 1;
        batch.not_before = now + self.config.backoff.delay(batch.attempts, retry_after, &mut self.random);
        self.enqueue(batch);
        self.stats.failures += 1;
        self.cooldown_until = now + self.config.backoff.delay(self.stats.failures, retry_after, &mut self.random);
    }

    fn pause(&mut self, mut batch: Sealed<S::Batch>, now: u64, pause: Pause) {
        batch.attempts += 1;
        self.enqueue(batch);
        self.stats.failures += 1;
        self.stats.paused = Some(pause);
        self.cooldown_until = now + self.config.pause;
    }

    /// The destination answered, so pauses and backoffs end.
    fn recovered(&mut self) {
        self.stats.failures = 0;
        self.stats.paused = None;
        self.cooldown_until = 0;
    }

    /// `then`, if it is in the future. If it is further off than any wait can be, the clock was set back, and there is
    /// nothing to wait for.
    fn until(&self, then: u64, now: u64) -> Option<u64> {
        let longest = self.config.backoff.longest().max(self.config.pause);
        (then > now && then - now <= longest).then_some(then)
    }
}
