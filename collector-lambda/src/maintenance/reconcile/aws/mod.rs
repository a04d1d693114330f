//! `reconcile` for S3 and DynamoDB: whether each counter is the number of distinct events in the bucket.
//!
//! Nothing is stopped for it, so what is compared is not one moment but bounds. An event goes to the lake before it is
//! counted, and a marker is put together with the counts. So, in this order:
//!
//! 1. All markers are read. What belongs to a batch that is counted to its end now is certain to be counted.
//! 2. All counters are read. They hold at least what is certain.
//! 3. It waits for as long as Firehose may hold what it has taken.
//! 4. All objects are read. They hold at least what was counted by then.
//!
//! An event that is stored and not certain to be counted may be counted or not: it came later, its client has not come
//! back yet, or its batch was stored in part, and no line says of which part it is. A counter is right from the number
//! of certain events up to that of all. An event that was stored several times, at times that the collector has
//! corrected differently, is counted in the hour that the attempt which was counted has given it: that is the line that
//! was received when the receipt says.
//!
//! A marker goes when no client has its batch any more. What was stored longer ago is taken for counted, so what a client
//! gave up between lake and counters is named then, and `--repair` counts it.
//!
//! What clients say they have lost is in no line and is not compared.
//!
//! **Cost**: two strongly consistent scans, one read unit each 4 KB of the table both times, and one request for each
//! object and for each 1,000 in the list. With `--from` only objects of those days are read.

use crate::ingest::checked_batch::{LOST, MARKER_LIFETIME};
use crate::maintenance::reconcile::{self as compare, failed, read_line};
use crate::store::aws::dynamodb::keys::{self, HOURS, Item};
use crate::store::aws::dynamodb::parts::{Add, Marker, TRANSACTION_ADDS};
use crate::store::aws::dynamodb::table::{Attempt, DynamoDb};
use crate::store::aws::{self, Backoff};
use crate::store::embedded::lake::LINE_BYTES;
use crate::store::query::{DAY, HOUR};
use crate::{Error, chain};
use aws_config::SdkConfig;
use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use aws_sdk_s3::Client;
use flate2::write::MultiGzDecoder;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, params};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;
use tallymark::BatchId;

/// How long a transaction may take to be seen as a whole, at the very most.
const SETTLED: Duration = Duration::from_secs(60);
/// How often an object is read whose connection breaks off.
const TRIES: u32 = 5;

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
        username TEXT NOT NULL, event_id BLOB NOT NULL, cell INTEGER NOT NULL, certainty INTEGER NOT NULL,
        PRIMARY KEY (username, event_id, cell)
    ) WITHOUT ROWID;
";

/// The event may be counted by this line, if it is counted.
const MAYBE: i64 = 0;
/// It is taken for counted, since it is older than any marker.
const OLD: i64 = 1;
/// It is counted, by this line.
const HERE: i64 = 2;

/// What the places of an event say together. One line that it is counted by decides. Otherwise it is certain to be
/// counted if each line of it is old.
const EVENTS: &str = "
    CREATE VIEW events AS
    SELECT username, event_id, count(*) AS places, sum(certainty = 2) AS here, min(certainty) > 0 OR max(certainty) = 2 AS certain,
        coalesce(max(CASE certainty WHEN 2 THEN cell END), max(cell)) AS cell
    FROM places GROUP BY username, event_id;
    INSERT INTO stored
        SELECT username, event_type, key, hour, counts.count, maybe FROM cells JOIN
            (SELECT cell, sum(certain) AS count, sum(NOT certain) AS maybe FROM events
             WHERE here = 1 OR places = 1 GROUP BY cell) AS counts ON cell = id;
    CREATE TABLE unclear AS SELECT username, event_id, certain, here FROM events WHERE here <> 1 AND places > 1;
";

