//! The pause between dials: doubling, jittered so that a thousand nodes do not dial a restarted one in step. Pure.

use std::time::Duration;

/// Exponential backoff with "equal jitter": between half and all of the current pause.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    initial_ms: u64,
    max_ms: u64,
    current_ms: u64,
}

impl Backoff {
    pub(crate) fn new(initial_ms: u64, max_ms: u64) -> Self {
        let initial_ms = initial_ms.max(1);
        Self { initial_ms, max_ms: max_ms.max(initial_ms), current_ms: initial_ms }
    }

    /// The next pause; `jitter` in 0.0..1.0 is drawn by the caller.
    pub(crate) fn next(&mut self, jitter: f64) -> Duration {
        let whole = self.current_ms as f64;
        self.current_ms = self.current_ms.saturating_mul(2).min(self.max_ms);
        Duration::from_secs_f64(whole * (0.5 + jitter.clamp(0.0, 1.0) / 2.0) / 1_000.0)
    }

    pub(crate) fn reset(&mut self) {
        self.current_ms = self.initial_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(50, 2_000);
        let ms: Vec<u128> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(ms, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 25);
    }
}
