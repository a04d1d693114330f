//! A program without async: counts the lines of its standard input and tracks the number.
//!
//! With a spool it may end without a network: the next run delivers the events.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… \
//!   cargo run -p tallymark --example blocking_cli -- /tmp/spool < README.md
//! ```

use std::error::Error;
use std::time::Duration;
use tallymark::{Client, Custom};

fn main() -> Result<(), Box<dyn Error>> {
    let spool = std::env::args_os().nth(1).ok_or("which directory is the spool?")?;
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?)
        .spool(spool)
        .on_error(|error| eprintln!("{error}"))
        .build_blocking()?;

    let lines = std::io::stdin().lines().count();
    println!("{lines} lines");
    client.track(Custom::new("lines_counted").property("lines", lines))?;

    let report = client.shutdown(Duration::from_secs(2));
    println!("delivered {} events, {} left for the next run", report.stats.delivered, report.on_disk());
    Ok(())
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}
