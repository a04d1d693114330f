//! `verify`: whether a data directory is sound.

use crate::Error;
use crate::maintenance::reconcile::failed;
use crate::maintenance::snapshot::{LakeSnapshot, SEALED};
use crate::store::embedded::database;
use rusqlite::{OptionalExtension, Row, TransactionBehavior};
use std::path::Path;

/// Prints what is wrong with the database and the lake's files. Returns the number of problems.
pub(crate) fn verify(folder: &Path, print: &dyn Fn(&str)) -> Result<u64, Error> {
    let snapshot = LakeSnapshot::open(folder)?;
    // While a collector is running, a move to the lake may be under way.
    let running = database::lock(folder).is_err();
    let mut found = 0;
    let mut wrong = |what: String| {
        found += 1;
        print(&what);
    };
    let transaction = snapshot.begin(TransactionBehavior::Deferred)?;
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
        wrong("the removal of old files was cut off; `prune` carries it through".into());
    }
    snapshot.each_file("SELECT id, path FROM files WHERE name IS NULL ORDER BY id", |_, path| {
        if !(running && path.ends_with(".open")) {
            wrong(format!("{path}: not a sealed file"));
        }
        Ok(())
    })?;
    snapshot.read_files(SEALED, &mut wrong, true)?;
    // Before the transaction ends: rolling it back empties the temporary tables too.
    let (events, files) = (snapshot.count("seen")?, snapshot.count("files WHERE name NOT NULL")?);
    drop(transaction);
    print(&format!("{events} events in {files} sealed files"));
    Ok(found)
}
