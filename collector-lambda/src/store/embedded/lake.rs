//! The directory lake: newline-delimited JSON in
//! `raw/username=…/event_type=…/day=…/hour=…/NAME.ndjson`, by the day and hour (UTC) of receipt.
//!
//! A line is in the database from the moment its batch is committed until the file that holds it is
//! sealed, so each line is in exactly one sealed file: a move that a crash cuts off is made again from
//! the same lines into files of the same names, and only then are the lines removed.
//!
//! A sealed file may be compressed later, to `NAME.ndjson.gz` (see `retention.rs`).

use crate::Error;
use crate::store::embedded::{Job, Roll};
use flate2::read::MultiGzDecoder;
use rusqlite::{Connection, params};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// More than any line has, so that a file that is none of ours does not fill the memory.
pub(crate) const LINE_BYTES: u64 = 1024 * 1024;

/// Moves all lines that are held now into sealed files.
pub(crate) fn roll(jobs: &mpsc::Sender<Job>, db: &Connection, raw: &Path) -> Result<(), Error> {
    let Some(roll) = ask(jobs, Job::BeginRoll)? else { return Ok(()) };
    write_files(db, raw, &roll)?;
    ask(jobs, |reply| Job::EndRoll { upto: roll.upto, reply })?;
    Ok(())
}

fn ask<T>(jobs: &mpsc::Sender<Job>, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, Error> {
    let gone = || Error::unavailable("the writer is gone", Duration::from_secs(1));
    let (reply, answer) = oneshot::channel();
    jobs.blocking_send(job(reply)).map_err(|_| gone())?;
    answer.blocking_recv().map_err(|_| gone())
}

/// Writes the lines of a move, partition by partition. Done again, it writes the same files.
pub(crate) fn write_files(db: &Connection, raw: &Path, roll: &Roll) -> Result<(), Error> {
    let upto = roll.upto;
    let failed = |what: &str| Error::unavailable(what, Duration::from_secs(5));
    let read = |error: rusqlite::Error| failed("cannot read the lines to move").because(error);
    let mut partitions = db
        .prepare_cached(
            "SELECT username, event_type, hour,
                    strftime('%Y-%m-%d', hour * 3600, 'unixepoch'), strftime('%H', hour * 3600, 'unixepoch')
             FROM held WHERE seq <= ? GROUP BY username, event_type, hour",
        )
        .map_err(read)?;
    let mut lines = db
        .prepare_cached(
            "SELECT lines FROM held WHERE username = ? AND event_type = ? AND hour = ? AND seq <= ? ORDER BY seq",
        )
        .map_err(read)?;
    let mut rows = partitions.query([upto]).map_err(read)?;
    while let Some(row) = rows.next().map_err(read)? {
        let (username, event_type, hour): (String, String, u64) =
            (|| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))().map_err(read)?;
        let (day, of_day): (String, String) = (|| Ok((row.get(3)?, row.get(4)?)))().map_err(read)?;
        let folder = raw
            .join(format!("username={username}"))
            .join(format!("event_type={event_type}"))
            .join(format!("day={day}"))
            .join(format!("hour={of_day}"));
        let texts =
            lines.query_map(params![username, event_type, hour, upto], |row| row.get::<_, String>(0)).map_err(read)?;
        write_file(&folder, &roll.name, texts.map(|text| text.map_err(io::Error::other)))
            .map_err(|error| failed("cannot write a lake file").because(error))?;
    }
    Ok(())
}

/// Writes a file and seals it by renaming it once it is on disk.
fn write_file(folder: &Path, name: &str, texts: impl Iterator<Item = io::Result<String>>) -> io::Result<()> {
    make_folder(folder)?;
    let open = folder.join(format!("{name}.open"));
    let mut file = BufWriter::new(File::create(&open)?);
    for text in texts {
        file.write_all(text?.as_bytes())?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&open, folder.join(format!("{name}.ndjson")))?;
    sync_folder(folder)
}

/// Makes the folder and those above it, each one on disk before the next.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(above) = folder.parent() else { return Ok(()) };
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The name that a file had when it was sealed, whether or not it has been compressed since. `None` is not a
/// sealed file.
pub(crate) fn sealed_name(file: &str) -> Option<&str> {
    let name = file.strip_suffix(".gz").unwrap_or(file);
    name.ends_with(".ndjson").then_some(name)
}

/// Hands over each file of the lake, by its path below `raw`, folder by folder and in order. A sealed file that is
/// there compressed too is left out: a crash has come before its removal.
pub(crate) fn walk<E: From<io::Error>>(raw: &Path, found: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    walk_folder(raw, "", found)
}

/// Whether the lake has any sealed file.
pub(crate) fn has_files(raw: &Path) -> Result<bool, Error> {
    let mut found = false;
    let walked = walk(raw, &mut |path| {
        found |= sealed_name(path).is_some();
        Ok::<_, io::Error>(())
    });
    walked.map(|()| found).map_err(|error| Error::config("cannot list the files of the lake").because(error))
}

