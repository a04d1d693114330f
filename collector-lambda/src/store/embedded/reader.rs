//! Reads of the database: several read-only connections, and no query that outlives its time limit or its caller.

use crate::Error;
use rusqlite::{Connection, ErrorCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Connections, and so queries at once.
pub(crate) const CONNECTIONS: usize = 4;
/// Queries that may wait for a connection. Beyond that the answer is 503.
const WAITING: usize = 64;
/// How long a query may wait for a connection.
const WAIT: Duration = Duration::from_secs(2);
/// How long a query may run.
const LIMIT: Duration = Duration::from_secs(2);
/// When a client should retry a query that was refused or interrupted.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// SQLite asks whether to go on after so many steps of its virtual machine: some tens of microseconds.
const STEPS: i32 = 1_000;

/// The connections that read.
#[derive(Debug)]
pub(crate) struct Readers {
    /// One for each permit that is not taken.
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    waiting: Semaphore,
    limit: Duration,
}

impl Readers {
    pub(crate) fn new(connections: Vec<Connection>) -> Self {
        let permits = Arc::new(Semaphore::new(connections.len()));
        Self { idle: Mutex::new(connections), permits, waiting: Semaphore::new(WAITING), limit: LIMIT }
    }

    /// Runs a query on a connection of its own. It is interrupted when it has taken too long, and when this future is
    /// dropped because the caller has gone.
    pub(crate) async fn read<T, F>(self: &Arc<Self>, query: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let busy = || Error::unavailable("Too many queries are running", RETRY_AFTER);
        let waits = self.waiting.try_acquire().map_err(|_| busy())?;
        let permit = tokio::time::timeout(WAIT, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or_else(busy)?;
        drop(waits);
        let cancelled = Cancel(Arc::new(AtomicBool::new(false)));
        let is_cancelled = Arc::clone(&cancelled.0);
        let readers = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            // Declared first, so that it is given back after the connection.
            let _permit = permit;
            let mut connection = Borrowed::take(&readers).ok_or_else(busy)?;
            let limit = readers.limit;
            connection.run(limit, is_cancelled, query).map_err(|error| match error.sqlite_error_code() {
                Some(ErrorCode::OperationInterrupted) => Error::unavailable(
                    format!("The query took longer than {} s and was stopped; ask for less", limit.as_secs()),
                    RETRY_AFTER,
                ),
                _ => Error::unavailable("The counters cannot be read", RETRY_AFTER).with_source(error),
            })
        });
        let result = task.await.map_err(|error| Error::config("a query has panicked").with_source(error))?;
        drop(cancelled);
        result
    }
}

/// Interrupts the query when it is dropped.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection that is given back when it is dropped, also by a panic.
struct Borrowed<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl<'a> Borrowed<'a> {
    fn take(readers: &'a Readers) -> Option<Self> {
        let connection = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Self { readers, connection: Some(connection) })
    }

    fn run<T>(
        &mut self,
        limit: Duration,
        cancelled: Arc<AtomicBool>,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let Some(connection) = &mut self.connection else { return Err(rusqlite::Error::InvalidQuery) };
        let started = Instant::now();
        let stop = move || cancelled.load(Ordering::Relaxed) || started.elapsed() > limit;
        connection.progress_handler(STEPS, Some(stop))?;
        query(connection)
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut idle = self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.connection.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDLESS: &str = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";

    fn readers(limit: Duration) -> Arc<Readers> {
        let connections = (0..CONNECTIONS).map(|_| Connection::open_in_memory().unwrap());
        Arc::new(Readers { limit, ..Readers::new(connections.collect()) })
    }

    async fn run(readers: Arc<Readers>, sql: &'static str) -> Result<u64, Error> {
        readers.read(move |db| db.query_row(sql, [], |row| row.get(0))).await
    }

    #[tokio::test]
    async fn a_query_that_takes_too_long_is_interrupted() {
        let readers = readers(Duration::from_millis(20));
        let error = run(Arc::clone(&readers), ENDLESS).await.unwrap_err();
        assert!(error.is_unavailable() && error.to_string().contains("took longer"), "{error}");
        assert_eq!(error.retry_after(), Some(RETRY_AFTER));
        assert_eq!(run(readers, "SELECT 7").await.unwrap(), 7, "the connection is usable again");
    }

    #[tokio::test]
    async fn a_query_whose_caller_has_gone_is_interrupted() {
        let readers = readers(Duration::MAX);
        let endless: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(run(Arc::clone(&readers), ENDLESS))).collect();
        while readers.permits.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        endless.iter().for_each(tokio::task::JoinHandle::abort);
        // They would run for ever, and this would find no connection.
        assert_eq!(run(readers, "SELECT 7").await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_many_queries_wait() {
        let readers = readers(Duration::MAX);
        let _all = readers.permits.acquire_many(CONNECTIONS as u32).await.unwrap();
        let waiting: Vec<_> = (0..WAITING).map(|_| tokio::spawn(run(Arc::clone(&readers), "SELECT 7"))).collect();
        while readers.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(run(Arc::clone(&readers), "SELECT 7").await.unwrap_err().is_unavailable(), "refused at once");
        for query in waiting {
            assert!(query.await.unwrap().unwrap_err().is_unavailable(), "refused after its time");
        }
        assert_eq!(readers.waiting.available_permits(), WAITING);
    }
}
