//! How children are stopped: asked, given time, killed.

use super::*;
use crate::support::{Do as Order, Probe, probe, system};

#[test]
fn brutal_kill_asks_nobody() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("a"));
        let sup = bed.start(spec.child(bed.child("b").shutdown(Shutdown::Brutal))).await;
        let (a, b) = (bed.pid("s/a"), bed.pid("s/b"));
        sup.stop().await;
        assert_eq!((a.exit(), b.exit()), (Some(Exit::Shutdown), Some(Exit::Killed)));
        assert_eq!(bed.log(), "-a");
    });
}

#[test]
fn workers_and_supervisors_may_be_given_all_the_time() {
    bed(|bed| async move {
        let child = bed.child("x");
        let sub =
            ChildSpec::supervisor("t", move || SupervisorSpec::new("t", Strategy::OneForOne).child(child.clone()));
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(sub.shutdown(Shutdown::Infinity));
        let sup = bed.start(spec.child(bed.child("a").shutdown(Shutdown::Infinity))).await;
        let (t, x, a) = (bed.pid("s/t"), bed.pid("s/t/x"), bed.pid("s/a"));
        sup.stop().await;
        assert_eq!([t.exit(), x.exit(), a.exit()], [const { Some(Exit::Shutdown) }; 3]);
        assert_eq!(bed.log(), "-a -x");
    });
}

#[test]
fn a_supervisor_that_is_killed_brutally_takes_all_beneath_it_unasked() {
    bed(|bed| async move {
        let child = bed.child("x");
        let sub =
            ChildSpec::supervisor("t", move || SupervisorSpec::new("t", Strategy::OneForOne).child(child.clone()));
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).child(sub.shutdown(Shutdown::Brutal))).await;
        let (t, x) = (bed.pid("s/t"), bed.pid("s/t/x"));
        sup.stop().await;
        assert_eq!([t.exit(), x.exit()], [const { Some(Exit::Killed) }; 2]);
        assert_eq!(bed.log(), "");
    });
}

#[test]
fn the_exit_of_a_supervisor_is_the_reason_of_its_stop() {
    bed(|bed| async move {
        for reason in [Exit::Shutdown, Exit::ShutdownWith("moved".into()), Exit::Error("told to".into())] {
            let sup = bed.sup(Strategy::OneForAll, 1, &["a", "b"]).await;
            sup.pid().stop(reason.clone());
            assert_eq!(sup.exited().await, reason);
            assert_eq!(bed.log(), "-b -a");
        }
    });
}

#[test]
fn a_child_that_died_unnoticed_does_not_hold_up_the_end() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 1, &["a", "b", "c"]).await;
        // All at once: the supervisor learns of the kill while it stops the others, or before.
        bed.pid("s/b").kill();
        assert_eq!(sup.stop().await, Exit::Shutdown);
        assert!(!bed.log().contains('+'), "nobody is started for it");
    });
}

#[tokio::test]
async fn a_child_that_does_not_stop_in_time_is_killed() {
    let log = Log::default();
    let system = System::builder("t").arbiters(2).build().expect("system");
    // A handler that holds its own thread; the supervisor has another.
    let child = probe("a", &log).shutdown(Shutdown::Timeout(Duration::from_millis(1))).placement(Placement::Arbiter(1));
    let other =
        ChildSpec::supervisor("inner", move || SupervisorSpec::new("inner", Strategy::OneForOne).child(child.clone()))
            .placement(Placement::Arbiter(0));
    let sup = system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(other)).await.expect("started");
    let a = system.lookup::<Probe>("s/inner/a").expect("a");
    // Two thousand times its time to stop.
    a.tell(Order::Hang(Duration::from_secs(2))).expect("told");
    while system.tree().iter().any(|i| i.path == "s/inner/a" && i.queue_len > 0) {
        tokio::task::yield_now().await;
    }
    sup.stop().await;
    assert_eq!(a.pid().exit(), Some(Exit::Killed));
    assert_eq!(log.take(), "+a", "`stopping` is not run by a kill");
    system.shutdown().await;
}

#[tokio::test]
async fn a_tree_on_many_threads_ends_in_order_too() {
    let log = Log::default();
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne);
    let spec =
        ["a", "b", "c"].iter().fold(spec, |spec, name| spec.child(probe(name, &log).placement(Placement::Spread)));
    let sup = system.start(spec).await.expect("started");
    assert_eq!(sup.stop().await, Exit::Shutdown);
    assert_eq!(log.take(), "+a +b +c -c -b -a");
    system.shutdown().await;
}

#[test]
fn times_without_end_are_waited_for() {
    bed(|bed| async move {
        let ever = Duration::MAX;
        let never = Backoff { initial: ever, step: ever, factor: f64::NAN, max: ever, reset_after: ever, jitter: 0.0 };
        let a = bed.child("a").shutdown(Shutdown::Timeout(ever));
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).intensity(9, ever);
        let sup = bed.start(spec.child(a).child(bed.child("b").backoff(never))).await;
        bed.crash("s/b").await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(children(&sup).await, "a* b?");
        assert_eq!(sup.stop().await, Exit::Shutdown);
        assert_eq!(bed.log(), "-a");
    });
}