fn walk_folder<E: From<io::Error>>(
    raw: &Path,
    below: &str,
    found: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let mut entries = Vec::new();
    match fs::read_dir(raw.join(below)) {
        // No lake yet, or a folder that `retention` has found empty.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => {
            for entry in read? {
                let entry = entry?;
                let name = entry
                    .file_name()
                    .into_string()
                    .map_err(|name| io::Error::other(format!("the lake has a file of the name {}", name.display())))?;
                entries.push((name, entry.file_type()?.is_dir()));
            }
        }
    }
    entries.sort();
    for (name, is_folder) in &entries {
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if *is_folder {
            walk_folder(raw, &path, found)?;
        } else if entries.binary_search(&(format!("{name}.gz"), false)).is_err() {
            found(&path)?;
        }
    }
    Ok(())
}

/// Hands over each line of a sealed file, with its number and without its end. Returns why the file cannot be
/// read to its end, if so.
pub(crate) fn read_lines<E>(
    file: &Path,
    take: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<Result<(), String>, E> {
    let reader = match File::open(file) {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut reader: Box<dyn BufRead> = if file.extension().is_some_and(|extension| extension == "gz") {
        Box::new(BufReader::new(MultiGzDecoder::new(reader)))
    } else {
        Box::new(BufReader::new(reader))
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.pop() == Some(b'\n') => take(number, &line)?,
            Ok(_) => return Ok(Err(format!("line {number} has no end"))),
            Err(error) => return Ok(Err(format!("line {number}: {error}"))),
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::checked_batch::{Accepted, CheckedBatch, Fingerprint};
    use crate::sites::KeyScope;
    use crate::store::embedded::{Embedded, Keep};
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    fn batch(number: u8) -> CheckedBatch {
        let event = |index| Accepted {
            index,
            event_type: if index == 0 { "page_view" } else { "custom" },
            key: "k".into(),
            hour: 0,
            line: format!("{number}.{index}"),
        };
        CheckedBatch {
            username: "shop".into(),
            key: KeyScope::Secret,
            fingerprint: Fingerprint([number; 16]),
            sdk: crate::ingest::checked_batch::Sdk::None,
            batch_id: uuid::Uuid::from_bytes([number; 16]).into(),
            received_at: u64::from(number) * 1_800_000,
            events: vec![event(0), event(1), event(2)],
            rejected: Vec::new(),
            retry: Vec::new(),
            lost: BTreeMap::new(),
        }
    }

    fn lines(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(lines(&path));
            } else if path.extension().is_some_and(|extension| extension == "ndjson") {
                found.extend(fs::read_to_string(path).unwrap().lines().map(Into::into));
            }
        }
        found.sort();
        found
    }

    async fn open_with(folder: &Path, numbers: std::ops::Range<u8>) -> Embedded {
        let embedded = Embedded::open(folder, Duration::from_secs(3600)).unwrap();
        for number in numbers {
            embedded.commit(batch(number), Keep::LinesAndCounts).await.unwrap();
        }
        embedded
    }

    /// Cuts a move off after each of its steps: begun; one file; all files. Then goes on as after a crash.
    #[tokio::test]
    async fn a_move_that_was_cut_off_is_made_again_the_same() {
        for files_written in 0..=4 {
            let folder = std::env::temp_dir().join(format!("tallymark-{:016x}", rand::random::<u64>()));
            let raw = folder.join("raw");
            let embedded = open_with(&folder, 0..4).await;
            let db = Connection::open(folder.join("tallymark.db")).unwrap();
            db.execute("INSERT INTO roll SELECT max(seq), 'begun' FROM held", []).unwrap();
            let upto = db.query_row("SELECT upto FROM roll", [], |row| row.get(0)).unwrap();
            write_files(&db, &raw, &Roll { upto, name: "begun".into() }).unwrap();
            let all = files(&raw);
            assert_eq!(all.len(), 4, "two event types in two hours");
            for file in &all[files_written..] {
                fs::rename(file, file.with_extension("open")).unwrap();
            }
            // More has come before the crash, also for the same partitions.
            embedded.commit(batch(4), Keep::LinesAndCounts).await.unwrap();
            embedded.commit(batch(3), Keep::LinesAndCounts).await.unwrap();
            std::mem::forget(embedded);
            fs::remove_file(folder.join("lock")).unwrap();

            open_with(&folder, 5..6).await.close().await.unwrap();
            let mut expected: Vec<_> = (0..6).flat_map(|n| (0..3).map(move |i| format!("{n}.{i}"))).collect();
            expected.sort();
            assert_eq!(lines(&raw), expected, "after {files_written} files");
            fs::remove_dir_all(folder).unwrap();
        }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found.sort();
        found
    }
}
