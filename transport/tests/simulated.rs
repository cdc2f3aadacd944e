//! Whole transports on a simulated network, in virtual time: partitions, cuts, latency, loss, crashes; and the same seed
//! gives the same history, byte for byte.

use std::time::Duration;

use futures::FutureExt;
use phalanx_actors::{Actor, ChildSpec, Ctx, Exit, Handler, Message, Reply, Restart, Strategy, SupervisorSpec, System};
use phalanx_transport::{PeerEvent, Remote, SendError, Target};
use phalanx_transport_sim::{Node, Stage, addr};
use serde::{Deserialize, Serialize};

const NODES: [&str; 3] = ["a", "b", "c"];

/// Longest wait of an ask, in virtual time.
const DEADLINE: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[derive(Serialize, Deserialize)]
struct Number(u64);

impl Remote for Number {
    const NAME: &'static str = "test/Number";
    type Reply = u64;
}

#[derive(Serialize, Deserialize)]
struct Crash;

impl Remote for Crash {
    const NAME: &'static str = "test/Crash";
    type Reply = ();
}

impl Message for Number {
    type Reply = u64;
}

impl Message for Crash {
    type Reply = ();
}

/// Adds up what it is told.
struct Sum(u64);

impl Actor for Sum {}

impl Handler<Number> for Sum {
    fn handle(&mut self, Number(n): Number, _: &mut Ctx<Self>) -> Reply<u64> {
        self.0 += n;
        self.0.into()
    }
}

impl Handler<Crash> for Sum {
    fn handle(&mut self, _: Crash, ctx: &mut Ctx<Self>) -> Reply<()> {
        ctx.stop(Exit::Error("crashed on request".into()));
        ().into()
    }
}

/// Every node keeps every other connected and serves `double` and `note`.
fn boot(node: &Node) {
    for other in NODES.iter().filter(|other| **other != &**node.transport.node()) {
        node.transport.set_peer(other, addr(other));
    }
    node.transport.serve::<Number, _, _>("double", |_, Number(n)| async move { Ok(n * 2) });
    let numbers = tokio::sync::mpsc::unbounded_channel();
    let (sender, mut told) = numbers;
    node.transport.serve::<Number, _, _>("note", move |peer, Number(n)| {
        let sent = sender.send((peer, n));
        async move { sent.map(|()| n).map_err(|e| e.to_string()) }
    });
    let noter = node.clone();
    node.spawn(async move {
        while let Some((peer, n)) = told.recv().await {
            noter.note(format_args!("told {n} by {}/{}", peer.node, peer.incarnation));
        }
    });
}

fn stage(seed: u64) -> Stage {
    let mut stage = Stage::new(seed, ms(1)..=ms(20));
    for node in NODES {
        stage.node(node, boot);
    }
    stage
}

fn connected(stage: &mut Stage) -> usize {
    let mut lines = 0;
    for one in NODES {
        for other in NODES.iter().filter(|other| **other != one) {
            lines = lines.max(stage.until_noted(0, &format!("{one}/1: up {other}/1")));
        }
    }
    lines
}

async fn double(node: &Node, to: &str, n: u64) {
    let answer = node.transport.ask(to, "double", &Number(n), DEADLINE).await;
    node.note(format_args!("asked {to} {n}: {answer:?}"));
}

fn tell(node: &Node, to: &str, n: u64) {
    if let Err(error) = node.transport.tell(to, "note", &Number(n)) {
        node.note(format_args!("telling {to} {n}: {error}"));
    }
}

/// Everything that this file shows, in one script.
fn history(seed: u64) -> String {
    let mut stage = stage(seed);
    connected(&mut stage);
    // Several that wait for one connection, and several monitors: none of them may be woken in an order of its own.
    for n in 0..20 {
        stage.start("a", move |node| async move { double(&node, "b", n).await });
        stage.start("a", |node| async move {
            let down = node.transport.monitor("b", "double").await;
            node.note(format_args!("monitor: {:?}", down.reason));
        });
    }
    stage.start("a", |node| async move { (0..100).for_each(|n| tell(&node, "b", n)) });
    stage.pass(ms(500));
    stage.partition("a", "b");
    for n in 20..40 {
        stage.start("a", move |node| async move { double(&node, "b", n).await });
    }
    stage.pass(ms(3_000));
    stage.repair("a", "b");
    stage.pass(ms(3_000));
    stage.cut("c", "a");
    stage.pass(ms(2_000));
    stage.repair("c", "a");
    stage.run("c", |node| async move {
        node.transport.faults().drop(Target::All, 0.1);
        node.transport.faults().reorder(Target::All, 0.2, ms(30));
        node.transport.faults().duplicate(Target::All, 0.1);
    });
    stage.start("c", |node| async move {
        for n in 0..50 {
            tell(&node, "a", n);
            double(&node, "a", n).await;
        }
    });
    stage.crash("b");
    stage.pass(ms(1_500));
    stage.restart("b");
    stage.pass(ms(5_000));
    stage.history()
}

