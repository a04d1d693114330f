//! Reads the username and the key out of an `Authorization` header. The collector and the authorizer read it alike.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The username and the key in an `Authorization` header, unless it is malformed.
///
/// ```
/// use tallymark_collector::sites::basic_auth::credentials;
///
/// assert_eq!(credentials(b"Basic c2hvcDprZXk="), Some(("shop".into(), "key".into())));
/// assert_eq!(credentials(b"Bearer c2hvcDprZXk="), None);
/// ```
pub fn credentials(header: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (username, key) = decoded.split_once(':')?;
    Some((username.into(), key.into()))
}
