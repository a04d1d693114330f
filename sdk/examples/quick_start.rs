//! The first three events.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… \
//!   cargo run -p tallymark --example quick_start
//! ```

use std::error::Error;
use std::time::Duration;
use tallymark::{ButtonClick, Client, Custom, PageView};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?).build()?;

    // None of these waits for the network.
    client.track(PageView::new("https://shop.example/").title("Shop").session_id("xyz"))?;
    client.track(ButtonClick::new("buy").session_id("xyz"))?;
    client.track(Custom::new("charge").property("value", 100))?;

    let report = client.shutdown(Duration::from_secs(10)).await;
    println!("delivered {} of {} events", report.stats.delivered, report.stats.made);
    if report.is_complete() { Ok(()) } else { Err("some events could not be delivered".into()) }
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}
