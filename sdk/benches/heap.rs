//! Heap bytes per queued event while the collector has stalled: in memory and with a spool.
//!
//! Compares with the event's JSON, which is the least that memory can hold. The figure is the difference between two
//! sizes of the queue, so that the client's fixed costs do not count. Needs no quiet machine.

mod support;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use support::{Folder, PATIENCE, Sink, client, event};
use tallymark::Event;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let json = Event::from(event()).encode(1_763_673_600_000, &mut rand::random::<u64>).unwrap().json.len();
    println!("one event's JSON {json:>18} bytes");
    for name in ["memory", "spooled"] {
        let folder = Folder::new("heap");
        let (sink, endpoint) = Sink::start();
        let builder = client(&endpoint);
        let builder = if name == "spooled" { builder.spool(&folder.0) } else { builder };
        let client = builder.build_blocking().unwrap();
        sink.stall(true);
        let mut used = [0; 2];
        // The first two thousand events fill the batches in flight, which are in memory in any case.
        for (at, events) in [(0, 2_000), (1, 100_000)] {
            for _ in 0..events {
                client.track(event()).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            let stats = HEAP.stats();
            used[at] = stats.bytes_allocated as i64 - stats.bytes_deallocated as i64;
        }
        println!("heap per queued event, {name:<8} {:>4.1} bytes", (used[1] - used[0]) as f64 / 100_000.0);
        sink.stall(false);
        let report = client.shutdown(PATIENCE);
        assert!(report.is_complete() && report.stats.dropped.total() == 0);
    }
}
