//! How long a container that ended must wait for its restart: CrashLoopBackOff, in the supervisor's words.
//!
//! The supervisor of the containers applies it ([`backoff`]); [`CrashLoop`] is the same rule for the pod's status, which
//! must say what the supervisor does. Kubernetes: at once, then 10 s doubling to 300 s; 10 minutes of running reset it.
use std::time::Duration;

use phalanx_actors::Backoff;

/// The delays of restarts. Kubernetes' own by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashLoopTimes {
    /// Delay of the second restart; the first comes at once.
    pub step: Duration,
    pub max: Duration,
    /// A container that ran this long starts over.
    pub reset_after: Duration,
}

impl Default for CrashLoopTimes {
    fn default() -> Self {
        Self { step: Duration::from_secs(10), max: Duration::from_secs(300), reset_after: Duration::from_secs(600) }
    }
}

/// The supervisor's backoff for a container.
pub fn backoff(times: CrashLoopTimes) -> Backoff {
    Backoff {
        initial: Duration::ZERO,
        step: times.step,
        factor: 2.0,
        max: times.max,
        reset_after: times.reset_after,
        jitter: 0.0,
    }
}

/// Counts the restarts of one container.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrashLoop {
    restarts: u32,
}

impl CrashLoop {
    /// The container ended after it had been up for `ran`. Returns the delay of its restart.
    pub fn ended(&mut self, times: CrashLoopTimes, ran: Duration) -> Duration {
        if ran >= times.reset_after {
            self.restarts = 0;
        }
        let delay = match self.restarts {
            0 => Duration::ZERO,
            n => times.step.saturating_mul(1 << (n - 1).min(30)).min(times.max),
        };
        self.restarts = self.restarts.saturating_add(1);
        delay
    }
}

/// A duration as Go prints it (`10s`, `2m40s`), for messages that people and programs know.
pub fn go_duration(duration: Duration) -> String {
    let secs = duration.as_secs();
    let rest = match duration.subsec_millis() {
        0 => (secs % 60).to_string(),
        ms => format!("{}.{}", secs % 60, format!("{ms:03}").trim_end_matches('0')),
    };
    match (secs / 3600, secs / 60 % 60) {
        (0, 0) if secs == 0 && duration.subsec_millis() > 0 => format!("{}ms", duration.subsec_millis()),
        (0, 0) => format!("{rest}s"),
        (0, m) => format!("{m}m{rest}s"),
        (h, m) => format!("{h}h{m}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_always_fails_exits_at_0_0_10_30_70_seconds() {
        let (mut crash, mut at, mut exits) = (CrashLoop::default(), 0, vec![]);
        for _ in 0..9 {
            exits.push(at);
            at += crash.ended(CrashLoopTimes::default(), Duration::ZERO).as_secs();
        }
        assert_eq!(exits, [0, 0, 10, 30, 70, 150, 310, 610, 910]);
    }

    #[test]
    fn ten_minutes_of_running_start_over() {
        let mut crash = CrashLoop { restarts: 7 };
        assert_eq!(crash.ended(CrashLoopTimes::default(), Duration::from_secs(599)).as_secs(), 300);
        assert_eq!(crash.ended(CrashLoopTimes::default(), Duration::from_secs(600)).as_secs(), 0);
    }

    #[test]
    fn durations_read_as_in_go() {
        for (ms, text) in
            [(0, "0s"), (300, "300ms"), (10_000, "10s"), (1_500, "1.5s"), (160_000, "2m40s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
