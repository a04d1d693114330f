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
//! truth. A torn last frame was never acknowledged to anybody, and is cut off; what is damaged otherwise goes to
//! `corrupt/`.

use crate::body;
use crate::id::{BatchId, parts};
use crate::loss::Losses;
use crate::spool::{MemorySpool, Recovered, Segment, Spool};
use rand::TryRng;
use rand::rngs::SysRng;
use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::UNIX_EPOCH;

const HEADER: &[u8; 8] = b"tallymk\x01";
/// A frame is never longer: an event, or a whole batch that was divided.
const FRAME_BYTES: u32 = 2 * crate::limits::BATCH_BYTES as u32;
const OPEN: &str = "open";
const SEALED: &str = "batch";
const LOCK: &str = "lock";
const CORRUPT: &str = "corrupt";
const LANE: &str = "lane-";
/// As many segments are taken over in one go: whoever tracks waits for it.
const AT_ONCE: usize = 16;

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
    /// Other lanes still to be looked at, the oldest last.
    others: Vec<PathBuf>,
    /// The one that is being emptied.
    estate: Option<Estate>,
    /// What is here already and was not told, because of an error on the way.
    untold: Recovered,
    most_room: usize,
    sync: Arc<GroupSync>,
    /// The round of the last append, if it has to be synced.
    #[cfg(feature = "client")]
    round: Option<Round>,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    batch_id: BatchId,
    file: Arc<Written>,
    bytes: u64,
}

/// The lane of a process that is gone.
#[derive(Debug)]
struct Estate {
    lane: PathBuf,
    /// Held until it is empty, or until there is no more room for it here.
    _lock: File,
    /// The oldest last.
    segments: Vec<(PathBuf, BatchId)>,
}

impl DirectorySpool {
    /// Opens the spool in `root`, which is made if there is none, and takes a lane of its own. What is in lanes
    /// whose process is gone comes with [`Outbox::adopt`](crate::Outbox::adopt).
    ///
    /// # Errors
    ///
    /// If the directory cannot be used.
    pub fn open(root: &Path, durability: Durability) -> io::Result<Self> {
        // The process may go elsewhere.
        let root = std::path::absolute(root)?;
        fs::create_dir_all(&root)?;
        let (lane, lock) = claim(&root)?;
        if durability == Durability::Power {
            sync_folder(&root)?;
        }
        Ok(Self {
            root,
            lane,
            _lock: lock,
            durability,
            open: Vec::new(),
            overflow: MemorySpool::new(),
            trouble: None,
            others: Vec::new(),
            estate: None,
            untold: Recovered::default(),
            most_room: 0,
            sync: Arc::default(),
            #[cfg(feature = "client")]
            round: None,
            frame: Vec::new(),
        })
    }

    /// How many events are held in memory because the disk would not take them.
    #[cfg(feature = "client")]
    pub(crate) fn volatile(&self) -> u64 {
        self.overflow.events()
    }

