//! Counters and batch markers in one DynamoDB table, with string keys `pk` and `sk`, and time to live on
//! `expires_at`.
//!
//! | `pk` | `sk` | what it holds |
//! |---|---|---|
//! | `c#USERNAME#TYPE#SHARD` | `t#KEY` | `n`, the total of a key; of the type if the key is empty |
//! | `c#USERNAME#TYPE#SHARD` | `d#KEY#DAY` | `h0` to `h23`, the same for each hour of one day |
//! | `s#USERNAME#TYPE` | `s` | `shards`, over how many shards the counters of a type are spread, if over more than one |
//! | `b#USERNAME#KEY#BATCH` | `m` | the batch's marker, by the kind of key: its `fingerprint`, `receipt`, `expires_at` |
//! | `r` | `r` | which step of which repair was the last (see `reconcile_aws.rs`) |
//!
//! **Exactly once.** A batch is counted by a transaction that also puts its marker, on the condition that
//! there is none. However often it is sent, and whatever becomes of the answers, the condition lets it
//! through once; everybody else reads the marker and gets its receipt.
//!
//! A batch that touches more counters than a transaction may is cut into parts, one transaction each. The
//! first puts the marker with a *plan*: where the cuts are and in which hour each event is counted. The
//! others move the marker on from part to part, and the last removes the plan. Whoever finds a plan
//! carries it through, by its figures and not by his own.
//!
//! **Hot keys.** Transactions that meet at an item cancel each other, and one partition takes 1,000 writes
//! a second. So the counters of a type are split as soon as that happens: over 2 shards, then 4, up to 64.
//! Each attempt takes one at random, and who reads adds them up. The number of shards is written down
//! before any beyond the old ones is used, and never falls, so no reader misses one.
//!
//! **Cost**, on demand: a batch with T types and K keys, all of one day, is one transaction of
//! 1 + 2 (T + K) small items, which is twice as many write units, and one read unit to see that it is new.
//! 20 events of 2 types and 5 keys: 30 write units, 1.5 an event. A count takes one read unit for each shard,
//! and one to know them; a series one for each shard and 4 KB; `top` reads all keys of the type.

use crate::Error;
use crate::ingest::checked_batch::{Accepted, CheckedBatch, MARKER_LIFETIME};
use crate::store::aws::{self, Backoff, CallError};
use crate::store::query::{DAY, HOUR, Hours, Query};
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeValue, KeysAndAttributes, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::error::Error as StdError;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tallymark::Receipt;
use tokio::task::JoinSet;

/// The most shards of a type. A reader gets as many items in one call.
const MOST_SHARDS: u64 = 64;
/// Items that one transaction may write, without the marker.
pub(crate) const TRANSACTION_ADDS: usize = 99;
/// Days in sort keys have so many digits, so that their order is that of time.
const DAY_DIGITS: usize = 9;
const END_OF_DAYS: u64 = 10_u64.pow(DAY_DIGITS as u32);
pub(crate) const HOURS: u64 = DAY / HOUR;
/// The longest counter key that fits a sort key of 1,024 bytes together with a day.
const KEY_BYTES: usize = 1024 - "d##".len() - DAY_DIGITS;

pub(crate) type Item = HashMap<String, AttributeValue>;

/// A DynamoDB table of counters and markers.
#[derive(Clone, Debug)]
pub struct DynamoDb {
    pub(crate) client: Client,
    pub(crate) table: String,
    /// How many shards there are for certain, by username and type.
    shards: Arc<Mutex<HashMap<(String, String), u64>>>,
}

impl DynamoDb {
    /// The table of this name.
    pub fn new(config: &SdkConfig, table: impl Into<String>) -> Self {
        Self::with(aws::limits(), config, table)
    }

    /// The same for work that nobody waits for.
    #[cfg(feature = "s3")]
    pub(crate) fn patient(config: &SdkConfig, table: &str) -> Self {
        Self::with(aws::patience(), config, table)
    }

