//! A batch whose events have been checked, ready to be stored and counted.

use crate::Error;
use crate::sites::KeyScope;
use crate::store::query::{DAY, HOUR};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use tallymark::{BatchId, Receipt, Rejected};

/// How long a batch's marker is kept, in milliseconds: longer than any client keeps a batch to retry it.
pub const MARKER_LIFETIME: u64 = 30 * DAY;

/// The client library that sent a batch. Clients may name anything, so only our own are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    /// The browser tracker.
    Js,
    /// The Rust client.
    Rust,
    /// Another one.
    Other,
    /// The batch names none.
    None,
}

impl Sdk {
    /// The library that a batch's `sdk` names, such as `tallymark-js/0.1.0`.
    pub(crate) fn named(sdk: Option<&str>) -> Self {
        match sdk.map(|sdk| sdk.split('/').next().unwrap_or_default()) {
            None => Self::None,
            Some("tallymark-js") => Self::Js,
            Some("tallymark-rust") => Self::Rust,
            Some(_) => Self::Other,
        }
    }

    /// Its name, for a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Js => "tallymark-js",
            Self::Rust => "tallymark-rust",
            Self::Other => "other",
            Self::None => "none",
        }
    }
}

/// A checked batch.
#[derive(Clone, Debug)]
pub struct CheckedBatch {
    /// The site it belongs to.
    pub username: String,
    /// The scope of the key it was sent with. The ids of each scope are apart: who guesses an id can use it with the
    /// public key, and that is no obstacle to what the secret key sends.
    pub scope: KeyScope,
    /// Whether a retry would have the same id. A single event without `Idempotency-Key` has a random one, so nothing can
    /// ever ask for its receipt.
    pub repeatable: bool,
    /// The client library that sent it.
    pub sdk: Sdk,
    /// Its id.
    pub batch_id: BatchId,
    /// Recognises another body under the same id.
    pub fingerprint: Fingerprint,
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

/// The start of the SHA-256 of what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// The fingerprint of these parts, in this order.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        Self(bytes)
    }
}

/// An event that passed every check.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Its place in the batch as it was sent, from 0.
    pub index: u32,
    /// `page_view`, `button_click` or `custom`.
    pub event_type: &'static str,
    /// What it is counted by: its `url`, `button_id` or `name`.
    pub counter_key: String,
    /// When it happened: whole hours since the Unix epoch.
    pub hour: u64,
    /// The line to store: one JSON object, without the newline.
    pub line: String,
}

/// What a counter counts: a key of an event type, or with an empty key all of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// What these batches add to which counter of which site.
pub fn tally<'a>(batches: impl IntoIterator<Item = &'a CheckedBatch>) -> BTreeMap<(&'a str, Counter<'a>), u64> {
    // Mostly few distinct counters: find them by hash, and sort once.
    let mut keys = HashMap::<_, u64>::new();
    for batch in batches {
        let mut add = |event_type, key, hour, n| {
            *keys.entry((batch.username.as_str(), Counter { event_type, key, hour })).or_default() += n;
        };
        for Accepted { event_type, counter_key, hour, .. } in batch.stored() {
            add(*event_type, counter_key.as_str(), *hour, 1);
        }
        for (reason, events) in &batch.lost {
            add(LOST, reason, batch.received_at / HOUR, *events);
        }
    }
    let mut tally = BTreeMap::new();
    for ((username, counter), n) in keys {
        for key in ["", counter.key] {
            *tally.entry((username, Counter { key, ..counter })).or_default() += n;
        }
    }
    tally
}

impl CheckedBatch {
    /// The events that are in the lake.
    pub fn stored(&self) -> impl Iterator<Item = &Accepted> {
        self.events.iter().filter(|event| !self.retry.contains(&event.index))
    }

    /// The batch without its events.
    pub fn without_events(&self) -> Self {
        Self {
            username: self.username.clone(),
            scope: self.scope,
            repeatable: self.repeatable,
            sdk: self.sdk,
            batch_id: self.batch_id,
            fingerprint: self.fingerprint,
            received_at: self.received_at,
            events: Vec::new(),
            rejected: Vec::new(),
            retry: Vec::new(),
            lost: self.lost.clone(),
        }
    }

    /// What this batch adds to which counter.
    pub fn tally(&self) -> BTreeMap<Counter<'_>, u64> {
        tally([self]).into_iter().map(|((_, counter), n)| (counter, n)).collect()
    }

    /// Checks that the batch that was sent under this id before, with this fingerprint, is the same.
    pub fn check_same(&self, before: &[u8]) -> Result<(), Error> {
        if before == self.fingerprint.0 { Ok(()) } else { Err(Error::id_conflict()) }
    }

    /// What to answer where a batch of this id was committed before, with this fingerprint and this receipt: the receipt,
    /// marked as a duplicate, if that batch was the same.
    pub fn duplicate_of(&self, fingerprint: &[u8], receipt: Receipt) -> Result<Receipt, Error> {
        self.check_same(fingerprint)?;
        Ok(Receipt { duplicate: true, ..receipt })
    }

    /// What to answer the first time.
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
