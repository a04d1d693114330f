//! The functions as a script calls them: natively, and with wasm-bindgen-test in a real browser.

use super::*;
use std::collections::BTreeMap;
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::{wasm_bindgen_test as test, wasm_bindgen_test_configure};

#[cfg(target_arch = "wasm32")]
wasm_bindgen_test_configure!(run_in_browser);

const NOW: f64 = 1_763_673_600_000.0;
const STOPPED: usize = 0;
const DELIVERED: usize = 1;
const REJECTED: usize = 2;
const DROPPED: usize = 3;

/// A page's batches: the number of events in each, and the losses in the last one sealed.
#[derive(Default)]
struct Page {
    events: BTreeMap<i32, i32>,
    last: i32,
    full: bool,
    reported: Vec<f64>,
}

thread_local! {
    static PAGE: RefCell<Page> = RefCell::default();
}

pub(crate) mod page {
    use super::PAGE;

    fn add(events: i32) -> i32 {
        PAGE.with_borrow_mut(|page| {
            if page.full {
                return 0;
            }
            page.last += 1;
            page.events.insert(page.last, events);
            page.last
        })
    }

    pub(crate) fn random() -> f64 {
        0.5
    }

    pub(crate) fn skip_to(last: i32) {
        PAGE.with_borrow_mut(|page| page.last = last);
    }

    pub(crate) fn begin() -> i32 {
        add(1)
    }

    pub(crate) fn extend(batch: i32) -> i32 {
        PAGE.with_borrow_mut(|page| {
            let room = !page.full;
            *page.events.get_mut(&batch).unwrap() += i32::from(room);
            i32::from(room)
        })
    }

    pub(crate) fn seal(_: i32, full: f64, expired: f64, refused: f64, large: f64, storage: f64, invalid: f64) -> i32 {
        PAGE.with_borrow_mut(|page| page.reported = vec![full, expired, refused, large, storage, invalid]);
        1
    }

    pub(crate) fn part(_whole: i32, _number: i32, from: i32, to: i32) -> i32 {
        add(to - from)
    }

    pub(crate) fn remove(batch: i32) {
        PAGE.with_borrow_mut(|page| page.events.remove(&batch).unwrap());
    }

    pub(crate) fn size(_batch: i32) -> i32 {
        1000
    }
}

/// A new page. Natively each test has a thread and so a page of its own; in a browser the tests share one.
fn open() {
    PAGE.take();
    QUEUE.set(Queue::new(CONFIG, Host, Host));
    CLOCK.set(Clock::start(NOW as u64, 0));
}

fn click(events: usize) {
    for _ in 0..events {
        push(NOW, 250);
    }
}

/// The batch to send now.
fn sent(now: f64) -> i32 {
    let batch = -poll(now) as i32;
    assert!(batch > 0, "something to send");
    batch
}

fn stored() -> i32 {
    PAGE.with_borrow(|page| page.events.values().sum())
}

#[test]
fn a_batch_leaves_when_it_is_full_or_two_seconds_old() {
    open();
    click(1);
    assert_eq!(poll(NOW), NOW + 2000.0);
    assert_eq!(poll(NOW + 2000.0), -1.0);
    click(20);
    assert_eq!(poll(NOW + 2000.0), -2.0);
    assert_eq!(poll(NOW + 2000.0), f64::INFINITY);
}

#[test]
fn two_batches_fit_into_what_a_closing_page_can_send() {
    open();
    for _ in 0..12 {
        push(NOW, 5000);
    }
    flush();
    let sizes = PAGE.with_borrow(|page| page.events.values().copied().collect::<Vec<_>>());
    assert_eq!(sizes, [6, 6], "six events are under 30 KB with the rest of the body");
}

#[test]
fn a_batch_stays_until_its_receipt() {
    open();
    click(2);
    flush();
    let batch = sent(NOW);
    answer(NOW, batch, 503, 10_000.0, 0, 0, 0);
    let again = poll(NOW);
    assert!(again >= NOW + 10_000.0, "the wait the collector asked for");
    assert_eq!(sent(again), batch);
    // Two events are not three.
    answer(again, batch, 200, f64::NAN, 3, 0, 0);
    assert_eq!((stat(DELIVERED), stored()), (0.0, 2));
    let last = poll(again);
    assert_eq!(sent(last), batch);
    answer(last, batch, 200, f64::NAN, 1, 1, 0);
    assert_eq!((stat(DELIVERED), stat(REJECTED), stored()), (1.0, 1.0, 0));
}

