//! The embedded store: one SQLite database for markers, receipts, counters, and lines that wait for the directory lake.
//!
//! - `writer` is the one thread that changes the database.
//! - `roller` is the thread that moves lines from the database into the lake's files.
//! - `lake` is those files, and `database` the file of the database.
//!
//! - `reader` has the connections that read.

pub(crate) mod database;
pub(crate) mod lake;
mod reader;
mod roller;
mod writer;

pub use crate::store::embedded::writer::Keep;

use crate::Error;
use crate::error::LONGEST_WAIT;
use crate::ingest::checked_batch::CheckedBatch;
use crate::store::embedded::database::Connections;
use crate::store::embedded::reader::Readers;
use crate::store::embedded::roller::{Roller, Signal};
use crate::store::embedded::writer::{Claim, CommitLatency, Job, Waiting, Writer};
use crate::store::query::{Hours, Query};
use rusqlite::{Connection, OptionalExtension, params};
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tallymark::Receipt;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Batches that may wait for the writer, and how many KiB of them. Beyond that the answer is 503.
const WAITING: usize = 1024;
const WAITING_KIB: usize = 64 * 1024;
/// How long a batch may wait for the writer. One that would wait longer is refused; one that does is withdrawn, so that
/// nothing is stored of what is answered 503.
const PATIENCE: Duration = Duration::from_secs(10);

/// The embedded store. Clones share it.
#[derive(Clone, Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    jobs: mpsc::Sender<Job>,
    /// A permit for each KiB that waits.
    room: Arc<Semaphore>,
    latency: Arc<CommitLatency>,
    readers: Arc<Readers>,
    threads: Mutex<Threads>,
    signals: std::sync::mpsc::Sender<Signal>,
    /// The name of a thread that has panicked.
    failed: watch::Receiver<Option<&'static str>>,
}

/// The threads, until they are joined. Each holds the lock of the data directory.
#[derive(Debug)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    roller: Option<JoinHandle<()>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The roller ends, and when it is gone nobody is left who could ask the writer for anything.
        let _ = self.signals.send(Signal::Stop);
    }
}

impl Embedded {
    /// Opens the store in `folder`, which is created if there is none, and finishes what a crash has interrupted.
    /// Lines wait at most `roll` before they are in the lake's files.
    ///
    /// The folder is locked until [`close`](Self::close) has returned. A store that is dropped instead moves its lines
    /// too, and unlocks the folder after that.
    pub fn open(folder: &Path, roll: Duration) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(|error| {
            Error::config(format!("cannot make the data directory {}", folder.display())).with_source(error)
        })?;
        let lock = Arc::new(database::lock(folder)?);

        let Connections { mut writer, roller, readers } = database::open_or_make(folder, reader::CONNECTIONS)?;

        let raw = folder.join("raw");
        if let Err(error) = roller::catch_up(&mut writer, &raw) {
            tracing::error!(cause = %crate::error::chain(&error), "cannot move lines to the lake; they are kept");
        }

