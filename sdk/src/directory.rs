//! A spool in a directory: what it holds outlives the process.
//!
//! ```text
//! spool/
//!   lane-0192f3c1…/        one process at a time, which holds the lock
//!     lock
//!     0192f3c2-….open      events are appended here
//!     0192f3c0-….batch     sealed: on its way, or waiting
//!   corrupt/               segments that cannot be read, moved out of the way
//! ```
//!
//! A segment begins with a header of eight bytes, the last of which is the format's version, and goes on
//! with frames: length (4 bytes, little-endian), CRC-32 of the text (the same), text. The frames' texts
//! joined are the body of the batch. There is no index that could get out of step: the files are the
//! truth. A torn last frame was never acknowledged to anybody, and is cut off.

use crate::body;
use crate::id::{BatchId, parts};
use crate::loss::Losses;
use crate::spool::{MemorySpool, Recovered, Segment, Spool};
use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

const HEADER: &[u8; 8] = b"tallymk\x01";
/// A frame is never longer: an event, or a whole batch that was divided.
const FRAME_BYTES: u32 = 2 * crate::limits::BATCH_BYTES as u32;
const OPEN: &str = "open";
const SEALED: &str = "batch";
const LOCK: &str = "lock";
const CORRUPT: &str = "corrupt";
const LANE: &str = "lane-";

/// What an event survives once [`track`](crate::Client::track) has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The end of the process, by whatever means: each event has been given to the operating system. Costs
    /// about a microsecond.
    #[default]
    Process,
    /// Power loss and a crash of the operating system: each event has been synced to the disk. Costs what
    /// the disk takes for that; threads that track at the same time share it.
    Power,
}

/// A spool in a directory. See the [module's documentation](self) for its files.
#[derive(Debug)]
pub struct DirectorySpool {
    root: PathBuf,
    lane: PathBuf,
    /// Held, and so locked, for as long as this lives.
    _lock: File,
    durability: Durability,
    /// The segment that events are appended to. For a moment another, when a batch is divided meanwhile.
    open: Vec<Open>,
    /// Segments that the disk would not take.
    overflow: MemorySpool,
    trouble: Option<io::Error>,
    sync: Arc<GroupSync>,
    /// The round of the last append, if it has to be synced.
    #[cfg(feature = "client")]
    round: Option<Round>,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    batch_id: BatchId,
    file: Arc<File>,
    bytes: u64,
}

