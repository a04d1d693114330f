//! The browser tracker: the outbox of the `tallymark` crate behind a class that JavaScript can use.
//!
//! Everything is decided here (limits, encoding, sessions, batches, retries) and nothing is done: the
//! script around it listens, keeps time, stores and sends. Times are milliseconds since the Unix epoch.

mod session;
mod text;

#[cfg(target_arch = "wasm32")]
use lol_alloc::{FreeListAllocator, LockedAllocator};
use session::Session;
use tallymark::outbox::{Answer, Config, Next, Pause, PushError};
use tallymark::{ButtonClick, Custom, Event, MemorySpool, Outbox, PageView, Properties, Reason, limits};
use wasm_bindgen::prelude::wasm_bindgen;

/// The default allocator is a fifth of the wasm; a heap of a megabyte or two does well with a free list.
#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ALLOCATOR: LockedAllocator<FreeListAllocator> = LockedAllocator::new(FreeListAllocator::new());

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = crypto, js_name = getRandomValues)]
    fn get_random_values(bytes: &mut [u8]);
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    get_random_values(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A queue of events, and the visit they belong to.
///
/// Each function here costs code that carries its arguments across, on both sides: hence one `push` for
/// every kind of event, one `figure` for every number and one `text` for every text. An empty text is none.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Tracker {
    outbox: Outbox<MemorySpool, fn() -> u64>,
    session: Session,
    random: fn() -> u64,
    body: String,
    problem: &'static str,
}

#[wasm_bindgen]
impl Tracker {
    /// A tracker that goes on with the session that was kept, or starts one if `session_id` is empty.
    #[wasm_bindgen(constructor)]
    pub fn new(session_id: String, active_at: f64) -> Self {
        Self::with_random(session_id, active_at, random)
    }

    /// Queues an event. `kind` is 0 for a page view, whose `key` is its url, 1 for a click on the button
    /// `key`, and 2 for an event called `key`. Only page views have a referrer and a title, which are cut
    /// to their limits. `false` if it cannot be taken; `text` says why.
    pub fn push(
        &mut self,
        kind: u8,
        now: f64,
        key: String,
        referral_url: String,
        title: String,
        properties: String,
    ) -> bool {
        self.problem = match text::properties(properties) {
            Ok(properties) => self.queue(now as u64, kind, key, referral_url, title, properties),
            Err(code) => code,
        };
        self.problem.is_empty()
    }

    /// What to do now: 0 is to send the body that `text` gives, report what came of it and ask again
    /// at once; another number is when to ask again, and infinity is nothing until something happens.
    pub fn poll(&mut self, now: f64) -> f64 {
        match self.outbox.poll(now as u64) {
            Next::Send(attempt) => {
                self.body = attempt.body;
                0.0
            }
            Next::WaitUntil(then) => then as f64,
            Next::Idle => f64::INFINITY,
        }
    }

    /// Reports what came of sending a batch.
    ///
    /// `status` is the HTTP status, with `retry_after` in milliseconds, NaN if the answer did not say; or 0 if
    /// no answer came that could be understood. 200 is for the collector's receipt only: how many events
    /// it took and refused, and the indexes of those to send again.
    #[expect(clippy::too_many_arguments, reason = "a flat list is what crosses from JavaScript cheaply")]
    pub fn answer(
        &mut self,
        now: f64,
        batch_id: &str,
        status: u16,
        retry_after: f64,
        accepted: u32,
        rejected: u32,
        retry: &[u32],
    ) {
        // The few that are on their way are searched by text, which is smaller than reading ids.
        let Some(batch) = self.outbox.batches().find(|batch| batch.encode(&mut [0; 36]) == batch_id) else { return };
        let answer = match status {
            0 => Answer::None,
            200 => Answer::Receipt { accepted, rejected, retry },
            _ => Answer::Status { status, retry_after: (retry_after >= 0.0).then_some(retry_after as u64) },
        };
        self.outbox.answer(now as u64, batch, answer);
    }

    /// Makes the next `poll` send what is queued, without waiting for more.
    pub fn flush(&mut self) {
        self.outbox.flush();
    }

    /// Ends every wait: the network is back.
    pub fn resume(&mut self) {
        self.outbox.resume();
    }

    /// A number by its place: 0 when the session's last event happened, 1 the status (401 or 403) that has
    /// stopped all sending or 0, and then events: 2 delivered, 3 rejected, 4 queued, and from 5 on those
    /// dropped for each reason.
    pub fn figure(&self, place: usize) -> f64 {
        let stats = self.outbox.stats();
        let figure = match place {
            0 => self.session.active_at(),
            1 => match stats.paused {
                None => 0,
                Some(Pause::Unauthorized) => 401,
                Some(_) => 403,
            },
            2 => stats.delivered,
            3 => stats.rejected,
            4 => stats.queued,
            _ => Reason::ALL.get(place.wrapping_sub(DROPPED)).map_or(0, |reason| stats.dropped.of(*reason)),
        };
        figure as f64
    }

