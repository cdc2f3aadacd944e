//! Who is connected: certificates, names, incarnations, dialing from both sides, restarts, ends.

mod support;

use std::time::{Duration, Instant};

use phalanx_transport::{
    Direction, LossReason, PeerEvent, PeerState, Refusal, StartError, Transport, TransportConfig, server_name,
};
use support::*;

fn up(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Up { .. })
}

fn down(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Down { .. })
}

fn refused(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Refused { .. })
}

fn refusal(event: PeerEvent) -> Refusal {
    match event {
        PeerEvent::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

/// `a` dials `b` under the name `dialed`; both sides' first refusals.
async fn both_refuse(a: &Transport, b: &Transport, dialed: &str) -> (Refusal, Refusal) {
    let (mut at_a, mut at_b) = (a.events(), b.events());
    a.set_peer(dialed, b.local_addr());
    let first = event(&mut at_a, |_| true).await;
    let second = event(&mut at_b, |_| true).await;
    assert!(!a.is_connected(dialed) && !b.is_connected(a.node()));
    assert!(matches!(state(a, dialed), Some(PeerState::Down { .. })));
    close(&[a, b]).await;
    (refusal(first), refusal(second))
}

#[tokio::test]
async fn a_certificate_of_a_foreign_ca_is_refused_by_both_sides() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let (a, b) = (theirs.start("a", 1), ours.start("b", 1));
    let (at_a, at_b) = both_refuse(&a, &b, "b").await;
    assert!(matches!(at_a, Refusal::Tls(_)), "{at_a}");
    assert!(matches!(at_b, Refusal::ByPeer(_)), "{at_b}");
}

#[tokio::test]
async fn the_acceptor_refuses_a_dialer_whose_ca_it_does_not_trust() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    // The dialer trusts both, so only the acceptor has a reason. For the dialer the handshake has succeeded by then.
    let mut config = theirs.config("a", 1);
    config.trust.push(ours.root.clone());
    let a = Transport::start(config).expect("starts");
    let b = ours.start("b", 1);
    let (at_a, at_b) = both_refuse(&a, &b, "b").await;
    assert!(matches!(at_a, Refusal::ByPeer(_)), "{at_a}");
    assert!(matches!(at_b, Refusal::Tls(_)), "{at_b}");
}

#[tokio::test]
async fn a_node_that_is_not_the_one_dialed_is_refused() {
    let ca = Ca::new();
    let (a, b) = (ca.start("a", 1), ca.start("b", 1));
    let (at_a, _) = both_refuse(&a, &b, "c").await;
    assert!(matches!(at_a, Refusal::Tls(_)), "{at_a}");
}

async fn dial_with_names(names: &[String]) -> (Refusal, Refusal) {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.identity = ca.issue(names);
    let (a, b) = (Transport::start(config).expect("starts"), ca.start("b", 1));
    both_refuse(&a, &b, "b").await
}

#[tokio::test]
async fn a_certificate_of_another_cluster_or_of_no_node_is_refused() {
    for names in [vec![server_name("other", "a")], vec!["localhost".into()]] {
        let (at_a, at_b) = dial_with_names(&names).await;
        assert!(matches!(at_a, Refusal::ByPeer(_)), "{at_a}");
        assert!(matches!(at_b, Refusal::CertificateName { .. }), "{at_b}");
    }
}

#[tokio::test]
async fn a_dialer_that_calls_itself_other_than_its_certificate_is_refused() {
    let (_, at_b) = dial_with_names(&[server_name(CLUSTER, "c")]).await;
    assert!(matches!(at_b, Refusal::Name { .. }), "{at_b}");
}

#[tokio::test]
async fn a_hello_of_another_cluster_is_refused() {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.cluster = "other".into();
    config.identity = ca.issue(&[server_name(CLUSTER, "a"), server_name("other", "a")]);
    let mut b_config = ca.config("b", 1);
    b_config.identity = ca.issue(&[server_name(CLUSTER, "b"), server_name("other", "b")]);
    let (a, b) = (Transport::start(config).expect("starts"), Transport::start(b_config).expect("starts"));
    let (_, at_b) = both_refuse(&a, &b, "b").await;
    assert!(matches!(at_b, Refusal::Cluster { .. }), "{at_b}");
}

