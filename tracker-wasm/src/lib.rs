//! The browser tracker's decisions: the queue of the `tallymark` crate, as functions that JavaScript calls.
//!
//! When to seal, send, retry, give up and drop is decided here, and nothing is done: the script around it listens, keeps
//! time, writes events, stores and sends. Only numbers go in and out, which needs no code on either side to carry them
//! across. Times are milliseconds since the Unix epoch; batches have numbers above 0, which the script gives.
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
use tallymark::queue::{Config, Next, Pause, Queue};
use wasm_bindgen::prelude::wasm_bindgen;

/// The default allocator is a fifth of the wasm. All that is ever allocated are the queue's lists, which keep what they
/// have once grown to, so nothing needs to be freed.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ALLOCATOR: LockedAllocator<LeakingAllocator> = LockedAllocator::new(LeakingAllocator::new());

const CONFIG: Config = {
    let mut config = Config::DEFAULT;
    config.batch_events = 20;
    // Two of these fit into the 64 KiB that a page may leave behind when it goes.
    config.batch_bytes = 30_000;
    config.batch_age = 2_000;
    config.in_flight = 2;
    config.queue_bytes = 1024 * 1024;
    config
};

thread_local! {
    static QUEUE: RefCell<Queue<Host, Host>> = const { RefCell::new(Queue::new(CONFIG, Host, Host)) };
}

fn with<T>(act: impl FnOnce(&mut Queue<Host, Host>) -> T) -> T {
    QUEUE.with_borrow_mut(act)
}

/// Goes on with a batch that was there before.
#[wasm_bindgen]
pub fn adopt(batch: i32, made_at: f64, events: u32, bytes: usize) {
    with(|queue| queue.adopt(batch, made_at as u64, events, bytes));
}

/// Counts events that were dropped before they came here, for the reason at this place of the list.
#[wasm_bindgen]
pub fn lose(reason: usize, events: u32) {
    if let Some(reason) = Reason::ALL.get(reason) {
        with(|queue| queue.lose(*reason, events));
    }
}

/// Queues the event that the page has at hand, of so many bytes. What cannot be kept is counted as dropped.
#[wasm_bindgen]
pub fn push(now: f64, bytes: usize) {
    let _ = with(|queue| queue.push(now as u64, &bytes, bytes));
}

/// Makes the next `poll` send what is queued, without waiting for more.
#[wasm_bindgen]
pub fn flush() {
    with(Queue::flush);
}

/// What to do now. A number below 0 is to send the batch of that number without its sign, report what came of it and ask
/// again at once; another is when to ask again, and infinity is nothing until something happens.
#[wasm_bindgen]
pub fn poll(now: f64) -> f64 {
    match with(|queue| queue.poll(now as u64)) {
        Next::Send(batch) => -f64::from(batch),
        Next::WaitUntil(then) => then as f64,
        Next::Idle => f64::INFINITY,
    }
}

/// Reports what came of sending a batch.
///
/// `status` is the HTTP status, with `retry_after` in milliseconds, NaN if the answer did not say; or 0 if no answer came
/// that could be understood. 200 is for the collector's receipt only: how many events it took and refused, and how many
/// it asks for again, whose places the page has at hand.
#[wasm_bindgen]
pub fn answer(now: f64, batch: i32, status: u16, retry_after: f64, accepted: u32, rejected: u32, retry: u32) {
    with(|queue| match status {
        200 => queue.receipt(now as u64, batch, accepted, rejected, retry),
        _ => queue.failed(now as u64, batch, status, (retry_after >= 0.0).then_some(retry_after as u64)),
    });
}

/// Ends every wait: the network is back.
#[wasm_bindgen]
pub fn resume() {
    with(Queue::resume);
}

/// A number by its place: 0 the status (401 or 403) that has stopped all sending or 0, then events: 1 delivered, 2
/// rejected, and from 3 on those dropped for each reason.
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
