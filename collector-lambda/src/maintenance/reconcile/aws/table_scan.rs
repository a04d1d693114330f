//! What was read of the table and of the lake, and what follows from it: which counters are certain to count which events.

use crate::Error;
use crate::ingest::checked_batch::{LOST, MARKER_LIFETIME};
use crate::ingest::stored_event::StoredEvent;
use crate::maintenance::reconcile::{self as compare, failed, read_line};
use crate::sites::KeyScope;
use crate::store::aws::dynamodb::keys::{self, HOURS, Item};
use crate::store::aws::dynamodb::parts::Marker;
use crate::store::aws::dynamodb::table::DynamoDb;
use crate::store::query::{DAY, HOUR};
use aws_sdk_dynamodb::types::AttributeValue;
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use tallymark::BatchId;

/// `cells` are the counters that events may be in, `places` where each event may be, as certain as `certainty` says.
/// `hours` and `totals` are what was read of the table. A key that has only a hash there is a BLOB, here too.
const TABLES: &str = "
    PRAGMA main.journal_mode = OFF;
    PRAGMA main.cache_size = -65536;
    BEGIN;
    CREATE TABLE markers (
        username TEXT NOT NULL, batch_id BLOB NOT NULL, received_at INTEGER NOT NULL, whole INTEGER NOT NULL,
        PRIMARY KEY (username, batch_id, received_at)
    ) WITHOUT ROWID;
    CREATE TABLE hours (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key NOT NULL, hour INTEGER NOT NULL, shard INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (username, event_type, key, hour, shard)
    ) WITHOUT ROWID;
    CREATE TABLE totals (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key NOT NULL, shard INTEGER NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (username, event_type, key, shard)
    ) WITHOUT ROWID;
    CREATE TABLE cells (
        id INTEGER PRIMARY KEY, username TEXT NOT NULL, event_type TEXT NOT NULL, key NOT NULL, hour INTEGER NOT NULL,
        UNIQUE (username, event_type, key, hour)
    );
    CREATE TABLE places (
        username TEXT NOT NULL, event BLOB NOT NULL, cell INTEGER NOT NULL, certainty INTEGER NOT NULL,
        PRIMARY KEY (username, event, cell)
    ) WITHOUT ROWID;
";

/// What the places of an event say together. One line that it is counted by decides. Otherwise it is certain to be
/// counted if each line of it is old.
const EVENTS: &str = "
    CREATE VIEW events AS
    SELECT username, event, count(*) AS places, sum(certainty = 2) AS here, min(certainty) > 0 OR max(certainty) = 2 AS certain,
        coalesce(max(CASE certainty WHEN 2 THEN cell END), max(cell)) AS cell
    FROM places GROUP BY username, event;
    INSERT INTO stored
        SELECT username, event_type, key, hour, counts.count, maybe FROM cells JOIN
            (SELECT cell, sum(certain) AS count, sum(NOT certain) AS maybe FROM events
             WHERE here = 1 OR places = 1 GROUP BY cell) AS counts ON cell = id;
    CREATE TABLE unclear AS SELECT username, event, certain, here FROM events WHERE here <> 1 AND places > 1;
";

/// Of an event with several places, whether it is certain to be in a counter: only if that counts all of them.
fn unsettled(key: &str, hour: &str) -> String {
    format!(
        "INSERT INTO unsettled
         SELECT username, event_type, key, hour, sum(choices = 1 AND certain), sum(NOT (choices = 1 AND certain)) FROM (
             SELECT *, count(*) OVER (PARTITION BY username, event) AS choices FROM (
                 SELECT DISTINCT username, event, certain, event_type, {key} AS key, {hour} AS hour
                 FROM unclear JOIN places USING (username, event)
                     JOIN (SELECT id, event_type, key, hour FROM cells) ON id = cell
                 WHERE here = 0 OR certainty = 2
             )
         ) GROUP BY username, event_type, key, hour;"
    )
}

/// How certain it is that an event is counted by a line of it. The numbers are those in the SQL above.
#[derive(Clone, Copy)]
enum Certainty {
    /// It may be counted by this line, if it is counted.
    Maybe = 0,
    /// It is taken for counted, since it is older than any marker.
    Old = 1,
    /// It is counted, by this line.
    Here = 2,
}

