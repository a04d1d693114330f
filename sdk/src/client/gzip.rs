//! Compressed bodies.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Compresses bodies above a size, until the collector or a proxy turns out not to accept them.
pub(super) struct Gzip {
    above: AtomicUsize,
}

impl Gzip {
    pub(super) fn above(bytes: Option<usize>) -> Self {
        Self { above: AtomicUsize::new(bytes.unwrap_or(usize::MAX)) }
    }

    pub(super) fn compress(&self, body: &str) -> Option<Vec<u8>> {
        if body.len() <= self.above.load(Ordering::Relaxed) {
            return None;
        }
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
        encoder.write_all(body.as_bytes()).ok()?;
        encoder.finish().ok()
    }

    /// Compresses no more bodies.
    pub(super) fn disable(&self) {
        self.above.store(usize::MAX, Ordering::Relaxed);
    }
}
