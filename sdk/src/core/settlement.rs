//! Events whose outcome a caller waits for, and how each was settled.

use crate::core::id::BatchId;
use crate::core::loss::Reason;
use std::collections::BTreeMap;

/// Identifies a caller that waits for the settlement of an event.
pub(crate) type Watcher = u64;

/// How an event was settled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Settlement {
    /// The collector answered for the event at this index of the batch that was sent last.
    Answered(u32),
    /// The client dropped it.
    Dropped(Reason),
}

/// The watched events, and the settlements that were not yet reported.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// By batch: the index of each watched event, and its watcher.
    events: BTreeMap<BatchId, Vec<(u32, Watcher)>>,
    /// The parts of the batch that is being divided, each with the indexes that its events have in the whole.
    parts: Vec<(BatchId, Vec<u32>)>,
    settlements: Vec<(Watcher, Settlement)>,
}

impl Watched {
    pub(crate) fn watch(&mut self, batch: BatchId, index: u32, watcher: Watcher) {
        self.events.entry(batch).or_default().push((index, watcher));
    }

    /// Settles every watched event of a batch: answered, unless it was dropped.
    pub(crate) fn settle(&mut self, batch: BatchId, dropped: Option<Reason>) {
        for (index, watcher) in self.events.remove(&batch).unwrap_or_default() {
            self.settlements.push((watcher, dropped.map_or(Settlement::Answered(index), Settlement::Dropped)));
        }
    }

    /// The settlements since the last call.
    pub(crate) fn take(&mut self) -> Vec<(Watcher, Settlement)> {
        core::mem::take(&mut self.settlements)
    }

    /// Notes a part of the batch that is being divided, with the indexes that its events have in the whole.
    pub(crate) fn part(&mut self, part: BatchId, mut indexes: Vec<u32>) {
        indexes.sort_unstable();
        self.parts.push((part, indexes));
    }

    /// Moves the watched events of a batch that was removed to its parts, if it has any.
    pub(crate) fn removed(&mut self, whole: BatchId) {
        let parts = core::mem::take(&mut self.parts);
        // The batch is itself a part, removed because another part could not be stored.
        if parts.iter().any(|(part, _)| *part == whole) {
            return;
        }
        for (part, indexes) in parts {
            let Some(watched) = self.events.get_mut(&whole) else { return };
            let found = watched.extract_if(.., |(index, _)| indexes.contains(index)).collect::<Vec<_>>();
            let position = |index| indexes.partition_point(|other| *other < index) as u32;
            let found = found.into_iter().map(|(index, watcher)| (position(index), watcher));
            self.events.entry(part).or_default().extend(found);
        }
    }
}
