//! When a container is probed and what the results mean: startup, readiness and liveness.
//!
//! Pure: results and times in, verdicts and delays out. `prober` carries the probes out, the Container actor drives both.
//!
//! Beside Kubernetes' ticks (`initialDelaySeconds` + k * `periodSeconds`) a startup or readiness probe that has not
//! succeeded yet is tried again sooner, with growing pauses: a server that needs 30 ms to listen shall not wait a whole
//! period to be Ready. These extra tries can succeed, but never count as failures.
use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// First pause between extra tries; doubled each time.
const EAGER_MS_FIRST: u64 = 10;
/// No more extra tries after pauses this long: Kubernetes' own ticks follow.
const EAGER_MS_MAX: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    /// As in events: `Liveness probe failed: ...`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// The times and thresholds of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTimes {
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl From<&Probe> for ProbeTimes {
    fn from(probe: &Probe) -> Self {
        let positive = |value: Option<i32>, default: u32| match value.and_then(|value| u32::try_from(value).ok()) {
            Some(value @ 1..) => value,
            _ => default,
        };
        Self {
            initial_delay: Duration::from_secs(positive(probe.initial_delay_seconds, 0).into()),
            period: Duration::from_secs(positive(probe.period_seconds, 10).into()),
            timeout: Duration::from_secs(positive(probe.timeout_seconds, 1).into()),
            success_threshold: positive(probe.success_threshold, 1),
            failure_threshold: positive(probe.failure_threshold, 3),
        }
    }
}

/// What a result meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict that this result brought about, if it changed.
    pub changed: Option<bool>,
    /// A failure to tell people of.
    pub report: bool,
    /// When to probe next; `None`: not again for this run of the container.
    pub next: Option<Duration>,
}

/// One probe of one run of a container. Times are since the container started.
#[derive(Clone, Copy, Debug)]
pub struct ProbeState {
    kind: ProbeKind,
    times: ProbeTimes,
    verdict: Option<bool>,
    last: Option<bool>,
    run: u32,
    /// The next of Kubernetes' ticks.
    tick: Duration,
    /// The pause before the next extra try.
    eager: Option<Duration>,
}

impl ProbeState {
    /// `verdict`: what is taken to be true until the first result, as after an agent's restart.
    pub fn new(kind: ProbeKind, times: ProbeTimes, verdict: Option<bool>) -> Self {
        let verdict = verdict.or(match kind {
            ProbeKind::Startup => None,
            ProbeKind::Readiness => Some(false),
            ProbeKind::Liveness => Some(true),
        });
        let eager =
            (kind != ProbeKind::Liveness && verdict != Some(true)).then_some(Duration::from_millis(EAGER_MS_FIRST));
        Self { kind, times, verdict, last: None, run: 0, tick: times.initial_delay, eager }
    }

    /// How long until the first probe of a container that started `since` ago.
    pub fn first(&self, since: Duration) -> Duration {
        self.times.initial_delay.saturating_sub(since)
    }

    pub fn timeout(&self) -> Duration {
        self.times.timeout
    }

    /// Takes in the result of a probe that ended `since` the container's start.
    pub fn result(&mut self, success: bool, since: Duration) -> Outcome {
        let on_tick = since >= self.tick;
        if on_tick {
            // A probe that took longer than a period skips ticks, it does not make up for them.
            let periods = (since - self.tick).as_millis() / self.times.period.as_millis().max(1) + 1;
            self.tick += self.times.period * u32::try_from(periods).unwrap_or(u32::MAX);
        }
        if success {
            self.eager = None;
        }
        let counts = success || on_tick;
        if counts {
            self.run = if self.last == Some(success) { self.run + 1 } else { 1 };
            self.last = Some(success);
        }
        let threshold = if success { self.times.success_threshold } else { self.times.failure_threshold };
        let reached = counts && self.run >= threshold;
        let changed = (reached && self.verdict != Some(success)).then_some(success);
        if reached {
            self.verdict = Some(success);
        }
        let over = match self.kind {
            ProbeKind::Startup => reached,
            ProbeKind::Liveness => reached && !success,
            ProbeKind::Readiness => false,
        };
        Outcome { changed, report: !success && counts, next: (!over).then(|| self.next_delay(since)) }
    }

