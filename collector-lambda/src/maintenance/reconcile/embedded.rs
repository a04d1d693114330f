//! `verify` and `reconcile`: whether a data directory is sound, and whether its counters are what is stored.
//!
//! Files are read line by line, and what has been seen is kept in temporary tables on disk, so that memory does
//! not grow with the lake. What is compared is one moment, though a collector may be running: a snapshot of the
//! database, and the files that were sealed when it was made. Files are then only added, since no two of these
//! commands and [`crate::maintenance::prune`] work on a data directory at once.

use crate::Error;
use crate::maintenance::reconcile::{self as compare, failed, read_line};
use crate::store::embedded::{database, lake};
use crate::store::query::HOUR;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use tallymark::EventId;

/// How often a snapshot is tried while files are being sealed.
const TRIES: usize = 20;

const TABLES: &str = "
    CREATE TEMP TABLE files (id INTEGER PRIMARY KEY, path TEXT NOT NULL, name TEXT);
    CREATE TEMP TABLE seen (
        username TEXT NOT NULL, event_id BLOB NOT NULL, file INTEGER, PRIMARY KEY (username, event_id)
    ) WITHOUT ROWID;
";

/// What is stored, besides what was read: what has been removed by age, and what clients say they have lost,
/// which is in no line, so that of this only the sums can be wrong.
const UNREAD: &str = "
    INSERT INTO stored (username, event_type, key, hour, count) SELECT * FROM main.pruned WHERE true
        ON CONFLICT DO UPDATE SET count = count + excluded.count;
    INSERT INTO stored (username, event_type, key, hour, count)
        SELECT * FROM main.hours WHERE event_type = 'lost' AND key <> '';
";

const REPAIR: &str = "
    DELETE FROM main.totals WHERE (username, event_type, key) IN
        (SELECT username, event_type, key FROM differences WHERE hour IS NULL);
    INSERT INTO main.totals SELECT username, event_type, key, stored FROM differences
        WHERE hour IS NULL AND stored > 0;
    DELETE FROM main.hours WHERE (username, event_type, key, hour) IN
        (SELECT username, event_type, key, hour FROM differences WHERE hour IS NOT NULL);
    INSERT INTO main.hours SELECT username, event_type, key, hour, stored FROM differences
        WHERE hour IS NOT NULL AND stored > 0;
";

/// Says what is wrong with the database and the lake's files. Returns how many things are.
pub(crate) fn verify(folder: &Path, say: &dyn Fn(&str)) -> Result<u64, Error> {
    let census = Census::open(folder)?;
    // While a collector is running, a move to the lake may be under way.
    let running = database::lock(folder).is_err();
    let mut found = 0;
    let mut wrong = |what: String| {
        found += 1;
        say(&what);
    };
    let transaction = census.snapshot(TransactionBehavior::Deferred)?;
    let check = |row: &Row<'_>| row.get::<_, String>(0);
    for line in
        transaction.prepare("PRAGMA main.integrity_check").map_err(failed)?.query_map([], check).map_err(failed)?
    {
        let line = line.map_err(failed)?;
        if line != "ok" {
            wrong(format!("the database: {line}"));
        }
    }
    if !running {
        let begun = transaction.query_row("SELECT name FROM main.roll", [], |row| row.get::<_, String>(0));
        if let Some(name) = begun.optional().map_err(failed)? {
            wrong(format!("a move to the lake was cut off: {name}; `serve` carries it through"));
        }
    }
    if transaction.query_row("SELECT count(*) FROM main.pruning", [], |row| row.get::<_, u64>(0)).map_err(failed)? > 0 {
        wrong("the removal of old files was cut off; `retention` carries it through".into());
    }
    census.each_file("SELECT id, path FROM files WHERE name IS NULL ORDER BY id", |_, path| {
        if !(running && path.ends_with(".open")) {
            wrong(format!("{path}: not a sealed file"));
        }
        Ok(())
    })?;
    census.read_files(SEALED, &mut wrong, true)?;
    drop(transaction);
    say(&format!("{} events in {} sealed files", census.count("seen")?, census.count("files WHERE name NOT NULL")?));
    Ok(found)
}

/// Names each counter that is not what is stored, and each line that cannot be read. Returns how many there are
/// that have not been repaired.
pub(crate) fn reconcile(folder: &Path, repair: bool, say: &dyn Fn(&str)) -> Result<u64, Error> {
    let _lock = repair.then(|| database::lock(folder)).transpose()?;
    let is_lost =
        database::is_missing(folder) && !database::log_is_left(folder) && lake::has_files(&folder.join("raw"))?;
    if repair && is_lost {
        return rebuild(folder, say);
    }
    compare(&Census::open(folder)?, repair, say)
}

