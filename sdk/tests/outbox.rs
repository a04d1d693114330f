//! The outbox against a model of the collector, with a virtual clock: answers of every kind, lost answers, clock jumps,
//! and crashes between any two storage operations.

use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tallymark::outbox::{Answer, Clock, Config, Next, Pause};
use tallymark::{Backoff, BatchId, Event, MemorySpool, Outbox, Reason, Recovered, Spool};

const START: u64 = 1_763_673_600_000;
const CLOCK: Clock = Clock::start(START, 0);

/// Storage that outlives the outbox, and that can fail after a number of operations, as if the process had ended.
#[derive(Clone, Default)]
struct Disk {
    segments: Rc<RefCell<MemorySpool>>,
    operations_left: Rc<Cell<Option<u32>>>,
}

#[derive(Debug)]
struct Dead;

impl Disk {
    fn operate<T>(
        &self,
        work: impl FnOnce(&mut MemorySpool) -> Result<T, std::convert::Infallible>,
    ) -> Result<T, Dead> {
        match self.operations_left.get() {
            Some(0) => return Err(Dead),
            Some(left) => self.operations_left.set(Some(left - 1)),
            None => {}
        }
        Ok(work(&mut self.segments.borrow_mut()).unwrap())
    }

    fn is_dead(&self) -> bool {
        self.operations_left.get() == Some(0)
    }
}

impl Spool for Disk {
    type Error = Dead;

    fn append(&mut self, batch: BatchId, text: &str) -> Result<(), Dead> {
        self.operate(|disk| disk.append(batch, text))
    }

    fn seal(&mut self, batch: BatchId, text: &str) -> Result<(), Dead> {
        self.operate(|disk| disk.seal(batch, text))
    }

    fn read(&mut self, batch: BatchId) -> Result<String, Dead> {
        self.operate(|disk| disk.read(batch))
    }

    fn remove(&mut self, batch: BatchId) -> Result<(), Dead> {
        self.operate(|disk| disk.remove(batch))
    }

    fn recover(&mut self) -> Result<Recovered, Dead> {
        self.operate(MemorySpool::recover)
    }
}

/// What the collector does with a batch, and which answer the client gets.
#[derive(Clone, Debug)]
enum Reply {
    Taken,
    /// Accepted except for some events, which are asked for again, by a mask over their indexes.
    Partly(u8),
    /// Accepted except for some events, which are rejected.
    Refused(u8),
    /// Taken, but the answer is lost.
    AnswerLost,
    NeverArrived,
    /// A proxy answers 200.
    Junk,
    Status(u16, Option<u64>),
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Flush,
    Pass(u64),
    JumpBack(u64),
    Poll(Reply),
    Resume,
    CrashAfter(u32),
}

type Driver = Outbox<Disk, Box<dyn FnMut() -> u64>>;

/// The collector: remembers each batch with its body and its receipt, and counts events.
#[derive(Default)]
struct Collector {
    batches: BTreeMap<BatchId, (String, u32, u32, Vec<u32>)>,
    counted: BTreeMap<String, u32>,
    refused: BTreeSet<String>,
}

impl Collector {
    fn take(&mut self, batch: BatchId, body: &str, reply: &Reply) -> (u32, u32, Vec<u32>) {
        if let Some((first, accepted, rejected, retry)) = self.batches.get(&batch) {
            assert_eq!(first, body, "the body changed under its id");
            return (*accepted, *rejected, retry.clone());
        }
        let (mut accepted, mut rejected, mut retry) = (0, 0, Vec::new());
        for (index, id) in (0..).zip(ids(body)) {
            let hit = |mask: u8| mask >> (index % 8) & 1 == 1;
            match reply {
                Reply::Partly(mask) if hit(*mask) => retry.push(index),
                Reply::Refused(mask) if hit(*mask) => {
                    rejected += 1;
                    self.refused.insert(id);
                }
                _ => {
                    accepted += 1;
                    *self.counted.entry(id).or_default() += 1;
                }
            }
        }
        self.batches.insert(batch, (body.into(), accepted, rejected, retry.clone()));
        (accepted, rejected, retry)
    }
}

fn ids(body: &str) -> Vec<String> {
    body.split("\"event_id\":\"").skip(1).map(|rest| rest[..36].into()).collect()
}

