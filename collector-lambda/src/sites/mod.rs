//! The sites that may send and read: who they are, the hashes of their keys, and their origins.

pub mod basic_auth;
#[cfg(feature = "secret")]
pub mod secret;

use crate::Error;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
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
    /// The secret key before this one, while that is still good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_secret_key: Option<OldKey>,
    /// The write key before this one, while that is still good.
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
    /// Until when it is good, in milliseconds since the Unix epoch; without a time, until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl OldKey {
    /// Whether it is still good.
    pub fn is_good(&self) -> bool {
        self.until.is_none_or(|until| crate::time::now() < until)
    }
}

impl Site {
    /// The key of this kind that has been replaced, if it is still in the list.
    pub fn old_key(&self, key: KeyScope) -> Option<&OldKey> {
        match key {
            KeyScope::Secret => self.old_secret_key.as_ref(),
            KeyScope::Write => self.old_write_key.as_ref(),
        }
    }

    fn key_mut(&mut self, key: KeyScope) -> (&mut String, &mut Option<OldKey>) {
        match key {
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
    /// The kind of key by name.
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
    /// As many for every site, so that it takes the same time to find that none of them fits.
    keys: [KnownKey; 4],
}

#[derive(Clone, Copy, Debug)]
struct KnownKey {
    key: KeyScope,
    hash: [u8; 32],
    /// Until when it is good.
    until: u64,
}

/// What nobody has.
const NO_KEY: KnownKey = KnownKey { key: KeyScope::Write, hash: [0; 32], until: 0 };

/// The two keys of a new site. They are shown once and stored nowhere.
pub struct NewKeys {
    /// For servers.
    pub secret_key: String,
    /// For pages.
    pub write_key: String,
}

impl Sites {
    /// Reads the sites from JSON: `{"sites":[{"username":…,"secret_key_sha256":…,"write_key_sha256":…,"origins":[…]}]}`.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        Ok(Self { list: Arc::new(RwLock::new(Arc::new(List::new(parse(json)?)?))) })
    }

    /// Reads the sites from a file.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        Self::from_json(&read(path)?).map_err(|error| {
            Error::config(format!("the sites file {} is not valid", path.display())).with_source(error)
        })
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
                found = Some(known.key);
            }
        }
        Some((Arc::clone(&entry?.site), found?))
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
            let secrets = keys.iter().filter(|known| known.key == KeyScope::Secret);
            if secrets.clone().any(|secret| keys.iter().any(|k| k.key == KeyScope::Write && k.hash == secret.hash)) {
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
    let current = |key, hash| Ok(KnownKey { key, hash: hash_from_hex(hash)?, until: u64::MAX });
    let old = |key| match site.old_key(key) {
        Some(old) => Ok(KnownKey { key, hash: hash_from_hex(&old.sha256)?, until: old.until.unwrap_or(u64::MAX) }),
        None => Ok(NO_KEY),
    };
    Ok([
        current(KeyScope::Secret, &site.secret_key_sha256)?,
        current(KeyScope::Write, &site.write_key_sha256)?,
        old(KeyScope::Secret)?,
        old(KeyScope::Write)?,
    ])
}

/// Adds a site to the file, which is made if there is none, and returns its keys. They are given to `show`
/// before the site is in the file: a site whose keys nobody has seen is of no use.
pub fn add(
    path: &Path,
    username: &str,
    origins: &[String],
    store_ip: bool,
    show: impl FnOnce(&NewKeys) -> io::Result<()>,
) -> Result<NewKeys, Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed("make the folder of", path).with_source(error))?;
    }
    let add = |sites: &mut Vec<Site>| {
        if sites.iter().any(|site| site.username == username) {
            return Err(Error::config(format!("the site {username} is there already")));
        }
        let keys = NewKeys { secret_key: new_key(KeyScope::Secret), write_key: new_key(KeyScope::Write) };
        sites.push(Site {
            username: username.into(),
            secret_key_sha256: hex(&Sha256::digest(&keys.secret_key)),
            write_key_sha256: hex(&Sha256::digest(&keys.write_key)),
            old_secret_key: None,
            old_write_key: None,
            origins: origins.to_vec(),
            store_ip,
        });
        Ok(keys)
    };
    edit(path, add, show)
}

/// Gives a site new keys of these kinds, to `show` before they are in the file. The old ones stay good for
/// `overlap`; without one, until [`finish`].
pub fn rotate(
    path: &Path,
    username: &str,
    kinds: &[KeyScope],
    overlap: Option<Duration>,
    show: impl FnOnce(&Vec<(KeyScope, String)>) -> io::Result<()>,
) -> Result<(), Error> {
    let until = overlap.map(|overlap| crate::time::now().saturating_add(overlap.as_millis() as u64));
    let at_once = overlap.is_some_and(|overlap| overlap.is_zero());
    let rotate = |sites: &mut Vec<Site>| {
        let site = find(sites, username)?;
        let mut keys = Vec::new();
        for kind in kinds {
            let (current, old) = site.key_mut(*kind);
            // Whoever still uses it would be locked out without having been told.
            if !at_once && old.as_ref().is_some_and(OldKey::is_good) {
                return Err(Error::config(format!(
                    "the old {} key of {username} is still good: `site rotate --finish` ends that, and \
                     `--overlap 0s` ends all but the new key",
                    kind.as_str()
                )));
            }
            let key = new_key(*kind);
            let sha256 = std::mem::replace(current, hex(&Sha256::digest(&key)));
            *old = (!at_once).then_some(OldKey { sha256, until });
            keys.push((*kind, key));
        }
        Ok(keys)
    };
    edit(path, rotate, show).map(drop)
}