impl DirectorySpool {
    /// Opens the spool in `root`, which is made if there is none: takes a lane of its own, and adopts what
    /// is in lanes whose process is gone.
    ///
    /// # Errors
    ///
    /// If the directory cannot be used, or if it holds segments of a version that is not known here.
    pub fn open(root: &Path, durability: Durability) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let (lane, lock) = claim(root)?;
        if durability == Durability::Power {
            sync_folder(root)?;
        }
        let spool = Self {
            root: root.into(),
            lane,
            _lock: lock,
            durability,
            open: Vec::new(),
            overflow: MemorySpool::new(),
            trouble: None,
            sync: Arc::default(),
            #[cfg(feature = "client")]
            round: None,
            frame: Vec::new(),
        };
        spool.adopt()?;
        Ok(spool)
    }

    /// How many events are held in memory because the disk would not take them.
    #[cfg(feature = "client")]
    pub(crate) fn volatile(&self) -> u64 {
        self.overflow.events()
    }

    /// Why the disk did not take what is now held in memory, since this was last asked.
    #[cfg(feature = "client")]
    pub(crate) fn take_trouble(&mut self) -> Option<io::Error> {
        self.trouble.take()
    }

    /// What to wait for so that the last append is on the disk; `None` if there is nothing to wait for.
    #[cfg(feature = "client")]
    pub(crate) fn unsynced(&self) -> Option<Unsynced> {
        self.round.as_ref().map(|round| Unsynced { sync: Arc::clone(&self.sync), round: Arc::clone(round) })
    }

    /// From now on, nothing that is written to open segments can be synced.
    #[cfg(all(test, unix, feature = "client"))]
    pub(crate) fn break_syncs(&mut self) {
        for open in &mut self.open {
            // It takes whatever is written, and cannot be synced.
            open.file = Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap());
        }
    }

    /// Moves the segments of abandoned lanes here. Each one moves whole, so a crash on the way harms none.
    fn adopt(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let is_lane = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(LANE));
            if !is_lane || path == self.lane {
                continue;
            }
            // Gone in the meantime, or in use: somebody else's.
            let Ok(lock) = File::options().read(true).write(true).open(path.join(LOCK)) else { continue };
            if lock.try_lock().is_err() {
                continue;
            }
            let mut found = segments(&path)?;
            // First the parts beside their whole go, which were never sent. If this process died before it had moved
            // them all, two others could otherwise adopt a part and its whole apart, and send both.
            let batches: HashSet<_> = found.iter().map(|(_, batch)| *batch).collect();
            let parts = parts(batches.iter().copied(), |batch| batches.contains(&batch));
            for (from, _) in found.extract_if(.., |(_, batch)| parts.contains(batch)) {
                fs::remove_file(from)?;
            }
            if self.durability == Durability::Power && !parts.is_empty() {
                sync_folder(&path)?;
            }
            for (from, _) in found {
                if let Some(name) = from.file_name() {
                    fs::rename(&from, self.lane.join(name))?;
                }
            }
            if self.durability == Durability::Power {
                sync_folder(&self.lane)?;
            }
            let _ = fs::remove_file(path.join(LOCK));
            let _ = fs::remove_dir(&path);
        }
        Ok(())
    }

    fn path(&self, batch: BatchId, extension: &str) -> PathBuf {
        self.lane.join(format!("{batch}.{extension}"))
    }

    /// Fills `frame` with a frame around `text`, behind a header if it is the first.
    fn frame(&mut self, text: &str, first: bool) {
        self.frame.clear();
        if first {
            self.frame.extend_from_slice(HEADER);
        }
        self.frame.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.frame.extend_from_slice(&crc32fast::hash(text.as_bytes()).to_le_bytes());
        self.frame.extend_from_slice(text.as_bytes());
    }

    fn create(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        let path = self.path(batch, OPEN);
        self.frame(text, true);
        let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        let written = file.write_all(&self.frame).and_then(|()| match self.durability {
            Durability::Process => Ok(()),
            Durability::Power => sync_folder(&self.lane),
        });
        if written.is_err() {
            let _ = fs::remove_file(path);
        } else {
            self.open.push(Open { batch_id: batch, file: Arc::new(file), bytes: self.frame.len() as u64 });
        }
        written
    }

    fn position(&self, batch: BatchId) -> Option<usize> {
        self.open.iter().position(|open| open.batch_id == batch)
    }

    fn extend(&mut self, at: usize, text: &str) -> io::Result<()> {
        self.frame(text, false);
        let open = &mut self.open[at];
        if let Err(error) = (&*open.file).write_all(&self.frame) {
            // Half a frame must not stay in front of the next one.
            let _ = open.file.set_len(open.bytes);
            return Err(error);
        }
        open.bytes += self.frame.len() as u64;
        Ok(())
    }

    /// The next sync is to sync this segment.
    #[cfg(feature = "client")]
    fn appended(&mut self, at: usize) {
        self.round = (self.durability == Durability::Power).then(|| self.sync.join(&self.open[at].file));
    }

    #[cfg(not(feature = "client"))]
    #[expect(clippy::needless_pass_by_ref_mut, clippy::unused_self, reason = "the same call with and without")]
    fn appended(&mut self, _: usize) {}

    fn quarantine(&self, path: &Path) -> io::Result<()> {
        let corrupt = self.root.join(CORRUPT);
        fs::create_dir_all(&corrupt)?;
        match path.file_name() {
            Some(name) => fs::rename(path, corrupt.join(name)),
            None => Ok(()),
        }
    }

    /// Looks at one segment of an earlier life, and makes it whole.
    fn restore(&mut self, path: &Path, batch_id: BatchId, recovered: &mut Recovered) -> io::Result<()> {
        let bytes = fs::read(path)?;
        let mut content = match parse(&bytes) {
            Ok(content) => content,
            Err(Damage::Version(version)) => {
                return Err(io::Error::other(format!(
                    "{} is of version {version}, and this program knows version {}: use the program that wrote it, \
                     or move the file away",
                    path.display(),
                    HEADER[7]
                )));
            }
            Err(Damage::NoSegment) => Content::default(),
        };
        let is_sealed = path.extension() == Some(OsStr::new(SEALED));
        let events = body::events(&content.text).count() as u32;
        let is_whole = content.bytes == bytes.len() && body::is_closed(&content.text);
        if is_sealed && !is_whole {
            // It may have been sent as it was, so a shorter one must not be sent under the same id.
            recovered.corrupt += events;
            return self.quarantine(path);
        }
        if events == 0 {
            // Torn before its first event was whole.
            return fs::remove_file(path);
        }
        if !is_sealed {
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.set_len(content.bytes as u64)?;
            if !body::is_closed(&content.text) {
                let closing = body::closing(&Losses::default());
                self.frame(&closing, false);
                file.write_all(&self.frame)?;
                content.text.push_str(&closing);
            }
            if self.durability == Durability::Power {
                file.sync_all()?;
            }
            fs::rename(path, self.path(batch_id, SEALED))?;
        }
        recovered.segments.push(Segment { batch_id, events, bytes: content.text.len() });
        Ok(())
    }
}