struct World {
    disk: Disk,
    outbox: Driver,
    collector: Collector,
    now: u64,
    seed: Rc<Cell<u64>>,
    promised: BTreeSet<String>,
    /// Nothing may be sent before this.
    quiet_until: u64,
}

fn config() -> Config {
    let mut config = Config::default();
    config.batch_events = 8;
    config.batch_bytes = 2_000;
    config.in_flight = 3;
    config.backoff = Backoff { base: 100, max: 10_000 };
    config
}

fn start(disk: &Disk, seed: &Rc<Cell<u64>>) -> Driver {
    disk.operations_left.set(None);
    let seed = Rc::clone(seed);
    let random = move || {
        seed.set(seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        seed.get() ^ seed.get() >> 29
    };
    Outbox::new(&CLOCK, config(), disk.clone(), Box::new(random) as Box<dyn FnMut() -> u64>).unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = Disk::default();
        let seed = Rc::new(Cell::new(seed));
        let outbox = start(&disk, &seed);
        let (collector, promised) = (Collector::default(), BTreeSet::new());
        Self { disk, outbox, collector, now: START, seed, promised, quiet_until: 0 }
    }

    fn check(&self) {
        if self.disk.is_dead() {
            return;
        }
        let stats = self.outbox.stats();
        assert_eq!(
            stats.made + stats.adopted,
            stats.delivered + stats.rejected + stats.dropped.total() + stats.queued,
            "{stats:?}"
        );
        assert!(self.collector.counted.values().all(|n| *n == 1), "an event was counted twice");
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Push(n) => {
                let event = Event::custom("n".repeat(usize::from(*n) % 100 + 1));
                if let Ok(id) = self.outbox.push(self.now, &event) {
                    self.promised.insert(id.to_string());
                }
            }
            Step::Flush => {
                self.outbox.flush();
            }
            Step::Pass(time) => self.now += time,
            Step::JumpBack(time) => {
                self.now -= time;
                self.quiet_until = 0;
            }
            Step::Poll(reply) => self.poll(reply),
            Step::Resume => {
                self.outbox.resume();
                self.quiet_until = 0;
            }
            Step::CrashAfter(operations) => self.disk.operations_left.set(Some(*operations)),
        }
        if self.disk.is_dead() {
            self.outbox = start(&self.disk, &self.seed);
            self.quiet_until = 0;
        }
        self.check();
    }

    fn poll(&mut self, reply: &Reply) {
        let Next::Send(attempt) = self.outbox.poll(self.now) else { return };
        assert!(self.now >= self.quiet_until, "sent before the backoff was over");
        assert_eq!(attempt.events as usize, ids(&attempt.body).len());
        assert!(attempt.body.len() <= config().batch_bytes);
        let batch = attempt.batch_id;
        // A batch that was accepted once is not too large the next time.
        let known = self.collector.batches.contains_key(&batch);
        let reply = if known && matches!(reply, Reply::Status(413, _)) { &Reply::Taken } else { reply };
        let answer = match reply {
            Reply::Taken | Reply::Partly(_) | Reply::Refused(_) => {
                let (accepted, rejected, retry) = self.collector.take(batch, &attempt.body, reply);
                self.outbox.answer(self.now, batch, Answer::Receipt { accepted, rejected, retry: &retry });
                return;
            }
            Reply::AnswerLost => {
                self.collector.take(batch, &attempt.body, reply);
                Answer::None
            }
            Reply::NeverArrived => Answer::None,
            Reply::Junk => Answer::Receipt { accepted: attempt.events + 1, rejected: 0, retry: &[] },
            Reply::Status(status, retry_after) => Answer::Status { status: *status, retry_after: *retry_after },
        };
        self.outbox.answer(self.now, batch, answer);
        if let Reply::Status(429 | 503, Some(wait)) = reply {
            self.quiet_until = self.now + (*wait).min(config().backoff.max);
        }
    }

    /// Repairs the network and lets time pass until nothing is left to do.
    fn settle(&mut self) {
        self.disk.operations_left.set(None);
        self.outbox.flush();
        for _ in 0..10_000 {
            match self.outbox.poll(self.now) {
                Next::Send(attempt) => {
                    let (accepted, rejected, retry) =
                        self.collector.take(attempt.batch_id, &attempt.body, &Reply::Taken);
                    let answer = Answer::Receipt { accepted, rejected, retry: &retry };
                    self.outbox.answer(self.now, attempt.batch_id, answer);
                }
                Next::WaitUntil(then) => self.now = self.now.max(then),
                Next::Idle => return self.check(),
            }
        }
        panic!("the outbox does not become idle");
    }
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        3 => Just(Reply::Taken),
        2 => any::<u8>().prop_map(Reply::Partly),
        1 => any::<u8>().prop_map(Reply::Refused),
        2 => Just(Reply::AnswerLost),
        1 => Just(Reply::NeverArrived),
        1 => Just(Reply::Junk),
        2 => (prop_oneof![Just(429), Just(500), Just(503)], proptest::option::of(0..60_000u64))
            .prop_map(|(status, wait)| Reply::Status(status, wait)),
        1 => prop_oneof![Just(401), Just(403), Just(404), Just(413)].prop_map(|status| Reply::Status(status, None)),
    ]
}

