//! Nodes and certificates that are not let in any more, while the node runs.

mod support;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use phalanx_transport::{
    AskError, Exit, Fingerprint, LossReason, PeerEvent, PeerState, Refusal, Revoked, SendError, Transport,
};
use support::*;
use tokio::sync::Semaphore;

fn refusal(event: PeerEvent) -> Refusal {
    match event {
        PeerEvent::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn refused(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Refused { .. })
}

fn up(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Up { .. })
}

#[tokio::test]
async fn a_revoked_node_is_down_when_revoke_returns_and_every_monitor_has_fired_once() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    b.serve::<Echo, _, _>("never", |_, _| async { std::future::pending().await });
    let monitors: Vec<_> = (0..100).map(|_| a.monitor("b", "echo")).collect();
    let asking = tokio::spawn(a.ask("b", "never", &Echo("?".into()), PATIENCE));
    until(|| b.peers()[0].received_messages == 1).await;
    let (mut at_a, mut at_b) = (a.events(), b.events());
    a.revoke("b");
    assert!(!a.is_connected("b"));
    assert_eq!(
        at_a.try_recv().expect("the Down came before revoke returned"),
        PeerEvent::Down { node: "b".into(), incarnation: 1, reason: LossReason::Revoked }
    );
    for monitor in monitors {
        assert_eq!(within(monitor).await.reason, Exit::NoConnection);
    }
    assert_eq!(within(asking).await.expect("no panic"), Err(AskError::NoConnection { node: "b".into() }));
    assert_eq!(a.tell("b", "echo", &Echo("?".into())), Err(SendError::NoConnection { node: "b".into() }));
    // The other side learns why.
    let lost = event(&mut at_b, |_| true).await;
    let PeerEvent::Down { reason: LossReason::ClosedByPeer(text), .. } = &lost else { panic!("{lost:?}") };
    assert!(text.contains("node b is revoked"), "{text}");
    // And what is told by it is not heard: it is let in by nobody who dials, nor dialed.
    b.set_peer("a", a.local_addr());
    let told = refusal(event(&mut at_b, refused).await);
    assert!(matches!(&told, Refusal::ByPeer(text) if text.contains("node b is revoked")), "{told}");
    assert!(matches!(state(&a, "b"), Some(PeerState::Down { .. })));
    assert!(!events_so_far(&mut at_a).iter().any(up));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_node_revoked_before_it_connects_is_refused_with_a_reason_on_both_sides() {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.revoked.nodes.insert("b".into());
    let (a, b) = (Transport::start(config).expect("starts"), ca.start("b", 1));
    let (mut at_a, mut at_b) = (a.events(), b.events());
    b.set_peer("a", a.local_addr());
    assert_eq!(refusal(event(&mut at_a, |_| true).await), Refusal::Revoked("b".into()));
    let told = refusal(event(&mut at_b, |_| true).await);
    assert_eq!(told, Refusal::ByPeer("node b is revoked".into()));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_revoked_node_is_not_dialed_until_it_is_reinstated() {
    let ca = Ca::new();
    let (a, b) = (ca.start("a", 1), ca.start("b", 1));
    a.revoke("b");
    let (mut at_a, mut at_b) = (a.events(), b.events());
    a.set_peer("b", b.local_addr());
    for _ in 0..3 {
        assert_eq!(refusal(event(&mut at_a, |_| true).await), Refusal::Revoked("b".into()));
    }
    let asked = within(a.ask("b", "echo", &Echo("?".into()), Duration::from_millis(50))).await;
    assert!(matches!(asked, Err(AskError::Refused { .. })), "{asked:?}");
    a.reinstate("b");
    // Had it been dialed before, the first thing that it heard would have been a refusal.
    let first = event(&mut at_b, |_| true).await;
    assert_eq!(first, PeerEvent::Up { node: "a".into(), incarnation: 1 });
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_reinstated_node_comes_back_whoever_dials() {
    let (_ca, a, b) = pair().await;
    serve_echo(&a, "echo");
    for revoker in [&a, &b] {
        let other = if std::ptr::eq(revoker, &a) { &b } else { &a };
        let mut events = revoker.events();
        revoker.revoke(other.node());
        assert_eq!(revoker.revoked().nodes, [other.node().clone()].into());
        revoker.reinstate(other.node());
        assert_eq!(revoker.revoked(), Revoked::default());
        event(&mut events, up).await;
        until(|| a.is_connected("b") && b.is_connected("a")).await;
        assert!(echo(&b, "a", "echo").await.is_ok());
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn nothing_that_a_revoked_node_has_sent_begins_to_be_handled_after_revoke() {
    let (_ca, a, b) = pair().await;
    let (handled, gate) = (Arc::<Mutex<Vec<u64>>>::default(), Arc::new(Semaphore::new(0)));
    let (begun, passing) = (handled.clone(), gate.clone());
    a.serve::<Number, _, _>("slow", move |_, Number(n)| {
        begun.lock().expect("no panic").push(n);
        let passing = passing.clone();
        async move {
            let _ = passing.acquire().await;
            Ok(())
        }
    });
    for n in 0..100 {
        b.tell("a", "slow", &Number(n)).expect("connected");
    }
    // The first is being handled, the others wait in the inbox.
    until(|| a.peers()[0].received_messages == 100 && handled.lock().expect("no panic").len() == 1).await;
    a.revoke("b");
    a.reinstate("b");
    until(|| a.is_connected("b") && b.is_connected("a")).await;
    // The same inbox, so after all of those.
    within(async {
        while b.tell("a", "slow", &Number(999)).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    gate.add_permits(1_000);
    until(|| handled.lock().expect("no panic").contains(&999)).await;
    assert_eq!(*handled.lock().expect("no panic"), [0, 999]);
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_whoever_dials_and_its_node_comes_back_with_another() {
    let ca = Ca::new();
    let (a, stolen) = (ca.start("a", 1), ca.node("b"));
    let mut config = ca.config("b", 1);
    config.identity = stolen.clone();
    let b = Transport::start(config).expect("starts");
    connect(&a, &b).await;
    let (mut at_a, mut at_b) = (a.events(), b.events());
    let lost = Fingerprint::of(&stolen.cert_chain[0]);
    a.set_revoked(Revoked { certificates: [lost].into(), ..Revoked::default() });
    assert!(!a.is_connected("b"));
    // a dials on and finds the certificate in the handshake; b is told before it takes itself for connected.
    let found = refusal(event(&mut at_a, refused).await);
    assert_eq!(found.to_string(), "node b (this certificate) is revoked");
    event(&mut at_b, |event| matches!(event, PeerEvent::Down { .. })).await;
    let told = refusal(event(&mut at_b, |_| true).await);
    assert!(matches!(&told, Refusal::ByPeer(text) if text.contains("revoked")), "{told}");
    // b dials and is refused as well.
    a.remove_peer("b");
    let mut at_a = a.events();
    b.set_peer("a", a.local_addr());
    let found = refusal(event(&mut at_a, |event| matches!(event, PeerEvent::Refused { node: Some(_), .. })).await);
    assert_eq!(found.to_string(), "node b (this certificate) is revoked");
    b.set_identity(ca.node("b")).expect("valid");
    event(&mut at_a, up).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn one_node_that_is_revoked_leaves_the_others_alone() {
    let (ca, a, b) = pair().await;
    let c = ca.start("c", 1);
    connect(&c, &a).await;
    serve_echo(&a, "echo");
    let mut at_c = c.events();
    a.revoke("b");
    // One's own name is ignored.
    a.revoke("a");
    assert!(a.is_connected("a"));
    assert!(echo(&c, "a", "echo").await.is_ok() && echo(&a, "a", "echo").await.is_ok());
    assert_eq!(events_so_far(&mut at_c), []);
    close(&[&a, &b, &c]).await;
}
