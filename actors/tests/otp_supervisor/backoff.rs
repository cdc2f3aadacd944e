//! Delays before restarts, which OTP has not.

use super::*;

const STEP: Duration = Duration::from_secs(1);

/// At once, then 1 s, 2 s, 4 s, 4 s; a run of 10 s resets it.
fn growing() -> Backoff {
    Backoff { initial: Duration::ZERO, step: STEP, factor: 2.0, max: STEP * 4, reset_after: STEP * 10, jitter: 0.0 }
}

#[test]
fn backoff_restarts_at_once_and_then_waits_visibly() {
    bed(|bed| async move {
        let backoff = Backoff { step: LONG, max: LONG, ..growing() };
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(bed.child("a").backoff(backoff));
        let sup = bed.start(spec).await;
        let mut events = bed.system.subscribe();
        bed.crash("s/a").await;
        assert_eq!(bed.log(), "+a");
        bed.crash("s/a").await;
        loop {
            if let TreeEvent::Restarting { path, in_ms, restarts } = events.try_recv().expect("an event") {
                assert_eq!((path.as_str(), in_ms, restarts), ("s/a", 60_000, 1));
                break;
            }
        }
        let info = bed.system.tree().into_iter().find(|info| info.path == "s/a").expect("visible");
        assert_eq!(info.state, State::Restarting { in_ms: 59_999 }, "a millisecond has passed");
        assert_eq!(children(&sup).await, "a?");
        assert_eq!(sup.restart_child("a").await, Err(ChildError::Restarting));
        assert_eq!(sup.stop().await, Exit::Shutdown);
        assert_eq!(bed.log(), "");
    });
}

#[test]
fn delays_grow_to_the_longest_and_start_over_after_a_long_run() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(bed.child("a").backoff(growing()));
        bed.start(spec).await;
        let mut delays = vec![];
        for round in 0..7 {
            if round == 5 {
                tokio::time::sleep(STEP * 10).await;
            }
            bed.pid("s/a").kill();
            let begun = tokio::time::Instant::now();
            while bed.log.len() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
            bed.log();
            delays.push((begun.elapsed() + PAUSE / 2).as_secs());
        }
        assert_eq!(delays, [0, 1, 2, 4, 4, 0, 1]);
    });
}

#[test]
fn jitter_shortens_delays_and_never_lengthens_them() {
    bed(|bed| async move {
        let backoff = Backoff { initial: STEP * 4, jitter: 0.5, ..growing() };
        let spec = (0..40).fold(SupervisorSpec::new("s", Strategy::OneForOne).unlimited(), |spec, i| {
            spec.child(bed.child(&format!("w{i}")).backoff(backoff))
        });
        let sup = bed.start(spec).await;
        for i in 0..40 {
            bed.pid(&format!("s/w{i}")).kill();
        }
        tokio::time::sleep(STEP * 2 - PAUSE * 2).await;
        assert_eq!(bed.log.len(), 0, "none before half the delay");
        tokio::time::sleep(STEP).await;
        let half = bed.log.len();
        assert!((1..40).contains(&half), "{half} of 40 after three quarters of it");
        tokio::time::sleep(STEP + PAUSE * 4).await;
        assert_eq!(sup.count_children().await.expect("count").active, 40, "all after the delay");
    });
}

#[test]
fn a_child_that_waits_for_its_restart_can_be_terminated_or_deleted() {
    bed(|bed| async move {
        let backoff = Backoff { initial: LONG, max: LONG, ..growing() };
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(bed.child("a").backoff(backoff));
        let sup = bed.start(spec).await;
        bed.crash("s/a").await;
        assert_eq!(sup.delete_child("a").await, Err(ChildError::Restarting));
        assert_eq!(sup.start_child(bed.child("a")).await, Err(ChildError::AlreadyPresent));
        assert_eq!(sup.terminate_child("a").await, Ok(()));
        tokio::time::sleep(LONG * 2).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("", "a"));
        assert_eq!(sup.delete_child("a").await, Ok(()));
    });
}

#[test]
fn a_group_that_waits_is_down_together_and_returns_together() {
    bed(|bed| async move {
        let backoff = Backoff { initial: STEP, ..growing() };
        let spec = SupervisorSpec::new("s", Strategy::OneForAll).child(bed.child("a"));
        let sup = bed.start(spec.child(bed.child("b").backoff(backoff)).child(bed.child("c"))).await;
        bed.crash("s/b").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-c -a", "a? b? c?"));
        tokio::time::sleep(STEP).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("+a +b +c", "a* b* c*"));
    });
}

#[test]
fn a_restart_that_fails_waits_too_and_is_counted_before_it_waits() {
    bed(|bed| async move {
        let backoff = Backoff { initial: STEP, ..growing() };
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).intensity(2, LONG);
        let sup = bed.start(spec.child(bed.child("a").backoff(backoff))).await;
        bed.fail("a", 9);
        bed.crash("s/a").await;
        tokio::time::sleep(STEP).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("!a", "a?"));
        tokio::time::sleep(STEP - PAUSE * 4).await;
        assert!(sup.pid().is_alive());
        tokio::time::sleep(PAUSE * 8).await;
        assert!(matches!(sup.exited().await, Exit::RestartIntensity { .. }), "nobody waits only to give up");
        assert_eq!(bed.log(), "!a");
    });
}