impl Spool for DirectorySpool {
    type Error = io::Error;

    fn append(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        #[cfg(feature = "client")]
        {
            self.round = None;
        }
        if self.overflow.holds(batch) {
            return kept(self.overflow.append(batch, text));
        }
        if let Some(at) = self.position(batch) {
            self.extend(at, text)?;
            self.appended(at);
            return Ok(());
        }
        // A new segment that the disk does not take is held in memory. Not a whole one, though: that is a part of a
        // batch which is safe where it is, and would not be safe there.
        if let Err(error) = self.create(batch, text) {
            if body::is_closed(text) {
                return Err(error);
            }
            self.trouble = Some(error);
            return kept(self.overflow.append(batch, text));
        }
        self.appended(self.open.len() - 1);
        Ok(())
    }

    fn seal(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        if self.overflow.holds(batch) {
            return kept(self.overflow.seal(batch, text));
        }
        let Some(at) = self.position(batch) else { return Err(ErrorKind::NotFound.into()) };
        let closed = if text.is_empty() { Ok(()) } else { self.extend(at, text) };
        let open = self.open.remove(at);
        if self.durability == Durability::Power {
            // Whoever waits for an event in it hears of it if that fails.
            self.sync.wait(&self.sync.join(&open.file))?;
        }
        closed?;
        fs::rename(self.path(batch, OPEN), self.path(batch, SEALED))
    }