    fn with((retries, timeouts): (RetryConfig, TimeoutConfig), config: &SdkConfig, table: impl Into<String>) -> Self {
        let config =
            aws_sdk_dynamodb::config::Builder::from(config).retry_config(retries).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), table: table.into(), shards: Arc::default() }
    }

    /// The receipt of a batch that was committed before. If that was cut off half-way, the rest is counted
    /// first.
    pub async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        let mut backoff = Backoff::new();
        let Some(marker) = self.marker(batch, &mut backoff).await? else { return Ok(None) };
        let receipt = self.carry_through(batch, marker, &mut backoff).await?;
        Ok(Some(Receipt { duplicate: true, ..receipt }))
    }

    /// Counts a batch and remembers its receipt. A batch that is known changes nothing and gets its first
    /// receipt again.
    pub async fn commit(&self, batch: &CheckedBatch) -> Result<Receipt, Error> {
        let mut backoff = Backoff::new();
        let work = Work::new(batch);
        // Tells this call's own marker from another's, if the answer to putting it was lost.
        let by = format!("{:016x}", rand::random::<u64>());
        if self.count_part(&work, 0, &by, &mut backoff).await? {
            return self.count_parts(work, 1, &mut backoff).await;
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
        let keys = (0..shards).map(|shard| item_key(counter_pk(query, shard), total_sk(&query.key)));
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
        let (first, last) = (day_sk(&query.key, hours.start / HOURS), day_sk(&query.key, (hours.end - 1) / HOURS));
        let prefix = day_prefix(&query.key);
        let shards = self.rows(query, &first, &last).await?.map(Rows::all);
        let mut series = BTreeMap::new();
        for row in at_once(shards).await?.into_iter().flatten() {
            // Keys that begin like this one may lie in between. They are longer.
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
        // Each shard is in order, so a key's counts are met together.
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

    async fn marker(&self, batch: &CheckedBatch, backoff: &mut Backoff) -> Result<Option<Marker>, Error> {
        let key = item_key(marker_pk(batch), MARKER_SK.into());
        let call = self.client.get_item().table_name(&self.table).set_key(Some(key)).consistent_read(true);
        let answer = aws::repeat(backoff, || call.clone().send()).await.map_err(|error| self.unavailable(error))?;
        let Some(item) = answer.item else { return Ok(None) };
        let fingerprint = item.get("fingerprint").and_then(|value| value.as_b().ok());
        batch.check_same(fingerprint.map_or(&[], |value| value.as_ref()))?;
        Marker::read(&item).map(Some)
    }

    /// Counts what a marker says is still to be counted.
    async fn carry_through(
        &self,
        batch: &CheckedBatch,
        marker: Marker,
        backoff: &mut Backoff,
    ) -> Result<Receipt, Error> {
        match marker.open {
            None => Ok(marker.receipt),
            Some((plan, part)) => self.count_parts(Work::resume(batch, marker.receipt, &plan), part, backoff).await,
        }
    }

    async fn count_parts(&self, work: Work, from: usize, backoff: &mut Backoff) -> Result<Receipt, Error> {
        for part in from..work.ends.len() {
            // Whether by this call or by another that is at it too: the part is counted.
            backoff.relax();
            self.count_part(&work, part, "", backoff).await?;
        }
        Ok(work.receipt)
    }

    /// Counts one part and moves the marker on: both or neither. `false` says that it had been done before.
    async fn count_part(&self, work: &Work, part: usize, by: &str, backoff: &mut Backoff) -> Result<bool, Error> {
        let marker = self.move_marker(work, part, by)?;
        let batch = work.part(part);
        let adds = adds(&batch);
        loop {
            let known = |(event_type, _): &Place<'_>| self.known_shards(&batch.username, event_type);
            let shards: Vec<_> = adds.keys().map(known).collect();
            let items = adds
                .iter()
                .zip(&shards)
                .map(|((place, add), shards)| self.add(&batch.username, rand::random_range(0..*shards), place, add));
            let items = std::iter::once(Ok(marker.clone())).chain(items).collect::<Result<_, _>>()?;
            let Err(error) = self.client.transact_write_items().set_transact_items(Some(items)).send().await else {
                return Ok(true);
            };
            // One reason for each item, in order. Only the marker has a condition.
            let reasons = cancellation_reasons(&error);
            if reasons.first() == Some(&"ConditionalCheckFailed") {
                return Ok(false);
            }
            let is_final = aws::is_refusal(&error) || reasons.contains(&"ValidationError");
            let crowded: BTreeMap<_, _> = adds
                .keys()
                .zip(&shards)
                .zip(reasons.iter().skip(1))
                .filter(|(_, reason)| is_crowded(reason))
                .map(|(((event_type, _), shards), _)| (*event_type, *shards))
                .collect();
            if is_final || !backoff.wait_after(&error).await {
                return Err(self.unavailable(error));
            }
            for (event_type, shards) in crowded {
                self.split(&batch.username, event_type, shards).await;
            }
        }
    }

    /// Puts the marker with the first part, moves it on with the others, and closes it with the last.
    fn move_marker(&self, work: &Work, part: usize, by: &str) -> Result<TransactWriteItem, Error> {
        let is_last = part + 1 == work.ends.len();
        if part == 0 {
            let mut item = item_key(marker_pk(&work.batch), MARKER_SK.into());
            item.insert("receipt".into(), AttributeValue::S(json(&work.receipt)?));
            item.insert("fingerprint".into(), AttributeValue::B(Blob::new(work.batch.fingerprint.0)));
            item.insert("by".into(), AttributeValue::S(by.into()));
            item.insert("expires_at".into(), number((work.receipt.received_at + MARKER_LIFETIME) / 1000));
            if !is_last {
                item.insert("plan".into(), AttributeValue::S(json(&work.plan())?));
                item.insert("part".into(), number(1));
            }
            let put = Put::builder().table_name(&self.table).set_item(Some(item));
            let put = put.condition_expression("attribute_not_exists(pk)").build().map_err(cannot_build)?;
            return Ok(TransactWriteItem::builder().put(put).build());
        }
        let update = Update::builder()
            .table_name(&self.table)
            .set_key(Some(item_key(marker_pk(&work.batch), MARKER_SK.into())))
            .condition_expression("#part = :part")
            .expression_attribute_names("#part", "part")
            .expression_attribute_values(":part", number(part as u64));
        let update = if is_last {
            update.update_expression("REMOVE #part, #plan").expression_attribute_names("#plan", "plan")
        } else {
            update.update_expression("SET #part = :next").expression_attribute_values(":next", number(part as u64 + 1))
        };
        Ok(TransactWriteItem::builder().update(update.build().map_err(cannot_build)?).build())
    }

    pub(crate) fn add(
        &self,
        username: &str,
        shard: u64,
        place: &Place<'_>,
        add: &Add<'_>,
    ) -> Result<TransactWriteItem, Error> {
        let (event_type, sk) = place;
        let names: Vec<_> = add.n.keys().map(|name| format!("{name} :{name}")).collect();
        let expression = format!("ADD {}", names.join(", "));
        let values = add.n.iter().map(|(name, n)| (format!(":{name}"), number(*n)));
        let update = Update::builder()
            .table_name(&self.table)
            .set_key(Some(item_key(pk_of(username, event_type, shard), sk.clone())))
            .set_expression_attribute_values(Some(values.collect()));
        let update = match add.key {
            None => update.update_expression(expression),
            Some(key) => update
                .update_expression(format!("{expression} SET #key = :key"))
                .expression_attribute_names("#key", "key")
                .expression_attribute_values(":key", AttributeValue::S(key.into())),
        };
        Ok(TransactWriteItem::builder().update(update.build().map_err(cannot_build)?).build())
    }

    /// The rows from one sort key to another, of each shard.
    async fn rows(&self, query: &Query, first: &str, last: &str) -> Result<impl Iterator<Item = Rows>, Error> {
        let shards = self.shards(query, &mut Backoff::new()).await?;
        Ok((0..shards).map(move |shard| Rows {
            table: self.clone(),
            pk: counter_pk(query, shard),
            first: first.into(),
            last: last.into(),
            page: VecDeque::new(),
            next: Next::Start,
        }))
    }

    /// Over how many shards the counters of a type are spread, now.
    async fn shards(&self, query: &Query, backoff: &mut Backoff) -> Result<u64, Error> {
        let call = self.client.get_item().table_name(&self.table).consistent_read(true);
        let call = call.set_key(Some(shards_key(&query.username, &query.event_type)));
        let answer = aws::repeat(backoff, || call.clone().send()).await.map_err(|error| self.unavailable(error))?;
        Ok(answer.item.as_ref().map_or(1, shards))
    }

    /// The same, as far as it is known here. There may be more by now.
    fn known_shards(&self, username: &str, event_type: &str) -> u64 {
        let known = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(username.into(), event_type.into())).copied().unwrap_or(1)
    }

    /// Spreads the counters of a type over more shards than these, unless that has been done.
    async fn split(&self, username: &str, event_type: &str, shards: u64) {
        let more = (shards * 2).min(MOST_SHARDS);
        if self.known_shards(username, event_type) >= more {
            return;
        }
        let call = self.client.update_item().table_name(&self.table).set_key(Some(shards_key(username, event_type)));
        let call = call.update_expression("SET shards = :more").expression_attribute_values(":more", number(more));
        let call = call.condition_expression("attribute_not_exists(shards) OR shards < :more");
        let call = call.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let shards = match call.send().await.map_err(SdkError::into_service_error) {
            Ok(_) => {
                tracing::info!(username, event_type, shards = more, "counters are spread over more shards");
                more
            }
            Err(UpdateItemError::ConditionalCheckFailedException(error)) => error.item().map_or(more, self::shards),
            // It was only to make the next attempt easier.
            Err(error) => {
                tracing::warn!(cause = %crate::error::chain(&error), "cannot spread counters over more shards");
                return;
            }
        };
        let mut known = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((username.into(), event_type.into()), shards);
    }

    pub(crate) fn unavailable<E>(&self, error: CallError<E>) -> Error
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        aws::unavailable("The counters", &format!("the table {}", self.table), error)
    }
}