    /// A text by its place: 0 the session's id, empty before the first event, 1 the body to send, which names
    /// its batch as `batch_id`, 2 what was wrong with the event refused last, such as `url_too_long`, and
    /// from 5 on the reasons to drop events, by name; empty after the last.
    pub fn text(&self, place: usize) -> String {
        let text = match place {
            0 => self.session.id(),
            1 => &self.body,
            2 => self.problem,
            _ => Reason::ALL.get(place.wrapping_sub(DROPPED)).map_or("", |reason| reason.as_str()),
        };
        text.into()
    }
}

/// The place of the first reason.
const DROPPED: usize = 5;

impl Tracker {
    fn with_random(session_id: String, active_at: f64, random: fn() -> u64) -> Self {
        let mut config = Config::default();
        config.sdk = concat!("tallymark-js/", env!("CARGO_PKG_VERSION")).into();
        config.batch_events = 20;
        // Two of these fit into the 64 KiB that a page may leave behind when it goes.
        config.batch_bytes = 30_000;
        config.batch_age = 2_000;
        config.in_flight = 2;
        config.queue_bytes = 1024 * 1024;
        let Ok(outbox) = Outbox::new(config, MemorySpool::new(), random);
        let session = Session::resume(session_id, active_at as u64);
        Self { outbox, session, random, body: String::new(), problem: "" }
    }

