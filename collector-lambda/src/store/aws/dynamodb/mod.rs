//! Counters and batch markers in one DynamoDB table, with string keys `pk` and `sk`, and time to live on
//! `expires_at`.
//!
//! | `pk` | `sk` | what it holds |
//! |---|---|---|
//! | `c#USERNAME#TYPE#SHARD` | `t#KEY` | `n`, the total of a key; of the type if the key is empty |
//! | `c#USERNAME#TYPE#SHARD` | `d#KEY#DAY` | `h0` to `h23`, the same for each hour of one day |
//! | `s#USERNAME#TYPE` | `s` | `shards`, over how many shards the counters of a type are spread, if over more than one |
//! | `b#USERNAME#SCOPE#BATCH` | `m` | the batch's marker, by the scope of the key: its `fingerprint`, `receipt`, `expires_at` |
//! | `r` | `r` | which step of which repair was the last (see `maintenance/reconcile/aws/repair.rs`) |
//!
//! **Exactly once.** A batch is counted by a transaction that also puts its marker, on the condition that
//! there is none. However often it is sent, and whichever answers are lost, the condition holds once; every other
//! attempt reads the marker and answers its receipt.
//!
//! A single event without `Idempotency-Key` has a marker too, though no retry can ask for it: without one, a transaction
//! whose response is lost could not be tried again without counting twice.
//!
//! A batch that touches more counters than a transaction may is cut into parts, one transaction each. The
//! first puts the marker with a *plan*: where the cuts are and in which hour each event is counted. The
//! others move the marker on from part to part, and the last removes the plan. A request that finds a plan
//! completes it, using the stored plan instead of recomputing it. See `parts.rs`.
//!
//! **Hot keys.** Transactions that write the same item cancel each other, and one partition takes 1,000 writes
//! a second. So the counters of a type are split as soon as that happens: over 2 shards, then 4, up to 64.
//! Each attempt writes to a random one, and reads add them up. The number of shards is stored before any of the
//! new ones is used, and never falls, so no reader misses one. See `shards.rs`.
//!
//! **Cost**, on demand: a batch with T types and K keys, all of one day, is one transaction of
//! 1 + 2 (T + K) small items, which is twice as many write units, and one read unit to see that it is new.
//! 20 events of 2 types and 5 keys: 30 write units, 1.5 an event. A count takes one read unit for each shard,
//! and one to know them; a series one for each shard and 4 KB; `top` reads all keys of the type.

pub(crate) mod keys;
pub(crate) mod parts;
mod rows;
mod shards;
pub(crate) mod table;

pub use table::DynamoDb;

use crate::Error;
use crate::ingest::checked_batch::CheckedBatch;
use crate::store::aws::dynamodb::keys::{
    DAY_DIGITS, END_OF_DAYS, HOURS, cannot_build, counter_pk, day_prefix, day_sk, item_key, n, total_sk,
};
use crate::store::aws::dynamodb::parts::CountingPlan;
use crate::store::aws::dynamodb::rows::{Rows, at_once};
use crate::store::aws::{self, Backoff};
use crate::store::query::{Hours, Query};
use aws_sdk_dynamodb::types::KeysAndAttributes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tallymark::Receipt;

