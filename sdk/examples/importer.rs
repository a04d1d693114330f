//! Imports events from a file and waits for the outcome of each.
//!
//! Each line of the file is one event: `milliseconds since 1970,order number,cents`. The importer notes confirmed
//! orders in a second file, so an interrupted run can be repeated and imports only the rest. The collector may count
//! events twice that were in flight at the interruption, because they come in new batches. In the lake they can be
//! deduplicated by their id, which is derived from the order and is the same in every run.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… \
//!   cargo run -p tallymark --example importer -- orders.csv orders.done
//! ```

use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::time::Duration;
use tallymark::{Client, Custom, EventId, Outcome};
use tokio::task::JoinSet;

/// The number of orders that wait for their outcome at the same time. Their events are sent together.
const AT_ONCE: usize = 2_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut files = std::env::args().skip(1);
    let (Some(orders), Some(done)) = (files.next(), files.next()) else {
        return Err("usage: importer FILE DONE".into());
    };
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?)
        .batch_events(tallymark::limits::BATCH_EVENTS)
        .build()?;

    let orders = fs::read_to_string(orders)?;
    let known = fs::read_to_string(&done).unwrap_or_default();
    let known: HashSet<&str> = known.lines().collect();
    let mut done = OpenOptions::new().create(true).append(true).open(done)?;

    let mut todo = orders.lines().filter(|line| !line.split(',').nth(1).is_some_and(|order| known.contains(order)));
    let mut waiting = JoinSet::new();
    let (mut delivered, mut failed) = (0, 0);
    loop {
        while waiting.len() < AT_ONCE
            && let Some(line) = todo.next()
        {
            let (order, event) = event(line).ok_or_else(|| format!("not an order: {line}"))?;
            let client = client.clone();
            waiting.spawn(async move { (order, client.track_confirmed(event).await) });
        }
        match waiting.join_next().await {
            None => break,
            Some(confirmed) => match confirmed? {
                (order, Ok(Outcome::Delivered)) => {
                    writeln!(done, "{order}")?;
                    delivered += 1;
                }
                (order, other) => {
                    eprintln!("order {order}: {other:?}");
                    failed += 1;
                }
            },
        }
    }
    client.shutdown(Duration::from_secs(10)).await;
    println!("{delivered} delivered, {failed} failed, {} known before", known.len());
    if failed == 0 { Ok(()) } else { Err("some orders were not imported".into()) }
}

fn event(line: &str) -> Option<(String, Custom)> {
    let mut fields = line.split(',');
    let (at, order, cents) = (fields.next()?, fields.next()?, fields.next()?);
    let (at, cents): (u64, u64) = (at.parse().ok()?, cents.parse().ok()?);
    let event = Custom::new("order").property("order", order).property("cents", cents).occurred_at(at);
    Some((order.into(), event.event_id(id(at, order))))
}

/// An id derived from the order number. To derive an id from a long name, use UUIDv5.
fn id(at: u64, order: &str) -> EventId {
    let mut bits = order
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    EventId::new(at, &mut || {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bits
    })
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}
