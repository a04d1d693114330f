//! A folder for a spool, and what goes into it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use std::fs;
use std::path::{Path, PathBuf};
use tallymark::{BatchId, DirectorySpool, Recovered, Spool};

pub const NOW: u64 = 1_763_673_600_000;

/// Is removed when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tallymark-spool-{:016x}", rand::random::<u64>()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn files(&self, extension: &str) -> Vec<PathBuf> {
        files(&self.0, extension)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Takes over all segments.
pub fn adopt(spool: &mut DirectorySpool) -> Recovered {
    let mut all = Recovered::default();
    loop {
        let some = spool.adopt(usize::MAX).unwrap();
        if some == Recovered::default() {
            return all;
        }
        all.segments.extend(some.segments);
        all.corrupt += some.corrupt;
    }
}

pub fn id(number: u8) -> BatchId {
    BatchId::new(NOW + u64::from(number), &mut || u64::from(number))
}

pub fn opening(batch: BatchId) -> String {
    format!("{{\"batch_id\":\"{batch}\",\"sdk\":\"t\",\"events\":[\n{{\"n\":0}}")
}
