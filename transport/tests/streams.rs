//! Streams for large bodies: whole or broken, never short; and they hold up nobody else.

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use phalanx_transport::{AskError, Exit, RecvStream, SendStream, Transport};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc},
};

const MIB: usize = 1 << 20;

/// Byte `i` of a test body.
fn pattern(i: usize) -> u8 {
    (i / 7 % 251) as u8
}

async fn write_pattern(send: &mut SendStream, bytes: usize) -> std::io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let end = (at + 100_000).min(bytes);
        let piece: Vec<u8> = (at..end).map(pattern).collect();
        send.write_all(&piece).await?;
        at = end;
    }
    send.finish().await
}

async fn read_pattern(recv: &mut RecvStream) -> std::io::Result<usize> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let n = recv.read(&mut buffer).await?;
        if n == 0 {
            return Ok(at);
        }
        assert!(buffer[..n].iter().enumerate().all(|(i, byte)| *byte == pattern(at + i)));
        at += n;
    }
}

/// Serves a sink at `sink` that answers with the size of the body, and reads only once the gate is open.
fn serve_sink(transport: &Transport) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    transport.serve_stream("sink", move |peer, header, mut send, mut recv| {
        let gate = opened.clone();
        async move {
            assert_eq!((&*peer.node, &header[..]), ("a", &b"header"[..]));
            let Ok(permit) = gate.acquire().await else { return };
            permit.forget();
            let read = read_pattern(&mut recv).await.expect("whole");
            send.write_u64(read as u64).await.expect("open");
            send.finish().await.expect("open");
        }
    });
    gate
}

