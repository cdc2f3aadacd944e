//! Which ends are followed by a restart: three restart types, and the ways to end.

use super::*;

/// One child of this type ends in each of these ways: was it started again, and is it known still?
fn follows(restart: Restart, ways: Vec<Exit>, again: bool, known: bool) {
    bed(|bed| async move {
        for exit in ways {
            let sup = bed.start(
                SupervisorSpec::new("s", Strategy::OneForOne)
                    .intensity(1, LONG)
                    .child(bed.child("a").restart(restart))
                    .child(bed.child("bystander")),
            );
            let sup = sup.await;
            let bystander = bed.pid("s/bystander");
            let old = bed.ends("s/a", exit.clone()).await;
            assert_eq!(old.exit(), Some(exit.clone()));
            assert_eq!(bed.runs("s/a"), again, "{restart:?} after {exit}");
            let expected = if again {
                "a* bystander*"
            } else if known {
                "a bystander*"
            } else {
                "bystander*"
            };
            assert_eq!(children(&sup).await, expected, "{restart:?} after {exit}");
            assert_eq!(bed.pid("s/bystander"), bystander);
            sup.stop().await;
        }
    });
}

fn shutdowns() -> Vec<Exit> {
    vec![Exit::Shutdown, Exit::ShutdownWith("moved".into())]
}

fn abnormal() -> Vec<Exit> {
    vec![crashed(), Exit::Killed, Exit::NoProc, Exit::NoConnection, Exit::ArbiterGone]
}

#[test]
fn a_permanent_child_that_ends_normally_is_restarted() {
    follows(Restart::Permanent, vec![Exit::Normal], true, true);
}

#[test]
fn a_permanent_child_that_shuts_down_is_restarted() {
    follows(Restart::Permanent, shutdowns(), true, true);
}

#[test]
fn a_permanent_child_that_crashes_is_restarted() {
    follows(Restart::Permanent, abnormal(), true, true);
}

#[test]
fn a_transient_child_that_ends_normally_stays_known_and_ended() {
    follows(Restart::Transient, vec![Exit::Normal], false, true);
}

#[test]
fn a_transient_child_that_shuts_down_stays_known_and_ended_whatever_it_says() {
    follows(Restart::Transient, shutdowns(), false, true);
}

#[test]
fn a_transient_child_that_crashes_is_restarted() {
    follows(Restart::Transient, abnormal(), true, true);
}

#[test]
fn a_temporary_child_that_ends_normally_is_forgotten() {
    follows(Restart::Temporary, vec![Exit::Normal], false, false);
}

#[test]
fn a_temporary_child_that_shuts_down_is_forgotten() {
    follows(Restart::Temporary, shutdowns(), false, false);
}

#[test]
fn a_temporary_child_that_crashes_is_forgotten() {
    follows(Restart::Temporary, abnormal(), false, false);
}

#[test]
fn a_panic_is_abnormal_and_says_where() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("a").restart(Restart::Transient));
        bed.start(spec).await;
        let old = bed.crash("s/a").await;
        let exit = old.exit();
        assert!(
            matches!(&exit, Some(Exit::Panic { message, location: Some(at) })
            if message == "asked to" && at.contains("otp_supervisor/main.rs")),
            "{exit:?}"
        );
        assert!(bed.runs("s/a"));
    });
}

#[test]
fn an_exit_after_the_restart_of_its_child_is_of_an_earlier_incarnation_and_changes_nothing() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a"]).await;
        let old = bed.crash("s/a").await;
        old.kill();
        old.stop(crashed());
        tokio::time::sleep(PAUSE).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("+a", "a*"));
    });
}

#[test]
fn links_and_monitors_to_the_dead_report_that_there_is_no_process() {
    bed(|bed| async move {
        bed.sup(Strategy::OneForOne, 9, &["a", "b"]).await;
        let dead = bed.crash("s/a").await;
        bed.log();
        bed.tell("s/b", Do::Monitor(dead.clone())).await;
        assert_eq!(bed.log(), "down s/a: no such process");
        bed.tell("s/b", Do::Trap).await;
        bed.tell("s/b", Do::Link(dead.clone())).await;
        assert_eq!(bed.log(), "exit s/a: no such process");
        // One that does not trap exits dies of it.
        let a = bed.tell("s/a", Do::Link(dead)).await;
        assert_eq!(a.exit(), Some(Exit::NoProc));
        assert_eq!(bed.log(), "+a");
    });
}

#[test]
fn a_link_that_was_taken_back_carries_nothing() {
    bed(|bed| async move {
        bed.sup(Strategy::OneForOne, 9, &["a", "b"]).await;
        let (a, b) = (bed.pid("s/a"), bed.pid("s/b"));
        bed.tell("s/b", Do::Link(a.clone())).await;
        bed.tell("s/b", Do::Unlink(a)).await;
        bed.crash("s/a").await;
        assert_eq!(bed.pid("s/b"), b);
    });
}

#[test]
fn siblings_that_are_linked_die_together_and_each_is_restarted_and_counted() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 2, &["a", "b"]).await;
        let b = bed.pid("s/b");
        bed.tell("s/b", Do::Link(bed.pid("s/a"))).await;
        bed.crash("s/a").await;
        assert!(b.exit().is_some_and(|exit| exit.is_abnormal()));
        assert_eq!(children(&sup).await, "a* b*");
        bed.crash("s/a").await;
        assert!(matches!(sup.pid().exit(), Some(Exit::RestartIntensity { .. })), "two of two were used");
    });
}
