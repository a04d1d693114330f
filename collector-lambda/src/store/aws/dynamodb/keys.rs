//! How counters, shards and markers are named in the table, and how attributes are read and written.

use crate::Error;
use crate::ingest::checked_batch::CheckedBatch;
use crate::store::query::{DAY, HOUR, Query};
use aws_sdk_dynamodb::types::AttributeValue;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::error::Error as StdError;

/// Days in sort keys have so many digits, so that their order is that of time.
pub(super) const DAY_DIGITS: usize = 9;
pub(super) const END_OF_DAYS: u64 = 10_u64.pow(DAY_DIGITS as u32);
pub(crate) const HOURS: u64 = DAY / HOUR;
/// The longest counter key that fits a sort key of 1,024 bytes together with a day.
pub(super) const KEY_BYTES: usize = 1024 - "d##".len() - DAY_DIGITS;

pub(crate) type Item = HashMap<String, AttributeValue>;

pub(super) fn marker_key(batch: &CheckedBatch) -> Item {
    item_key(format!("b#{}#{}#{}", batch.username, batch.scope.as_str(), batch.batch_id), "m".into())
}

pub(super) fn counter_pk(query: &Query, shard: u64) -> String {
    pk_of(&query.username, &query.event_type, shard)
}

pub(super) fn pk_of(username: &str, event_type: &str, shard: u64) -> String {
    format!("c#{username}#{event_type}#{shard}")
}

pub(super) fn total_sk(key: &str) -> String {
    total_of(&marked(key))
}

pub(crate) fn total_of(marked: &str) -> String {
    format!("t{marked}")
}

pub(super) fn day_sk(key: &str, day: u64) -> String {
    day_of(&marked(key), day)
}

pub(crate) fn day_of(marked: &str, day: u64) -> String {
    format!("d{marked}#{day:0DAY_DIGITS$}")
}

pub(super) fn day_prefix(key: &str) -> String {
    format!("d{}#", marked(key))
}

/// The key as it is in sort keys: after `#`, or as SHA-256 after `!` if it is too long.
pub(crate) fn marked(key: &str) -> String {
    if key.len() <= KEY_BYTES {
        return format!("#{key}");
    }
    format!("!{}", hex::encode(Sha256::digest(key)))
}

pub(super) fn shards_key(username: &str, event_type: &str) -> Item {
    item_key(format!("s#{username}#{event_type}"), "s".into())
}

pub(crate) fn item_key(pk: String, sk: String) -> Item {
    Item::from([("pk".into(), AttributeValue::S(pk)), ("sk".into(), AttributeValue::S(sk))])
}

pub(crate) fn number(n: impl Copy + ToString) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

pub(super) fn n(item: &Item) -> u64 {
    item.get("n").and_then(|n| n.as_n().ok()?.parse().ok()).unwrap_or_default()
}

pub(crate) fn cannot_build(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::config("a call to the table cannot be made").with_source(error)
}