/// A batch as it is counted, cut into parts that fit a transaction each.
struct Work {
    /// Only the events to be counted, without their lines.
    batch: CheckedBatch,
    receipt: Receipt,
    /// Where each part ends: before the event of this index.
    ends: Vec<u32>,
}

/// What others need to count the rest of a batch just like the first.
#[derive(Serialize, Deserialize)]
pub(crate) struct Plan {
    ends: Vec<u32>,
    /// The hour of each counted event, in order, with how many in a row are of the same.
    hours: Vec<(u64, u32)>,
}

impl Work {
    /// By the batch's own figures.
    fn new(batch: &CheckedBatch) -> Self {
        let receipt = batch.receipt();
        let events = batch.stored().map(|event| counted(event, event.hour)).collect();
        let batch = CheckedBatch { events, ..batch.without_events() };
        let ends = cut(&batch);
        Self { batch, receipt, ends }
    }

    /// By the figures of whoever began.
    fn resume(batch: &CheckedBatch, receipt: Receipt, plan: &Plan) -> Self {
        let others: HashSet<u32> =
            receipt.rejected.iter().map(|rejected| rejected.index).chain(receipt.retry.iter().copied()).collect();
        let hours = plan.hours.iter().flat_map(|&(hour, events)| std::iter::repeat_n(hour, events as usize));
        let hours: HashMap<u32, u64> = (0..).filter(|index| !others.contains(index)).zip(hours).collect();
        let events = batch.events.iter();
        let events: Vec<_> = events.filter_map(|event| Some(counted(event, *hours.get(&event.index)?))).collect();
        if events.len() < hours.len() {
            // The same bytes come again, so only a collector that checks them differently can miss an event.
            tracing::error!(planned = hours.len(), found = events.len(), "events of a planned batch are not valid now");
        }
        let batch = CheckedBatch { events, received_at: receipt.received_at, ..batch.without_events() };
        Self { batch, receipt, ends: plan.ends.clone() }
    }

