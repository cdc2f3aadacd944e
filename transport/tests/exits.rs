//! What the exits that a peer tells cost the node that hears of them: how many may wait for an actor, and how long their texts may be.

mod support;
#[path = "support/worker.rs"]
mod worker;

use phalanx_actors::{Exit, Restart};
use support::{evil::*, *};
use worker::{Do, Heard, Stick, Worker, crew, exit};

#[tokio::test]
async fn an_actor_that_hears_of_no_exits_takes_no_more_links_however_often_its_peer_comes_back() {
    let (ca, node, decent) = scene().await;
    let mut crew = crew(&node, Restart::Permanent).await;
    crew.does("top/w", Do::TrapExits).await;
    let pid = crew.worker("top/w").pid();
    let (opened, gate) = std::sync::mpsc::channel::<()>();
    let (stuck, is_stuck) = std::sync::mpsc::channel();
    crew.worker("top/w").tell(Do::Stick(Stick::new(stuck, gate))).expect("room");
    is_stuck.recv().expect("handled");
    let to = ("top/w", pid.id());
    for round in 1..4 {
        let (evil, mut control, _recv) = Evil::connect(&ca, &node).await.welcome(&hello(1, 3, CLUSTER, "evil")).await;
        for n in 0..1_000 {
            for what in [LINK, EXIT] {
                within(control.write_all(&signal(what, to, ("own", n)))).await.expect("open");
            }
        }
        for n in 0..100 {
            within(control.write_all(&signal(LINK, to, ("left", n)))).await.expect("open");
        }
        control.write_all(&tell("echo", &Echo("after them".into()))).await.expect("open");
        until(|| of_evil(&node).received_messages == round).await;
        evil.conn.close(0u32.into(), b"");
        until(|| !node.is_connected("evil")).await;
    }
    let waiting = pid.signals_waiting();
    assert!((1_024..=1_024 + 100).contains(&waiting), "{waiting}");
    drop(opened);
    for _ in 0..waiting {
        assert!(matches!(crew.next().await, Heard::Exit { .. }));
    }
    // It takes them again.
    let (_evil, mut control, _recv) = Evil::connect(&ca, &node).await.welcome(&hello(1, 3, CLUSTER, "evil")).await;
    for what in [LINK, EXIT] {
        control.write_all(&signal(what, to, ("own", 0))).await.expect("open");
    }
    assert_eq!(crew.next().await, exit("own@evil", Exit::Shutdown));
    close(&[&node, &decent]).await;
    crew.system.shutdown().await;
}

#[tokio::test]
async fn of_an_exit_with_megabytes_of_text_a_thousand_bytes_are_kept() {
    let ca = Ca::new();
    let (a, b) = (ca.start("a", 1), ca.start("b", 1));
    connect(&a, &b).await;
    let (mut near, far) = (crew(&a, Restart::Permanent).await, crew(&b, Restart::Permanent).await);
    let worker = within(a.lookup::<Worker>("b", "top/w")).await.expect("runs");
    near.does("top/w", Do::Monitor(worker.clone())).await;
    near.does("top/v", Do::TrapExits).await;
    near.does("top/v", Do::Link(worker.clone())).await;
    within(a.monitor("b", "nothing")).await;
    far.worker("top/w").stop(Exit::Error("x".repeat(1 << 20)));
    for _ in 0..2 {
        let (Heard::Down { reason, .. } | Heard::Exit { reason, .. }) = near.next().await else {
            panic!("no exit");
        };
        assert_eq!(reason, Exit::Error("x".repeat(1_024) + "…"));
    }
    close(&[&a, &b]).await;
    near.system.shutdown().await;
    far.system.shutdown().await;
}
