//! What pages hand over as text, made fit to send.

use tallymark::Properties;

/// The longest start of `text` that has at most so many bytes.
pub(crate) fn cut(mut text: String, bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes));
    text
}

/// Properties from what `JSON.stringify` made of them, if anything, or the code of what is wrong.
pub(crate) fn properties(json: String) -> Result<Option<Properties>, &'static str> {
    if json.is_empty() {
        return Ok(None);
    }
    Properties::from_stringified(json).map(Some).map_err(|invalid| invalid.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("tea".into(), 3), "tea");
        assert_eq!(cut("tea".into(), 2), "te");
        assert_eq!(cut("茶茶".into(), 5), "茶");
        assert_eq!(cut("🍵".into(), 3), "");
    }

    #[test]
    fn takes_objects_only() {
        assert_eq!(properties(r#"{"a":[1]}"#.into()).unwrap().unwrap().as_str(), r#"{"a":[1]}"#);
        assert_eq!(properties(String::new()), Ok(None));
        for json in ["7", "null", "[1]", "\"{}\"", "{}\n{}"] {
            assert_eq!(properties(json.into()), Err("invalid_properties"), "{json}");
        }
    }
}