    fn plan(&self) -> Plan {
        let same_hour = self.batch.events.chunk_by(|a, b| a.hour == b.hour);
        Plan { ends: self.ends.clone(), hours: same_hour.map(|run| (run[0].hour, run.len() as u32)).collect() }
    }

    /// One part as a batch of its own. What the client has lost is counted with the first.
    fn part(&self, part: usize) -> CheckedBatch {
        let start = part.checked_sub(1).map_or(0, |before| self.ends[before]);
        let indexes = start..self.ends[part];
        let events = self.batch.events.iter().filter(|event| indexes.contains(&event.index)).cloned().collect();
        let lost = if part == 0 { self.batch.lost.clone() } else { BTreeMap::new() };
        CheckedBatch { events, lost, ..self.batch.without_events() }
    }
}

fn counted(event: &Accepted, hour: u64) -> Accepted {
    Accepted { index: event.index, event_type: event.event_type, key: event.key.clone(), hour, line: String::new() }
}

/// Takes as many events into each part as fit.
fn cut(batch: &CheckedBatch) -> Vec<u32> {
    let end = batch.events.last().map_or(0, |event| event.index + 1);
    if adds(batch).len() <= TRANSACTION_ADDS {
        return vec![end];
    }
    let mut ends = Vec::new();
    let places = |batch: &CheckedBatch| -> Vec<(String, String)> {
        adds(batch).into_keys().map(|(event_type, sk)| (event_type.into(), sk)).collect()
    };
    let mut taken: HashSet<_> = places(&batch.without_events()).into_iter().collect();
    for event in &batch.events {
        let events = vec![event.clone()];
        let more = places(&CheckedBatch { events, lost: BTreeMap::new(), ..batch.without_events() });
        if taken.len() + more.iter().filter(|place| !taken.contains(place)).count() > TRANSACTION_ADDS {
            ends.push(event.index);
            taken.clear();
        }
        taken.extend(more);
    }
    ends.push(end);
    ends
}

