//! The embedded store: one SQLite database for markers, receipts, counters, and lines on their way to
//! the directory lake.
//!
//! One thread writes. It takes all batches that are waiting, up to a limit, into one transaction, and
//! answers them once that is on disk. A second thread moves lines from the database into lake files (see
//! [`crate::store::embedded::lake`]). Reads have a connection of their own.

pub(crate) mod database;
pub mod lake;

use crate::Error;
use crate::error::LONGEST_WAIT;
use crate::ingest::checked_batch::{CheckedBatch, MARKER_LIFETIME, tally};
use crate::store::query::{Hours, Query};
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tallymark::Receipt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// How often old markers are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(60 * 60);
/// Batches that may wait for the writer, and how many KiB of them. Beyond that the answer is 503.
const WAITING: usize = 1024;
const WAITING_KIB: usize = 64 * 1024;
/// How long a batch may wait for the writer. One that would take longer is not taken in; one that does is taken
/// back, so that what is answered 503 is not stored.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client is asked to stay away from a store that cannot be written, at first.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Batches in one transaction.
const GROUP: usize = 256;
/// Lines that are held before they are moved to the lake ahead of time.
const ROLL_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of lines in one row, a line more or less: what is read at once when they are moved.
const HELD_BYTES: usize = 1024 * 1024;
/// No site has this name.
const NOBODY: &str = "";

/// The embedded store. Clones share it.
#[derive(Clone, Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    jobs: mpsc::Sender<Job>,
    /// A permit for each KiB that waits.
    room: Arc<Semaphore>,
    pace: Arc<Pace>,
    reader: Mutex<Connection>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    signals: std::sync::mpsc::Sender<Signal>,
    // Held until the last thread is done, so that no second collector writes here.
    _lock: File,
}

/// Which part of a batch the embedded store is to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything, in one transaction.
    LinesAndCounts,
    /// Only the lines: others count.
    Lines,
    /// Only the counts: the lines are elsewhere already.
    Counts,
}

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

/// A batch on its way to the writer.
pub(crate) struct Waiting {
    batch: CheckedBatch,
    keep: Keep,
    reply: oneshot::Sender<Result<Receipt, Error>>,
    claim: Claim,
    /// Given back when the batch is gone.
    _room: OwnedSemaphorePermit,
}

impl Waiting {
    /// Whether the writer is to commit it, and not its sender to hear that it is not stored. One whose sender is gone
    /// is not committed either: it will come again, and not every one can be recognised then.
    fn begin(&self) -> bool {
        !self.reply.is_closed() && self.claim.take()
    }
}

/// Of a batch that waits: the writer takes it, or who has waited for too long. Only one of them can.
#[derive(Clone, Debug, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// How long the writer takes for a transaction, of late. Tells how long those that wait will.
#[derive(Debug, Default)]
struct Pace {
    nanoseconds: AtomicU64,
    transactions: AtomicU64,
}

impl Pace {
    /// Each weighs an eighth, so that one slow sync does not decide.
    fn note(&self, took: Duration) {
        let (latest, before) = (took.as_nanos() as u64, self.nanoseconds.load(Ordering::Relaxed));
        let of_late = if before == 0 { latest } else { before - before / 8 + latest / 8 };
        self.nanoseconds.store(of_late, Ordering::Relaxed);
        self.transactions.fetch_add(1, Ordering::Relaxed);
    }

    fn wait(&self, batches: usize) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed).saturating_mul(batches.div_ceil(GROUP) as u64))
    }
}

/// A move of lines to the lake.
#[derive(Clone, Debug)]
pub(crate) struct Roll {
    /// The last line to move.
    pub(crate) upto: i64,
    /// What the files are called.
    pub(crate) name: String,
}

/// What the roller is told before its interval is over.
enum Signal {
    Roll,
    Stop,
}

impl Embedded {
    /// Opens the store in `folder`, which is made if there is none, and finishes what a crash has
    /// interrupted. Lines wait at most `roll` before they are in the lake's files.
    pub fn open(folder: &Path, roll: Duration) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(|error| {
            Error::config(format!("cannot make the data directory {}", folder.display())).because(error)
        })?;
        let lock = database::lock(folder)?;

