//! When a certificate is renewed: at two thirds of its life, give or take, and again and again until it is. Pure: the
//! wall clock's seconds and the dice are given. Called by the credentials' loop.
//!
//! ```text
//!  issued ─────────────── 60 % ──due── 73 % ── retries, 1 s doubling, at most 10 min ──► expires ── retries go on
//! ```

/// Part of its life after which a certificate is renewed. Kubelets renew at 70 to 90 %, SPIRE's agents at a half.
const RENEW_AFTER: f64 = 2.0 / 3.0;

/// Nodes that were started together must not all ask at once: this part of a life earlier to as much later.
const JITTER: f64 = 1.0 / 15.0;

/// First pause after an attempt that failed; doubles with each.
pub(crate) const RETRY_INITIAL_SECS: u64 = 1;

/// Longest pause between attempts.
pub(crate) const RETRY_MAX_SECS: u64 = 600;

/// While there is time the pause is at most this part of it, so that the last attempts come close to the end.
const RETRY_PART_OF_REST: u64 = 8;

/// From when until when a certificate counts (both included), in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) not_before_secs: u64,
    pub(crate) not_after_secs: u64,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask for a new identity. `first` says that it became due just now.
    Renew { first: bool },
    /// The certificate has expired; said once.
    Expired,
}

/// The renewal of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    window: Window,
    due_secs: u64,
    failures: u32,
    /// An attempt is under way.
    asking: bool,
    expired: bool,
}

impl Renewal {
    /// `dice` is from 0 to 1.
    pub(crate) fn new(window: Window, now_secs: u64, dice: f64) -> Self {
        let life = window.not_after_secs.saturating_sub(window.not_before_secs);
        let part = RENEW_AFTER + JITTER * (2.0 * dice - 1.0);
        // Whole seconds: the loss of precision is below one for every certificate.
        let due = window.not_before_secs.saturating_add((life as f64 * part) as u64);
        Self {
            window,
            // One that is due when it is issued must not be asked for without pause.
            due_secs: due.max(now_secs.saturating_add(RETRY_INITIAL_SECS)),
            failures: 0,
            asking: false,
            expired: false,
        }
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// What is to be done now; an attempt that it asks for ends with [`failed`](Self::failed) or with another `Renewal`.
    pub(crate) fn poll(&mut self, now_secs: u64) -> Option<Step> {
        if now_secs > self.window.not_after_secs && !self.expired {
            self.expired = true;
            return Some(Step::Expired);
        }
        if self.asking || now_secs < self.due_secs {
            return None;
        }
        self.asking = true;
        Some(Step::Renew { first: self.failures == 0 })
    }

    /// The attempt has failed; gives the pause until the next one, in seconds.
    pub(crate) fn failed(&mut self, now_secs: u64, dice: f64) -> u64 {
        let rest = self.window.not_after_secs.saturating_sub(now_secs) / RETRY_PART_OF_REST;
        let most = if rest == 0 { RETRY_MAX_SECS } else { RETRY_MAX_SECS.min(rest) };
        let doubled = RETRY_INITIAL_SECS.saturating_mul(1u64.checked_shl(self.failures).unwrap_or(u64::MAX));
        // Half to the whole of it.
        let pause = (doubled.min(most) as f64 * (0.5 + dice / 2.0)).ceil() as u64;
        let pause = pause.max(RETRY_INITIAL_SECS);
        self.failures = self.failures.saturating_add(1);
        self.asking = false;
        self.due_secs = now_secs.saturating_add(pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * 3_600;

    fn window(life_secs: u64) -> Window {
        Window { not_before_secs: 1_000, not_after_secs: 1_000 + life_secs }
    }

    /// Runs until `end_secs`, the issuer answering from `issuer_from_secs` on; gives the times of all attempts.
    fn run(life_secs: u64, issuer_from_secs: u64, end_secs: u64, dice: f64) -> (Vec<u64>, bool, Option<u64>) {
        let mut renewal = Renewal::new(window(life_secs), 1_000, dice);
        let (mut attempts, mut expired) = (vec![], None);
        let mut now = 1_000;
        while now < end_secs {
            match renewal.poll(now) {
                Some(Step::Renew { .. }) => {
                    attempts.push(now);
                    if now >= issuer_from_secs {
                        return (attempts, true, expired);
                    }
                    renewal.failed(now, dice);
                }
                Some(Step::Expired) => {
                    assert_eq!(expired.replace(now), None, "said twice");
                    continue;
                }
                None => {}
            }
            now += 1;
        }
        (attempts, false, expired)
    }

    #[test]
    fn it_is_due_at_two_thirds_of_its_life_give_or_take() {
        for (dice, part) in [(0.0, 0.6), (0.5, 2.0 / 3.0), (1.0, 11.0 / 15.0)] {
            let (attempts, renewed, expired) = run(DAY, 0, 2 * DAY, dice);
            let wanted = 1_000 + (DAY as f64 * part) as u64;
            assert_eq!((renewed, expired), (true, None));
            assert!(attempts.len() == 1 && attempts[0].abs_diff(wanted) <= 1, "{attempts:?}, not {wanted}");
        }
    }

    #[test]
    fn an_issuer_that_is_away_is_asked_with_growing_pauses_until_the_end_and_after_it() {
        let end = 1_000 + DAY;
        let (attempts, renewed, expired) = run(DAY, u64::MAX, end + DAY, 0.5);
        assert_eq!((renewed, expired), (false, Some(end + 1)));
        let pauses: Vec<u64> = attempts.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(pauses[..4], [1, 2, 3, 6]);
        assert!(pauses.iter().all(|pause| *pause <= RETRY_MAX_SECS));
        // Some 65 in the last third: an issuer is not overrun.
        let before = attempts.iter().filter(|at| **at <= end).count();
        assert!((40..150).contains(&before), "{before}");
        assert!(attempts.iter().any(|at| (end - 10..=end).contains(at)), "no attempt just before the end");
        assert!(attempts.iter().any(|at| *at > end + DAY - 2 * RETRY_MAX_SECS), "gave up after the end");
    }

    #[test]
    fn a_certificate_that_is_due_when_issued_is_not_asked_for_without_pause() {
        let old = Window { not_before_secs: 0, not_after_secs: 100 };
        let mut renewal = Renewal::new(old, 90, 0.5);
        assert_eq!(renewal.poll(90), None);
        assert_eq!(renewal.poll(91), Some(Step::Renew { first: true }));
        // One attempt at a time.
        assert_eq!(renewal.poll(95), None);
    }

    proptest! {
        #[test]
        fn whenever_the_issuer_returns_before_the_end_it_is_renewed_in_time(
            life in 60u64..100_000, back in 0.0f64..0.85, dice in 0.0f64..1.0,
        ) {
            let back_at = 1_000 + (life as f64 * back) as u64;
            let (_, renewed, expired) = run(life, back_at, 1_000 + 2 * life, dice);
            prop_assert!(renewed && expired.is_none());
        }

        #[test]
        fn no_window_or_clock_breaks_it(from in any::<u64>(), to in any::<u64>(), now in any::<u64>(), dice in 0.0f64..1.0) {
            let mut renewal = Renewal::new(Window { not_before_secs: from, not_after_secs: to }, now, dice);
            for _ in 0..70 {
                let _ = renewal.poll(now);
                prop_assert!(renewal.failed(now, dice) >= RETRY_INITIAL_SECS);
            }
        }
    }
}
