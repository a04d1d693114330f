//! How a batch is counted: by a transaction for each part of it, under a plan that the marker keeps.

use crate::Error;
use crate::ingest::checked_batch::{Accepted, CheckedBatch, MARKER_LIFETIME};
use crate::store::aws::dynamodb::keys::{
    HOURS, Item, KEY_BYTES, cannot_build, day_sk, item_key, marker_key, number, pk_of, total_sk,
};
use crate::store::aws::dynamodb::table::{Attempt, DynamoDb};
use crate::store::aws::{self, Backoff};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem, Update};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use tallymark::Receipt;

/// Items that one transaction may write, without the marker.
pub(crate) const TRANSACTION_ADDS: usize = 99;

impl DynamoDb {
    pub(super) async fn marker(&self, batch: &CheckedBatch, backoff: &mut Backoff) -> Result<Option<Marker>, Error> {
        let key = marker_key(batch);
        let call = self.client.get_item().table_name(&self.table).set_key(Some(key)).consistent_read(true);
        let answer = aws::repeat(backoff, || call.clone().send()).await.map_err(|error| self.unavailable(error))?;
        let Some(item) = answer.item else { return Ok(None) };
        let fingerprint = item.get("fingerprint").and_then(|value| value.as_b().ok());
        batch.check_same(fingerprint.map_or(&[], |value| value.as_ref()))?;
        Marker::read(&item).map(Some)
    }

    /// Counts the parts that a marker says are not counted yet.
    pub(super) async fn carry_through(
        &self,
        batch: &CheckedBatch,
        marker: Marker,
        backoff: &mut Backoff,
    ) -> Result<Receipt, Error> {
        match marker.open {
            None => Ok(marker.receipt),
            Some((stored, part)) => {
                self.count_parts(CountingPlan::resume(batch, marker.receipt, &stored), part, backoff).await
            }
        }
    }

    pub(super) async fn count_parts(
        &self,
        plan: CountingPlan,
        from: usize,
        backoff: &mut Backoff,
    ) -> Result<Receipt, Error> {
        for part in from..plan.ends.len() {
            // Either this call counts the part, or another that is doing the same.
            backoff.relax();
            self.count_part(&plan, part, "", backoff).await?;
        }
        Ok(plan.receipt)
    }

    /// Counts one part and moves the marker on: both or neither. `false`: that was done before.
    pub(super) async fn count_part(
        &self,
        plan: &CountingPlan,
        part: usize,
        by: &str,
        backoff: &mut Backoff,
    ) -> Result<bool, Error> {
        let marker = self.move_marker(plan, part, by)?;
        let batch = plan.part(part);
        let adds = adds(&batch);
        loop {
            let known = |(event_type, _): &ItemName<'_>| self.known_shards(&batch.username, event_type);
            let shards: Vec<_> = adds.keys().map(known).collect();
            let items = adds
                .iter()
                .zip(&shards)
                .map(|((name, add), shards)| self.add(&batch.username, rand::random_range(0..*shards), name, add));
            let items = std::iter::once(Ok(marker.clone())).chain(items).collect::<Result<_, _>>()?;
            let contended = match self.try_transaction(items, backoff).await? {
                Attempt::Done => return Ok(true),
                Attempt::ConditionFailed => return Ok(false),
                Attempt::Retry { contended } => contended,
            };
            let crowded: BTreeMap<_, _> = adds
                .keys()
                .zip(&shards)
                .zip(contended)
                .filter(|(_, contended)| *contended)
                .map(|(((event_type, _), shards), _)| (*event_type, *shards))
                .collect();
            for (event_type, shards) in crowded {
                self.split(&batch.username, event_type, shards).await;
            }
        }
    }

    /// Puts the marker with the first part, moves it on with the others, and closes it with the last.
    fn move_marker(&self, plan: &CountingPlan, part: usize, by: &str) -> Result<TransactWriteItem, Error> {
        let is_last = part + 1 == plan.ends.len();
        if part == 0 {
            let mut item = marker_key(&plan.batch);
            item.insert("receipt".into(), AttributeValue::S(json(&plan.receipt)?));
            item.insert("fingerprint".into(), AttributeValue::B(Blob::new(plan.batch.fingerprint.0)));
            item.insert("by".into(), AttributeValue::S(by.into()));
            item.insert("expires_at".into(), number((plan.receipt.received_at + MARKER_LIFETIME) / 1000));
            if !is_last {
                item.insert("plan".into(), AttributeValue::S(json(&plan.stored())?));
                item.insert("part".into(), number(1));
            }
            let put = Put::builder().table_name(&self.table).set_item(Some(item));
            let put = put.condition_expression("attribute_not_exists(pk)").build().map_err(cannot_build)?;
            return Ok(TransactWriteItem::builder().put(put).build());
        }
        let update = Update::builder()
            .table_name(&self.table)
            .set_key(Some(marker_key(&plan.batch)))
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

    /// The item of a transaction that adds to counters.
    pub(crate) fn add(
        &self,
        username: &str,
        shard: u64,
        name: &ItemName<'_>,
        add: &Add<'_>,
    ) -> Result<TransactWriteItem, Error> {
        let (event_type, sk) = name;
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
}

/// How a batch is counted: cut into parts that fit a transaction each.
pub(super) struct CountingPlan {
    /// Only the events to be counted, without their lines.
    batch: CheckedBatch,
    pub(super) receipt: Receipt,
    /// Where each part ends: before the event of this index.
    ends: Vec<u32>,
}

/// What a marker keeps of a plan, so that another request counts the other parts in the same way.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredPlan {
    ends: Vec<u32>,
    /// The hour of each counted event, in order, with how many in a row are of the same.
    hours: Vec<(u64, u32)>,
}

impl CountingPlan {
    /// The plan that follows from the batch.
    pub(super) fn new(batch: &CheckedBatch) -> Self {
        let receipt = batch.receipt();
        let events = batch.stored().map(|event| counted(event, event.hour)).collect();
        let batch = CheckedBatch { events, ..batch.without_events() };
        let ends = cut(&batch);
        Self { batch, receipt, ends }
    }

