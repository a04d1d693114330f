//! `prune`: removes old files of the lake and compresses those of past days.
//!
//! What is removed is counted first, in the database and in one transaction with the list of what must go, so
//! that `reconcile` stays exact and an interrupted removal is completed by the next run. A file is
//! compressed beside itself and is removed only once that is on disk under its name.

use crate::Error;
use crate::maintenance::reconcile::failed;
use crate::maintenance::snapshot::LakeSnapshot;
use crate::store::embedded::lake;
use crate::store::query::DAY;
use flate2::Compression;
use flate2::write::GzEncoder;
use rusqlite::{Transaction, TransactionBehavior};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What is kept, and how.
pub(crate) struct Policy {
    /// Days before today.
    pub(crate) keep: u32,
    /// Whether to compress what is kept of the days before today.
    pub(crate) compress: bool,
    /// Whether only to say what would be done.
    pub(crate) dry_run: bool,
}

/// Does what the policy says, day by day, and prints it.
pub(crate) fn run(folder: &Path, policy: &Policy, print: &dyn Fn(&str)) -> Result<(), Error> {
    let snapshot = LakeSnapshot::open(folder)?;
    if !policy.dry_run {
        remove_begun(&snapshot)?;
    }
    let now = crate::time::now();
    let first_kept = snapshot.day(now.saturating_sub(u64::from(policy.keep) * DAY))?;
    let today = snapshot.day(now)?;
    snapshot.list()?;
    let mut days = BTreeSet::new();
    snapshot.each_file("SELECT id, name FROM files WHERE name NOT NULL", |_, name| {
        days.extend(day_of(name).map(str::to_owned));
        Ok(())
    })?;
    for day in days.range(..today) {
        if *day < first_kept {
            remove(&snapshot, day, policy.dry_run, print)?;
        } else if policy.compress {
            compress(&snapshot, day, policy.dry_run, print)?;
        }
    }
    Ok(())
}

/// The day in `…/day=2026-01-31/…`. A folder of another form is not ours to touch.
fn day_of(path: &str) -> Option<&str> {
    let day = path.split('/').find_map(|part| part.strip_prefix("day="))?;
    let form = |(at, byte): (usize, u8)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() };
    (day.len() == 10 && day.bytes().enumerate().all(form)).then_some(day)
}

impl LakeSnapshot {
    fn day(&self, time: u64) -> Result<String, Error> {
        let seconds = (time / 1000) as i64;
        self.db.query_row("SELECT strftime('%Y-%m-%d', ?, 'unixepoch')", [seconds], |row| row.get(0)).map_err(failed)
    }

    /// The files of a day, in the temporary table `chosen`. Those of a move that a crash has cut off are left
    /// out: they will be written again.
    fn choose(&self, day: &str, more: &str) -> Result<(), Error> {
        self.db
            .execute_batch("DROP TABLE IF EXISTS temp.chosen; DELETE FROM temp.seen; DELETE FROM temp.stored;")
            .and_then(|()| {
                self.db.execute(
                    &format!(
                        "CREATE TEMP TABLE chosen AS SELECT id, path, name FROM files
                         WHERE name LIKE '%/day=' || ?1 || '/%' {more} AND NOT EXISTS
                             (SELECT 1 FROM main.roll AS r WHERE files.name LIKE '%/' || r.name || '.ndjson')"
                    ),
                    [day],
                )
            })
            .map(|_| ())
            .map_err(failed)
    }
}