        let (mut writer, reader, roller) = database::open_or_make(folder)?;

        let raw = folder.join("raw");
        if let Err(error) = catch_up(&mut writer, &raw) {
            tracing::error!(cause = %crate::error::chain(&error), "cannot move lines to the lake; they are kept");
        }

        let (jobs, waiting) = mpsc::channel(WAITING);
        let (signals, told) = std::sync::mpsc::channel();
        let pace = Arc::new(Pace::default());
        let threads = vec![
            spawn("tallymark-writer", {
                let (signals, pace) = (signals.clone(), Arc::clone(&pace));
                move || write(writer, waiting, &signals, &pace)
            })?,
            spawn("tallymark-roller", {
                let jobs = jobs.clone();
                move || roll_on(&jobs, &roller, &raw, roll, &told)
            })?,
        ];
        let (reader, threads) = (Mutex::new(reader), Mutex::new(threads));
        let room = Arc::new(Semaphore::new(WAITING_KIB));
        Ok(Self { shared: Arc::new(Shared { jobs, room, pace, reader, threads, signals, _lock: lock }) })
    }

    /// Commits what is to be kept of the batch. When this returns, it is on disk. A batch that is known
    /// changes nothing and gets its first receipt again. When it fails as unavailable, nothing is stored.
    pub async fn commit(&self, batch: CheckedBatch, keep: Keep) -> Result<Receipt, Error> {
        if self.wait() > PATIENCE {
            return Err(self.busy());
        }
        let bytes = batch.events.iter().map(|event| event.line.len() + event.key.len()).sum::<usize>();
        let room = Arc::clone(&self.shared.room).try_acquire_many_owned(1 + (bytes / 1024) as u32);
        let room = room.map_err(|_| self.busy())?;
        let (reply, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let job = Job::Commit(Waiting { batch, keep, reply, claim: claim.clone(), _room: room });
        self.shared.jobs.try_send(job).map_err(|_| self.busy())?;
        let answered = match tokio::time::timeout(PATIENCE, &mut answer).await {
            Err(_) if claim.take() => return Err(self.busy()),
            // The writer is at it, and only it can tell how that ends.
            Err(_) => answer.await,
            Ok(answered) => answered,
        };
        answered.unwrap_or_else(|_| Err(self.busy()))
    }

    /// Whether batches can be stored now, and counters read: tries both.
    pub async fn ready(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.shared.jobs.try_send(Job::Check(reply)).map_err(|_| self.busy())?;
        answer.await.unwrap_or_else(|_| Err(self.busy()))?;
        let query = Query { username: NOBODY.into(), event_type: "custom".into(), key: String::new() };
        self.count(query, None).await.map(drop)
    }

    /// Batches that wait for the writer, and the bytes held for all that are not answered yet.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let batches = self.shared.jobs.max_capacity() - self.shared.jobs.capacity();
        (batches, (WAITING_KIB - self.shared.room.available_permits()) * 1024)
    }

    /// Transactions so far.
    pub(crate) fn transactions(&self) -> u64 {
        self.shared.pace.transactions.load(Ordering::Relaxed)
    }

    /// How long a batch would wait that came now.
    fn wait(&self) -> Duration {
        let waiting = self.shared.jobs.max_capacity() - self.shared.jobs.capacity();
        self.shared.pace.wait(waiting)
    }

    fn busy(&self) -> Error {
        Error::unavailable("The store is busy", self.wait().min(LONGEST_WAIT))
    }

    /// The receipt of a batch that was committed before.
    pub async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        let batch = batch.without_events();
        self.read(move |db| Ok(find(db, &batch)?.map(|found| found.receipt(&batch)))).await?.transpose()
    }

    /// How often a counter was counted.
    pub async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        let Query { username, event_type, key } = query;
        self.read(move |db| match hours {
            None => db
                .prepare_cached("SELECT count FROM totals WHERE username = ? AND event_type = ? AND key = ?")?
                .query_row(params![username, event_type, key], |row| row.get(0))
                .optional()
                .map(Option::unwrap_or_default),
            Some(hours) => db
                .prepare_cached(
                    "SELECT coalesce(sum(count), 0) FROM hours
                     WHERE username = ? AND event_type = ? AND key = ? AND hour >= ? AND hour < ?",
                )?
                .query_row(params![username, event_type, key, hours.start, hours.end], |row| row.get(0)),
        })
        .await
    }

    /// The counts of each hour that has any.
    pub async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        let Query { username, event_type, key } = query;
        self.read(move |db| {
            db.prepare_cached(
                "SELECT hour, count FROM hours
                 WHERE username = ? AND event_type = ? AND key = ? AND hour >= ? AND hour < ? ORDER BY hour",
            )?
            .query_map(params![username, event_type, key, hours.start, hours.end], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?
            .collect()
        })
        .await
    }

    /// The keys counted most.
    pub async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        let Query { username, event_type, .. } = query;
        self.read(move |db| {
            db.prepare_cached(
                "SELECT key, count FROM totals
                 WHERE username = ? AND event_type = ? AND key <> '' ORDER BY count DESC, key LIMIT ?",
            )?
            .query_map(params![username, event_type, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })
        .await
    }

    /// Moves every line to the lake's files and ends both threads. What comes later is refused as busy.
    pub async fn close(&self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let mut threads = shared.threads.lock().unwrap_or_else(PoisonError::into_inner);
            // The roller first: it still needs the writer.
            let _ = shared.signals.send(Signal::Stop);
            let roller = threads.pop();
            roller.map(JoinHandle::join);
            let _ = shared.jobs.blocking_send(Job::Stop);
            threads.drain(..).for_each(|writer| drop(writer.join()));
        })
        .await
        .map_err(|error| Error::config("the store did not close cleanly").because(error))
    }

    async fn read<T, F>(&self, query: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || query(&shared.reader.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|error| Error::config("a query was cut off").because(error))?
            .map_err(unavailable)
    }
}

