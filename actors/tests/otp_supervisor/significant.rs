//! Supervisors that end with their significant children.

use super::*;

/// A supervisor that shuts down so, with `a` and `b` significant and transient, `p` permanent.
async fn sup(bed: &Bed, strategy: Strategy, auto: AutoShutdown) -> SupervisorRef {
    let significant = |name| bed.child(name).restart(Restart::Transient).significant(true);
    let spec = SupervisorSpec::new("s", strategy).intensity(9, LONG).auto_shutdown(auto);
    bed.start(spec.child(bed.child("p")).child(significant("a")).child(significant("b"))).await
}

#[test]
fn the_normal_end_of_any_significant_child_ends_a_supervisor_that_waits_for_any() {
    for exit in [Exit::Normal, Exit::Shutdown, Exit::ShutdownWith("done".into())] {
        bed(|bed| async move {
            let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AnySignificant).await;
            bed.ends("s/a", exit).await;
            assert_eq!(sup.exited().await, Exit::Shutdown);
            assert_eq!(bed.log(), "-a -b -p");
        });
    }
}

#[test]
fn the_end_of_the_last_significant_child_ends_a_supervisor_that_waits_for_all() {
    bed(|bed| async move {
        let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AllSignificant).await;
        bed.ends("s/a", Exit::Normal).await;
        assert_eq!(children(&sup).await, "p* a b*");
        bed.ends("s/b", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
        assert_eq!(bed.log(), "-a -b -p");
    });
}

#[test]
fn a_significant_transient_child_that_crashes_is_restarted_and_ends_nothing() {
    bed(|bed| async move {
        let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AnySignificant).await;
        bed.crash("s/a").await;
        assert_eq!(children(&sup).await, "p* a* b*");
    });
}

#[test]
fn any_end_of_a_significant_temporary_child_counts() {
    for exit in [Exit::Normal, Exit::Shutdown, crashed(), Exit::Killed] {
        bed(|bed| async move {
            let spec = SupervisorSpec::new("s", Strategy::OneForOne).auto_shutdown(AutoShutdown::AllSignificant);
            let child = bed.child("a").restart(Restart::Temporary).significant(true);
            let sup = bed.start(spec.child(child).child(bed.child("b"))).await;
            bed.ends("s/a", exit).await;
            assert_eq!(sup.exited().await, Exit::Shutdown);
            assert_eq!(bed.log(), "-a -b");
        });
    }
}

#[test]
fn the_end_of_a_child_that_is_not_significant_ends_nothing() {
    bed(|bed| async move {
        let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AnySignificant).await;
        sup.start_child(bed.child("t").restart(Restart::Temporary)).await.expect("added");
        sup.start_child(bed.child("u").restart(Restart::Transient)).await.expect("added");
        bed.ends("s/t", Exit::Normal).await;
        bed.ends("s/u", Exit::Normal).await;
        assert_eq!(children(&sup).await, "p* a* b* u");
    });
}

#[test]
fn a_significant_child_that_is_terminated_by_hand_ends_nothing() {
    bed(|bed| async move {
        let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AnySignificant).await;
        sup.terminate_child("a").await.expect("terminated");
        sup.terminate_child("b").await.expect("terminated");
        assert_eq!(children(&sup).await, "p* a b");
    });
}

#[test]
fn a_significant_child_that_was_terminated_by_hand_is_not_waited_for() {
    bed(|bed| async move {
        let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AllSignificant).await;
        sup.terminate_child("a").await.expect("terminated");
        bed.ends("s/b", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
    });
}

#[test]
fn a_significant_child_that_is_stopped_with_its_group_ends_nothing() {
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        bed(|bed| async move {
            let sup = sup(&bed, strategy, AutoShutdown::AnySignificant).await;
            let spec = bed.child("t").restart(Restart::Temporary).significant(true);
            sup.start_child(spec).await.expect("added");
            bed.log();
            bed.crash("s/p").await;
            assert_eq!(bed.log(), "-t -b -a +p +a +b", "{strategy:?}");
            assert_eq!(children(&sup).await, "p* a* b*");
        });
    }
}

