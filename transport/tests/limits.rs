//! Everything that a peer can send or make a node hold, each up to its bound by a client without manners, while the node's
//! other peers are served.

mod support;
#[path = "support/worker.rs"]
mod worker;

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use phalanx_actors::{Exit, Restart};
use phalanx_transport::{Direction, server_name};
use quinn::{ConnectionError, Endpoint, VarInt};
use support::{evil::*, *};
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use worker::{Do, crew, exit};

/// No silent client is lost before the test is over.
const LONG_MS: u64 = 3_600_000;

/// How much fits, and then no more: gives up when nothing was taken for so long.
const STALL: Duration = Duration::from_millis(300);

/// A client that takes nothing of what it is sent beyond this.
fn deaf(ca: &Ca, window_bytes: u32) -> Dial {
    let mut dial = Dial::new(ca);
    dial.quic.stream_receive_window(window_bytes.into());
    dial
}

#[tokio::test]
async fn silent_handshakes_of_one_address_leave_places_for_the_others() {
    let (ca, node, decent) = scene_with(|config| {
        config.limits.handshakes = 16;
        config.limits.handshakes_per_address = 4;
        config.timings.connect_timeout_ms = LONG_MS;
        config.timings.idle_timeout_ms = LONG_MS;
    })
    .await;
    let mut silent = vec![];
    for n in 0..10 {
        let mut dial = Dial::new(&ca);
        dial.from = ([127, 0, 0, 2], 0).into();
        match dial.dial(&ca, &node).await {
            Ok(evil) => silent.push(evil),
            Err(ConnectionError::ConnectionClosed(close)) => {
                assert!(n >= 4 && close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED, "{n}: {close}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(silent.len(), 4);
    // From another address.
    serves(&ca, &node, &decent).await;
    assert!(silent.iter().all(|evil| evil.conn.close_reason().is_none()));
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn silent_handshakes_are_over_after_the_connect_timeout() {
    let (ca, node, decent) = scene_with(|config| {
        config.limits.handshakes = 4;
        config.limits.handshakes_per_address = 4;
        config.timings.connect_timeout_ms = 2_000;
    })
    .await;
    let mut silent = vec![];
    while silent.len() < 4 {
        // One that was too slow to connect has been dropped, as it should be.
        silent.extend(Dial::new(&ca).dial(&ca, &node).await.ok());
    }
    for evil in &silent {
        within(evil.conn.closed()).await;
    }
    assert_eq!(echo(&decent, "a", "echo").await, Ok("b: hello".into()));
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_stranger_without_a_certificate_is_turned_away_and_leaves_nothing() {
    let (ca, node, decent) = scene().await;
    for _ in 0..30 {
        let stranger = Dial { identity: None, ..Dial::new(&ca) };
        let error = match stranger.dial(&ca, &node).await {
            // The client is through before the node has seen that there is no certificate.
            Ok(stranger) => within(stranger.conn.closed()).await,
            Err(error) => error,
        };
        let ConnectionError::ConnectionClosed(close) = error else { panic!("{error}") };
        assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(116), "certificate_required: {close}");
    }
    assert_eq!(node.peers().len(), 1);
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_chain_of_many_certificates_is_refused_and_a_longer_one_not_even_read() {
    let (ca, node, decent) = scene().await;
    let long = |many: usize| {
        let mut identity = ca.node("evil");
        identity.cert_chain.extend((1..many).map(|_| ca.root.clone()));
        Dial { identity: Some(identity), ..Dial::new(&ca) }
    };
    let evil = long(9).dial(&ca, &node).await.expect("signed by the CA");
    let _streams = evil.say(&hello_of_boot(1)).await;
    let told = evil.thrown_out().await;
    assert!(told.contains("a chain of 9 certificates"), "{told}");
    // More than TLS reads of one message, 64 KiB.
    let error = match long(400).dial(&ca, &node).await {
        Ok(evil) => within(evil.conn.closed()).await,
        Err(error) => error,
    };
    let ConnectionError::ConnectionClosed(closed) = &error else { panic!("{error}") };
    let reason = String::from_utf8_lossy(&closed.reason);
    assert!(reason.contains("HandshakePayloadTooLarge"), "{closed}");
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn nothing_is_taken_before_the_handshake_is_over() {
    let (ca, node, decent) = scene().await;
    let config = Dial { resumes: true, ..Dial::new(&ca) }.config(&ca);
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("binds");
    let dial = || endpoint.connect_with(config.clone(), node.local_addr(), &server_name(CLUSTER, "a")).expect("valid");
    for _ in 0..3 {
        let connecting = match dial().into_0rtt() {
            Ok(_) => panic!("0-RTT: whoever replays it would be heard"),
            Err(connecting) => connecting,
        };
        let conn = within(connecting).await.expect("the certificate is valid");
        conn.close(0u32.into(), b"");
    }
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn whoever_does_not_prove_its_address_gets_three_times_what_it_sent_and_no_more_than_a_packet_over() {
    let (ca, node, decent) = scene().await;
    // The client dials a socket of ours, of which one packet goes on to the node, and nothing comes back.
    let front = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let back = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("binds");
    let config = Dial::new(&ca).config(&ca);
    let addr = front.local_addr().expect("bound");
    let connecting = endpoint.connect_with(config, addr, &server_name(CLUSTER, "a")).expect("valid");
    let to = node.local_addr();
    let forwarding = tokio::task::spawn_blocking(move || {
        let mut packet = [0; 2_000];
        let sent = front.recv(&mut packet).expect("the client dials");
        back.send_to(&packet[..sent], to).expect("sends");
        let mut got = back.recv(&mut packet).expect("the node answers");
        back.set_read_timeout(Some(Duration::from_millis(100))).expect("valid");
        // Long enough for several of its repetitions.
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            got += back.recv(&mut packet).unwrap_or(0);
        }
        (sent, got)
    });
    let (sent, got) = forwarding.await.expect("no panic");
    drop(connecting);
    // RFC 9000, section 8.1; quinn lets the packet go out that crosses the line.
    assert!(got > 0 && got <= 3 * sent + 1_452, "{got} bytes for {sent}");
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_node_that_connects_again_and_again_holds_one_connection() {
    let (ca, node, decent) = scene().await;
    let mut evils = vec![];
    for boot in 1..=20 {
        let (evil, _send, _recv) = Evil::connect(&ca, &node).await.welcome(&hello_of_boot(boot)).await;
        evils.push((evil, _send, _recv));
    }
    let last = evils.pop().expect("twenty");
    for (evil, ..) in evils {
        assert!(evil.thrown_out().await.contains("replaced"));
    }
    assert!(last.0.conn.close_reason().is_none());
    assert_eq!(node.peers().len(), 2);
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn what_nobody_reads_stays_with_its_sender() {
    const WINDOW: usize = 16 << 10;
    let (ca, node, decent) = scene_with(|config| {
        config.limits.stream_window_bytes = WINDOW as u32;
        config.limits.streams_open = 8;
        config.limits.asks_in_flight = 8;
    })
    .await;
    node.serve_stream("never", |_, _, send, recv| async move {
        let _held = (send, recv);
        std::future::pending().await
    });
    let (evil, _send, _recv) = Evil::welcomed(&ca, &node).await;
    let mut filling = vec![];
    while let Ok(stream) = tokio::time::timeout(STALL, evil.say(&open("never", b"head"))).await {
        filling.push(tokio::spawn(async move {
            let (mut send, recv) = stream;
            let mut written = 0;
            while let Ok(bytes) = tokio::time::timeout(STALL, send.write(&[7; 1_024])).await {
                written += bytes.expect("connected");
            }
            (written, send, recv)
        }));
    }
    let (mut written, mut held) = (0, vec![]);
    for filled in filling {
        let (bytes, send, recv) = within(filled).await.expect("no panic");
        assert!(bytes <= WINDOW, "{bytes} bytes in one stream");
        written += bytes;
        held.push((send, recv));
    }
    // Two times eight, those that are just closing, without the hello's.
    assert!((1..=79).contains(&held.len()), "{} streams", held.len());
    assert!((WINDOW..=79 * WINDOW).contains(&written), "{written} bytes in {} streams", held.len());
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

/// The beginnings of those that wait would fill the window of the connection, did it not hold them all.
#[tokio::test]
async fn requests_and_replies_that_wait_never_keep_those_from_their_end_that_they_wait_for() {
    let (ca, node, decent) = scene_with(|config| {
        config.limits.stream_window_bytes = 16 << 10;
        config.limits.ask_bytes = 100 << 10;
        config.limits.reply_bytes = 100 << 10;
    })
    .await;
    node.serve::<Echo, _, _>("double", |_, Echo(text)| async move { Ok(text) });
    decent.serve::<Echo, _, _>("double", |_, Echo(text)| async move { Ok(text) });
    let text = "x".repeat(60 << 10);
    for (from, to) in [(&decent, "a"), (&node, "b")] {
        let asked: Vec<_> =
            (0..300).map(|_| tokio::spawn(from.ask(to, "double", &Echo(text.clone()), 10 * PATIENCE))).collect();
        for asked in asked {
            match within(asked).await.expect("no panic") {
                Ok(reply) => assert_eq!(reply.len(), text.len()),
                // Replies may be given up, requests may not.
                Err(error) => assert!(error.to_string().contains("wait to be read"), "{error}"),
            }
        }
    }
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn requests_beyond_the_bytes_of_a_peer_wait_unread() {
    let (ca, node, decent) = scene_with(|config| config.limits.ask_bytes = 1 << 20).await;
    let (running, most, gate) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (now, peak, passing) = (running.clone(), most.clone(), gate.clone());
    node.serve::<Echo, _, _>("slow", move |_, _| {
        peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let (now, passing) = (now.clone(), passing.clone());
        async move {
            let _ = passing.acquire().await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(String::new())
        }
    });
    let (evil, _send, _recv) = Evil::welcomed(&ca, &node).await;
    let request = ask("slow", &Echo("x".repeat(250 << 10)));
    let mut asked: Vec<_> = (0..20)
        .map(|_| {
            let (conn, request) = (evil.conn.clone(), request.clone());
            tokio::spawn(async move {
                let (mut send, mut recv) = conn.open_bi().await.expect("open");
                send.write_all(&request).await.expect("taken in the end");
                send.finish().expect("open");
                recv.read_to_end(1_000).await.expect("answered")
            })
        })
        .collect();
    until(|| running.load(Ordering::SeqCst) == 4).await;
    serves(&ca, &node, &decent).await;
    gate.add_permits(1_000);
    for asked in asked.drain(..) {
        within(asked).await.expect("answered");
    }
    assert_eq!(most.load(Ordering::SeqCst), 4);
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_request_that_does_not_come_to_its_end_is_given_up() {
    let (ca, node, decent) = scene_with(|config| config.timings.request_read_ms = 100).await;
    let heard = Arc::new(Semaphore::new(0));
    let hears = heard.clone();
    node.serve::<Number, _, _>("told", move |_, _| {
        hears.add_permits(1);
        async { Ok(()) }
    });
    let (evil, _send, _recv) = Evil::welcomed(&ca, &node).await;
    let request = ask("echo", &Echo("never whole".into()));
    for part in [&request[..3], &request[..20], &request[..request.len() - 1]] {
        let (_send, mut recv) = evil.say(part).await;
        let error = within(recv.read_to_end(100)).await.expect_err("not answered");
        assert!(matches!(error, quinn::ReadToEndError::Read(quinn::ReadError::Reset(_))), "{error}");
    }
    // A tell, for an ask has to be read in time as well.
    decent.tell("a", "told", &Number(1)).expect("connected");
    within(heard.acquire()).await.expect("open").forget();
    assert!(node.is_connected("evil"));
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn replies_that_nobody_reads_are_given_up_beyond_their_bytes() {
    let (ca, node, decent) = scene_with(|config| config.limits.reply_bytes = 256 << 10).await;
    node.serve::<Echo, _, _>("large", |_, _| async { Ok("x".repeat(60 << 10)) });
    let (evil, _send, _recv) =
        deaf(&ca, 1 << 10).dial(&ca, &node).await.expect("valid").welcome(&hello_of_boot(1)).await;
    let mut streams = vec![];
    for _ in 0..40 {
        let (mut send, recv) = evil.say(&ask("large", &Echo("give".into()))).await;
        send.finish().expect("open");
        streams.push(recv);
    }
    until(|| of_evil(&node).sent_messages == 40).await;
    serves(&ca, &node, &decent).await;
    let (mut whole, mut given_up) = (0, 0);
    for mut recv in streams {
        let reply = within(recv.read_to_end(1 << 20)).await.expect("answered");
        match String::from_utf8_lossy(&reply).contains("wait to be read") {
            true => given_up += 1,
            false => whole += usize::from(reply.len() > 60 << 10),
        }
    }
    assert_eq!((whole, given_up), (4, 36));
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn replies_without_end_are_read_a_few_at_a_time() {
    let (ca, node, decent) = scene_with(|config| {
        config.limits.reply_bytes = 4 << 20;
        config.limits.stream_window_bytes = 64 << 10;
    })
    .await;
    let evil = EvilServer::dialed_by(&ca, &node).await;
    let asked: Vec<_> =
        (0..20).map(|_| tokio::spawn(node.ask("evil", "any", &Echo("give".into()), 10 * PATIENCE))).collect();
    // Each reply up to its last byte, as far as it is taken.
    let answer = reply(&"x".repeat((1 << 20) - 1_000));
    let whole = answer.len() - 1;
    let (mut taken, mut streams) = (0, vec![]);
    for _ in &asked {
        let (mut send, recv) = within(evil.conn.accept_bi()).await.expect("asked");
        let mut written = 0;
        while written < whole {
            match tokio::time::timeout(STALL, send.write(&answer[written..whole])).await {
                Ok(bytes) => written += bytes.expect("connected"),
                Err(_) => break,
            }
        }
        taken += written;
        streams.push((send, recv, written));
    }
    // Four are being read; of each other one a window waits unread.
    assert!((1 << 20..=(4 << 20) + 20 * (64 << 10)).contains(&taken), "{taken} bytes");
    serves(&ca, &node, &decent).await;
    // Those that are whole make room for the others.
    let writing: Vec<_> = streams
        .into_iter()
        .map(|(mut send, recv, written)| {
            let rest = answer[written..].to_vec();
            tokio::spawn(async move {
                let _held = recv;
                send.write_all(&rest).await.expect("taken in the end");
                send.finish().expect("open");
                let _ = send.stopped().await;
            })
        })
        .collect();
    for asked in asked {
        assert_eq!(within(asked).await.expect("no panic").map(|reply| reply.len()), Ok((1 << 20) - 1_000));
    }
    for writing in writing {
        within(writing).await.expect("written");
    }
    evil.endpoint.close(0u32.into(), b"");
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn whoever_watches_without_end_and_hears_nothing_is_thrown_out() {
    let (ca, node, decent) = scene_with(|config| config.limits.outbox_bytes = 16 << 10).await;
    let (evil, mut control, _recv) =
        deaf(&ca, 1 << 10).dial(&ca, &node).await.expect("valid").welcome(&hello_of_boot(1)).await;
    // Each is answered by a Down: nothing is there.
    let mut id = 0;
    let flood = async {
        loop {
            let many: Vec<u8> = (0..1_000).flat_map(|n| monitor(id + n, "nothing/there")).collect();
            id += 1_000;
            if control.write_all(&many).await.is_err() {
                return;
            }
        }
    };
    within(flood).await;
    assert!(evil.thrown_out().await.contains("reads nothing of what it watches"));
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_peer_watches_so_much_and_no_more() {
    let (ca, node, decent) = scene_with(|config| config.limits.monitors = 10).await;
    let (evil, mut control, _recv) = Evil::welcomed(&ca, &node).await;
    for id in 0..10 {
        control.write_all(&monitor(id, "echo")).await.expect("open");
    }
    control.write_all(&tell("echo", &Echo("after them".into()))).await.expect("open");
    until(|| of_evil(&node).received_messages == 1).await;
    control.write_all(&monitor(10, "echo")).await.expect("open");
    assert!(evil.thrown_out().await.contains("Monitor frame does not belong here"));
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_peer_links_so_much_and_no_more() {
    let (ca, node, decent) = scene_with(|config| config.limits.links = 3).await;
    let mut crew = crew(&node, Restart::Permanent).await;
    crew.does("top/w", Do::TrapExits).await;
    let to = ("top/w", crew.worker("top/w").pid().id());
    let welcome = hello(1, 3, CLUSTER, "evil");
    let (evil, mut control, _recv) = Evil::connect(&ca, &node).await.welcome(&welcome).await;
    // What is over makes room, however it ends; what is linked already takes none.
    for what in [UNLINK, LINK, EXIT] {
        for n in 0..3 {
            for what in [LINK, what] {
                control.write_all(&signal(what, to, ("own", n))).await.expect("open");
            }
        }
    }
    for _ in 0..3 {
        assert_eq!(crew.next().await, exit("own@evil", Exit::Shutdown));
    }
    for n in 0..3 {
        control.write_all(&signal(LINK, to, ("own", n))).await.expect("open");
    }
    control.write_all(&tell("echo", &Echo("after them".into()))).await.expect("open");
    until(|| of_evil(&node).received_messages == 1).await;
    // One actor of its own with another one here is one more, too.
    let other = ("top/v", crew.worker("top/v").pid().id());
    control.write_all(&signal(LINK, other, ("own", 0))).await.expect("open");
    let told = evil.thrown_out().await;
    assert!(told.contains("more than 3 links"), "{told}");
    for _ in 0..3 {
        assert_eq!(crew.next().await, exit("own@evil", Exit::NoConnection));
    }
    let (evil, mut control, _recv) = Evil::connect(&ca, &node).await.welcome(&welcome).await;
    control.write_all(&signal(LINK, to, (&"p".repeat(1_025), 0))).await.expect("open");
    let told = evil.thrown_out().await;
    assert!(told.contains("path is of 1025 bytes"), "{told}");
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
    crew.system.shutdown().await;
}

/// Each looks through all links of the actor, on the transport's thread: their number is what bounds that.
#[tokio::test]
async fn as_many_links_as_a_peer_may_have_with_one_actor_are_made_and_ended_soon() {
    let (ca, node, decent) = scene().await;
    let crew = crew(&node, Restart::Permanent).await;
    crew.does("top/w", Do::TrapExits).await;
    let to = ("top/w", crew.worker("top/w").pid().id());
    let (evil, mut control, _recv) = Evil::connect(&ca, &node).await.welcome(&hello(1, 3, CLUSTER, "evil")).await;
    let began = Instant::now();
    for what in [LINK, UNLINK] {
        for n in 0..16_384 {
            within(control.write_all(&signal(what, to, ("own", n)))).await.expect("open");
        }
    }
    control.write_all(&tell("echo", &Echo("after them".into()))).await.expect("open");
    until(|| of_evil(&node).received_messages == 1).await;
    // Seconds even where nothing is optimised and the machine is busy.
    assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
    assert!(evil.conn.close_reason().is_none());
    close(&[&node, &decent]).await;
    crew.system.shutdown().await;
}

#[tokio::test]
async fn tells_to_nowhere_are_counted_and_forgotten() {
    let (ca, node, decent) = scene().await;
    let (evil, mut control, _recv) = Evil::welcomed(&ca, &node).await;
    let mut lane = evil.conn.open_uni().await.expect("the first");
    for n in 0..5_000 {
        let path = format!("nowhere/{n}");
        let told = tell(&path, &Echo("lost".into()));
        let lane = if n % 2 == 0 { &mut lane } else { &mut control };
        within(lane.write_all(&told)).await.expect("open");
    }
    until(|| of_evil(&node).dropped_messages == 5_000).await;
    assert!(node.is_connected("evil"));
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn a_flood_of_tells_to_a_stuck_path_is_dropped_and_starves_nobody() {
    let (ca, node, decent) = scene_with(|config| {
        config.limits.inboxes_bytes = 256 << 10;
        config.timings.inbox_wait_ms = 20;
    })
    .await;
    node.serve::<Echo, _, _>("stuck", |_, _| std::future::pending());
    let (evil, _control, _recv) = Evil::welcomed(&ca, &node).await;
    let mut lane = evil.conn.open_uni().await.expect("the first");
    let told = tell("stuck", &Echo("x".repeat(1_000)));
    for _ in 0..4_000 {
        within(lane.write_all(&told)).await.expect("open");
    }
    // Its own other paths go on.
    within(lane.write_all(&tell("echo", &Echo("small".into())))).await.expect("open");
    until(|| of_evil(&node).received_messages == 4_001).await;
    // At 1,500 bytes each with what they cost, one being handled.
    let kept = 4_001 - of_evil(&node).dropped_messages;
    assert!((150..=180).contains(&kept), "{kept} kept");
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

/// Everything that a peer can say about the room in its inboxes, and has no reason to say.
fn lies(path: &str) -> Vec<u8> {
    let windows = [(0, 0), (u32::MAX, u64::MAX), (1, u64::MAX), (u32::MAX, 1)];
    let credits = [(u32::MAX, u64::MAX), (u32::MAX, 0), (0, u64::MAX), (0, 0), (1_000, 1_000)];
    let windows = windows.into_iter().map(|(messages, bytes)| window(messages, bytes));
    let credits = credits.into_iter().flat_map(|(messages, bytes)| {
        [path, "never/told", ""].into_iter().map(move |path| credit(path, messages, bytes))
    });
    windows.chain(credits).flatten().collect()
}

#[tokio::test]
async fn credit_for_what_it_does_not_read_makes_a_node_hold_no_more() {
    const OUTBOX_BYTES: usize = 64 << 10;
    for first in [window(0, 0), window(40, 4 << 10), window(u32::MAX, u64::MAX)] {
        let (ca, node, decent) = scene_with(|config| config.limits.outbox_bytes = OUTBOX_BYTES).await;
        let (evil, mut control, _recv) =
            deaf(&ca, 1 << 10).dial(&ca, &node).await.expect("valid").welcome(&hello_of_boot(1)).await;
        control.write_all(&first).await.expect("open");
        let told = Echo("x".repeat(1_000));
        let mut held = 0;
        for round in 1..=100 {
            for _ in 0..20 {
                held += node.tell("evil", "p", &told).map_or(0, |()| 1_000);
            }
            control.write_all(&lies("p")).await.expect("open");
            // Whatever comes after them on their lane.
            control.write_all(&tell("nowhere", &Echo("seen".into()))).await.expect("open");
            until(|| of_evil(&node).received_messages == round).await;
        }
        // What waits to be written, what waits for credit, and what fits into the stream.
        let most = 2 * OUTBOX_BYTES + (2 << 10);
        assert!((OUTBOX_BYTES * 9 / 10..=most).contains(&held), "{held} bytes held");
        // Its other lane, and everybody else.
        node.tell_control("evil", "p", &told).expect("room");
        assert!(evil.conn.close_reason().is_none() && node.is_connected("evil"));
        serves(&ca, &node, &decent).await;
        close(&[&node, &decent]).await;
    }
}

#[tokio::test]
async fn a_path_that_is_given_no_credit_or_too_much_of_it_stops_no_other() {
    let (ca, node, decent) = scene_with(|config| config.limits.outbox_messages = 50).await;
    let (evil, mut control, _recv) = Evil::welcomed(&ca, &node).await;
    // A window of one message, and then never anything for `stuck`.
    control.write_all(&window(0, 0)).await.expect("open");
    control.write_all(&tell("nowhere", &Echo("seen".into()))).await.expect("open");
    until(|| of_evil(&node).received_messages == 1).await;
    let told = (0..200).filter(|n| node.tell("evil", "stuck", &Number(*n)).is_ok()).count();
    // On its way, and held: as much as it leaves to the others.
    assert_eq!(told, 26);
    let mut lane = within(evil.conn.accept_uni()).await.expect("told");
    for n in 0..100u64 {
        within(async {
            while node.tell("evil", "quick", &Number(n)).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        // Credit for what was not told yet, and more than there was.
        let credits = [credit("quick", u32::MAX, u64::MAX), credit("never/told", 1, 1)].concat();
        control.write_all(&credits).await.expect("open");
    }
    let mut expected = tell("stuck", &Number(0));
    expected.extend((0..100).flat_map(|n| tell("quick", &Number(n))));
    let mut read = vec![0; expected.len()];
    within(lane.read_exact(&mut read)).await.expect("open");
    assert_eq!(read, expected);
    // At last.
    for _ in 0..25 {
        control.write_all(&credit("stuck", 1, 1)).await.expect("open");
    }
    let expected: Vec<u8> = (1..26).flat_map(|n| tell("stuck", &Number(n))).collect();
    let mut read = vec![0; expected.len()];
    within(lane.read_exact(&mut read)).await.expect("open");
    assert_eq!(read, expected);
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn tells_by_numbers_go_where_the_numbers_say_and_no_more_are_kept_than_the_limit() {
    let (ca, node, decent) = scene().await;
    let (evil, _control, _recv) = Evil::welcomed(&ca, &node).await;
    let (told, mut said) = tokio::sync::mpsc::unbounded_channel();
    node.serve::<Echo, _, _>("said", move |_, Echo(text)| {
        let told = told.clone();
        async move { told.send(text).map(|()| String::new()).map_err(|e| e.to_string()) }
    });
    let mut lane = evil.conn.open_uni().await.expect("the first");
    for number in 0..8_192 {
        let path = if number % 2 == 0 { "said" } else { "nowhere" };
        within(lane.write_all(&route(number, path))).await.expect("open");
    }
    for number in [8_190, 8_191, 0] {
        within(lane.write_all(&routed(number, &Echo(number.to_string())))).await.expect("open");
    }
    assert_eq!([within(said.recv()).await, within(said.recv()).await], [Some("8190".into()), Some("0".into())]);
    until(|| of_evil(&node).dropped_messages == 1).await;
    within(lane.write_all(&route(8_192, "said"))).await.expect("open");
    let told = evil.thrown_out().await;
    assert!(told.contains("route 8192") && told.contains("one too many"), "{told}");
    serves(&ca, &node, &decent).await;
    // The same for their texts.
    let (evil, _control, _recv) = Evil::welcomed(&ca, &node).await;
    let mut lane = evil.conn.open_uni().await.expect("the first");
    let long = "p".repeat(512);
    for number in 0..2_100 {
        // The last ones may come after the end.
        let _ = within(lane.write_all(&route(number, &long))).await;
    }
    let told = evil.thrown_out().await;
    let per_route = 512 + <Echo as phalanx_transport::Remote>::NAME.len();
    assert!(told.contains(&format!("route {} is not", (1 << 20) / per_route)), "{told}");
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

#[tokio::test]
async fn names_that_are_too_long_cost_the_connection() {
    let (ca, node, decent) = scene().await;
    let (long, longest) = ("p".repeat(513), "p".repeat(512));
    let told = |bytes: Vec<u8>, control: bool| {
        let (ca, node) = (&ca, &node);
        async move {
            let (evil, mut lane, _recv) = Evil::welcomed(ca, node).await;
            let mut uni = evil.conn.open_uni().await.expect("the first");
            let lane = if control { &mut lane } else { &mut uni };
            within(lane.write_all(&bytes)).await.expect("open");
            evil.thrown_out().await
        }
    };
    let too_long = "path or message name of 513 bytes, the limit is 512";
    for (bytes, control) in [
        (tell(&long, &Echo("x".into())), false),
        (tell(&long, &Echo("x".into())), true),
        (route(0, &long), false),
        (monitor(1, &long), true),
    ] {
        assert_eq!(told(bytes, control).await, too_long);
    }
    for request in [ask(&long, &Echo("x".into())), open(&long, b"")] {
        let (evil, _control, _recv) = Evil::welcomed(&ca, &node).await;
        let (mut send, _reply) = evil.conn.open_bi().await.expect("open");
        within(send.write_all(&request)).await.expect("open");
        assert_eq!(evil.thrown_out().await, too_long);
    }
    // Nor is one sent.
    let sent = decent.tell("a", &long, &Echo("x".into()));
    assert!(matches!(sent, Err(phalanx_transport::SendError::TooLarge { bytes: 513, limit: 512 })), "{sent:?}");
    let asked = within(decent.ask("a", &long, &Echo("x".into()), PATIENCE)).await;
    assert!(matches!(asked, Err(phalanx_transport::AskError::TooLarge { bytes: 513, limit: 512 })), "{asked:?}");
    assert_eq!(within(decent.monitor("a", &long)).await.reason, phalanx_actors::Exit::NoConnection);
    assert_eq!(decent.tell("a", &longest, &Echo("x".into())), Ok(()));
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}

/// Sends so many datagrams of 1,000 bytes while the transport's thread is held up; the numbers of those that are handled then.
async fn heard_of_a_burst(datagram_bytes: usize, burst: u64) -> Vec<u64> {
    let (ca, node, decent) = scene_with(|config| config.limits.datagram_bytes = datagram_bytes).await;
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, held_up) = std::sync::mpsc::channel();
    let held_up = parking_lot::Mutex::new(held_up);
    node.serve_datagram("numbers", move |_, body| {
        let number = body.first_chunk().map(|number| u64::from_be_bytes(*number)).expect("long enough");
        heard.send(number).expect("the test goes on");
        if number == 0 {
            held_up.lock().recv_timeout(PATIENCE).expect("let go");
        }
    });
    let mut dial = Dial::new(&ca);
    // All of it goes out, though nothing is acknowledged meanwhile.
    let mut unchecked = quinn::congestion::CubicConfig::default();
    unchecked.initial_window(1 << 20);
    dial.quic.congestion_controller_factory(Arc::new(unchecked));
    let (evil, _send, _recv) = dial.dial(&ca, &node).await.expect("valid").welcome(&hello_of_boot(1)).await;
    let send = |number: u64| {
        let mut bytes = datagram("numbers", &number.to_be_bytes());
        bytes.resize(1_000, 0);
        evil.conn.send_datagram(bytes.into()).expect("connected");
    };
    send(0);
    assert_eq!(within(hears.recv()).await, Some(0));
    (1..=burst).for_each(send);
    until(|| evil.conn.stats().frame_tx.datagram > burst).await;
    go_on.send(()).expect("waited for");
    let mut numbers = vec![];
    while numbers.last() != Some(&burst) {
        numbers.extend(within(hears.recv()).await);
    }
    serves(&ca, &node, &decent).await;
    assert!(node.is_connected("evil"));
    evil.conn.close(VarInt::from_u32(0), b"");
    close(&[&node, &decent]).await;
    numbers
}

#[tokio::test]
async fn a_flood_of_datagrams_costs_datagrams() {
    // Few enough for the buffer of the socket, and more than are read from it in one go.
    const BURST: u64 = 40;
    let all: Vec<u64> = (1..=BURST).collect();
    assert_eq!(heard_of_a_burst(128 << 10, BURST).await, all);
    // Room for eight of them, each with what it costs to keep.
    let heard = heard_of_a_burst(8 * 1_064, BURST).await;
    assert!(heard.len() <= 24, "{heard:?}");
    assert!(heard.is_sorted() && heard.ends_with(&all[all.len() - 7..]), "the oldest are dropped: {heard:?}");
}

#[tokio::test]
async fn what_is_not_acknowledged_is_as_much_as_the_windows_and_no_more() {
    const WINDOW: usize = 16 << 10;
    const REPLIES: usize = 64 << 10;
    let (ca, node, decent) = scene_with(|config| {
        config.limits.stream_window_bytes = WINDOW as u32;
        config.limits.streams_open = 8;
        config.limits.reply_bytes = REPLIES;
        config.timings.idle_timeout_ms = LONG_MS;
    })
    .await;
    // It reads whatever comes.
    decent.serve_stream("read", |_, _, send, mut recv| async move {
        let _held = send;
        let _ = tokio::io::copy(&mut recv, &mut tokio::io::sink()).await;
    });
    let mut streams = vec![];
    for _ in 0..4 {
        streams.push(within(node.open_stream("b", "read", bytes::Bytes::new())).await.expect("served"));
    }
    // The peer hears everything, and is never heard.
    node.faults().cut("b", Direction::In);
    let mut written = 0;
    for (send, _recv) in &mut streams {
        while let Ok(taken) = tokio::time::timeout(STALL, send.write(&[7; 1_024])).await {
            written += taken.expect("connected");
        }
    }
    assert!((5 * WINDOW..=10 * WINDOW + REPLIES).contains(&written), "{written} bytes");
    node.faults().heal("b");
    for (send, _recv) in &mut streams {
        within(send.write_all(&[7; 4 * WINDOW])).await.expect("goes on");
    }
    drop(streams);
    serves(&ca, &node, &decent).await;
    close(&[&node, &decent]).await;
}