/// Which item of a shard: event type and sort key.
pub(crate) type Place<'a> = (&'a str, String);

/// What is added to an item.
#[derive(Default)]
pub(crate) struct Add<'a> {
    /// How much to which attribute.
    pub(crate) n: BTreeMap<String, i64>,
    /// The key, where the sort key has only its hash.
    pub(crate) key: Option<&'a str>,
}

/// What a batch adds to which items, each once.
fn adds(batch: &CheckedBatch) -> BTreeMap<Place<'_>, Add<'_>> {
    let mut adds = BTreeMap::<_, Add<'_>>::new();
    for (counter, n) in batch.tally() {
        let total = adds.entry((counter.event_type, total_sk(counter.key))).or_default();
        *total.n.entry("n".into()).or_default() += n as i64;
        total.key = (counter.key.len() > KEY_BYTES).then_some(counter.key);
        let day = adds.entry((counter.event_type, day_sk(counter.key, counter.hour / HOURS))).or_default();
        *day.n.entry(format!("h{}", counter.hour % HOURS)).or_default() += n as i64;
    }
    adds
}

/// The marker of a batch, as it was found.
pub(crate) struct Marker {
    pub(crate) receipt: Receipt,
    by: String,
    /// The plan and the first part that is not counted yet.
    pub(crate) open: Option<(Plan, usize)>,
}

impl Marker {
    pub(crate) fn read(item: &Item) -> Result<Self, Error> {
        let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
        let broken = |error| Error::config("the marker of a batch cannot be read").because(error);
        let receipt = text("receipt").map_or("", String::as_str);
        let receipt = serde_json::from_str(receipt).map_err(broken)?;
        let plan = text("plan").map(|plan| serde_json::from_str(plan)).transpose().map_err(broken)?;
        let part = item.get("part").and_then(|part| part.as_n().ok()?.parse().ok());
        Ok(Self { receipt, by: text("by").cloned().unwrap_or_default(), open: plan.zip(part) })
    }
}

/// Counters of one shard, in the order of their sort keys.
struct Rows {
    table: DynamoDb,
    pk: String,
    first: String,
    last: String,
    /// What has been read and not been taken.
    page: VecDeque<Row>,
    next: Next,
}

struct Row {
    sk: String,
    /// Of a total.
    n: u64,
    /// Of a day, by its hours.
    hours: Vec<(u64, u64)>,
    key: Option<String>,
}

/// Where reading goes on.
enum Next {
    Start,
    After(Item),
    End,
}

impl Rows {
    /// Reads on until there is a row to take, or none is left.
    async fn fill(&mut self) -> Result<(), Error> {
        while self.page.is_empty() {
            let after = match std::mem::replace(&mut self.next, Next::End) {
                Next::Start => None,
                Next::After(key) => Some(key),
                Next::End => break,
            };
            let table = &self.table;
            let call = table
                .client
                .query()
                .table_name(&table.table)
                .consistent_read(true)
                .key_condition_expression("pk = :pk AND sk BETWEEN :first AND :last")
                .expression_attribute_values(":pk", AttributeValue::S(self.pk.clone()))
                .expression_attribute_values(":first", AttributeValue::S(self.first.clone()))
                .expression_attribute_values(":last", AttributeValue::S(self.last.clone()))
                .set_exclusive_start_key(after);
            let answer = aws::repeat(&mut Backoff::new(), || call.clone().send())
                .await
                .map_err(|error| table.unavailable(error))?;
            self.page.extend(answer.items.into_iter().flatten().filter_map(Row::read));
            self.next = answer.last_evaluated_key.map_or(Next::End, Next::After);
        }
        Ok(())
    }