    /// The plan of the request that began to count the batch.
    fn resume(batch: &CheckedBatch, receipt: Receipt, plan: &StoredPlan) -> Self {
        let others: HashSet<u32> =
            receipt.rejected.iter().map(|rejected| rejected.index).chain(receipt.retry.iter().copied()).collect();
        let hours = plan.hours.iter().flat_map(|&(hour, events)| std::iter::repeat_n(hour, events as usize));
        let hours: HashMap<u32, u64> = (0..).filter(|index| !others.contains(index)).zip(hours).collect();
        let events = batch.events.iter();
        let events: Vec<_> = events.filter_map(|event| Some(counted(event, *hours.get(&event.index)?))).collect();
        if events.len() < hours.len() {
            // A retry has the same bytes, so only a collector that checks them differently can miss an event.
            tracing::error!(planned = hours.len(), found = events.len(), "events of a planned batch are not valid now");
        }
        let batch = CheckedBatch { events, received_at: receipt.received_at, ..batch.without_events() };
        Self { batch, receipt, ends: plan.ends.clone() }
    }

    fn stored(&self) -> StoredPlan {
        let same_hour = self.batch.events.chunk_by(|a, b| a.hour == b.hour);
        StoredPlan { ends: self.ends.clone(), hours: same_hour.map(|run| (run[0].hour, run.len() as u32)).collect() }
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
    Accepted {
        index: event.index,
        event_type: event.event_type,
        counter_key: event.counter_key.clone(),
        hour,
        line: String::new(),
    }
}

/// Puts as many events into each part as fit.
fn cut(batch: &CheckedBatch) -> Vec<u32> {
    let end = batch.events.last().map_or(0, |event| event.index + 1);
    if adds(batch).len() <= TRANSACTION_ADDS {
        return vec![end];
    }
    let mut ends = Vec::new();
    let names = |batch: &CheckedBatch| -> Vec<(String, String)> {
        adds(batch).into_keys().map(|(event_type, sk)| (event_type.into(), sk)).collect()
    };
    let mut taken: HashSet<_> = names(&batch.without_events()).into_iter().collect();
    for event in &batch.events {
        let events = vec![event.clone()];
        let more = names(&CheckedBatch { events, lost: BTreeMap::new(), ..batch.without_events() });
        if taken.len() + more.iter().filter(|name| !taken.contains(name)).count() > TRANSACTION_ADDS {
            ends.push(event.index);
            taken.clear();
        }
        taken.extend(more);
    }
    ends.push(end);
    ends
}

/// An item of a shard: event type and sort key.
pub(crate) type ItemName<'a> = (&'a str, String);

/// What is added to an item.
#[derive(Default)]
pub(crate) struct Add<'a> {
    /// How much to which attribute.
    pub(crate) n: BTreeMap<String, i64>,
    /// The key, where the sort key has only its hash.
    pub(crate) key: Option<&'a str>,
}

/// What a batch adds to which items, each once.
fn adds(batch: &CheckedBatch) -> BTreeMap<ItemName<'_>, Add<'_>> {
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
    pub(super) by: String,
    /// The plan and the first part that is not counted yet.
    pub(crate) open: Option<(StoredPlan, usize)>,
}

impl Marker {
    pub(crate) fn read(item: &Item) -> Result<Self, Error> {
        let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
        let broken = |error| Error::config("the marker of a batch cannot be read").with_source(error);
        let receipt = text("receipt").map_or("", String::as_str);
        let receipt = serde_json::from_str(receipt).map_err(broken)?;
        let plan = text("plan").map(|plan| serde_json::from_str(plan)).transpose().map_err(broken)?;
        let part = item.get("part").and_then(|part| part.as_n().ok()?.parse().ok());
        Ok(Self { receipt, by: text("by").cloned().unwrap_or_default(), open: plan.zip(part) })
    }
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::config("a marker cannot be written").with_source(error))
}
