//! The delay before each restart of one child: at once or short at first, then longer and longer, until it ran well for a while.
//!
//! Must never read a clock nor a random source: the caller gives both. Used by the supervisor core.

use crate::spec::Backoff;
use std::time::Duration;

/// How often a child was restarted without having run well in between.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempts(u32);

impl Attempts {
    /// The child ended after it had been up for `ran`.
    pub(crate) fn ended(&mut self, spec: &Backoff, ran: Duration) {
        if ran >= spec.reset_after {
            self.0 = 0;
        }
    }

    /// The delay of the next restart; `chance` in 0.0..1.0 places it within the jitter.
    pub(crate) fn next_delay(&mut self, spec: &Backoff, chance: f64) -> Duration {
        let attempt = self.0;
        self.0 = self.0.saturating_add(1);
        let base = match attempt {
            0 => spec.initial.as_secs_f64(),
            n => spec.step.as_secs_f64() * spec.factor.max(1.0).powi((n - 1).min(i32::MAX as u32) as i32),
        };
        let longest = spec.max.as_secs_f64();
        // An overflow to infinity is cut here too; NaN (zero times infinity) becomes the maximum.
        let capped = if base < longest { base } else { longest };
        // A share that is no number is none.
        let jitter = if spec.jitter.is_nan() { 0.0 } else { spec.jitter.clamp(0.0, 1.0) };
        // More than a `Duration` holds is as good as never.
        Duration::try_from_secs_f64(capped * (1.0 - jitter * chance)).unwrap_or(spec.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn spec() -> Backoff {
        Backoff { initial: MS(0), step: MS(100), factor: 2.0, max: MS(1_000), reset_after: MS(5_000), jitter: 0.0 }
    }

    #[test]
    fn the_first_restart_is_at_once_then_delays_grow_to_the_maximum() {
        let mut a = Attempts::default();
        let got: Vec<_> = (0..7).map(|_| a.next_delay(&spec(), 0.0)).collect();
        assert_eq!(got, [MS(0), MS(100), MS(200), MS(400), MS(800), MS(1_000), MS(1_000)]);
    }

    #[test]
    fn a_long_run_starts_over() {
        let mut a = Attempts(9);
        a.ended(&spec(), MS(4_999));
        assert_eq!(a.next_delay(&spec(), 0.0), MS(1_000));
        a.ended(&spec(), MS(5_000));
        assert_eq!(a.next_delay(&spec(), 0.0), MS(0));
    }

    #[test]
    fn jitter_only_shortens_and_within_its_share() {
        let s = Backoff { jitter: 0.5, ..spec() };
        for chance in [0.0, 0.3, 0.999] {
            let d = Attempts(1).next_delay(&s, chance);
            assert!(d <= MS(100) && d >= MS(50), "{d:?}");
        }
    }

    #[test]
    fn what_is_no_number_or_without_end_panics_nowhere() {
        let odd = Backoff { jitter: f64::NAN, factor: f64::NAN, ..spec() };
        assert_eq!(Attempts(1).next_delay(&odd, 0.5), MS(100));
        let odd = Backoff { jitter: f64::INFINITY, factor: f64::INFINITY, ..spec() };
        assert_eq!(Attempts(2).next_delay(&odd, 0.0), MS(1_000));
        let ever = Backoff { initial: Duration::MAX, max: Duration::MAX, ..spec() };
        assert_eq!(Attempts(0).next_delay(&ever, 0.0), Duration::MAX);
    }

    #[test]
    fn endless_attempts_stay_at_the_maximum() {
        let mut a = Attempts(u32::MAX);
        assert_eq!(a.next_delay(&spec(), 0.0), MS(1_000));
        assert_eq!(a.next_delay(&spec(), 0.0), MS(1_000));
    }
}
