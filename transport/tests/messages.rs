//! Tells, asks and datagrams between connected nodes, and to oneself.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use phalanx_transport::{AskError, Remote, SendError, Transport};
use serde::{Deserialize, Serialize};
use support::*;
use tokio::sync::{Notify, Semaphore, mpsc};

/// Serves `Number` at `path` into a channel.
fn collect(transport: &Transport, path: &str) -> mpsc::UnboundedReceiver<u64> {
    let (sender, receiver) = mpsc::unbounded_channel();
    transport.serve::<Number, _, _>(path, move |_, Number(n)| {
        let sender = sender.clone();
        async move {
            // A pause now and then, so that an unordered handling would show.
            if n % 97 == 0 {
                tokio::task::yield_now().await;
            }
            sender.send(n).map_err(|e| e.to_string())
        }
    });
    receiver
}

async fn tell_patiently(from: &Transport, to: &str, path: &str, n: u64) {
    loop {
        match from.tell(to, path, &Number(n)) {
            Ok(()) => return,
            Err(SendError::Full { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tells_are_handled_in_the_order_sent() {
    let (_ca, a, b) = pair().await;
    let mut numbers = collect(&b, "numbers");
    for n in 0..20_000 {
        tell_patiently(&a, "b", "numbers", n).await;
    }
    for n in 0..20_000 {
        assert_eq!(within(numbers.recv()).await, Some(n));
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn both_sides_of_a_connection_ask_each_other_by_name() {
    let (_ca, a, b) = pair().await;
    serve_echo(&a, "echo");
    serve_echo(&b, "echo");
    assert_eq!(echo(&a, "b", "echo").await, Ok("a: hello".into()));
    // b never set a as a peer: the inbound connection is enough.
    assert_eq!(echo(&b, "a", "echo").await, Ok("b: hello".into()));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn ones_own_name_is_answered_without_the_network() {
    let ca = Ca::new();
    let a = ca.start("a", 1);
    serve_echo(&a, "echo");
    let mut numbers = collect(&a, "numbers");
    a.faults().cut(phalanx_transport::Target::All, phalanx_transport::Direction::Both);
    assert_eq!(echo(&a, "a", "echo").await, Ok("a: hello".into()));
    for n in 0..100 {
        a.tell("a", "numbers", &Number(n)).expect("room");
    }
    for n in 0..100 {
        assert_eq!(within(numbers.recv()).await, Some(n));
    }
    let missing = echo(&a, "a", "nothing").await;
    assert_eq!(missing, Err(AskError::NoProc { node: "a".into(), path: "nothing".into() }));
    close(&[&a]).await;
}

#[derive(Serialize, Deserialize)]
struct EchoTwo(String);

impl Remote for EchoTwo {
    const NAME: &'static str = "test/Echo";
    const VERSION: u16 = 2;
    type Reply = String;
}

#[derive(Serialize, Deserialize)]
struct NotAnEcho(Vec<u64>);

impl Remote for NotAnEcho {
    const NAME: &'static str = "test/Echo";
    type Reply = String;
}

#[tokio::test]
async fn the_asker_learns_what_is_wrong_and_the_connection_stays() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    b.serve::<Number, _, _>("fails", |_, Number(n)| async move {
        if n == 0 { panic!("zero") } else { Err(format!("no {n}")) }
    });
    for node in ["b", "a"] {
        // The same without the network.
        if node == "a" {
            serve_echo(&a, "echo");
            a.serve::<Number, _, _>("fails", |_, Number(n)| async move {
                if n == 0 { panic!("zero") } else { Err(format!("no {n}")) }
            });
        }
        assert_eq!(
            echo(&a, node, "nothing").await,
            Err(AskError::NoProc { node: node.into(), path: "nothing".into() })
        );
        let unknown = a.ask(node, "echo", &EchoTwo("hi".into()), PATIENCE).await;
        assert_eq!(
            unknown,
            Err(AskError::UnknownMessage { path: "echo".into(), name: "test/Echo".into(), version: 2 })
        );
        let bad = a.ask(node, "echo", &NotAnEcho(vec![1]), PATIENCE).await;
        assert!(matches!(bad, Err(AskError::BadMessage { .. })), "{bad:?}");
        assert_eq!(a.ask(node, "fails", &Number(7), PATIENCE).await, Err(AskError::Remote("no 7".into())));
        assert_eq!(
            a.ask(node, "fails", &Number(0), PATIENCE).await,
            Err(AskError::Remote("the handler panicked: zero".into()))
        );
        let large = a.ask(node, "echo", &Echo("x".repeat(5 << 20)), PATIENCE).await;
        assert!(matches!(large, Err(AskError::TooLarge { .. })), "{large:?}");
        assert!(echo(&a, node, "echo").await.is_ok());
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_megabyte_goes_both_ways_in_one_ask() {
    let (_ca, a, b) = pair().await;
    serve_echo(&b, "echo");
    let text = "x".repeat(1 << 20);
    let answer = a.ask("b", "echo", &Echo(text.clone()), PATIENCE).await;
    assert_eq!(answer, Ok(format!("a: {text}")));
    close(&[&a, &b]).await;
}

/// Says when it is dropped.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn an_ask_ends_at_its_deadline_and_its_handler_with_it() {
    let (_ca, a, b) = pair().await;
    let dropped = Arc::new(Notify::new());
    let noticed = dropped.clone();
    b.serve::<Number, _, _>("never", move |_, _| {
        let alive = OnDrop(noticed.clone());
        async move {
            let _alive = alive;
            std::future::pending().await
        }
    });
    let answer = a.ask("b", "never", &Number(1), Duration::from_millis(100)).await;
    assert_eq!(answer, Err(AskError::Timeout { node: "b".into(), path: "never".into() }));
    within(dropped.notified()).await;

    let given_up = a.ask("b", "never", &Number(2), PATIENCE);
    let _ = tokio::time::timeout(Duration::from_millis(100), given_up).await;
    within(dropped.notified()).await;
    close(&[&a, &b]).await;
}

/// Counts who is alive; one of them panics when it is dropped.
struct Alive {
    all: Arc<AtomicUsize>,
    panics: bool,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::SeqCst);
        assert!(!self.panics, "on request");
    }
}

#[tokio::test]
async fn of_many_asks_at_once_each_ends_by_itself() {
    let (_ca, a, b) = pair().await;
    let alive = Arc::<AtomicUsize>::default();
    let of = alive.clone();
    b.serve::<Number, _, _>("some", move |_, Number(n)| {
        of.fetch_add(1, Ordering::SeqCst);
        let alive = Alive { all: of.clone(), panics: n == 7 };
        async move {
            let _alive = (n % 2 == 1).then_some(alive);
            match n % 4 {
                0 => {}
                2 => tokio::time::sleep(Duration::from_millis(n % 5)).await,
                _ => std::future::pending().await,
            }
            Ok(())
        }
    });
    // So many that they come in several packets, and more than are handed over together.
    let asks: Vec<_> = (0..300)
        .map(|n| {
            let limit = if n % 4 == 3 { Duration::from_millis(200) } else { PATIENCE };
            tokio::spawn(a.ask("b", "some", &Number(n), limit))
        })
        .collect();
    for (n, ask) in asks.into_iter().enumerate() {
        match n % 4 {
            0 | 2 => assert_eq!(within(ask).await.expect("no panic"), Ok(()), "{n}"),
            // Given up; whoever handles it, too.
            1 => ask.abort(),
            _ => {
                let timed_out = AskError::Timeout { node: "b".into(), path: "some".into() };
                assert_eq!(within(ask).await.expect("no panic"), Err(timed_out), "{n}");
            }
        }
    }
    until(|| alive.load(Ordering::SeqCst) == 0).await;
    assert_eq!(a.ask("b", "some", &Number(0), PATIENCE).await, Ok(()));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn of_many_asks_at_once_none_outlives_the_connection() {
    let (_ca, a, b) = pair().await;
    let alive = Arc::<AtomicUsize>::default();
    let of = alive.clone();
    b.serve::<Number, _, _>("never", move |_, _| {
        of.fetch_add(1, Ordering::SeqCst);
        let alive = Alive { all: of.clone(), panics: false };
        async move {
            let _alive = alive;
            std::future::pending().await
        }
    });
    let asks: Vec<_> = (0..100).map(|n| tokio::spawn(a.ask("b", "never", &Number(n), PATIENCE))).collect();
    until(|| alive.load(Ordering::SeqCst) == 100).await;
    a.remove_peer("b");
    for ask in asks {
        let lost = AskError::NoConnection { node: "b".into() };
        assert_eq!(within(ask).await.expect("no panic"), Err(lost));
    }
    until(|| alive.load(Ordering::SeqCst) == 0).await;
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn an_ask_waits_for_a_connection_and_then_gives_up_without_one() {
    let ca = Ca::new();
    let (a, b) = (ca.start("a", 1), ca.start("b", 1));
    serve_echo(&b, "echo");
    let nobody = a.ask("b", "echo", &Echo("x".into()), Duration::from_millis(50)).await;
    assert_eq!(nobody, Err(AskError::NoConnection { node: "b".into() }));
    let waiting = tokio::spawn(echo_owned(a.clone()));
    tokio::task::yield_now().await;
    b.set_peer("a", a.local_addr());
    assert_eq!(within(waiting).await.expect("no panic"), Ok("a: hello".into()));
    assert_eq!(a.tell("c", "echo", &Number(1)), Err(SendError::NoConnection { node: "c".into() }));
    close(&[&a, &b]).await;
}

async fn echo_owned(a: Transport) -> Result<String, AskError> {
    echo(&a, "b", "echo").await
}

/// Nodes whose queues are short and whose full inbox holds up its lane for `inbox_wait_ms`.
async fn short_queued_pair(inbox_wait_ms: u64) -> (Transport, Transport) {
    let ca = Ca::new();
    let mut config = ca.config("a", 1);
    config.limits.outbox_messages = 100;
    let a = Transport::start(config).expect("starts");
    let mut config = ca.config("b", 1);
    config.limits.inbox_messages = 10;
    config.limits.stream_window_bytes = 4_096;
    config.timings.inbox_wait_ms = inbox_wait_ms;
    let b = Transport::start(config).expect("starts");
    connect(&a, &b).await;
    // Behind the first word of the peer on the same lane, which says what its inboxes hold.
    within(a.monitor("b", "nothing")).await;
    (a, b)
}

/// Serves `Number` at `path`: each is handled when the gate lets it through.
fn gated(transport: &Transport, path: &str) -> (Arc<Semaphore>, mpsc::UnboundedReceiver<u64>) {
    let gate = Arc::new(Semaphore::new(0));
    let (sender, handled) = mpsc::unbounded_channel();
    let opened = gate.clone();
    transport.serve::<Number, _, _>(path, move |_, Number(n)| {
        let (gate, sender) = (opened.clone(), sender.clone());
        async move {
            gate.acquire().await.map_err(|e| e.to_string())?.forget();
            sender.send(n).map_err(|e| e.to_string())
        }
    });
    (gate, handled)
}

#[tokio::test]
async fn a_slow_receiver_fills_the_senders_outbox_and_nothing_taken_is_lost() {
    let (a, b) = short_queued_pair(600_000).await;
    let (gate, mut handled) = gated(&b, "slow");
    let mut taken = 0;
    let full = SendError::Full { node: "b".into() };
    // Full for a while, not only until the writer's next turn.
    let mut refusals = 0;
    within(async {
        while refusals < 100 {
            match a.tell("b", "slow", &Number(taken)) {
                Ok(()) => (taken, refusals) = (taken + 1, 0),
                Err(error) => {
                    assert_eq!(error, full);
                    refusals += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
    })
    .await;
    gate.add_permits(1_000_000);
    for n in 0..taken {
        assert_eq!(within(handled.recv()).await, Some(n));
    }
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_stuck_path_keeps_what_was_told_to_it_and_its_neighbours_go_on() {
    let (a, b) = short_queued_pair(50).await;
    let (gate, mut handled) = gated(&b, "stuck");
    let mut numbers = collect(&b, "numbers");
    let mut taken = 0;
    // More than an inbox holds, until no more is taken.
    while taken < 50 && a.tell("b", "stuck", &Number(taken)).is_ok() {
        taken += 1;
        tokio::task::yield_now().await;
    }
    for n in 0..50 {
        tell_patiently(&a, "b", "numbers", n).await;
    }
    for n in 0..50 {
        assert_eq!(within(numbers.recv()).await, Some(n));
    }
    gate.add_permits(1_000);
    for n in 0..taken {
        assert_eq!(within(handled.recv()).await, Some(n));
    }
    tell_patiently(&a, "b", "stuck", 99).await;
    assert_eq!(within(handled.recv()).await, Some(99));
    assert_eq!(b.peers()[0].dropped_messages, 0);
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn control_tells_pass_a_stuck_handler_of_ordinary_tells() {
    let (_ca, a, b) = pair().await;
    b.serve::<Number, _, _>("stuck", |_, _| async { std::future::pending().await });
    let mut urgent = collect(&b, "urgent");
    for n in 0..1_000 {
        let _ = a.tell("b", "stuck", &Number(n));
    }
    a.tell_control("b", "urgent", &Number(1)).expect("room");
    assert_eq!(within(urgent.recv()).await, Some(1));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn datagrams_arrive_on_the_transport_thread() {
    let (_ca, a, b) = pair().await;
    let (sender, mut got) = mpsc::unbounded_channel();
    for node in [&a, &b] {
        let sender = sender.clone();
        node.serve_datagram("lease", move |peer, body| {
            let thread = std::thread::current().name().map(str::to_owned);
            let _ = sender.send((peer, body, thread));
        });
    }
    for to in ["b", "a"] {
        // Datagrams may be lost, even here.
        let (peer, body, thread) = within(async {
            loop {
                a.datagram(to, "lease", Bytes::from_static(b"42")).expect("connected");
                if let Ok(got) = tokio::time::timeout(Duration::from_millis(200), got.recv()).await {
                    return got.expect("open");
                }
            }
        })
        .await;
        assert_eq!((&*peer.node, peer.incarnation, &body[..]), ("a", 1, &b"42"[..]));
        assert_eq!(thread.as_deref(), Some("transport"));
        while got.try_recv().is_ok() {}
    }
    let large = a.datagram("b", "lease", vec![0; 100_000].into());
    assert!(matches!(large, Err(SendError::TooLarge { .. })), "{large:?}");
    assert_eq!(a.datagram("c", "lease", Bytes::new()), Err(SendError::NoConnection { node: "c".into() }));
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_panicking_datagram_handler_hurts_nobody() {
    let (_ca, a, b) = pair().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    b.serve_datagram("boom", move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        panic!("boom");
    });
    serve_echo(&b, "echo");
    until(|| {
        a.datagram("b", "boom", Bytes::new()).expect("connected");
        calls.load(Ordering::SeqCst) >= 2
    })
    .await;
    assert!(echo(&a, "b", "echo").await.is_ok());
    close(&[&a, &b]).await;
}

#[tokio::test]
async fn a_closed_transport_says_so() {
    let (_ca, a, b) = pair().await;
    close(&[&a]).await;
    assert_eq!(echo(&a, "b", "echo").await, Err(AskError::Closed));
    assert_eq!(a.tell("b", "x", &Number(1)), Err(SendError::Closed));
    close(&[&b]).await;
}

#[tokio::test]
async fn closing_writes_out_what_was_told() {
    let (_ca, a, b) = pair().await;
    let mut numbers = collect(&b, "numbers");
    for n in 0..1_000 {
        a.tell("b", "numbers", &Number(n)).expect("room");
    }
    close(&[&a]).await;
    for n in 0..1_000 {
        assert_eq!(within(numbers.recv()).await, Some(n));
    }
    close(&[&b]).await;
}