        let (jobs, waiting) = mpsc::channel(WAITING);
        let (signals, received) = std::sync::mpsc::channel();
        let (failure, failed) = watch::channel(None);
        let failure = Arc::new(failure);
        let latency = Arc::new(CommitLatency::default());
        let spawn = |name, work| spawn(name, Arc::clone(&lock), Arc::clone(&failure), work);
        let threads = Threads {
            writer: Some(spawn("tallymark-writer", {
                let signals = signals.clone();
                let signal = move || drop(signals.send(Signal::Roll));
                let writer = Writer::new(writer, Arc::clone(&latency), signal);
                Box::new(move || writer.run(waiting))
            })?),
            roller: Some(spawn("tallymark-roller", {
                let roller = Roller { jobs: jobs.clone(), db: roller, raw };
                Box::new(move || roller.run(roll, &received))
            })?),
        };
        let (readers, threads) = (Arc::new(Readers::new(readers)), Mutex::new(threads));
        let room = Arc::new(Semaphore::new(WAITING_KIB));
        Ok(Self {
            shared: Arc::new(Shared { folder: folder.into(), jobs, room, latency, readers, threads, signals, failed }),
        })
    }

    /// Commits what is to be kept of the batch. When this returns, it is on disk. A batch that is known
    /// changes nothing and gets its first receipt again. When it fails as unavailable, nothing is stored.
    pub async fn commit(&self, batch: CheckedBatch, keep: Keep) -> Result<Receipt, Error> {
        if self.wait() > PATIENCE {
            return Err(self.busy());
        }
        let bytes = batch.events.iter().map(|event| event.line.len() + event.counter_key.len()).sum::<usize>();
        let room = Arc::clone(&self.shared.room).try_acquire_many_owned(1 + (bytes / 1024) as u32);
        let room = room.map_err(|_| self.busy())?;
        let (reply, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let job = Job::Commit(Waiting { batch, keep, reply, claim: claim.clone(), _room: room });
        self.shared.jobs.try_send(job).map_err(|_| self.busy())?;
        let answered = match tokio::time::timeout(PATIENCE, &mut answer).await {
            Err(_) if claim.take() => return Err(self.busy()),
            // The writer has begun, and only it can tell how that ends.
            Err(_) => answer.await,
            Ok(answered) => answered,
        };
        answered.unwrap_or_else(|_| Err(self.busy()))
    }

    /// Whether batches can be stored now: tries it. Whether counters can be read does not matter here, or slow queries
    /// would keep events away.
    pub async fn ready(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.shared.jobs.try_send(Job::Check(reply)).map_err(|_| self.busy())?;
        answer.await.unwrap_or_else(|_| Err(self.busy()))
    }

    /// How many batches wait for the writer, and the bytes held for all that are not answered yet.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let batches = self.shared.jobs.max_capacity() - self.shared.jobs.capacity();
        (batches, (WAITING_KIB - self.shared.room.available_permits()) * 1024)
    }

    /// The size of the database's log in bytes.
    pub(crate) fn log_bytes(&self) -> u64 {
        database::log_size(&self.shared.folder)
    }

    /// Transactions so far.
    pub(crate) fn transactions(&self) -> u64 {
        self.shared.latency.transactions()
    }

    /// How long a batch that arrives now would wait.
    fn wait(&self) -> Duration {
        let waiting = self.shared.jobs.max_capacity() - self.shared.jobs.capacity();
        self.shared.latency.wait(waiting)
    }

    fn busy(&self) -> Error {
        Error::unavailable("The store is busy", self.wait().min(LONGEST_WAIT))
    }

    /// The receipt of a batch that was committed before.
    pub async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        let batch = batch.without_events();
        self.read(move |db| writer::known(db, &batch)).await?.transpose()
    }

    /// How often a counter was counted.
    pub async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        let Query { username, event_type, counter_key } = query;
        self.read(move |db| match hours {
            None => db
                .prepare_cached("SELECT count FROM totals WHERE username = ? AND event_type = ? AND key = ?")?
                .query_row(params![username, event_type, counter_key], |row| row.get(0))
                .optional()
                .map(Option::unwrap_or_default),
            Some(hours) => db
                .prepare_cached(
                    "SELECT coalesce(sum(count), 0) FROM hours
                     WHERE username = ? AND event_type = ? AND key = ? AND hour >= ? AND hour < ?",
                )?
                .query_row(params![username, event_type, counter_key, hours.start, hours.end], |row| row.get(0)),
        })
        .await
    }

    /// The counts of each hour that has any.
    pub async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        let Query { username, event_type, counter_key } = query;
        self.read(move |db| {
            db.prepare_cached(
                "SELECT hour, count FROM hours
                 WHERE username = ? AND event_type = ? AND key = ? AND hour >= ? AND hour < ? ORDER BY hour",
            )?
            .query_map(params![username, event_type, counter_key, hours.start, hours.end], |row| {
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
                "SELECT key, count FROM leaders
                 WHERE username = ? AND event_type = ? ORDER BY count DESC, key LIMIT ?",
            )?
            .query_map(params![username, event_type, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        })
        .await
    }

    /// Moves every line to the lake's files, ends both threads and unlocks the data directory. Batches that come later
    /// are refused as busy.
    pub async fn close(&self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || {
            let mut threads = shared.threads.lock().unwrap_or_else(PoisonError::into_inner);
            // The roller first: it still needs the writer. One that panicked has been reported already.
            let _ = shared.signals.send(Signal::Stop);
            let _ = threads.roller.take().map(JoinHandle::join);
            let _ = shared.jobs.blocking_send(Job::Stop);
            let _ = threads.writer.take().map(JoinHandle::join);
        })
        .await
        .map_err(|error| Error::config("the store did not close cleanly").with_source(error))
    }

    /// Resolves if one of the store's threads panics, and never otherwise. The store is of no use then: the process
    /// should end, so that its supervisor restarts it. Every batch that was answered is on disk.
    pub async fn failed(&self) -> Error {
        let mut failed = self.shared.failed.clone();
        let name = match failed.wait_for(Option::is_some).await {
            Ok(name) => name.unwrap_or_default(),
            // Both threads have ended without a panic.
            Err(_) => std::future::pending().await,
        };
        Error::internal(format!("the thread {name} has panicked"))
    }

    async fn read<T, F>(&self, query: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.shared.readers.read(query).await
    }
}