/// Of an event with several places, whether it is certain to be in a counter: only if that counts all of them.
fn unsettled(key: &str, hour: &str) -> String {
    format!(
        "INSERT INTO unsettled
         SELECT username, event_type, key, hour, sum(choices = 1 AND certain), sum(NOT (choices = 1 AND certain)) FROM (
             SELECT *, count(*) OVER (PARTITION BY username, event_id) AS choices FROM (
                 SELECT DISTINCT username, event_id, certain, event_type, {key} AS key, {hour} AS hour
                 FROM unclear JOIN places USING (username, event_id)
                     JOIN (SELECT id, event_type, key, hour FROM cells) ON id = cell
                 WHERE here = 0 OR certainty = 2
             )
         ) GROUP BY username, event_type, key, hour;"
    )
}

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

/// A bucket, and how the keys of its objects begin.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    name: String,
    prefix: String,
}

impl FromStr for Bucket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("s3://").ok_or("use s3://BUCKET/PREFIX")?;
        let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err("use s3://BUCKET/PREFIX".into());
        }
        Ok(Self { name: name.into(), prefix: prefix.into() })
    }
}

/// What is compared, and how.
pub(crate) struct Options<'a> {
    pub(crate) bucket: Bucket,
    pub(crate) table: &'a str,
    /// For how long Firehose may hold what it has taken.
    pub(crate) delivery: Duration,
    /// Only hours from this time on, in milliseconds since the Unix epoch, and no totals.
    pub(crate) from: Option<u64>,
    pub(crate) repair: bool,
}

/// Names each counter that is not what is stored, and what cannot be read. Returns how many there are that have not
/// been repaired.
pub(crate) async fn reconcile(options: Options<'_>, say: &dyn Fn(&str)) -> Result<u64, Error> {
    let config = aws_config::load_from_env().await;
    let table = DynamoDb::patient(&config, options.table);
    let lake = Lake::new(&config, options.bucket);
    let census = Census::new()?;
    let turn = Turn::read(&table).await?;
    let mut unreadable = 0;
    let mut wrong = |what: String| {
        unreadable += 1;
        say(&what);
    };
    tell("reading the markers of the batches");
    scan(&table, "b#", &mut |item| census.take_marker(&item)).await?;
    wait(options.delivery.min(SETTLED), "so that all that these have counted is seen").await;
    tell("reading the counters");
    scan(&table, "c#", &mut |item| census.take_counter(&item, &mut wrong)).await?;
    wait(options.delivery, "for the delivery of what is counted by now (--firehose-delay)").await;
    tell("reading the objects");
    lake.read(options.from, &census, &mut wrong).await?;
    census.compare(options.from)?;
    let found = compare::say_differences(&census.db, say)?;
    let (events, maybe) = census.events()?;
    say(&format!("{events} events stored, {maybe} of them perhaps not counted: {found} counters differ"));
    if !options.repair || found == 0 {
        return Ok(found + unreadable);
    }
    if unreadable > 0 {
        return Err(Error::config("not repaired: what cannot be read would not be counted any more"));
    }
    if events == 0 {
        return Err(Error::config("not repaired: nothing is stored here, so the events are somewhere else"));
    }
    census.repair(&table, turn).await?;
    say("repaired");
    Ok(0)
}

async fn wait(time: Duration, why: &str) {
    if time > Duration::ZERO {
        tell(&format!("waiting {} {why}", humantime::format_duration(time)));
        tokio::time::sleep(time).await;
    }
}

