//! Restart intensity: how many restarts within a period are too many (OTP `intensity`, `period`).
//!
//! Must never read a clock. Used by the supervisor core.

use std::collections::VecDeque;
use std::time::Duration;

/// The restarts of a supervisor within its window. Holds at most `limit + 1` times.
#[derive(Debug)]
pub(crate) struct Intensity {
    limit: Option<(u32, Duration)>,
    restarts: VecDeque<Duration>,
}

impl Intensity {
    pub(crate) fn new(limit: Option<(u32, Duration)>) -> Self {
        Intensity { limit, restarts: VecDeque::new() }
    }

    /// Counts a restart. False when it is one too many; a restart exactly one period old still counts, as in OTP.
    pub(crate) fn allow(&mut self, now: Duration) -> bool {
        let Some((limit, period)) = self.limit else { return true };
        while self.restarts.front().is_some_and(|at| now.saturating_sub(*at) > period) {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        self.restarts.len() <= limit as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_limit_itself_is_allowed_and_one_more_is_not() {
        let mut it = Intensity::new(Some((2, s(5))));
        assert!(it.allow(s(0)));
        assert!(it.allow(s(1)));
        assert!(!it.allow(s(2)));
    }

    #[test]
    fn a_restart_older_than_the_period_is_forgotten() {
        let mut it = Intensity::new(Some((1, s(5))));
        assert!(it.allow(s(0)));
        assert!(it.allow(s(0) + s(5) + Duration::from_nanos(1)));
        assert!(!it.allow(s(10)));
    }

    #[test]
    fn zero_allows_no_restart_and_unlimited_allows_all() {
        assert!(!Intensity::new(Some((0, s(5)))).allow(s(0)));
        let mut it = Intensity::new(None);
        assert!((0..10_000).all(|_| it.allow(s(0))));
        assert!(it.restarts.is_empty());
    }
}
