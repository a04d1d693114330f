//! A spool in a directory.

mod adoption;
mod lane;
mod segment;
mod sync;

use crate::core::body;
use crate::core::id::BatchId;
use crate::core::loss::Losses;
use crate::spool::memory::MemorySpool;
use crate::spool::traits::{Recovered, Spool};
use lane::{AbandonedLane, Lane, OPEN, SEALED};
use segment::{Content, parse, write_frame};
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "client")]
use sync::Round;
#[cfg(feature = "client")]
pub(crate) use sync::Unsynced;
use sync::{GroupSync, SyncedFile, sync_folder};

/// The folder for damaged segments.
const CORRUPT: &str = "corrupt";

/// What an event survives once [`track`](crate::Client::track) has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The end of the process, including `kill -9`: each event has been passed to the operating system. Costs about a
    /// microsecond.
    #[default]
    Process,
    /// Power loss and a crash of the operating system: each event has been synced to the disk. Costs the time of a
    /// sync, which threads that track at the same time share.
    Power,
}

/// A spool in a directory: its batches outlive the process.
///
/// ```text
/// spool/
///   lane-0192f3c1…/        written by one process at a time, which holds the lock
///     lock
///     0192f3c2-….open      takes events
///     0192f3c0-….batch     sealed: waiting or in flight
///   corrupt/               damaged segments
/// ```
///
/// There is no index that could become wrong: the files are all there is. A last frame that is incomplete was never
/// acknowledged, and is cut off. A segment that is damaged in any other way is moved to `corrupt/`.
#[derive(Debug)]
pub struct DirectorySpool {
    root: PathBuf,
    lane: Lane,
    durability: Durability,
    /// The segment that takes events, and for a moment a second one while a batch is divided.
    open: Vec<Open>,
    /// Segments that could not be written to the disk.
    overflow: MemorySpool,
    last_error: Option<io::Error>,
    /// Other lanes still to be examined, the oldest last.
    others: Vec<PathBuf>,
    /// The lane whose segments are being taken over.
    abandoned: Option<AbandonedLane>,
    /// Segments that were moved to this lane but not yet returned, because of an error in between.
    pending: Recovered,
    most_room: usize,
    sync: Arc<GroupSync>,
    /// The round of the last append, if it must be synced.
    #[cfg(feature = "client")]
    round: Option<Round>,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    batch_id: BatchId,
    file: Arc<SyncedFile>,
    bytes: u64,
}

impl DirectorySpool {
    /// Opens the spool in `root`, which is created if it does not exist, and creates a lane in it.
    /// [`Outbox::adopt`](crate::Outbox::adopt) takes over the lanes of processes that have ended.
    ///
    /// # Errors
    ///
    /// If the directory cannot be used.
    pub fn open(root: &Path, durability: Durability) -> io::Result<Self> {
        // The process may change its working directory.
        let root = std::path::absolute(root)?;
        fs::create_dir_all(&root)?;
        let lane = Lane::claim(&root)?;
        if durability == Durability::Power {
            sync_folder(&root)?;
        }
        Ok(Self {
            root,
            lane,
            durability,
            open: Vec::new(),
            overflow: MemorySpool::new(),
            last_error: None,
            others: Vec::new(),
            abandoned: None,
            pending: Recovered::default(),
            most_room: 0,
            sync: Arc::default(),
            #[cfg(feature = "client")]
            round: None,
            frame: Vec::new(),
        })
    }

    /// The number of events that are held in memory because they could not be written to the disk.
    #[cfg(feature = "client")]
    pub(crate) fn volatile(&self) -> u64 {
        self.overflow.events()
    }

    /// The last error of the disk or a segment since the last call.
    #[cfg(feature = "client")]
    pub(crate) fn take_last_error(&mut self) -> Option<io::Error> {
        self.last_error.take()
    }

    /// The sync to wait for until the last append is on the disk, if any.
    #[cfg(feature = "client")]
    pub(crate) fn unsynced(&self) -> Option<Unsynced> {
        self.round.as_ref().map(|round| Unsynced::new(Arc::clone(&self.sync), Arc::clone(round)))
    }

    /// Makes every later sync of an open segment fail.
    #[cfg(all(test, unix, feature = "client"))]
    pub(crate) fn break_syncs(&mut self) {
        for open in &mut self.open {
            // It takes all writes and cannot be synced.
            open.file = SyncedFile::new(OpenOptions::new().write(true).open("/dev/null").unwrap());
        }
    }

    fn create(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        let path = self.lane.segment(batch, OPEN);
        write_frame(&mut self.frame, text, true);
        // Readable, in case the file loses its name.
        let mut file = OpenOptions::new().read(true).append(true).create_new(true).open(&path)?;
        let written = file.write_all(&self.frame).and_then(|()| match self.durability {
            Durability::Process => Ok(()),
            Durability::Power => sync_folder(&self.lane.path),
        });
        if written.is_err() {
            let _ = fs::remove_file(path);
        } else {
            self.open.push(Open { batch_id: batch, file: SyncedFile::new(file), bytes: self.frame.len() as u64 });
        }
        written
    }

    fn position(&self, batch: BatchId) -> Option<usize> {
        self.open.iter().position(|open| open.batch_id == batch)
    }

    fn extend(&mut self, at: usize, text: &str) -> io::Result<()> {
        write_frame(&mut self.frame, text, false);
        let open = &mut self.open[at];
        open.file.check()?;
        if let Err(error) = (&open.file.file).write_all(&self.frame) {
            // Remove what was written of the frame, so that the next frame can be read.
            let _ = open.file.file.set_len(open.bytes);
            return Err(error);
        }
        open.bytes += self.frame.len() as u64;
        Ok(())
    }

