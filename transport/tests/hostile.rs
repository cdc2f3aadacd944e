//! Peers that send garbage: each loses its own connection, with a reason, and the node lives on.

mod support;

use std::{net::UdpSocket, time::Duration};

use phalanx_transport::{LossReason, PeerEvent, Refusal, Transport};
use support::{evil::*, *};

#[tokio::test]
async fn a_hello_that_is_none_is_refused() {
    let (ca, node, decent) = scene().await;
    for (bytes, reason) in [
        (&FOUR_GIGABYTES[..], "frame of 4294967295 bytes announced, the limit is 4096"),
        (b"GET / HTTP/1.1\r\n\r\n", "bytes announced"),
        (&frame(1, b"\xc1\xc1\xc1"), "Hello frame cannot be read"),
        (&frame(6, &[]), "does not belong here"),
        (&[0, 0, 0, 2, 77, 1], "frame of version 77"),
        (&hello(7, 9, CLUSTER, "evil"), "speaks protocol versions 7 to 9, this node 1 to 3"),
        (&hello(1, 1, "other", "evil"), "belongs to cluster other, this is test"),
        (&hello(1, 1, CLUSTER, "b"), "calls itself b, expected evil"),
    ] {
        let mut events = node.events();
        let evil = Evil::connect(&ca, &node).await;
        let _streams = evil.say(bytes).await;
        let told = evil.thrown_out().await;
        assert!(told.contains(reason), "{told}");
        match event(&mut events, |_| true).await {
            PeerEvent::Refused { node, reason: refusal, .. } => {
                assert_eq!(node.as_deref(), Some("evil"));
                assert_eq!(refusal.to_string(), told);
            }
            other => panic!("{other:?}"),
        }
    }
    lives_on(&node, &decent).await;
}

#[tokio::test]
async fn a_peer_that_never_says_hello_is_dropped() {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.timings.connect_timeout_ms = 300;
    let node = Transport::start(config).expect("starts");
    let evil = Evil::connect(&ca, &node).await;
    within(evil.conn.closed()).await;
    assert_eq!(node.peers(), []);
    close(&[&node]).await;
}

#[derive(Clone, Copy, Debug)]
enum Lane {
    Control,
    Tells,
    Request,
}

#[tokio::test]
async fn garbage_on_any_lane_closes_that_connection_with_a_reason() {
    let (ca, node, decent) = scene().await;
    let truncated = &frame(6, &[0; 100])[..50];
    let bad_tell = frame(6, b"\x94garbage");
    let second_hello = hello(1, 1, CLUSTER, "evil");
    let skipped_route = route(1, "echo");
    let on_tells = |lane: &Lane, reason| if matches!(lane, Lane::Tells) { reason } else { "not belong" };
    for lane in [Lane::Control, Lane::Tells, Lane::Request] {
        for (bytes, reason) in [
            (&FOUR_GIGABYTES[..], "frame of 4294967295 bytes announced, the limit is 4194304"),
            (&[0, 0, 0, 0, 1, 6], "too short"),
            (&[0, 0, 0, 9, 1, 99], "unknown frame kind 99"),
            (&[0xde; 64], "bytes announced"),
            (truncated, if matches!(lane, Lane::Request) { "not belong" } else { "ended inside a frame" }),
            (&bad_tell, if matches!(lane, Lane::Request) { "not belong" } else { "cannot be read" }),
            (&second_hello, "does not belong here"),
            (&frame(13, &[0, 0, 0, 7]), on_tells(&lane, "route 7 is not one that was announced")),
            (&frame(13, &[0, 0]), on_tells(&lane, "too short")),
            (&frame(14, &[0; 30]), on_tells(&lane, "too short")),
            (&skipped_route, on_tells(&lane, "route 1 is not one that was announced, or announced out of turn")),
            (&frame(7, b"\x95"), if matches!(lane, Lane::Request) { "cannot be read" } else { "not belong" }),
        ] {
            let mut events = node.events();
            let (evil, mut control, _recv) = Evil::welcomed(&ca, &node).await;
            let mut uni;
            let mut bi;
            let stream = match lane {
                Lane::Control => &mut control,
                Lane::Tells => {
                    uni = evil.conn.open_uni().await.expect("open");
                    &mut uni
                }
                Lane::Request => {
                    bi = evil.conn.open_bi().await.expect("open");
                    &mut bi.0
                }
            };
            stream.write_all(bytes).await.expect("open");
            stream.finish().expect("open");
            let told = evil.thrown_out().await;
            assert!(told.contains(reason), "{lane:?} {bytes:?}: {told}");
            let lost = event(&mut events, |event| matches!(event, PeerEvent::Down { .. })).await;
            assert!(
                matches!(&lost, PeerEvent::Down { reason: LossReason::Protocol(text), .. } if *text == told),
                "{lost:?}"
            );
        }
    }
    lives_on(&node, &decent).await;
}

