//! The file of the embedded store's database: its schema, and how it is opened. One that is damaged, or missing beside
//! its lake, is refused before a byte of it is written.

use crate::Error;
use crate::store::embedded::lake;
use crate::store::query::TOP_KEYS;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SCHEMA_VERSION: i32 = 4;

/// The username of no site, for writes that only test whether writing works.
pub(crate) const NOBODY: &str = "";

/// How long a connection waits for another that writes.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const DATABASE: &str = "tallymark.db";
const NEW_DATABASE: &str = "tallymark.db.new";
const READ_ONLY: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY;
/// How long `serve` may be held up by looking for damage.
const CHECK_AT_START: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE batches (
        username TEXT NOT NULL, scope TEXT NOT NULL, batch_id BLOB NOT NULL, fingerprint BLOB NOT NULL,
        received_at INTEGER NOT NULL, receipt TEXT NOT NULL,
        PRIMARY KEY (username, scope, batch_id)
    ) WITHOUT ROWID;
    CREATE INDEX batches_by_age ON batches (received_at);
    CREATE TABLE totals (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (username, event_type, key)
    ) WITHOUT ROWID;
    CREATE TABLE hours (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key TEXT NOT NULL, hour INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (username, event_type, key, hour)
    ) WITHOUT ROWID;
    -- Lines that are not in the lake yet. Numbers are never reused, and name the files.
    CREATE TABLE held (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        username TEXT NOT NULL, event_type TEXT NOT NULL, hour INTEGER NOT NULL, lines TEXT NOT NULL
    );
    CREATE INDEX held_by_partition ON held (username, event_type, hour);
    -- A move to the lake that has begun and must be carried through: all lines up to this number, into files
    -- of this name, which no other move ever has, not even of a database brought back from a backup.
    CREATE TABLE roll (upto INTEGER NOT NULL, name TEXT NOT NULL);
";
/// Since version 2.
const PRUNED: &str = "
    -- What was in files that are removed, counted: it stays a part of what the counters must be.
    CREATE TABLE IF NOT EXISTS pruned (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key TEXT NOT NULL, hour INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (username, event_type, key, hour)
    ) WITHOUT ROWID;
    -- Files that are in `pruned` already and must go: a removal that has begun and must be carried through.
    CREATE TABLE IF NOT EXISTS pruning (file TEXT PRIMARY KEY) WITHOUT ROWID;
";

/// Since version 3.
const SCOPE: &str = "ALTER TABLE batches RENAME COLUMN key TO scope;";

