//! The spool of a client: in memory or in a directory.

use crate::core::id::BatchId;
#[cfg(feature = "spool")]
use crate::spool::{DirectorySpool, Durability, Unsynced};
use crate::spool::{MemorySpool, Recovered, Spool};
use std::io;
#[cfg(feature = "spool")]
use std::path::Path;

#[derive(Debug)]
pub(super) enum Storage {
    Memory(MemorySpool),
    #[cfg(feature = "spool")]
    Directory(Box<DirectorySpool>),
}

impl Storage {
    pub(super) fn memory() -> Self {
        Self::Memory(MemorySpool::new())
    }

    #[cfg(feature = "spool")]
    pub(super) fn directory(path: &Path, durability: Durability) -> io::Result<Self> {
        Ok(Self::Directory(Box::new(DirectorySpool::open(path, durability)?)))
    }

    /// The sync to wait for until the last append survives power loss, if any.
    #[cfg(feature = "spool")]
    pub(super) fn unsynced(&self) -> Option<Unsynced> {
        match self {
            Self::Memory(_) => None,
            Self::Directory(directory) => directory.unsynced(),
        }
    }

    /// Whether other processes may abandon segments in it.
    pub(super) fn is_shared(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }

    /// The last error of the disk since the last call.
    pub(super) fn take_last_error(&mut self) -> Option<io::Error> {
        match self {
            Self::Memory(_) => None,
            #[cfg(feature = "spool")]
            Self::Directory(directory) => directory.take_last_error(),
        }
    }
}

macro_rules! each {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self {
            Self::Memory(memory) => memory.$method($($argument),*).map_err(|never| match never {}),
            #[cfg(feature = "spool")]
            Self::Directory(directory) => directory.$method($($argument),*),
        }
    };
}

impl Spool for Storage {
    type Error = io::Error;

    fn append(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        each!(self, append(batch, text))
    }

    fn seal(&mut self, batch: BatchId, text: &str) -> io::Result<()> {
        each!(self, seal(batch, text))
    }

    fn read(&mut self, batch: BatchId) -> io::Result<String> {
        each!(self, read(batch))
    }

    #[cfg(feature = "spool")]
    fn is_transient(error: &io::Error) -> bool {
        DirectorySpool::is_transient(error)
    }

    fn remove(&mut self, batch: BatchId) -> io::Result<()> {
        each!(self, remove(batch))
    }

    fn recover(&mut self) -> io::Result<Recovered> {
        each!(self, recover())
    }

    fn adopt(&mut self, room: usize) -> io::Result<Recovered> {
        each!(self, adopt(room))
    }
}
