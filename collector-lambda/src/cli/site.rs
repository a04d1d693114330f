//! `site`: adds, changes, lists and removes the sites in the sites file.

use crate::Error;
use crate::cli::print;
use crate::sites::file::NewKeys;
use crate::sites::{self, KeyScope, Site};
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// The first year that cannot be written as a date, as a time since the Unix epoch.
const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a site and print its two new keys. They are not stored and cannot be printed again.
    Add {
        /// The site's name.
        name: String,
        /// The origin of its pages, such as https://shop.example, or capacitor://localhost for an application. `null` is
        /// the origin of every sandboxed or local page of any author. May be given several times.
        #[arg(long = "origin", value_name = "URL")]
        origins: Vec<String>,
        /// Store visitors' IP addresses: the client's address for events from pages, and the event's `ipaddress` for
        /// events from servers (sent with the secret key). Without this flag none is stored.
        #[arg(long)]
        store_ip: bool,
        #[command(flatten)]
        file: SitesFile,
    },
    /// Change a site's origins, or whether visitors' IP addresses are stored. Its keys stay the same.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// The site's name.
        name: String,
        /// The origin of its pages. All previous origins are replaced. May be given several times.
        #[arg(long = "origin", value_name = "URL", group = "change")]
        origins: Vec<String>,
        /// Remove all origins. The write key is refused until there is one.
        #[arg(long, conflicts_with = "origins", group = "change")]
        no_origin: bool,
        /// Whether to store visitors' IP addresses from now on.
        #[arg(long, value_name = "true|false", group = "change")]
        store_ip: Option<bool>,
        #[command(flatten)]
        file: SitesFile,
    },
    /// Print the sites with their origins and the old keys that are still valid.
    List {
        #[command(flatten)]
        file: SitesFile,
    },
    /// Give a site new keys and print them. They are not stored and cannot be printed again.
    ///
    /// The old keys stay valid, so that nothing is refused while the new ones are deployed: for the time given by
    /// `--overlap`, or until `site rotate NAME --finish`. If a key has leaked, `--overlap 0s` invalidates all old
    /// keys immediately.
    Rotate {
        /// The site's name.
        name: String,
        /// Which key to replace. Default: both.
        #[arg(long, value_enum)]
        key: Option<KeyScope>,
        /// How long the old keys stay valid, such as 24h or 7days.
        #[arg(long, value_name = "TIME")]
        overlap: Option<humantime::Duration>,
        /// Make no new keys, but end the overlap of the last rotation.
        #[arg(long, conflicts_with = "overlap")]
        finish: bool,
        #[command(flatten)]
        file: SitesFile,
    },
    /// Remove a site. Its keys become invalid; its events and counts stay.
    Remove {
        /// The site's name.
        name: String,
        #[command(flatten)]
        file: SitesFile,
    },
}

#[derive(Debug, Args)]
pub(super) struct SitesFile {
    /// The sites file. `site add` creates it. A running collector reloads it when it changes.
    #[arg(long, value_name = "FILE")]
    sites: PathBuf,
}

impl Command {
    pub(super) fn run(self) -> Result<(), Error> {
        let mut out = std::io::stdout();
        match self {
            Self::Add { name, origins, store_ip, file } => {
                sites::file::add(&file.sites, &name, &origins, store_ip, |keys| {
                    let NewKeys { secret_key, write_key } = keys;
                    writeln!(out, "username: {name}\nsecret_key: {secret_key}\nwrite_key: {write_key}")
                })?;
            }
            Self::Set { name, origins, no_origin, store_ip, file } => {
                let origins = (no_origin || !origins.is_empty()).then_some(&origins[..]);
                sites::file::set(&file.sites, &name, origins, store_ip)?;
            }
            Self::List { file } => {
                for site in sites::file::list(&file.sites)? {
                    print(&described(&site));
                }
            }
            Self::Rotate { name, key, overlap, finish, file } => {
                let kinds = key.map_or(vec![KeyScope::Secret, KeyScope::Write], |key| vec![key]);
                if finish {
                    return sites::file::finish(&file.sites, &name, &kinds);
                }
                sites::file::rotate(&file.sites, &name, &kinds, overlap.map(Into::into), |keys| {
                    writeln!(out, "username: {name}")?;
                    keys.iter().try_for_each(|(kind, key)| writeln!(out, "{}_key: {key}", kind.as_str()))
                })?;
            }
            Self::Remove { name, file } => sites::file::remove(&file.sites, &name)?,
        }
        Ok(())
    }
}

/// A site, on one line.
fn described(site: &Site) -> String {
    let mut text = site.username.clone();
    for origin in &site.origins {
        text.push_str(&format!("  {origin}"));
    }
    if site.store_ip {
        text.push_str("  stores IP addresses");
    }
    for kind in [KeyScope::Secret, KeyScope::Write] {
        let Some(old) = site.old_key(kind).filter(|old| old.is_good()) else { continue };
        // A time that cannot be written as a date is as good as none.
        let end = old.until.and_then(|until| UNIX_EPOCH.checked_add(Duration::from_millis(until)));
        let end = end.filter(|end| *end < UNIX_EPOCH + YEAR_10000);
        let end = end.map_or("`--finish`".into(), |end| humantime::format_rfc3339_seconds(end).to_string());
        text.push_str(&format!("  old {} key valid until {end}", kind.as_str()));
    }
    text
}
