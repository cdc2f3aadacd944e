//! How supervisors and their children start, and fail to.

use super::*;

fn no_start(child: &str) -> Exit {
    Exit::StartFailed { child: child.into(), reason: Box::new(Exit::Error("no start".into())) }
}

#[test]
fn a_supervisor_without_children_starts_and_stops() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &[]).await;
        assert_eq!(sup.count_children().await, Ok(ChildCount::default()));
        assert_eq!(sup.stop().await, Exit::Shutdown);
    });
}

#[test]
fn fifty_thousand_first_children_start_and_stop() {
    // Each start costs the same, however many there are: with a search through all of them this would take minutes.
    const CHILDREN: usize = 50_000;
    struct Idle;
    impl Actor for Idle {}
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::RestForOne);
        let spec = (0..CHILDREN).fold(spec, |spec, n| spec.child(ChildSpec::actor(n.to_string(), || Idle)));
        let sup = bed.system.start(spec).await.expect("started");
        assert_eq!(sup.count_children().await.expect("counted").active, CHILDREN);
        assert_eq!(sup.stop().await, Exit::Shutdown);
    });
}

#[test]
fn children_start_in_order_and_stop_in_reverse() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne);
        let spec = ["a", "b", "c"].iter().fold(spec, |spec, name| spec.child(bed.child(name)));
        let sup = bed.system.start(spec).await.expect("started");
        assert_eq!(bed.log(), "+a +b +c");
        assert_eq!(sup.stop().await, Exit::Shutdown);
        assert_eq!(bed.log(), "-c -b -a");
    });
}

#[test]
fn a_first_start_that_fails_fails_the_supervisor_and_stops_the_earlier_in_reverse() {
    bed(|bed| async move {
        bed.fail("c", 1);
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).intensity(10, LONG);
        let spec = ["a", "b", "c", "d"].iter().fold(spec, |spec, name| spec.child(bed.child(name)));
        let error = bed.system.start(spec).await.expect_err("no start");
        assert_eq!(error, StartError::Failed(no_start("c")));
        assert_eq!(bed.log(), "+a +b !c -b -a", "not tried again, whatever the intensity");
        assert_eq!(bed.system.tree(), []);
    });
}

#[test]
fn a_spec_that_panics_is_a_start_that_fails() {
    bed(|bed| async move {
        let spec =
            SupervisorSpec::new("s", Strategy::OneForOne).child(ChildSpec::supervisor("t", || panic!("no spec")));
        let error = bed.system.start(spec).await.expect_err("no start");
        let StartError::Failed(Exit::StartFailed { child, reason }) = error else { panic!("{error}") };
        assert_eq!(child, "t");
        assert!(matches!(*reason, Exit::Panic { message, .. } if message == "no spec"));
    });
}

#[test]
fn a_child_that_has_nothing_to_do_stays_known_without_a_pid() {
    bed(|bed| async move {
        bed.ignore("a");
        let spec = SupervisorSpec::new("s", Strategy::OneForAll).child(bed.child("a")).child(bed.child("b"));
        let sup = bed.system.start(spec).await.expect("that is no failure");
        assert_eq!(bed.log(), "~a +b");
        assert_eq!(children(&sup).await, "a b*");
        bed.ignore("c");
        let c = sup.start_child(bed.child("c")).await.expect("that is no failure");
        assert_eq!(c.exit(), Some(Exit::Ignore));
        assert_eq!(children(&sup).await, "a b* c");
        let count = sup.count_children().await.expect("counted");
        assert_eq!(count, ChildCount { specs: 3, active: 1, supervisors: 0, workers: 3 });
    });
}

