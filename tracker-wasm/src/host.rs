//! The batches of a page, which are on JavaScript's side: see `npm/src/batches.ts` for what each function does.

use core::ops::Range;
use tallymark::queue::Store;
use tallymark::{Losses, Random, Reason};

#[cfg(not(test))]
mod page {
    use wasm_bindgen::prelude::wasm_bindgen;

    // Types that WebAssembly has itself: then the script's functions are imported as they are.
    #[wasm_bindgen(raw_module = "host")]
    extern "C" {
        pub(super) fn random() -> f64;
        pub(super) fn begin(now: f64) -> i32;
        pub(super) fn extend(batch: i32) -> i32;
        pub(super) fn seal(
            batch: i32,
            full: f64,
            expired: f64,
            refused: f64,
            large: f64,
            storage: f64,
            invalid: f64,
        ) -> i32;
        pub(super) fn part(whole: i32, number: i32, from: i32, to: i32) -> i32;
        pub(super) fn remove(batch: i32);
        pub(super) fn size(batch: i32) -> i32;
    }
}
#[cfg(test)]
use crate::tests::page;

/// The page, and the randomness it gives.
#[derive(Debug)]
pub(crate) struct Host;

impl Random for Host {
    fn random(&mut self) -> u64 {
        // Only waits are drawn from it, and none is longer than 2³² ms.
        (page::random() * f64::from(u32::MAX)) as u64
    }
}

/// The page could not do it.
#[derive(Debug)]
pub(crate) struct Failed;

fn done(number: i32) -> Result<i32, Failed> {
    if number == 0 { Err(Failed) } else { Ok(number) }
}

impl Store for Host {
    type Batch = i32;
    /// The page has it at hand. Here it is only so many bytes.
    type Event = usize;
    type Error = Failed;

    fn begin(&mut self, now: u64, _: &usize, _: &mut impl Random) -> Result<(i32, usize), Failed> {
        sized(page::begin(now as f64))
    }

    fn extend(&mut self, batch: i32, bytes: &usize) -> Result<usize, Failed> {
        done(page::extend(batch)).map(|_| *bytes)
    }

    fn seal(&mut self, batch: i32, lost: &Losses) -> Result<usize, Failed> {
        let [full, expired, refused, large, storage, invalid] = Reason::ALL.map(|reason| lost.of(reason) as f64);
        done(page::seal(batch, full, expired, refused, large, storage, invalid)).map(|_| 0)
    }

    fn part(&mut self, whole: i32, number: u8, events: Range<u32>) -> Result<(i32, usize), Failed> {
        sized(page::part(whole, i32::from(number), events.start as i32, events.end as i32))
    }

    fn remove(&mut self, batch: i32) -> Result<(), Failed> {
        page::remove(batch);
        Ok(())
    }
}

fn sized(batch: i32) -> Result<(i32, usize), Failed> {
    done(batch).map(|batch| (batch, page::size(batch) as usize))
}
