//! The command line: `serve`, `site` with what can be done to a site, and what looks after a data directory.

use crate::Error;
use crate::http::metrics::Metrics;
use crate::http::rate_limit::RateLimits;
use crate::http::{Collector, router, router_with_files};
#[cfg(feature = "s3")]
use crate::maintenance::reconcile::aws as reconcile_aws;
use crate::maintenance::{prune as retention, reconcile::embedded as reconcile};
use crate::server::reload;
use crate::server::{serve, stop_signal, with_client};
use crate::sites::{self as site, KeyScope, NewKeys, Site, Sites};
use crate::store::embedded::Embedded;
use crate::store::{Counters, Lake, Store};
use clap::{Args, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::net::TcpListener;

/// Up to the year 9999 a time can be written.
const LAST_YEAR: Duration = Duration::from_secs(253_402_300_800);

/// Collects page views, button clicks and custom events, and counts each exactly once.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the collector.
    ///
    /// It logs to stderr, one JSON object a line. Where that is a pipe somebody must read it: the collector waits for
    /// its log rather than lose a part of it.
    Serve(Serve),
    /// Manage the sites that may send and read.
    #[command(subcommand)]
    Site(SiteCommand),
    /// Check that the database and the lake's files are sound. Exit status 1 if anything is not.
    ///
    /// A collector may be running.
    Verify {
        #[command(flatten)]
        store: DataDir,
    },
    /// Compare the counters with the distinct events that are stored, and name each difference. Exit status 1 if
    /// there is one that was not repaired.
    ///
    /// With `--data-dir` what is compared is one moment; a collector may be running, unless `--repair` is given.
    /// With `--lake` and `--counters` collectors may always be running: a counter is wrong if no state of what is
    /// under way explains it. The whole table is read twice, and each object once.
    ///
    /// Temporary files, of about 100 bytes an event, go where SQLITE_TMPDIR says, or else to /var/tmp.
    Reconcile(Reconcile),
    /// Remove old files of the lake, and compress those of past days. The counters stay.
    ///
    /// Days are days of receipt, in UTC. A collector may be running.
    Retention {
        /// How many days before today are kept.
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        keep: u32,
        /// Compress the files of the days before today with gzip.
        #[arg(long)]
        compress: bool,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        store: DataDir,
    },
}

