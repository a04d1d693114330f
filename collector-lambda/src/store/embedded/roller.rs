//! The roller: the thread that moves lines from the database into the lake's files, at intervals and once at the end.
//!
//! A line is in the database from the moment its batch is committed until the file that holds it is sealed, so each
//! line is in exactly one sealed file: a move that a crash interrupts is repeated from the same lines into files of the
//! same names, and only then are the lines removed.

use crate::Error;
use crate::store::embedded::lake;
use crate::store::embedded::writer::{Job, Roll, begin_roll, end_roll, unavailable};
use rusqlite::{Connection, params};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A signal that ends the roller's wait early.
pub(crate) enum Signal {
    Roll,
    Stop,
}

/// What the roller works with.
pub(crate) struct Roller {
    /// The writer, which decides which lines to move and removes them.
    pub(crate) jobs: mpsc::Sender<Job>,
    /// A connection that reads.
    pub(crate) db: Connection,
    /// The folder of the lake.
    pub(crate) raw: PathBuf,
}

impl Roller {
    /// Works until the stop signal, or until no sender of signals is left.
    pub(crate) fn run(&self, every: Duration, signals: &std::sync::mpsc::Receiver<Signal>) {
        while let Ok(Signal::Roll) | Err(RecvTimeoutError::Timeout) = signals.recv_timeout(every) {
            if let Err(error) = self.roll() {
                tracing::error!(cause = %crate::error::chain(&error), "cannot move lines to the lake; they are kept");
            }
        }
        if let Err(error) = self.roll() {
            tracing::error!(
                cause = %crate::error::chain(&error),
                "cannot move the last lines to the lake; they are kept"
            );
        }
    }

    /// Moves all lines that are held now into sealed files.
    fn roll(&self) -> Result<(), Error> {
        let Some(roll) = self.ask(Job::BeginRoll)? else { return Ok(()) };
        write_files(&self.db, &self.raw, &roll)?;
        self.ask(|reply| Job::EndRoll { upto: roll.upto, reply })?;
        Ok(())
    }

    fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, Error> {
        let gone = || Error::unavailable("the writer has ended", Duration::from_secs(1));
        let (reply, answer) = oneshot::channel();
        self.jobs.blocking_send(job(reply)).map_err(|_| gone())?;
        answer.blocking_recv().map_err(|_| gone())
    }
}

/// Moves all lines that an earlier process has left behind, first of all those of a move that it had begun.
pub(crate) fn catch_up(db: &mut Connection, raw: &Path) -> Result<(), Error> {
    while let Some(roll) = begin_roll(db).map_err(unavailable)? {
        write_files(db, raw, &roll)?;
        end_roll(db, roll.upto).map_err(unavailable)?;
    }
    Ok(())
}

/// Writes the lines of a move, partition by partition. Repeated, it writes the same files.
fn write_files(db: &Connection, raw: &Path, roll: &Roll) -> Result<(), Error> {
    let upto = roll.upto;
    let failed = |what: &str| Error::unavailable(what, Duration::from_secs(5));
    let read = |error: rusqlite::Error| failed("cannot read the lines to move").with_source(error);
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
        lake::write_file(&folder, &roll.name, texts.map(|text| text.map_err(io::Error::other)))
            .map_err(|error| failed("cannot write a lake file").with_source(error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::checked_batch::{Accepted, CheckedBatch, Fingerprint};
    use crate::sites::KeyScope;
    use crate::store::embedded::{Embedded, Keep};
    use std::collections::BTreeMap;
    use std::fs;

    fn batch(number: u8) -> CheckedBatch {
        let event = |index| Accepted {
            index,
            event_type: if index == 0 { "page_view" } else { "custom" },
            counter_key: "k".into(),
            hour: 0,
            line: format!("{number}.{index}"),
        };
        CheckedBatch {
            username: "shop".into(),
            scope: KeyScope::Secret,
            repeatable: true,
            sdk: crate::ingest::checked_batch::Sdk::None,
            fingerprint: Fingerprint([number; 16]),
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
            // A copy of the files at this moment is what a crash would leave.
            let crashed = folder.with_extension("crashed");
            copy(&folder, &crashed);
            embedded.close().await.unwrap();
            fs::remove_dir_all(folder).unwrap();

            let (folder, raw) = (crashed.clone(), crashed.join("raw"));
            open_with(&folder, 5..6).await.close().await.unwrap();
            let mut expected: Vec<_> = (0..6).flat_map(|n| (0..3).map(move |i| format!("{n}.{i}"))).collect();
            expected.sort();
            assert_eq!(lines(&raw), expected, "after {files_written} files");
            fs::remove_dir_all(folder).unwrap();
        }
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let copied = to.join(path.file_name().unwrap());
            // SQLite makes it again from the log.
            if path.extension().is_some_and(|extension| extension == "db-shm") {
                continue;
            }
            if path.is_dir() {
                copy(&path, &copied);
            } else {
                fs::copy(&path, copied).unwrap();
            }
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
