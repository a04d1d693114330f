//! Takes over the segments of processes that have ended.

use crate::core::body;
use crate::core::id::BatchId;
use crate::core::loss::Losses;
use crate::spool::directory::lane::{AbandonedLane, OPEN, SEALED};
use crate::spool::directory::segment::{Content, Damage, VERSION, events_in, is_torn, parse, write_frame};
use crate::spool::directory::sync::sync_folder;
use crate::spool::directory::{CORRUPT, DirectorySpool, Durability};
use crate::spool::traits::{Recovered, Segment};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::path::Path;

/// The most segments that are taken over in one call, because threads that track wait for it.
const SEGMENTS_AT_ONCE: usize = 16;

impl DirectorySpool {
    pub(super) fn adopt_segments(&mut self, room: usize) -> io::Result<Recovered> {
        self.most_room = self.most_room.max(room);
        let room = room.saturating_sub(self.most_room / 2);
        if self.others.is_empty() && self.abandoned.is_none() && room > 0 {
            self.others = self.lane.others(&self.root)?;
        }
        let taken = |pending: &Recovered| pending.segments.iter().map(|segment| segment.bytes).sum::<usize>();
        while taken(&self.pending) < room && self.pending.segments.len() < SEGMENTS_AT_ONCE {
            match self.adopt_next() {
                Ok(true) => {}
                Ok(false) => break,
                // Another process was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if taken(&self.pending) >= room {
            // Another process may have room for the rest.
            self.abandoned = None;
            self.others.clear();
        }
        if self.durability == Durability::Power && !self.pending.segments.is_empty() {
            sync_folder(&self.lane.path)?;
        }
        Ok(mem::take(&mut self.pending))
    }

    /// Takes over one segment, or else locks the next lane. Returns `false` if there is none.
    fn adopt_next(&mut self) -> io::Result<bool> {
        let Some(lane) = &mut self.abandoned else {
            let Some(path) = self.others.pop() else { return Ok(false) };
            self.abandoned = AbandonedLane::lock(path, self.durability == Durability::Power)?;
            return Ok(true);
        };
        if let Some((path, batch)) = lane.next() {
            self.adopt_segment(&path, batch)?;
        } else if let Some(lane) = self.abandoned.take() {
            lane.remove()?;
        }
        Ok(true)
    }

    /// Checks one segment, repairs and closes it, and moves it to this lane.
    fn adopt_segment(&mut self, path: &Path, batch_id: BatchId) -> io::Result<()> {
        let mut bytes = Vec::new();
        if let Err(error) = File::open(path)?.read_to_end(&mut bytes) {
            self.quarantine(path)?;
            self.count_corrupt(path, events_in(&bytes).max(1), &format!("cannot be read ({error})"));
            return Ok(());
        }
        let mut content = match parse(&bytes) {
            Ok(content) => content,
            Err(Damage::Version(version)) => {
                return Err(io::Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{} is of version {version}, and this program knows version {VERSION}: use the program that \
                         wrote it, or move the file away",
                        path.display(),
                    ),
                ));
            }
            Err(Damage::NoSegment) => Content::default(),
        };
        let is_sealed = path.extension() == Some(OsStr::new(SEALED));
        let events = body::events(&content.text).count() as u32;
        let rest = &bytes[content.bytes..];
        if is_sealed && !(rest.is_empty() && body::is_closed(&content.text)) {
            // It may have been sent whole, so a shorter batch must not be sent under the same id.
            self.quarantine(path)?;
            self.count_corrupt(path, events_in(&bytes), "is damaged");
            return Ok(());
        }
        if events == 0 {
            if is_torn(rest, content.bytes == 0) {
                return fs::remove_file(path);
            }
            self.quarantine(path)?;
            self.count_corrupt(path, events_in(rest), "is damaged");
            return Ok(());
        }
        let extension = if is_sealed { SEALED } else { self.repair(path, &mut content, rest)? };
        fs::rename(path, self.lane.segment(batch_id, extension))?;
        self.pending.segments.push(Segment { batch_id, events, bytes: content.text.len() });
        Ok(())
    }

    /// Cuts the unreadable `rest` off an open segment and closes it. Returns the extension that its file gets.
    fn repair(&mut self, path: &Path, content: &mut Content, rest: &[u8]) -> io::Result<&'static str> {
        let is_torn = is_torn(rest, content.bytes == 0);
        if !is_torn {
            fs::copy(path, self.corrupt_path(path)?)?;
        }
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.set_len(content.bytes as u64)?;
        if !is_torn {
            self.count_corrupt(path, events_in(rest), "was damaged");
        }
        let mut extension = SEALED;
        if !body::is_closed(&content.text) {
            let closing = body::closing(&Losses::default());
            write_frame(&mut self.frame, &closing, false);
            if file.write_all(&self.frame).is_err() {
                // For example, the disk is full. `read` closes the text of an open segment.
                let _ = file.set_len(content.bytes as u64);
                extension = OPEN;
            }
            content.text.push_str(&closing);
        }
        if self.durability == Durability::Power {
            file.sync_all()?;
        }
        Ok(extension)
    }

    /// Counts events that are lost with a damaged file.
    fn count_corrupt(&mut self, path: &Path, events: u32, problem: &str) {
        self.pending.corrupt += events;
        self.last_error = Some(io::Error::new(
            ErrorKind::InvalidData,
            format!("{} {problem}: it was moved to {CORRUPT}/, and {events} events are lost", path.display()),
        ));
    }
}
