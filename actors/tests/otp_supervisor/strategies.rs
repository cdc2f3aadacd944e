//! Who shares the fate of a child that crashed.

use super::*;

#[test]
fn one_for_one_restarts_the_one() {
    bed(|bed| async move {
        bed.sup(Strategy::OneForOne, 1, &["a", "b", "c"]).await;
        let (a, c) = (bed.pid("s/a"), bed.pid("s/c"));
        let b = bed.crash("s/b").await;
        assert_eq!(bed.log(), "+b");
        assert_eq!((bed.pid("s/a"), bed.pid("s/c")), (a, c));
        assert_ne!(bed.pid("s/b"), b);
    });
}

#[test]
fn one_for_all_stops_the_others_in_reverse_and_starts_all_in_order() {
    bed(|bed| async move {
        bed.sup(Strategy::OneForAll, 1, &["a", "b", "c"]).await;
        bed.crash("s/b").await;
        assert_eq!(bed.log(), "-c -a +a +b +c");
    });
}

#[test]
fn rest_for_one_stops_and_starts_those_behind() {
    bed(|bed| async move {
        bed.sup(Strategy::RestForOne, 1, &["a", "b", "c", "d"]).await;
        let a = bed.pid("s/a");
        bed.crash("s/b").await;
        assert_eq!(bed.log(), "-d -c +b +c +d");
        assert_eq!(bed.pid("s/a"), a);
    });
}

#[test]
fn rest_for_one_restarts_the_last_alone() {
    bed(|bed| async move {
        bed.sup(Strategy::RestForOne, 1, &["a", "b"]).await;
        bed.crash("s/b").await;
        assert_eq!(bed.log(), "+b");
    });
}

#[test]
fn a_child_that_was_added_is_the_last_of_its_group() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::RestForOne, 1, &["a", "b"]).await;
        sup.start_child(bed.child("0")).await.expect("added");
        bed.log();
        bed.crash("s/b").await;
        assert_eq!(bed.log(), "-0 +b +0");
    });
}

/// Those who ended for good, or were terminated by hand, are started again with their group, as in OTP.
#[test]
fn a_group_restart_starts_also_those_that_did_not_run() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForAll).child(bed.child("a").restart(Restart::Transient));
        let sup = bed.start(spec.child(bed.child("b")).child(bed.child("c"))).await;
        bed.ends("s/a", Exit::Normal).await;
        sup.terminate_child("c").await.expect("terminated");
        assert_eq!(children(&sup).await, "a b* c");
        bed.log();
        bed.crash("s/b").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("+a +b +c", "a* b* c*"));
    });
}

#[test]
fn a_temporary_bystander_of_rest_for_one_is_stopped_and_not_started_again() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::RestForOne).intensity(2, LONG).child(bed.child("a"));
        let sup = bed.start(spec.child(bed.child("t").restart(Restart::Temporary)).child(bed.child("b"))).await;
        bed.crash("s/a").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-b -t +a +b", "a* b*"));
    });
}

#[test]
fn a_temporary_bystander_of_one_for_all_is_stopped_and_not_started_again() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForAll).intensity(2, LONG).child(bed.child("a"));
        let sup = bed.start(spec.child(bed.child("t").restart(Restart::Temporary)).child(bed.child("b"))).await;
        bed.crash("s/b").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-t -a +a +b", "a* b*"));
    });
}

#[test]
fn a_transient_child_that_ends_normally_takes_no_group_along() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForAll).child(bed.child("a"));
        let sup = bed.start(spec.child(bed.child("b").restart(Restart::Transient))).await;
        bed.ends("s/b", Exit::Normal).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-b", "a* b"));
    });
}

#[test]
fn one_for_all_is_tried_again_from_the_first_when_another_child_fails_to_restart() {
    bed(|bed| async move {
        bed.sup(Strategy::OneForAll, 2, &["a", "b", "c"]).await;
        bed.fail("b", 1);
        bed.crash("s/a").await;
        assert_eq!(bed.log(), "-c -b +a !b -a +a +b +c");
    });
}

#[test]
fn rest_for_one_is_tried_again_from_the_one_that_failed_to_restart() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::RestForOne, 2, &["a", "b", "c"]).await;
        bed.fail("b", 1);
        bed.crash("s/a").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-c -b +a !b +b +c", "a* b* c*"));
    });
}

/// A restart of `a`, `b` and `c` in which `b` fails, with a message for `c` left over.
async fn left_over(bed: &Bed) -> SupervisorRef {
    let spec = SupervisorSpec::new("s", Strategy::RestForOne).unlimited().child(bed.child("a")).child(bed.child("b"));
    let sup = bed.start(spec.child(bed.child("c").keep_mailbox())).await;
    bed.pid("s/a").kill();
    let c = bed.system.lookup::<Subject>("s/c").expect("runs");
    c.tell(Do::Panic).expect("room");
    c.tell(Do::Note).expect("room");
    sup
}

#[test]
fn a_kept_mailbox_waits_until_the_failed_restart_of_another_of_its_group_was_tried_again() {
    bed(|bed| async move {
        left_over(&bed).await;
        bed.fail("b", 2);
        tokio::time::sleep(PAUSE).await;
        assert_eq!(bed.log(), "-b +a !b !b +b +c noted c");
    });
}

#[test]
fn a_kept_mailbox_is_dropped_when_the_restart_that_it_waits_for_will_not_be_made() {
    bed(|bed| async move {
        let sup = left_over(&bed).await;
        bed.fail("b", 100_000);
        while bed.log.len() < 10 {
            tokio::task::yield_now().await;
        }
        sup.terminate_child("b").await.expect("terminated");
        let info = bed.system.tree().into_iter().find(|info| info.path == "s/c").expect("known");
        assert_eq!(info.dropped, 1);
    });
}

#[test]
fn two_of_a_group_that_crash_at_once_are_one_restart() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 1, &["a", "b", "c"]).await;
        // Both are dead before the supervisor has its turn.
        bed.pid("s/a").kill();
        bed.pid("s/b").kill();
        tokio::time::sleep(PAUSE).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-c +a +b +c", "a* b* c*"));
    });
}

#[test]
fn two_that_crash_at_once_in_one_for_one_are_two_restarts() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a", "b", "c"]).await;
        bed.pid("s/a").kill();
        bed.pid("s/b").kill();
        assert!(matches!(sup.exited().await, Exit::RestartIntensity { .. }));
    });
}

#[test]
fn many_crashes_one_after_the_other_are_that_many_restarts() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 30, &["a"]).await;
        for _ in 0..30 {
            bed.crash("s/a").await;
        }
        assert_eq!(children(&sup).await, "a*");
        let info = bed.system.tree().into_iter().find(|info| info.path == "s/a").expect("in the tree");
        assert_eq!(info.restarts, 30);
    });
}
