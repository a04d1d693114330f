//! The format of a segment file.
//!
//! A file begins with a header of eight bytes, the last of which is the version of the format. Frames follow: length
//! (4 bytes, little-endian), CRC-32 of the text (4 bytes, little-endian), text. The joined texts are the body of the
//! batch.

use crate::core::limits;

const HEADER: &[u8; 8] = b"tallymk\x01";
/// The version of the format that this crate reads and writes.
pub(super) const VERSION: u8 = HEADER[7];
/// More than the text of any frame: an event, or a whole batch that is a part of another.
const FRAME_BYTES: u32 = 2 * limits::BATCH_BYTES as u32;

/// The readable part of a segment file.
#[derive(Default)]
pub(super) struct Content {
    /// The joined texts of its frames.
    pub(super) text: String,
    /// The length of this part of the file.
    pub(super) bytes: usize,
}

/// Why a file has no readable part.
pub(super) enum Damage {
    NoSegment,
    /// The file has another version of the format.
    Version(u8),
}

/// Replaces `buffer` by a frame around `text`, with a header before it if it is the `first` of its file.
pub(super) fn write_frame(buffer: &mut Vec<u8>, text: &str, first: bool) {
    buffer.clear();
    if first {
        buffer.extend_from_slice(HEADER);
    }
    buffer.extend_from_slice(&(text.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&crc32fast::hash(text.as_bytes()).to_le_bytes());
    buffer.extend_from_slice(text.as_bytes());
}

/// Reads frames until the end or the first damaged frame.
pub(super) fn parse(bytes: &[u8]) -> Result<Content, Damage> {
    let Some((header, mut rest)) = bytes.split_at_checked(HEADER.len()) else { return Err(Damage::NoSegment) };
    if header[..7] != HEADER[..7] {
        return Err(Damage::NoSegment);
    }
    if header[7] != VERSION {
        return Err(Damage::Version(header[7]));
    }
    let mut content = Content { text: String::with_capacity(bytes.len()), bytes: HEADER.len() };
    while let Some((text, after)) = read_frame(rest) {
        content.text.push_str(text);
        content.bytes += rest.len() - after.len();
        rest = after;
    }
    Ok(content)
}

fn read_frame(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    if length == 0 || length > FRAME_BYTES {
        return None;
    }
    let (text, rest) = rest.split_at_checked(length as usize)?;
    if crc32fast::hash(text) != u32::from_le_bytes(*crc) {
        return None;
    }
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Whether `rest`, the unreadable end of a file, is what an interrupted write leaves. Its event was not acknowledged.
/// `first` if `rest` is the whole file, with the header.
pub(super) fn is_torn(rest: &[u8], first: bool) -> bool {
    // After a power loss, a file may be longer than what was written to it.
    if rest.iter().all(|byte| *byte == 0) {
        return true;
    }
    if first {
        return HEADER.starts_with(rest);
    }
    let Some((length, rest)) = rest.split_first_chunk::<4>() else { return true };
    let Some((crc, text)) = rest.split_first_chunk::<4>() else { return true };
    let length = u32::from_le_bytes(*length);
    // Several events are more than one frame. And if the text matches its checksum, it is the length that is damaged.
    let is_complete = crc32fast::hash(text) == u32::from_le_bytes(*crc) && !text.is_empty();
    length <= FRAME_BYTES && text.len() < length as usize && events_in(text) <= 1 && !is_complete
}

/// The number of events that begin in these bytes.
pub(super) fn events_in(bytes: &[u8]) -> u32 {
    bytes.windows(2).filter(|pair| pair == b"\n{").count() as u32
}
