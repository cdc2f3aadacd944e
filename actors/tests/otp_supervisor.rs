//! The rules of OTP's `supervisor`, one test each, named for the rule.

mod support;

use phalanx_actors::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::*;

const LONG: Duration = Duration::from_secs(60);

async fn tree(strategy: Strategy, log: &Log) -> (System, SupervisorRef) {
    let system = system();
    let spec = SupervisorSpec::new("s", strategy).intensity(10, LONG);
    let spec = ["a", "b", "c"].iter().fold(spec, |spec, name| spec.child(probe(name, log)));
    let sup = system.start(spec).await.expect("started");
    assert_eq!(log.take(), "+a +b +c");
    (system, sup)
}

#[tokio::test]
async fn children_start_in_order_and_stop_in_reverse() {
    let log = Log::default();
    let (system, sup) = tree(Strategy::OneForOne, &log).await;
    assert_eq!(sup.stop().await, Exit::Shutdown);
    assert_eq!(log.take(), "-c -b -a");
    assert_eq!(system.tree(), [], "nothing is left in the tree");
    system.shutdown().await;
}

#[tokio::test]
async fn one_for_one_restarts_the_one() {
    let log = Log::default();
    let (system, _sup) = tree(Strategy::OneForOne, &log).await;
    let (a, b) = (system.whereis("s/a").expect("a"), system.whereis("s/b").expect("b"));
    tell(&system, "s/b", Do::Panic).await;
    reborn(&system, "s/b", &b).await;
    assert_eq!(log.take(), "+b");
    assert_eq!(system.whereis("s/a"), Some(a));
    system.shutdown().await;
}

#[tokio::test]
async fn one_for_all_stops_the_others_in_reverse_and_starts_all_in_order() {
    let log = Log::default();
    let (system, _sup) = tree(Strategy::OneForAll, &log).await;
    let c = system.whereis("s/c").expect("c");
    tell(&system, "s/b", Do::Panic).await;
    reborn(&system, "s/c", &c).await;
    assert_eq!(log.take(), "-c -a +a +b +c");
    system.shutdown().await;
}

#[tokio::test]
async fn rest_for_one_stops_and_starts_those_behind() {
    let log = Log::default();
    let (system, _sup) = tree(Strategy::RestForOne, &log).await;
    let (a, c) = (system.whereis("s/a").expect("a"), system.whereis("s/c").expect("c"));
    tell(&system, "s/b", Do::Panic).await;
    reborn(&system, "s/c", &c).await;
    assert_eq!(log.take(), "-c +b +c");
    assert_eq!(system.whereis("s/a"), Some(a));
    system.shutdown().await;
}

#[tokio::test]
async fn a_permanent_child_is_always_restarted() {
    let log = Log::default();
    let (system, _sup) = tree(Strategy::OneForOne, &log).await;
    for exit in [Exit::Normal, Exit::Shutdown, Exit::Error("x".into())] {
        let old = system.whereis("s/a").expect("a");
        tell(&system, "s/a", Do::Stop(exit)).await;
        reborn(&system, "s/a", &old).await;
    }
    assert_eq!(log.take(), "-a +a -a +a -a +a");
    system.shutdown().await;
}

#[tokio::test]
async fn a_transient_child_is_restarted_after_an_abnormal_exit_only() {
    let log = Log::default();
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne)
        .intensity(10, LONG)
        .child(probe("a", &log).restart(Restart::Transient));
    let sup = system.start(spec).await.expect("started");
    for what in [Do::Panic, Do::Stop(Exit::Error("x".into())), Do::PanicInFuture, Do::PanicInTimer] {
        let old = system.whereis("s/a").expect("a");
        tell(&system, "s/a", what).await;
        reborn(&system, "s/a", &old).await;
    }
    for exit in [Exit::Normal, Exit::Shutdown] {
        let old = system.whereis("s/a").expect("a");
        tell(&system, "s/a", Do::Stop(exit.clone())).await;
        assert_eq!(old.exited().await, exit);
        let children = sup.which_children().await.expect("children");
        assert_eq!((children.len(), &children[0].pid), (1, &None), "known, and not running");
        sup.restart_child("a").await.expect("by hand");
    }
    system.shutdown().await;
}

#[tokio::test]
async fn a_temporary_child_is_forgotten_when_it_ends() {
    let log = Log::default();
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(probe("a", &log).restart(Restart::Temporary));
    let sup = system.start(spec).await.expect("started");
    let old = system.whereis("s/a").expect("a");
    tell(&system, "s/a", Do::Panic).await;
    old.exited().await;
    assert_eq!(sup.which_children().await, Ok(vec![]));
    assert!(!system.tree().iter().any(|info| info.path == "s/a"));
    system.shutdown().await;
}