/// Starts a thread that holds the lock of the data directory, and reports its panic.
fn spawn(
    name: &'static str,
    lock: Arc<File>,
    failure: Arc<watch::Sender<Option<&'static str>>>,
    work: Box<dyn FnOnce() + Send>,
) -> Result<JoinHandle<()>, Error> {
    let work = move || {
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!(thread = name, "a thread has panicked; the store cannot be used any more");
            failure.send_replace(Some(name));
        }
        drop(lock);
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|error| Error::config("cannot start a thread").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::checked_batch::{Accepted, Fingerprint};
    use crate::sites::KeyScope;
    use std::collections::BTreeMap;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("tallymark-{:016x}", rand::random::<u64>()))
    }

    fn batch(number: u8) -> CheckedBatch {
        let event =
            Accepted { index: 0, event_type: "custom", counter_key: "k".into(), hour: 0, line: number.to_string() };
        CheckedBatch {
            username: "shop".into(),
            scope: KeyScope::Secret,
            repeatable: true,
            sdk: crate::ingest::checked_batch::Sdk::None,
            fingerprint: Fingerprint([number; 16]),
            batch_id: uuid::Uuid::from_bytes([number; 16]).into(),
            received_at: crate::time::now(),
            events: vec![event],
            rejected: Vec::new(),
            retry: Vec::new(),
            lost: BTreeMap::new(),
        }
    }

    async fn commit(embedded: &Embedded, number: u8) -> Receipt {
        embedded.commit(batch(number), Keep::LinesAndCounts).await.unwrap()
    }

    #[tokio::test]
    async fn a_store_that_is_dropped_moves_its_lines_and_then_unlocks_its_folder() {
        let folder = folder();
        let embedded = Embedded::open(&folder, Duration::from_secs(3600)).unwrap();
        commit(&embedded, 1).await;
        assert!(database::lock(&folder).is_err());
        drop(embedded);
        // Waits for the threads.
        File::open(folder.join("lock")).unwrap().lock().unwrap();
        assert!(lake::has_files(&folder.join("raw")).unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_database_of_an_older_version_is_migrated_and_knows_its_batches() {
        let folder = folder();
        let embedded = Embedded::open(&folder, Duration::from_secs(3600)).unwrap();
        commit(&embedded, 1).await;
        embedded.close().await.unwrap();
        drop(embedded);
        let db = Connection::open(folder.join("tallymark.db")).unwrap();
        db.execute_batch(database::TO_VERSION_2).unwrap();
        drop(db);
        let embedded = Embedded::open(&folder, Duration::from_secs(3600)).unwrap();
        assert!(commit(&embedded, 1).await.duplicate);
        assert!(!commit(&embedded, 2).await.duplicate);
        embedded.close().await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_reported() {
        let folder = folder();
        std::fs::create_dir_all(&folder).unwrap();
        let (failure, mut failed) = watch::channel(None);
        let lock = Arc::new(database::lock(&folder).unwrap());
        let thread = spawn("tallymark-test", lock, Arc::new(failure), Box::new(|| panic!("as it should")));
        thread.unwrap().join().unwrap();
        assert_eq!(*failed.wait_for(Option::is_some).await.unwrap(), Some("tallymark-test"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
