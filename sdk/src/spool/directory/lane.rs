//! Lanes: the folders in a spool's directory, each of which one process at a time writes to, under a lock.

use crate::core::id::{BatchId, parts};
use crate::spool::directory::sync::sync_folder;
use rand::TryRng;
use rand::rngs::SysRng;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The extension of a segment that takes events.
pub(super) const OPEN: &str = "open";
/// The extension of a sealed segment.
pub(super) const SEALED: &str = "batch";
const LOCK: &str = "lock";
const LANE: &str = "lane-";

/// The lane that this process writes to.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) path: PathBuf,
    /// Open, and so locked, as long as the lane is in use.
    _lock: File,
}

impl Lane {
    /// Creates a lane in the spool's directory and locks it.
    pub(super) fn claim(root: &Path) -> io::Result<Self> {
        loop {
            // The name begins with the time, so that lanes sort by age. The random part is the operating system's,
            // because a thread's generator is the same in all processes that were forked from one.
            let made_at = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
            let random = SysRng.try_next_u64().map_err(io::Error::other)?;
            let path = root.join(format!("{LANE}{made_at:012x}-{random:016x}"));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let lock = File::create(path.join(LOCK))?;
            match lock.try_lock() {
                // If the file is gone, another process took the new lane for an abandoned one.
                Ok(()) if path.join(LOCK).exists() => return Ok(Self { path, _lock: lock }),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The path of a segment.
    pub(super) fn segment(&self, batch: BatchId, extension: &str) -> PathBuf {
        self.path.join(format!("{batch}.{extension}"))
    }

    /// The other lanes in the spool's directory, the oldest last.
    pub(super) fn others(&self, root: &Path) -> io::Result<Vec<PathBuf>> {
        let mut lanes = Vec::new();
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            let is_lane = path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(LANE));
            if is_lane && path != self.path {
                lanes.push(path);
            }
        }
        lanes.sort_unstable_by(|one, other| other.cmp(one));
        Ok(lanes)
    }
}

/// The lane of a process that has ended.
#[derive(Debug)]
pub(super) struct AbandonedLane {
    path: PathBuf,
    /// Open, and so locked, until the lane is empty or this process has no more room.
    _lock: File,
    /// The oldest last.
    segments: Vec<(PathBuf, BatchId)>,
}

impl AbandonedLane {
    /// Locks a lane, unless a process uses it.
    ///
    /// # Errors
    ///
    /// If it is unknown whether the lane is in use, or the lane cannot be read.
    pub(super) fn lock(path: PathBuf, sync: bool) -> io::Result<Option<Self>> {
        let lock = match File::options().read(true).write(true).open(path.join(LOCK)) {
            Ok(lock) => lock,
            // The lane is being created or was just removed.
            Err(error) if error.kind() == ErrorKind::NotFound && segments(&path)?.is_empty() => return Ok(None),
            Err(error) => {
                return Err(io::Error::other(format!(
                    "cannot tell whether {} is in use: opening its file `{LOCK}` failed: {error}; if no process uses \
                     it, create an empty file of that name",
                    path.display()
                )));
            }
        };
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut segments = segments(&path)?;
        // Remove parts whose whole is still there: they were never sent. Otherwise two processes could each take over
        // one of them, and send both.
        let batches: HashSet<_> = segments.iter().map(|(_, batch)| *batch).collect();
        let parts = parts(batches.iter().copied(), |batch| batches.contains(&batch));
        for (segment, _) in segments.extract_if(.., |(_, batch)| parts.contains(batch)) {
            fs::remove_file(segment)?;
        }
        if sync && !parts.is_empty() {
            sync_folder(&path)?;
        }
        segments.sort_unstable_by(|(_, one), (_, other)| other.cmp(one));
        Ok(Some(Self { path, _lock: lock, segments }))
    }

    /// The oldest segment that was not returned yet.
    pub(super) fn next(&mut self) -> Option<(PathBuf, BatchId)> {
        self.segments.pop()
    }

    /// Removes the lane, if it is empty.
    pub(super) fn remove(self) -> io::Result<()> {
        if segments(&self.path)?.is_empty() {
            let _ = fs::remove_file(self.path.join(LOCK));
            let _ = fs::remove_dir(&self.path);
        }
        Ok(())
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