#[tokio::test]
async fn another_node_of_our_own_name_is_refused() {
    let ca = Ca::new();
    let (a, twin, c) = (ca.start("a", 1), ca.start("a", 2), ca.start("c", 1));
    let mut at_twin = twin.events();
    // Its own name it does not dial, so c is dialed under the twin's address.
    twin.set_peer("a", a.local_addr());
    connect(&c, &a).await;
    c.set_peer("a", twin.local_addr());
    // c moves to the newer boot; the older one is refused from then on.
    event(&mut at_twin, up).await;
    assert!(twin.peers().iter().all(|peer| &*peer.node == "c"));
    close(&[&a, &twin, &c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_dial_each_other_at_once_end_with_one_connection() {
    let ca = Ca::new();
    for round in 0..30 {
        let (a, b) = (ca.start("a", 1), ca.start("b", 1));
        let (mut at_a, mut at_b) = (a.events(), b.events());
        a.set_peer("b", b.local_addr());
        if round % 3 == 2 {
            // Also somewhat apart, to meet the other in the middle of its handshake.
            tokio::time::sleep(Duration::from_millis(round / 3)).await;
        }
        b.set_peer("a", a.local_addr());
        event(&mut at_a, up).await;
        event(&mut at_b, up).await;
        serve_echo(&a, "echo");
        serve_echo(&b, "echo");
        assert_eq!(echo(&a, "b", "echo").await, Ok("a: hello".into()));
        assert_eq!(echo(&b, "a", "echo").await, Ok("b: hello".into()));
        // Not a second connection after the first, nor a refusal.
        assert_eq!(events_so_far(&mut at_a), []);
        assert_eq!(events_so_far(&mut at_b), []);
        close(&[&a, &b]).await;
    }
}

#[tokio::test]
async fn an_orderly_close_is_known_at_once() {
    let ca = Ca::new();
    let patient = |node| {
        let mut config = ca.config(node, 1);
        config.timings.idle_timeout_ms = 600_000;
        Transport::start(config).expect("starts")
    };
    let (a, b) = (patient("a"), patient("b"));
    let mut at_a = a.events();
    connect(&a, &b).await;
    close(&[&b]).await;
    let lost = event(&mut at_a, down).await;
    assert!(matches!(&lost, PeerEvent::Down { reason: LossReason::ClosedByPeer(_), .. }), "{lost:?}");
    close(&[&a]).await;
}

#[tokio::test]
async fn a_process_that_dies_is_noticed_by_the_idle_timeout() {
    let ca = Ca::new();
    let brief = |node, incarnation| {
        let mut config = ca.config(node, incarnation);
        config.timings.idle_timeout_ms = 1_000;
        Transport::start(config).expect("starts")
    };
    let (a, b) = (brief("a", 1), brief("b", 1));
    let mut at_a = a.events();
    connect(&a, &b).await;
    event(&mut at_a, up).await;
    let died = Instant::now();
    b.abort();
    let lost = event(&mut at_a, |_| true).await;
    let expected = PeerEvent::Down { node: "b".into(), incarnation: 1, reason: LossReason::IdleTimeout };
    assert_eq!(lost, expected);
    assert!(died.elapsed() < Duration::from_secs(12), "{:?}", died.elapsed());
    close(&[&a, &b]).await;
}

/// A node of the name `b` at a given address.
fn b_at(config: TransportConfig, addr: std::net::SocketAddr) -> Transport {
    Transport::start(TransportConfig { bind: addr, ..config }).expect("the address is free again")
}

#[tokio::test]
async fn a_node_that_restarts_at_its_address_comes_back_as_another_incarnation() {
    let (ca, a, b) = pair().await;
    let mut at_a = a.events();
    let addr = b.local_addr();
    b.abort();
    close(&[&b]).await;
    let b2 = b_at(ca.config("b", 2), addr);
    // The old one has not even timed out when the new one says hello.
    b2.set_peer("a", a.local_addr());
    let events = [event(&mut at_a, |_| true).await, event(&mut at_a, |_| true).await];
    assert!(matches!(&events[0], PeerEvent::Down { incarnation: 1, .. }), "{events:?}");
    assert_eq!(events[1], PeerEvent::Up { node: "b".into(), incarnation: 2 });
    serve_echo(&b2, "echo");
    assert_eq!(echo(&a, "b", "echo").await, Ok("a: hello".into()));
    close(&[&a, &b2]).await;
}

#[tokio::test]
async fn a_newer_incarnation_replaces_a_connection_that_is_still_up() {
    let (ca, a, b) = pair().await;
    let mut at_a = a.events();
    let b2 = ca.start("b", 2);
    b2.set_peer("a", a.local_addr());
    let events = [event(&mut at_a, |_| true).await, event(&mut at_a, |_| true).await];
    assert_eq!(
        events,
        [
            PeerEvent::Down { node: "b".into(), incarnation: 1, reason: LossReason::Replaced },
            PeerEvent::Up { node: "b".into(), incarnation: 2 },
        ]
    );
    close(&[&a, &b, &b2]).await;
}

#[tokio::test]
async fn a_stale_incarnation_is_refused_whoever_dials() {
    let (ca, a, b) = pair().await;
    let b2 = ca.start("b", 2);
    b2.set_peer("a", a.local_addr());
    let mut at_a = a.events();
    let mut at_b = b.events();
    until(|| a.peers()[0].incarnation == Some(2)).await;
    // The old one still runs and dials.
    b.set_peer("a", a.local_addr());
    let stale = event(&mut at_a, refused).await;
    assert_eq!(refusal(stale), Refusal::StaleIncarnation { theirs: 1, newest: 2 });
    let told = refusal(event(&mut at_b, refused).await);
    assert!(matches!(&told, Refusal::ByPeer(text) if text.contains("stale")), "{told}");
    // And is dialed.
    close(&[&b2]).await;
    a.set_peer("b", b.local_addr());
    let stale = event(&mut at_a, refused).await;
    assert_eq!(refusal(stale), Refusal::StaleIncarnation { theirs: 1, newest: 2 });
    assert!(!a.is_connected("b"));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_peer_that_starts_later_is_reached() {
    let ca = Ca::new();
    let (a, b) = (ca.start("a", 1), ca.start("b", 1));
    let addr = b.local_addr();
    close(&[&b]).await;
    let mut at_a = a.events();
    a.set_peer("b", addr);
    assert_eq!(state(&a, "b"), Some(PeerState::Connecting));
    let b = b_at(ca.config("b", 2), addr);
    assert_eq!(event(&mut at_a, up).await, PeerEvent::Up { node: "b".into(), incarnation: 2 });
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_peer_that_moves_is_found_at_its_new_address() {
    let (ca, a, b) = pair().await;
    let mut at_a = a.events();
    let moved = ca.start("b", 2);
    a.set_peer("b", moved.local_addr());
    let lost = event(&mut at_a, |_| true).await;
    assert!(matches!(lost, PeerEvent::Down { incarnation: 1, reason: LossReason::Removed, .. }), "{lost:?}");
    assert_eq!(event(&mut at_a, up).await, PeerEvent::Up { node: "b".into(), incarnation: 2 });
    close(&[&a, &b, &moved]).await;
}

#[tokio::test]
async fn a_removed_peer_is_dialed_no_more() {
    let (_ca, a, b) = pair().await;
    let (mut at_a, mut at_b) = (a.events(), b.events());
    a.remove_peer("b");
    assert!(matches!(event(&mut at_a, |_| true).await, PeerEvent::Down { reason: LossReason::Removed, .. }));
    event(&mut at_b, down).await;
    // Longer than the first pauses of the backoff.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(events_so_far(&mut at_a), []);
    a.set_peer("b", b.local_addr());
    event(&mut at_a, up).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn peers_are_described() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    echo(&a, "b", "echo").await.expect("answered");
    let peers = a.peers();
    let [b_info] = peers.as_slice() else { panic!("{peers:?}") };
    assert_eq!((&*b_info.node, b_info.addr), ("b", Some(b.local_addr())));
    assert_eq!((&b_info.state, b_info.incarnation), (&PeerState::Connected, Some(1)));
    assert!(b_info.rtt_ms.is_some_and(|rtt| rtt > 0.0));
    assert_eq!((b_info.sent_messages, b_info.received_messages), (1, 1));
    assert!(b_info.sent_bytes > 0 && b_info.received_bytes > 0);
    // The acceptor knows where its peer came from.
    assert_eq!(b.peers()[0].addr, Some(a.local_addr()));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_bad_start_is_one_clear_error() {
    let ca = Ca::new();
    let a = ca.start("a", 1);
    let in_use = TransportConfig { bind: a.local_addr(), ..ca.config("b", 1) };
    let error = Transport::start(in_use).expect_err("in use");
    assert!(matches!(error, StartError::Bind { .. }), "{error}");
    let unnamed = TransportConfig { node: "No Name".into(), ..ca.config("b", 1) };
    let error = Transport::start(unnamed).expect_err("no name");
    assert!(matches!(error, StartError::InvalidName { what: "node", .. }), "{error}");
    let rootless = TransportConfig { trust: vec![], ..ca.config("b", 1) };
    let error = Transport::start(rootless).expect_err("no roots");
    assert!(matches!(error, StartError::Identity { .. }), "{error}");
    let wrong_key = TransportConfig {
        identity: phalanx_transport::Identity { key: ca.node("b").key, ..ca.node("b") },
        ..ca.config("b", 1)
    };
    let error = Transport::start(wrong_key).expect_err("key of another certificate");
    assert!(matches!(error, StartError::Identity { .. }), "{error}");
    close(&[&a]).await;
}

#[tokio::test]
async fn an_address_is_free_once_close_returns() {
    let ca = Ca::new();
    let a = ca.start("a", 1);
    let addr = a.local_addr();
    close(&[&a]).await;
    let again = b_at(ca.config("b", 1), addr);
    again.abort();
    close(&[&again]).await;
    let third = b_at(ca.config("b", 2), addr);
    drop(third);
    // Dropped without a close, it closes by itself.
    within(async {
        while std::net::UdpSocket::bind(addr).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_close_that_is_given_up_goes_on_and_whoever_closes_again_waits_for_its_end() {
    let (_ca, a, b) = pair().await;
    let addr = a.local_addr();
    // What was told cannot be written out, so that closing takes its time.
    a.faults().cut("b", Direction::Both);
    a.tell("b", "nowhere", &Number(1)).expect("room");
    {
        let mut given_up = std::pin::pin!(a.close());
        assert!(futures::poll!(&mut given_up).is_pending());
    }
    let again = || async {
        a.close().await;
        drop(std::net::UdpSocket::bind(addr).expect("the address is free"));
    };
    within(futures::future::join3(again(), again(), again())).await;
    close(&[&b]).await;
}

#[tokio::test]
async fn a_transport_may_run_on_a_given_runtime_instead_of_a_thread_of_its_own() {
    let ca = Ca::new();
    let here = |node| {
        let config = TransportConfig { driver: Some(tokio::runtime::Handle::current()), ..ca.config(node, 1) };
        Transport::start(config).expect("starts")
    };
    let (a, b) = (here("a"), here("b"));
    connect(&a, &b).await;
    serve_echo(&b, "echo");
    assert_eq!(echo(&a, "b", "echo").await, Ok("a: hello".into()));
    let addr = b.local_addr();
    close(&[&a, &b]).await;
    drop(std::net::UdpSocket::bind(addr).expect("the address is free again"));
}

#[tokio::test]
async fn a_closed_transport_lets_go_of_its_handlers() {
    let ca = Ca::new();
    let a = ca.start("a", 1);
    let (sender, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
    let own = a.clone();
    a.serve_datagram("own", move |_, _| {
        // Both are held by the handler, and through it by the transport.
        let _ = (&own, &sender);
    });
    close(&[&a]).await;
    assert_eq!(within(dropped.recv()).await, None);
}