#[tokio::test]
async fn more_restarts_than_the_intensity_end_the_supervisor_and_stop_its_children() {
    let log = Log::default();
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne)
        .intensity(2, LONG)
        .child(probe("a", &log))
        .child(probe("b", &log));
    let sup = system.start(spec).await.expect("started");
    for _ in 0..2 {
        let old = system.whereis("s/b").expect("b");
        tell(&system, "s/b", Do::Panic).await;
        reborn(&system, "s/b", &old).await;
    }
    tell(&system, "s/b", Do::Panic).await;
    let exit = sup.pid().exited().await;
    let Exit::RestartIntensity { child, last } = exit else { panic!("{exit}") };
    assert_eq!(child, "b");
    assert!(
        matches!(*last, Exit::Panic { message, location: Some(at) } if message == "asked to" && at.contains("support"))
    );
    assert_eq!(log.take(), "+a +b +b +b -a");
    system.shutdown().await;
}

#[tokio::test]
async fn a_supervisor_that_gave_up_is_restarted_by_its_own() {
    let log = Log::default();
    let system = system();
    let inner = log.clone();
    let spec = SupervisorSpec::new("top", Strategy::OneForOne).intensity(3, LONG).child(ChildSpec::supervisor(
        "s",
        move || {
            SupervisorSpec::new("s", Strategy::OneForOne)
                .intensity(0, LONG)
                .child(probe("a", &inner))
                .child(probe("b", &inner))
        },
    ));
    system.start(spec).await.expect("started");
    let old = system.whereis("top/s/b").expect("b");
    tell(&system, "top/s/a", Do::Panic).await;
    reborn(&system, "top/s/b", &old).await;
    assert_eq!(log.take(), "+a +b -b +a +b");
    let tree = system.tree();
    let s = tree.iter().find(|info| info.path == "top/s").expect("in the tree");
    assert_eq!(s.restarts, 1);
    assert!(matches!(&s.last_exit, Some(Exit::RestartIntensity { child, .. }) if child == "a"));
    system.shutdown().await;
}

#[tokio::test]
async fn a_first_start_that_fails_fails_the_supervisor_and_stops_the_earlier_in_reverse() {
    let log = Log::default();
    let system = system();
    let faults = Faults { starts: Arc::new(Mutex::new(1)) };
    let spec = SupervisorSpec::new("s", Strategy::OneForOne)
        .child(probe("a", &log))
        .child(probe("b", &log))
        .child(probe_with("c", &log, faults));
    let error = system.start(spec).await.expect_err("no start");
    assert_eq!(
        error,
        StartError::Failed(Exit::StartFailed { child: "c".into(), reason: Box::new(Exit::Error("no start".into())) })
    );
    assert_eq!(log.take(), "+a +b !c -b -a");
    system.shutdown().await;
}

#[tokio::test]
async fn a_restart_that_fails_is_tried_again_and_each_try_counts() {
    let log = Log::default();
    let system = system();
    let faults = Faults::default();
    let spec =
        SupervisorSpec::new("s", Strategy::OneForOne).intensity(4, LONG).child(probe_with("a", &log, faults.clone()));
    let sup = system.start(spec).await.expect("started");
    let old = system.whereis("s/a").expect("a");
    *faults.starts.lock().expect("lock") = 3;
    tell(&system, "s/a", Do::Panic).await;
    reborn(&system, "s/a", &old).await;
    assert_eq!(log.take(), "+a !a !a !a +a");
    *faults.starts.lock().expect("lock") = 100;
    tell(&system, "s/a", Do::Panic).await;
    assert!(matches!(sup.pid().exited().await, Exit::RestartIntensity { .. }), "four of four were used");
    system.shutdown().await;
}

#[tokio::test]
async fn a_child_that_does_not_stop_in_time_is_killed() {
    let log = Log::default();
    let system = System::builder("t").arbiters(2).build().expect("system");
    // A handler that holds its own thread; the supervisor has another.
    let child =
        probe("a", &log).shutdown(Shutdown::Timeout(Duration::from_millis(20))).placement(Placement::Arbiter(1));
    let other =
        ChildSpec::supervisor("inner", move || SupervisorSpec::new("inner", Strategy::OneForOne).child(child.clone()))
            .placement(Placement::Arbiter(0));
    let sup = system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(other)).await.expect("started");
    let a = system.lookup::<Probe>("s/inner/a").expect("a");
    // A hundred times its time to stop.
    a.tell(Do::Hang(Duration::from_secs(2))).expect("told");
    while system.tree().iter().any(|i| i.path == "s/inner/a" && i.queue_len > 0) {
        tokio::task::yield_now().await;
    }
    sup.stop().await;
    assert_eq!(a.pid().exit(), Some(Exit::Killed));
    assert_eq!(log.take(), "+a", "`stopping` is not run by a kill");
    system.shutdown().await;
}

#[tokio::test]
async fn brutal_kill_asks_nobody() {
    let log = Log::default();
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(probe("a", &log).shutdown(Shutdown::Brutal));
    let sup = system.start(spec).await.expect("started");
    let a = system.whereis("s/a").expect("a");
    sup.stop().await;
    assert_eq!(a.exit(), Some(Exit::Killed));
    assert_eq!(log.take(), "+a");
    system.shutdown().await;
}

