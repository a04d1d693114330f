//! The sites that may send and read: who they are, the hashes of their keys, and their origins.

use crate::Error;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
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
struct File {
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
        let json = std::fs::read_to_string(path).map_err(|error| {
            Error::config(format!("cannot read the sites file {}; `site add` makes it", path.display())).because(error)
        })?;
        Self::from_json(&json)
            .map_err(|error| Error::config(format!("the sites file {} is not valid", path.display())).because(error))
    }

    fn new(file: File) -> Result<Self, Error> {
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

/// Adds a site to the file, which is made if there is none, and returns its keys.
pub fn add(path: &Path, username: &str, origins: &[String]) -> Result<NewKeys, Error> {
    let mut file = match std::fs::read_to_string(path) {
        Ok(json) => parse(&json)
            .map_err(|error| Error::config(format!("the sites file {} is not valid", path.display())).because(error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
        Err(error) => {
            return Err(Error::config(format!("cannot read the sites file {}", path.display())).because(error));
        }
    };
    if file.sites.iter().any(|site| site.username == username) {
        return Err(Error::config(format!("the site {username} is there already")));
    }
    let keys = NewKeys { secret_key: new_key("tms"), write_key: new_key("tmw") };
    file.sites.push(Site {
        username: username.into(),
        secret_key_sha256: hex(&Sha256::digest(&keys.secret_key)),
        write_key_sha256: hex(&Sha256::digest(&keys.write_key)),
        origins: origins.to_vec(),
        store_ip: false,
    });
    let json =
        serde_json::to_string_pretty(&file).map_err(|error| Error::config("cannot write the sites").because(error))?;
    Sites::new(file)?;
    replace(path, &json)
        .map_err(|error| Error::config(format!("cannot write the sites file {}", path.display())).because(error))?;
    Ok(keys)
}

/// Writes beside the file and renames, so that a reader never sees half of it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension("new");
    std::fs::write(&beside, format!("{text}\n"))?;
    std::fs::rename(&beside, path)
}

fn parse(json: &str) -> Result<File, Error> {
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

fn check_origin(origin: &str) -> Result<(), Error> {
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    if host.is_none_or(|host| host.is_empty() || host.contains(['/', '@', '?', '#', ' ', '*'])) {
        return Err(Error::config(format!(
            "{origin:?} is no origin: use scheme and host as the browser sends them, such as https://shop.example"
        )));
    }
    Ok(())
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
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut hash = [0; 32];
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(hash)
}