fn unavailable(error: rusqlite::Error) -> Error {
    Error::unavailable("The store cannot be used", FIRST_WAIT).because(error)
}

/// Starts a thread without which the collector is of no use: if it panics, the process ends, and whoever
/// watches it starts it anew. What was answered is on disk.
fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    let work = move || {
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!(thread = name, "a thread has failed; the collector ends");
            std::process::exit(70);
        }
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|error| Error::config("cannot start a thread").because(error))
}

/// The writer: one transaction for all that is waiting, and an answer for each once it is on disk.
fn write(mut db: Connection, mut waiting: mpsc::Receiver<Job>, signals: &std::sync::mpsc::Sender<Signal>, pace: &Pace) {
    let (started, started_at) = (Instant::now(), crate::time::now());
    let mut prune = started;
    let mut held_bytes = 0;
    let mut failing = None;
    let mut stopped = false;
    while !stopped && let Some(first) = waiting.blocking_recv() {
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Commit(commit) => {
                    if commit.begin() {
                        held_bytes += commit.batch.events.iter().map(|event| event.line.len()).sum::<usize>();
                        group.push(commit);
                    }
                    if group.len() < GROUP {
                        next = waiting.try_recv().ok();
                    }
                }
                Job::Check(reply) if reply.is_closed() => {}
                Job::Check(reply) => {
                    let _ = reply.send(check(&db).map_err(unavailable));
                }
                Job::Stop => stopped = true,
                Job::BeginRoll(reply) => {
                    held_bytes = 0;
                    let _ = reply.send(begin_roll(&mut db).unwrap_or_else(|error| {
                        tracing::error!(%error, "cannot begin to move lines to the lake");
                        None
                    }));
                }
                Job::EndRoll { upto, reply } => {
                    let done = end_roll(&mut db, upto);
                    if let Err(error) = &done {
                        tracing::error!(%error, "cannot finish moving lines to the lake; it will be done again");
                    }
                    let _ = reply.send(done.is_ok());
                }
            }
        }
        if !group.is_empty() {
            let begun = Instant::now();
            commit_group(&mut db, group, &mut failing);
            pace.note(begun.elapsed());
        }
        if held_bytes > ROLL_BYTES {
            held_bytes = 0;
            let _ = signals.send(Signal::Roll);
        }
        if prune.elapsed() > PRUNE_EVERY {
            prune = Instant::now();
            // By a clock that does not jump, or a wrong time would forget batches that may come again.
            let now = started_at + started.elapsed().as_millis() as u64;
            if let Err(error) =
                db.execute("DELETE FROM batches WHERE received_at < ?", [now.saturating_sub(MARKER_LIFETIME)])
            {
                tracing::warn!(%error, "cannot forget old batches");
            }
        }
    }
    // So that all is in one file, for who copies it or moves it away.
    if let Err(error) = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        tracing::warn!(%error, "cannot empty the database's log; it is needed beside the database");
    }
}