#[tokio::test]
async fn children_are_added_terminated_restarted_and_deleted_by_hand() {
    let log = Log::default();
    let (system, sup) = tree(Strategy::OneForOne, &log).await;
    let d = sup.start_child(probe("d", &log)).await.expect("added");
    assert_eq!(sup.start_child(probe("d", &log)).await, Err(ChildError::AlreadyStarted));
    assert_eq!(sup.delete_child("d").await, Err(ChildError::Running));
    assert_eq!(sup.terminate_child("d").await, Ok(()));
    assert_eq!(d.exit(), Some(Exit::Shutdown));
    assert_eq!(sup.start_child(probe("d", &log)).await, Err(ChildError::AlreadyPresent));
    let again = sup.restart_child("d").await.expect("again");
    assert_ne!(again, d);
    assert_eq!(sup.restart_child("d").await, Err(ChildError::Running));
    sup.terminate_child("d").await.expect("stopped");
    assert_eq!(sup.delete_child("d").await, Ok(()));
    assert_eq!(sup.terminate_child("d").await, Err(ChildError::NotFound));
    assert_eq!(log.take(), "+d -d +d -d");
    let count = sup.count_children().await.expect("count");
    assert_eq!(count, ChildCount { specs: 3, active: 3, supervisors: 0, workers: 3 });
    sup.stop().await;
    assert_eq!(sup.count_children().await, Err(ChildError::SupervisorDown));
    system.shutdown().await;
}

#[tokio::test]
async fn a_child_added_that_fails_to_start_is_not_kept() {
    let log = Log::default();
    let (system, sup) = tree(Strategy::OneForOne, &log).await;
    let faults = Faults { starts: Arc::new(Mutex::new(1)) };
    let error = sup.start_child(probe_with("d", &log, faults)).await.expect_err("no start");
    assert_eq!(error, ChildError::StartFailed(Exit::Error("no start".into())));
    assert_eq!(sup.count_children().await.expect("count").specs, 3);
    system.shutdown().await;
}

#[tokio::test]
async fn a_dynamic_supervisor_forgets_what_ended_for_good_and_restarts_the_rest() {
    let log = Log::default();
    let system = system();
    let sup = system.start(SupervisorSpec::new("s", Strategy::Dynamic).unlimited()).await.expect("started");
    for i in 0..50 {
        sup.start_child(probe(&format!("w{i}"), &log).restart(Restart::Transient)).await.expect("added");
    }
    let (w7, w8) = (system.whereis("s/w7").expect("w7"), system.whereis("s/w8").expect("w8"));
    tell(&system, "s/w7", Do::Panic).await;
    tell(&system, "s/w8", Do::Stop(Exit::Normal)).await;
    reborn(&system, "s/w7", &w7).await;
    w8.exited().await;
    assert_eq!(sup.count_children().await.expect("count").specs, 49);
    sup.stop().await;
    assert_eq!(system.tree(), []);
    system.shutdown().await;
}

#[tokio::test]
async fn backoff_restarts_at_once_and_then_waits_visibly() {
    let log = Log::default();
    let system = system();
    let backoff = Backoff { step: LONG, max: LONG, jitter: 0.0, ..Backoff::default() };
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(probe("a", &log).backoff(backoff));
    let sup = system.start(spec).await.expect("started");
    let mut events = system.subscribe();
    let old = system.whereis("s/a").expect("a");
    tell(&system, "s/a", Do::Panic).await;
    reborn(&system, "s/a", &old).await;
    tell(&system, "s/a", Do::Panic).await;
    loop {
        if let TreeEvent::Restarting { path, in_ms, restarts } = events.recv().await.expect("event") {
            assert_eq!((path.as_str(), in_ms, restarts), ("s/a", 60_000, 1));
            break;
        }
    }
    let info = system.tree().into_iter().find(|info| info.path == "s/a").expect("visible");
    assert!(matches!(info.state, State::Restarting { in_ms } if in_ms > 30_000), "{info:?}");
    assert!(sup.which_children().await.expect("children")[0].restarting);
    assert_eq!(sup.restart_child("a").await, Err(ChildError::Restarting));
    assert_eq!(sup.stop().await, Exit::Shutdown);
    system.shutdown().await;
}

#[tokio::test]
async fn ten_thousand_children_crash_at_once_and_return() {
    let log = Log::default();
    let system = system();
    let sup = system.start(SupervisorSpec::new("s", Strategy::Dynamic).unlimited()).await.expect("started");
    for i in 0..10_000 {
        sup.start_child(probe(&format!("w{i}"), &log)).await.expect("added");
    }
    log.take();
    for i in 0..10_000 {
        system.lookup::<Probe>(&format!("s/w{i}")).expect("runs").tell(Do::Panic).expect("told");
    }
    log.wait(10_000).await;
    assert_eq!(sup.count_children().await.expect("count").active, 10_000);
    system.shutdown().await;
}