#[test]
fn the_same_seed_gives_the_same_history_and_another_seed_another() {
    let first = history(1);
    let again = history(1);
    if first != again {
        let differs = first.lines().zip(again.lines()).position(|(a, b)| a != b);
        panic!("differs at line {differs:?}\n{first}\n----\n{again}");
    }
    assert_ne!(first, history(2));
}

#[test]
fn nodes_connect_ask_tell_and_monitor() {
    let mut stage = stage(11);
    connected(&mut stage);
    let answer = stage.run("a", |node| async move { node.transport.ask("b", "double", &Number(21), DEADLINE).await });
    assert_eq!(answer, Ok(42));
    let from = stage.noted();
    stage.start("c", |node| async move { (0..50).for_each(|n| tell(&node, "b", n)) });
    let mut at = from;
    for n in 0..50 {
        // One after the other, each after the one before.
        at = stage.until_noted(at, &format!("b/1: told {n} by c/1"));
    }
    let nothing = stage.run("a", |node| async move { node.transport.monitor("b", "nothing").await.reason });
    assert_eq!(nothing, Exit::NoProc);
    let monitor = stage.start("a", |node| async move { node.transport.monitor("b", "double").await.reason });
    stage.pass(ms(1_000));
    assert_eq!(monitor.take(), None);
    stage.run("b", |node| async move { node.transport.unserve("double") });
    stage.pass(ms(100));
    assert_eq!(monitor.take(), Some(Exit::Shutdown));
}

#[test]
fn a_partition_is_down_on_both_sides_after_the_idle_timeout_and_heals() {
    let mut stage = stage(12);
    let from = connected(&mut stage);
    let monitor = stage.start("a", |node| async move { node.transport.monitor("b", "double").await.reason });
    stage.pass(ms(200));
    stage.partition("a", "b");
    let cut_at = stage.elapsed();
    let a = stage.until_noted(from, "a/1: down b/1: nothing heard for the idle timeout");
    let b = stage.until_noted(from, "b/1: down a/1: nothing heard for the idle timeout");
    // The idle timeout of 1 s, and at most a keep-alive and a packet's way more.
    assert!((ms(600)..=ms(1_400)).contains(&(stage.elapsed() - cut_at)), "{}", stage.history());
    assert_eq!(monitor.take(), Some(Exit::NoConnection));
    let told = stage.run("a", |node| async move { node.transport.tell("b", "note", &Number(1)) });
    assert_eq!(told, Err(SendError::NoConnection { node: "b".into() }));
    // The third node keeps both.
    let third = stage.run("c", |node| async move {
        let a = node.transport.ask("a", "double", &Number(1), DEADLINE).await;
        let b = node.transport.ask("b", "double", &Number(2), DEADLINE).await;
        (a, b)
    });
    assert_eq!(third, (Ok(2), Ok(4)));
    let waiting = stage
        .start("a", |node| async move { node.transport.ask("b", "double", &Number(3), Duration::from_secs(60)).await });
    stage.pass(ms(5_000));
    assert!(waiting.take().is_none());
    stage.repair("a", "b");
    stage.until_noted(a.max(b), "a/1: up b/1");
    stage.until_noted(a.max(b), "b/1: up a/1");
    stage.pass(ms(500));
    assert_eq!(waiting.take(), Some(Ok(6)));
}

#[test]
fn a_cut_of_one_direction_is_down_on_both_sides() {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let mut stage = stage(13);
        let at = connected(&mut stage);
        stage.cut(from, to);
        stage.until_noted(at, "a/1: down b/1");
        stage.until_noted(at, "b/1: down a/1");
        let at = stage.noted();
        stage.pass(ms(5_000));
        let history = stage.history();
        assert!(!history.lines().skip(at).any(|line| line.contains("up ")), "up while it is cut\n{history}");
        stage.repair(from, to);
        stage.until_noted(at, "a/1: up b/1");
        stage.until_noted(at, "b/1: up a/1");
    }
}

#[test]
fn a_round_trip_takes_twice_the_latency() {
    let mut stage = stage(14);
    connected(&mut stage);
    stage.latency("a", "b", ms(40));
    stage.pass(ms(500));
    let took = stage.run("a", |node| async move {
        let asked = tokio::time::Instant::now();
        double(&node, "b", 1).await;
        asked.elapsed()
    });
    assert!((ms(80)..=ms(90)).contains(&took), "{took:?}");
}