/// Calls `take` with each item whose `pk` begins with `kind`.
pub(super) async fn scan_items(
    table: &DynamoDb,
    kind: &str,
    take: &mut dyn FnMut(Item) -> Result<(), Error>,
) -> Result<(), Error> {
    let call = table.client.scan().table_name(&table.table).consistent_read(true);
    let call = call.filter_expression("begins_with(pk, :kind)");
    let call = call.expression_attribute_values(":kind", AttributeValue::S(kind.into()));
    let mut after = None;
    loop {
        let call = call.clone().set_exclusive_start_key(after);
        let answer = call.send().await.map_err(|error| table.unavailable(error))?;
        answer.items.into_iter().flatten().try_for_each(&mut *take)?;
        after = answer.last_evaluated_key;
        if after.is_none() {
            return Ok(());
        }
    }
}

pub(super) fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

/// Everything that was read, in a database that is gone when this is.
pub(super) struct TableScan {
    pub(super) db: Connection,
    /// What came in before this is older than any marker.
    old: u64,
}

impl TableScan {
    pub(super) fn new() -> Result<Self, Error> {
        // Of no name: on disk as soon as it is large.
        let db = Connection::open("").map_err(failed)?;
        db.execute_batch(compare::TABLES).and_then(|()| db.execute_batch(TABLES)).map_err(failed)?;
        // A day more, as clocks differ.
        Ok(Self { db, old: crate::time::now().saturating_sub(MARKER_LIFETIME + DAY) })
    }

    pub(super) fn take_marker(&self, item: &Item) -> Result<(), Error> {
        let batch = text(item, "pk").and_then(|pk| {
            let (site, batch_id) = pk.strip_prefix("b#")?.rsplit_once('#')?;
            Some((site.rsplit_once('#')?.0, BatchId::parse(batch_id)?))
        });
        let Some((username, batch_id)) = batch else { return Ok(()) };
        let marker = Marker::read(item)?;
        // No line says its index, so of what was to be sent again nothing is certain.
        let is_whole = marker.open.is_none() && marker.receipt.retry.is_empty();
        self.db
            .prepare_cached(
                "INSERT INTO markers VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET whole = min(whole, excluded.whole)",
            )
            .and_then(|mut insert| {
                insert.execute(params![username, batch_id.uuid().as_bytes(), marker.receipt.received_at, is_whole])
            })
            .map(|_| ())
            .map_err(failed)
    }

    pub(super) fn take_counter(&self, item: &Item, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
        let (pk, sk) = (text(item, "pk").unwrap_or_default(), text(item, "sk").unwrap_or_default());
        let place = (|| {
            let (of_type, shard) = pk.strip_prefix("c#")?.rsplit_once('#')?;
            let (username, event_type) = of_type.rsplit_once('#')?;
            Some((username, event_type, shard.parse::<u64>().ok()?))
        })();
        let counter = match sk.split_at_checked(1) {
            Some(("t", key)) => Some((key, None)),
            Some(("d", key)) => key.rsplit_once('#').and_then(|(key, day)| Some((key, Some(day.parse::<u64>().ok()?)))),
            _ => None,
        };
        let (Some((username, event_type, shard)), Some((marked, day))) = (place, counter) else {
            wrong(format!("the table: {pk:?}, {sk:?} is no counter"));
            return Ok(());
        };
        if event_type == LOST {
            return Ok(());
        }
        let key = self.key(marked, text(item, "key"))?;
        for (name, value) in item {
            let hour = match day {
                None if name == "n" => None,
                Some(day) => match name.strip_prefix('h').and_then(|hour| hour.parse::<u64>().ok()) {
                    Some(hour) => Some(day.saturating_mul(HOURS).saturating_add(hour)),
                    None => continue,
                },
                None => continue,
            };
            let Some(count) = value.as_n().ok().and_then(|n| n.parse::<i64>().ok()) else {
                wrong(format!("the table: {pk:?}, {sk:?}: {name} is no count"));
                continue;
            };
            match hour {
                None => self
                    .db
                    .prepare_cached("INSERT INTO totals VALUES (?, ?, ?, ?, ?)")
                    .and_then(|mut insert| insert.execute(params![username, event_type, key, shard, count])),
                Some(hour) => self
                    .db
                    .prepare_cached("INSERT INTO hours VALUES (?, ?, ?, ?, ?, ?)")
                    .and_then(|mut insert| insert.execute(params![username, event_type, key, hour, shard, count])),
            }
            .map_err(failed)?;
        }
        Ok(())
    }