#[test]
fn a_significant_child_that_had_nothing_to_do_ends_nothing_and_is_not_waited_for() {
    bed(|bed| async move {
        bed.ignore("a");
        let sup = sup(&bed, Strategy::OneForOne, AutoShutdown::AllSignificant).await;
        assert_eq!(children(&sup).await, "p* a b*");
        bed.ends("s/b", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
    });
}

#[test]
fn a_significant_child_that_is_to_be_restarted_is_waited_for() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).auto_shutdown(AutoShutdown::AllSignificant);
        let backoff = Backoff { initial: LONG, jitter: 0.0, max: LONG, ..Backoff::default() };
        let significant = |name| bed.child(name).restart(Restart::Transient).significant(true);
        let sup = bed.start(spec.child(significant("a").backoff(backoff)).child(significant("b"))).await;
        bed.crash("s/a").await;
        bed.ends("s/b", Exit::Normal).await;
        assert_eq!(children(&sup).await, "a? b");
        tokio::time::sleep(LONG).await;
        bed.ends("s/a", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
    });
}

#[test]
fn a_dynamic_supervisor_ends_with_its_last_significant_child() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::Dynamic).auto_shutdown(AutoShutdown::AllSignificant);
        let sup = bed.start(spec).await;
        for name in ["a", "b", "c"] {
            let child = bed.child(name).restart(Restart::Temporary).significant(true);
            sup.start_child(child).await.expect("added");
        }
        sup.start_child(bed.child("other")).await.expect("added");
        bed.crash("s/a").await;
        sup.terminate_child("b").await.expect("terminated");
        assert_eq!(children(&sup).await, "c* other*");
        bed.ends("s/c", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
    });
}

#[test]
fn a_dynamic_supervisor_ends_with_any_significant_child() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::Dynamic).auto_shutdown(AutoShutdown::AnySignificant);
        let sup = bed.start(spec).await;
        for name in ["a", "b"] {
            let child = bed.child(name).restart(Restart::Transient).significant(true);
            sup.start_child(child).await.expect("added");
        }
        bed.ends("s/b", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
        assert_eq!(bed.log(), "+a +b -b -a");
    });
}

#[test]
fn auto_shutdown_goes_up_through_supervisors_that_are_significant() {
    bed(|bed| async move {
        let leaf = bed.child("a").restart(Restart::Transient).significant(true);
        let level = |id: &'static str, child: ChildSpec| {
            let make = move || {
                let spec = SupervisorSpec::new(id, Strategy::OneForOne).auto_shutdown(AutoShutdown::AnySignificant);
                spec.child(child.clone())
            };
            ChildSpec::supervisor(id, make).restart(Restart::Transient).significant(true)
        };
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).auto_shutdown(AutoShutdown::AnySignificant);
        let sup = bed.start(spec.child(level("t", level("u", leaf))).child(bed.child("b"))).await;
        bed.ends("s/t/u/a", Exit::Normal).await;
        assert_eq!(sup.exited().await, Exit::Shutdown);
        assert_eq!(bed.log(), "-a -b");
    });
}

#[test]
fn a_permanent_supervisor_that_shut_itself_down_is_restarted_by_its_own() {
    bed(|bed| async move {
        let leaf = bed.child("a").restart(Restart::Transient).significant(true);
        let sub = ChildSpec::supervisor("t", move || {
            let spec = SupervisorSpec::new("t", Strategy::OneForOne).auto_shutdown(AutoShutdown::AnySignificant);
            spec.child(leaf.clone())
        });
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).child(sub)).await;
        bed.ends("s/t/a", Exit::Normal).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-a +a", "t*"));
    });
}

#[test]
fn a_supervisor_that_never_shuts_down_refuses_significant_children() {
    bed(|bed| async move {
        let significant = || bed.child("a").restart(Restart::Transient).significant(true);
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("p"));
        let error = bed.system.start(spec.clone().child(significant())).await.expect_err("refused");
        assert!(
            error.to_string().starts_with("start failed: `s/a`: a significant child needs a supervisor"),
            "{error}"
        );
        let sup = bed.start(spec).await;
        let error = sup.start_child(significant()).await.expect_err("refused");
        assert!(matches!(error, ChildError::BadCombination(_)), "{error}");
        assert_eq!(children(&sup).await, "p*");
    });
}

#[test]
fn a_permanent_child_may_not_be_significant() {
    bed(|bed| async move {
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).auto_shutdown(AutoShutdown::AnySignificant);
        let error = bed.system.start(spec.clone().child(bed.child("a").significant(true))).await.expect_err("refused");
        assert!(error.to_string().contains("a permanent child cannot be significant"), "{error}");
        let sup = bed.start(spec).await;
        let error = sup.start_child(bed.child("a").significant(true)).await.expect_err("refused");
        assert!(matches!(error, ChildError::BadCombination(_)), "{error}");
        assert_eq!(bed.log(), "");
    });
}