async fn open(from: &Transport, to: &str, path: &str) -> (SendStream, RecvStream) {
    within(from.open_stream(to, path, Bytes::from_static(b"header"))).await.expect("served")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_arrive_whole() {
    let (_ca, a, b) = pair().await;
    serve_sink(&b).add_permits(1);
    let (mut send, mut recv) = open(&a, "b", "sink").await;
    within(write_pattern(&mut send, 64 * MIB)).await.expect("taken");
    assert_eq!(within(recv.read_u64()).await.expect("answered"), 64 * MIB as u64);
    close(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asks_monitors_and_datagrams_pass_bodies_that_nobody_reads() {
    let (_ca, a, b) = pair().await;
    let gate = serve_sink(&b);
    serve_echo(&b, "echo");
    let mut writers = tokio::task::JoinSet::new();
    // Every stream that may be open, each with more than its window.
    for _ in 0..64 {
        let (mut send, mut recv) = open(&a, "b", "sink").await;
        writers.spawn(async move {
            write_pattern(&mut send, MIB).await.expect("taken");
            recv.read_u64().await.expect("answered")
        });
    }
    // All of them come to a standstill.
    let mut before = 0;
    within(async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = a.peers()[0].sent_bytes;
            if now > 30 * MIB as u64 && now - before < 100_000 {
                return;
            }
            before = now;
        }
    })
    .await;
    for _ in 0..100 {
        assert!(echo(&a, "b", "echo").await.is_ok());
    }
    let monitor = a.monitor("b", "echo");
    // Ordered after it on the same lane, so once this is answered the first is set.
    within(a.monitor("b", "nothing")).await;
    b.unserve("echo");
    assert!(matches!(within(monitor).await.reason, Exit::Shutdown));
    let (sender, mut got) = mpsc::unbounded_channel();
    b.serve_datagram("d", move |_, body| {
        let _ = sender.send(body);
    });
    within(async {
        loop {
            a.datagram("b", "d", Bytes::from_static(b"x")).expect("connected");
            if tokio::time::timeout(Duration::from_millis(100), got.recv()).await.is_ok() {
                return;
            }
        }
    })
    .await;
    gate.add_permits(64);
    while let Some(read) = within(writers.join_next()).await {
        assert_eq!(read.expect("no panic"), MIB as u64);
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn an_unserved_path_is_said_so() {
    let (_ca, a, b) = pair().await;
    for node in ["a", "b"] {
        let error = within(a.open_stream(node, "nothing", Bytes::new())).await.expect_err("not served");
        assert_eq!(error, AskError::NoProc { node: node.into(), path: "nothing".into() });
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_half_dropped_before_its_end_is_an_error_for_the_other_side_not_a_short_body() {
    let (_ca, a, b) = pair().await;
    for node in [&a, &b] {
        node.serve_stream("breaks", |_, _, mut send, _| async move {
            send.write_all(b"half").await.expect("open");
        });
        node.serve_stream("panics", |_, _, _send, _| async move { panic!("in the middle") });
    }
    for node in ["a", "b"] {
        for path in ["breaks", "panics"] {
            // Broken off so early that even the opener may hear of it.
            let opened = within(a.open_stream(node, path, Bytes::new())).await;
            if let Ok((_send, mut recv)) = opened {
                assert!(within(recv.read_to_end(100)).await.is_err(), "{path} on {node}");
            }
        }
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_reader_that_goes_away_stops_the_writer() {
    let (_ca, a, b) = pair().await;
    for node in [&a, &b] {
        node.serve_stream("deaf", |_, _, send, recv| async move {
            drop(recv);
            // The other direction is still open.
            let _send = send;
            std::future::pending::<()>().await;
        });
    }
    for node in ["a", "b"] {
        let (mut send, _recv) = open(&a, node, "deaf").await;
        assert!(within(write_pattern(&mut send, 64 * MIB)).await.is_err(), "{node}");
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_stream_to_oneself_is_like_any_other() {
    let ca = Ca::new();
    let a = ca.start("a", 1);
    serve_sink(&a).add_permits(1);
    let (mut send, mut recv) = open(&a, "a", "sink").await;
    within(write_pattern(&mut send, MIB)).await.expect("taken");
    assert_eq!(within(recv.read_u64()).await.expect("answered"), MIB as u64);
    close(&[&a]).await;
}

#[tokio::test]
async fn a_lost_connection_breaks_its_streams() {
    let (_ca, a, b) = pair().await;
    let _gate = serve_sink(&b);
    let (mut send, mut recv) = open(&a, "b", "sink").await;
    send.write_all(b"x").await.expect("open");
    close(&[&b]).await;
    assert!(within(recv.read_to_end(100)).await.is_err());
    close(&[&a]).await;
}

#[tokio::test]
async fn what_a_handler_writes_at_once_arrives_whole_also_when_neither_side_keeps_the_other_half() {
    let (_ca, a, b) = pair().await;
    b.serve_stream("source", |_, _, mut send, recv| async move {
        // The opener learns that nobody reads.
        drop(recv);
        // With what tells it that the stream is served, and later.
        write_pattern(&mut send, 1_000).await.expect("open");
    });
    b.serve_stream("late", |_, _, mut send, recv| async move {
        drop(recv);
        tokio::time::sleep(Duration::from_millis(50)).await;
        write_pattern(&mut send, 1_000).await.expect("open");
    });
    for path in ["source", "source", "source", "late"] {
        let (send, mut recv) = within(a.open_stream("b", path, Bytes::new())).await.expect("served");
        drop(send);
        assert_eq!(within(read_pattern(&mut recv)).await.expect("whole"), 1_000, "{path}");
    }
    // And a handler whose opener reads nothing goes on to read.
    let (done, mut said) = mpsc::unbounded_channel();
    b.serve_stream("deaf", move |_, _, send, mut recv| {
        let done = done.clone();
        async move {
            let _held = send;
            let read = read_pattern(&mut recv).await.expect("whole");
            // The test goes on.
            let _ = done.send(read);
        }
    });
    let (mut send, recv) = within(a.open_stream("b", "deaf", Bytes::new())).await.expect("served");
    drop(recv);
    tokio::time::sleep(Duration::from_millis(50)).await;
    write_pattern(&mut send, 1_000).await.expect("open");
    assert_eq!(within(said.recv()).await, Some(1_000));
    close(&[&a, &b]).await;
}
