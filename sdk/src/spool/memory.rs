//! A spool in memory.

use crate::core::body;
use crate::core::id::BatchId;
use crate::core::loss::Losses;
use crate::spool::traits::{Recovered, Segment, Spool};
use core::convert::Infallible;
use std::collections::BTreeMap;

/// A spool in memory. It never fails, and its segments end with the process.
#[derive(Clone, Debug, Default)]
pub struct MemorySpool {
    segments: BTreeMap<BatchId, String>,
}

impl MemorySpool {
    /// An empty spool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the segment exists.
    #[cfg(feature = "spool")]
    pub(crate) fn contains(&self, batch: BatchId) -> bool {
        self.segments.contains_key(&batch)
    }

    /// The number of events in it.
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
        // The text no longer grows, and up to half of its capacity is unused.
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