fn step(reply: impl Strategy<Value = Reply>) -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<u8>().prop_map(Step::Push),
        1 => Just(Step::Flush),
        3 => (0..20_000u64).prop_map(Step::Pass),
        1 => (0..1_000_000u64).prop_map(Step::JumpBack),
        8 => reply.prop_map(Step::Poll),
        1 => Just(Step::Resume),
        1 => (0..6u32).prop_map(Step::CrashAfter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_event_is_counted_exactly_once(
        seed in any::<u64>(),
        steps in proptest::collection::vec(step(reply()), 1..120),
    ) {
        // A 413 for a single event drops it, so the model sends that only to larger batches.
        let mut world = World::new(seed);
        let mut dropped = 0;
        for step in &steps {
            world.step(step);
            dropped = dropped.max(world.outbox.stats().dropped.total());
        }
        world.settle();
        for id in &world.promised {
            let counted = world.collector.counted.contains_key(id);
            let refused = world.collector.refused.contains(id);
            let may_be_dropped = steps.iter().any(|step| matches!(step, Step::Poll(Reply::Status(413, _))));
            prop_assert!(counted || refused || may_be_dropped, "{id} was lost");
            prop_assert!(!(counted && refused));
        }
    }

    #[test]
    fn final_answers_drop_with_a_reason(
        seed in any::<u64>(),
        status in prop_oneof![Just(400u16), Just(415), Just(422)],
        events in 1..30usize,
    ) {
        let mut world = World::new(seed);
        for _ in 0..events {
            world.step(&Step::Push(7));
        }
        world.step(&Step::Flush);
        let reply = Reply::Status(status, None);
        for _ in 0..events {
            world.step(&Step::Poll(reply.clone()));
        }
        let stats = world.outbox.stats();
        prop_assert_eq!(stats.dropped.of(Reason::Refused), events as u64);
        prop_assert_eq!(stats.queued, 0);

        // The next batch reports it to the collector.
        world.step(&Step::Push(1));
        world.outbox.flush();
        let Next::Send(attempt) = world.outbox.poll(world.now) else { panic!("nothing to send") };
        let lost = format!("\"lost\":{{\"refused\":{events}}}");
        prop_assert!(attempt.body.contains(&lost), "{}", attempt.body);
    }
}

fn world_with(events: usize) -> World {
    let mut world = World::new(1);
    for _ in 0..events {
        world.step(&Step::Push(1));
    }
    world
}

#[test]
fn a_batch_is_sealed_by_count_by_bytes_and_by_age() {
    let mut world = world_with(7);
    assert_eq!(world.outbox.poll(START), Next::WaitUntil(START + config().batch_age));
    world.step(&Step::Push(1));
    assert!(matches!(world.outbox.poll(START), Next::Send(attempt) if attempt.events == 8), "by count");

    let mut world = world_with(1);
    assert!(matches!(world.outbox.poll(START + config().batch_age - 1), Next::WaitUntil(_)));
    assert!(
        matches!(world.outbox.poll(START + config().batch_age), Next::Send(attempt) if attempt.events == 1),
        "by age"
    );

    let mut world = World::new(1);
    for _ in 0..7 {
        world.outbox.push(START, &Event::page_view("u".repeat(300))).unwrap();
    }
    let Next::Send(attempt) = world.outbox.poll(START) else { panic!("by bytes") };
    assert!(attempt.body.len() <= config().batch_bytes && attempt.body.len() > config().batch_bytes / 2);
}

