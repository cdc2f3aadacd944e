//! Many children without order among them (OTP `simple_one_for_one`, with ids).

use super::*;
use crate::support::{Do as Order, Probe, probe, system};

#[test]
fn a_dynamic_supervisor_forgets_what_ended_for_good_and_restarts_the_rest() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::Dynamic, 9, &[]).await;
        for i in 0..50 {
            sup.start_child(bed.child(&format!("w{i}")).restart(Restart::Transient)).await.expect("added");
        }
        bed.log();
        bed.crash("s/w7").await;
        bed.ends("s/w8", Exit::Normal).await;
        assert_eq!(bed.log(), "+w7 -w8");
        assert_eq!(sup.count_children().await.expect("count").specs, 49);
    });
}

#[test]
fn a_dynamic_child_is_forgotten_when_it_is_terminated_whatever_its_restart_type() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::Dynamic, 1, &["a", "b"]).await;
        assert_eq!(sup.terminate_child("a").await, Ok(()));
        assert_eq!(sup.terminate_child("a").await, Err(ChildError::NotFound));
        assert_eq!(sup.restart_child("a").await, Err(ChildError::NotFound));
        assert_eq!(sup.delete_child("b").await, Err(ChildError::Running));
        assert_eq!(children(&sup).await, "b*");
    });
}

#[test]
fn dynamic_children_may_be_supervisors() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::Dynamic, 1, &[]).await;
        for id in ["t", "u"] {
            let child = bed.child("x");
            let make = move || SupervisorSpec::new("t", Strategy::OneForOne).child(child.clone());
            sup.start_child(ChildSpec::supervisor(id, make)).await.expect("added");
        }
        let count = sup.count_children().await.expect("count");
        assert_eq!(count, ChildCount { specs: 2, active: 2, supervisors: 2, workers: 0 });
        assert!(bed.runs("s/t/x") && bed.runs("s/u/x"));
    });
}

#[test]
fn dynamic_children_stop_each_in_its_own_way() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::Dynamic, 1, &[]).await;
        let ways = [Shutdown::Brutal, Shutdown::Infinity, Shutdown::Timeout(LONG)];
        for (i, shutdown) in ways.into_iter().enumerate() {
            sup.start_child(bed.child(&format!("w{i}")).shutdown(shutdown)).await.expect("added");
        }
        let pids = [0, 1, 2].map(|i| bed.pid(&format!("s/w{i}")));
        sup.stop().await;
        let exits = pids.map(|pid| pid.exit());
        assert_eq!(exits, [Some(Exit::Killed), Some(Exit::Shutdown), Some(Exit::Shutdown)]);
    });
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
        system.lookup::<Probe>(&format!("s/w{i}")).expect("runs").tell(Order::Panic).expect("told");
    }
    log.wait(10_000).await;
    assert_eq!(sup.count_children().await.expect("count").active, 10_000);
    system.shutdown().await;
}
