//! Who is asking: Basic auth against the list of sites.

use crate::problem::{AUTH_FAILED, AUTH_MALFORMED, AUTH_REQUIRED, ORIGIN_NOT_ALLOWED, Problem, WRITE_KEY_CANNOT_READ};
use crate::site::{Key, Site, Sites};
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The site that may write with this request, and the kind of key it does so with.
pub fn writer<'a>(sites: &'a Sites, headers: &HeaderMap) -> Result<(&'a Site, Key), Problem> {
    let (site, key) = authenticate(sites, headers)?;
    if key == Key::Write {
        let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
        if origin.is_none_or(|origin| !site.origins.iter().any(|known| known == origin)) {
            return Err(Problem::new(
                &ORIGIN_NOT_ALLOWED,
                "Use the write key from a page on one of the site's origins, or use the secret key from a server.",
            ));
        }
    }
    Ok((site, key))
}

/// The site that may read with this request.
pub fn reader<'a>(sites: &'a Sites, headers: &HeaderMap) -> Result<&'a Site, Problem> {
    match authenticate(sites, headers)? {
        (site, Key::Secret) => Ok(site),
        (_, Key::Write) => Err(Problem::new(&WRITE_KEY_CANNOT_READ, "Read with the secret key.")),
    }
}

fn authenticate<'a>(sites: &'a Sites, headers: &HeaderMap) -> Result<(&'a Site, Key), Problem> {
    let Some(header) = headers.get(header::AUTHORIZATION) else {
        return Err(Problem::new(&AUTH_REQUIRED, "Send the username and a key by Basic auth."));
    };
    let (username, key) = credentials(header.as_bytes()).ok_or_else(|| {
        Problem::new(&AUTH_MALFORMED, "Send `Basic`, a space, and base64 of the username, a colon and the key.")
    })?;
    sites
        .authenticate(&username, &key)
        .ok_or_else(|| Problem::new(&AUTH_FAILED, "No site has this username and this key."))
}

fn credentials(header: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (username, key) = decoded.split_once(':')?;
    Some((username.into(), key.into()))
}
