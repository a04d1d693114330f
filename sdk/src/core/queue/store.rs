//! The storage that a queue needs for its batches.

use crate::core::id::Random;
use crate::core::loss::{Losses, Reason};
use core::ops::Range;

/// Stores the batches of a [`Queue`](super::Queue).
///
/// The queue calls the methods one at a time. A method that fails must leave what was stored before as it was.
pub trait BatchStore {
    /// Names a batch.
    type Batch: Copy + PartialEq;
    /// An event as [`push`](super::Queue::push) passes it on.
    type Event: ?Sized;
    /// Why the storage failed.
    type Error;

    /// Stores an event as the first of a new batch. Returns the batch and its length in bytes.
    ///
    /// # Errors
    ///
    /// If the event could not be stored. The queue drops it.
    fn begin(&mut self, event: &Self::Event, random: &mut impl Random) -> Result<(Self::Batch, usize), Self::Error>;

    /// Adds an event to an open batch. Returns how many bytes that adds.
    ///
    /// # Errors
    ///
    /// If the event could not be stored. The queue seals the batch and tries [`begin`](BatchStore::begin).
    fn extend(&mut self, batch: Self::Batch, event: &Self::Event) -> Result<usize, Self::Error>;

    /// Makes a batch final, and adds the losses that it reports. Returns how many bytes that adds.
    ///
    /// # Errors
    ///
    /// If the losses could not be added. The events are still stored, and the queue reports the losses with a later
    /// batch.
    fn seal(&mut self, batch: Self::Batch, lost: &Losses) -> Result<usize, Self::Error>;

    /// Stores some events of a batch as another, final batch. Part 0 holds the events that the collector asked for
    /// again, as many as the range is long; parts 1 and 2 are halves. Returns the part and its length in bytes.
    ///
    /// # Errors
    ///
    /// If the part could not be stored. The queue keeps the whole batch.
    fn part(&mut self, whole: Self::Batch, number: u8, events: Range<u32>)
    -> Result<(Self::Batch, usize), Self::Error>;

    /// Deletes a batch.
    ///
    /// # Errors
    ///
    /// If the batch is still stored.
    fn remove(&mut self, batch: Self::Batch) -> Result<(), Self::Error>;

    /// Called before [`remove`](BatchStore::remove) if the batch was not delivered but dropped.
    fn dropped(&mut self, _batch: Self::Batch, _reason: Reason) {}
}
