//! The interface between an outbox and its storage.

use crate::core::id::BatchId;

/// Storage for batches, one segment for each batch.
///
/// A segment is text that is appended to until it is sealed, and never changes after that. Its lines are the opening of
/// the batch, one event each, and the closing, so a segment whose last write was interrupted can be repaired by cutting
/// the incomplete line.
///
/// A spool has one writer. It must keep a segment until [`remove`](Spool::remove): the outbox relies on it for every
/// event that it has promised to deliver.
pub trait Spool {
    /// Why the storage failed.
    type Error;

    /// Appends `text` to the segment, which is created if it does not exist. When this returns `Ok`, the text is as
    /// durable as the spool promises.
    ///
    /// # Errors
    ///
    /// If the text is not stored.
    fn append(&mut self, batch: BatchId, text: &str) -> Result<(), Self::Error>;

    /// Appends the last `text`, if any, and makes the segment final.
    ///
    /// # Errors
    ///
    /// If the segment could not be sealed. It is still stored and takes no more text, and [`read`](Spool::read) closes
    /// it without a report of losses.
    fn seal(&mut self, batch: BatchId, text: &str) -> Result<(), Self::Error>;

    /// Returns the whole text of the segment: the body to send.
    ///
    /// # Errors
    ///
    /// If the segment cannot be read.
    fn read(&mut self, batch: BatchId) -> Result<String, Self::Error>;

    /// Whether a [`read`](Spool::read) that failed with this error may succeed later. If not, the batch is dropped.
    fn is_transient(_error: &Self::Error) -> bool {
        false
    }

    /// Deletes the segment.
    ///
    /// # Errors
    ///
    /// If the segment is still stored.
    fn remove(&mut self, batch: BatchId) -> Result<(), Self::Error>;

    /// Seals and returns the segments of an earlier process.
    ///
    /// # Errors
    ///
    /// If the segments cannot be listed.
    fn recover(&mut self) -> Result<Recovered, Self::Error>;

    /// Takes over segments that other processes have abandoned since. Takes about `room` bytes at most and leaves the
    /// rest for a later call.
    ///
    /// # Errors
    ///
    /// If a segment cannot be taken over.
    fn adopt(&mut self, _room: usize) -> Result<Recovered, Self::Error> {
        Ok(Recovered::default())
    }
}

/// The segments that existed before this outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The segments to continue with.
    pub segments: Vec<Segment>,
    /// The number of events in damaged segments, as far as they can be counted.
    pub corrupt: u32,
}

/// A segment that existed before this outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The batch in it.
    pub batch_id: BatchId,
    /// The number of events in it.
    pub events: u32,
    /// Its length in bytes.
    pub bytes: usize,
}
