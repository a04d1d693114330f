//! What a queue knows of a batch.

use crate::core::loss::Losses;

/// A batch that still takes events.
#[derive(Debug)]
pub(super) struct Open<B> {
    pub(super) batch: B,
    pub(super) events: u32,
    pub(super) bytes: usize,
    pub(super) opened_at: u64,
}

/// A batch whose content no longer changes.
#[derive(Debug)]
pub(super) struct Sealed<B> {
    pub(super) batch: B,
    pub(super) made_at: u64,
    pub(super) events: u32,
    pub(super) bytes: usize,
    pub(super) attempts: u32,
    pub(super) not_before: u64,
    /// The number of flushes before its events were pushed.
    pub(super) epoch: u32,
    /// The losses this batch reports. They are reported again if it is dropped.
    pub(super) lost: Losses,
}

impl<B> Sealed<B> {
    pub(super) fn new(batch: B, made_at: u64, events: u32, bytes: usize) -> Self {
        Self { batch, made_at, events, bytes, attempts: 0, not_before: 0, epoch: 0, lost: Losses::NONE }
    }

    pub(super) fn is_older(&self, age: u64, now: u64) -> bool {
        now.saturating_sub(self.made_at) > age
    }
}