#[test]
fn a_wrong_key_pauses_keeps_and_goes_on_when_it_is_replaced() {
    let mut world = world_with(8);
    world.poll(&Reply::Status(401, None));
    assert_eq!(world.outbox.stats().paused, Some(Pause::Unauthorized));
    assert!(matches!(world.outbox.poll(world.now + 60_000), Next::WaitUntil(_)));
    world.outbox.resume();
    world.poll(&Reply::Taken);
    assert_eq!(world.outbox.stats().delivered, 8);
    assert_eq!(world.outbox.stats().paused, None);
}

#[test]
fn too_large_divides_until_the_single_event_that_is_too_large() {
    let mut world = world_with(8);
    let mut sent = Vec::new();
    while let Next::Send(attempt) = world.outbox.poll(world.now) {
        sent.push(attempt.events);
        let poisoned = ids(&attempt.body).contains(world.promised.first().unwrap());
        let answer = if poisoned {
            Answer::Status { status: 413, retry_after: None }
        } else {
            Answer::Receipt { accepted: attempt.events, rejected: 0, retry: &[] }
        };
        world.outbox.answer(world.now, attempt.batch_id, answer);
        world.check();
    }
    assert_eq!(sent, [8, 4, 4, 2, 2, 1, 1]);
    assert_eq!(world.outbox.stats().delivered, 7);
    assert_eq!(world.outbox.stats().dropped.of(Reason::TooLarge), 1);
}

#[test]
fn a_poisoned_batch_does_not_block_the_rest() {
    let mut world = world_with(8 * 20);
    let mut poison = None;
    for _ in 0..200 {
        match world.outbox.poll(world.now) {
            Next::Send(attempt) if *poison.get_or_insert(attempt.batch_id) == attempt.batch_id => {
                world.outbox.answer(world.now, attempt.batch_id, Answer::Status { status: 500, retry_after: None });
            }
            Next::Send(attempt) => {
                let answer = Answer::Receipt { accepted: attempt.events, rejected: 0, retry: &[] };
                world.outbox.answer(world.now, attempt.batch_id, answer);
            }
            Next::WaitUntil(then) => world.now = then,
            Next::Idle => break,
        }
    }
    assert_eq!(world.outbox.stats().delivered, 8 * 19);
    assert_eq!(world.outbox.stats().queued, 8);
}

#[test]
fn the_oldest_batch_goes_when_the_queue_is_full_or_too_old() {
    let mut config = config();
    config.queue_bytes = 10_000;
    let week = config.queue_age;
    let mut seed = 0;
    let random = move || {
        seed += 1;
        seed
    };
    let mut outbox = Outbox::new(&CLOCK, config, Disk::default(), random).unwrap();
    for n in 0..100 {
        outbox.push(START + n, &Event::custom(format!("{n}."))).unwrap();
    }
    let full = outbox.stats().dropped.of(Reason::QueueFull);
    assert!(full > 0 && full < 100);

    // The oldest batch that is left is sent first, and it is not the first that was made.
    outbox.flush();
    let Next::Send(attempt) = outbox.poll(START + week / 2) else { panic!("nothing to send") };
    assert!(attempt.body.contains(&format!("\"name\":\"{full}.\"")), "{}", attempt.body);
    outbox.answer(START + week / 2, attempt.batch_id, Answer::None);

    assert_eq!(outbox.poll(START + 2 * week), Next::Idle);
    let stats = outbox.stats();
    assert_eq!(stats.dropped.of(Reason::Expired), 100 - full);
    assert_eq!(stats.queued, 0);
}