#[test]
fn events_asked_for_again_get_a_batch_of_their_own_and_a_large_batch_is_halved() {
    open();
    click(9);
    flush();
    let batch = sent(NOW);
    answer(NOW, batch, 200, f64::NAN, 4, 0, 5);
    assert_eq!(stored(), 5);
    let later = poll(NOW);
    let batch = sent(later);
    answer(later, batch, 413, f64::NAN, 0, 0, 0);
    assert_eq!(PAGE.with_borrow(|page| page.events.values().copied().collect::<Vec<_>>()), [2, 3]);
}

#[test]
fn bad_credentials_stop_and_drop_nothing() {
    open();
    click(1);
    flush();
    answer(NOW, sent(NOW), 401, f64::NAN, 0, 0, 0);
    assert_eq!((stat(STOPPED), stored()), (401.0, 1));
    assert!(poll(NOW) > NOW);
    resume();
    assert_eq!(stat(STOPPED), 0.0);
    sent(NOW);
}

#[test]
fn drops_are_counted_by_reason_and_reported_with_the_next_batch() {
    open();
    click(2);
    flush();
    answer(NOW, sent(NOW), 422, -1.0, 0, 0, 0);
    lose(5, 3);
    lose(99, 1);
    let dropped: Vec<_> = (0..Reason::ALL.len()).map(|reason| stat(DROPPED + reason)).collect();
    assert_eq!(dropped, [0.0, 0.0, 2.0, 0.0, 0.0, 3.0]);
    click(1);
    flush();
    assert_eq!(PAGE.with_borrow(|page| page.reported.clone()), dropped);
}

#[test]
fn a_page_without_room_drops_new_events_and_keeps_the_stored_ones() {
    open();
    click(1);
    PAGE.with_borrow_mut(|page| page.full = true);
    click(1);
    assert_eq!((stat(DROPPED + Reason::Storage as usize), stored()), (1.0, 1));
}

#[test]
fn batches_of_earlier_pages_are_sent_unless_they_are_too_old() {
    open();
    PAGE.with_borrow_mut(|page| page.events.extend([(7, 3), (8, 4)]));
    adopt(7, NOW - 8.0 * 86_400_000.0, 3, 1000);
    adopt(8, NOW, 4, 1000);
    assert_eq!(sent(NOW), 8);
    assert_eq!(stat(DROPPED + Reason::Expired as usize), 3.0);
}

#[test]
fn a_clock_that_is_set_right_makes_no_batch_too_old() {
    const DAY: f64 = 86_400_000.0;
    for wrong in [-700.0 * DAY, 400.0 * DAY] {
        open();
        CLOCK.set(Clock::start(START, 0));
        // An earlier page made two batches by the same wrong clock, and this one has just begun.
        let now = tick(NOW + wrong, 7.0);
        PAGE.with_borrow_mut(|page| page.events.extend([(7, 3), (8, 4)]));
        page::skip_to(8);
        adopt(7, NOW + wrong - 60_000.0, 3, 1000);
        push(now, 250);
        // The clock is set right.
        let now = tick(NOW, 5_007.0);
        adopt(8, NOW + wrong - 50_000.0, 4, 1000);
        flush();
        for (batch, events) in [(7, 3), (8, 4)] {
            assert_eq!(sent(now), batch);
            answer(now, batch, 200, f64::NAN, events, 0, 0);
        }
        assert_eq!(sent(now), 9);
        assert_eq!(stat(DROPPED + Reason::Expired as usize), 0.0);
        // A week of sleep counts as a week.
        let later = tick(NOW + 7.1 * DAY, 6_000.0);
        answer(later, 9, 503, f64::NAN, 0, 0, 0);
        poll(tick(NOW + 7.2 * DAY, 7_000.0));
        assert_eq!(stat(DROPPED + Reason::Expired as usize), 1.0);
    }
}

#[test]
fn strange_numbers_do_no_harm() {
    open();
    for now in [f64::NAN, -1.0, f64::INFINITY, 1e300, 0.0] {
        tick(now, now);
        tick(NOW, now);
        tick(now, 0.0);
        push(now, 250);
        flush();
        poll(now);
        answer(now, 77, 200, f64::NAN, 1, 0, 0);
        answer(now, 1, 999, f64::INFINITY, u32::MAX, u32::MAX, u32::MAX);
    }
    push(NOW, usize::MAX / 2);
    assert_eq!(stat(usize::MAX), 0.0);
}
