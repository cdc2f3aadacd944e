//! What can be asked of a running supervisor, and what it answers.

use super::*;
use crate::support::{probe, reborn};

#[test]
fn children_are_added_terminated_restarted_and_deleted_by_hand() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a", "b", "c"]).await;
        let d = sup.start_child(bed.child("d")).await.expect("added");
        assert_eq!(sup.terminate_child("d").await, Ok(()));
        assert_eq!(d.exit(), Some(Exit::Shutdown));
        let again = sup.restart_child("d").await.expect("again");
        assert_ne!(again, d);
        sup.terminate_child("d").await.expect("stopped");
        assert_eq!(sup.delete_child("d").await, Ok(()));
        assert_eq!(bed.log(), "+d -d +d -d");
        assert_eq!(children(&sup).await, "a* b* c*");
    });
}

#[test]
fn a_child_is_added_once() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        assert_eq!(sup.start_child(bed.child("a")).await, Err(ChildError::AlreadyStarted));
        sup.terminate_child("a").await.expect("terminated");
        assert_eq!(sup.start_child(bed.child("a")).await, Err(ChildError::AlreadyPresent));
        sup.delete_child("a").await.expect("deleted");
        sup.start_child(bed.child("a")).await.expect("now it is another");
    });
}

#[test]
fn a_child_is_restarted_by_hand_only_when_it_does_not_run() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        assert_eq!(sup.restart_child("a").await, Err(ChildError::Running));
        assert_eq!(sup.restart_child("x").await, Err(ChildError::NotFound));
        sup.terminate_child("a").await.expect("terminated");
        sup.restart_child("a").await.expect("restarted");
        assert_eq!(children(&sup).await, "a*");
    });
}

#[test]
fn a_child_is_deleted_only_when_it_does_not_run() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        assert_eq!(sup.delete_child("a").await, Err(ChildError::Running));
        assert_eq!(sup.delete_child("x").await, Err(ChildError::NotFound));
        sup.terminate_child("a").await.expect("terminated");
        assert_eq!(sup.delete_child("a").await, Ok(()));
        assert_eq!(sup.delete_child("a").await, Err(ChildError::NotFound));
    });
}

#[test]
fn a_child_can_be_terminated_twice() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        assert_eq!(sup.terminate_child("a").await, Ok(()));
        assert_eq!(sup.terminate_child("a").await, Ok(()));
        assert_eq!(sup.terminate_child("x").await, Err(ChildError::NotFound));
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-a", "a"));
    });
}

#[test]
fn a_temporary_child_is_forgotten_when_it_is_terminated() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 0, &["p"]).await;
        sup.start_child(bed.child("a").restart(Restart::Temporary)).await.expect("added");
        assert_eq!(sup.terminate_child("a").await, Ok(()));
        assert_eq!(sup.restart_child("a").await, Err(ChildError::NotFound));
        assert_eq!(children(&sup).await, "p*");
    });
}

#[test]
fn a_termination_is_no_crash_and_takes_no_group_along() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 0, &["a", "b"]).await;
        sup.terminate_child("a").await.expect("terminated");
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-a", "a b*"));
    });
}

#[test]
fn a_child_added_that_fails_to_start_is_not_kept() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        bed.fail("d", 1);
        let error = sup.start_child(bed.child("d")).await.expect_err("no start");
        assert_eq!(error, ChildError::StartFailed(Exit::Error("no start".into())));
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("!d", "a*"));
    });
}

#[test]
fn a_child_restarted_by_hand_that_fails_to_start_stays_known_and_is_not_tried_again() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 9, &["a"]).await;
        sup.terminate_child("a").await.expect("terminated");
        bed.fail("a", 1);
        bed.log();
        let error = sup.restart_child("a").await.expect_err("no start");
        assert_eq!(error, ChildError::StartFailed(Exit::Error("no start".into())));
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("!a", "a"));
    });
}

#[test]
fn children_are_counted_by_kind_and_by_whether_they_run() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a", "b"]).await;
        let sub = |id: &str| ChildSpec::supervisor(id, || SupervisorSpec::new("t", Strategy::OneForOne));
        sup.start_child(sub("t")).await.expect("added");
        sup.start_child(sub("u")).await.expect("added");
        sup.terminate_child("a").await.expect("terminated");
        sup.terminate_child("u").await.expect("terminated");
        let count = sup.count_children().await.expect("counted");
        assert_eq!(count, ChildCount { specs: 4, active: 2, supervisors: 2, workers: 2 });
    });
}

#[test]
fn children_are_listed_in_the_order_of_their_start_with_pid_and_kind() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["b", "a"]).await;
        let sub = ChildSpec::supervisor("0", || SupervisorSpec::new("t", Strategy::OneForOne));
        sup.start_child(sub).await.expect("added");
        sup.terminate_child("b").await.expect("terminated");
        let info = |id: &str, kind, pid| ChildInfo { id: id.into(), pid, kind, restarting: false };
        let expected = vec![
            info("b", Kind::Worker, None),
            info("a", Kind::Worker, Some(bed.pid("s/a"))),
            info("0", Kind::Supervisor, Some(bed.pid("s/0"))),
        ];
        assert_eq!(sup.which_children().await, Ok(expected));
    });
}