#[tokio::test]
async fn a_certificate_shown_without_its_key_costs_the_connection() {
    let (ca, node, decent) = scene().await;
    // b's certificate is no secret, and neither is evil's own of another connection.
    for (stolen, reason) in [
        (ca.node("b").cert_chain, "not to be believed"),
        (ca.node("evil").cert_chain, "not to be believed"),
        (vec![], "no certificate"),
    ] {
        let chain: Vec<_> = stolen.iter().map(|der| serde_bytes::Bytes::new(der)).collect();
        let proof = rmp_serde::to_vec(&(chain, 0x0403u16, serde_bytes::Bytes::new(&[7; 70]))).expect("encodes");
        let (evil, mut control, _recv) = Evil::welcomed(&ca, &node).await;
        control.write_all(&frame(10, &proof)).await.expect("open");
        let told = evil.thrown_out().await;
        assert!(told.contains(reason), "{told}");
    }
    lives_on(&node, &decent).await;
}

#[tokio::test]
async fn a_peer_cannot_open_more_streams_than_it_may() {
    let (ca, node, decent) = scene().await;
    let (evil, _send, _recv) = Evil::welcomed(&ca, &node).await;
    let mut open = vec![];
    // Half a request each, so that none ends.
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(500), evil.conn.open_bi()).await {
        let (mut send, recv) = stream;
        send.write_all(&[0, 0, 1]).await.expect("open");
        open.push((send, recv));
        assert!(open.len() < 640, "one more than it may, with the hello's");
    }
    // 512 asks, 64 bodies and 64 that are just closing, less the hello's, which is open still.
    assert_eq!(open.len(), 639);
    let _uni = evil.conn.open_uni().await.expect("the first");
    let second = tokio::time::timeout(Duration::from_millis(100), evil.conn.open_uni()).await;
    assert!(second.is_err());
    assert!(node.is_connected("evil"));
    lives_on(&node, &decent).await;
}

#[tokio::test]
async fn udp_garbage_is_ignored() {
    let (_ca, node, decent) = scene().await;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let mut events = node.events();
    for i in 0..2_000u32 {
        let len = (i % 1_400) as usize;
        let mut packet: Vec<u8> = (0..len).map(|j| (i.wrapping_mul(2_654_435_761) >> (j % 24)) as u8).collect();
        if let (Some(first), 0) = (packet.first_mut(), i % 3) {
            // Looks like an Initial.
            *first = 0xc3;
        }
        socket.send_to(&packet, node.local_addr()).expect("sends");
    }
    assert_eq!(echo(&decent, "a", "echo").await, Ok("b: hello".into()));
    assert_eq!(events_so_far(&mut events), []);
    lives_on(&node, &decent).await;
}

#[tokio::test]
async fn a_garbage_datagram_is_dropped_and_counted() {
    let (ca, node, decent) = scene().await;
    let (evil, _send, _recv) = Evil::welcomed(&ca, &node).await;
    let dropped = || {
        let peers = node.peers();
        peers.iter().find(|peer| &*peer.node == "evil").map_or(0, |peer| peer.dropped_messages)
    };
    within(async {
        while dropped() == 0 {
            evil.conn.send_datagram(vec![0xde; 40].into()).expect("connected");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(node.is_connected("evil"));
    lives_on(&node, &decent).await;
}

#[tokio::test]
async fn a_peer_beyond_the_limit_is_refused() {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.limits.peers = 1;
    let node = Transport::start(config).expect("starts");
    let decent = ca.start("b", 1);
    connect(&decent, &node).await;
    serve_echo(&node, "echo");
    let mut events = node.events();
    let evil = Evil::connect(&ca, &node).await;
    let _streams = evil.say(&hello(1, 1, CLUSTER, "evil")).await;
    assert!(evil.thrown_out().await.contains("more than 1 peers"));
    let refused = event(&mut events, |_| true).await;
    assert!(matches!(refused, PeerEvent::Refused { reason: Refusal::TooManyPeers(1), .. }), "{refused:?}");
    lives_on(&node, &decent).await;
}
