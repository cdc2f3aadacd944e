//! Trees: what goes up, and what goes down.

use super::*;

/// A supervisor as a child, with these children.
fn sub(id: &'static str, intensity: u32, children: Vec<ChildSpec>) -> ChildSpec {
    ChildSpec::supervisor(id, move || {
        let spec = SupervisorSpec::new(id, Strategy::OneForOne).intensity(intensity, LONG);
        children.iter().fold(spec, |spec, child| spec.child(child.clone()))
    })
}

#[test]
fn a_supervisor_that_gave_up_is_restarted_by_its_own() {
    bed(|bed| async move {
        let child = sub("t", 0, vec![bed.child("a"), bed.child("b")]);
        bed.start(SupervisorSpec::new("s", Strategy::OneForOne).intensity(3, LONG).child(child)).await;
        bed.crash("s/t/a").await;
        assert_eq!(bed.log(), "-b +a +b");
        let info = bed.system.tree().into_iter().find(|info| info.path == "s/t").expect("in the tree");
        assert_eq!(info.restarts, 1);
        assert!(matches!(info.last_exit, Some(Exit::RestartIntensity { child, .. }) if child == "a"));
    });
}

#[test]
fn a_crash_that_nobody_can_mend_goes_up_through_every_level() {
    bed(|bed| async move {
        let tree =
            sub("t", 0, vec![bed.child("x"), sub("u", 0, vec![bed.child("y"), sub("v", 0, vec![bed.child("a")])])]);
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).intensity(0, LONG).child(tree)).await;
        bed.crash("s/t/u/v/a").await;
        let mut exit = sup.exited().await;
        for expected in ["t", "u", "v", "a"] {
            let Exit::RestartIntensity { child, last } = exit else { panic!("{exit}") };
            assert_eq!(child, expected);
            exit = *last;
        }
        assert!(matches!(exit, Exit::Panic { .. }));
        assert_eq!(bed.log(), "-y -x", "each stopped what it had left before it went");
    });
}

#[test]
fn a_crash_goes_up_no_further_than_it_must() {
    bed(|bed| async move {
        let tree = sub("t", 1, vec![bed.child("x"), sub("u", 0, vec![bed.child("a")])]);
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).intensity(0, LONG).child(tree).child(bed.child("z"));
        let sup = bed.start(spec).await;
        let (t, x, z) = (bed.pid("s/t"), bed.pid("s/t/x"), bed.pid("s/z"));
        bed.crash("s/t/u/a").await;
        assert_eq!(bed.log(), "+a");
        assert_eq!((bed.pid("s/t"), bed.pid("s/t/x"), bed.pid("s/z")), (t, x, z));
        assert!(sup.pid().is_alive());
    });
}

/// OTP's differs: there a supervisor that gave up has shut down, and is not restarted.
#[test]
fn a_transient_supervisor_that_gave_up_is_restarted() {
    bed(|bed| async move {
        let child = sub("t", 0, vec![bed.child("a")]).restart(Restart::Transient);
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await;
        bed.crash("s/t/a").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("+a", "t*"));
    });
}

#[test]
fn a_transient_supervisor_that_was_stopped_stays_ended() {
    bed(|bed| async move {
        let child = sub("t", 0, vec![bed.child("a")]).restart(Restart::Transient);
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await;
        bed.system.supervisor("s/t").expect("runs").stop().await;
        tokio::time::sleep(PAUSE).await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("-a", "t"));
    });
}

#[test]
fn a_supervisor_that_is_killed_takes_its_children_along_and_is_restarted_with_them() {
    bed(|bed| async move {
        let child = sub("t", 0, vec![bed.child("a"), sub("u", 0, vec![bed.child("b")])]);
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await;
        let (a, b) = (bed.pid("s/t/a"), bed.pid("s/t/u/b"));
        bed.pid("s/t").kill();
        tokio::time::sleep(PAUSE).await;
        assert_eq!([a.exit(), b.exit()], [const { Some(Exit::Killed) }; 2]);
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("+a +b", "t*"));
    });
}

#[test]
fn a_subtree_is_stopped_and_started_as_one_member_of_its_group() {
    bed(|bed| async move {
        let tree = sub("t", 0, vec![bed.child("x"), bed.child("y")]);
        let spec = SupervisorSpec::new("s", Strategy::OneForAll).child(bed.child("a")).child(tree);
        bed.start(spec.child(bed.child("b"))).await;
        bed.crash("s/a").await;
        assert_eq!(bed.log(), "-b -y -x +a +x +y +b");
    });
}

#[test]
fn a_subtree_whose_start_fails_fails_the_start_of_its_supervisor_at_every_level() {
    bed(|bed| async move {
        bed.fail("a", 1);
        let tree = sub("t", 9, vec![bed.child("x"), sub("u", 9, vec![bed.child("y"), bed.child("a")])]);
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("z")).child(tree);
        let error = bed.system.start(spec).await.expect_err("no start");
        let no_start = |child: &str, reason| Exit::StartFailed { child: child.into(), reason: Box::new(reason) };
        let reason = no_start("t", no_start("u", no_start("a", Exit::Error("no start".into()))));
        assert_eq!(error, StartError::Failed(reason));
        assert_eq!(bed.log(), "+z +x +y !a -y -x -z");
    });
}

#[test]
fn a_subtree_that_fails_to_restart_is_tried_again_and_counted() {
    bed(|bed| async move {
        let tree = sub("t", 0, vec![bed.child("a")]);
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).intensity(3, LONG).child(tree)).await;
        bed.fail("a", 2);
        bed.crash("s/t/a").await;
        assert_eq!((bed.log().as_str(), children(&sup).await.as_str()), ("!a !a +a", "t*"));
        bed.crash("s/t/a").await;
        assert!(matches!(sup.exited().await, Exit::RestartIntensity { child, .. } if child == "t"));
    });
}

#[test]
fn a_deep_tree_stops_from_the_last_leaf_to_the_first() {
    bed(|bed| async move {
        let deep = sub("t", 0, vec![bed.child("1"), sub("u", 0, vec![bed.child("2"), bed.child("3")]), bed.child("4")]);
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(bed.child("0")).child(deep);
        let sup = bed.start(spec.child(bed.child("5"))).await;
        sup.stop().await;
        assert_eq!(bed.log(), "-5 -4 -3 -2 -1 -0");
    });
}
