//! A data directory as it is at one moment, though a collector may be running: a snapshot of the database, and the files
//! that were sealed when it was made. Files are then only added, since no two of these commands work on a data directory
//! at once.
//!
//! Files are read line by line, and what has been read is kept in temporary tables on disk, so that memory does not grow
//! with the lake.

use crate::Error;
use crate::ingest::checked_batch::Fingerprint;
use crate::ingest::stored_event::StoredEvent;
use crate::maintenance::reconcile::{self as compare, failed, read_line};
use crate::store::embedded::{database, lake};
use crate::store::query::HOUR;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use tallymark::EventId;

/// How often a snapshot is tried while files are being sealed.
const TRIES: usize = 20;

const TABLES: &str = "
    CREATE TEMP TABLE files (id INTEGER PRIMARY KEY, path TEXT NOT NULL, name TEXT);
    CREATE TEMP TABLE seen (
        username TEXT NOT NULL, event BLOB NOT NULL, file INTEGER, PRIMARY KEY (username, event)
    ) WITHOUT ROWID;
";

/// All files whose lines are stored, each once.
pub(super) const SEALED: &str = "SELECT id, path FROM files
    WHERE name NOT NULL AND name NOT IN (SELECT file FROM main.pruning) ORDER BY id";

/// A data directory that is being read.
pub(crate) struct LakeSnapshot {
    pub(crate) db: Connection,
    pub(crate) raw: PathBuf,
    // One command at a time, so that no file is removed while another reads it.
    _lock: File,
}