    fn next_delay(&mut self, since: Duration) -> Duration {
        let regular = self.tick.saturating_sub(since);
        match self.eager {
            Some(pause) if pause < regular => {
                self.eager = Some(pause * 2).filter(|pause| pause.as_millis() <= EAGER_MS_MAX.into());
                pause
            }
            _ => regular,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    fn times(initial: u64, period: u64, success: u32, failure: u32) -> ProbeTimes {
        ProbeTimes {
            initial_delay: SEC * initial as u32,
            period: SEC * period as u32,
            timeout: SEC,
            success_threshold: success,
            failure_threshold: failure,
        }
    }

    /// Runs a probe whose target is up in the given spans; gives the times (ms) of verdict changes.
    fn changes(kind: ProbeKind, times: ProbeTimes, up: impl Fn(u64) -> bool, until_ms: u64) -> Vec<(u64, bool)> {
        let mut state = ProbeState::new(kind, times, None);
        let mut now = state.first(Duration::ZERO);
        let mut seen = Vec::new();
        while now.as_millis() as u64 <= until_ms {
            let outcome = state.result(up(now.as_millis() as u64), now);
            seen.extend(outcome.changed.map(|verdict| (now.as_millis() as u64, verdict)));
            match outcome.next {
                Some(delay) => now += delay.max(Duration::from_millis(1)),
                None => break,
            }
        }
        seen
    }

    #[test]
    fn a_server_that_listens_soon_is_ready_soon() {
        let ready = changes(ProbeKind::Readiness, times(0, 10, 1, 3), |ms| ms >= 40, 30_000);
        assert_eq!(ready.len(), 1);
        assert!((40..=80).contains(&ready[0].0), "{ready:?}");
        assert_eq!(changes(ProbeKind::Readiness, times(0, 10, 1, 3), |_| true, 30_000), [(0, true)]);
        let slow = changes(ProbeKind::Readiness, times(5, 10, 1, 3), |_| true, 30_000);
        assert_eq!(slow, [(5_000, true)], "never before the initial delay");
    }

    #[test]
    fn readiness_is_lost_after_the_failure_threshold_and_comes_back() {
        let up = |ms: u64| !(20_500..50_500).contains(&ms);
        let seen = changes(ProbeKind::Readiness, times(0, 5, 1, 3), up, 100_000);
        assert_eq!(seen, [(0, true), (35_000, false), (55_000, true)]);
    }

    #[test]
    fn liveness_fails_after_its_threshold_and_is_not_asked_again() {
        let seen = changes(ProbeKind::Liveness, times(2, 3, 1, 3), |ms| ms < 9_000, 1_000_000);
        assert_eq!(seen, [(17_000, false)]);
        assert_eq!(changes(ProbeKind::Liveness, times(0, 1, 1, 1), |_| true, 20_000), []);
    }

    #[test]
    fn a_slow_starter_has_threshold_times_period_and_extra_tries_do_not_count() {
        let dead = changes(ProbeKind::Startup, times(0, 10, 1, 3), |_| false, 1_000_000);
        assert_eq!(dead, [(20_000, false)]);
        let alive = changes(ProbeKind::Startup, times(0, 10, 1, 3), |ms| ms > 15_000, 1_000_000);
        assert_eq!(alive, [(20_000, true)]);
    }

    #[test]
    fn a_success_threshold_wants_successes_in_a_row() {
        let seen = changes(ProbeKind::Readiness, times(0, 1, 3, 1), |ms| ms != 1_000, 10_000);
        assert_eq!(seen, [(4_000, true)]);
    }

    #[test]
    fn an_adopted_container_keeps_its_verdict_until_probed() {
        let mut state = ProbeState::new(ProbeKind::Readiness, times(0, 10, 1, 3), Some(true));
        assert_eq!(state.result(true, SEC * 100).changed, None);
        let outcome = state.result(false, SEC * 110);
        assert_eq!((outcome.changed, outcome.report), (None, true));
    }

    #[test]
    fn kubernetes_defaults_apply() {
        let got = ProbeTimes::from(&Probe { period_seconds: Some(0), ..Probe::default() });
        assert_eq!(got, times(0, 10, 1, 3));
    }
}
