//! The decisions of the browser tracker: the queue of the `tallymark` crate, as functions for JavaScript.
//!
//! The queue decides when to seal, send, retry, give up and drop. The script around it does the rest: it listens, keeps
//! time, and writes, stores and sends events. Arguments and results are numbers only, so neither side needs glue code.
//! Times are milliseconds: `tick` returns the time for the other functions. Batches have numbers above 0, which the
//! script assigns.
//!
//! One instance of the wasm is one queue.

mod host;
#[cfg(test)]
mod tests;

use host::Host;
#[cfg(target_arch = "wasm32")]
use lol_alloc::{LeakingAllocator, LockedAllocator};
use std::cell::RefCell;
use tallymark::Reason;
use tallymark::queue::{Clock, Config, Next, Pause, Queue};
use wasm_bindgen::prelude::wasm_bindgen;

/// The default allocator is a fifth of the wasm. Only the queue's lists allocate memory, and they never shrink, so
/// nothing needs to be freed.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ALLOCATOR: LockedAllocator<LeakingAllocator> = LockedAllocator::new(LeakingAllocator::new());

const CONFIG: Config = {
    let mut config = Config::DEFAULT;
    config.batch_events = 20;
    // Two of these fit into the 64 KiB that a closing page can send with `keepalive`.
    config.batch_bytes = 30_000;
    config.batch_age = 2_000;
    config.in_flight = 2;
    config.queue_bytes = 256 * 1024;
    config
};

/// Later than the age of any batch.
const START: u64 = 100 * CONFIG.queue_age;

thread_local! {
    // The first reading sets it.
    static CLOCK: RefCell<Clock> = const { RefCell::new(Clock::start(START, 0)) };
    static QUEUE: RefCell<Queue<Host, Host>> = const { RefCell::new(Queue::new(CONFIG, Host, Host)) };
}

fn with<T>(act: impl FnOnce(&mut Queue<Host, Host>) -> T) -> T {
    QUEUE.with_borrow_mut(act)
}

/// Takes a reading of `Date.now()` and `performance.now()`. Returns the time for the other functions.
#[wasm_bindgen]
pub fn tick(wall: f64, monotonic: f64) -> f64 {
    CLOCK.with_borrow_mut(|clock| clock.advance(wall as u64, monotonic as u64)) as f64
}

/// Takes over a batch of an earlier page, after a `tick`. `made_at` is the time in its id.
#[wasm_bindgen]
pub fn adopt(batch: i32, made_at: f64, events: u32, bytes: usize) {
    let made_at = CLOCK.with_borrow(|clock| clock.time_of(made_at as u64));
    with(|queue| queue.adopt(batch, made_at, events, bytes));
}

/// Counts events that were dropped before they reached the queue. `reason` is an index of [`Reason::ALL`].
#[wasm_bindgen]
pub fn lose(reason: usize, events: u32) {
    if let Some(reason) = Reason::ALL.get(reason) {
        with(|queue| queue.lose(*reason, events));
    }
}

/// Queues the event that the page holds, of `bytes` bytes. An event that cannot be stored is counted as dropped.
#[wasm_bindgen]
pub fn push(now: f64, bytes: usize) {
    let _ = with(|queue| queue.push(now as u64, &bytes, bytes));
}

/// Seals the open batch, so that the next `poll` can send it.
#[wasm_bindgen]
pub fn flush() {
    with(Queue::flush);
}

/// Returns what to do now.
///
/// A number below 0 means: send the batch with that number without its sign, report the result, and poll again at once.
/// Any other number is the time to poll again; infinity means not before something happens.
#[wasm_bindgen]
pub fn poll(now: f64) -> f64 {
    match with(|queue| queue.poll(now as u64)) {
        Next::Send(batch) => -f64::from(batch),
        Next::WaitUntil(then) => then as f64,
        Next::Idle => f64::INFINITY,
    }
}

/// Reports the result of sending a batch.
///
/// `status` is the HTTP status, or 0 if there was no answer that could be understood. `retry_after` is in milliseconds,
/// or NaN if the answer has none. 200 is for a receipt only: the number of events accepted, rejected, and asked for
/// again. The page holds the indexes of the latter.
#[wasm_bindgen]
pub fn answer(now: f64, batch: i32, status: u16, retry_after: f64, accepted: u32, rejected: u32, retry: u32) {
    with(|queue| match status {
        200 => queue.receipt(now as u64, batch, accepted, rejected, retry),
        _ => queue.failed(now as u64, batch, status, (retry_after >= 0.0).then_some(retry_after as u64)),
    });
}

/// Ends every pause and backoff, because the network is back.
#[wasm_bindgen]
pub fn resume() {
    with(Queue::resume);
}

/// A statistic by its number: 0 is the status (401 or 403) that has stopped all sending, or 0. Then events: 1
/// delivered, 2 rejected, and from 3 on dropped, by reason.
#[wasm_bindgen]
pub fn stat(place: usize) -> f64 {
    with(|queue| {
        let stats = queue.stats();
        let stat = match place {
            0 => match stats.paused {
                None => 0,
                Some(Pause::Unauthorized) => 401,
                Some(_) => 403,
            },
            1 => stats.delivered,
            2 => stats.rejected,
            _ => Reason::ALL.get(place - 3).map_or(0, |reason| stats.dropped.of(*reason)),
        };
        stat as f64
    })
}