impl LakeSnapshot {
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        Self::of(database::open(folder)?, folder)
    }

    pub(super) fn of(db: Connection, folder: &Path) -> Result<Self, Error> {
        let cannot = |what: &str| Error::config(format!("{what} the data directory {}", folder.display()));
        let lock = File::create(folder.join("maintenance.lock"))
            .map_err(|error| cannot("cannot write in").with_source(error))?;
        lock.try_lock()
            .map_err(|error| cannot("another verify, reconcile or prune is working on").with_source(error))?;
        db.execute_batch(compare::TABLES).and_then(|()| db.execute_batch(TABLES)).map_err(failed)?;
        Ok(Self { db, raw: folder.join("raw"), _lock: lock })
    }

    /// Begins a transaction in which the database and the list of files are of one moment.
    pub(crate) fn begin(&self, behavior: TransactionBehavior) -> Result<Transaction<'_>, Error> {
        for _ in 0..TRIES {
            self.list()?;
            let transaction = Transaction::new_unchecked(&self.db, behavior).map_err(failed)?;
            // The first look makes the snapshot.
            transaction.query_row("SELECT count(*) FROM main.roll", [], |_| Ok(())).map_err(failed)?;
            let mut sealed = 0;
            lake::walk(&self.raw, &mut |path| {
                sealed += u64::from(lake::sealed_name(path).is_some());
                Ok(())
            })
            .map_err(unwalkable)?;
            if sealed == self.count("files WHERE name NOT NULL")? {
                return Ok(transaction);
            }
        }
        Err(Error::config("files are sealed faster than they can be listed; stop the collector first"))
    }

    /// Makes the list of files.
    pub(crate) fn list(&self) -> Result<(), Error> {
        let transaction = self.db.unchecked_transaction().map_err(failed)?;
        transaction.execute("DELETE FROM files", []).map_err(failed)?;
        let mut insert = transaction.prepare("INSERT INTO files (path, name) VALUES (?, ?)").map_err(failed)?;
        lake::walk(&self.raw, &mut |path| {
            insert.execute(params![path, lake::sealed_name(path)]).map(|_| ()).map_err(io::Error::other)
        })
        .map_err(unwalkable)?;
        drop(insert);
        transaction.commit().map_err(failed)
    }

    pub(crate) fn each_file(
        &self,
        query: &str,
        mut take: impl FnMut(i64, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut files = self.db.prepare(query).map_err(failed)?;
        let mut rows = files.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (id, path): (i64, String) = row.get(0).and_then(|id| Ok((id, row.get(1)?))).map_err(failed)?;
            take(id, &path)?;
        }
        Ok(())
    }

    /// Counts the lines of these files, each event once. Reports what cannot be read, and with `wrong_twice` also events
    /// that are stored twice, with the other file.
    pub(crate) fn read_files(
        &self,
        query: &str,
        wrong: &mut dyn FnMut(String),
        wrong_twice: bool,
    ) -> Result<(), Error> {
        self.each_file(query, |id, path| {
            let (mut twice, mut first) = (0, None);
            let read = lake::read_lines(&self.raw.join(path), &mut |number, line| {
                match self.take(Some(id), Some(path), line)? {
                    Taken::Fresh => {}
                    Taken::Twice(event) => {
                        twice += 1;
                        first.get_or_insert(event);
                    }
                    Taken::Unreadable(why) => wrong(format!("{path}: line {number}: {why}")),
                }
                Ok(())
            })?;
            if let Err(why) = read {
                wrong(format!("{path}: {why}"));
            }
            if let Some((username, event, event_id)) = first.filter(|_| wrong_twice) {
                let other: String = self
                    .db
                    .query_row(
                        "SELECT path FROM seen JOIN files ON id = file WHERE username = ? AND event = ?",
                        params![username, event],
                        |row| row.get(0),
                    )
                    .map_err(failed)?;
                wrong(format!("{path}: {twice} events are stored twice, such as {event_id}, also in {other}"));
            }
            Ok(())
        })
    }

    /// The same for the lines in the database that wait for the lake.
    pub(super) fn read_held(&self, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
        let mut held = self.db.prepare("SELECT seq, lines FROM main.held ORDER BY seq").map_err(failed)?;
        let mut rows = held.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (seq, lines): (i64, String) = row.get(0).and_then(|seq| Ok((seq, row.get(1)?))).map_err(failed)?;
            for line in lines.lines() {
                if let Taken::Unreadable(why) = self.take(None, None, line.as_bytes())? {
                    wrong(format!("the database: a line that waits for the lake, number {seq}: {why}"));
                }
            }
        }
        Ok(())
    }

    /// Counts a line, unless its event was counted before.
    fn take(&self, file: Option<i64>, path: Option<&str>, line: &[u8]) -> Result<Taken, Error> {
        let (line, counter_key) = match read_line(line) {
            Ok(read) => read,
            Err(why) => return Ok(Taken::Unreadable(why)),
        };
        let place = format!("username={}/event_type={}/", line.username, line.event_type);
        if path.is_some_and(|path| !path.starts_with(&place)) {
            return Ok(Taken::Unreadable(format!("it belongs below {place}")));
        }
        let event = identity(&line);
        let fresh = self
            .db
            .prepare_cached("INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .and_then(|mut insert| insert.execute(params![line.username, event, file]))
            .map_err(failed)?;
        if fresh == 0 {
            return Ok(Taken::Twice((line.username.into_owned(), event, line.event_id)));
        }
        self.db
            .prepare_cached(
                "INSERT INTO stored (username, event_type, key, hour, count) VALUES (?, ?, ?, ?, 1)
                 ON CONFLICT DO UPDATE SET count = count + 1",
            )
            .and_then(|mut add| {
                add.execute(params![line.username, line.event_type, counter_key, line.occurred_at / HOUR])
            })
            .map_err(failed)?;
        Ok(Taken::Fresh)
    }

    pub(super) fn count(&self, what: &str) -> Result<u64, Error> {
        self.db.query_row(&format!("SELECT count(*) FROM temp.{what}"), [], |row| row.get(0)).map_err(failed)
    }
}

/// What became of a line.
enum Taken {
    Fresh,
    Twice((String, [u8; 16], EventId)),
    Unreadable(String),
}

/// What is stored once and counted once: an event of a batch.
///
/// An `event_id` alone is not enough. Clients choose it, and anybody with the write key could send the id of another
/// event, or one id in two batches, which both count.
fn identity(line: &StoredEvent<'_>) -> [u8; 16] {
    let (batch_id, event_id) = (line.batch_id.uuid(), line.event_id.uuid());
    Fingerprint::of(&[line.scope.as_str().as_bytes(), batch_id.as_bytes(), event_id.as_bytes()]).0
}

fn unwalkable(error: io::Error) -> Error {
    Error::config("cannot list the files of the lake").with_source(error)
}
