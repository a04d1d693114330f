//! Where batches live until the collector has answered for them.

use crate::body;
use crate::id::BatchId;
use crate::loss::Losses;
use core::convert::Infallible;
use std::collections::BTreeMap;

/// Storage for batches, one segment a batch.
///
/// A segment is text that only grows until it is sealed, and never changes again after that. Its lines
/// are the batch's opening, one event each, and its closing, so a segment whose
/// last write was torn can be mended by cutting the unfinished line.
///
/// A spool has one writer. What it holds it must keep until [`remove`](Spool::remove): the outbox relies
/// on it for everything that it has promised to deliver.
pub trait Spool {
    /// What can go wrong with the storage behind it.
    type Error;

    /// Appends `text` to the segment, which is made if there is none. When this returns, the text
    /// survives what the spool promises to survive.
    fn append(&mut self, batch: BatchId, text: &str) -> Result<(), Self::Error>;

    /// Appends the last `text`, if any, and makes the segment final. If that fails, the segment is still
    /// there, is appended to no more, and [`read`](Spool::read) gives it an end without a report of losses.
    fn seal(&mut self, batch: BatchId, text: &str) -> Result<(), Self::Error>;

    /// The whole text of the segment: the body to send.
    fn read(&mut self, batch: BatchId) -> Result<String, Self::Error>;

    /// Whether a [`read`](Spool::read) that failed with this may succeed later. If not, the segment is given up.
    fn may_pass(_error: &Self::Error) -> bool {
        false
    }

    /// Forgets the segment.
    fn remove(&mut self, batch: BatchId) -> Result<(), Self::Error>;

    /// What an earlier life left behind: all of it sealed now.
    fn recover(&mut self) -> Result<Recovered, Self::Error>;

    /// What others have left behind since, as [`recover`](Spool::recover): about `room` bytes of it at most, and the
    /// rest another time.
    fn adopt(&mut self, _room: usize) -> Result<Recovered, Self::Error> {
        Ok(Recovered::default())
    }
}

/// What was there before this outbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Segments to go on with.
    pub segments: Vec<Segment>,
    /// Events in segments that cannot be trusted any more, as far as they can be counted.
    pub corrupt: u32,
}

/// A segment that was there before this outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The batch it holds.
    pub batch_id: BatchId,
    /// How many events it holds.
    pub events: u32,
    /// Its length in bytes.
    pub bytes: usize,
}

/// A spool in memory: it survives nothing, and is never at fault.
#[derive(Debug, Default)]
pub struct MemorySpool {
    segments: BTreeMap<BatchId, String>,
}

impl MemorySpool {
    /// An empty spool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the segment is here.
    #[cfg(feature = "spool")]
    pub(crate) fn holds(&self, batch: BatchId) -> bool {
        self.segments.contains_key(&batch)
    }

    /// How many events it holds.
    #[cfg(all(feature = "client", feature = "spool"))]
    pub(crate) fn events(&self) -> u64 {
        self.segments.values().map(|text| body::events(text).count() as u64).sum()
    }
}

impl Spool for MemorySpool {
    type Error = Infallible;

    fn append(&mut self, batch: BatchId, text: &str) -> Result<(), Infallible> {
        self.segments.entry(batch).or_default().push_str(text);
        Ok(())
    }

    fn seal(&mut self, batch: BatchId, text: &str) -> Result<(), Infallible> {
        self.append(batch, text)?;
        // It grows no more, and what it had grown by was half of it. In the browser the code is dearer.
        #[cfg(feature = "client")]
        if let Some(text) = self.segments.get_mut(&batch) {
            text.shrink_to_fit();
        }
        Ok(())
    }

    fn read(&mut self, batch: BatchId) -> Result<String, Infallible> {
        Ok(self.segments.get(&batch).cloned().unwrap_or_default())
    }

    fn remove(&mut self, batch: BatchId) -> Result<(), Infallible> {
        self.segments.remove(&batch);
        Ok(())
    }

    fn recover(&mut self) -> Result<Recovered, Infallible> {
        let segment = |(batch_id, text): (&BatchId, &mut String)| {
            if !body::is_closed(text) {
                text.push_str(&body::closing(&Losses::default()));
            }
            Segment { batch_id: *batch_id, events: body::events(text).count() as u32, bytes: text.len() }
        };
        Ok(Recovered { segments: self.segments.iter_mut().map(segment).collect(), corrupt: 0 })
    }
}