    /// Includes the last append to this segment in the next sync.
    #[cfg(feature = "client")]
    fn appended(&mut self, at: usize) {
        self.round = (self.durability == Durability::Power).then(|| self.sync.join(&self.open[at].file));
    }

    #[cfg(not(feature = "client"))]
    #[expect(clippy::needless_pass_by_ref_mut, clippy::unused_self, reason = "the same call with and without")]
    fn appended(&mut self, _: usize) {}

    /// Copies a segment whose file no longer has a name into memory.
    fn rescue(&mut self, batch: BatchId, mut file: &File) -> io::Result<()> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        let Ok(Content { mut text, .. }) = parse(&bytes) else { return Err(ErrorKind::InvalidData.into()) };
        let is_closed = body::is_closed(&text);
        if !is_closed {
            text.push_str(&body::closing(&Losses::default()));
        }
        in_memory(self.overflow.append(batch, &text))?;
        if is_closed { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    /// The path in `corrupt/` for this file.
    fn corrupt_path(&self, path: &Path) -> io::Result<PathBuf> {
        let corrupt = self.root.join(CORRUPT);
        fs::create_dir_all(&corrupt)?;
        Ok(corrupt.join(path.file_name().unwrap_or_default()))
    }

    fn quarantine(&self, path: &Path) -> io::Result<()> {
        fs::rename(path, self.corrupt_path(path)?)
    }
}

impl Spool for DirectorySpool {
    type Error = io::Error;

    fn append(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        #[cfg(feature = "client")]
        {
            self.round = None;
        }
        if self.overflow.contains(batch) {
            return in_memory(self.overflow.append(batch, text));
        }
        if let Some(at) = self.position(batch) {
            self.extend(at, text)?;
            self.appended(at);
            return Ok(());
        }
        // A new segment that cannot be written to the disk is held in memory. But a whole one is a part of a batch that
        // is safe on the disk, and would not be safe in memory.
        if let Err(error) = self.create(batch, text) {
            if body::is_closed(text) {
                return Err(error);
            }
            self.last_error = Some(error);
            return in_memory(self.overflow.append(batch, text));
        }
        self.appended(self.open.len() - 1);
        Ok(())
    }

    fn seal(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        if self.overflow.contains(batch) {
            return in_memory(self.overflow.seal(batch, text));
        }
        let Some(at) = self.position(batch) else { return Err(ErrorKind::NotFound.into()) };
        let closed = if text.is_empty() { Ok(()) } else { self.extend(at, text) };
        let open = self.open.remove(at);
        let synced = match self.durability {
            Durability::Process => Ok(()),
            // If that fails, every caller that waits for an event of the segment gets the error.
            Durability::Power => self.sync.wait(&self.sync.join(&open.file)),
        };
        let path = self.lane.segment(batch, OPEN);
        match closed.and(synced).and_then(|()| fs::rename(&path, self.lane.segment(batch, SEALED))) {
            // The file or the directory was removed. Its content can be read as long as the file is open.
            Err(error) if !path.exists() => {
                self.last_error = Some(error);
                self.rescue(batch, &open.file.file)
            }
            sealed => sealed,
        }
    }

    fn read(&mut self, batch: BatchId) -> io::Result<String> {
        if self.overflow.contains(batch) {
            return in_memory(self.overflow.read(batch));
        }
        let sealed = self.lane.segment(batch, SEALED);
        let (path, bytes) = match fs::read(&sealed) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let open = self.lane.segment(batch, OPEN);
                let bytes = fs::read(&open)?;
                (open, bytes)
            }
            bytes => (sealed, bytes?),
        };
        match parse(&bytes) {
            Ok(Content { mut text, bytes: whole }) if whole == bytes.len() => {
                if !body::is_closed(&text) {
                    text.push_str(&body::closing(&Losses::default()));
                }
                Ok(text)
            }
            _ => {
                self.quarantine(&path)?;
                Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("{} is damaged and was moved to {CORRUPT}/", path.display()),
                ))
            }
        }
    }

    fn is_transient(error: &io::Error) -> bool {
        // For example, no file descriptors are left. The file still exists.
        !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
    }

    fn remove(&mut self, batch: BatchId) -> io::Result<()> {
        if self.overflow.contains(batch) {
            return in_memory(self.overflow.remove(batch));
        }
        self.open.retain(|open| open.batch_id != batch);
        for extension in [SEALED, OPEN] {
            match fs::remove_file(self.lane.segment(batch, extension)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns nothing, because the lane is new.
    fn recover(&mut self) -> io::Result<Recovered> {
        Ok(Recovered::default())
    }

    /// Takes over segments from the lanes of processes that have ended, the oldest first, a few at a time.
    ///
    /// Stops when half of the largest `room` there ever was is taken. The other half is for new events, which would
    /// otherwise push out segments that are safe where they are.
    ///
    /// # Errors
    ///
    /// If a lane or a segment cannot be taken over. It stays where it is, and the next call continues after it.
    fn adopt(&mut self, room: usize) -> io::Result<Recovered> {
        self.adopt_segments(room)
    }
}

/// Turns the result of the memory spool, which never fails, into that of a disk.
fn in_memory<T>(result: Result<T, Infallible>) -> io::Result<T> {
    result.map_err(|never| match never {})
}
