//! Events from the service's own types, so that one place defines what is tracked and with which properties.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… \
//!   cargo run -p tallymark --example typed_event
//! ```

use serde::Serialize;
use std::error::Error;
use std::time::Duration;
use tallymark::{Client, Custom, InvalidEvent, Properties};

/// Everything that this service tracks.
#[derive(Serialize)]
#[serde(untagged)]
enum Tracked<'a> {
    Charged { cents: u64, currency: &'a str, coupon: Option<&'a str> },
    SignedUp { plan: Plan },
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Plan {
    Yearly,
}

impl Tracked<'_> {
    fn event(&self) -> Result<Custom, InvalidEvent> {
        let name = match self {
            Self::Charged { .. } => "charged",
            Self::SignedUp { .. } => "signed_up",
        };
        Ok(Custom::new(name).properties(Properties::new(self)?))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?).build()?;
    for tracked in [
        Tracked::SignedUp { plan: Plan::Yearly },
        Tracked::Charged { cents: 4900, currency: "EUR", coupon: Some("autumn") },
    ] {
        println!("{}", serde_json::to_string(&tracked)?);
        client.track(tracked.event()?.user_id("u1"))?;
    }
    let report = client.shutdown(Duration::from_secs(10)).await;
    println!("delivered {} of {} events", report.stats.delivered, report.stats.made);
    if report.is_complete() { Ok(()) } else { Err("some events could not be delivered".into()) }
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}
