//! The writer: the one thread that changes the database.
//!
//! It takes all batches that wait, up to a limit, into one transaction (group commit), and answers them once that is
//! on disk.

use crate::Error;
use crate::error::LONGEST_WAIT;
use crate::ingest::checked_batch::{CheckedBatch, MARKER_LIFETIME, tally};
use crate::store::embedded::database::{self, NOBODY};
use crate::store::query::{HOUR, TOP_KEYS};
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tallymark::Receipt;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// How often old markers are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(60 * 60);
/// How long a client is asked to stay away from a store that cannot be written, at first.
pub(crate) const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Batches in one transaction.
const GROUP: usize = 256;
/// Bytes of lines that are held before they are moved to the lake ahead of time.
const ROLL_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of lines in one row, a line more or less: what is read at once when they are moved.
const HELD_BYTES: usize = 1024 * 1024;

/// Markers that are removed between two transactions: some milliseconds of work.
const MARKERS: usize = 500;
/// The size at which the log is emptied. SQLite starts it over when no reader is in the way, which under load
/// there always is.
const LOG_BYTES: u64 = 64 * 1024 * 1024;
/// How often that is tried, and how long batches wait for readers then.
const EMPTY_EVERY: Duration = Duration::from_secs(1);
const EMPTY_WAIT: Duration = Duration::from_millis(50);
/// Keys of a site and type of which `leaders` holds the counts: as many as `top` can be asked for.
pub(crate) const LEADERS: usize = TOP_KEYS as usize;

/// Which part of a batch the embedded store is to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything, in one transaction.
    LinesAndCounts,
    /// Only the lines: DynamoDB counts.
    Lines,
    /// Only the counts: Firehose has taken the lines.
    Counts,
}

/// What the writer is asked to do.
pub(crate) enum Job {
    Commit(Waiting),
    /// Whether a batch could be stored.
    Check(oneshot::Sender<Result<(), Error>>),
    BeginRoll(oneshot::Sender<Option<Roll>>),
    EndRoll {
        upto: i64,
        reply: oneshot::Sender<bool>,
    },
    Stop,
}

/// A batch that waits for the writer.
pub(crate) struct Waiting {
    pub(crate) batch: CheckedBatch,
    pub(crate) keep: Keep,
    pub(crate) reply: oneshot::Sender<Result<Receipt, Error>>,
    pub(crate) claim: Claim,
    /// The queue's memory that the batch takes, given back when it is dropped.
    pub(crate) _room: OwnedSemaphorePermit,
}

impl Waiting {
    /// Claims the batch for the writer. `false` if the sender has been told that it is not stored, or is gone: it will
    /// send the batch again, and a batch without an id of the client's cannot be recognised then.
    fn begin(&self) -> bool {
        !self.reply.is_closed() && self.claim.take()
    }
}

/// Decides who ends the wait of a batch: the writer that commits it, or its sender that gives up. Only one can.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim(Arc<AtomicBool>);

impl Claim {
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// How long a transaction has taken recently, which estimates how long the waiting batches will take.
#[derive(Debug, Default)]
pub(crate) struct CommitLatency {
    nanoseconds: AtomicU64,
    transactions: AtomicU64,
}

impl CommitLatency {
    /// A moving average with weight 1/8, so that one slow sync does not decide.
    fn note(&self, took: Duration) {
        let (latest, before) = (took.as_nanos() as u64, self.nanoseconds.load(Ordering::Relaxed));
        let average = if before == 0 { latest } else { before - before / 8 + latest / 8 };
        self.nanoseconds.store(average, Ordering::Relaxed);
        self.transactions.fetch_add(1, Ordering::Relaxed);
    }

    /// How long this many batches will wait.
    pub(crate) fn wait(&self, batches: usize) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed).saturating_mul(batches.div_ceil(GROUP) as u64))
    }

    /// Transactions so far.
    pub(crate) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

