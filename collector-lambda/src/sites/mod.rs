//! The sites that may send and read: who they are, the hashes of their keys, and their origins.

pub mod basic_auth;
pub mod file;
#[cfg(feature = "secret")]
pub mod secret;

use crate::Error;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// The longest username, in bytes.
pub const USERNAME_BYTES: usize = 64;

/// One site, as the sites file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The site's name: lower-case letters, digits, `-` and `_`, at most 64.
    pub username: String,
    /// SHA-256 of the key that writes and reads, as 64 hex digits.
    pub secret_key_sha256: String,
    /// SHA-256 of the key that only writes, and only from the origins.
    pub write_key_sha256: String,
    /// The secret key before this one, while that is still valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_secret_key: Option<OldKey>,
    /// The write key before this one, while that is still valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_write_key: Option<OldKey>,
    /// Where pages with the write key live, such as `https://shop.example`.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Whether the visitors' IP addresses are stored. They are not unless this is set.
    #[serde(default, skip_serializing_if = "is_false")]
    pub store_ip: bool,
}

/// A key that has been replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldKey {
    /// SHA-256 of the key, as 64 hex digits.
    pub sha256: String,
    /// Until when it is valid, in milliseconds since the Unix epoch; without a time, until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl OldKey {
    /// Whether it is still valid.
    pub fn is_good(&self) -> bool {
        self.until.is_none_or(|until| crate::time::now() < until)
    }
}

impl Site {
    /// The replaced key of this scope, if it is still in the list.
    pub fn old_key(&self, scope: KeyScope) -> Option<&OldKey> {
        match scope {
            KeyScope::Secret => self.old_secret_key.as_ref(),
            KeyScope::Write => self.old_write_key.as_ref(),
        }
    }

    fn key_mut(&mut self, scope: KeyScope) -> (&mut String, &mut Option<OldKey>) {
        match scope {
            KeyScope::Secret => (&mut self.secret_key_sha256, &mut self.old_secret_key),
            KeyScope::Write => (&mut self.write_key_sha256, &mut self.old_write_key),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SitesFile {
    sites: Vec<Site>,
}

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "server", derive(clap::ValueEnum))]
pub enum KeyScope {
    /// Writes and reads.
    Secret,
    /// Only writes, and only from the site's origins.
    Write,
}

impl KeyScope {
    /// `secret` or `write`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Write => "write",
        }
    }
}

/// All sites, ready to check credentials against. They may be replaced at any time.
///
/// Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    list: Arc<RwLock<Arc<List>>>,
}

#[derive(Debug, Default)]
struct List {
    sites: HashMap<String, Entry>,
    origins: HashSet<String>,
}

#[derive(Debug)]
struct Entry {
    site: Arc<Site>,
    /// As many for every site, so that a wrong key takes the same time for each.
    keys: [KnownKey; 4],
}

#[derive(Clone, Copy, Debug)]
struct KnownKey {
    scope: KeyScope,
    hash: [u8; 32],
    /// Until when it is valid.
    until: u64,
}

/// No key has this hash.
const NO_KEY: KnownKey = KnownKey { scope: KeyScope::Write, hash: [0; 32], until: 0 };