/// Stores nothing but as a batch would be stored, so that it fails where that does.
fn check(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO batches VALUES (?, 'check', x'', x'', ?, '')")?
        .execute(params![NOBODY, crate::time::now()])
        .map(drop)
}

/// Commits what has waited, and answers it. `failing` is since when nothing could be written.
fn commit_group(db: &mut Connection, group: Vec<Waiting>, failing: &mut Option<Instant>) {
    let mut answers = commit(db, &group, false);
    if answers.as_ref().is_err_and(is_of_one_batch) {
        answers = commit(db, &group, true);
    }
    match answers {
        Ok(answers) => {
            *failing = None;
            for (waiting, answer) in group.into_iter().zip(answers) {
                let _ = waiting.reply.send(answer);
            }
        }
        Err(error) => {
            tracing::error!(%error, batches = group.len(), "cannot commit");
            let why = error.to_string();
            // As long again as it has been so: a disk that has been full for a minute will be for another.
            let wait = failing.get_or_insert_with(Instant::now).elapsed().clamp(FIRST_WAIT, LONGEST_WAIT);
            for waiting in group {
                let error = Error::unavailable("The store cannot be written", wait);
                let _ = waiting.reply.send(Err(error.because(why.clone())));
            }
        }
    }
}

/// Commits batches in one transaction. `apart`, those that cannot be written do the others no harm, which takes
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
        // Dropped, the savepoint takes back what was written of it.
        Err(error) if is_of_one_batch(&error) => {
            tracing::error!(%error, batch_id = %batch.batch_id, "cannot commit this batch");
            Ok(vec![Err(Error::unavailable("The batch cannot be written", LONGEST_WAIT).because(error))])
        }
        Err(error) => Err(error),
    }
}

/// Whether others may be written though this one could not: neither the disk nor the database as a whole is to blame.
fn is_of_one_batch(error: &rusqlite::Error) -> bool {
    use ErrorCode::{ConstraintViolation, ParameterOutOfRange, TooBig, TypeMismatch, Unknown};
    error
        .sqlite_error_code()
        .is_none_or(|code| matches!(code, ConstraintViolation | ParameterOutOfRange | TooBig | TypeMismatch | Unknown))
}

/// Stores and counts the batches that are not known. The inner errors are about one batch alone.
fn insert<'a>(
    db: &Connection,
    batches: impl Iterator<Item = (&'a CheckedBatch, Keep)>,
) -> rusqlite::Result<Vec<Result<Receipt, Error>>> {
    let (mut fresh, mut answers) = (Vec::new(), Vec::new());
    for (batch, keep) in batches {
        answers.push(match remember(db, batch)? {
            Known::Fresh(receipt) => {
                fresh.push((batch, keep));
                Ok(receipt)
            }
            Known::Before(answer) => answer,
        });
    }
    store(db, &fresh)?;
    Ok(answers)
}

/// Whether a batch had been committed before.
enum Known {
    Fresh(Receipt),
    /// The error is about this batch alone.
    Before(Result<Receipt, Error>),
}

