//! Spools: where batches are stored until the collector has answered for them.

#[cfg(feature = "spool")]
mod directory;
mod memory;
mod traits;

#[cfg(all(feature = "client", feature = "spool"))]
pub(crate) use directory::Unsynced;
#[cfg(feature = "spool")]
pub use directory::{DirectorySpool, Durability};
pub use memory::MemorySpool;
pub use traits::{Recovered, Segment, Spool};
