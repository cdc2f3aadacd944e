//! A slow receiver slows its senders, not its neighbours, and one that stands still for a while loses nothing: in virtual
//! time, so by what happened and not by how long it took. Simulated nodes, run by `cargo test`; must not depend on a clock.

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use phalanx_transport::{Exit, Remote, SendError};
use phalanx_transport_sim::{Node, Stage, addr};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

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
    serve_after(node, path, move || tokio::time::sleep(takes));
}

/// Each message is handled once what `wait` gives has come to its end.
fn serve_after<F>(node: &Node, path: &'static str, wait: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, mut handled) = tokio::sync::mpsc::unbounded_channel();
    node.transport.serve::<Piece, _, _>(path, move |peer, Piece(n, _)| {
        let (sender, waiting) = (sender.clone(), wait());
        async move {
            waiting.await;
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
    let most = INBOX_MESSAGES + OUTBOX_MESSAGES / 2 + 1_000 / 50 + 1;
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

/// `b` serves `still`, where nothing is handled but while it is awake.
fn serve_still(stage: &mut Stage) -> Arc<watch::Sender<bool>> {
    let awake = Arc::new(watch::Sender::new(true));
    let wakes = awake.clone();
    stage.run("b", move |node| {
        serve_after(&node, "still", move || {
            let mut awake = wakes.subscribe();
            async move {
                // The sender lives as long as the path is served.
                let _ = awake.wait_for(|awake| *awake).await;
            }
        });
        std::future::ready(())
    });
    awake
}

/// Nothing reaches `b` for so long, nothing leaves it, and nothing is handled there; then all comes at once.
fn stand_still(stage: &mut Stage, awake: &watch::Sender<bool>, time: Duration) {
    ["a", "c"].iter().for_each(|other| stage.hold("b", other));
    awake.send_replace(false);
    stage.pass(time);
    awake.send_replace(true);
    ["a", "c"].iter().for_each(|other| stage.release("b", other));
}

/// Tells `still` of `b` from `first` on, whatever is taken in this time; gives the next number, and how often it was refused.
async fn tell_for(node: Node, first: u64, time: Duration) -> (u64, usize) {
    let (mut next, mut refused) = (first, 0);
    let end = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < end {
        match node.transport.tell("b", "still", &piece(next)) {
            Ok(()) => next += 1,
            Err(_) => refused += 1,
        }
        tokio::time::sleep(ms(1)).await;
    }
    (next, refused)
}

/// What `b` handled of `a` at `still`, in the order of handling.
fn handled_still(history: &str) -> Vec<u64> {
    let number = |line: &str| line.split_once("b/1: still handled ")?.1.strip_suffix(" of a")?.parse().ok();
    history.lines().filter_map(number).collect()
}

#[test]
fn a_receiver_that_stands_still_for_a_while_handles_everything_in_order_when_it_goes_on() {
    for seed in 5..10 {
        let mut stage = stage(seed);
        let awake = serve_still(&mut stage);
        let (from, mut told) = (stage.noted(), 0);
        // Less than the idle timeout, with what a keep-alive and a packet's way may take of it.
        for still in [30, 150, 400, 650, 650] {
            let telling = stage.start("a", move |node| tell_for(node, told, ms(still + 200)));
            stage.pass(ms(50));
            stage.run("c", tell(0..10, "b", "quick"));
            stand_still(&mut stage, &awake, ms(still));
            let mut done = None;
            stage.until(|_| {
                done = telling.take();
                done.is_some()
            });
            let (next, refused) = done.expect("told");
            // What an inbox holds is on its way, what an outbox holds waits here; the rest waits with who tells.
            let room = INBOX_MESSAGES + OUTBOX_MESSAGES;
            assert!(still as usize <= room || refused > 0, "{still} ms, {} told, none refused", next - told);
            told = next;
        }
        stage.until_noted(from, &format!("still handled {} of a", told - 1));
        let history = stage.history();
        assert_eq!(handled_still(&history), (0..told).collect::<Vec<_>>(), "seed {seed}");
        assert!(!history.contains(": down "), "{history}");
        assert_eq!(history.matches("quick handled 9 of c").count(), 5, "{history}");
        assert_eq!(stage.run("b", |node| async move { node.transport.peers()[0].dropped_messages }), 0);
    }
}

#[test]
fn a_receiver_that_stands_still_for_too_long_loses_the_end_of_that_connection_and_nothing_of_the_next() {
    for seed in 10..15 {
        let mut stage = stage(seed);
        let awake = serve_still(&mut stage);
        let from = stage.noted();
        let telling = stage.start("a", |node| tell_for(node, 0, ms(500)));
        stage.pass(ms(100));
        stand_still(&mut stage, &awake, ms(2_500));
        let (told, refused) = telling.take().expect("told");
        assert!(refused > 0);
        // Before it went on, both had given each other up.
        let down = stage.until_noted(from, "a/1: down b/1");
        stage.until_noted(from, "b/1: down a/1");
        stage.until_noted(down, "a/1: up b/1");
        stage.run("a", tell(1_000..1_040, "b", "still"));
        stage.until_noted(down, "still handled 1039 of a");
        stage.pass(ms(3_000));
        let handled = handled_still(&stage.history());
        let lost = handled.iter().position(|n| *n >= 1_000).expect("the second connection's");
        assert!((50..told as usize).contains(&lost), "seed {seed}: {lost} of {told}");
        assert_eq!(handled[..lost], (0..lost as u64).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(handled[lost..], (1_000..1_040).collect::<Vec<_>>(), "seed {seed}");
    }
}
