//! Syncing files and folders to the disk, for many threads at once.

use std::fs::File;
use std::io;
use std::mem;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The result of a sync, once it is complete.
pub(super) type Round = Arc<OnceLock<Result<(), Arc<io::Error>>>>;

/// A file that is appended to.
#[derive(Debug)]
pub(super) struct SyncedFile {
    pub(super) file: File,
    /// Why a sync of the file failed. The operating system reports that once and then forgets it, so nothing more may
    /// be written to the file.
    failed: OnceLock<Arc<io::Error>>,
}

impl SyncedFile {
    pub(super) fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file, failed: OnceLock::new() })
    }

    /// # Errors
    ///
    /// If an earlier sync of the file failed.
    pub(super) fn check(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |error| Err(shared(error)))
    }
}

/// The same error for another caller.
fn shared(error: &Arc<io::Error>) -> io::Error {
    io::Error::new(error.kind(), Arc::clone(error))
}

/// Syncs for many threads at once: while one round of writes is synced, the next gathers, and then one of the waiting
/// threads syncs for all of them.
#[derive(Debug, Default)]
pub(super) struct GroupSync {
    gathering: Mutex<Gathering>,
    complete: Condvar,
}

#[derive(Debug, Default)]
struct Gathering {
    round: Round,
    files: Vec<Arc<SyncedFile>>,
    /// Whether the previous round is being synced.
    syncing: bool,
}

impl GroupSync {
    /// Adds a write to `file` to the round that gathers.
    pub(super) fn join(&self, file: &Arc<SyncedFile>) -> Round {
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
    ///
    /// # Errors
    ///
    /// If a file of the round could not be synced.
    pub(super) fn wait(&self, round: &Round) -> io::Result<()> {
        let mut gathering = self.gathering();
        loop {
            if let Some(result) = round.get() {
                return result.as_ref().copied().map_err(shared);
            }
            if gathering.syncing {
                gathering = self.complete.wait(gathering).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // No other round is being synced, so `round` is the one that gathers.
            let Gathering { round, files, .. } =
                mem::replace(&mut *gathering, Gathering { syncing: true, ..Gathering::default() });
            drop(gathering);
            let result = files.iter().try_for_each(|file| file.file.sync_data()).map_err(Arc::new);
            gathering = self.gathering();
            gathering.syncing = false;
            if let Err(error) = &result {
                // Writes during the sync may have failed with it.
                let meanwhile = mem::take(&mut *gathering);
                for file in files.iter().chain(&meanwhile.files) {
                    let _ = file.failed.set(Arc::clone(error));
                }
                let _ = meanwhile.round.set(result.clone());
            }
            let _ = round.set(result);
            self.complete.notify_all();
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
    pub(super) fn new(sync: Arc<GroupSync>, round: Round) -> Self {
        Self { sync, round }
    }

    /// Returns when the write is on the disk.
    ///
    /// # Errors
    ///
    /// If it could not be synced.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.sync.wait(&self.round)
    }
}