/// Ends the overlap of a rotation: only the newest keys of these kinds are good.
pub fn finish(path: &Path, username: &str, kinds: &[KeyScope]) -> Result<(), Error> {
    let finish = |sites: &mut Vec<Site>| {
        let site = find(sites, username)?;
        for kind in kinds {
            *site.key_mut(*kind).1 = None;
        }
        Ok(())
    };
    edit(path, finish, |()| Ok(()))
}

/// Gives a site these origins instead of those it has, and says whether addresses are stored, each if given.
pub fn set(path: &Path, username: &str, origins: Option<&[String]>, store_ip: Option<bool>) -> Result<(), Error> {
    let set = |sites: &mut Vec<Site>| {
        let site = find(sites, username)?;
        if let Some(origins) = origins {
            site.origins = origins.to_vec();
        }
        site.store_ip = store_ip.unwrap_or(site.store_ip);
        Ok(())
    };
    edit(path, set, |()| Ok(()))
}

/// Removes a site: its keys are good for nothing any more. What it has sent stays.
pub fn remove(path: &Path, username: &str) -> Result<(), Error> {
    let remove = |sites: &mut Vec<Site>| {
        find(sites, username)?;
        sites.retain(|site| site.username != username);
        Ok(())
    };
    edit(path, remove, |()| Ok(()))
}

/// The sites in the file.
pub fn list(path: &Path) -> Result<Vec<Site>, Error> {
    Sites::from_file(path)?;
    Ok(parse(&read(path)?)?.sites)
}

fn find<'a>(sites: &'a mut [Site], username: &str) -> Result<&'a mut Site, Error> {
    let site = sites.iter_mut().find(|site| site.username == username);
    site.ok_or_else(|| Error::config(format!("there is no site {username}")))
}

/// Changes the file, if what comes out is valid and could be shown.
fn edit<T>(
    path: &Path,
    change: impl FnOnce(&mut Vec<Site>) -> Result<T, Error>,
    show: impl FnOnce(&T) -> io::Result<()>,
) -> Result<T, Error> {
    let failed = |what| failed(what, path);
    // One at a time, so that none is lost. The file itself is replaced, so the lock is beside it.
    let lock = File::create(path.with_extension("lock")).map_err(|error| failed("lock").with_source(error))?;
    lock.lock().map_err(|error| failed("lock").with_source(error))?;
    let mut file = match fs::read_to_string(path) {
        Ok(json) => parse(&json).map_err(|error| failed("understand").with_source(error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => SitesFile::default(),
        Err(error) => return Err(failed("read").with_source(error)),
    };
    let outcome = change(&mut file.sites)?;
    let json = serde_json::to_string_pretty(&file).map_err(|error| failed("write").with_source(error))?;
    List::new(file)?;
    show(&outcome)
        .map_err(|error| Error::config("cannot show the new keys, so nothing was changed").with_source(error))?;
    replace(path, &json).map_err(|error| failed("write").with_source(error))?;
    Ok(outcome)
}

fn failed(what: &str, path: &Path) -> Error {
    Error::config(format!("cannot {what} the sites file {}", path.display()))
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| {
        Error::config(format!("cannot read the sites file {}; `site add` makes it", path.display())).with_source(error)
    })
}

/// Writes beside the file and renames, so that a reader never sees half of it. Where the path is a link, what
/// it leads to is replaced; who may read the file stays as it is.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    if let Ok(old) = fs::metadata(&path) {
        file.set_permissions(old.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&beside, path)
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

/// Origins as browsers send them, or the comparison would never hold.
fn check_origin(origin: &str) -> Result<(), Error> {
    let is_origin = || {
        let (host, default_port) = match origin.split_once("://")? {
            ("https", host) => (host, ":443"),
            ("http", host) => (host, ":80"),
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
            "{origin:?} is no origin: give it as browsers send it, such as https://shop.example or http://localhost:8080"
        ))
    })
}

/// 256 random bits as text, with a prefix that tells the two keys apart.
fn new_key(kind: KeyScope) -> String {
    let prefix = match kind {
        KeyScope::Secret => "tms",
        KeyScope::Write => "tmw",
    };
    let bits: [u8; 32] = rand::rng().random();
    format!("{prefix}_{}", hex(&bits))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash_from_hex(text: &str) -> Result<[u8; 32], Error> {
    let wrong = || Error::config("a key hash is not 64 hex digits");
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(hash)
}