/// A move of lines from the database to the lake.
#[derive(Clone, Debug)]
pub(crate) struct Roll {
    /// The number of the last line to move.
    pub(crate) upto: i64,
    /// The name of the files, without their ending.
    pub(crate) name: String,
}

/// The writer's state between transactions.
pub(crate) struct Writer<F> {
    pub(crate) db: Connection,
    pub(crate) latency: Arc<CommitLatency>,
    /// Called when so many lines are held that they should be moved now.
    pub(crate) roll: F,
    held_bytes: usize,
    /// Since when nothing could be written.
    failing: Option<Instant>,
    /// Markers from before this time are being removed.
    removing: Option<u64>,
    /// Whether nothing was committed since the last roll.
    idle: bool,
    /// When the log was last emptied, or could not be.
    emptied: Option<Instant>,
}

impl<F: Fn()> Writer<F> {
    pub(crate) fn new(db: Connection, latency: Arc<CommitLatency>, roll: F) -> Self {
        Self { db, latency, roll, held_bytes: 0, failing: None, removing: None, idle: false, emptied: None }
    }

    /// Works until it is asked to stop, or nobody is left who could ask for anything.
    pub(crate) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let (started, started_at) = (Instant::now(), crate::time::now());
        let mut pruned = started;
        while let Some(first) = self.next(&mut jobs) {
            if let Some(first) = first {
                let (group, stop) = self.take_group(first, &mut jobs);
                if !group.is_empty() {
                    let begun = Instant::now();
                    self.commit_group(group);
                    self.latency.note(begun.elapsed());
                    self.idle = false;
                }
                if stop {
                    break;
                }
            }
            if self.held_bytes > ROLL_BYTES {
                self.held_bytes = 0;
                (self.roll)();
            }
            if pruned.elapsed() > PRUNE_EVERY {
                pruned = Instant::now();
                // A clock that never jumps: a wrong wall clock would remove markers of batches still being retried.
                let now = started_at + started.elapsed().as_millis() as u64;
                self.removing = Some(now.saturating_sub(MARKER_LIFETIME));
            }
            self.remove_markers();
            if database::log_bytes(&self.db) > LOG_BYTES && self.emptied.is_none_or(|at| at.elapsed() > EMPTY_EVERY) {
                self.empty_log();
            }
        }
        // Leaves one file, which can be copied or moved without its log.
        if let Err(error) = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            tracing::warn!(%error, "cannot empty the database's log; it is needed beside the database");
        }
    }

    /// The next job. While markers are being removed this does not wait for one, and the inner `None` says that there
    /// is none. The outer `None`: there will be no more.
    fn next(&self, jobs: &mut mpsc::Receiver<Job>) -> Option<Option<Job>> {
        if self.removing.is_none() {
            return jobs.blocking_recv().map(Some);
        }
        match jobs.try_recv() {
            Ok(job) => Some(Some(job)),
            Err(TryRecvError::Empty) => Some(None),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Takes the batches that wait now, and does every other job on the way. Also says whether to stop.
    fn take_group(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) -> (Vec<Waiting>, bool) {
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Commit(commit) => {
                    if commit.begin() {
                        self.held_bytes += commit.batch.events.iter().map(|event| event.line.len()).sum::<usize>();
                        group.push(commit);
                    }
                    if group.len() < GROUP {
                        next = jobs.try_recv().ok();
                    }
                }
                Job::Check(reply) if reply.is_closed() => {}
                Job::Check(reply) => {
                    let _ = reply.send(check(&self.db).map_err(unavailable));
                }
                Job::Stop => return (group, true),
                Job::BeginRoll(reply) => {
                    self.held_bytes = 0;
                    if std::mem::replace(&mut self.idle, true) && database::log_bytes(&self.db) > 0 {
                        self.empty_log();
                    }
                    let _ = reply.send(begin_roll(&mut self.db).unwrap_or_else(|error| {
                        tracing::error!(%error, "cannot begin to move lines to the lake");
                        None
                    }));
                }
                Job::EndRoll { upto, reply } => {
                    let done = end_roll(&mut self.db, upto);
                    if let Err(error) = &done {
                        tracing::error!(%error, "cannot finish moving lines to the lake; it will be repeated");
                    }
                    let _ = reply.send(done.is_ok());
                }
            }
        }
        (group, false)
    }

    /// Commits the batches, and answers each.
    fn commit_group(&mut self, group: Vec<Waiting>) {
        let mut answers = commit(&mut self.db, &group, false);
        if answers.as_ref().is_err_and(is_of_one_batch) {
            answers = commit(&mut self.db, &group, true);
        }
        match answers {
            Ok(answers) => {
                self.failing = None;
                for (waiting, answer) in group.into_iter().zip(answers) {
                    let _ = waiting.reply.send(answer);
                }
            }
            Err(error) => {
                tracing::error!(%error, batches = group.len(), "cannot commit");
                let why = error.to_string();
                // As long again as it has failed: a disk that has been full for a minute stays full for another.
                let failing = self.failing.get_or_insert_with(Instant::now).elapsed();
                let wait = failing.clamp(FIRST_WAIT, LONGEST_WAIT);
                for waiting in group {
                    let error = Error::unavailable("The store cannot be written", wait);
                    let _ = waiting.reply.send(Err(error.with_source(why.clone())));
                }
            }
        }
    }

    /// Removes some markers, if there are old ones: so few at a time that batches need not wait long for it.
    fn remove_markers(&mut self) {
        let Some(before) = self.removing else { return };
        let removed = self.db.execute(
            "DELETE FROM batches WHERE (username, scope, batch_id) IN (
                 SELECT username, scope, batch_id FROM batches INDEXED BY batches_by_age
                 WHERE received_at < ? ORDER BY received_at LIMIT ?
             )",
            params![before, MARKERS],
        );
        match removed {
            Ok(removed) if removed == MARKERS => {}
            Ok(_) => self.removing = None,
            Err(error) => {
                tracing::warn!(%error, "cannot remove the markers of old batches");
                self.removing = None;
            }
        }
    }

    /// Moves what is in the log into the database and truncates the log, unless a reader needs it for longer than
    /// batches should wait.
    fn empty_log(&mut self) {
        self.emptied = Some(Instant::now());
        let emptied = self
            .db
            .busy_timeout(EMPTY_WAIT)
            .and_then(|()| self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
            .and_then(|()| self.db.busy_timeout(database::BUSY_TIMEOUT));
        if let Err(error) = emptied {
            tracing::warn!(%error, "cannot empty the database's log");
        }
    }
}

