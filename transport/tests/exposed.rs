//! Actors exposed to other nodes: the same messages as at home, and monitors that tell their exits.

mod support;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use phalanx_actors::{
    Actor, ChildSpec, Ctx, Exit, Handler, Message, Reply, Restart, Strategy, SupervisorRef, SupervisorSpec, System,
};
use phalanx_transport::{AskError, Remote, Transport};
use serde::{Deserialize, Serialize};
use support::*;
use tokio::sync::mpsc;

const PATH: &str = "top/counter";

/// Adds up.
struct Counter(u64);

impl Actor for Counter {}

#[derive(Serialize, Deserialize)]
struct Add(u64);

impl Message for Add {
    type Reply = u64;
}

impl Remote for Add {
    const NAME: &'static str = "test/Add";
    type Reply = u64;
}

impl Handler<Add> for Counter {
    fn handle(&mut self, Add(n): Add, _: &mut Ctx<Self>) -> Reply<u64> {
        self.0 += n;
        self.0.into()
    }
}

#[derive(Serialize, Deserialize)]
struct Crash;

impl Message for Crash {
    type Reply = ();
}

impl Remote for Crash {
    const NAME: &'static str = "test/Crash";
    type Reply = ();
}

impl Handler<Crash> for Counter {
    fn handle(&mut self, _: Crash, _: &mut Ctx<Self>) -> Reply<()> {
        panic!("crashed on request")
    }
}

/// A counter under a supervisor, exposed by `transport`.
async fn exposed(transport: &Transport) -> (System, SupervisorRef) {
    let system = System::builder("node").build().expect("starts");
    let counter = ChildSpec::actor("counter", || Counter(0)).restart(Restart::Permanent);
    let spec = SupervisorSpec::new("top", Strategy::OneForOne).child(counter);
    let top = system.start(spec).await.expect("starts");
    transport.expose::<Counter, Add>(PATH, system.named(PATH));
    transport.expose::<Counter, Crash>(PATH, system.named(PATH));
    (system, top)
}

async fn add(from: &Transport, to: &str, n: u64) -> Result<u64, AskError> {
    within(from.ask(to, PATH, &Add(n), PATIENCE)).await
}