#[test]
fn a_temporary_child_that_has_nothing_to_do_is_forgotten() {
    bed(|bed| async move {
        bed.ignore("a");
        bed.ignore("c");
        let temporary = |name| bed.child(name).restart(Restart::Temporary);
        let sup = SupervisorSpec::new("s", Strategy::OneForOne).child(temporary("a")).child(temporary("b"));
        let sup = bed.start(sup).await;
        assert_eq!(children(&sup).await, "b*");
        let c = sup.start_child(temporary("c")).await.expect("that is no failure");
        assert_eq!((c.is_alive(), children(&sup).await.as_str()), (false, "b*"));
    });
}

#[test]
fn a_dynamic_child_that_has_nothing_to_do_is_forgotten_whatever_its_restart_type() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::Dynamic, 1, &[]).await;
        for (name, restart) in [("a", Restart::Permanent), ("b", Restart::Transient), ("c", Restart::Temporary)] {
            bed.ignore(name);
            let pid = sup.start_child(bed.child(name).restart(restart)).await.expect("that is no failure");
            assert_eq!(pid.exit(), Some(Exit::Ignore));
        }
        assert_eq!(children(&sup).await, "");
        assert_eq!(sup.stop().await, Exit::Shutdown);
    });
}

#[test]
fn a_restart_that_finds_nothing_to_do_is_the_last() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 1, &["a", "b"]).await;
        bed.ignore("a");
        bed.crash("s/a").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("~a", "a b*"));
        sup.restart_child("a").await.expect("by hand");
        assert_eq!(children(&sup).await, "a* b*");
    });
}

#[test]
fn a_group_is_restarted_around_one_that_finds_nothing_to_do() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 1, &["a", "b", "c"]).await;
        bed.ignore("b");
        bed.crash("s/a").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-c -b +a ~b +c", "a* b c*"));
    });
}

#[test]
fn two_children_of_one_id_are_refused_before_any_starts() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("a")).child(bed.child("a"));
        let error = bed.system.start(spec).await.expect_err("refused");
        assert_eq!(error.to_string(), "start failed: `s` has two children with the id `a`");
        assert_eq!(bed.log(), "");
    });
}

#[test]
fn a_specification_can_be_read_back_with_its_defaults() {
    bed(|bed| async move {
        let sub = ChildSpec::supervisor("t", || SupervisorSpec::new("t", Strategy::OneForOne));
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).auto_shutdown(AutoShutdown::AnySignificant);
        let b = bed.child("b").shutdown(Shutdown::Brutal).restart(Restart::Transient).significant(true);
        let sup = bed.start(spec.child(bed.child("a")).child(b).child(sub)).await;
        let a = sup.child_spec("a").await.expect("a");
        assert_eq!((a.kind(), a.restart_type(), a.is_significant()), (Kind::Worker, Restart::Permanent, false));
        assert_eq!(a.shutdown_type(), Shutdown::Timeout(Duration::from_millis(WORKER_SHUTDOWN_MS)));
        let b = sup.child_spec("b").await.expect("b");
        assert_eq!(
            (b.restart_type(), b.is_significant(), b.shutdown_type()),
            (Restart::Transient, true, Shutdown::Brutal)
        );
        let t = sup.child_spec("t").await.expect("t");
        assert_eq!((t.id(), t.kind(), t.shutdown_type()), ("t", Kind::Supervisor, Shutdown::Infinity));
        assert_eq!(sup.child_spec("x").await.expect_err("unknown"), ChildError::NotFound);
    });
}

#[test]
fn a_child_that_ends_while_later_ones_start_is_handled_when_all_are_up() {
    bed(|bed| async move {
        // It kills its elder sibling from its own start.
        let system = bed.system.clone();
        let assassin = ChildSpec::actor("b", move || {
            if let Some(pid) = system.whereis("s/a") {
                pid.kill();
            }
            Idle
        });
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("a")).child(assassin);
        let sup = bed.system.start(spec.child(bed.child("c"))).await.expect("started");
        tokio::time::sleep(PAUSE).await;
        assert_eq!(bed.log(), "+a +c +a");
        assert_eq!(children(&sup).await, "a* b* c*");
    });
}

struct Idle;
impl Actor for Idle {}
