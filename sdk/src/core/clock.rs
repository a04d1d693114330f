//! Elapsed time, from a clock that people set and a clock that stops while the machine sleeps.

/// The longest time, in milliseconds, that two readings of a wall clock can show to have passed. If they differ by
/// more, the clock was set: machines that lose their time go back to the year of their firmware or to 1970.
const YEAR: u64 = 366 * 24 * 60 * 60 * 1000;

/// A smaller difference between the two clocks is not worth a correction.
const TOLERANCE: u64 = 1_000;

/// Measures the time that a queue goes by. All times are milliseconds.
///
/// The age of a batch decides whether it is still sent, so it must be the time that has really passed. Neither clock of
/// a machine shows that. A wall clock jumps when it is set. A monotonic clock never jumps, but on most systems it stops
/// while the machine sleeps. So:
///
/// - Time passes as the monotonic clock shows it.
/// - If the wall clock gets ahead of the monotonic clock by up to a year, the machine was asleep, and that time has
///   passed too. If it goes back, or ahead by more, it was set, and no time has passed.
/// - A batch of an earlier process is as old as the wall clock shows, from the time in its id. If that is in the future
///   or more than a year ago, the clock was set in between, and the batch counts as new.
///
/// ```
/// use tallymark::queue::Clock;
///
/// let day = 24 * 60 * 60 * 1000;
/// let mut clock = Clock::start(1_763_673_600_000, 5_000);
/// let start = clock.now();
/// // The wall clock is set 700 days ahead: a second has passed.
/// assert_eq!(clock.advance(1_763_673_600_000 + 700 * day, 6_000), start + 1_000);
/// // The machine sleeps for a day.
/// assert_eq!(clock.advance(1_763_673_600_000 + 701 * day, 6_000), start + 1_000 + day);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    now: u64,
    wall: u64,
    monotonic: u64,
    /// The difference between the two clocks that is accounted for.
    difference: u64,
}

impl Clock {
    /// A clock that starts at `wall`, in milliseconds since the Unix epoch, when the monotonic clock shows `monotonic`.
    pub const fn start(wall: u64, monotonic: u64) -> Self {
        Self { now: wall, wall, monotonic, difference: wall.wrapping_sub(monotonic) }
    }

    /// Takes a reading of both clocks. Returns the time to pass to the queue.
    pub fn advance(&mut self, wall: u64, monotonic: u64) -> u64 {
        let mut passed = monotonic.saturating_sub(self.monotonic);
        let difference = wall.wrapping_sub(monotonic);
        let ahead = difference.wrapping_sub(self.difference);
        // A clock that was set back is ahead by nearly the largest number.
        if ahead > TOLERANCE {
            passed = passed.wrapping_add(possible(ahead));
            self.difference = difference;
        }
        (self.wall, self.monotonic) = (wall, monotonic);
        self.now = self.now.saturating_add(passed);
        self.now
    }

    /// The time of the last reading.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The time, by this clock, of something that happened when a wall clock showed `wall`.
    pub fn time_of(&self, wall: u64) -> u64 {
        self.now.saturating_sub(possible(self.wall.saturating_sub(wall)))
    }
}

/// The time itself, or none if so much cannot have passed.
fn possible(time: u64) -> u64 {
    if time > YEAR { 0 } else { time }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_763_673_600_000;
    const DAY: u64 = 24 * 60 * 60 * 1000;

    #[test]
    fn readings_a_moment_apart_do_not_add_up_to_more_than_has_passed() {
        let mut clock = Clock::start(START, 0);
        // Rounded differently, and the wall clock a little fast.
        for reading in 1..=100_000 {
            clock.advance(START + reading + reading % 2 + reading / 1_000, reading);
        }
        assert_eq!(clock.now(), START + 100_000);
    }

    #[test]
    fn a_clock_that_is_set_passes_no_time_and_sleep_does() {
        let mut clock = Clock::start(START, 0);
        for (wall, monotonic, passed) in [
            (START + 1_000, 1_000, 1_000),
            (START - 400 * DAY, 2_000, 2_000),
            (START - 400 * DAY + 1_000, 3_000, 3_000),
            (START + 700 * DAY, 4_000, 4_000),
            (START + 703 * DAY, 4_001, 4_001 + 3 * DAY),
            (0, 4_002, 4_002 + 3 * DAY),
            (u64::MAX, 4_003, 4_003 + 3 * DAY),
            (START, 4_004, 4_004 + 3 * DAY),
        ] {
            let before = clock.now();
            let now = clock.advance(wall, monotonic);
            // Within the milliseconds in which it was asleep.
            assert!(now.abs_diff(START + passed) < 10, "{wall} {monotonic}: {}", now as i64 - START as i64);
            assert!(now >= before);
        }
    }

    #[test]
    fn what_an_earlier_process_made_is_as_old_as_the_wall_clock_shows_if_that_is_possible() {
        let mut clock = Clock::start(START, 0);
        clock.advance(START + 5_000, 5_000);
        let age = |wall| clock.now() - clock.time_of(wall);
        assert_eq!(age(START), 5_000);
        assert_eq!(age(START - 8 * DAY), 8 * DAY + 5_000);
        assert_eq!(age(START - 700 * DAY), 0, "the clock was behind");
        assert_eq!(age(START + 400 * DAY), 0, "the clock was ahead");
        assert_eq!((age(0), age(u64::MAX)), (0, 0));
    }

    #[test]
    fn no_reading_makes_it_panic() {
        let mut clock = Clock::start(u64::MAX, u64::MAX);
        for wall in [0, u64::MAX, 1, i64::MAX as u64, 1 << 63] {
            for monotonic in [u64::MAX, 0, 1 << 63, 7] {
                clock.advance(wall, monotonic);
                clock.time_of(monotonic);
            }
        }
    }
}
