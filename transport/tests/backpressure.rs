//! A slow receiver slows its senders, not its neighbours: in virtual time, so by what happened and not by how long it took.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use phalanx_transport::{Exit, Remote, SendError};
use phalanx_transport_sim::{Node, Stage, addr};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Messages that an inbox and an outbox hold here.
const INBOX_MESSAGES: usize = 16;
const OUTBOX_MESSAGES: usize = 64;

/// What a slow receiver needs for one message.
const SLOW: Duration = Duration::from_millis(50);

/// Longest round trip on the simulated network, with a timer's tick or two.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(15);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Serialize, Deserialize)]
struct Piece(u64, #[serde(with = "serde_bytes")] Vec<u8>);

impl Remote for Piece {
    const NAME: &'static str = "test/Piece";
    type Reply = u64;
}

/// A kibibyte each, so that a few of them fill a stream's window.
fn piece(n: u64) -> Piece {
    Piece(n, vec![7; 1_024])
}

/// `a` and `c` are connected with `b`, which serves `slow` and `quick`.
fn stage(seed: u64) -> Stage {
    let mut stage = Stage::new(seed, ms(1)..=ms(5));
    stage.configure(|config| {
        config.limits.inbox_messages = INBOX_MESSAGES;
        config.limits.outbox_messages = OUTBOX_MESSAGES;
        config.limits.stream_window_bytes = 32 << 10;
    });
    for name in ["a", "c"] {
        stage.node(name, |node| {
            node.transport.set_peer("b", addr("b"));
            serve(node, "quick", Duration::ZERO);
        });
    }
    stage.node("b", |node| {
        serve(node, "slow", SLOW);
        serve(node, "quick", Duration::ZERO);
    });
    stage.until_noted(0, "a/1: up b/1");
    stage.until_noted(0, "c/1: up b/1");
    stage
}

fn serve(node: &Node, path: &'static str, takes: Duration) {
    let (sender, mut handled) = tokio::sync::mpsc::unbounded_channel();
    node.transport.serve::<Piece, _, _>(path, move |peer, Piece(n, _)| {
        let sender = sender.clone();
        async move {
            tokio::time::sleep(takes).await;
            sender.send((peer.node, n)).map_err(|e| e.to_string())?;
            Ok(n)
        }
    });
    let noter = node.clone();
    node.spawn(async move {
        while let Some((from, n)) = handled.recv().await {
            noter.note(format_args!("{path} handled {n} of {from}"));
        }
    });
}

/// Tells as much as is taken in a second; gives how many that were.
async fn flood(node: Node) -> u64 {
    let (mut told, mut refused) = (0, 0);
    let end = tokio::time::Instant::now() + ms(1_000);
    while tokio::time::Instant::now() < end {
        match node.transport.tell("b", "slow", &piece(told)) {
            Ok(()) => told += 1,
            Err(error) => {
                assert_eq!(error, SendError::Full { node: "b".into() });
                refused += 1;
                tokio::time::sleep(ms(10)).await;
            }
        }
    }
    assert!(refused > 50, "refused only {refused} times");
    told
}

fn tell(numbers: Range<u64>, to: &'static str, path: &'static str) -> impl FnOnce(Node) -> std::future::Ready<()> {
    move |node| {
        numbers.for_each(|n| node.transport.tell(to, path, &piece(n)).expect("room"));
        std::future::ready(())
    }
}

#[test]
fn a_slow_receiver_stops_its_sender_and_loses_nothing_of_what_was_taken() {
    let mut stage = stage(1);
    let told = stage.run("a", flood);
    // What waits for its handler there and for credit here, and what was handled in that second.
    let most = INBOX_MESSAGES + OUTBOX_MESSAGES + 1_000 / 50 + 1;
    assert!(told <= most as u64, "{told} tells were taken, of which {most} had room");
    let mut at = 0;
    for n in 0..told {
        at = stage.until_noted(at, &format!("b/1: slow handled {n} of a"));
    }
    assert_eq!(stage.run("b", |node| async move { node.transport.peers()[0].dropped_messages }), 0);
}

#[test]
fn the_slow_receivers_neighbours_are_not_slowed() {
    let mut stage = stage(2);
    stage.run("a", flood);
    // The sender's own asks, control tells, monitors, streams and datagrams to the same node.
    let took = stage.run("a", |node| async move {
        let begun = tokio::time::Instant::now();
        let asked = node.transport.ask("b", "quick", &piece(1), ms(5_000)).await;
        assert_eq!(asked, Ok(1));
        let ask = begun.elapsed();
        let begun = tokio::time::Instant::now();
        assert_eq!(node.transport.monitor("b", "nothing").await.reason, Exit::NoProc);
        (ask, begun.elapsed())
    });
    assert!(took.0 <= ROUND_TRIP_MAX && took.1 <= ROUND_TRIP_MAX, "{took:?}");
    let (from, begun) = (stage.noted(), stage.elapsed());
    stage.run("a", |node| async move { node.transport.tell_control("b", "quick", &piece(77)).expect("room") });
    stage.until_noted(from, "b/1: quick handled 77 of a");
    assert!(stage.elapsed() - begun <= ROUND_TRIP_MAX, "{:?}", stage.elapsed() - begun);
    // Another sender to the same node, to the same path and to another one; and the sender to another node.
    let (from, begun) = (stage.noted(), stage.elapsed());
    stage.run("c", tell(500..510, "b", "quick"));
    stage.until_noted(from, "b/1: quick handled 509 of c");
    assert!(stage.elapsed() - begun <= ROUND_TRIP_MAX, "{:?}", stage.elapsed() - begun);
    stage.run("c", tell(600..603, "b", "slow"));
    stage.until_noted(from, "b/1: slow handled 602 of c");
    assert!(stage.elapsed() - begun <= SLOW * 3 + ROUND_TRIP_MAX * 2, "{:?}", stage.elapsed() - begun);
}

#[test]
fn a_slow_path_does_not_slow_another_path_of_the_same_sender() {
    let mut stage = stage(3);
    stage.run("a", flood);
    let (from, begun) = (stage.noted(), stage.elapsed());
    stage.run("a", tell(500..510, "b", "quick"));
    stage.until_noted(from, "b/1: quick handled 509 of a");
    assert!(stage.elapsed() - begun <= ROUND_TRIP_MAX, "{:?}", stage.elapsed() - begun);
}

#[test]
fn a_body_that_is_read_slowly_stops_its_writer_and_no_other_body() {
    let mut stage = stage(4);
    stage.run("b", |node| async move {
        let noter = node.clone();
        node.transport.serve_stream("stuck", |_, _, send, recv| async move {
            let _both = (send, recv);
            std::future::pending::<()>().await;
        });
        let (sender, mut bodies) = tokio::sync::mpsc::unbounded_channel();
        node.transport.serve_stream("read", move |_, _, send, mut recv| {
            let sender = sender.clone();
            async move {
                let _send = send;
                let read = recv.read_to_end(1 << 20).await.map(|body| body.len());
                let _ = sender.send(read.unwrap_or(0));
            }
        });
        node.spawn(async move {
            while let Some(read) = bodies.recv().await {
                noter.note(format_args!("read a body of {read}"));
            }
        });
    });
    let written = stage.start("a", |node| async move {
        let (mut send, _recv) = node.transport.open_stream("b", "stuck", Bytes::new()).await.expect("served");
        let mut written = 0;
        while let Ok(()) = tokio::time::timeout(ms(2_000), send.write_all(&[7; 1_024]))
            .await
            .unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
        {
            written += 1_024;
        }
        written
    });
    stage.pass(ms(1_000));
    assert_eq!(written.take(), None);
    let (from, begun) = (stage.noted(), stage.elapsed());
    stage.start("a", |node| async move {
        let (mut send, mut recv) = node.transport.open_stream("b", "read", Bytes::new()).await.expect("served");
        send.write_all(&[7; 100_000]).await.expect("read");
        send.finish().await.expect("read");
        let _ = recv.read_u8().await;
    });
    stage.until_noted(from, "b/1: read a body of 100000");
    assert!(stage.elapsed() - begun <= ms(500), "{:?}", stage.elapsed() - begun);
    stage.until(|_| is_stopped(&written));
}

fn is_stopped(written: &phalanx_transport_sim::Started<usize>) -> bool {
    match written.take() {
        // The receiver's window, but for what the opening took of it.
        Some(bytes) => {
            assert!((16 << 10..=32 << 10).contains(&bytes), "{bytes}");
            true
        }
        None => false,
    }
}
