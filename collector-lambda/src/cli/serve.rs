//! `serve`: the collector as a server.

use crate::Error;
use crate::cli::print;
use crate::http::metrics::Metrics;
use crate::http::rate_limit::RateLimits;
use crate::http::state::Collector;
use crate::http::{Options, router};
use crate::server::{KEEP_ALIVE, reload, serve, stop_signal};
use crate::sites::{self, Sites};
use crate::store::Store;
#[cfg(feature = "aws")]
use crate::store::aws::{dynamodb::DynamoDb, firehose::Firehose};
use crate::store::embedded::Embedded;
use clap::Args;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Address and port to listen on. Port 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:8787")]
    listen: String,
    /// The data directory: the embedded store's database and the lake's files.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The sites file, which `site add` creates. It is reloaded within seconds of a change, and at SIGHUP. If it is not
    /// valid, an error is logged and the previous sites stay in use.
    #[arg(long, value_name = "FILE")]
    sites: PathBuf,
    /// A folder of files to serve at every path that is no route of the collector.
    #[arg(long = "static", value_name = "DIR")]
    files: Option<PathBuf>,
    /// Where the lines of events go: `dir`, or `firehose:NAME`.
    #[arg(long, default_value = "dir")]
    lake: LakeTarget,
    /// Where events are counted: `sqlite`, or `dynamodb:TABLE`.
    #[arg(long, default_value = "sqlite")]
    counters: CounterTarget,
    /// How long lines may wait in the database before they are written to a sealed file of the lake.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = at_least_a_second)]
    lake_roll_interval: humantime::Duration,
    /// Requests a second for each key of a site, which may all come at once. More are answered 429. 0 is no limit.
    /// The default is far above what pages and servers send in batches; it stops clients that send in a loop.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    rate_limit_per_key: u32,
    /// The same for each client address (for IPv6, each /64), with or without a key. A tracker sends every few seconds,
    /// so a thousand requests a second are thousands of visitors behind one address. Behind a proxy, set
    /// `--trusted-proxies`, or all clients share the proxy's limit.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    rate_limit_per_address: u32,
    /// How many proxies are in front of the collector. Each must append its peer's address to `X-Forwarded-For`. The
    /// client's address is the one that the outermost proxy appended. With 0 the header is ignored.
    #[arg(long, value_name = "N", default_value_t = 0)]
    trusted_proxies: usize,
    /// How long a connection may be idle between requests. Set it to more than the idle timeout of a load balancer in
    /// front, or that will send requests on connections that are just being closed.
    #[arg(long, value_name = "TIME", default_value = "75s", value_parser = at_least_a_second)]
    keep_alive: humantime::Duration,
    /// Address and port of a separate listener for `GET /metrics`, such as 127.0.0.1:9187. It requires no key, so only
    /// your Prometheus should be able to reach it. Without this flag there is no such listener.
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<String>,
}

/// Where the lines of events go.
#[derive(Clone, Debug, PartialEq)]
enum LakeTarget {
    Directory,
    #[cfg(feature = "aws")]
    Firehose(String),
}

impl FromStr for LakeTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "dir" => Ok(Self::Directory),
            #[cfg(feature = "aws")]
            Some(("firehose", name)) if !name.is_empty() => Ok(Self::Firehose(name.into())),
            _ if cfg!(feature = "aws") => Err("use dir or firehose:NAME"),
            _ => Err("use dir; this program was built without AWS"),
        }
    }
}

/// Where events are counted.
#[derive(Clone, Debug, PartialEq)]
enum CounterTarget {
    Sqlite,
    #[cfg(feature = "aws")]
    DynamoDb(String),
}

impl FromStr for CounterTarget {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "sqlite" => Ok(Self::Sqlite),
            #[cfg(feature = "aws")]
            Some(("dynamodb", table)) if !table.is_empty() => Ok(Self::DynamoDb(table.into())),
            _ if cfg!(feature = "aws") => Err("use sqlite or dynamodb:TABLE"),
            _ => Err("use sqlite; this program was built without AWS"),
        }
    }
}