/// Since version 4.
const LEADERS: &str = "
    -- Of each site and type the 1,000 keys counted most, so that `top` need not read all keys.
    CREATE TABLE IF NOT EXISTS leaders (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (username, event_type, key)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS leaders_by_count ON leaders (username, event_type, count, key DESC);
";

/// Finds the leaders in all totals. Needed only where totals were changed other than by counting.
pub(crate) fn fill_leaders(db: &Connection) -> rusqlite::Result<()> {
    db.execute("DELETE FROM leaders", [])?;
    let mut types = db.prepare("SELECT DISTINCT username, event_type FROM totals")?;
    let mut rows = types.query([])?;
    while let Some(row) = rows.next()? {
        db.prepare_cached(
            "INSERT INTO leaders SELECT username, event_type, key, count FROM totals
             WHERE username = ? AND event_type = ? AND key <> '' ORDER BY count DESC, key LIMIT ?",
        )?
        .execute(params![row.get::<_, String>(0)?, row.get::<_, String>(1)?, TOP_KEYS])?;
    }
    Ok(())
}

/// Makes a database one that version 2 has written.
#[cfg(test)]
pub(crate) const TO_VERSION_2: &str = "DROP TABLE leaders; ALTER TABLE batches RENAME COLUMN scope TO key;
    PRAGMA user_version = 2;";

/// Locks the data directory for this process alone, for as long as the file is open.
pub(crate) fn lock(folder: &Path) -> Result<File, Error> {
    let lock = File::create(folder.join("lock")).map_err(|error| {
        Error::config(format!("cannot write in the data directory {}", folder.display())).with_source(error)
    })?;
    lock.try_lock().map_err(|error| {
        Error::config(format!("another collector is using the data directory {}", folder.display())).with_source(error)
    })?;
    Ok(lock)
}

/// The connections of a store that is to be written.
pub(crate) struct Connections {
    pub(crate) writer: Connection,
    pub(crate) roller: Connection,
    pub(crate) readers: Vec<Connection>,
}

/// Opens the database of a store that is to be written. It is created if there is none, and nothing that it would have
/// counted.
pub(crate) fn open_or_make(folder: &Path, readers: usize) -> Result<Connections, Error> {
    let path = folder.join(DATABASE);
    if is_missing(folder) {
        refuse_to_forget(folder)?;
    } else {
        refuse_damage(&path)?;
    }
    let open = || {
        Ok(Connections {
            writer: make(&path)?,
            roller: connect(&path, READ_ONLY)?,
            readers: (0..readers).map(|_| connect(&path, READ_ONLY)).collect::<Result<_, _>>()?,
        })
    };
    open().map_err(|error: rusqlite::Error| cannot_open(&path, error))
}

/// The database of a store that exists. A collector may be running on it. Only to look at it changes no byte of it.
pub(crate) fn open(folder: &Path) -> Result<Connection, Error> {
    let path = folder.join(DATABASE);
    if is_missing(folder) {
        refuse_to_forget(folder)?;
        return Err(Error::config(format!("cannot open the database {}: there is none", path.display())));
    }
    refuse_damaged_log(&path)?;
    let open = || {
        let db = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        prepare(&db)?;
        Ok(db)
    };
    open().map_err(|error| cannot_open(&path, error))
}

/// A database for a store whose own is missing, to fill and then to [`put_in_place`].
pub(crate) fn create_new(folder: &Path) -> Result<Connection, Error> {
    let path = folder.join(NEW_DATABASE);
    for file in [&path, &wal(&path)] {
        // Of an attempt that was cut off.
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::config(format!("cannot remove {}", file.display())).with_source(error));
            }
            _ => {}
        }
    }
    make(&path).map_err(|error| cannot_open(&path, error))
}

/// Makes the new database the store's own. Nobody may have it open: then it is one file.
pub(crate) fn put_in_place(folder: &Path) -> Result<(), Error> {
    std::fs::rename(folder.join(NEW_DATABASE), folder.join(DATABASE))
        .and_then(|()| lake::sync_folder(folder))
        .map_err(|error| Error::config("cannot put the new database in its place").with_source(error))
}