    fn queue(
        &mut self,
        now: u64,
        kind: u8,
        key: String,
        referral_url: String,
        title: String,
        properties: Option<Properties>,
    ) -> &'static str {
        let session = self.session.touch(now, &mut self.random);
        let event: Event = match kind {
            0 => {
                let mut view = PageView::new(key).session_id(session);
                if !referral_url.is_empty() {
                    view = view.referral_url(text::cut(referral_url, limits::URL_BYTES));
                }
                if !title.is_empty() {
                    view = view.title(text::cut(title, limits::TITLE_BYTES));
                }
                if let Some(properties) = properties {
                    view = view.properties(properties);
                }
                view.into()
            }
            1 => {
                let mut click = ButtonClick::new(key).session_id(session);
                if let Some(properties) = properties {
                    click = click.properties(properties);
                }
                click.into()
            }
            _ => {
                let mut custom = Custom::new(key).session_id(session);
                if let Some(properties) = properties {
                    custom = custom.properties(properties);
                }
                custom.into()
            }
        };
        match self.outbox.push(now, &event) {
            Err(PushError::Invalid(invalid)) => invalid.code(),
            // A full queue is counted by the outbox, and memory does not fail.
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const NOW: f64 = 1_763_673_600_000.0;
    const PAUSED: usize = 1;
    const DELIVERED: usize = 2;
    const QUEUED: usize = 4;

    fn counted() -> u64 {
        static LAST: AtomicU64 = AtomicU64::new(0);
        LAST.fetch_add(1, Ordering::Relaxed)
    }

    fn tracker() -> Tracker {
        Tracker::with_random("visit".into(), NOW, counted)
    }

    /// What is wrong with the event; nothing, if it was taken.
    fn push(tracker: &mut Tracker, kind: u8, key: &str, rest: [&str; 3]) -> String {
        let [referral_url, title, properties] = rest.map(str::to_owned);
        let taken = tracker.push(kind, NOW, key.into(), referral_url, title, properties);
        assert_eq!(taken, tracker.text(2).is_empty());
        tracker.text(2)
    }

    fn click(tracker: &mut Tracker) {
        assert_eq!(push(tracker, 1, "buy", [""; 3]), "");
    }

    fn sent(tracker: &mut Tracker, now: f64) -> (String, String) {
        tracker.flush();
        assert_eq!(tracker.poll(now), 0.0, "something to send");
        let body = tracker.text(1);
        (body[13..49].into(), body)
    }

    fn fail(tracker: &mut Tracker, now: f64, batch_id: &str, status: u16, retry_after: f64) {
        tracker.answer(now, batch_id, status, retry_after, 0, 0, &[]);
    }

    #[test]
    fn a_page_view_keeps_its_limits() {
        let mut tracker = tracker();
        assert_eq!(push(&mut tracker, 0, "https://shop.example/", ["", &"茶".repeat(400), ""]), "");
        let (_, body) = sent(&mut tracker, NOW);
        let cut = "茶".repeat(1024 / 3);
        assert!(body.contains(&format!(r#""session_id":"visit","url":"https://shop.example/","title":"{cut}"}}"#)));

        assert_eq!(push(&mut tracker, 0, "https://shop.example/", [&"r".repeat(5000), "", ""]), "");
        assert!(sent(&mut tracker, NOW).1.contains(&format!(r#""referral_url":"{}"}}"#, "r".repeat(4096))));
    }

    #[test]
    fn says_what_is_wrong_with_an_event() {
        let mut tracker = tracker();
        assert_eq!(push(&mut tracker, 0, &"u".repeat(4097), [""; 3]), "url_too_long");
        assert_eq!(push(&mut tracker, 1, "", [""; 3]), "button_id_missing");
        assert_eq!(push(&mut tracker, 2, &"n".repeat(129), [""; 3]), "name_too_long");
        assert_eq!(push(&mut tracker, 2, "n", ["", "", "[1]"]), "invalid_properties");
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(40_000));
        assert_eq!(push(&mut tracker, 2, "n", ["", "", &large]), "event_too_large");
        assert_eq!(tracker.figure(QUEUED), 0.0);
        click(&mut tracker);
    }

    #[test]
    fn a_batch_leaves_when_it_is_full_or_two_seconds_old() {
        let mut tracker = tracker();
        click(&mut tracker);
        assert_eq!(tracker.poll(NOW), NOW + 2000.0);
        assert_eq!(tracker.poll(NOW + 2000.0), 0.0);
        for _ in 0..20 {
            click(&mut tracker);
        }
        assert_eq!(tracker.poll(NOW + 3000.0), 0.0);
        assert_eq!(tracker.poll(NOW + 3000.0), f64::INFINITY);
    }

    #[test]
    fn two_batches_fit_into_what_a_page_may_leave_behind() {
        let mut tracker = tracker();
        for _ in 0..40 {
            let properties = format!(r#"{{"a":"{}"}}"#, "x".repeat(4000));
            assert_eq!(push(&mut tracker, 2, "large", ["", "", &properties]), "");
        }
        let mut bytes = 0;
        while tracker.poll(NOW) == 0.0 {
            bytes += tracker.text(1).len();
        }
        assert!((50_000..60_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_failed_batch_is_sent_again_unchanged() {
        let mut tracker = tracker();
        click(&mut tracker);
        let (batch_id, body) = sent(&mut tracker, NOW);
        assert!(body.starts_with(&format!(r#"{{"batch_id":"{batch_id}","sdk":"tallymark-js/0.1.0","#)));

        fail(&mut tracker, NOW, &batch_id, 503, 10_000.0);
        let again = tracker.poll(NOW);
        assert!(again >= NOW + 10_000.0, "the wait the collector asked for");
        assert_eq!(tracker.poll(again), 0.0);
        assert_eq!(tracker.text(1), body);

        tracker.answer(again, &batch_id, 200, f64::NAN, 1, 0, &[]);
        assert_eq!((tracker.figure(DELIVERED), tracker.figure(QUEUED)), (1.0, 0.0));
    }

    #[test]
    fn only_a_receipt_that_adds_up_is_delivery() {
        let mut tracker = tracker();
        click(&mut tracker);
        let (batch_id, _) = sent(&mut tracker, NOW);
        tracker.answer(NOW, "019aa2e6-b9c0-7abc-8def-0123456789ab", 200, f64::NAN, 1, 0, &[]);
        tracker.answer(NOW, &batch_id, 200, f64::NAN, 2, 0, &[]);
        assert_eq!((tracker.figure(DELIVERED), tracker.figure(QUEUED)), (0.0, 1.0));
    }

    #[test]
    fn bad_credentials_pause_and_drop_nothing() {
        let mut tracker = tracker();
        click(&mut tracker);
        let (batch_id, _) = sent(&mut tracker, NOW);
        fail(&mut tracker, NOW, &batch_id, 401, f64::NAN);
        assert_eq!((tracker.figure(PAUSED), tracker.figure(QUEUED)), (401.0, 1.0));
        assert!(tracker.poll(NOW) > NOW);
        tracker.resume();
        assert_eq!((tracker.figure(PAUSED), tracker.poll(NOW)), (0.0, 0.0));
    }

    #[test]
    fn drops_are_counted_by_reason() {
        let mut tracker = tracker();
        click(&mut tracker);
        let (batch_id, _) = sent(&mut tracker, NOW);
        fail(&mut tracker, NOW, &batch_id, 422, -1.0);
        let dropped: Vec<_> = (DROPPED..)
            .map(|place| (tracker.text(place), tracker.figure(place)))
            .take_while(|(reason, _)| !reason.is_empty())
            .filter(|(_, events)| *events > 0.0)
            .collect();
        assert_eq!(dropped, [("refused".to_owned(), 1.0)]);
    }

    #[test]
    fn strange_times_do_no_harm() {
        let mut tracker = tracker();
        for now in [f64::NAN, -1.0, f64::INFINITY, 1e300, 0.0] {
            assert!(tracker.push(1, now, "buy".into(), String::new(), String::new(), String::new()));
            tracker.flush();
            tracker.poll(now);
        }
    }
}
