//! Where a client's events are: in memory, or in a directory.

#[cfg(feature = "spool")]
use crate::directory::{DirectorySpool, Durability, Unsynced};
use crate::id::BatchId;
use crate::spool::{MemorySpool, Recovered, Spool};
use std::io;
#[cfg(feature = "spool")]
use std::path::Path;

#[derive(Debug)]
pub(crate) enum Storage {
    Memory(MemorySpool),
    #[cfg(feature = "spool")]
    Directory(Box<DirectorySpool>),
}

impl Storage {
    pub(crate) fn memory() -> Self {
        Self::Memory(MemorySpool::new())
    }

    #[cfg(feature = "spool")]
    pub(crate) fn directory(path: &Path, durability: Durability) -> io::Result<Self> {
        Ok(Self::Directory(Box::new(DirectorySpool::open(path, durability)?)))
    }

    /// How many of the events it holds end with the process.
    #[cfg(feature = "spool")]
    pub(crate) fn volatile(&self) -> u64 {
        match self {
            Self::Memory(memory) => memory.events(),
            Self::Directory(directory) => directory.volatile(),
        }
    }

    /// What to wait for so that the last append survives power loss, if that is wanted.
    #[cfg(feature = "spool")]
    pub(crate) fn unsynced(&self) -> Option<Unsynced> {
        match self {
            Self::Memory(_) => None,
            Self::Directory(directory) => directory.unsynced(),
        }
    }

    /// Whether others may leave something in it.
    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self, Self::Memory(_))
    }

    /// What was wrong with the disk, since this was last asked.
    pub(crate) fn take_trouble(&mut self) -> Option<io::Error> {
        match self {
            Self::Memory(_) => None,
            #[cfg(feature = "spool")]
            Self::Directory(directory) => directory.take_trouble(),
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
    fn may_pass(error: &io::Error) -> bool {
        DirectorySpool::may_pass(error)
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