/// Makes a database that counts what is in the lake, for a store that has lost its own.
fn rebuild(folder: &Path, say: &dyn Fn(&str)) -> Result<u64, Error> {
    say("there is no database, so a new one is made. What only the old one knew is lost: which batches have been \
         received, so that one that comes again is counted again; lines on their way to the lake; the counts of what \
         `retention` has removed, and of what clients have lost");
    let census = Census::of(database::begin_anew(folder)?, folder)?;
    if compare(&census, true, say)? > 0 {
        return Err(Error::config("not made: what cannot be read would not be counted"));
    }
    census.db.close().map_err(|(_, error)| failed(error))?;
    database::put_in_place(folder)?;
    Ok(0)
}

fn compare(census: &Census, repair: bool, say: &dyn Fn(&str)) -> Result<u64, Error> {
    let behavior = if repair { TransactionBehavior::Immediate } else { TransactionBehavior::Deferred };
    let transaction = census.snapshot(behavior)?;
    let mut unreadable = 0;
    let mut wrong = |what: String| {
        unreadable += 1;
        say(&what);
    };
    census.read_files(SEALED, &mut wrong, false)?;
    census.read_held(&mut wrong)?;
    let events = census.count("seen")?;
    transaction.execute_batch(UNREAD).map_err(failed)?;
    compare::compare(&transaction)?;
    let found = compare::say_differences(&transaction, say)?;
    let pruned = transaction
        .query_row("SELECT coalesce(sum(count), 0) FROM main.pruned", [], |row| row.get::<_, u64>(0))
        .map_err(failed)?;
    say(&format!("{events} events stored, {pruned} removed by age: {found} counters differ"));
    if !repair || found == 0 {
        return Ok(found + unreadable);
    }
    if unreadable > 0 {
        return Err(Error::config("not repaired: what cannot be read would not be counted any more"));
    }
    if events + pruned == 0 {
        return Err(Error::config("not repaired: nothing is stored here, so the events are somewhere else"));
    }
    transaction.execute_batch(REPAIR).and_then(|()| transaction.commit()).map_err(failed)?;
    say("repaired");
    Ok(0)
}

/// All files whose lines are stored, each once.
const SEALED: &str = "SELECT id, path FROM files
    WHERE name NOT NULL AND name NOT IN (SELECT file FROM main.pruning) ORDER BY id";

/// A data directory that is being read.
pub(crate) struct Census {
    pub(crate) db: Connection,
    pub(crate) raw: PathBuf,
    // One at a time, so that no file goes while it is read.
    _lock: File,
}

impl Census {
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        Self::of(database::open(folder)?, folder)
    }

    fn of(db: Connection, folder: &Path) -> Result<Self, Error> {
        let cannot = |what: &str| Error::config(format!("{what} the data directory {}", folder.display()));
        let lock = File::create(folder.join("maintenance.lock"))
            .map_err(|error| cannot("cannot write in").with_source(error))?;
        lock.try_lock()
            .map_err(|error| cannot("another verify, reconcile or retention is working on").with_source(error))?;
        db.execute_batch(compare::TABLES).and_then(|()| db.execute_batch(TABLES)).map_err(failed)?;
        Ok(Self { db, raw: folder.join("raw"), _lock: lock })
    }

    /// Begins a transaction in which the database and the list of files are of one moment.
    fn snapshot(&self, behavior: TransactionBehavior) -> Result<Transaction<'_>, Error> {
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

    /// Counts the lines of these files, each event once. Says what cannot be read, and of what is there twice, if
    /// that is `wrong_twice`, where else it is.
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
            if let Some((username, event_id)) = first.filter(|_| wrong_twice) {
                let other: String = self
                    .db
                    .query_row(
                        "SELECT path FROM seen JOIN files ON id = file WHERE username = ? AND event_id = ?",
                        params![username, event_id.uuid().as_bytes()],
                        |row| row.get(0),
                    )
                    .map_err(failed)?;
                wrong(format!("{path}: {twice} events are stored twice, such as {event_id}, also in {other}"));
            }
            Ok(())
        })
    }

    /// The same for the lines on their way to the lake.
    fn read_held(&self, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
        let mut held = self.db.prepare("SELECT seq, lines FROM main.held ORDER BY seq").map_err(failed)?;
        let mut rows = held.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let (seq, lines): (i64, String) = row.get(0).and_then(|seq| Ok((seq, row.get(1)?))).map_err(failed)?;
            for line in lines.lines() {
                if let Taken::Unreadable(why) = self.take(None, None, line.as_bytes())? {
                    wrong(format!("the database: a line on its way to the lake, number {seq}: {why}"));
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
        let fresh = self
            .db
            .prepare_cached("INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .and_then(|mut insert| insert.execute(params![line.username, line.event_id.uuid().as_bytes(), file]))
            .map_err(failed)?;
        if fresh == 0 {
            return Ok(Taken::Twice((line.username.into_owned(), line.event_id)));
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

    fn count(&self, what: &str) -> Result<u64, Error> {
        self.db.query_row(&format!("SELECT count(*) FROM temp.{what}"), [], |row| row.get(0)).map_err(failed)
    }
}

/// What became of a line.
enum Taken {
    Fresh,
    Twice((String, EventId)),
    Unreadable(String),
}

fn unwalkable(error: io::Error) -> Error {
    Error::config("cannot list the files of the lake").with_source(error)
}
