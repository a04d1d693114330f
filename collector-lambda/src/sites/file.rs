//! The sites file: how it is read and changed.

use crate::Error;
use crate::sites::{KeyScope, List, OldKey, Site, Sites, SitesFile, parse};
use rand::RngExt;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// The two keys of a new site. They are shown once and stored nowhere.
pub struct NewKeys {
    /// For servers.
    pub secret_key: String,
    /// For pages.
    pub write_key: String,
}

impl Sites {
    /// Reads the sites from a file.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        Self::from_json(&read(path)?).map_err(|error| {
            Error::config(format!("the sites file {} is not valid", path.display())).with_source(error)
        })
    }
}

/// Adds a site to the file, which is created if there is none, and returns its keys. They are given to `show`
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
            secret_key_sha256: hex::encode(Sha256::digest(&keys.secret_key)),
            write_key_sha256: hex::encode(Sha256::digest(&keys.write_key)),
            old_secret_key: None,
            old_write_key: None,
            origins: origins.to_vec(),
            store_ip,
        });
        Ok(keys)
    };
    edit(path, add, show)
}

/// Gives a site new keys of these scopes, to `show` before they are in the file. The old ones stay valid for
/// `overlap`; without one, until [`finish`].
pub fn rotate(
    path: &Path,
    username: &str,
    scopes: &[KeyScope],
    overlap: Option<Duration>,
    show: impl FnOnce(&Vec<(KeyScope, String)>) -> io::Result<()>,
) -> Result<(), Error> {
    let until = overlap.map(|overlap| crate::time::now().saturating_add(overlap.as_millis() as u64));
    let at_once = overlap.is_some_and(|overlap| overlap.is_zero());
    let rotate = |sites: &mut Vec<Site>| {
        let site = find(sites, username)?;
        let mut keys = Vec::new();
        for scope in scopes {
            let (current, old) = site.key_mut(*scope);
            // A client that still uses it would be locked out without notice.
            if !at_once && old.as_ref().is_some_and(OldKey::is_good) {
                return Err(Error::config(format!(
                    "the old {} key of {username} is still valid: `site rotate --finish` ends that, and \
                     `--overlap 0s` ends all but the new key",
                    scope.as_str()
                )));
            }
            let key = new_key(*scope);
            let sha256 = std::mem::replace(current, hex::encode(Sha256::digest(&key)));
            *old = (!at_once).then_some(OldKey { sha256, until });
            keys.push((*scope, key));
        }
        Ok(keys)
    };
    edit(path, rotate, show).map(drop)
}

/// Ends the overlap of a rotation: only the newest keys of these scopes are valid.
pub fn finish(path: &Path, username: &str, scopes: &[KeyScope]) -> Result<(), Error> {
    let finish = |sites: &mut Vec<Site>| {
        let site = find(sites, username)?;
        for scope in scopes {
            *site.key_mut(*scope).1 = None;
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

/// 256 random bits as text, with a prefix that tells the two keys apart.
fn new_key(scope: KeyScope) -> String {
    let prefix = match scope {
        KeyScope::Secret => "tms",
        KeyScope::Write => "tmw",
    };
    let bits: [u8; 32] = rand::rng().random();
    format!("{prefix}_{}", hex::encode(bits))
}
