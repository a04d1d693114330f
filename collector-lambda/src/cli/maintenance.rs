//! Commands that check, repair and trim what is stored: `verify`, `reconcile` and `prune`.

use crate::Error;
use crate::cli::print;
#[cfg(feature = "s3")]
use crate::maintenance::reconcile::aws as reconcile_aws;
use crate::maintenance::{prune, reconcile::embedded as reconcile, verify};
use clap::Args;
use std::path::PathBuf;
#[cfg(feature = "s3")]
use std::time::UNIX_EPOCH;

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    store: DataDir,
}

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// How many days before today to keep.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    keep_days: u32,
    /// Compress the files of the days before today with gzip.
    #[arg(long)]
    compress: bool,
    /// Only print what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: DataDir,
}

#[derive(Debug, Args)]
struct DataDir {
    /// The data directory of a collector: the embedded store's database and the lake's files.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Reconcile {
    /// Set the counters to what is stored, after printing the differences. With `--data-dir` no collector may be
    /// running, and a missing database is rebuilt from the lake. A rebuilt database does not know which batches have
    /// been received.
    #[arg(long)]
    repair: bool,
    /// The data directory of a collector: the embedded store's database and the lake's files.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The bucket that Firehose delivers to, and the prefix of its objects' keys. The objects are newline-delimited
    /// JSON, plain or gzip.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "s3://BUCKET/PREFIX", conflicts_with = "data_dir", requires = "counters")]
    lake: Option<reconcile_aws::Bucket>,
    /// The counters: `dynamodb:TABLE`.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "dynamodb:TABLE", conflicts_with = "data_dir", requires = "lake")]
    counters: Option<TableName>,
    /// How long Firehose may take to deliver: its buffering interval and some more. The command waits for that long.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "TIME", default_value = "15m", conflicts_with = "data_dir")]
    firehose_delay: humantime::Duration,
    /// Compare only the hours since this day (UTC). Totals are then neither compared nor repaired. Use it for a bucket
    /// whose old objects expire: the day after the expiry is the first that is complete.
    #[cfg(feature = "s3")]
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day, conflicts_with = "data_dir")]
    from: Option<u64>,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Error> {
        fail_if_found(verify::verify(&self.store.data_dir, &print)?, "see above")
    }
}

impl Prune {
    pub(super) fn run(self) -> Result<(), Error> {
        let Self { keep_days, compress, dry_run, store } = self;
        prune::run(&store.data_dir, &prune::Policy { keep: keep_days, compress, dry_run }, &print)
    }
}

impl Reconcile {
    pub(super) async fn run(self) -> Result<(), Error> {
        fail_if_found(self.compare().await?, "counters differ or lines cannot be read")
    }

    async fn compare(self) -> Result<u64, Error> {
        match self {
            Self { data_dir: Some(folder), repair, .. } => reconcile::reconcile(&folder, repair, &print),
            #[cfg(feature = "s3")]
            Self { lake: Some(bucket), counters: Some(TableName(table)), repair, firehose_delay, from, .. } => {
                let delivery = firehose_delay.into();
                let options = reconcile_aws::Options { bucket, table: &table, delivery, from, repair };
                reconcile_aws::reconcile(options, &print).await
            }
            _ => Err(Error::config("give --data-dir DIR, or --lake s3://BUCKET/PREFIX and --counters dynamodb:TABLE")),
        }
    }
}

/// Fails if anything was found.
fn fail_if_found(found: u64, what: &str) -> Result<(), Error> {
    if found == 0 { Ok(()) } else { Err(Error::config(format!("{found} problems found: {what}"))) }
}

/// A DynamoDB table, as `dynamodb:TABLE`.
#[cfg(feature = "s3")]
#[derive(Clone, Debug)]
struct TableName(String);

#[cfg(feature = "s3")]
impl std::str::FromStr for TableName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let table = text.strip_prefix("dynamodb:").filter(|table| !table.is_empty());
        table.map(|table| Self(table.into())).ok_or("use dynamodb:TABLE")
    }
}

/// The first millisecond of a day.
#[cfg(feature = "s3")]
fn day(text: &str) -> Result<u64, String> {
    let start = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).map_err(|_| "use YYYY-MM-DD")?;
    Ok(start.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}
