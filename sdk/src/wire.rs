//! The wire types: batches as the collector receives them, and the receipts it answers with.

use crate::core::id::{BatchId, EventId};
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A batch as the collector receives it.
///
/// The collector reads its events one by one with [`Event::decode`](crate::Event::decode), so that a bad event does not
/// affect the others. `E` is the type that the events are deserialised to, such as raw text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Batch<E = Value> {
    /// The id of the batch.
    pub batch_id: BatchId,
    /// When the batch was sent by the client's clock, in milliseconds since the Unix epoch.
    #[serde(default, deserialize_with = "whole")]
    pub sent_at: Option<u64>,
    /// The client and its version, such as `tallymark-js/0.1.0`.
    #[serde(default)]
    pub sdk: Option<String>,
    /// The events that the client has dropped since its last report, by [reason](crate::Reason).
    #[serde(default, deserialize_with = "wholes")]
    pub lost: BTreeMap<String, u64>,
    /// The events.
    pub events: Vec<E>,
}

/// The collector's answer to a batch.
///
/// A batch that is sent again gets the same receipt, marked as a duplicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The id of the batch.
    pub batch_id: BatchId,
    /// When the batch was first received, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// Whether the collector had received the batch before.
    pub duplicate: bool,
    /// The number of events accepted.
    pub accepted: u32,
    /// The events that the collector will never accept.
    pub rejected: Vec<Rejected>,
    /// Indexes of the events to send again, with their ids, in a new batch.
    pub retry: Vec<u32>,
}

/// An event that the collector will never accept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its index in the batch, from 0.
    pub index: u32,
    /// Its id, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<EventId>,
    /// A stable code, such as `name_too_long`.
    pub code: String,
    /// The reason in words.
    pub message: String,
}

pub(crate) const WHOLE: &str = "a whole number, not negative";

/// A whole number, also if written as `1.0` or `1e3`, because some languages have only floating-point numbers.
pub(crate) struct Whole(pub(crate) u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor)
    }
}

struct WholeVisitor;

impl Visitor<'_> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(WHOLE)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
        const END: f64 = 18_446_744_073_709_551_616.0;
        if number.fract() == 0.0 && (0.0..END).contains(&number) {
            return Ok(Whole(number as u64));
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Whole>::deserialize(deserializer)?.map(|Whole(number)| number))
}

fn wholes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let wholes = BTreeMap::<String, Whole>::deserialize(deserializer)?;
    Ok(wholes.into_iter().map(|(name, Whole(number))| (name, number)).collect())
}
