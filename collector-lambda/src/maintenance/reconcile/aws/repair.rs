//! Repairs counters in the table, each step once.

use crate::Error;
use crate::maintenance::reconcile::aws::table_scan::{TableScan, text};
use crate::maintenance::reconcile::failed;
use crate::store::aws::Backoff;
use crate::store::aws::dynamodb::keys::{self, Item};
use crate::store::aws::dynamodb::parts::{Add, TRANSACTION_ADDS};
use crate::store::aws::dynamodb::table::{Attempt, DynamoDb};
use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use rusqlite::Row;
use rusqlite::types::ValueRef;
use std::collections::BTreeMap;

/// What must be added to which attribute: to the first shard, or taken from those that have it, so that none gets
/// negative.
const ADDS: &str = "
    CREATE TABLE adds (
        username TEXT NOT NULL, event_type TEXT NOT NULL, shard INTEGER NOT NULL, key NOT NULL, day INTEGER, hour INTEGER,
        n INTEGER NOT NULL
    );
    INSERT INTO adds
        SELECT username, event_type, 0, key, hour / 24, hour % 24, stored - counted FROM differences
        WHERE counted < stored;
    CREATE TABLE counted AS
        SELECT username, event_type, key, hour, shard, hours.count AS count,
            differences.counted - differences.stored - differences.maybe AS excess
        FROM differences JOIN hours USING (username, event_type, key, hour)
        UNION ALL SELECT username, event_type, key, NULL, shard, totals.count,
            differences.counted - differences.stored - differences.maybe
        FROM differences JOIN totals USING (username, event_type, key) WHERE hour IS NULL;
    INSERT INTO adds
        SELECT username, event_type, shard, key, hour / 24, hour % 24, -min(count, excess - before) FROM (
            SELECT *, coalesce(sum(count) OVER (
                PARTITION BY username, event_type, key, hour ORDER BY count DESC, shard
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0) AS before FROM counted WHERE excess > 0 AND count > 0
        ) WHERE before < excess;
";

impl TableScan {
    /// Brings each counter that was named to the nearest number that would be right.
    ///
    /// That is by adding, so it does not matter what collectors add meanwhile. An event without a marker is never added:
    /// its client may still come back with the batch, which is then counted. So what is left wrong is at most what was
    /// under way, and the next run names it once that is decided.
    pub(super) async fn repair(&self, table: &DynamoDb, mut fence: RepairFence) -> Result<(), Error> {
        self.db.execute_batch(ADDS).map_err(failed)?;
        let mut adds = self
            .db
            .prepare(
                "SELECT username, event_type, shard, key, day, hour, n, name FROM adds LEFT JOIN names USING (key)
                 ORDER BY username, event_type, key, shard, day",
            )
            .map_err(failed)?;
        let mut rows = adds.query([]).map_err(failed)?;
        let mut items = BTreeMap::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let (item, attribute, n, name) = attribute(row).map_err(failed)?;
            // All of an item come one after another.
            if items.len() == TRANSACTION_ADDS && !items.contains_key(&item) {
                fence.take(table, &std::mem::take(&mut items)).await?;
            }
            let adds: &mut Adds = items.entry(item).or_default();
            adds.0.insert(attribute, n);
            adds.1 = name;
        }
        fence.take(table, &items).await
    }
}

/// An item: site, type, shard, and sort key.
type CounterItem = (String, String, u64, String);
/// What is added to its attributes, and the key if the sort key has only its hash.
type Adds = (BTreeMap<String, i64>, Option<String>);

fn attribute(row: &Row<'_>) -> rusqlite::Result<(CounterItem, String, i64, Option<String>)> {
    let marked = match row.get_ref("key")? {
        ValueRef::Blob(hash) => format!("!{}", String::from_utf8_lossy(hash)),
        key => format!("#{}", key.as_str()?),
    };
    let (sk, attribute, name) = match row.get::<_, Option<u64>>("day")? {
        None => (keys::total_of(&marked), "n".into(), row.get("name")?),
        Some(day) => (keys::day_of(&marked, day), format!("h{}", row.get::<_, u64>("hour")?), None),
    };
    let place = (row.get("username")?, row.get("event_type")?, row.get("shard")?, sk);
    Ok((place, attribute, row.get("n")?, name))
}

/// Which step of which repair was the last one on the table. Each step is a transaction that moves this on from what it
/// was when the run began to read. So a step whose answer is lost is not made twice, and of two repairs at once,
/// which have found the same differences, only one is made.
pub(super) struct RepairFence {
    last: Option<(String, u64)>,
    next: (String, u64),
}

impl RepairFence {
    pub(super) async fn read(table: &DynamoDb) -> Result<Self, Error> {
        let last = Self::last(table).await?;
        Ok(Self { last, next: (format!("{:016x}", rand::random::<u64>()), 1) })
    }

    async fn last(table: &DynamoDb) -> Result<Option<(String, u64)>, Error> {
        let call = table.client.get_item().table_name(&table.table).consistent_read(true).set_key(Some(Self::key()));
        let item = call.send().await.map_err(|error| table.unavailable(error))?.item;
        Ok(item.and_then(|item| Some((text(&item, "by")?.to_owned(), item.get("part")?.as_n().ok()?.parse().ok()?))))
    }

    fn key() -> Item {
        keys::item_key("r".into(), "r".into())
    }

    /// Adds to these items, once.
    async fn take(&mut self, table: &DynamoDb, items: &BTreeMap<CounterItem, Adds>) -> Result<(), Error> {
        let adds = items.iter().map(|((username, event_type, shard, sk), (n, key))| {
            table.add(username, *shard, &(event_type, sk.clone()), &Add { n: n.clone(), key: key.as_deref() })
        });
        let items: Vec<_> = std::iter::once(self.put(table)).chain(adds).collect::<Result<_, _>>()?;
        let mut backoff = Backoff::new();
        loop {
            match table.try_transaction(items.clone(), &mut backoff).await? {
                Attempt::Done => break,
                Attempt::ConditionFailed if Self::last(table).await?.as_ref() == Some(&self.next) => break,
                Attempt::ConditionFailed => {
                    return Err(Error::config("not repaired to the end: another repair came between; run it again"));
                }
                Attempt::Retry { .. } => {}
            }
        }
        let (by, part) = self.next.clone();
        self.last = Some(std::mem::replace(&mut self.next, (by, part + 1)));
        Ok(())
    }

    fn put(&self, table: &DynamoDb) -> Result<TransactWriteItem, Error> {
        let (by, part) = &self.next;
        let mut item = Self::key();
        item.insert("by".into(), AttributeValue::S(by.clone()));
        item.insert("part".into(), keys::number(part));
        let put = Put::builder().table_name(&table.table).set_item(Some(item));
        let put = match &self.last {
            None => put.condition_expression("attribute_not_exists(pk)"),
            Some((by, part)) => put
                .condition_expression("#by = :by AND #part = :part")
                .expression_attribute_names("#by", "by")
                .expression_attribute_names("#part", "part")
                .expression_attribute_values(":by", AttributeValue::S(by.clone()))
                .expression_attribute_values(":part", keys::number(part)),
        };
        Ok(TransactWriteItem::builder().put(put.build().map_err(keys::cannot_build)?).build())
    }
}
