//! The directory lake: newline-delimited JSON in
//! `raw/username=…/event_type=…/day=…/hour=…/NAME.ndjson`, by the day and hour (UTC) of receipt.
//!
//! A file is sealed when it has that name: until it is complete and on disk it is `NAME.open`. A sealed file may be
//! compressed later, to `NAME.ndjson.gz` (see `maintenance/prune.rs`).

use crate::Error;
use flate2::read::MultiGzDecoder;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// Longer than any line, so that a foreign file does not fill the memory.
pub(crate) const LINE_BYTES: u64 = 1024 * 1024;

/// Writes a file and seals it, by renaming it once it is on disk.
pub(crate) fn write_file(folder: &Path, name: &str, texts: impl Iterator<Item = io::Result<String>>) -> io::Result<()> {
    make_folder(folder)?;
    let open = folder.join(format!("{name}.open"));
    let mut file = BufWriter::new(File::create(&open)?);
    for text in texts {
        file.write_all(text?.as_bytes())?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&open, folder.join(format!("{name}.ndjson")))?;
    sync_folder(folder)
}

/// Makes the folder and its parents, each on disk before the next.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(above) = folder.parent() else { return Ok(()) };
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

/// Syncs a folder, so that a rename in it survives a power loss.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The name that a sealed file had before it was compressed, if it has been. `None`: not a sealed file.
pub(crate) fn sealed_name(file: &str) -> Option<&str> {
    let name = file.strip_suffix(".gz").unwrap_or(file);
    name.ends_with(".ndjson").then_some(name)
}

/// Calls `found` with each file of the lake, by its path below `raw`, folder by folder and in order. A sealed file that
/// exists compressed too is left out: a crash has come before its removal.
pub(crate) fn walk<E: From<io::Error>>(raw: &Path, found: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    walk_folder(raw, "", found)
}

/// Whether the lake has any sealed file.
pub(crate) fn has_files(raw: &Path) -> Result<bool, Error> {
    let mut found = false;
    let walked = walk(raw, &mut |path| {
        found |= sealed_name(path).is_some();
        Ok::<_, io::Error>(())
    });
    walked.map(|()| found).map_err(|error| Error::config("cannot list the files of the lake").with_source(error))
}

fn walk_folder<E: From<io::Error>>(
    raw: &Path,
    below: &str,
    found: &mut impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let mut entries = Vec::new();
    match fs::read_dir(raw.join(below)) {
        // No lake yet, or a folder that `prune` has removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => {
            for entry in read? {
                let entry = entry?;
                let name = entry.file_name().into_string().map_err(|name| {
                    io::Error::other(format!("the name of a file in the lake is not UTF-8: {}", name.display()))
                })?;
                entries.push((name, entry.file_type()?.is_dir()));
            }
        }
    }
    entries.sort();
    for (name, is_folder) in &entries {
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if *is_folder {
            walk_folder(raw, &path, found)?;
        } else if entries.binary_search(&(format!("{name}.gz"), false)).is_err() {
            found(&path)?;
        }
    }
    Ok(())
}

/// Calls `take` with each line of a sealed file: its number, and the line without its newline. The inner error says why
/// the file cannot be read to its end.
pub(crate) fn read_lines<E>(
    file: &Path,
    take: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<Result<(), String>, E> {
    let reader = match File::open(file) {
        Ok(reader) => reader,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut reader: Box<dyn BufRead> = if file.extension().is_some_and(|extension| extension == "gz") {
        Box::new(BufReader::new(MultiGzDecoder::new(reader)))
    } else {
        Box::new(BufReader::new(reader))
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.pop() == Some(b'\n') => take(number, &line)?,
            Ok(_) => return Ok(Err(format!("line {number} has no end"))),
            Err(error) => return Ok(Err(format!("line {number}: {error}"))),
        }
    }
    Ok(Ok(()))
}
