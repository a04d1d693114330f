//! Random bits for ids and backoff.

use crate::core::id::{self, Random};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter, hashed, whose start and key come from the operating system.
///
/// It belongs to the client, because a thread's generator is gone while the thread ends, and is the same in processes
/// that were forked from one. Threads share it without waiting for each other.
// On a cache line of its own: every thread writes to it, and the state is next to it.
#[repr(align(128))]
pub(super) struct Generator {
    counter: AtomicU64,
    key: u64,
}

impl Generator {
    pub(super) fn seeded() -> Result<Self, SysError> {
        Ok(Self { counter: SysRng.try_next_u64()?.into(), key: SysRng.try_next_u64()? })
    }

    pub(super) fn next(&self) -> u64 {
        id::mix(self.counter.fetch_add(1, Ordering::Relaxed)) ^ self.key
    }
}

impl Random for Generator {
    fn random(&mut self) -> u64 {
        self.next()
    }
}

/// One number from the operating system, or 0 if it has none.
pub(super) fn system_random() -> u64 {
    SysRng.try_next_u64().unwrap_or_default()
}
