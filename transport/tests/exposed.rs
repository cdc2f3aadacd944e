//! Actors exposed to other nodes: the same messages as at home, and monitors that tell their exits.

mod support;

use phalanx_actors::{
    Actor, ChildSpec, Ctx, Exit, Handler, Message, Reply, Restart, Strategy, SupervisorRef, SupervisorSpec, System,
};
use phalanx_transport::{AskError, Remote, Transport};
use serde::{Deserialize, Serialize};
use support::*;

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