    /// What was wrong with the disk or with a segment, since this was last asked.
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
            open.file = Written::new(OpenOptions::new().write(true).open("/dev/null").unwrap());
        }
    }

    /// The lanes besides this one.
    fn other_lanes(&self) -> io::Result<Vec<PathBuf>> {
        let mut lanes = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let is_lane = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(LANE));
            if is_lane && path != self.lane {
                lanes.push(path);
            }
        }
        // Their names begin with the time they were made.
        lanes.sort_unstable_by(|one, other| other.cmp(one));
        Ok(lanes)
    }

    /// Takes hold of a lane, unless it is somebody's.
    fn enter(&self, lane: PathBuf) -> io::Result<Option<Estate>> {
        let lock = match File::options().read(true).write(true).open(lane.join(LOCK)) {
            Ok(lock) => lock,
            // Just being made, or just removed.
            Err(error) if error.kind() == ErrorKind::NotFound && segments(&lane)?.is_empty() => return Ok(None),
            Err(error) => {
                return Err(io::Error::other(format!(
                    "nobody can tell whether {} is in use, for its file `{LOCK}` cannot be opened: {error}",
                    lane.display()
                )));
            }
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut segments = segments(&lane)?;
        // First the parts beside their whole go, which were never sent. Otherwise two could take over a part and its
        // whole apart, and send both.
        let batches: HashSet<_> = segments.iter().map(|(_, batch)| *batch).collect();
        let parts = parts(batches.iter().copied(), |batch| batches.contains(&batch));
        for (path, _) in segments.extract_if(.., |(_, batch)| parts.contains(batch)) {
            fs::remove_file(path)?;
        }
        if self.durability == Durability::Power && !parts.is_empty() {
            sync_folder(&lane)?;
        }
        segments.sort_unstable_by(|(_, one), (_, other)| other.cmp(one));
        Ok(Some(Estate { lane, _lock: lock, segments }))
    }

    /// Takes over one segment, or else looks at the next lane. `false` when there is none.
    fn take_over_next(&mut self) -> io::Result<bool> {
        let Some(estate) = &mut self.estate else {
            let Some(lane) = self.others.pop() else { return Ok(false) };
            self.estate = self.enter(lane)?;
            return Ok(true);
        };
        if let Some((path, batch)) = estate.segments.pop() {
            self.restore(&path, batch)?;
        } else if let Some(estate) = self.estate.take()
            && segments(&estate.lane)?.is_empty()
        {
            let _ = fs::remove_file(estate.lane.join(LOCK));
            let _ = fs::remove_dir(&estate.lane);
        }
        Ok(true)
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
        // Reading is for the case that it loses its name.
        let mut file = OpenOptions::new().read(true).append(true).create_new(true).open(&path)?;
        let written = file.write_all(&self.frame).and_then(|()| match self.durability {
            Durability::Process => Ok(()),
            Durability::Power => sync_folder(&self.lane),
        });
        if written.is_err() {
            let _ = fs::remove_file(path);
        } else {
            self.open.push(Open { batch_id: batch, file: Written::new(file), bytes: self.frame.len() as u64 });
        }
        written
    }

    fn position(&self, batch: BatchId) -> Option<usize> {
        self.open.iter().position(|open| open.batch_id == batch)
    }

    fn extend(&mut self, at: usize, text: &str) -> io::Result<()> {
        self.frame(text, false);
        let open = &mut self.open[at];
        open.file.check()?;
        if let Err(error) = (&open.file.file).write_all(&self.frame) {
            // Half a frame must not stay in front of the next one.
            let _ = open.file.file.set_len(open.bytes);
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

    /// Holds in memory what is in a file that has no name any more.
    fn rescue(&mut self, batch: BatchId, mut file: &File) -> io::Result<()> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        let Ok(Content { mut text, .. }) = parse(&bytes) else { return Err(ErrorKind::InvalidData.into()) };
        let is_closed = body::is_closed(&text);
        if !is_closed {
            text.push_str(&body::closing(&Losses::default()));
        }
        kept(self.overflow.append(batch, &text))?;
        if is_closed { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    /// The place in `corrupt/` for this file.
    fn aside(&self, path: &Path) -> io::Result<PathBuf> {
        let corrupt = self.root.join(CORRUPT);
        fs::create_dir_all(&corrupt)?;
        Ok(corrupt.join(path.file_name().unwrap_or_default()))
    }

    fn quarantine(&self, path: &Path) -> io::Result<()> {
        fs::rename(path, self.aside(path)?)
    }

    /// As many events of an earlier life are lost with this file.
    fn lost(&mut self, path: &Path, events: u32, why: &str) {
        self.untold.corrupt += events;
        self.trouble = Some(io::Error::new(
            ErrorKind::InvalidData,
            format!("{} {why}: it is in {CORRUPT}/ now, and {events} events are lost", path.display()),
        ));
    }

    /// Looks at one segment of an earlier life, makes it whole, and moves it here.
    fn restore(&mut self, path: &Path, batch_id: BatchId) -> io::Result<()> {
        let mut bytes = Vec::new();
        if let Err(error) = File::open(path)?.read_to_end(&mut bytes) {
            self.quarantine(path)?;
            self.lost(path, events_in(&bytes).max(1), &format!("cannot be read ({error})"));
            return Ok(());
        }
        let mut content = match parse(&bytes) {
            Ok(content) => content,
            Err(Damage::Version(version)) => {
                return Err(io::Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{} is of version {version}, and this program knows version {}: use the program that wrote \
                         it, or move the file away",
                        path.display(),
                        HEADER[7]
                    ),
                ));
            }
            Err(Damage::NoSegment) => Content::default(),
        };
        let is_sealed = path.extension() == Some(OsStr::new(SEALED));
        let events = body::events(&content.text).count() as u32;
        let rest = &bytes[content.bytes..];
        if is_sealed && !(rest.is_empty() && body::is_closed(&content.text)) {
            // It may have been sent as it was, so a shorter one must not be sent under the same id.
            self.quarantine(path)?;
            self.lost(path, events_in(&bytes), "is damaged");
            return Ok(());
        }
        let is_torn = is_torn(rest, content.bytes == 0);
        if events == 0 {
            if is_torn {
                return fs::remove_file(path);
            }
            self.quarantine(path)?;
            self.lost(path, events_in(rest), "is damaged");
            return Ok(());
        }
        let mut extension = SEALED;
        if !is_sealed {
            if !is_torn {
                fs::copy(path, self.aside(path)?)?;
            }
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.set_len(content.bytes as u64)?;
            if !is_torn {
                self.lost(path, events_in(rest), "was damaged");
            }
            if !body::is_closed(&content.text) {
                let closing = body::closing(&Losses::default());
                self.frame(&closing, false);
                if file.write_all(&self.frame).is_err() {
                    // The disk is full, say. Whoever reads it gives it that end as well.
                    let _ = file.set_len(content.bytes as u64);
                    extension = OPEN;
                }
                content.text.push_str(&closing);
            }
            if self.durability == Durability::Power {
                file.sync_all()?;
            }
        }
        fs::rename(path, self.path(batch_id, extension))?;
        self.untold.segments.push(Segment { batch_id, events, bytes: content.text.len() });
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
        let synced = match self.durability {
            Durability::Process => Ok(()),
            // Whoever waits for an event in it hears of it if that fails.
            Durability::Power => self.sync.wait(&self.sync.join(&open.file)),
        };
        let path = self.path(batch, OPEN);
        match closed.and(synced).and_then(|()| fs::rename(&path, self.path(batch, SEALED))) {
            // Somebody has removed the file, or the directory. As long as it is open, what is in it is not lost.
            Err(error) if !path.exists() => {
                self.trouble = Some(error);
                self.rescue(batch, &open.file.file)
            }
            sealed => sealed,
        }
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

    /// Nothing: its lane is new.
    fn recover(&mut self) -> io::Result<Recovered> {
        Ok(Recovered::default())
    }

    /// What is in lanes whose process is gone, the oldest first, some segments at a time: until there is nothing more,
    /// or until half of the most `room` there ever was is taken. The rest of that is for new events, which would
    /// otherwise push out what is safe where it is.
    ///
    /// # Errors
    ///
    /// If a lane or a segment cannot be taken over. It is left alone, and the next call goes on behind it.
    fn adopt(&mut self, room: usize) -> io::Result<Recovered> {
        self.most_room = self.most_room.max(room);
        let room = room.saturating_sub(self.most_room / 2);
        if self.others.is_empty() && self.estate.is_none() && room > 0 {
            self.others = self.other_lanes()?;
        }
        let taken = |untold: &Recovered| untold.segments.iter().map(|segment| segment.bytes).sum::<usize>();
        while taken(&self.untold) < room && self.untold.segments.len() < AT_ONCE {
            match self.take_over_next() {
                Ok(true) => {}
                Ok(false) => break,
                // Another was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if taken(&self.untold) >= room {
            // Another may have room for the rest.
            self.estate = None;
            self.others.clear();
        }
        if self.durability == Durability::Power && !self.untold.segments.is_empty() {
            sync_folder(&self.lane)?;
        }
        Ok(mem::take(&mut self.untold))
    }
}

/// Memory does not fail.
fn kept<T>(result: Result<T, Infallible>) -> io::Result<T> {
    result.map_err(|never| match never {})
}

/// Makes a lane and locks it.
fn claim(root: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        // By the time, so that the oldest can be found. From the system's generator, because that of a thread is the same
        // in all processes that were forked from one.
        let made_at = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        let random = SysRng.try_next_u64().map_err(io::Error::other)?;
        let lane = root.join(format!("{LANE}{made_at:012x}-{random:016x}"));
        match fs::create_dir(&lane) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made?,
        }
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

/// Whether this is what a write leaves that was cut short: nobody was told that it is stored. `first` if there is not
/// even a header before it.
fn is_torn(rest: &[u8], first: bool) -> bool {
    // After a power loss, the file may be longer than what was written of it.
    if rest.iter().all(|byte| *byte == 0) {
        return true;
    }
    if first {
        return HEADER.starts_with(rest);
    }
    let Some((length, rest)) = rest.split_first_chunk::<4>() else { return true };
    let Some((crc, text)) = rest.split_first_chunk::<4>() else { return true };
    let length = u32::from_le_bytes(*length);
    // Several events are not one frame, and a whole text was not cut short: then it is the length that is damaged.
    let is_text = crc32fast::hash(text) == u32::from_le_bytes(*crc) && !text.is_empty();
    length <= FRAME_BYTES && text.len() < length as usize && events_in(text) <= 1 && !is_text
}

/// How many events begin in these bytes, whatever else is in them.
fn events_in(bytes: &[u8]) -> u32 {
    bytes.windows(2).filter(|pair| pair == b"\n{").count() as u32
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What came of a sync, once it is over.
type Round = Arc<OnceLock<Result<(), Arc<io::Error>>>>;

/// A file that is written to.
#[derive(Debug)]
struct Written {
    file: File,
    /// Why a sync of it has failed. The system tells that once, and then goes on as if all were well, so nothing more
    /// may be written here.
    failed: OnceLock<Arc<io::Error>>,
}

impl Written {
    fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file, failed: OnceLock::new() })
    }

    fn check(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |error| Err(again(error)))
    }
}

