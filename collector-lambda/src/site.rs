//! The sites that may send and read: who they are, the hashes of their keys, and their origins.

use crate::Error;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
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
    /// Where pages with the write key live, such as `https://shop.example`.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Whether the visitors' IP addresses are stored. They are not unless this is set.
    #[serde(default, skip_serializing_if = "is_false")]
    pub store_ip: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Writes and reads.
    Secret,
    /// Only writes, and only from the site's origins.
    Write,
}

impl Key {
    /// The kind of key by name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Write => "write",
        }
    }
}

/// All sites, ready to check credentials against.
#[derive(Debug, Default)]
pub struct Sites {
    sites: HashMap<String, Entry>,
    origins: HashSet<String>,
}

#[derive(Debug)]
struct Entry {
    site: Site,
    secret: [u8; 32],
    write: [u8; 32],
}

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
        Self::new(parse(json)?)
    }

    /// Reads the sites from a file.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let json = fs::read_to_string(path).map_err(|error| {
            Error::config(format!("cannot read the sites file {}; `site add` makes it", path.display())).because(error)
        })?;
        Self::from_json(&json)
            .map_err(|error| Error::config(format!("the sites file {} is not valid", path.display())).because(error))
    }

    fn new(file: SitesFile) -> Result<Self, Error> {
        let mut sites = HashMap::new();
        let mut origins = HashSet::new();
        for site in file.sites {
            check_username(&site.username)?;
            for origin in &site.origins {
                check_origin(origin)?;
                origins.insert(origin.clone());
            }
            let entry = Entry {
                secret: hash_from_hex(&site.secret_key_sha256)?,
                write: hash_from_hex(&site.write_key_sha256)?,
                site,
            };
            let username = entry.site.username.clone();
            if entry.secret == entry.write {
                return Err(Error::config(format!("the two keys of the site {username} are the same")));
            }
            if sites.insert(username.clone(), entry).is_some() {
                return Err(Error::config(format!("the site {username} is listed twice")));
            }
        }
        Ok(Self { sites, origins })
    }

    /// The site and what the key allows, if both fit. It takes the same time for an unknown site.
    pub fn authenticate(&self, username: &str, key: &str) -> Option<(&Site, Key)> {
        let given: [u8; 32] = Sha256::digest(key).into();
        let entry = self.sites.get(username);
        let nobody = [0; 32];
        let (secret, write) = entry.map_or((&nobody, &nobody), |entry| (&entry.secret, &entry.write));
        let is_secret = given.ct_eq(secret);
        let is_write = given.ct_eq(write);
        let site = &entry?.site;
        if bool::from(is_secret) {
            Some((site, Key::Secret))
        } else if bool::from(is_write) {
            Some((site, Key::Write))
        } else {
            None
        }
    }

    /// Whether any site has this origin. A preflight carries no credentials, so it cannot be asked for one site.
    pub fn knows_origin(&self, origin: &str) -> bool {
        self.origins.contains(origin)
    }
}

/// Adds a site to the file, which is made if there is none, and returns its keys. They are given to `show`
/// before the site is in the file: a site whose keys nobody has seen is of no use.
pub fn add(
    path: &Path,
    username: &str,
    origins: &[String],
    show: impl FnOnce(&NewKeys) -> io::Result<()>,
) -> Result<NewKeys, Error> {
    let failed = |what: &str| Error::config(format!("cannot {what} the sites file {}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed("make the folder of").because(error))?;
    }
    // One at a time, so that none is lost. The file itself is replaced, so the lock is beside it.
    let lock = File::create(path.with_extension("lock")).map_err(|error| failed("lock").because(error))?;
    lock.lock().map_err(|error| failed("lock").because(error))?;
    let mut sites = match fs::read_to_string(path) {
        Ok(json) => parse(&json).map_err(|error| failed("understand").because(error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => SitesFile::default(),
        Err(error) => return Err(failed("read").because(error)),
    };
    if sites.sites.iter().any(|site| site.username == username) {
        return Err(Error::config(format!("the site {username} is there already")));
    }
    let keys = NewKeys { secret_key: new_key("tms"), write_key: new_key("tmw") };
    sites.sites.push(Site {
        username: username.into(),
        secret_key_sha256: hex(&Sha256::digest(&keys.secret_key)),
        write_key_sha256: hex(&Sha256::digest(&keys.write_key)),
        origins: origins.to_vec(),
        store_ip: false,
    });
    let json = serde_json::to_string_pretty(&sites).map_err(|error| failed("write").because(error))?;
    Sites::new(sites)?;
    show(&keys).map_err(|error| Error::config("cannot show the new keys, so the site was not added").because(error))?;
    replace(path, &json).map_err(|error| failed("write").because(error))?;
    Ok(keys)
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
        .map_err(|error| Error::config("the sites are not valid JSON of the right shape").because(error))
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
fn new_key(prefix: &str) -> String {
    let bits: [u8; 32] = rand::rng().random();
    format!("{prefix}_{}", hex(&bits))
}

fn hex(bytes: &[u8]) -> String {
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