#[test]
fn a_supervisor_that_has_ended_answers_that() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        sup.stop().await;
        assert_eq!(sup.count_children().await, Err(ChildError::SupervisorDown));
        assert_eq!(sup.start_child(bed.child("b")).await, Err(ChildError::SupervisorDown));
        assert_eq!(sup.terminate_child("a").await, Err(ChildError::SupervisorDown));
        assert_eq!(sup.child_spec("a").await.expect_err("ended"), ChildError::SupervisorDown);
    });
}

/// While the restart of a child fails again and again, its supervisor does all else.
async fn hanging(bed: &Bed, strategy: Strategy) -> SupervisorRef {
    let spec = SupervisorSpec::new("s", strategy).unlimited();
    let sup = bed.start(["a", "b", "c"].iter().fold(spec, |spec, name| spec.child(bed.child(name)))).await;
    bed.fail("b", 100_000);
    bed.pid("s/b").kill();
    // In simulated time nobody pauses for it: it is tried again at once.
    while bed.log.len() < 10 {
        tokio::task::yield_now().await;
    }
    sup
}

#[test]
fn while_a_restart_fails_again_and_again_the_child_can_be_terminated() {
    bed(|bed| async move {
        let sup = hanging(&bed, Strategy::OneForOne).await;
        assert_eq!(children(&sup).await, "a* b? c*");
        assert_eq!(sup.start_child(bed.child("b")).await, Err(ChildError::AlreadyPresent));
        assert_eq!(sup.restart_child("b").await, Err(ChildError::Restarting));
        assert_eq!(sup.delete_child("b").await, Err(ChildError::Restarting));
        assert_eq!(sup.count_children().await.expect("counted").active, 2);
        sup.start_child(bed.child("d")).await.expect("added meanwhile");
        assert_eq!(sup.terminate_child("b").await, Ok(()));
        bed.log();
        tokio::time::sleep(PAUSE).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("", "a* b c* d*"));
        assert_eq!(sup.delete_child("b").await, Ok(()));
    });
}

#[test]
fn while_a_restart_fails_again_and_again_the_supervisor_can_be_stopped() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne, Strategy::Dynamic] {
        bed(|bed| async move {
            let sup = hanging(&bed, strategy).await;
            assert_eq!(sup.stop().await, Exit::Shutdown);
        });
    }
}

#[test]
fn while_the_restart_of_a_group_fails_again_and_again_its_child_can_be_terminated() {
    for (strategy, left) in [(Strategy::OneForAll, "a* b c"), (Strategy::RestForOne, "a* b c")] {
        bed(|bed| async move {
            let sup = hanging(&bed, strategy).await;
            assert_eq!(sup.terminate_child("b").await, Ok(()));
            tokio::time::sleep(PAUSE).await;
            // Nobody starts those behind it any more, as in OTP.
            assert_eq!(children(&sup).await, left, "{strategy:?}");
            sup.restart_child("c").await.expect("by hand");
            assert_eq!(sup.delete_child("b").await, Ok(()));
            assert_eq!(children(&sup).await, "a* c*");
        });
    }
}

#[test]
fn a_dynamic_child_whose_restart_fails_again_and_again_is_forgotten_when_terminated() {
    bed(|bed| async move {
        let sup = hanging(&bed, Strategy::Dynamic).await;
        assert_eq!(sup.terminate_child("b").await, Ok(()));
        assert_eq!(children(&sup).await, "a* c*");
    });
}

/// More than a supervisor answers in one turn.
const ASKERS: usize = 600;

#[tokio::test]
async fn questions_without_end_hold_up_neither_restarts_nor_commands() {
    // Not in simulated time, which stands still as long as there is something to do.
    let work = async {
        let system = System::builder("t").local().build().expect("a system");
        let log = Log::default();
        let wait = Duration::from_millis(20);
        let slowly = Backoff { initial: wait, step: wait, jitter: 0.0, ..Backoff::default() };
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(probe("a", &log).backoff(slowly));
        let sup = system.start(spec.child(probe("b", &log))).await.expect("started");
        let askers: Vec<_> = (0..ASKERS)
            .map(|_| {
                let sup = sup.clone();
                tokio::task::spawn_local(async move {
                    while let Ok(count) = sup.count_children().await {
                        assert_eq!(count.specs, 2);
                    }
                })
            })
            .collect();
        let soon = Duration::from_secs(20);
        let a = system.whereis("s/a").expect("lives");
        a.kill();
        reborn(&system, "s/a", &a).await;
        tokio::time::timeout(soon, sup.terminate_child("b")).await.expect("it has its turn").expect("known");
        tokio::time::timeout(soon, sup.stop()).await.expect("it ends");
        for asker in askers {
            asker.await.expect("answered");
        }
        system.shutdown().await;
    };
    tokio::task::LocalSet::new().run_until(work).await;
}
