//! `reconcile`, as far as it is the same for both stores: how a stored line is read, and how counters are compared with
//! what is stored.
//!
//! Temporary tables hold what is stored; `main.hours` and `main.totals` hold what is counted. Beyond 64 MiB of them
//! the temporary tables are on disk, so that memory does not grow with the lake.

#[cfg(feature = "s3")]
pub(crate) mod aws;
pub(crate) mod embedded;

use crate::Error;
use crate::ingest::stored_event::StoredEvent;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

/// `stored`: the distinct events by what they are counted by; `maybe` are those that may not be counted yet.
/// `unsettled`: the same for events that may be in one of several counters; an hour of NULL is the total of all.
/// `names`: the keys of which counters have only a hash, which is a BLOB.
pub(crate) const TABLES: &str = "
    PRAGMA temp_store = FILE;
    PRAGMA temp.cache_size = -65536;
    CREATE TEMP TABLE stored (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key NOT NULL, hour INTEGER NOT NULL,
        count INTEGER NOT NULL, maybe INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (username, event_type, key, hour)
    ) WITHOUT ROWID;
    CREATE TEMP TABLE unsettled (
        username TEXT NOT NULL, event_type TEXT NOT NULL, key NOT NULL, hour INTEGER,
        count INTEGER NOT NULL, maybe INTEGER NOT NULL
    );
    CREATE TEMP TABLE names (key BLOB PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
";

/// Every counter that is not what it should be; an hour of NULL is the total of all.
const DIFFERENCES: &str = "
    CREATE TEMP TABLE differences AS
    SELECT username, event_type, key, hour, sum(counted) AS counted, sum(stored) AS stored, sum(maybe) AS maybe FROM (
        SELECT username, event_type, key, hour, count AS counted, 0 AS stored, 0 AS maybe FROM main.hours
        UNION ALL SELECT username, event_type, key, NULL, count, 0, 0 FROM main.totals
        UNION ALL SELECT username, event_type, key, hour, 0, count, maybe FROM stored
        UNION ALL SELECT username, event_type, '', hour, 0, count, maybe FROM stored
        UNION ALL SELECT username, event_type, key, NULL, 0, count, maybe FROM stored
        UNION ALL SELECT username, event_type, '', NULL, 0, count, maybe FROM stored
        UNION ALL SELECT username, event_type, key, hour, 0, count, maybe FROM unsettled
    ) GROUP BY username, event_type, key, hour
    HAVING sum(counted) NOT BETWEEN sum(stored) AND sum(stored) + sum(maybe);
";

/// Finds the counters that are not what is stored.
pub(crate) fn compare(db: &Connection) -> Result<(), Error> {
    db.execute_batch(DIFFERENCES).map_err(failed)
}

/// Prints each counter that was found. Returns how many there are.
pub(crate) fn print_differences(db: &Connection, print: &dyn Fn(&str)) -> Result<u64, Error> {
    let mut differences = db
        .prepare(
            "SELECT username, event_type, coalesce(name, key), strftime('%Y-%m-%dT%H:00Z', hour * 3600, 'unixepoch'),
                 counted, stored, stored + maybe
             FROM temp.differences LEFT JOIN temp.names USING (key)",
        )
        .map_err(failed)?;
    let mut rows = differences.query([]).map_err(failed)?;
    let mut found = 0;
    while let Some(row) = rows.next().map_err(failed)? {
        found += 1;
        print(&difference(row).map_err(failed)?);
    }
    Ok(found)
}

fn difference(row: &Row<'_>) -> rusqlite::Result<String> {
    let (username, event_type): (String, String) = (row.get(0)?, row.get(1)?);
    let key = match row.get_ref(2)? {
        ValueRef::Text([]) => "all keys".into(),
        ValueRef::Blob(hash) => format!("the key of SHA-256 {}", String::from_utf8_lossy(hash)),
        key => format!("{:?}", key.as_str()?),
    };
    let hour: Option<String> = row.get(3)?;
    let hour = hour.map_or("in total".into(), |hour| format!("in the hour {hour}"));
    let (counted, least, most): (i64, i64, i64) = (row.get(4)?, row.get(5)?, row.get(6)?);
    let stored = if least == most { least.to_string() } else { format!("{least} to {most}") };
    Ok(format!("{username} {event_type} {key} {hour}: counted {counted}, stored {stored}"))
}

/// Reads a stored line and the key it is counted by, or says why it cannot be counted.
pub(crate) fn read_line(line: &[u8]) -> Result<(StoredEvent<'_>, String), String> {
    let event: StoredEvent<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let counter_key = event.counter_key().ok_or("it has no key to be counted by")?.to_owned();
    Ok((event, counter_key))
}

pub(crate) fn failed(error: rusqlite::Error) -> Error {
    Error::config("the database cannot be used").with_source(error)
}

/// Prints how far it is. It does not matter if nobody reads it.
#[cfg(feature = "s3")]
fn progress(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{what}");
}