pub(crate) fn unavailable(error: rusqlite::Error) -> Error {
    Error::unavailable("The store cannot be used", FIRST_WAIT).with_source(error)
}

/// Writes as a batch would be written, so that it fails where that does. It stores nothing else.
fn check(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO batches VALUES (?, 'check', x'', x'', ?, '')")?
        .execute(params![NOBODY, crate::time::now()])
        .map(drop)
}

/// Commits batches in one transaction. `apart`, one that cannot be written does not harm the others, which takes
/// longer.
fn commit(db: &mut Connection, group: &[Waiting], apart: bool) -> rusqlite::Result<Vec<Result<Receipt, Error>>> {
    let mut transaction = db.transaction()?;
    let batches = group.iter().map(|Waiting { batch, keep, .. }| (batch, *keep));
    let answers = if apart {
        let mut answers = Vec::with_capacity(group.len());
        for (batch, keep) in batches {
            answers.extend(insert_apart(&mut transaction, batch, keep)?);
        }
        answers
    } else {
        insert(&transaction, batches)?
    };
    transaction.commit()?;
    Ok(answers)
}

fn insert_apart(
    transaction: &mut Transaction<'_>,
    batch: &CheckedBatch,
    keep: Keep,
) -> rusqlite::Result<Vec<Result<Receipt, Error>>> {
    let savepoint = transaction.savepoint()?;
    match insert(&savepoint, std::iter::once((batch, keep))) {
        Ok(answers) => savepoint.commit().map(|()| answers),
        // Dropping the savepoint rolls back what was written of it.
        Err(error) if is_of_one_batch(&error) => {
            tracing::error!(%error, batch_id = %batch.batch_id, "cannot commit this batch");
            Ok(vec![Err(Error::unavailable("The batch cannot be written", LONGEST_WAIT).with_source(error))])
        }
        Err(error) => Err(error),
    }
}

