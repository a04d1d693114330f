//! Repairs text that is almost JSON, so that one event which a careless serializer wrote does not harm its whole batch.
//!
//! Only text that serde_json refuses comes here. Inside of strings, what has an obvious meaning gets it: a lone surrogate
//! or invalid UTF-8 becomes U+FFFD, and a raw control character or a wrong escape is escaped. Outside of strings, `NaN` and
//! `Infinity` become a number that is out of range: the event that holds it is then refused, and no other.

/// No reader takes it, but it ends where a number ends.
const NO_NUMBER: &str = "1e9999";

/// The text, repaired.
pub fn repair(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut repaired = String::with_capacity(text.len() + 16);
    let mut rest = &*text;
    let mut in_string = false;
    while let Some(next) = rest.chars().next() {
        let (taken, written) = match next {
            '"' => {
                in_string = !in_string;
                (1, None)
            }
            '\\' if in_string => escape(rest),
            '\0'..' ' if in_string => (1, Some(format!("\\u{:04x}", u32::from(next)))),
            'N' if !in_string && rest.starts_with("NaN") => (3, Some(NO_NUMBER.into())),
            'I' if !in_string && rest.starts_with("Infinity") => (8, Some(NO_NUMBER.into())),
            _ => (next.len_utf8(), None),
        };
        repaired.push_str(written.as_deref().unwrap_or(&rest[..taken]));
        rest = &rest[taken..];
    }
    repaired
}

/// How much an escape at the start of the text takes, and what it becomes if it is not right.
fn escape(text: &str) -> (usize, Option<String>) {
    match text.as_bytes().get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (2, None),
        Some(b'u') => match unit(text) {
            Some(0xD800..0xDC00) if matches!(text.get(6..).and_then(unit), Some(0xDC00..0xE000)) => (12, None),
            Some(0xD800..0xE000) => (6, Some("\\ufffd".into())),
            Some(_) => (6, None),
            None => (1, Some("\\\\".into())),
        },
        _ => (1, Some("\\\\".into())),
    }
}

/// The UTF-16 unit of the `\uXXXX` at the start of the text.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn strings_keep_what_can_be_kept() {
        let cases: [(&[u8], Value); 9] = [
            (br#"["\ud800"]"#, json!(["\u{fffd}"])),
            (br#"["\udc00\ud83d\ude00\ud800\ud800"]"#, json!(["\u{fffd}\u{1f600}\u{fffd}\u{fffd}"])),
            (b"[\"a\nb\x01\"]", json!(["a\nb\u{1}"])),
            (br#"["\x41", "C:\dir"]"#, json!(["\\x41", "C:\\dir"])),
            (br#"["\u12"]"#, json!(["\\u12"])),
            (b"[\"\xff\xc3\xa9\"]", json!(["\u{fffd}\u{e9}"])),
            (br#"["NaN \" Infinity"]"#, json!(["NaN \" Infinity"])),
            (br#"["\\", 1, "\/"]"#, json!(["\\", 1, "/"])),
            ("[\"\u{1f600}\"]".as_bytes(), json!(["\u{1f600}"])),
        ];
        for (text, expected) in cases {
            assert_eq!(serde_json::from_str::<Value>(&repair(text)).unwrap(), expected);
        }
        assert_eq!(repair(b"[NaN,-Infinity,Infinity]"), "[1e9999,-1e9999,1e9999]");
        for end in [&b"\""[..], b"\"\\", b"\"\\u", b"\"\\ud800\\u", b"Na", "\"\\u\u{e9}\u{e9}".as_bytes()] {
            repair(end);
        }
    }
}