#[tokio::test]
async fn an_exposed_actor_is_told_and_asked_in_order_from_near_and_far() {
    let (_ca, a, b) = pair().await;
    let (system, _top) = exposed(&b).await;
    for n in 1..=100 {
        a.tell("b", PATH, &Add(n)).expect("room");
    }
    // An ask is on a stream of its own and may overtake the tells.
    within(async {
        while add(&a, "b", 0).await != Ok(5050) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(add(&b, "b", 1).await, Ok(5051));
    close(&[&a, &b]).await;
    system.shutdown().await;
}

#[tokio::test]
async fn a_monitor_tells_the_exit_of_the_incarnation_and_the_restarted_one_answers() {
    let (_ca, a, b) = pair().await;
    let (system, _top) = exposed(&b).await;
    let monitors = [a.monitor("b", PATH), b.monitor("b", PATH)];
    // Ordered after the first on its lane, so once this is answered the first is set.
    assert_eq!(within(a.monitor("b", "nothing")).await.reason, Exit::NoProc);
    let asked = within(a.ask("b", PATH, &Crash, PATIENCE)).await;
    assert!(matches!(&asked, Err(AskError::Remote(text)) if text.contains("crashed on request")), "{asked:?}");
    for monitor in monitors {
        let reason = within(monitor).await.reason;
        assert!(matches!(&reason, Exit::Panic { message, .. } if message == "crashed on request"), "{reason:?}");
    }
    // NoProc until the supervisor has restarted it.
    let mut sum = add(&a, "b", 3).await;
    within(async {
        while matches!(sum, Err(AskError::NoProc { .. })) {
            sum = add(&a, "b", 3).await;
        }
    })
    .await;
    assert_eq!(sum, Ok(3));
    close(&[&a, &b]).await;
    system.shutdown().await;
}

#[tokio::test]
async fn an_exposed_path_without_an_actor_is_no_proc() {
    let (_ca, a, b) = pair().await;
    let (system, top) = exposed(&b).await;
    top.terminate_child("counter").await.expect("runs");
    let expected = AskError::NoProc { node: "b".into(), path: PATH.into() };
    assert_eq!(add(&a, "b", 1).await, Err(expected));
    assert_eq!(within(a.monitor("b", PATH)).await.reason, Exit::NoProc);
    close(&[&a, &b]).await;
    system.shutdown().await;
}

#[tokio::test]
async fn tells_on_a_route_that_is_known_reach_the_next_incarnation() {
    let (_ca, a, b) = pair().await;
    let (system, _top) = exposed(&b).await;
    let told = async |n: u64, sum: u64| {
        for _ in 0..n {
            a.tell("b", PATH, &Add(1)).expect("room");
        }
        within(async {
            while add(&a, "b", 0).await != Ok(sum) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    told(100, 100).await;
    assert!(within(a.ask("b", PATH, &Crash, PATIENCE)).await.is_err());
    // It begins anew.
    told(0, 0).await;
    told(50, 50).await;
    close(&[&a, &b]).await;
    system.shutdown().await;
}

/// Writes down what it handles, and stays in one message until it is let go; that ends it.
struct Slow {
    heard: mpsc::UnboundedSender<u64>,
    gate: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

impl Actor for Slow {}

impl Handler<Add> for Slow {
    fn handle(&mut self, Add(n): Add, _: &mut Ctx<Self>) -> Reply<u64> {
        self.heard.send(n).expect("the test listens");
        if n.is_multiple_of(1_000) {
            self.gate.lock().recv().expect("the test lets it go");
            panic!("crashed on request");
        }
        n.into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_that_crashes_over_a_full_mailbox_loses_what_was_in_it_and_no_more() {
    const MAILBOX: usize = 8;
    let (_ca, a, b) = pair().await;
    let (heard, mut hears) = mpsc::unbounded_channel();
    let (go, gate) = std::sync::mpsc::channel();
    let gate = Arc::new(Mutex::new(gate));
    let system = System::builder("node").build().expect("starts");
    let slow = ChildSpec::actor("counter", move || Slow { heard: heard.clone(), gate: gate.clone() }).mailbox(MAILBOX);
    system.start(SupervisorSpec::new("top", Strategy::OneForOne).unlimited().child(slow)).await.expect("starts");
    b.expose::<Slow, Add>(PATH, system.named(PATH));
    let dropped = || b.peers()[0].dropped_messages;
    // So many that a batch waits for room when the actor ends, and others behind it.
    const TOLD: u64 = 3_500;
    for n in 1..=TOLD {
        a.tell("b", PATH, &Add(n)).expect("room");
    }
    let in_mailboxes = || {
        let info = system.tree().into_iter().find(|info| info.path == PATH).expect("known");
        (info.queue_len, info.dropped)
    };
    let mut all: Vec<u64> = vec![];
    // Each is heard, or it lay in the mailbox of one that ended, or it came when none ran; and of those the last two are counted.
    while all.len() as u64 + in_mailboxes().1 + dropped() < TOLD {
        let Ok(heard) = tokio::time::timeout(Duration::from_millis(1), hears.recv()).await else {
            continue;
        };
        let n = heard.expect("lives");
        all.push(n);
        if n.is_multiple_of(1_000) {
            // Full, and what comes next waits; or the rest is lost.
            until(|| in_mailboxes().0 >= MAILBOX || n + dropped() + MAILBOX as u64 > TOLD).await;
            go.send(()).expect("waits");
        }
    }
    assert!(all.is_sorted_by(|a, b| a < b), "in order, and each once");
    let (_, lost) = in_mailboxes();
    assert_eq!(all.len() as u64 + lost + dropped(), TOLD);
    assert!(lost >= 1 && lost <= 3 * MAILBOX as u64, "{lost} lost in mailboxes");
    assert!(a.is_connected("b"));
    close(&[&a, &b]).await;
    system.shutdown().await;
}