/// The same error for one more.
fn again(error: &Arc<io::Error>) -> io::Error {
    io::Error::new(error.kind(), Arc::clone(error))
}

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
    files: Vec<Arc<Written>>,
    /// Whether the round before is being synced.
    syncing: bool,
}

impl GroupSync {
    /// Takes note of a write to `file`.
    fn join(&self, file: &Arc<Written>) -> Round {
        let mut gathering = self.gathering();
        if let Some(error) = file.failed.get() {
            return Arc::new(OnceLock::from(Err(Arc::clone(error))));
        }
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
                return outcome.as_ref().copied().map_err(again);
            }
            if gathering.syncing {
                gathering = self.over.wait(gathering).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // No round is before this one, so it is the one that gathers.
            let Gathering { round, files, .. } =
                mem::replace(&mut *gathering, Gathering { syncing: true, ..Gathering::default() });
            drop(gathering);
            let outcome = files.iter().try_for_each(|file| file.file.sync_data()).map_err(Arc::new);
            gathering = self.gathering();
            gathering.syncing = false;
            if let Err(error) = &outcome {
                // What was written meanwhile may have failed with it.
                let meanwhile = mem::take(&mut *gathering);
                for file in files.iter().chain(&meanwhile.files) {
                    let _ = file.failed.set(Arc::clone(error));
                }
                let _ = meanwhile.round.set(outcome.clone());
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