/// Says how far it is. That nobody reads it is no reason to fail.
fn tell(what: &str) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Hands over all items of a kind.
async fn scan(table: &DynamoDb, kind: &str, take: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<(), Error> {
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

fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

/// Everything that was read, in a database that is gone when this is.
struct Census {
    db: Connection,
    /// What came in before this is older than any marker.
    old: u64,
}

impl Census {
    fn new() -> Result<Self, Error> {
        // Of no name: on disk as soon as it is large.
        let db = Connection::open("").map_err(failed)?;
        db.execute_batch(compare::TABLES).and_then(|()| db.execute_batch(TABLES)).map_err(failed)?;
        // A day more, as clocks differ.
        Ok(Self { db, old: crate::time::now().saturating_sub(MARKER_LIFETIME + DAY) })
    }

    fn take_marker(&self, item: &Item) -> Result<(), Error> {
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

    fn take_counter(&self, item: &Item, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
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
    fn take_line(&self, line: &[u8]) -> Result<Result<(), String>, Error> {
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
            Some(true) => HERE,
            None if line.received_at < self.old => OLD,
            _ => MAYBE,
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
            .and_then(|mut add| add.execute(params![line.username, line.event_id.uuid().as_bytes(), cell, certainty]))
            .map(|_| Ok(()))
            .map_err(failed)
    }

    /// Finds the counters that are not what is stored.
    fn compare(&self, from: Option<u64>) -> Result<(), Error> {
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
    fn events(&self) -> Result<(u64, u64), Error> {
        let sums = "SELECT count(*), coalesce(sum(NOT certain), 0) FROM events";
        self.db.query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)
    }

    /// Brings each counter that was named to the nearest number that would be right.
    ///
    /// That is by adding, so it does not matter what collectors add meanwhile. An event without a marker is never added:
    /// its client may still come back with the batch, which is then counted. So what is left wrong is at most what was
    /// under way, and the next run names it once that is decided.
    async fn repair(&self, table: &DynamoDb, mut turn: Turn) -> Result<(), Error> {
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
                turn.take(table, &std::mem::take(&mut items)).await?;
            }
            let adds: &mut Adds = items.entry(item).or_default();
            adds.0.insert(attribute, n);
            adds.1 = name;
        }
        turn.take(table, &items).await
    }
}

/// An item: site, type, shard, and sort key.
type Place = (String, String, u64, String);
/// What is added to its attributes, and the key if the sort key has only its hash.
type Adds = (BTreeMap<String, i64>, Option<String>);

fn attribute(row: &Row<'_>) -> rusqlite::Result<(Place, String, i64, Option<String>)> {
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
struct Turn {
    last: Option<(String, u64)>,
    next: (String, u64),
}

impl Turn {
    async fn read(table: &DynamoDb) -> Result<Self, Error> {
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
    async fn take(&mut self, table: &DynamoDb, items: &BTreeMap<Place, Adds>) -> Result<(), Error> {
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

/// The objects of the lake.
struct Lake {
    client: Client,
    bucket: Bucket,
}

impl Lake {
    fn new(config: &SdkConfig, bucket: Bucket) -> Self {
        let (retries, timeouts) = aws::patience();
        // Elsewhere than at AWS a bucket seldom has a host name of its own.
        let elsewhere = config.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
        let config = aws_sdk_s3::config::Builder::from(config).retry_config(retries).timeout_config(timeouts);
        Self { client: Client::from_conf(config.force_path_style(elsewhere).build()), bucket }
    }

    /// Reads the objects, or those that may have events from a time on. Says which cannot be read.
    async fn read(&self, from: Option<u64>, census: &Census, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
        // Nothing is received before it happens. A day more, as clocks differ.
        let from = from.map_or(0, |from| (from.saturating_sub(DAY) / 1000) as i64);
        let Bucket { name, prefix } = &self.bucket;
        let (mut objects, mut errors) = (0, 0_u64);
        let mut pages = self.client.list_objects_v2().bucket(name).prefix(prefix).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| aws::unavailable("The lake", &format!("the bucket {name}"), error))?;
            for object in page.contents() {
                let Some(key) = object.key() else { continue };
                if is_error_output(&key[prefix.len().min(key.len())..]) {
                    errors += 1;
                } else if object.size() != Some(0) && object.last_modified().is_none_or(|at| at.secs() >= from) {
                    objects += 1;
                    self.read_object(key, census, wrong).await?;
                }
            }
        }
        tell(&format!("read {objects} objects, and not {errors} of error output"));
        Ok(())
    }

    async fn read_object(&self, key: &str, census: &Census, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
        let mut waited = Duration::from_millis(100);
        for attempt in 1.. {
            // What was read before the connection broke off is the same again.
            let mut lines = Lines::new(census);
            let why = match self.pour(key, &mut lines).await {
                Ok(()) => None,
                Err(_) if lines.failed.is_some() => None,
                Err(Broken::Connection(_)) if attempt < TRIES => {
                    tokio::time::sleep(waited).await;
                    waited *= 3;
                    continue;
                }
                Err(Broken::Connection(why) | Broken::Object(why)) => Some(why),
            };
            if let Some(error) = lines.failed {
                return Err(error);
            }
            let more =
                if lines.unreadable > 1 { format!(", and {} more lines", lines.unreadable - 1) } else { String::new() };
            for why in lines.first.map(|why| why + &more).into_iter().chain(why) {
                wrong(format!("{key}: {why}"));
            }
            break;
        }
        Ok(())
    }

    /// Takes the lines of an object, compressed or not, as they come in.
    async fn pour(&self, key: &str, lines: &mut Lines<'_>) -> Result<(), Broken> {
        let call = self.client.get_object().bucket(&self.bucket.name).key(key);
        // The SDK has tried this as often as it is worth it.
        let mut body = call.send().await.map_err(|error| Broken::Object(chain(&error)))?.body;
        let mut start = Vec::new();
        let mut more = true;
        while more && start.len() < MAGIC_BYTES {
            match body.try_next().await.map_err(|error| Broken::Connection(chain(&error)))? {
                Some(chunk) => start.extend_from_slice(&chunk),
                None => more = false,
            }
        }
        if PARQUET.iter().any(|magic| start.starts_with(magic)) {
            return Err(Broken::Object("not newline-delimited JSON".into()));
        }
        let mut reader = if start.starts_with(GZIP) {
            Reader::Gzip(Box::new(MultiGzDecoder::new(lines)))
        } else {
            Reader::Plain(lines)
        };
        reader.write_all(&start)?;
        while let Some(chunk) = body.try_next().await.map_err(|error| Broken::Connection(chain(&error)))? {
            reader.write_all(&chunk)?;
        }
        Ok(reader.end()?)
    }
}

const MAGIC_BYTES: usize = 4;
const GZIP: &[u8] = &[0x1f, 0x8b];
const PARQUET: [&[u8]; 2] = [b"PAR1", b"ORC"];

/// Whether Firehose has put what it could not deliver here: by the folder's name below the lake's, such as
/// `processing-failed/` or `errors/`.
fn is_error_output(path: &str) -> bool {
    let mut folders = path.rsplit('/').skip(1);
    folders.any(|folder| matches!(folder, "error" | "errors") || folder.ends_with("-failed"))
}

/// Why an object was not read to its end.
enum Broken {
    Connection(String),
    Object(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Object(error.to_string())
    }
}

/// Cuts what is written to it into lines.
struct Lines<'a> {
    census: &'a Census,
    line: Vec<u8>,
    number: u64,
    unreadable: u64,
    /// What is wrong with the first line that cannot be read.
    first: Option<String>,
    /// Why it cannot go on, whatever comes.
    failed: Option<Error>,
}

impl<'a> Lines<'a> {
    fn new(census: &'a Census) -> Self {
        Self { census, line: Vec::new(), number: 0, unreadable: 0, first: None, failed: None }
    }

    fn take(&mut self) -> io::Result<()> {
        self.number += 1;
        match self.census.take_line(&self.line) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                self.unreadable += 1;
                self.first.get_or_insert_with(|| format!("line {}: {why}", self.number));
            }
            Err(error) => {
                self.failed = Some(error);
                return Err(io::Error::other("cannot be counted"));
            }
        }
        self.line.clear();
        Ok(())
    }

    /// The last line may have no newline.
    fn end(&mut self) -> io::Result<()> {
        if self.line.is_empty() { Ok(()) } else { self.take() }
    }
}

impl Write for Lines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_end) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            if self.line.len() + text.len() > LINE_BYTES as usize {
                return Err(io::Error::other(format!("line {} is too long", self.number + 1)));
            }
            self.line.extend_from_slice(text);
            if is_end {
                self.take()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Reader<'a, 'b> {
    Plain(&'a mut Lines<'b>),
    Gzip(Box<MultiGzDecoder<&'a mut Lines<'b>>>),
}

impl Reader<'_, '_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(lines) => lines.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
        }
    }

    fn end(self) -> io::Result<()> {
        match self {
            Self::Plain(lines) => lines.end(),
            Self::Gzip(decoder) => decoder.finish()?.end(),
        }
    }
}