#[derive(Debug, Args)]
struct DataDir {
    /// Where the embedded store has its database and the lake its files.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(Debug, Args)]
struct Reconcile {
    /// Set the counters to what is stored, after naming the differences. With `--data-dir` no collector may be
    /// running, and a database that is missing is made anew from the lake; which batches have been received is not
    /// known then.
    #[arg(long)]
    repair: bool,
    /// Where the embedded store has its database and the lake its files.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The bucket that Firehose delivers to, and how the keys of its objects begin: newline-delimited JSON, plain or
    /// gzip.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "s3://BUCKET/PREFIX", conflicts_with = "data_dir", requires = "counters")]
    lake: Option<reconcile_aws::Bucket>,
    /// Where they are counted: `dynamodb:TABLE`.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "dynamodb:TABLE", conflicts_with = "data_dir", requires = "lake")]
    counters: Option<Sink>,
    /// How long Firehose may hold what it has taken: its buffering interval, and a little. So long is waited.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "TIME", default_value = "15m", conflicts_with = "data_dir")]
    delivery: humantime::Duration,
    /// Compare only the hours from this day (UTC) on, and no totals, which are then not repaired either. For a bucket
    /// whose old objects expire: a day after that is the earliest that is whole.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day, conflicts_with = "data_dir")]
    from: Option<u64>,
}

/// The first millisecond of a day.
#[cfg(feature = "s3")]
fn day(text: &str) -> Result<u64, String> {
    let start = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).map_err(|_| "use YYYY-MM-DD")?;
    Ok(start.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}

#[derive(Debug, Args)]
struct Serve {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8787")]
    listen: String,
    /// Where the embedded store keeps its database and the lake its files.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The list of sites; `site add` makes it. Read again within seconds of a change, or at SIGHUP; one that
    /// cannot be used is logged, and the sites stay as they were.
    #[arg(long, value_name = "FILE")]
    sites: PathBuf,
    /// A folder of files to serve wherever the collector has no route.
    #[arg(long = "static", value_name = "DIR")]
    files: Option<PathBuf>,
    /// Where the lines of events go: `dir`, or `firehose:NAME`.
    #[arg(long, default_value = "dir")]
    lake: Sink,
    /// Where events are counted: `sqlite`, or `dynamodb:TABLE`.
    #[arg(long, default_value = "sqlite")]
    counters: Sink,
    /// How many seconds lines may wait before they are in a sealed file of the lake. They are safe in the
    /// database until then.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    lake_roll_seconds: u64,
    /// Requests a second, and at once, that each key of a site may make; more are answered 429. 0 is no limit.
    /// The default is far above what pages and servers send in batches; what it stops is a loop.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    rate_per_key: u32,
    /// The same for each client address (for IPv6, each /64), whatever the request. 0 is no limit. The trackers
    /// send each few seconds, so a thousand a second are thousands of visitors behind one address. Where a proxy
    /// is in front, its address is everybody's unless `--trust-proxy` is given.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate_per_address: u32,
    /// How many proxies stand in front, each appending to `X-Forwarded-For` whom it got the request from. The
    /// client's address is what the outermost has seen. With 0 the header is not looked at.
    #[arg(long, value_name = "N", default_value_t = 0)]
    trust_proxy: usize,
    /// Address and port of a listener of its own for `GET /metrics`, such as 127.0.0.1:9187. It asks for no key, so
    /// keep it where only the operator's Prometheus can reach it. Without this there is none.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
}

#[derive(Debug, Subcommand)]
enum SiteCommand {
    /// Add a site and print its two new keys, this once.
    Add {
        /// The site's name.
        name: String,
        /// Where its pages live, such as https://shop.example. May be given several times.
        #[arg(long = "origin", value_name = "URL")]
        origins: Vec<String>,
        /// Store the visitors' IP addresses: of a page's events the connection's, of a server's (which come with
        /// the secret key) what they say in `ipaddress`. Without this none is stored.
        #[arg(long)]
        store_ip: bool,
        #[command(flatten)]
        file: SitesFile,
    },
    /// Change where a site's pages live, or whether visitors' addresses are stored. Its keys stay.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        /// The site's name.
        name: String,
        /// Where its pages live from now on, instead of all that was said before. May be given several times.
        #[arg(long = "origin", value_name = "URL", group = "change")]
        origins: Vec<String>,
        /// It has no pages: the write key is good for nothing until there is an origin.
        #[arg(long, conflicts_with = "origins", group = "change")]
        no_origin: bool,
        /// Whether to store the visitors' IP addresses from now on.
        #[arg(long, value_name = "true|false", group = "change")]
        store_ip: Option<bool>,
        #[command(flatten)]
        file: SitesFile,
    },
    /// Print the sites: names, origins, and old keys that are still good.
    List {
        #[command(flatten)]
        file: SitesFile,
    },
    /// Give a site new keys and print them, this once.
    ///
    /// The old keys stay good beside them, so that nothing is refused while the new ones are brought to where
    /// they are used: for as long as `--overlap` says, or else until `site rotate NAME --finish`. After a key
    /// has leaked, `--overlap 0s` makes all but the new one worthless at once.
    Rotate {
        /// The site's name.
        name: String,
        /// Which key; both unless given.
        #[arg(long, value_enum)]
        key: Option<KeyScope>,
        /// How long the old keys stay good, such as 24h or 7days.
        #[arg(long, value_name = "TIME")]
        overlap: Option<humantime::Duration>,
        /// Make no new keys; end the overlap of the last rotation.
        #[arg(long, conflicts_with = "overlap")]
        finish: bool,
        #[command(flatten)]
        file: SitesFile,
    },
    /// Remove a site. Its keys are good for nothing any more; what it has sent stays.
    Remove {
        /// The site's name.
        name: String,
        #[command(flatten)]
        file: SitesFile,
    },
}

