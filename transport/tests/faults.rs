//! Faults on the wire: cuts of one and both directions, loss, delay, and what the nodes see of them.

mod support;

use std::time::{Duration, Instant};

use phalanx_transport::{Direction, Exit, PeerEvent, Target, Transport};
use support::*;
use tokio::sync::mpsc;

fn brief(ca: &Ca, node: &str) -> Transport {
    let mut config = ca.config(node, 1);
    config.timings.idle_timeout_ms = 1_000;
    config.timings.connect_timeout_ms = 2_000;
    Transport::start(config).expect("starts")
}

async fn brief_pair() -> (Transport, Transport) {
    let ca = Ca::new();
    let (a, b) = (brief(&ca, "a"), brief(&ca, "b"));
    connect(&a, &b).await;
    (a, b)
}

fn is_up(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Up { .. })
}

fn is_down(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Down { .. })
}

#[tokio::test]
async fn a_cut_peer_is_down_exactly_once_and_up_again_when_healed() {
    let (a, b) = brief_pair().await;
    serve_echo(&b, "echo");
    let (mut at_a, mut at_b) = (a.events(), b.events());
    let monitor = a.monitor("b", "echo");
    a.faults().cut("b", Direction::Both);
    assert_eq!(within(monitor).await.reason, Exit::NoConnection);
    assert!(is_down(&event(&mut at_a, |_| true).await));
    assert!(is_down(&event(&mut at_b, |_| true).await));
    // Dialed in vain meanwhile.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(events_so_far(&mut at_a), []);
    assert_eq!(events_so_far(&mut at_b), []);
    a.faults().heal("b");
    assert!(is_up(&event(&mut at_a, |_| true).await));
    assert!(is_up(&event(&mut at_b, |_| true).await));
    assert_eq!(echo(&a, "b", "echo").await, Ok("a: hello".into()));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_cut_of_one_direction_takes_the_connection_down_on_both_sides() {
    for direction in [Direction::In, Direction::Out] {
        let (a, b) = brief_pair().await;
        let (mut at_a, mut at_b) = (a.events(), b.events());
        a.faults().cut("b", direction);
        event(&mut at_a, is_down).await;
        event(&mut at_b, is_down).await;
        assert!(!events_so_far(&mut at_a).iter().any(is_up));
        assert!(!events_so_far(&mut at_b).iter().any(is_up));
        a.faults().heal(Target::All);
        event(&mut at_a, is_up).await;
        event(&mut at_b, is_up).await;
        close(&[&a, &b]).await;
    }
}

#[tokio::test]
async fn cutting_everybody_also_cuts_who_is_not_known_yet() {
    let ca = Ca::new();
    let (a, b) = (brief(&ca, "a"), brief(&ca, "b"));
    a.faults().cut(Target::All, Direction::Both);
    let (mut at_a, mut at_b) = (a.events(), b.events());
    b.set_peer("a", a.local_addr());
    until(|| matches!(state(&b, "a"), Some(phalanx_transport::PeerState::Down { .. }))).await;
    assert_eq!(events_so_far(&mut at_a), []);
    a.faults().heal(Target::All);
    event(&mut at_a, is_up).await;
    event(&mut at_b, is_up).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_node_that_is_cut_by_name_cannot_come_in_from_an_unknown_address() {
    let ca = Ca::new();
    let (a, b) = (brief(&ca, "a"), brief(&ca, "b"));
    a.faults().cut("b", Direction::Both);
    let mut at_a = a.events();
    b.set_peer("a", a.local_addr());
    until(|| matches!(state(&b, "a"), Some(phalanx_transport::PeerState::Down { .. }))).await;
    assert_eq!(events_so_far(&mut at_a), []);
    assert!(!a.is_connected("b") && !b.is_connected("a"));
    a.faults().heal("b");
    event(&mut at_a, is_up).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_cut_of_one_peer_leaves_the_others_alone() {
    let ca = Ca::new();
    let (a, b, c) = (brief(&ca, "a"), brief(&ca, "b"), ca.start("c", 1));
    connect(&a, &b).await;
    connect(&a, &c).await;
    serve_echo(&c, "echo");
    let mut at_a = a.events();
    a.faults().cut("b", Direction::Both);
    let lost = event(&mut at_a, is_down).await;
    assert!(matches!(lost, PeerEvent::Down { node, .. } if &*node == "b"));
    assert_eq!(echo(&a, "c", "echo").await, Ok("a: hello".into()));
    assert!(a.is_connected("c"));
    close(&[&a, &b, &c]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_keep_their_order_and_none_is_missing_under_loss_and_delay() {
    let (_ca, a, b) = pair().await;
    let (sender, mut numbers) = mpsc::unbounded_channel();
    b.serve::<Number, _, _>("numbers", move |_, Number(n)| {
        let sender = sender.clone();
        async move { sender.send(n).map_err(|e| e.to_string()) }
    });
    for node in [&a, &b] {
        node.faults().drop(Target::All, 0.05);
        node.faults().delay(Target::All, Duration::from_millis(2));
    }
    for n in 0..5_000 {
        a.tell("b", "numbers", &Number(n)).expect("room");
    }
    for n in 0..5_000 {
        assert_eq!(within(numbers.recv()).await, Some(n));
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_delay_holds_packets_in_the_direction_set() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    for direction in [Direction::In, Direction::Out] {
        let delay = Duration::from_millis(150);
        a.faults().delay_way("b", direction, delay);
        let asked = Instant::now();
        assert!(echo(&a, "b", "echo").await.is_ok());
        assert!(asked.elapsed() >= delay, "{:?}", asked.elapsed());
        a.faults().heal("b");
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn every_datagram_is_lost_when_everything_is() {
    let (_ca, a, b) = pair().await;
    let (sender, mut got) = mpsc::unbounded_channel();
    b.serve_datagram("d", move |_, body| {
        let _ = sender.send(body);
    });
    a.faults().drop_way("b", Direction::Out, 1.0);
    for _ in 0..20 {
        a.datagram("b", "d", bytes::Bytes::from_static(b"lost")).expect("connected");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.faults().heal("b");
    within(async {
        loop {
            a.datagram("b", "d", bytes::Bytes::from_static(b"found")).expect("connected");
            tokio::time::sleep(Duration::from_millis(5)).await;
            if let Ok(body) = got.try_recv() {
                assert_eq!(&body[..], b"found");
                return;
            }
        }
    })
    .await;
    close(&[&a, &b]).await;
}
