//! Where batches live until the collector has answered for them.

use crate::body;
use crate::id::BatchId;
use crate::loss::Losses;
use core::convert::Infallible;

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

    /// Appends the last `text` and makes the segment final.
    fn seal(&mut self, batch: BatchId, text: &str) -> Result<(), Self::Error>;

    /// The whole text of a sealed segment: the body to send.
    fn read(&mut self, batch: BatchId) -> Result<String, Self::Error>;

    /// Forgets the segment.
    fn remove(&mut self, batch: BatchId) -> Result<(), Self::Error>;

    /// What an earlier life left behind, oldest first: all of it sealed now.
    fn recover(&mut self) -> Result<Vec<Segment>, Self::Error>;
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
    // Few and short-lived, so a search from the newest end beats a map, in code size too.
    segments: Vec<(BatchId, String)>,
}

impl MemorySpool {
    /// An empty spool.
    pub fn new() -> Self {
        Self::default()
    }

    fn position(&self, batch: BatchId) -> Option<usize> {
        self.segments.iter().rposition(|(id, _)| *id == batch)
    }
}

impl Spool for MemorySpool {
    type Error = Infallible;

    fn append(&mut self, batch: BatchId, text: &str) -> Result<(), Infallible> {
        match self.position(batch) {
            Some(at) => self.segments[at].1.push_str(text),
            None => self.segments.push((batch, text.into())),
        }
        Ok(())
    }

    fn seal(&mut self, batch: BatchId, text: &str) -> Result<(), Infallible> {
        self.append(batch, text)
    }

    fn read(&mut self, batch: BatchId) -> Result<String, Infallible> {
        Ok(self.position(batch).map(|at| self.segments[at].1.clone()).unwrap_or_default())
    }

    fn remove(&mut self, batch: BatchId) -> Result<(), Infallible> {
        if let Some(at) = self.position(batch) {
            self.segments.remove(at);
        }
        Ok(())
    }

    fn recover(&mut self) -> Result<Vec<Segment>, Infallible> {
        let segment = |(batch_id, text): &mut (BatchId, String)| {
            if !body::is_closed(text) {
                text.push_str(&body::closing(&Losses::default()));
            }
            Segment { batch_id: *batch_id, events: body::events(text).count() as u32, bytes: text.len() }
        };
        Ok(self.segments.iter_mut().map(segment).collect())
    }
}
