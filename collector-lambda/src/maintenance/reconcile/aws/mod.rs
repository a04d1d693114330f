//! `reconcile` for S3 and DynamoDB: whether each counter is the number of distinct events in the bucket.
//!
//! Nothing is stopped for it, so what is compared is not one moment but bounds. An event goes to the lake before it is
//! counted, and a marker is put together with the counts. So, in this order:
//!
//! 1. All markers are read. What belongs to a batch that is counted to its end now is certain to be counted.
//! 2. All counters are read. They hold at least what is certain.
//! 3. It waits for as long as Firehose may hold what it has taken.
//! 4. All objects are read. They hold at least what was counted by then.
//!
//! An event that is stored and not certain to be counted may be counted or not: it came later, its client has not come
//! back yet, or its batch was stored in part, and no line says of which part it is. A counter is right from the number
//! of certain events up to that of all. An event that was stored several times, at times that the collector has
//! corrected differently, is counted in the hour that the attempt which was counted has given it: that is the line that
//! was received when the receipt says.
//!
//! A marker goes when no client has its batch any more. What was stored longer ago is taken for counted, so what a client
//! gave up between lake and counters is named then, and `--repair` counts it.
//!
//! What clients say they have lost is in no line and is not compared.
//!
//! **Cost**: two strongly consistent scans, one read unit each 4 KB of the table both times, and one request for each
//! object and for each 1,000 in the list. With `--from` only objects of those days are read.

mod bucket;
mod repair;
mod table_scan;

pub(crate) use bucket::Bucket;

use crate::Error;
use crate::maintenance::reconcile::aws::bucket::LakeBucket;
use crate::maintenance::reconcile::aws::repair::RepairFence;
use crate::maintenance::reconcile::aws::table_scan::{TableScan, scan_items};
use crate::maintenance::reconcile::{self as compare, progress};
use crate::store::aws::dynamodb::table::DynamoDb;
use std::time::Duration;

/// How long a transaction may take to be seen as a whole, at the very most.
const SETTLED: Duration = Duration::from_secs(60);

/// What is compared, and how.
pub(crate) struct Options<'a> {
    pub(crate) bucket: Bucket,
    pub(crate) table: &'a str,
    /// For how long Firehose may hold what it has taken.
    pub(crate) delivery: Duration,
    /// Only hours from this time on, in milliseconds since the Unix epoch, and no totals.
    pub(crate) from: Option<u64>,
    pub(crate) repair: bool,
}

/// Prints each counter that is not what is stored, and what cannot be read. Returns how many problems have not been
/// repaired.
pub(crate) async fn reconcile(options: Options<'_>, print: &dyn Fn(&str)) -> Result<u64, Error> {
    let config = aws_config::load_from_env().await;
    let table = DynamoDb::patient(&config, options.table);
    let lake = LakeBucket::new(&config, options.bucket);
    let scan = TableScan::new()?;
    let fence = RepairFence::read(&table).await?;
    let mut unreadable = 0;
    let mut wrong = |what: String| {
        unreadable += 1;
        print(&what);
    };
    progress("reading the markers of the batches");
    scan_items(&table, "b#", &mut |item| scan.take_marker(&item)).await?;
    wait(options.delivery.min(SETTLED), "so that all that these have counted is seen").await;
    progress("reading the counters");
    scan_items(&table, "c#", &mut |item| scan.take_counter(&item, &mut wrong)).await?;
    wait(options.delivery, "for the delivery of what is counted by now (--firehose-delay)").await;
    progress("reading the objects");
    lake.read(options.from, &scan, &mut wrong).await?;
    scan.compare(options.from)?;
    let found = compare::print_differences(&scan.db, print)?;
    let (events, maybe) = scan.events()?;
    print(&format!("{events} events stored, {maybe} of them perhaps not counted: {found} counters differ"));
    if !options.repair || found == 0 {
        return Ok(found + unreadable);
    }
    if unreadable > 0 {
        return Err(Error::config("not repaired: what cannot be read would not be counted any more"));
    }
    if events == 0 {
        return Err(Error::config("not repaired: nothing is stored here, so the events are somewhere else"));
    }
    scan.repair(&table, fence).await?;
    print("repaired");
    Ok(0)
}

async fn wait(time: Duration, why: &str) {
    if time > Duration::ZERO {
        progress(&format!("waiting {} {why}", humantime::format_duration(time)));
        tokio::time::sleep(time).await;
    }
}
