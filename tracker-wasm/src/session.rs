//! Visits: events that follow one another within half an hour share a session id.

use tallymark::{EventId, Random, limits};

/// How long a session outlives its last event, in milliseconds.
pub(crate) const IDLE: u64 = 30 * 60 * 1000;

/// The visit that events belong to now.
#[derive(Debug)]
pub(crate) struct Session {
    id: String,
    active_at: u64,
}

impl Session {
    /// Goes on with a session that was kept, or with none if `id` cannot be one.
    pub(crate) fn resume(mut id: String, active_at: u64) -> Self {
        if id.len() > limits::NAME_BYTES {
            id.clear();
        }
        Self { id, active_at }
    }

    /// Notes an event at `now` and returns the id it belongs to.
    pub(crate) fn touch(&mut self, now: u64, random: &mut impl Random) -> &str {
        // A clock set back ends no session.
        if self.id.is_empty() || now.saturating_sub(self.active_at) >= IDLE {
            self.id = EventId::new(now, random).encode(&mut [0; 36]).into();
        }
        self.active_at = now;
        &self.id
    }

    /// The id; empty before the first event.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// When the last event happened, in milliseconds since the Unix epoch.
    pub(crate) fn active_at(&self) -> u64 {
        self.active_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_763_673_600_000;

    fn random() -> impl Random {
        let mut last = 0u64;
        move || {
            last += 1;
            last
        }
    }

    #[test]
    fn lasts_while_events_keep_coming() {
        let (mut session, mut random) = (Session::resume(String::new(), 0), random());
        let first = session.touch(NOW, &mut random).to_owned();
        assert_eq!(first.len(), 36);
        for event in 1..10 {
            assert_eq!(session.touch(NOW + event * (IDLE - 1), &mut random), first);
        }
    }

    #[test]
    fn ends_after_half_an_hour_without_events() {
        let (mut session, mut random) = (Session::resume(String::new(), 0), random());
        let first = session.touch(NOW, &mut random).to_owned();
        assert_ne!(session.touch(NOW + IDLE, &mut random), first);
    }

    #[test]
    fn goes_on_across_pages() {
        let mut session = Session::resume("kept".into(), NOW - IDLE + 1);
        assert_eq!(session.touch(NOW, &mut random()), "kept");
        assert_eq!(session.active_at(), NOW);

        let mut session = Session::resume("kept".into(), NOW - IDLE);
        assert_ne!(session.touch(NOW, &mut random()), "kept");
    }

    #[test]
    fn does_not_go_on_with_an_id_that_no_collector_takes() {
        let mut session = Session::resume("x".repeat(129), NOW);
        assert_eq!(session.touch(NOW, &mut random()).len(), 36);
    }

    #[test]
    fn survives_a_clock_set_back() {
        let mut session = Session::resume("kept".into(), NOW);
        assert_eq!(session.touch(NOW - 24 * IDLE, &mut random()), "kept");
        assert_ne!(session.touch(NOW - 23 * IDLE, &mut random()), "kept", "idle by the new clock");
    }
}
