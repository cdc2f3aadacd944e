//! Monitors: down exactly once, with the right reason.

mod support;

use futures::FutureExt;
use phalanx_transport::{Direction, Down, Exit, PeerEvent, Transport};
use support::*;

#[tokio::test]
async fn what_is_not_served_is_no_proc() {
    let (_ca, a, b) = pair().await;
    for node in ["a", "b"] {
        let down = within(a.monitor(node, "nothing")).await;
        let expected = Down { node: node.into(), path: "nothing".into(), reason: Exit::NoProc };
        assert_eq!(down, expected);
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn what_is_unserved_has_exited() {
    let (_ca, a, b) = pair().await;
    serve_echo(&a, "echo");
    serve_echo(&b, "echo");
    let monitors = [a.monitor("a", "echo"), a.monitor("b", "echo"), a.monitor("b", "echo")];
    // The answer of an ask on the same connection does not order the lanes; an answered monitor does.
    within(a.monitor("b", "nothing")).await;
    a.unserve("echo");
    b.unserve("echo");
    for monitor in monitors {
        assert!(matches!(within(monitor).await.reason, Exit::Shutdown));
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn without_a_connection_it_is_no_connection_at_once() {
    let ca = Ca::new();
    let a = ca.start("a", 1);
    assert_eq!(within(a.monitor("b", "echo")).await.reason, Exit::NoConnection);
    close(&[&a]).await;
}

#[tokio::test]
async fn ten_thousand_monitors_fire_once_each_when_their_node_is_lost() {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.timings.idle_timeout_ms = 1_000;
    let a = phalanx_transport::Transport::start(config).expect("starts");
    let b = ca.start("b", 1);
    connect(&a, &b).await;
    serve_echo(&b, "echo");
    // Each is a future that gives one value, so twice is impossible; none may be forgotten.
    let monitors: Vec<_> = (0..10_000).map(|_| a.monitor("b", "echo")).collect();
    a.faults().cut("b", Direction::Both);
    for monitor in monitors {
        assert_eq!(within(monitor).await.reason, Exit::NoConnection);
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_dropped_monitor_is_forgotten_and_the_others_stay() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    let (kept, dropped) = (a.monitor("b", "echo"), a.monitor("b", "echo"));
    drop(dropped);
    within(a.monitor("b", "nothing")).await;
    b.unserve("echo");
    assert!(matches!(within(kept).await.reason, Exit::Shutdown));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_monitor_of_a_restarted_node_is_no_connection_not_the_new_incarnations_business() {
    let (ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    let monitor = a.monitor("b", "echo");
    let b2 = ca.start("b", 2);
    serve_echo(&b2, "echo");
    b2.set_peer("a", a.local_addr());
    assert_eq!(within(monitor).await.reason, Exit::NoConnection);
    close(&[&a, &b, &b2]).await;
}

#[tokio::test]
async fn when_the_down_is_seen_every_monitor_has_fired() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    let mut events = a.events();
    let monitors: Vec<_> = (0..50_000).map(|_| a.monitor("b", "echo")).collect();
    // Not waited for: the Down must be seen as soon as it is told, by this thread, while another fires the monitors.
    let closing = tokio::spawn(async move { close(&[&b]).await });
    event(&mut events, |event| matches!(event, PeerEvent::Down { .. })).await;
    // The last first, for they are fired in the order in which they were set.
    for monitor in monitors.into_iter().rev() {
        // Polled so often that tokio would have it yield.
        let fired = tokio::task::unconstrained(monitor).now_or_never();
        assert_eq!(fired.map(|down| down.reason), Some(Exit::NoConnection));
    }
    within(closing).await.expect("no panic");
    close(&[&a]).await;
}

#[tokio::test]
async fn monitors_that_were_dropped_take_no_place_on_either_side() {
    let ca = Ca::new();
    let mut configs = [ca.config("a", 1), ca.config("b", 1)];
    configs.iter_mut().for_each(|config| config.limits.monitors = 10);
    let [a, b] = configs.map(|config| Transport::start(config).expect("starts"));
    connect(&a, &b).await;
    serve_echo(&b, "echo");
    for _ in 0..100 {
        let dropped: Vec<_> = (0..9).map(|_| a.monitor("b", "echo")).collect();
        // There, and so were those before it.
        assert_eq!(within(a.monitor("b", "nothing")).await.reason, Exit::NoProc);
        drop(dropped);
    }
    let kept = a.monitor("b", "echo");
    assert_eq!(within(a.monitor("b", "nothing")).await.reason, Exit::NoProc);
    b.unserve("echo");
    assert_eq!(within(kept).await.reason, Exit::Shutdown);
    close(&[&a, &b]).await;
}