impl DynamoDb {
    /// The receipt of a batch that was committed before. If counting it was interrupted, the rest is counted
    /// first.
    pub async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        let mut backoff = Backoff::new();
        let Some(marker) = self.marker(batch, &mut backoff).await? else { return Ok(None) };
        let receipt = self.carry_through(batch, marker, &mut backoff).await?;
        Ok(Some(Receipt { duplicate: true, ..receipt }))
    }

    /// Counts a batch and remembers its receipt. A batch that was counted before changes nothing and gets its
    /// first receipt again.
    pub async fn commit(&self, batch: &CheckedBatch) -> Result<Receipt, Error> {
        let mut backoff = Backoff::new();
        let plan = CountingPlan::new(batch);
        // Tells this call's own marker from another's, if the response to putting it was lost.
        let by = format!("{:016x}", rand::random::<u64>());
        if self.count_part(&plan, 0, &by, &mut backoff).await? {
            return self.count_parts(plan, 1, &mut backoff).await;
        }
        let Some(marker) = self.marker(batch, &mut backoff).await? else {
            return Err(Error::unavailable("The batch has just been forgotten", Duration::from_secs(1)));
        };
        let duplicate = marker.by != by;
        let receipt = self.carry_through(batch, marker, &mut backoff).await?;
        Ok(Receipt { duplicate, ..receipt })
    }

    /// How often a counter was counted.
    pub async fn count(&self, query: &Query, hours: Option<Hours>) -> Result<u64, Error> {
        if let Some(hours) = hours {
            return Ok(self.series(query, hours).await?.into_iter().map(|(_, n)| n).sum());
        }
        let mut backoff = Backoff::new();
        let shards = self.shards(query, &mut backoff).await?;
        let keys = (0..shards).map(|shard| item_key(counter_pk(query, shard), total_sk(&query.counter_key)));
        let keys = KeysAndAttributes::builder().set_keys(Some(keys.collect())).consistent_read(true).build();
        let mut left = Some(HashMap::from([(self.table.clone(), keys.map_err(cannot_build)?)]));
        let mut count = 0;
        while let Some(keys) = left.take() {
            let call = self.client.batch_get_item().set_request_items(Some(keys));
            let answer =
                aws::repeat(&mut backoff, || call.clone().send()).await.map_err(|error| self.unavailable(error))?;
            count +=
                answer.responses.into_iter().flat_map(HashMap::into_values).flatten().map(|item| n(&item)).sum::<u64>();
            left = answer.unprocessed_keys.filter(|keys| !keys.is_empty());
            backoff.relax();
            if left.is_some() && !backoff.wait().await {
                return Err(Error::unavailable("The counters are busy", Duration::from_secs(2)));
            }
        }
        Ok(count)
    }

    /// The counts of each hour that has any.
    pub async fn series(&self, query: &Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        let hours = hours.start.min(END_OF_DAYS * HOURS)..hours.end.min(END_OF_DAYS * HOURS);
        if hours.is_empty() {
            return Ok(Vec::new());
        }
        let (first, last) =
            (day_sk(&query.counter_key, hours.start / HOURS), day_sk(&query.counter_key, (hours.end - 1) / HOURS));
        let prefix = day_prefix(&query.counter_key);
        let shards = self.rows(query, &first, &last).await?.map(Rows::all);
        let mut series = BTreeMap::new();
        for row in at_once(shards).await?.into_iter().flatten() {
            // Longer keys that begin like this one may lie in between.
            let day = row.sk.strip_prefix(&prefix).filter(|day| day.len() == DAY_DIGITS);
            let Some(day) = day.and_then(|day| day.parse::<u64>().ok()) else { continue };
            for (hour, n) in row.hours {
                *series.entry(day * HOURS + hour).or_default() += n;
            }
        }
        // A repair may have left a counter of none.
        series.retain(|hour, n| hours.contains(hour) && *n > 0);
        Ok(series.into_iter().collect())
    }

    /// The keys counted most. Reads all keys of the type, page by page, and holds only the best and a page
    /// of each shard.
    pub async fn top(&self, query: &Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        let of_type = total_sk("");
        let shards = self.rows(query, "t", "u").await?.map(Rows::filled);
        let mut shards = at_once(shards).await?;
        let mut best = BTreeSet::new();
        // Each shard is in order, so all counts of a key are at the front together.
        while let Some(sk) = shards.iter().filter_map(|rows| rows.page.front()).map(|row| &row.sk).min().cloned() {
            let (mut count, mut key) = (0, None);
            for rows in &mut shards {
                if let Some(row) = rows.page.pop_front_if(|row| row.sk == sk) {
                    count += row.n;
                    key = key.or(row.key);
                    rows.fill().await?;
                }
            }
            if sk != of_type && count > 0 {
                best.insert((count, Reverse(key.unwrap_or_else(|| sk["t#".len()..].into()))));
                if best.len() > limit as usize {
                    best.pop_first();
                }
            }
        }
        Ok(best.into_iter().rev().map(|(count, Reverse(key))| (key, count)).collect())
    }

    /// Whether the table can be read.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let call = self.client.get_item().table_name(&self.table);
        let call = call.set_key(Some(item_key("warm".into(), "m".into()))).send();
        call.await.map(drop).map_err(|error| self.unavailable(error))
    }

    /// The rows from one sort key to another, of each shard.
    async fn rows(&self, query: &Query, first: &str, last: &str) -> Result<impl Iterator<Item = Rows>, Error> {
        let shards = self.shards(query, &mut Backoff::new()).await?;
        Ok((0..shards).map(move |shard| Rows::new(self.clone(), counter_pk(query, shard), first, last)))
    }
}