#[derive(Debug, Args)]
struct SitesFile {
    /// The list of sites; `site add` makes it if there is none. A running collector reads it again by itself.
    #[arg(long, value_name = "FILE")]
    sites: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
enum Sink {
    Embedded(&'static str),
    Named(&'static str, String),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "dir" => Ok(Self::Embedded("dir")),
            None if text == "sqlite" => Ok(Self::Embedded("sqlite")),
            Some(("firehose", name)) if !name.is_empty() => Ok(Self::Named("firehose", name.into())),
            Some(("dynamodb", name)) if !name.is_empty() => Ok(Self::Named("dynamodb", name.into())),
            _ => Err("use dir or firehose:NAME for the lake, sqlite or dynamodb:TABLE for the counters".into()),
        }
    }
}

impl Cli {
    /// Does what the command line says.
    pub async fn run(self) -> Result<(), Error> {
        match self.command {
            Command::Serve(options) => options.run().await,
            Command::Site(command) => command.run(),
            Command::Verify { store } => none(reconcile::verify(&store.data_dir, &say)?, "things are wrong"),
            Command::Reconcile(options) => none(options.run().await?, "things are not as they should be"),
            Command::Retention { keep, compress, dry_run, store } => {
                retention::run(&store.data_dir, &retention::Policy { keep, compress, dry_run }, &say)
            }
        }
    }
}

impl Reconcile {
    async fn run(self) -> Result<u64, Error> {
        match self {
            Self { data_dir: Some(folder), repair, .. } => reconcile::reconcile(&folder, repair, &say),
            #[cfg(feature = "s3")]
            Self {
                lake: Some(bucket), counters: Some(Sink::Named("dynamodb", table)), repair, delivery, from, ..
            } => {
                let options = reconcile_aws::Options { bucket, table: &table, delivery: delivery.into(), from, repair };
                reconcile_aws::reconcile(options, &say).await
            }
            _ => Err(Error::config("give --data-dir DIR, or --lake s3://BUCKET/PREFIX and --counters dynamodb:TABLE")),
        }
    }
}

/// Fails if anything was found.
fn none(found: u64, what: &str) -> Result<(), Error> {
    if found == 0 { Ok(()) } else { Err(Error::config(format!("{found} {what}"))) }
}

impl SiteCommand {
    fn run(self) -> Result<(), Error> {
        let mut out = std::io::stdout();
        match self {
            Self::Add { name, origins, store_ip, file } => {
                site::add(&file.sites, &name, &origins, store_ip, |keys| {
                    let NewKeys { secret_key, write_key } = keys;
                    writeln!(out, "username: {name}\nsecret_key: {secret_key}\nwrite_key: {write_key}")
                })?;
            }
            Self::Set { name, origins, no_origin, store_ip, file } => {
                let origins = (no_origin || !origins.is_empty()).then_some(&origins[..]);
                site::set(&file.sites, &name, origins, store_ip)?;
            }
            Self::List { file } => {
                for site in site::list(&file.sites)? {
                    say(&described(&site));
                }
            }
            Self::Rotate { name, key, overlap, finish, file } => {
                let kinds = key.map_or(vec![KeyScope::Secret, KeyScope::Write], |key| vec![key]);
                if finish {
                    return site::finish(&file.sites, &name, &kinds);
                }
                site::rotate(&file.sites, &name, &kinds, overlap.map(Into::into), |keys| {
                    writeln!(out, "username: {name}")?;
                    keys.iter().try_for_each(|(kind, key)| writeln!(out, "{}_key: {key}", kind.as_str()))
                })?;
            }
            Self::Remove { name, file } => site::remove(&file.sites, &name)?,
        }
        Ok(())
    }
}

/// A site on one line.
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
        // Later than any calendar is as good as never.
        let end = old.until.and_then(|until| UNIX_EPOCH.checked_add(Duration::from_millis(until)));
        let end = end.filter(|end| *end < UNIX_EPOCH + LAST_YEAR);
        let end = end.map_or("`--finish`".into(), |end| humantime::format_rfc3339_seconds(end).to_string());
        text.push_str(&format!("  old {} key good until {end}", kind.as_str()));
    }
    text
}