fn remove(snapshot: &LakeSnapshot, day: &str, dry_run: bool, print: &dyn Fn(&str)) -> Result<(), Error> {
    let transaction = snapshot.db.unchecked_transaction().map_err(failed)?;
    snapshot.choose(day, "")?;
    let mut unreadable = None;
    snapshot.read_files(
        "SELECT id, path FROM chosen ORDER BY id",
        &mut |why| {
            unreadable.get_or_insert(why);
        },
        false,
    )?;
    if let Some(why) = unreadable {
        print(&format!("{day}: kept, since it cannot be counted first: {why}"));
        return Ok(());
    }
    let (files, bytes) = size(snapshot)?;
    transaction.commit().map_err(failed)?;
    if files == 0 {
        return Ok(());
    }
    if dry_run {
        print(&format!("{day}: would remove {files} files, {bytes} bytes"));
        return Ok(());
    }
    // A collector that is running waits for this, so it is all that is done in it.
    let transaction = Transaction::new_unchecked(&snapshot.db, TransactionBehavior::Immediate).map_err(failed)?;
    transaction
        .execute_batch(
            "INSERT INTO main.pruned SELECT username, event_type, key, hour, count FROM stored WHERE true
                 ON CONFLICT DO UPDATE SET count = count + excluded.count;
             INSERT INTO main.pruning SELECT name FROM chosen;",
        )
        .map_err(failed)?;
    transaction.commit().map_err(failed)?;
    remove_begun(snapshot)?;
    print(&format!("{day}: removed {files} files, {bytes} bytes"));
    Ok(())
}

/// Removes the files that are counted as removed, and then forgets which they were.
fn remove_begun(snapshot: &LakeSnapshot) -> Result<(), Error> {
    let cannot = |error| Error::config("cannot remove a file of the lake").with_source(error);
    let mut folders = BTreeSet::new();
    snapshot.each_file("SELECT 0, file FROM main.pruning", |_, name| {
        let file = snapshot.raw.join(name);
        for file in [&file, &compressed(&file)] {
            remove_if_there(file).map_err(cannot)?;
        }
        folders.extend(file.parent().map(Path::to_owned));
        Ok(())
    })?;
    for folder in &folders {
        // On disk before it is forgotten, or a file that came back after a power loss would be counted twice.
        match lake::sync_folder(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
            _ => {}
        }
        // As far up as they are empty.
        let above = folder.ancestors().take_while(|above| *above != snapshot.raw);
        let _ = above.map(fs::remove_dir).take_while(Result::is_ok).count();
    }
    snapshot.db.execute("DELETE FROM main.pruning", []).map(|_| ()).map_err(failed)
}

fn compress(snapshot: &LakeSnapshot, day: &str, dry_run: bool, print: &dyn Fn(&str)) -> Result<(), Error> {
    // What a crash has left beside its compressed form goes too.
    snapshot.choose(day, "")?;
    if !dry_run {
        snapshot.each_file("SELECT id, name FROM chosen WHERE path <> name", |_, name| {
            remove_if_there(&snapshot.raw.join(name))
                .map_err(|error| Error::config("cannot remove a file of the lake").with_source(error))
        })?;
    }
    snapshot.choose(day, "AND path = name")?;
    let (files, before) = size(snapshot)?;
    if files == 0 {
        return Ok(());
    }
    if dry_run {
        print(&format!("{day}: would compress {files} files, {before} bytes"));
        return Ok(());
    }
    let mut after = 0;
    snapshot.each_file("SELECT id, path FROM chosen ORDER BY id", |_, path| {
        after += compress_file(&snapshot.raw.join(path))
            .map_err(|error| Error::config(format!("cannot compress {path}")).with_source(error))?;
        Ok(())
    })?;
    print(&format!("{day}: compressed {files} files, {before} bytes to {after}"));
    Ok(())
}

fn compress_file(file: &Path) -> io::Result<u64> {
    let (sealed, open) = (compressed(file), file.with_extension("ndjson.gz.open"));
    let mut encoder = GzEncoder::new(File::create(&open)?, Compression::default());
    io::copy(&mut File::open(file)?, &mut encoder)?;
    let written = encoder.finish()?;
    written.sync_all()?;
    let bytes = written.metadata()?.len();
    fs::rename(&open, &sealed)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    lake::sync_folder(folder)?;
    fs::remove_file(file)?;
    Ok(bytes)
}

fn compressed(file: &Path) -> PathBuf {
    file.with_extension("ndjson.gz")
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many files are chosen, and how large they are.
fn size(snapshot: &LakeSnapshot) -> Result<(u64, u64), Error> {
    let (mut files, mut bytes) = (0, 0);
    snapshot.each_file("SELECT id, path FROM chosen", |_, path| {
        files += 1;
        bytes += fs::metadata(snapshot.raw.join(path)).map_or(0, |data| data.len());
        Ok(())
    })?;
    Ok((files, bytes))
}
