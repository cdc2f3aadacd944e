//! How many restarts are too many, and what happens then.

use super::*;

async fn gives_up(sup: &SupervisorRef) -> String {
    match sup.exited().await {
        Exit::RestartIntensity { child, .. } => child,
        exit => panic!("{exit}"),
    }
}

#[test]
fn more_restarts_than_the_intensity_end_the_supervisor_and_stop_its_children() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 2, &["a", "b"]).await;
        for _ in 0..2 {
            bed.crash("s/b").await;
        }
        bed.crash("s/b").await;
        let Exit::RestartIntensity { child, last } = sup.exited().await else { panic!() };
        assert_eq!(child, "b");
        assert!(matches!(*last, Exit::Panic { message, .. } if message == "asked to"));
        assert_eq!(bed.log(), "+b +b -a");
    });
}

#[test]
fn an_intensity_of_zero_allows_no_restart() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne, Strategy::Dynamic] {
        bed(|bed| async move {
            let sup = bed.sup(strategy, 0, &["a", "b"]).await;
            bed.crash("s/a").await;
            assert_eq!(gives_up(&sup).await, "a");
            assert_eq!(bed.log(), "-b");
        });
    }
}

#[test]
fn ends_that_are_not_followed_by_a_restart_are_not_counted() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 0, &[]).await;
        sup.start_child(bed.child("t").restart(Restart::Transient)).await.expect("added");
        sup.start_child(bed.child("x").restart(Restart::Temporary)).await.expect("added");
        bed.ends("s/t", Exit::Normal).await;
        bed.crash("s/x").await;
        sup.restart_child("t").await.expect("by hand, which is not counted");
        assert_eq!(children(&sup).await, "t*");
    });
}

#[test]
fn restarts_older_than_the_period_are_forgotten() {
    bed(|bed| async move {
        let period = Duration::from_secs(5);
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).intensity(2, period).child(bed.child("a"));
        let sup = bed.start(spec).await;
        // Never more than two within five seconds, ten times over.
        for _ in 0..10 {
            bed.crash("s/a").await;
            tokio::time::sleep(Duration::from_millis(2_600)).await;
        }
        assert_eq!(children(&sup).await, "a*");
        bed.crash("s/a").await;
        bed.crash("s/a").await;
        assert_eq!(gives_up(&sup).await, "a");
    });
}

#[test]
fn a_group_restart_counts_once_however_large_the_group() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 1, &["a", "b", "c", "d"]).await;
        bed.crash("s/a").await;
        assert_eq!(children(&sup).await, "a* b* c* d*");
        bed.crash("s/d").await;
        assert_eq!(gives_up(&sup).await, "d");
    });
}

#[test]
fn a_restart_that_fails_is_tried_again_and_each_try_counts() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 4, &["a"]).await;
        bed.fail("a", 3);
        bed.crash("s/a").await;
        assert_eq!(bed.log(), "!a !a !a +a");
        bed.fail("a", 9);
        bed.crash("s/a").await;
        assert_eq!(gives_up(&sup).await, "a");
        assert_eq!(bed.log(), "", "four of four were used");
    });
}

#[test]
fn one_for_one_gives_up_when_a_restart_fails_too_often() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForOne, 2, &["a", "b"]).await;
        bed.fail("a", 9);
        bed.crash("s/a").await;
        assert_eq!(gives_up(&sup).await, "a");
        assert_eq!(bed.log(), "!a !a -b");
    });
}

#[test]
fn one_for_all_gives_up_when_a_restart_fails_too_often() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::OneForAll, 2, &["a", "b"]).await;
        bed.fail("b", 9);
        bed.crash("s/a").await;
        assert_eq!(gives_up(&sup).await, "b");
        assert_eq!(bed.log(), "-b +a !b -a +a !b -a");
    });
}

#[test]
fn rest_for_one_gives_up_when_a_restart_fails_too_often() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::RestForOne, 2, &["a", "b", "c"]).await;
        bed.fail("b", 9);
        bed.crash("s/b").await;
        assert_eq!(gives_up(&sup).await, "b");
        assert_eq!(bed.log(), "-c !b !b -a");
    });
}

#[test]
fn a_dynamic_supervisor_gives_up_when_a_restart_fails_too_often() {
    bed(|bed| async move {
        let sup = bed.sup(Strategy::Dynamic, 2, &["a", "b"]).await;
        bed.fail("a", 9);
        bed.crash("s/a").await;
        assert_eq!(gives_up(&sup).await, "a");
        assert_eq!(bed.log(), "!a !a -b");
    });
}

#[test]
fn without_a_limit_restarts_go_on_for_ever() {
    bed(|bed| async move {
        let sup = bed.start(SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(bed.child("a"))).await;
        bed.fail("a", 2_000);
        bed.crash("s/a").await;
        bed.log.wait(2_001).await;
        assert_eq!(children(&sup).await, "a*");
    });
}