impl Serve {
    async fn run(self) -> Result<(), Error> {
        // Looked at first: what changes from here on is noticed.
        let known = site::read(&self.sites)?;
        let sites = Sites::from_file(&self.sites)?;
        self.check_files()?;
        let listener = bind(&self.listen).await?;
        let metrics_listener = match &self.metrics {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let (store, embedded) = self.store().await?;
        let collector = Arc::new(Collector { sites, store });
        let router = match &self.files {
            Some(folder) => router_with_files(Arc::clone(&collector), folder),
            None => router(Arc::clone(&collector)),
        };
        let limits = RateLimits::new(self.rate_per_key, self.rate_per_address);
        let router = with_client(router, Arc::new(limits), self.trust_proxy);
        let metrics = Arc::new(Metrics::new(embedded));
        let router = metrics.count(router);
        let metrics =
            metrics_listener.map(|listener| tokio::spawn(serve(listener, metrics.router(), std::future::pending())));
        let watch = tokio::spawn(reload::watch(Arc::clone(&collector), self.sites.clone(), known)?);
        // Heard from here on: nobody is told that it listens before.
        let stop = stop_signal()?;
        let address = listener.local_addr().map_err(|error| Error::config("cannot listen").because(error))?;
        say(&format!("listening on http://{address}"));
        serve(listener, router, stop).await?;
        watch.abort();
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        collector.store.close().await?;
        say("stopped");
        Ok(())
    }

    /// What is served to everybody must not hold what is nobody's business.
    fn check_files(&self) -> Result<(), Error> {
        let Some(folder) = &self.files else { return Ok(()) };
        let folder = std::fs::canonicalize(folder)
            .map_err(|error| Error::config(format!("cannot serve the folder {}", folder.display())).because(error))?;
        std::fs::create_dir_all(&self.data_dir)
            .map_err(|error| Error::config("cannot make the data directory").because(error))?;
        for private in [&self.data_dir, &self.sites] {
            if std::fs::canonicalize(private).is_ok_and(|private| private.starts_with(&folder)) {
                return Err(Error::config(format!(
                    "{} would be served to everybody: keep it outside of {}",
                    private.display(),
                    folder.display()
                )));
            }
        }
        Ok(())
    }

    async fn store(&self) -> Result<(Store, Option<Embedded>), Error> {
        let embedded = match (&self.lake, &self.counters) {
            (Sink::Embedded("dir"), _) | (_, Sink::Embedded("sqlite")) => {
                Some(Embedded::open(&self.data_dir, Duration::from_secs(self.lake_roll_seconds))?)
            }
            _ => None,
        };
        // Only for who asks for it: looking for a region and credentials goes out to the network.
        #[cfg(feature = "aws")]
        let aws = match (&self.lake, &self.counters) {
            (Sink::Named(..), _) | (_, Sink::Named(..)) => aws_config::load_from_env().await,
            _ => aws_config::SdkConfig::builder().build(),
        };
        let lake = match (&self.lake, &embedded) {
            (Sink::Embedded("dir"), Some(embedded)) => Lake::Directory(embedded.clone()),
            #[cfg(feature = "aws")]
            (Sink::Named("firehose", name), _) => {
                Lake::Firehose(crate::store::aws::firehose::Firehose::new(&aws, name))
            }
            _ => return Err(Error::config("--lake is dir or firehose:NAME")),
        };
        let counters = match (&self.counters, embedded.clone()) {
            (Sink::Embedded("sqlite"), Some(embedded)) => Counters::Sqlite(embedded),
            #[cfg(feature = "aws")]
            (Sink::Named("dynamodb", table), _) => {
                Counters::DynamoDb(crate::store::aws::dynamodb::DynamoDb::new(&aws, table))
            }
            _ => return Err(Error::config("--counters is sqlite or dynamodb:TABLE")),
        };
        let store = Store::new(lake, counters);
        #[cfg(feature = "aws")]
        store.warm().await;
        Ok((store, embedded))
    }
}

async fn bind(address: &str) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| Error::config(format!("cannot listen on {address}")).because(error))
}

/// Prints a line. That nobody reads it is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
