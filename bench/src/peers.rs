//! The clients, each as its own documentation says to use it. Where a queue's default is too small for the
//! test it is made larger; everything else is as it comes.

use crate::sink::marker;
use serde_json::json;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// One client, started.
pub struct Peer {
    pub track: Box<dyn FnMut(usize)>,
    /// Its orderly end.
    pub finish: Box<dyn FnOnce()>,
}

pub struct Kind {
    pub name: &'static str,
    pub start: fn(&str, &Path) -> Peer,
    /// Whether it keeps events on disk, so that a next process may deliver them.
    pub disk: bool,
    /// Whether tracking sends, and so waits for the network.
    pub sends: bool,
}

pub const KINDS: [Kind; 8] = [
    Kind { name: "tallymark", start: tallymark, disk: false, sends: false },
    Kind { name: "tallymark, spool", start: tallymark_spool, disk: true, sends: false },
    Kind { name: "posthog-rs", start: posthog, disk: false, sends: false },
    Kind { name: "amplitude-rs", start: amplitude, disk: false, sends: false },
    Kind { name: "amplitude-rs, file", start: amplitude_file, disk: true, sends: false },
    Kind { name: "snowplow_tracker", start: snowplow, disk: false, sends: false },
    Kind { name: "rudderanalytics", start: rudder, disk: false, sends: true },
    Kind { name: "segment", start: segment, disk: false, sends: true },
];

const QUEUE: usize = 200_000;
const URL: &str = "https://shop.example/tea?cup=2";
const END: Duration = Duration::from_secs(30);

fn tallymark(endpoint: &str, _: &Path) -> Peer {
    ours(tallymark::Client::builder(endpoint, "shop", "tms_secret"))
}

fn tallymark_spool(endpoint: &str, folder: &Path) -> Peer {
    ours(tallymark::Client::builder(endpoint, "shop", "tms_secret").spool(folder))
}

fn ours(builder: tallymark::Builder) -> Peer {
    let client = builder.build_blocking().unwrap();
    let tracking = client.clone();
    let track = move |n| {
        let event = tallymark::Custom::new("charge").user_id("u1").property("n", marker(n)).property("url", URL);
        tracking.track(event).unwrap();
    };
    Peer { track: Box::new(track), finish: Box::new(move || _ = client.shutdown(END)) }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn posthog(endpoint: &str, _: &Path) -> Peer {
    let options = posthog_rs::ClientOptionsBuilder::default()
        .api_key("key".into())
        .host(endpoint)
        .max_queue_size(QUEUE)
        .build()
        .unwrap();
    let runtime = runtime();
    let client = Arc::new(runtime.block_on(posthog_rs::client(options)));
    let tracking = Arc::clone(&client);
    let track = move |n| {
        let mut event = posthog_rs::Event::new("charge", "u1");
        event.insert_prop("n", marker(n)).unwrap();
        event.insert_prop("url", URL).unwrap();
        tracking.capture(event);
    };
    Peer { track: Box::new(track), finish: Box::new(move || runtime.block_on(client.shutdown())) }
}

fn amplitude(endpoint: &str, _: &Path) -> Peer {
    amplitude_with(endpoint, Arc::new(amplitude_rs::InMemoryStorage::new(QUEUE)))
}

fn amplitude_file(endpoint: &str, folder: &Path) -> Peer {
    amplitude_with(endpoint, Arc::new(amplitude_rs::FileStorage::new(folder.join("events"), QUEUE).unwrap()))
}

fn amplitude_with(endpoint: &str, storage: Arc<dyn amplitude_rs::Storage>) -> Peer {
    let config = amplitude_rs::Config::new("key").server_url(format!("{endpoint}/2/httpapi"));
    let client = Arc::new(amplitude_rs::Amplitude::builder(config).storage(storage).build().unwrap());
    let tracking = Arc::clone(&client);
    let track = move |n| {
        let properties = json!({"n": marker(n), "url": URL});
        tracking.track(amplitude_rs::BaseEvent::new("charge").user_id("u1").event_properties(properties));
    };
    Peer { track: Box::new(track), finish: Box::new(move || runtime().block_on(client.shutdown())) }
}

fn snowplow(endpoint: &str, _: &Path) -> Peer {
    use snowplow_tracker::{BatchEmitter, InMemoryEventStore, SelfDescribingEvent, Tracker};
    let emitter = BatchEmitter::builder().collector_url(endpoint).event_store(InMemoryEventStore::new(QUEUE, 50));
    let tracker = Tracker::new("ns", "shop", emitter.build().unwrap(), None);
    let tracker = Rc::new(RefCell::new(tracker));
    let tracking = Rc::clone(&tracker);
    let track = move |n| {
        let event = SelfDescribingEvent::builder()
            .schema("iglu:example/charge/jsonschema/1-0-0")
            .data(json!({"n": marker(n), "url": URL}))
            .build()
            .unwrap();
        tracking.borrow_mut().track(event, None).unwrap();
    };
    let finish = move || {
        let mut tracker = tracker.borrow_mut();
        let _ = tracker.flush();
        let _ = tracker.close_emitter();
    };
    Peer { track: Box::new(track), finish: Box::new(finish) }
}

/// It has no queue: each event is a request, and the caller waits for it.
fn rudder(endpoint: &str, _: &Path) -> Peer {
    use rudderanalytics::message::{Message, Track};
    let client = rudderanalytics::client::RudderAnalytics::load("key".into(), endpoint.into());
    let track = move |n| {
        let message = Message::Track(Track {
            user_id: Some("u1".into()),
            event: "charge".into(),
            properties: Some(json!({"n": marker(n), "url": URL})),
            ..Track::default()
        });
        // It says so when it fails; what then is the caller's to know.
        let _ = client.send(&message);
    };
    Peer { track: Box::new(track), finish: Box::new(|| ()) }
}

/// It has no timer, so we flush every hundred events, in the caller, as a service has to.
fn segment(endpoint: &str, _: &Path) -> Peer {
    use segment::message::{Track, User};
    use segment::{AutoBatcher, Batcher, HttpClient};
    let http = HttpClient::new(reqwest::Client::new(), endpoint.into());
    let batcher = Arc::new(std::sync::Mutex::new(AutoBatcher::new(http, Batcher::new(None), "key".into())));
    let runtime = Arc::new(runtime());
    let (tracking, ours) = (Arc::clone(&batcher), Arc::clone(&runtime));
    let track = move |n| {
        let message = Track {
            user: User::UserId { user_id: "u1".into() },
            event: "charge".into(),
            properties: json!({"n": marker(n), "url": URL}),
            ..Track::default()
        };
        let mut batcher = tracking.lock().unwrap();
        // It says so when it fails; by then its buffer is empty.
        let _ = ours.block_on(async {
            batcher.push(message).await?;
            if n % 100 == 99 { batcher.flush().await } else { Ok(()) }
        });
    };
    let finish = move || _ = runtime.block_on(batcher.lock().unwrap().flush());
    Peer { track: Box::new(track), finish: Box::new(finish) }
}