impl Sites {
    /// Reads the sites from JSON: `{"sites":[{"username":…,"secret_key_sha256":…,"write_key_sha256":…,"origins":[…]}]}`.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        Ok(Self { list: Arc::new(RwLock::new(Arc::new(List::new(parse(json)?)?))) })
    }

    /// Takes these sites instead, unless something is wrong with them.
    pub fn replace(&self, json: &str) -> Result<(), Error> {
        let list = Arc::new(List::new(parse(json)?)?);
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = list;
        Ok(())
    }

    /// The site and what the key allows, if both fit. It takes the same time for an unknown site.
    pub fn authenticate(&self, username: &str, key: &str) -> Option<(Arc<Site>, KeyScope)> {
        let given: [u8; 32] = Sha256::digest(key).into();
        let now = crate::time::now();
        let list = self.list();
        let entry = list.sites.get(username);
        let mut found = None;
        for known in entry.map_or(&[NO_KEY; 4], |entry| &entry.keys) {
            if bool::from(given.ct_eq(&known.hash)) && now < known.until {
                found = Some(known.scope);
            }
        }
        Some((Arc::clone(&entry?.site), found?))
    }

    /// The site of this name.
    pub fn site(&self, username: &str) -> Option<Arc<Site>> {
        self.list().sites.get(username).map(|entry| Arc::clone(&entry.site))
    }

    /// Whether any site has this origin. A preflight carries no credentials, so it cannot be asked for one site.
    pub fn knows_origin(&self, origin: &str) -> bool {
        self.list().origins.contains(origin)
    }

    fn list(&self) -> Arc<List> {
        Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl List {
    fn new(file: SitesFile) -> Result<Self, Error> {
        let mut list = Self::default();
        for site in file.sites {
            check_username(&site.username)?;
            for origin in &site.origins {
                check_origin(origin)?;
                list.origins.insert(origin.clone());
            }
            let username = site.username.clone();
            let keys = known_keys(&site)?;
            let secrets = keys.iter().filter(|known| known.scope == KeyScope::Secret);
            if secrets.clone().any(|secret| keys.iter().any(|k| k.scope == KeyScope::Write && k.hash == secret.hash)) {
                return Err(Error::config(format!("two keys of the site {username} are the same")));
            }
            if list.sites.insert(username.clone(), Entry { site: Arc::new(site), keys }).is_some() {
                return Err(Error::config(format!("the site {username} is listed twice")));
            }
        }
        Ok(list)
    }
}

fn known_keys(site: &Site) -> Result<[KnownKey; 4], Error> {
    let current = |scope, hash| Ok(KnownKey { scope, hash: hash_from_hex(hash)?, until: u64::MAX });
    let old = |scope| match site.old_key(scope) {
        Some(old) => Ok(KnownKey { scope, hash: hash_from_hex(&old.sha256)?, until: old.until.unwrap_or(u64::MAX) }),
        None => Ok(NO_KEY),
    };
    Ok([
        current(KeyScope::Secret, &site.secret_key_sha256)?,
        current(KeyScope::Write, &site.write_key_sha256)?,
        old(KeyScope::Secret)?,
        old(KeyScope::Write)?,
    ])
}

fn parse(json: &str) -> Result<SitesFile, Error> {
    serde_json::from_str(json)
        .map_err(|error| Error::config("the sites are not valid JSON of the right shape").with_source(error))
}

fn check_username(username: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    if username.is_empty() || username.len() > USERNAME_BYTES || !username.bytes().all(plain) {
        return Err(Error::config(format!(
            "{username:?} is no username: use 1 to {USERNAME_BYTES} lower-case letters, digits, '-' and '_'"
        )));
    }
    Ok(())
}

/// Schemes of pages that are part of an application or a browser extension.
const APP_SCHEMES: [&str; 5] = ["capacitor", "chrome-extension", "ionic", "moz-extension", "tauri"];

/// Checks that an origin is written as browsers send it. Otherwise no request would ever match it.
fn check_origin(origin: &str) -> Result<(), Error> {
    if origin == "null" {
        return Ok(());
    }
    let is_origin = || {
        let (host, default_port) = match origin.split_once("://")? {
            ("https", host) => (host, ":443"),
            ("http", host) => (host, ":80"),
            // Pages inside of applications and browser extensions.
            (scheme, host) if APP_SCHEMES.contains(&scheme) => (host, ":"),
            _ => return None,
        };
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
        let name = host
            .rsplit_once(':')
            .filter(|_| !host.ends_with(']'))
            .map_or(host, |(name, port)| if port.parse::<u16>().is_ok() { name } else { "" });
        let fine = !name.is_empty()
            && name.bytes().all(plain)
            && !name.ends_with('.')
            && (name.starts_with('[') || !name.contains(':'))
            && !host.ends_with(default_port);
        fine.then_some(())
    };
    is_origin().ok_or_else(|| {
        Error::config(format!(
            "{origin:?} is not an origin: {} Write it as browsers send it, such as https://shop.example, \
             http://localhost:8080, capacitor://localhost, chrome-extension://ID, or null",
            what_is_wrong(origin)
        ))
    })
}

fn what_is_wrong(origin: &str) -> &'static str {
    let host = origin.split_once("://").map(|(_, host)| host);
    match host {
        _ if origin.contains('*') => "there are no wildcards, so name each origin.",
        None => "it has no scheme.",
        Some(host) if host.contains('/') => "it must end after the host and port, without `/` and path.",
        Some(_) if origin.bytes().any(|byte| byte.is_ascii_uppercase()) => "it must be in lower case.",
        Some(host) if host.ends_with(":443") || host.ends_with(":80") => "the default port must be left out.",
        Some(_) => "its scheme or host is not valid.",
    }
}

fn hash_from_hex(text: &str) -> Result<[u8; 32], Error> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash)
        .map_err(|error| Error::config("a key hash is not 64 hex digits").with_source(error))?;
    Ok(hash)
}