/// Whether other batches may be written though this one could not: the error is about neither the disk nor the
/// database as a whole.
fn is_of_one_batch(error: &rusqlite::Error) -> bool {
    use ErrorCode::{ConstraintViolation, ParameterOutOfRange, TooBig, TypeMismatch, Unknown};
    error
        .sqlite_error_code()
        .is_none_or(|code| matches!(code, ConstraintViolation | ParameterOutOfRange | TooBig | TypeMismatch | Unknown))
}

/// Stores and counts the batches that are new. The inner errors are about one batch alone.
///
/// A batch whose id cannot be repeated leaves no marker: it would be 294 bytes that nothing ever reads.
fn insert<'a>(
    db: &Connection,
    batches: impl Iterator<Item = (&'a CheckedBatch, Keep)>,
) -> rusqlite::Result<Vec<Result<Receipt, Error>>> {
    let (mut new, mut answers) = (Vec::new(), Vec::new());
    for (batch, keep) in batches {
        let marker = if batch.repeatable { put_marker(db, batch)? } else { Marker::New(batch.receipt()) };
        answers.push(match marker {
            Marker::New(receipt) => {
                new.push((batch, keep));
                Ok(receipt)
            }
            Marker::Known(answer) => answer,
        });
    }
    store(db, &new)?;
    Ok(answers)
}

/// Whether a batch was committed before.
enum Marker {
    New(Receipt),
    /// The error is about this batch alone.
    Known(Result<Receipt, Error>),
}

fn put_marker(db: &Connection, batch: &CheckedBatch) -> rusqlite::Result<Marker> {
    let receipt = batch.receipt();
    let json =
        serde_json::to_string(&receipt).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let id = batch.batch_id.uuid();
    let new = db
        .prepare_cached(
            "INSERT OR IGNORE INTO batches (username, scope, batch_id, fingerprint, received_at, receipt)
             VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            batch.username,
            batch.scope.as_str(),
            id.as_bytes(),
            batch.fingerprint.0,
            batch.received_at,
            json
        ])?;
    if new == 0 {
        return Ok(Marker::Known(known(db, batch)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?));
    }
    Ok(Marker::New(receipt))
}

/// The first receipt of a batch that was committed before; the inner error says that it was another batch.
pub(crate) fn known(db: &Connection, batch: &CheckedBatch) -> rusqlite::Result<Option<Result<Receipt, Error>>> {
    let found = db
        .prepare_cached("SELECT fingerprint, receipt FROM batches WHERE username = ? AND scope = ? AND batch_id = ?")?
        .query_row(params![batch.username, batch.scope.as_str(), batch.batch_id.uuid().as_bytes()], |row| {
            let receipt: String = row.get(1)?;
            let receipt: Receipt = serde_json::from_str(&receipt)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Text, error.into()))?;
            Ok((row.get::<_, Vec<u8>>(0)?, receipt))
        })
        .optional()?;
    Ok(found.map(|(fingerprint, receipt)| batch.duplicate_of(&fingerprint, receipt)))
}

