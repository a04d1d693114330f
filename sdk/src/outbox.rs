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
use crate::id::{BatchId, EventId, Random};
use crate::loss::{Losses, Reason};
use crate::retry::Backoff;
use crate::spool::Spool;
use core::fmt;

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
    // A handful, and searched more often than moved: in the browser a `VecDeque` costs a kilobyte.
    sealed: Vec<Sealed>,
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
    /// What became of events, if anybody wants to know.
    #[cfg(feature = "client")]
    fates: Option<Vec<(EventId, Option<Reason>)>>,
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
    in_flight: bool,
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
        Self { batch_id, events, bytes, attempts: 0, not_before: 0, in_flight: false, epoch: 0, lost }
    }
}

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
            sealed: Vec::new(),
            bytes: 0,
            epoch: 0,
            needs_poll: true,
            rest_until: 0,
            failures: 0,
            paused: None,
            unreported: Losses::default(),
            #[cfg(feature = "client")]
            fates: None,
            stats: Stats::default(),
        };
        for segment in &found.segments {
            // A part beside its whole was never sent: an earlier life died while it divided the batch.
            if found.segments.iter().any(|whole| whole.batch_id.is_parent_of(segment.batch_id)) {
                outbox.spool.remove(segment.batch_id)?;
                continue;
            }
            outbox.stats.adopted += u64::from(segment.events);
            outbox.stats.queued += u64::from(segment.events);
            outbox.enqueue(Sealed::new(segment.batch_id, segment.events, segment.bytes));
        }
        outbox.stats.adopted += u64::from(found.corrupt);
        outbox.lose(Reason::Storage, found.corrupt);
        Ok(outbox)
    }

    /// Checks, stamps and stores an event. When this returns `Ok`, the event is in the spool.
    pub fn push(&mut self, now: u64, event: &Event) -> Result<EventId, PushError<S::Error>> {
        let encoded = event.encode(now, &mut self.random).map_err(PushError::Invalid)?;
        self.push_encoded(now, &encoded)?;
        Ok(encoded.event_id)
    }

    /// Stores an event that has been encoded already, say by another thread.
    pub fn push_encoded(&mut self, now: u64, event: &Encoded) -> Result<(), PushError<S::Error>> {
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
        if let Err(error) = appended {
            self.lose(Reason::Storage, 1);
            return Err(PushError::Storage(error));
        }
        if self.open.as_ref().is_some_and(|open| open.events as usize >= self.config.batch_events) {
            self.seal();
        }
        Ok(())
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
        self.sealed.iter().all(|batch| batch.epoch >= mark.0)
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
                Ok(at) => {
                    if let Some(attempt) = self.attempt(at, now) {
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
        let Some(at) = self.position(batch) else {
            return Settled::default();
        };
        self.sealed[at].in_flight = false;
        match answer {
            Answer::Receipt { accepted, rejected, retry } if self.adds_up(at, accepted, rejected, retry) => {
                self.recovered();
                let attempts = self.sealed[at].attempts + 1;
                let not_before = now + self.config.backoff.delay(attempts, None, &mut self.random);
                self.note(batch, |index| !retry.contains(&index), None);
                if retry.is_empty() {
                    self.forget(batch);
                } else if !self.divide(at, attempts, not_before, &[(0, &|index| retry.contains(&index))]) {
                    self.put_off(at, now, None);
                    return Settled::default();
                }
                self.stats.delivered += u64::from(accepted);
                self.stats.rejected += u64::from(rejected);
                self.stats.queued -= u64::from(accepted) + u64::from(rejected);
            }
            Answer::Status { status: 401, .. } => self.pause(at, now, Pause::Unauthorized),
            Answer::Status { status: 403, .. } => self.pause(at, now, Pause::Forbidden),
            Answer::Status { status: 413, .. } => {
                self.recovered();
                let Sealed { events, lost, .. } = self.sealed[at];
                let half = events / 2;
                if events <= 1 {
                    self.drop_batch(at, Reason::TooLarge);
                } else if self.divide(at, 0, 0, &[(1, &|index| index < half), (2, &|index| index >= half)]) {
                    self.unreported.merge(&lost);
                } else {
                    self.put_off(at, now, None);
                }
            }
            // Final, by the contract. Any other status may come from something on the way, so it is kept.
            Answer::Status { status: 400 | 415 | 422, .. } => {
                self.recovered();
                self.drop_batch(at, Reason::Refused);
            }
            Answer::Status { retry_after, .. } => self.put_off(at, now, retry_after),
            Answer::Receipt { .. } | Answer::None => self.put_off(at, now, None),
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
        for batch in &mut self.sealed {
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

    /// The batches that are sealed and not yet settled, oldest first.
    pub fn batches(&self) -> impl Iterator<Item = BatchId> + '_ {
        self.sealed.iter().map(|batch| batch.batch_id)
    }

    fn append(&mut self, now: u64, json: &str) -> Result<(), S::Error> {
        if let Some(open) = &mut self.open {
            let text = body::event(json, false);
            self.spool.append(open.batch_id, &text)?;
            open.events += 1;
            open.bytes += text.len();
            self.bytes += text.len();
        } else {
            let batch_id = BatchId::new(now, &mut self.random);
            let text = body::opening(batch_id, &self.config.sdk) + &body::event(json, true);
            self.spool.append(batch_id, &text)?;
            self.bytes += text.len();
            self.needs_poll = true;
            self.open = Some(Open { batch_id, events: 1, bytes: text.len(), opened_at: now });
        }
        self.stats.queued += 1;
        Ok(())
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
        self.bytes -= open.bytes;
        let epoch = self.epoch;
        self.enqueue(Sealed { epoch, lost, ..Sealed::new(open.batch_id, open.events, bytes) });
    }

    fn enqueue(&mut self, batch: Sealed) {
        self.bytes += batch.bytes;
        self.needs_poll = true;
        self.sealed.push(batch);
    }

    /// The batch to send now, or else when there may be one.
    fn choose(&self, now: u64) -> Result<usize, Option<u64>> {
        let mut wake = self.open.as_ref().map(|open| open.opened_at + self.config.batch_age);
        let resting = self.until(self.rest_until, now);
        let flying = self.sealed.iter().filter(|batch| batch.in_flight).count();
        // While the destination fails, one batch at a time finds out whether it still does.
        let most = if self.failures > 0 { 1 } else { self.config.in_flight };
        let mut best: Option<(u32, usize)> = None;
        if flying < most {
            // A batch that keeps failing gives way to those that have not been tried as often.
            for (at, batch) in self.sealed.iter().enumerate().filter(|(_, batch)| !batch.in_flight) {
                match resting.or(self.until(batch.not_before, now)) {
                    Some(then) => wake = Some(wake.map_or(then, |wake| wake.min(then))),
                    None if best.is_none_or(|(attempts, _)| batch.attempts < attempts) => {
                        best = Some((batch.attempts, at));
                    }
                    None => {}
                }
            }
        }
        best.map(|(_, at)| at).ok_or(wake)
    }

    fn attempt(&mut self, at: usize, now: u64) -> Option<Attempt> {
        let Sealed { batch_id, events, .. } = self.sealed[at];
        match self.spool.read(batch_id) {
            Ok(body) => {
                self.sealed[at].in_flight = true;
                return Some(Attempt { batch_id, body, events });
            }
            Err(error) if S::may_pass(&error) => self.put_off(at, now, None),
            Err(_) => self.drop_batch(at, Reason::Storage),
        }
        None
    }

    fn adds_up(&self, at: usize, accepted: u32, rejected: u32, retry: &[u32]) -> bool {
        let events = self.sealed[at].events;
        let answered = u64::from(accepted) + u64::from(rejected) + retry.len() as u64;
        let distinct = retry.iter().enumerate().all(|(n, index)| *index < events && !retry[..n].contains(index));
        answered == u64::from(events) && distinct
    }

    /// Replaces the batch by parts of it. The parts are stored before the whole is removed, and sent only
    /// after: whoever finds both knows that no part was ever sent. `false` if the spool failed, and then
    /// all is as it was.
    fn divide(&mut self, at: usize, attempts: u32, not_before: u64, parts: &[Part<'_>]) -> bool {
        let Sealed { batch_id: parent, epoch, .. } = self.sealed[at];
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
        self.unqueue(parent);
        for child in children {
            self.enqueue(child);
        }
        true
    }

    fn unqueue(&mut self, batch: BatchId) {
        if let Some(at) = self.position(batch) {
            self.bytes -= self.sealed.remove(at).bytes;
        }
    }

    fn forget(&mut self, batch: BatchId) {
        // If this fails, the batch is sent again by a later life, and the collector knows it.
        let _ = self.spool.remove(batch);
        self.unqueue(batch);
    }

    fn drop_batch(&mut self, at: usize, reason: Reason) {
        let Sealed { batch_id, events, lost, .. } = self.sealed[at];
        self.unreported.merge(&lost);
        self.stats.queued -= u64::from(events);
        self.note(batch_id, |_| true, Some(reason));
        self.lose(reason, events);
        self.forget(batch_id);
    }

    /// Notes what became of some events of a batch, while its text is there.
    #[cfg(feature = "client")]
    fn note(&mut self, batch: BatchId, which: impl Fn(u32) -> bool, fate: Option<Reason>) {
        let Some(fates) = &mut self.fates else { return };
        let text = self.spool.read(batch).unwrap_or_default();
        for (index, event) in (0..).zip(body::events(&text)) {
            if let (true, Some(id)) = (which(index), body::event_id(event)) {
                fates.push((id, fate));
            }
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
            let Some(at) = self.sealed.iter().position(|batch| !batch.in_flight) else {
                return false;
            };
            self.drop_batch(at, Reason::QueueFull);
        }
        true
    }

    fn expire(&mut self, now: u64) {
        // A batch from a future that far off was made by a wrong clock. It would outlive the collector's
        // memory of it.
        let age = self.config.queue_age;
        let is_expired = |batch: &Sealed| !batch.in_flight && batch.batch_id.made_at().abs_diff(now) > age;
        while let Some(at) = self.sealed.iter().position(is_expired) {
            self.drop_batch(at, Reason::Expired);
        }
    }

    fn put_off(&mut self, at: usize, now: u64, retry_after: Option<u64>) {
        let batch = &mut self.sealed[at];
        batch.attempts += 1;
        batch.not_before = now + self.config.backoff.delay(batch.attempts, retry_after, &mut self.random);
        self.failures += 1;
        self.rest_until = now + self.config.backoff.delay(self.failures, retry_after, &mut self.random);
    }

    fn pause(&mut self, at: usize, now: u64, pause: Pause) {
        self.sealed[at].attempts += 1;
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

    fn position(&self, batch: BatchId) -> Option<usize> {
        self.sealed.iter().position(|sealed| sealed.batch_id == batch)
    }
}

#[cfg(feature = "client")]
impl<S: Spool, R: Random> Outbox<S, R> {
    /// Whether to note what becomes of each event.
    pub(crate) fn note_fates(&mut self, wanted: bool) {
        match wanted {
            true => _ = self.fates.get_or_insert_default(),
            false => self.fates = None,
        }
    }

    /// What has become of events since this was last asked: answered for by the collector, or dropped.
    pub(crate) fn take_fates(&mut self) -> Vec<(EventId, Option<Reason>)> {
        self.fates.as_mut().map(core::mem::take).unwrap_or_default()
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