fn remember(db: &Connection, batch: &CheckedBatch) -> rusqlite::Result<Known> {
    let receipt = batch.receipt();
    let json =
        serde_json::to_string(&receipt).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let id = batch.batch_id.uuid();
    let fresh = db
        .prepare_cached(
            "INSERT OR IGNORE INTO batches (username, key, batch_id, fingerprint, received_at, receipt)
             VALUES (?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            batch.username,
            batch.key.as_str(),
            id.as_bytes(),
            batch.fingerprint.0,
            batch.received_at,
            json
        ])?;
    if fresh == 0 {
        let found = find(db, batch)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        return Ok(Known::Before(found.receipt(batch)));
    }
    Ok(Known::Fresh(receipt))
}

/// Stores and counts batches that are new. All at once, because many lines fit into one row, and what is counted
/// by the same key is written once.
fn store(db: &Connection, batches: &[(&CheckedBatch, Keep)]) -> rusqlite::Result<()> {
    let but = |not: Keep| batches.iter().filter(move |(_, keep)| *keep != not).map(|(batch, _)| *batch);
    hold(db, but(Keep::Counts))?;
    count(db, but(Keep::Lines))
}

fn hold<'a>(db: &Connection, batches: impl Iterator<Item = &'a CheckedBatch>) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached("INSERT INTO held (username, event_type, hour, lines) VALUES (?, ?, ?, ?)")?;
    let mut rows = BTreeMap::<_, String>::new();
    for batch in batches {
        let hour = batch.received_at / crate::store::query::HOUR;
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
         ON CONFLICT DO UPDATE SET count = count + excluded.count",
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
    for ((username, event_type, key), n) in totals {
        total.execute(params![username, event_type, key, n])?;
    }
    Ok(())
}

/// What is known of a batch.
struct Found {
    fingerprint: Vec<u8>,
    receipt: Receipt,
}

impl Found {
    /// The receipt again, if it is the same batch.
    fn receipt(self, batch: &CheckedBatch) -> Result<Receipt, Error> {
        batch.check_same(&self.fingerprint)?;
        Ok(Receipt { duplicate: true, ..self.receipt })
    }
}

fn find(db: &Connection, batch: &CheckedBatch) -> rusqlite::Result<Option<Found>> {
    db.prepare_cached("SELECT fingerprint, receipt FROM batches WHERE username = ? AND key = ? AND batch_id = ?")?
        .query_row(params![batch.username, batch.key.as_str(), batch.batch_id.uuid().as_bytes()], |row| {
            let receipt: String = row.get(1)?;
            let receipt = serde_json::from_str(&receipt)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Text, error.into()))?;
            Ok(Found { fingerprint: row.get(0)?, receipt })
        })
        .optional()
}

/// Moves what an earlier life has left behind, first of all a move that it had begun.
fn catch_up(db: &mut Connection, raw: &Path) -> Result<(), Error> {
    while let Some(roll) = begin_roll(db).map_err(unavailable)? {
        lake::write_files(db, raw, &roll)?;
        end_roll(db, roll.upto).map_err(unavailable)?;
    }
    Ok(())
}

/// Decides which lines to move. One move that was begun and not ended is taken up again, the same.
fn begin_roll(db: &mut Connection) -> rusqlite::Result<Option<Roll>> {
    // At once the writer: who reads first is refused if `retention` writes in between.
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

fn end_roll(db: &mut Connection, upto: i64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    transaction.execute("DELETE FROM held WHERE seq <= ?", [upto])?;
    transaction.execute("DELETE FROM roll", [])?;
    transaction.commit()
}

/// The roller: at intervals, and once more at the end.
fn roll_on(
    jobs: &mpsc::Sender<Job>,
    db: &Connection,
    raw: &Path,
    every: Duration,
    signals: &std::sync::mpsc::Receiver<Signal>,
) {
    while let Ok(Signal::Roll) | Err(RecvTimeoutError::Timeout) = signals.recv_timeout(every) {
        if let Err(error) = lake::roll(jobs, db, raw) {
            tracing::error!(cause = %crate::error::chain(&error), "cannot move lines to the lake; they are kept");
        }
    }
    if let Err(error) = lake::roll(jobs, db, raw) {
        tracing::error!(cause = %crate::error::chain(&error), "cannot move the last lines to the lake; they are kept");
    }
}