    async fn filled(mut self) -> Result<Self, Error> {
        self.fill().await?;
        Ok(self)
    }

    async fn all(mut self) -> Result<Vec<Row>, Error> {
        let mut all = Vec::new();
        loop {
            self.fill().await?;
            if self.page.is_empty() {
                return Ok(all);
            }
            all.extend(self.page.drain(..));
        }
    }
}

impl Row {
    fn read(mut item: Item) -> Option<Self> {
        let n = n(&item);
        let hour = |(name, value): (&String, &AttributeValue)| {
            Some((name.strip_prefix('h')?.parse().ok()?, value.as_n().ok()?.parse().ok()?))
        };
        let hours = item.iter().filter_map(hour).collect();
        let mut text = |name| match item.remove(name) {
            Some(AttributeValue::S(text)) => Some(text),
            _ => None,
        };
        Some(Self { sk: text("sk")?, n, hours, key: text("key") })
    }
}

/// Does several things at once, and gives up with the first that fails.
async fn at_once<T, F>(work: impl Iterator<Item = F>) -> Result<Vec<T>, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let mut work: JoinSet<_> = work.collect();
    let mut done = Vec::new();
    while let Some(result) = work.join_next().await {
        let cut_off = |error| Error::unavailable("The counters cannot be read", Duration::from_secs(1)).because(error);
        done.push(result.map_err(cut_off)??);
    }
    Ok(done)
}

const MARKER_SK: &str = "m";

fn marker_pk(batch: &CheckedBatch) -> String {
    format!("b#{}#{}#{}", batch.username, batch.key.as_str(), batch.batch_id)
}

fn counter_pk(query: &Query, shard: u64) -> String {
    pk_of(&query.username, &query.event_type, shard)
}

fn pk_of(username: &str, event_type: &str, shard: u64) -> String {
    format!("c#{username}#{event_type}#{shard}")
}

fn total_sk(key: &str) -> String {
    total_of(&marked(key))
}

pub(crate) fn total_of(marked: &str) -> String {
    format!("t{marked}")
}

fn day_sk(key: &str, day: u64) -> String {
    day_of(&marked(key), day)
}

pub(crate) fn day_of(marked: &str, day: u64) -> String {
    format!("d{marked}#{day:0DAY_DIGITS$}")
}

fn day_prefix(key: &str) -> String {
    format!("d{}#", marked(key))
}

/// `#` and the key, or `!` and its SHA-256 if it is too long.
pub(crate) fn marked(key: &str) -> String {
    if key.len() <= KEY_BYTES {
        return format!("#{key}");
    }
    let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("!{hash}")
}

fn shards_key(username: &str, event_type: &str) -> Item {
    item_key(format!("s#{username}#{event_type}"), "s".into())
}

fn shards(item: &Item) -> u64 {
    let shards = item.get("shards").and_then(|shards| shards.as_n().ok()?.parse().ok());
    shards.unwrap_or(1).clamp(1, MOST_SHARDS)
}

pub(crate) fn item_key(pk: String, sk: String) -> Item {
    Item::from([("pk".into(), AttributeValue::S(pk)), ("sk".into(), AttributeValue::S(sk))])
}

pub(crate) fn number(n: impl Copy + ToString) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

fn n(item: &Item) -> u64 {
    item.get("n").and_then(|n| n.as_n().ok()?.parse().ok()).unwrap_or_default()
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::config("a marker cannot be written").because(error))
}

pub(crate) fn cannot_build(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::config("a call to the table cannot be made").because(error)
}

/// Whether an item was in the way that others wrote too, so that there should be more of it.
fn is_crowded(reason: &str) -> bool {
    matches!(reason, "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded")
}

pub(crate) fn cancellation_reasons(error: &CallError<TransactWriteItemsError>) -> Vec<&str> {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
            cancelled.cancellation_reasons().iter().map(|reason| reason.code().unwrap_or_default()).collect()
        }
        _ => Vec::new(),
    }
}