#[test]
fn loss_reordering_and_doubled_packets_cost_time_and_nothing_else() {
    let mut stage = stage(15);
    let from = connected(&mut stage);
    for node in ["a", "b"] {
        stage.run(node, |node| async move {
            node.transport.faults().drop(Target::All, 0.1);
            node.transport.faults().reorder(Target::All, 0.3, ms(50));
            node.transport.faults().duplicate(Target::All, 0.3);
        });
    }
    stage.run("a", |node| async move {
        for n in 0..500 {
            tell(&node, "b", n);
            if n % 20 == 0 {
                double(&node, "b", n).await;
            }
        }
    });
    stage.pass(ms(2_000));
    let history = stage.history();
    let told: Vec<u64> = history
        .lines()
        .skip(from)
        .filter_map(|line| line.split_once("b/1: told ")?.1.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(told, (0..500).collect::<Vec<_>>());
    let answered = history.lines().filter(|line| line.contains("asked b") && line.contains("Ok(")).count();
    assert_eq!(answered, 25, "{history}");
}

#[test]
fn what_was_told_on_a_lost_connection_never_comes_after_what_was_told_on_the_next() {
    never_after_what_was_told_on_the_next("a");
}

/// Whoever is dialed may tell before it has heard of any window: then it is the receiver's lane that stands still.
#[test]
fn what_was_told_without_credit_on_a_lost_connection_never_comes_after_what_was_told_on_the_next() {
    never_after_what_was_told_on_the_next("b");
}

fn never_after_what_was_told_on_the_next(dialer: &'static str) {
    let mut stage = Stage::new(18, ms(1)..=ms(5));
    stage.configure(|config| config.limits.inbox_messages = 2);
    stage.node("a", move |node| {
        if dialer == "a" {
            node.transport.set_peer("b", addr("b"));
        }
    });
    stage.node("b", move |node| {
        if dialer == "b" {
            node.transport.set_peer("a", addr("a"));
        }
        let told = node.clone();
        let (sender, mut numbers) = tokio::sync::mpsc::unbounded_channel();
        node.transport.serve::<Number, _, _>("slow", move |_, Number(n)| {
            let sender = sender.clone();
            async move {
                tokio::time::sleep(ms(20)).await;
                sender.send(n).map_err(|e| e.to_string()).map(|()| n)
            }
        });
        node.spawn(async move {
            while let Some(n) = numbers.recv().await {
                told.note(format_args!("told {n}"));
            }
        });
    });
    stage.latency("a", "b", ms(20));
    let up = stage.until_noted(0, "a/1: up b/1");
    let tell = |numbers: std::ops::Range<u64>| {
        move |node: Node| async move {
            numbers.for_each(|n| node.transport.tell("b", "slow", &Number(n)).expect("room"));
        }
    };
    // Six seconds of work, which the receiver has soon; then the sender hears nothing any more, and the receiver all.
    stage.run("a", tell(0..300));
    // From here on it dials, too.
    stage.run("a", |node| async move { node.transport.set_peer("b", addr("b")) });
    stage.until_noted(up, "told 0");
    stage.cut("b", "a");
    let down = stage.until_noted(up, "a/1: down b/1");
    stage.repair("a", "b");
    stage.until_noted(down, "a/1: up b/1");
    stage.run("a", tell(1_000..1_100));
    stage.until_noted(down, "told 1099");
    stage.pass(ms(7_000));
    let history = stage.history();
    let told: Vec<u64> = history.lines().filter_map(|line| line.split_once("told ")?.1.parse().ok()).collect();
    assert!(told.is_sorted(), "{told:?}");
    // All of the second connection, and the beginning of the first.
    let lost = told.iter().position(|n| *n >= 1_000).expect("the second connection's");
    assert!((1..300).contains(&lost), "{told:?}");
    assert_eq!(told[..lost], (0..lost as u64).collect::<Vec<_>>());
    assert_eq!(told[lost..], (1_000..1_100).collect::<Vec<_>>());
}

#[test]
fn what_arrived_before_an_orderly_close_is_handled_also_when_its_lane_stands_still() {
    const TOLD: u64 = 16;
    let mut stage = Stage::new(20, ms(5)..=ms(5));
    stage.configure(|config| config.limits.inbox_messages = 2);
    stage.node("a", |node| {
        let mut events = node.transport.events();
        let transport = node.transport.clone();
        node.spawn(async move {
            while !matches!(events.recv().await, Ok(PeerEvent::Up { .. })) {}
            // Before a window was heard, so that it is the receiver's lane that stands still; for less than it may.
            (0..TOLD).for_each(|n| transport.tell("b", "slow", &Number(n)).expect("room"));
            transport.close().await;
        });
    });
    stage.node("b", |node| {
        node.transport.set_peer("a", addr("a"));
        let (sender, mut numbers) = tokio::sync::mpsc::unbounded_channel();
        node.transport.serve::<Number, _, _>("slow", move |_, Number(n)| {
            let sender = sender.clone();
            async move {
                tokio::time::sleep(ms(5)).await;
                sender.send(n).map_err(|e| e.to_string()).map(|()| n)
            }
        });
        let told = node.clone();
        node.spawn(async move {
            while let Some(n) = numbers.recv().await {
                told.note(format_args!("told {n}"));
            }
        });
    });
    stage.until_noted(0, "b/1: down a/1: closed by the peer");
    stage.pass(ms(500));
    let history = stage.history();
    let told: Vec<u64> = history.lines().filter_map(|line| line.split_once("told ")?.1.parse().ok()).collect();
    assert_eq!(told, (0..TOLD).collect::<Vec<_>>(), "{history}");
}

#[test]
fn every_monitor_has_fired_when_the_down_is_seen() {
    let mut stage = Stage::new(19, ms(1)..=ms(5));
    stage.node("a", |node| node.transport.set_peer("b", addr("b")));
    stage.node("b", |node| node.transport.serve::<Number, _, _>("p", |_, Number(n)| async move { Ok(n) }));
    let up = stage.until_noted(0, "a/1: up b/1");
    let fired = stage.start("a", |node| async move {
        let mut events = node.transport.events();
        let monitors: Vec<_> = (0..100).map(|_| node.transport.monitor("b", "p")).collect();
        while !matches!(events.recv().await, Ok(PeerEvent::Down { .. })) {}
        // Not polled before: they are ready at once, or not at all.
        monitors.into_iter().filter_map(|monitor| monitor.now_or_never()).map(|down| down.reason).collect::<Vec<_>>()
    });
    stage.pass(ms(200));
    stage.crash("b");
    stage.until_noted(up, "a/1: down b/1");
    stage.pass(ms(1));
    assert_eq!(fired.take(), Some(vec![Exit::NoConnection; 100]));
}

#[test]
fn a_crashed_host_comes_back_as_another_incarnation() {
    let mut stage = stage(16);
    connected(&mut stage);
    let monitor = stage.start("a", |node| async move { node.transport.monitor("b", "double").await.reason });
    let asking = stage.start("a", |node| async move {
        node.transport.serve::<Number, _, _>("never", |_, _| std::future::pending());
        node.transport.ask("b", "never", &Number(1), DEADLINE).await
    });
    stage.run("b", |node| async move {
        node.transport.serve::<Number, _, _>("never", |_, _| std::future::pending());
    });
    stage.pass(ms(300));
    let from = stage.noted();
    stage.crash("b");
    stage.pass(ms(300));
    stage.restart("b");
    // Known at once, by its hello, and before the idle timeout.
    let down = stage.until_noted(from, "a/1: down b/1: replaced by a newer connection");
    stage.until_noted(down, "a/1: up b/2");
    stage.until_noted(from, "b/2: up a/1");
    assert_eq!(monitor.take(), Some(Exit::NoConnection));
    assert!(asking.take().is_some_and(|answer| answer.is_err()));
    let answer = stage.run("a", |node| async move { node.transport.ask("b", "double", &Number(4), DEADLINE).await });
    assert_eq!(answer, Ok(8));
}

#[test]
fn actors_of_a_simulated_node_are_asked_and_monitored_from_another() {
    let mut stage = Stage::new(17, ms(1)..=ms(5));
    stage.node("a", |node| node.transport.set_peer("b", addr("b")));
    stage.node("b", |node| {
        let host = node.clone();
        let node = node.clone();
        host.spawn(async move {
            let system = System::builder("b").local().build().expect("starts");
            let sum = ChildSpec::actor("sum", || Sum(0)).restart(Restart::Permanent);
            let top = SupervisorSpec::new("top", Strategy::OneForOne).child(sum);
            let _supervisor = system.start(top).await.expect("starts");
            node.transport.expose::<Sum, Number>("top/sum", system.named("top/sum"));
            node.transport.expose::<Sum, Crash>("top/sum", system.named("top/sum"));
            node.note("actors run");
            std::future::pending::<()>().await;
        });
    });
    stage.until_noted(0, "a/1: up b/1");
    stage.until_noted(0, "actors run");
    let ask = |n| move |node: Node| async move { node.transport.ask("b", "top/sum", &Number(n), DEADLINE).await };
    assert_eq!(stage.run("a", ask(20)), Ok(20));
    assert_eq!(stage.run("a", ask(22)), Ok(42));
    let monitor = stage.start("a", |node| async move { node.transport.monitor("b", "top/sum").await.reason });
    stage.pass(ms(100));
    stage.run("a", |node| async move { node.transport.tell("b", "top/sum", &Crash).expect("room") });
    stage.pass(ms(100));
    assert_eq!(monitor.take(), Some(Exit::Error("crashed on request".into())));
    // Restarted, and empty again.
    assert_eq!(stage.run("a", ask(1)), Ok(1));
}