/// Stores and counts batches that are new: all at once, because many lines fit into one row, and a counter that
/// several batches share is written once.
fn store(db: &Connection, batches: &[(&CheckedBatch, Keep)]) -> rusqlite::Result<()> {
    let except = |not: Keep| batches.iter().filter(move |(_, keep)| *keep != not).map(|(batch, _)| *batch);
    hold(db, except(Keep::Counts))?;
    count(db, except(Keep::Lines))
}

fn hold<'a>(db: &Connection, batches: impl Iterator<Item = &'a CheckedBatch>) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached("INSERT INTO held (username, event_type, hour, lines) VALUES (?, ?, ?, ?)")?;
    let mut rows = BTreeMap::<_, String>::new();
    for batch in batches {
        let hour = batch.received_at / HOUR;
        for event in batch.stored() {
            let partition = (batch.username.as_str(), event.event_type, hour);
            let lines = rows.entry(partition).or_default();
            lines.push_str(&event.line);
            lines.push('\n');
            if lines.len() > HELD_BYTES {
                insert.execute(params![partition.0, partition.1, partition.2, *lines])?;
                lines.clear();
            }
        }
    }
    for ((username, event_type, hour), lines) in rows.iter().filter(|(_, lines)| !lines.is_empty()) {
        insert.execute(params![username, event_type, hour, lines])?;
    }
    Ok(())
}

fn count<'a>(db: &Connection, batches: impl Iterator<Item = &'a CheckedBatch>) -> rusqlite::Result<()> {
    let mut total = db.prepare_cached(
        "INSERT INTO totals (username, event_type, key, count) VALUES (?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET count = count + excluded.count RETURNING count",
    )?;
    let mut hour = db.prepare_cached(
        "INSERT INTO hours (username, event_type, key, hour, count) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
    )?;
    let mut totals = BTreeMap::<_, u64>::new();
    for ((username, counter), n) in tally(batches) {
        hour.execute(params![username, counter.event_type, counter.key, counter.hour, n])?;
        *totals.entry((username, counter.event_type, counter.key)).or_default() += n;
    }
    let mut counts = BTreeMap::<_, Vec<_>>::new();
    for ((username, event_type, key), n) in totals {
        let count = total.query_row(params![username, event_type, key, n], |row| row.get::<_, u64>(0))?;
        if !key.is_empty() {
            counts.entry((username, event_type)).or_default().push((key, count));
        }
    }
    counts.into_iter().try_for_each(|((username, event_type), counts)| lead(db, username, event_type, &counts))
}

/// Keeps the keys counted most, of which some have these counts now. Counts only grow, so a key that has not changed
/// cannot become one of them.
fn lead(db: &Connection, username: &str, event_type: &str, counts: &[(&str, u64)]) -> rusqlite::Result<()> {
    let held = || {
        db.prepare_cached("SELECT count(*) FROM leaders WHERE username = ? AND event_type = ?")?
            .query_row(params![username, event_type], |row| row.get::<_, usize>(0))
    };
    let least: Option<(u64, String)> = if held()? < LEADERS {
        None
    } else {
        db.prepare_cached(
            "SELECT count, key FROM leaders WHERE username = ? AND event_type = ? ORDER BY count, key DESC LIMIT 1",
        )?
        .query_row(params![username, event_type], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
    };
    let leads = |key: &str, count: u64| {
        least.as_ref().is_none_or(|(least, last)| count > *least || count == *least && key < last.as_str())
    };
    let mut put = db.prepare_cached("INSERT OR REPLACE INTO leaders VALUES (?, ?, ?, ?)")?;
    let mut changed = false;
    for (key, count) in counts.iter().filter(|(key, count)| leads(key, *count)) {
        changed = true;
        put.execute(params![username, event_type, key, count])?;
    }
    let excess = if changed { held()?.saturating_sub(LEADERS) } else { 0 };
    if excess > 0 {
        db.prepare_cached(
            "DELETE FROM leaders WHERE (username, event_type, key) IN (
                 SELECT username, event_type, key FROM leaders WHERE username = ? AND event_type = ?
                 ORDER BY count, key DESC LIMIT ?
             )",
        )?
        .execute(params![username, event_type, excess])?;
    }
    Ok(())
}

