//! The operator's own rule: which events get into the lake, and what of them.

use tallymark_collector::ingest::stored_event::StoredEvent;

/// What the rule says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes into the lake, with whatever the rule has changed.
    Keep,
    /// It does not; it is counted in the metric `Dropped` under this reason.
    Drop(&'static str),
}

/// **Write your own rule here**, then `make update FUNCTION=transform`. It is called for each event on its way into the
/// lake, and may change the event. As it stands, every event is kept as it is.
///
/// It must not panic: that fails the whole batch, which Firehose then puts under the error prefix after three retries.
/// It sees an event again whenever Firehose retries, so it must say the same each time. Counters are not changed by it.
/// Leave `event_id`, `username`, `scope` and `batch_id` as they are: events are deduplicated and reconciled by them.
///
/// [`drop_bots_and_mask_titles`] is an example.
pub fn rule(_event: &mut StoredEvent<'_>) -> Verdict {
    Verdict::Keep
}

/// An example: drops what calls itself a bot, and hides the titles of pages below `/account/`.
///
/// ```
/// use tallymark_collector::ingest::stored_event::StoredEvent;
/// use tallymark_pipeline::transform::rule::{Verdict, drop_bots_and_mask_titles};
///
/// let line = r#"{"event_id":"019aa2e6-b5d8-7000-8000-000000000002","event_type":"page_view","occurred_at":1763673599500,"url":"https://shop.example/account/7","title":"Orders of J. Doe","useragent":"Mozilla/5.0","username":"shop","scope":"write","batch_id":"019aa2e6-b9c0-7abc-8def-0123456789ab","received_at":1763673600123}"#;
/// let mut event: StoredEvent = serde_json::from_str(line)?;
/// assert_eq!(drop_bots_and_mask_titles(&mut event), Verdict::Keep);
/// assert_eq!(event.title.as_deref(), Some("***"));
///
/// event.useragent = Some("Examplebot/2.1".into());
/// assert_eq!(drop_bots_and_mask_titles(&mut event), Verdict::Drop("bot"));
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn drop_bots_and_mask_titles(event: &mut StoredEvent<'_>) -> Verdict {
    let useragent = event.useragent.as_deref().unwrap_or_default().to_ascii_lowercase();
    if ["bot", "crawler", "spider"].iter().any(|word| useragent.contains(word)) {
        return Verdict::Drop("bot");
    }
    if event.url.as_deref().is_some_and(|url| url.contains("/account/")) && event.title.is_some() {
        event.title = Some("***".into());
    }
    Verdict::Keep
}
