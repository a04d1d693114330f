//! A batch on its way through the collector: checked, stamped, and ready to be stored and counted.

use std::collections::BTreeMap;
use tallymark::{BatchId, Receipt, Rejected};

/// A checked batch.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The site it belongs to.
    pub username: String,
    /// Its id.
    pub batch_id: BatchId,
    /// When it arrived, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// The events that passed every check, in order.
    pub events: Vec<Accepted>,
    /// The events that did not.
    pub rejected: Vec<Rejected>,
    /// Indexes of events that the lake could not take this time.
    pub retry: Vec<u32>,
    /// Losses the client reports, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// An event that passed every check.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its place in the batch as it was sent, from 0.
    pub index: u32,
    /// `page_view`, `button_click` or `custom`.
    pub event_type: &'static str,
    /// What it is counted by.
    pub key: String,
    /// When it happened: whole hours since the Unix epoch.
    pub hour: u64,
    /// The line to store: one JSON object, without the newline.
    pub line: String,
}

/// What a counter counts: a key of an event type, or with an empty key all of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter<'a> {
    /// The event type, or `lost` for losses reported by clients.
    pub event_type: &'a str,
    /// The key; empty for the total of the type.
    pub key: &'a str,
    /// The hour.
    pub hour: u64,
}

/// The event type under which losses that clients report are counted, by reason.
pub const LOST: &str = "lost";

impl Prepared {
    /// The events that are in the lake.
    pub fn stored(&self) -> impl Iterator<Item = &Accepted> {
        self.events.iter().filter(|event| !self.retry.contains(&event.index))
    }

    /// What this batch adds to which counter.
    pub fn tally(&self) -> BTreeMap<Counter<'_>, u64> {
        let mut tally = BTreeMap::new();
        let mut add = |event_type, key, hour, n| {
            for key in ["", key] {
                *tally.entry(Counter { event_type, key, hour }).or_default() += n;
            }
        };
        for Accepted { event_type, key, hour, .. } in self.stored() {
            add(event_type, key, *hour, 1);
        }
        for (reason, events) in &self.lost {
            add(LOST, reason, self.received_at / crate::counts::HOUR, *events);
        }
        tally
    }

    /// What to answer, the first time.
    pub fn receipt(&self) -> Receipt {
        Receipt {
            batch_id: self.batch_id,
            received_at: self.received_at,
            duplicate: false,
            accepted: (self.events.len() - self.retry.len()) as u32,
            rejected: self.rejected.clone(),
            retry: self.retry.clone(),
        }
    }
}