/// Decides which lines to move. A move that was begun and not ended is repeated, the same.
pub(crate) fn begin_roll(db: &mut Connection) -> rusqlite::Result<Option<Roll>> {
    // The write lock at once: a transaction that begins by reading fails if `prune` writes in between.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let read = |row: &rusqlite::Row<'_>| Ok(Roll { upto: row.get(0)?, name: row.get(1)? });
    let begun = transaction.query_row("SELECT upto, name FROM roll", [], read).optional()?;
    if begun.is_some() {
        return Ok(begun);
    }
    let Some(upto) = transaction.query_row("SELECT max(seq) FROM held", [], |row| row.get(0))? else { return Ok(None) };
    // The time first, so that names sort as the files were written.
    let roll = Roll { upto, name: format!("{:013}-{:08x}", crate::time::now(), rand::random::<u32>()) };
    transaction.execute("INSERT INTO roll VALUES (?, ?)", params![roll.upto, roll.name])?;
    transaction.commit()?;
    Ok(Some(roll))
}

/// Removes the lines of a move whose files are sealed.
pub(crate) fn end_roll(db: &mut Connection, upto: i64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    transaction.execute("DELETE FROM held WHERE seq <= ?", [upto])?;
    transaction.execute("DELETE FROM roll", [])?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Writer<impl Fn()> {
        let db = Connection::open_in_memory().unwrap();
        database::prepare(&db).unwrap();
        Writer::new(db, Arc::default(), || {})
    }

    #[test]
    fn markers_are_removed_in_slices() {
        let mut writer = writer();
        let fill = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1200)
            INSERT INTO batches SELECT 'shop', 'write', x, x'', x, '' FROM n";
        writer.db.execute_batch(fill).unwrap();
        writer.removing = Some(1_101);
        let mut left = Vec::new();
        while writer.removing.is_some() {
            writer.remove_markers();
            left.push(writer.db.query_row("SELECT count(*) FROM batches", [], |row| row.get::<_, u64>(0)).unwrap());
        }
        assert_eq!(left, [700, 200, 100], "it was one DELETE of 1,100 markers");
    }

    #[test]
    fn the_leaders_are_the_keys_counted_most() {
        let writer = writer();
        let mut random = 1_u64;
        for round in 0..40 {
            let mut counts = BTreeMap::new();
            for _ in 0..300 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Few keys get most of the counts, and there are more of them than leaders.
                let key = (random >> 33) % (1 + (random >> 50) % 3_000);
                *counts.entry(format!("{key}")).or_insert(0) += 1 + round % 3;
            }
            let update = "INSERT INTO totals VALUES ('shop', 'custom', ?, ?)
                ON CONFLICT DO UPDATE SET count = count + excluded.count RETURNING count";
            let counts: Vec<(String, u64)> = counts
                .into_iter()
                .map(|(key, n)| {
                    let count = writer.db.query_row(update, params![key, n], |row| row.get(0)).unwrap();
                    (key, count)
                })
                .collect();
            let counts: Vec<_> = counts.iter().map(|(key, count)| (key.as_str(), *count)).collect();
            lead(&writer.db, "shop", "custom", &counts).unwrap();
        }
        let all = |sql: &str| -> Vec<(String, u64)> {
            let mut rows = writer.db.prepare(sql).unwrap();
            rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
        };
        let keys = all("SELECT key, count FROM totals ORDER BY count DESC, key");
        assert!(keys.len() > LEADERS, "{}", keys.len());
        let leaders = "SELECT key, count FROM leaders ORDER BY count DESC, key";
        assert_eq!(all(leaders), keys[..LEADERS]);
        database::fill_leaders(&writer.db).unwrap();
        assert_eq!(all(leaders), keys[..LEADERS], "filled again");
    }
}