impl Serve {
    pub(super) async fn run(self) -> Result<(), Error> {
        // Read first, so that every later change is noticed.
        let known = sites::file::read(&self.sites)?;
        let sites = Sites::from_file(&self.sites)?;
        self.check_files()?;
        let listener = bind(&self.listen).await?;
        let metrics_listener = match &self.metrics_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let store = self.store().await?;
        let collector = Arc::new(Collector { sites, store });
        let metrics = Arc::new(Metrics::new(collector.store.data_directory().cloned()));
        let options = Options {
            rate_limits: RateLimits::new(self.rate_limit_per_key, self.rate_limit_per_address),
            trusted_proxies: self.trusted_proxies,
            metrics: Some(Arc::clone(&metrics)),
            static_files: self.files.clone(),
        };
        let router = router(Arc::clone(&collector), options);
        let metrics = metrics_listener
            .map(|listener| tokio::spawn(serve(listener, metrics.router(), KEEP_ALIVE, std::future::pending())));
        let watch = tokio::spawn(reload::watch(Arc::clone(&collector), self.sites.clone(), known)?);
        // Before the address is printed, because its reader may send a signal at once.
        let stop = stop_signal()?;
        let address = listener.local_addr().map_err(|error| Error::config("cannot listen").with_source(error))?;
        print(&format!("listening on http://{address}"));
        let mut failure = None;
        let stop_or_failure = async {
            tokio::select! {
                () = stop => {}
                error = collector.store.failed() => failure = Some(error),
            }
        };
        serve(listener, router, self.keep_alive.into(), stop_or_failure).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        watch.abort();
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        collector.store.close().await?;
        print("stopped");
        Ok(())
    }

    /// Refuses to serve a folder that holds the data directory or the sites file.
    fn check_files(&self) -> Result<(), Error> {
        let Some(folder) = &self.files else { return Ok(()) };
        let folder = std::fs::canonicalize(folder).map_err(|error| {
            Error::config(format!("cannot serve the folder {}", folder.display())).with_source(error)
        })?;
        std::fs::create_dir_all(&self.data_dir)
            .map_err(|error| Error::config("cannot make the data directory").with_source(error))?;
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

    async fn store(&self) -> Result<Store, Error> {
        let open = || Embedded::open(&self.data_dir, self.lake_roll_interval.into());
        #[cfg(feature = "aws")]
        let aws = async || crate::store::aws::config().await;
        let store = match (&self.lake, &self.counters) {
            (LakeTarget::Directory, CounterTarget::Sqlite) => Store::embedded(open()?),
            // The AWS configuration is loaded only where it is used, because that may access the network.
            #[cfg(feature = "aws")]
            (LakeTarget::Directory, CounterTarget::DynamoDb(table)) => {
                Store::directory_and_dynamodb(open()?, DynamoDb::new(&aws().await, table))
            }
            #[cfg(feature = "aws")]
            (LakeTarget::Firehose(stream), CounterTarget::Sqlite) => {
                Store::firehose_and_sqlite(Firehose::new(&aws().await, stream), open()?)
            }
            #[cfg(feature = "aws")]
            (LakeTarget::Firehose(stream), CounterTarget::DynamoDb(table)) => {
                let aws = aws().await;
                Store::aws(Firehose::new(&aws, stream), DynamoDb::new(&aws, table))
            }
        };
        #[cfg(feature = "aws")]
        store.warm().await;
        Ok(store)
    }
}

/// A time of at least a second.
fn at_least_a_second(text: &str) -> Result<humantime::Duration, String> {
    let time: humantime::Duration = text.parse().map_err(|error| format!("{error}; use a time such as 60s or 5m"))?;
    if *time < Duration::from_secs(1) { Err("use at least 1s".into()) } else { Ok(time) }
}

async fn bind(address: &str) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| Error::config(format!("cannot listen on {address}")).with_source(error))
}
