//! The command line: `serve` and `site add`.

use crate::Error;
use crate::embedded::Embedded;
use crate::routes::{Collector, router, router_with_files};
use crate::server::{serve, stop_signal};
use crate::site::{self, NewKeys, Sites};
use crate::store::{Counters, Lake, Store};
use clap::{Args, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

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
    Serve(Serve),
    /// Manage the sites that may send and read.
    #[command(subcommand)]
    Site(SiteCommand),
}

#[derive(Debug, Args)]
struct Serve {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8787")]
    listen: String,
    /// Where the embedded store keeps its database and the lake its files.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The list of sites; `site add` makes it.
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
        /// The list of sites, made if there is none.
        #[arg(long, value_name = "FILE")]
        sites: PathBuf,
    },
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
            Command::Site(SiteCommand::Add { name, origins, sites }) => {
                site::add(&sites, &name, &origins, |keys| {
                    let NewKeys { secret_key, write_key } = keys;
                    writeln!(std::io::stdout(), "username: {name}\nsecret_key: {secret_key}\nwrite_key: {write_key}")
                })?;
                Ok(())
            }
        }
    }
}

impl Serve {
    async fn run(self) -> Result<(), Error> {
        let sites = Sites::from_file(&self.sites)?;
        self.check_files()?;
        let listener = TcpListener::bind(&self.listen)
            .await
            .map_err(|error| Error::config(format!("cannot listen on {}", self.listen)).because(error))?;
        let store = self.store().await?;
        let collector = Arc::new(Collector { sites, store });
        let router = match &self.files {
            Some(folder) => router_with_files(Arc::clone(&collector), folder),
            None => router(Arc::clone(&collector)),
        };
        let address = listener.local_addr().map_err(|error| Error::config("cannot listen").because(error))?;
        say(&format!("listening on http://{address}"));
        serve(listener, router, async {
            if let Err(error) = stop_signal().await {
                tracing::error!(cause = %crate::error::chain(&error), "stopping");
            }
        })
        .await?;
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

    async fn store(&self) -> Result<Store, Error> {
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
            (Sink::Named("firehose", name), _) => Lake::Firehose(crate::firehose::Firehose::new(&aws, name)),
            _ => return Err(Error::config("--lake is dir or firehose:NAME")),
        };
        let counters = match (&self.counters, embedded) {
            (Sink::Embedded("sqlite"), Some(embedded)) => Counters::Sqlite(embedded),
            #[cfg(feature = "aws")]
            (Sink::Named("dynamodb", table), _) => Counters::DynamoDb(crate::dynamodb::DynamoDb::new(&aws, table)),
            _ => return Err(Error::config("--counters is sqlite or dynamodb:TABLE")),
        };
        let store = Store::new(lake, counters);
        #[cfg(feature = "aws")]
        store.warm().await;
        Ok(store)
    }
}

/// Prints a line. That nobody reads it is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