    /// The key as it is kept here, from how it is in sort keys. Remembers the whole key, where it is known.
    fn key(&self, marked: &str, whole: Option<&str>) -> Result<Value, Error> {
        let Some(hash) = marked.strip_prefix('!') else {
            return Ok(Value::Text(marked.strip_prefix('#').unwrap_or(marked).into()));
        };
        if let Some(whole) = whole {
            self.db
                .prepare_cached("INSERT INTO names VALUES (?, ?) ON CONFLICT DO NOTHING")
                .and_then(|mut insert| insert.execute(params![hash.as_bytes(), whole]))
                .map_err(failed)?;
        }
        Ok(Value::Blob(hash.into()))
    }

    /// Notes where the event of a line may be counted, or says why it cannot be.
    pub(super) fn take_line(&self, line: &[u8]) -> Result<Result<(), String>, Error> {
        let (line, counter_key) = match read_line(line) {
            Ok(read) => read,
            Err(why) => return Ok(Err(why)),
        };
        let key = self.key(&keys::marked(&counter_key), Some(&counter_key))?;
        let counted: Option<bool> = self
            .db
            .prepare_cached("SELECT max(received_at = ?3 AND whole) FROM markers WHERE username = ?1 AND batch_id = ?2")
            .and_then(|mut find| {
                find.query_row(params![line.username, line.batch_id.uuid().as_bytes(), line.received_at], |row| {
                    row.get(0)
                })
            })
            .map_err(failed)?;
        let certainty = match counted {
            Some(true) => Certainty::Here,
            None if line.received_at < self.old => Certainty::Old,
            _ => Certainty::Maybe,
        };
        let cell: i64 = self
            .db
            .prepare_cached(
                "INSERT INTO cells (username, event_type, key, hour) VALUES (?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET hour = hour RETURNING id",
            )
            .and_then(|mut find| {
                let cell = params![line.username, line.event_type, key, line.occurred_at / HOUR];
                find.query_row(cell, |row| row.get(0))
            })
            .map_err(failed)?;
        self.db
            .prepare_cached(
                "INSERT INTO places VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET certainty =
                     CASE WHEN 2 IN (certainty, excluded.certainty) THEN 2 ELSE min(certainty, excluded.certainty) END",
            )
            .and_then(|mut add| add.execute(params![line.username, identity(&line), cell, certainty as i64]))
            .map(|_| Ok(()))
            .map_err(failed)
    }

    /// Finds the counters that are not what is stored.
    pub(super) fn compare(&self, from: Option<u64>) -> Result<(), Error> {
        let batch = |sql: &str| self.db.execute_batch(sql).map_err(failed);
        batch(EVENTS)?;
        for (key, hour) in [("key", "hour"), ("key", "NULL"), ("''", "hour"), ("''", "NULL")] {
            batch(&unsettled(key, hour))?;
        }
        compare::compare(&self.db)?;
        if let Some(from) = from {
            let others = "DELETE FROM differences WHERE hour IS NULL OR hour < ?";
            self.db.execute(others, [from / HOUR]).map_err(failed)?;
        }
        Ok(())
    }

    /// How many events are stored, and how many of these may not be counted.
    pub(super) fn events(&self) -> Result<(u64, u64), Error> {
        let sums = "SELECT count(*), coalesce(sum(NOT certain), 0) FROM events";
        self.db.query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)
    }
}

/// What is counted once: an `event_id`, sent with keys of one scope. A public line never stands for a secret one.
///
/// Not by batch as in a data directory: an event that a batch was told to retry may be stored with that batch too.
fn identity(line: &StoredEvent<'_>) -> [u8; 17] {
    let mut identity = [0; 17];
    identity[0] = u8::from(line.scope == KeyScope::Write);
    identity[1..].copy_from_slice(line.event_id.uuid().as_bytes());
    identity
}