/// Whether there is no database, or nothing in it.
pub(crate) fn is_missing(folder: &Path) -> bool {
    match std::fs::metadata(folder.join(DATABASE)) {
        Ok(data) => data.len() == 0,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// With a new database all counts would begin at zero. That is for a new store only.
fn refuse_to_forget(folder: &Path) -> Result<(), Error> {
    let left = if log_is_left(folder) {
        "its -wal file"
    } else if lake::has_files(&folder.join("raw"))? {
        "the lake of its events"
    } else {
        return Ok(());
    };
    let path = folder.join(DATABASE);
    Err(Error::config(format!(
        "cannot open the database {}: it is missing or empty, but {left} is there, and a new one would count from \
         zero. {REMEDY}",
        path.display()
    )))
}

/// Whether the database's log holds anything.
pub(crate) fn log_is_left(folder: &Path) -> bool {
    log_size(folder) > 0
}

/// The size of the log of the database in this folder.
pub(crate) fn log_size(folder: &Path) -> u64 {
    std::fs::metadata(wal(&folder.join(DATABASE))).map_or(0, |data| data.len())
}

/// How large the log of this database is.
pub(crate) fn log_bytes(db: &Connection) -> u64 {
    let log = db.path().map(|path| wal(Path::new(path)));
    log.and_then(|log| std::fs::metadata(log).ok()).map_or(0, |data| data.len())
}

/// What an operator can do.
const REMEDY: &str = "Bring it back from a backup. Without one, move what is left of tallymark.db and tallymark.db-wal \
    away; `reconcile --repair` then makes a new one that counts what is in the lake's files";

/// SQLite would put a log whose beginning it cannot read aside, as if nothing were in it.
fn refuse_damaged_log(path: &Path) -> Result<(), Error> {
    let log = wal(path);
    match is_no_log(&log) {
        Ok(false) => Ok(()),
        Ok(true) => {
            Err(Error::config(format!("cannot open the database's log {}: it is damaged. {REMEDY}", log.display())))
        }
        Err(error) => {
            Err(Error::config(format!("cannot read the database's log {}", log.display())).with_source(error))
        }
    }
}

/// Looks for damage without changing a byte. SQLite would find it only once it meets it.
fn refuse_damage(path: &PathBuf) -> Result<(), Error> {
    refuse_damaged_log(path)?;
    let check = || {
        let mut db = connect(path, READ_ONLY)?;
        let started = Instant::now();
        db.progress_handler(10_000, Some(move || started.elapsed() > CHECK_AT_START))?;
        db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
    };
    match check() {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => Err(damaged_database(path).with_source(found)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            tracing::info!("the database is too large to be checked now; `verify` checks all of it");
            Ok(())
        }
        Err(error) => Err(cannot_open(path, error)),
    }
}

/// Whether the database's log begins with something that SQLite has not written. Too little and zeros are what a
/// power loss may leave of a log in which nothing had been committed.
fn is_no_log(log: &Path) -> std::io::Result<bool> {
    let mut start = [0; 32];
    match File::open(log).and_then(|mut file| file.read_exact(&mut start)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => return Ok(false),
        read => read?,
    }
    let numbers = |parse: fn([u8; 4]) -> u32| start.as_chunks().0.iter().map(move |bytes| parse(*bytes));
    let words: Vec<u32> = numbers(u32::from_be_bytes).collect();
    // As the format has it: the lowest bit of the first number tells in which order the bytes are summed up.
    let summed: Vec<u32> = numbers(if words[0] & 1 == 1 { u32::from_be_bytes } else { u32::from_le_bytes }).collect();
    let sums = summed[..6].chunks(2).fold((0_u32, 0_u32), |(a, b), pair| {
        let a = a.wrapping_add(pair[0]).wrapping_add(b);
        (a, b.wrapping_add(pair[1]).wrapping_add(a))
    });
    let is_log = words[0] & !1 == 0x377f_0682 && sums == (words[6], words[7]);
    Ok(!is_log && start != [0; 32])
}

fn wal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

fn cannot_open(path: &Path, error: rusqlite::Error) -> Error {
    let damaged = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
    if error.sqlite_error_code().is_some_and(|code| damaged.contains(&code)) {
        return damaged_database(path).with_source(error);
    }
    Error::config(format!("cannot open the database {}", path.display())).with_source(error)
}

fn damaged_database(path: &Path) -> Error {
    Error::config(format!("cannot open the database {}: it is damaged. {REMEDY}", path.display()))
}

/// Opens a database that is made if there is none.
fn make(path: &PathBuf) -> rusqlite::Result<Connection> {
    let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    prepare(&db)?;
    Ok(db)
}

fn connect(path: &PathBuf, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

pub(crate) fn prepare(db: &Connection) -> rusqlite::Result<()> {
    // FULL: a transaction is on disk before it is answered, through power loss too.
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;")?;
    let migration = match db.query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0))? {
        0 => format!("{SCHEMA} {PRUNED} {LEADERS}"),
        1 => format!("{PRUNED} {SCOPE} {LEADERS}"),
        2 => format!("{SCOPE} {LEADERS}"),
        3 => LEADERS.into(),
        SCHEMA_VERSION => return Ok(()),
        other => {
            return Err(rusqlite::Error::ToSqlConversionFailure(
                format!(
                    "it has version {other}, and this collector knows {SCHEMA_VERSION}: use the collector that wrote it"
                )
                .into(),
            ));
        }
    };
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    transaction.execute_batch(&format!("{migration} PRAGMA user_version = {SCHEMA_VERSION};"))?;
    fill_leaders(&transaction)?;
    transaction.commit()
}