/// A process whose wall clock is wrong, then right, or whose machine sleeps; and the next process.
#[test]
fn only_the_time_that_has_passed_makes_a_batch_too_old() {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let random = || rand::random::<u64>;
    let encode = |wall| Event::custom("n").encode(wall, &mut random()).unwrap();
    let taken = |outbox: &mut Outbox<_, _>, now| {
        outbox.flush();
        let mut batches = 0;
        while let Next::Send(attempt) = outbox.poll(now) {
            outbox.answer(now, attempt.batch_id, Answer::Receipt { accepted: attempt.events, rejected: 0, retry: &[] });
            batches += 1;
        }
        (batches, outbox.stats().dropped.of(Reason::Expired))
    };
    for (wrong, right) in [(START - 700 * DAY, START), (START + 400 * DAY, START), (START, START + 8 * DAY)] {
        let is_asleep = right > wrong && right - wrong == 8 * DAY;
        let (disk, mut clock) = (Disk::default(), Clock::start(wrong, 0));
        let mut outbox = Outbox::new(&clock, config(), disk.clone(), random()).unwrap();
        outbox.push_encoded(clock.now(), &encode(wrong)).unwrap();
        outbox.flush();
        clock.advance(right, 5_000);
        outbox.push_encoded(clock.now(), &encode(right)).unwrap();
        // The next process takes over both. A week of sleep has passed all the same.
        let copy = Disk::default();
        *copy.segments.borrow_mut() = disk.segments.borrow().clone();
        let next = Clock::start(right + 5_000, 0);
        let mut outbox_of_next = Outbox::new(&next, config(), copy, random()).unwrap();
        let expected = if is_asleep { (1, 1) } else { (2, 0) };
        assert_eq!(taken(&mut outbox, clock.now()), expected, "{wrong} {right}");
        assert_eq!(taken(&mut outbox_of_next, next.now()), expected, "the next: {wrong} {right}");
    }
}

#[test]
fn a_long_queue_drains_in_order_and_failed_batches_come_last() {
    const BATCHES: u64 = 100_000;
    let mut config = config();
    config.batch_events = 1;
    let mut outbox = Outbox::new(&CLOCK, config, MemorySpool::new(), rand::random::<u64>).unwrap();
    for n in 0..BATCHES {
        outbox.push(START + n / 100, &Event::custom(format!("{n}."))).unwrap();
    }
    let (mut now, mut sent, mut failed) = (START + BATCHES, Vec::new(), 0);
    for _ in 0..2 * BATCHES {
        let attempt = match outbox.poll(now) {
            Next::Send(attempt) => attempt,
            Next::WaitUntil(then) => {
                now = then;
                continue;
            }
            Next::Idle => break,
        };
        let name = attempt.body.split("\"name\":\"").nth(1).unwrap();
        sent.push(name[..name.find('.').unwrap()].parse::<u64>().unwrap());
        let answer = match failed {
            0..20 => Answer::Status { status: 503, retry_after: None },
            _ => Answer::Receipt { accepted: 1, rejected: 0, retry: &[] },
        };
        failed += 1;
        outbox.answer(now, attempt.batch_id, answer);
    }
    let again = sent.split_off(BATCHES as usize);
    assert!(sent.into_iter().eq(0..BATCHES));
    assert_eq!(again.into_iter().collect::<BTreeSet<_>>(), (0..20).collect());
    assert_eq!((outbox.stats().delivered, outbox.stats().queued), (BATCHES, 0));
}

#[test]
fn a_failed_batch_is_dropped_first_when_the_queue_is_full_and_expires_when_it_is_old() {
    let mut config = config();
    config.batch_events = 1;
    config.queue_bytes = 10_000;
    let week = config.queue_age;
    let mut outbox = Outbox::new(&CLOCK, config, MemorySpool::new(), rand::random::<u64>).unwrap();
    let mut now = START;
    let mut tried = Vec::new();
    for _ in 0..2 {
        outbox.push(now, &Event::custom("n")).unwrap();
        let Next::Send(attempt) = outbox.poll(now) else { panic!("nothing to send") };
        tried.push(attempt.batch_id);
        outbox.answer(now, attempt.batch_id, Answer::None);
        now += 60_000;
    }
    while outbox.stats().dropped.total() == 0 {
        outbox.push(now, &Event::custom("n")).unwrap();
        now += 60_000;
    }
    let is_left = tried.iter().map(|batch| !outbox.spool_mut().read(*batch).unwrap().is_empty());
    assert!(is_left.eq([false, true]));
    // The second is a minute younger than the first, and older than the rest.
    outbox.poll(START + 60_000 + week);
    assert_eq!(outbox.stats().dropped.of(Reason::Expired), 0);
    outbox.poll(START + 60_001 + week);
    assert_eq!(outbox.stats().dropped.of(Reason::Expired), 1);
    assert!(outbox.spool_mut().read(tried[1]).unwrap().is_empty());
}