    fn read(&mut self, batch: BatchId) -> io::Result<String> {
        if self.overflow.holds(batch) {
            return kept(self.overflow.read(batch));
        }
        let sealed = self.path(batch, SEALED);
        let (path, bytes) = match fs::read(&sealed) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let open = self.path(batch, OPEN);
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
                    format!("{} is corrupt and was moved aside", path.display()),
                ))
            }
        }
    }

    fn may_pass(error: &io::Error) -> bool {
        // No file descriptors left, say. The file is there all the same.
        !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData)
    }

    fn remove(&mut self, batch: BatchId) -> io::Result<()> {
        if self.overflow.holds(batch) {
            return kept(self.overflow.remove(batch));
        }
        self.open.retain(|open| open.batch_id != batch);
        for extension in [SEALED, OPEN] {
            match fs::remove_file(self.path(batch, extension)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn recover(&mut self) -> io::Result<Recovered> {
        let mut recovered = Recovered::default();
        let mut found = segments(&self.lane)?;
        found.sort();
        for (path, batch_id) in found {
            self.restore(&path, batch_id, &mut recovered)?;
        }
        if self.durability == Durability::Power {
            sync_folder(&self.lane)?;
        }
        Ok(recovered)
    }
}

/// Memory does not fail.
fn kept<T>(result: Result<T, Infallible>) -> io::Result<T> {
    result.map_err(|never| match never {})
}

/// Makes a lane and locks it.
fn claim(root: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let lane = root.join(format!("{LANE}{:016x}", rand::random::<u64>()));
        fs::create_dir(&lane)?;
        let lock = File::create(lane.join(LOCK))?;
        match lock.try_lock() {
            // Still there: nobody took it for abandoned in between.
            Ok(()) if lane.join(LOCK).exists() => return Ok((lane, lock)),
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// The segments in a lane.
fn segments(lane: &Path) -> io::Result<Vec<(PathBuf, BatchId)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(lane)? {
        let path = entry?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        let id = path.file_stem().and_then(OsStr::to_str).and_then(BatchId::parse);
        if let (Some(OPEN | SEALED), Some(id)) = (extension, id) {
            found.push((path, id));
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Content {
    text: String,
    /// How many bytes of the file that takes.
    bytes: usize,
}

enum Damage {
    NoSegment,
    Version(u8),
}

/// Reads whole frames until the end or until one is not whole.
fn parse(bytes: &[u8]) -> Result<Content, Damage> {
    let Some((header, mut rest)) = bytes.split_at_checked(HEADER.len()) else { return Err(Damage::NoSegment) };
    if header[..7] != HEADER[..7] {
        return Err(Damage::NoSegment);
    }
    if header[7] != HEADER[7] {
        return Err(Damage::Version(header[7]));
    }
    let mut content = Content { text: String::with_capacity(bytes.len()), bytes: HEADER.len() };
    while let Some((text, after)) = frame(rest) {
        content.text.push_str(text);
        content.bytes += rest.len() - after.len();
        rest = after;
    }
    Ok(content)
}

fn frame(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    if length == 0 || length > FRAME_BYTES {
        return None;
    }
    let (text, rest) = rest.split_at_checked(length as usize)?;
    if crc32fast::hash(text) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((std::str::from_utf8(text).ok()?, rest))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What came of a sync, once it is over.
type Round = Arc<OnceLock<Result<(), Arc<io::Error>>>>;

/// Syncs for many threads at once: while one round of writes is synced, the next one gathers, and then one of those who
/// wait syncs for all of them.
#[derive(Debug, Default)]
struct GroupSync {
    gathering: Mutex<Gathering>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct Gathering {
    round: Round,
    files: Vec<Arc<File>>,
    /// Whether the round before is being synced.
    syncing: bool,
}

impl GroupSync {
    /// Takes note of a write to `file`.
    fn join(&self, file: &Arc<File>) -> Round {
        let mut gathering = self.gathering();
        if !gathering.files.iter().any(|known| Arc::ptr_eq(known, file)) {
            gathering.files.push(Arc::clone(file));
        }
        Arc::clone(&gathering.round)
    }

    /// Returns when all writes of the round are on the disk.
    fn wait(&self, round: &Round) -> io::Result<()> {
        let mut gathering = self.gathering();
        loop {
            if let Some(outcome) = round.get() {
                return outcome.clone().map_err(|error| io::Error::new(error.kind(), error));
            }
            if gathering.syncing {
                gathering = self.over.wait(gathering).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // No round is before this one, so it is the one that gathers.
            let Gathering { round, files, .. } =
                mem::replace(&mut *gathering, Gathering { syncing: true, ..Gathering::default() });
            drop(gathering);
            let outcome = files.iter().try_for_each(|file| file.sync_data()).map_err(Arc::new);
            gathering = self.gathering();
            gathering.syncing = false;
            if outcome.is_err() {
                // What was written meanwhile may have failed with it, and the system tells that only once.
                let _ = mem::take(&mut *gathering).round.set(outcome.clone());
            }
            let _ = round.set(outcome);
            self.over.notify_all();
        }
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write that may not be on the disk yet.
#[cfg(feature = "client")]
pub(crate) struct Unsynced {
    sync: Arc<GroupSync>,
    round: Round,
}

#[cfg(feature = "client")]
impl Unsynced {
    /// Returns when it is.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.sync.wait(&self.round)
    }
}
