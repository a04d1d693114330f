//! The page's batches. JavaScript stores them: `npm/src/batches.ts` documents each function.

use core::ops::Range;
use tallymark::queue::BatchStore;
use tallymark::{Losses, Random, Reason};

#[cfg(not(test))]
mod page {
    use wasm_bindgen::prelude::wasm_bindgen;

    // Only number types of WebAssembly, so that the script's functions are imported without glue.
    #[wasm_bindgen(raw_module = "host")]
    extern "C" {
        pub(super) fn random() -> f64;
        pub(super) fn begin() -> i32;
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

/// The page: stores batches and provides random numbers.
#[derive(Debug)]
pub(crate) struct Host;

impl Random for Host {
    fn random(&mut self) -> u64 {
        // The queue uses it for delays only, and none is longer than 2³² ms.
        (page::random() * f64::from(u32::MAX)) as u64
    }
}

/// The page could not store a batch.
#[derive(Debug)]
pub(crate) struct Failed;

fn succeeded(number: i32) -> Result<i32, Failed> {
    if number == 0 { Err(Failed) } else { Ok(number) }
}

impl BatchStore for Host {
    type Batch = i32;
    /// The length of the event in bytes. The page holds the event itself.
    type Event = usize;
    type Error = Failed;

    fn begin(&mut self, _: &usize, _: &mut impl Random) -> Result<(i32, usize), Failed> {
        with_size(page::begin())
    }

    fn extend(&mut self, batch: i32, bytes: &usize) -> Result<usize, Failed> {
        succeeded(page::extend(batch)).map(|_| *bytes)
    }

    fn seal(&mut self, batch: i32, lost: &Losses) -> Result<usize, Failed> {
        let [full, expired, refused, large, storage, invalid] = Reason::ALL.map(|reason| lost.of(reason) as f64);
        succeeded(page::seal(batch, full, expired, refused, large, storage, invalid)).map(|_| 0)
    }

    fn part(&mut self, whole: i32, number: u8, events: Range<u32>) -> Result<(i32, usize), Failed> {
        with_size(page::part(whole, i32::from(number), events.start as i32, events.end as i32))
    }

    fn remove(&mut self, batch: i32) -> Result<(), Failed> {
        page::remove(batch);
        Ok(())
    }
}

fn with_size(batch: i32) -> Result<(i32, usize), Failed> {
    succeeded(batch).map(|batch| (batch, page::size(batch) as usize))
}
