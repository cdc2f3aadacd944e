//! A hundred thousand supervised actors on three nodes lose a node, and every monitor fires exactly once.
//!
//! Each actor of the two nodes that survive monitors its counterpart on both other nodes: 66,668 monitors are on the node
//! that is lost, as many on the two that are not, and none of these may fire. The lost node then comes back with the same
//! actors at the same paths, which is no business of the monitors of old.

mod support;

use std::time::Duration;

use futures::{StreamExt, stream};
use phalanx_actors::{
    Actor, ChildSpec, Ctx, Down, Exit, Handler, Message, Ref, Reply, Strategy, SupervisorSpec, System,
};
use phalanx_transport::{PeerEvent, Protocol, Remote, RemoteActor, RemoteRef, SendError, Transport};
use serde::{Deserialize, Serialize};
use support::{Ca, close, connect, event};

const ACTORS_PER_NODE: usize = 33_334;

/// Longest wait for anything that a hundred thousand actors do; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Local questions under way at a time.
const ASKS: usize = 1_000;

/// One of many; keeps what its monitors tell.
struct Member {
    downs: Vec<(String, Exit)>,
}

impl Actor for Member {
    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        self.downs.push((down.pid.path().into(), down.reason));
    }
}

#[derive(Serialize, Deserialize)]
struct Watch(Vec<RemoteRef<Member>>);

impl Message for Watch {
    type Reply = ();
}

impl Remote for Watch {
    const NAME: &'static str = "test/Watch";
    type Reply = ();
}

impl Handler<Watch> for Member {
    fn handle(&mut self, Watch(others): Watch, ctx: &mut Ctx<Self>) -> Reply<()> {
        for other in others {
            ctx.monitor(&other.pid());
        }
        ().into()
    }
}

/// What its monitors have told.
struct Downs;

impl Message for Downs {
    type Reply = Vec<(String, Exit)>;
}

impl Handler<Downs> for Member {
    fn handle(&mut self, _: Downs, _: &mut Ctx<Self>) -> Reply<Vec<(String, Exit)>> {
        self.downs.clone().into()
    }
}

impl RemoteActor for Member {
    const NAME: &'static str = "test/Member";

    fn protocol(_: &mut Protocol<Self>) {}
}

/// Asks a node for references to all of its members.
#[derive(Serialize, Deserialize)]
struct Roster;

impl Remote for Roster {
    const NAME: &'static str = "test/Roster";
    type Reply = Vec<RemoteRef<Member>>;
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

struct Node {
    transport: Transport,
    system: System,
    members: Vec<Ref<Member>>,
}

impl Node {
    async fn start(ca: &Ca, name: &str, incarnation: u64, idle_timeout: Duration) -> Self {
        let mut config = ca.config(name, incarnation);
        config.timings.idle_timeout_ms = idle_timeout.as_millis() as u64;
        let transport = Transport::start(config).expect("starts");
        let system = System::builder(name).build().expect("starts");
        let top = within(system.start(SupervisorSpec::new("members", Strategy::Dynamic))).await.expect("starts");
        let starts = (0..ACTORS_PER_NODE).map(|n| {
            let member = ChildSpec::actor(format!("m{n}"), || Member { downs: vec![] });
            let (system, starting) = (system.clone(), top.start_child(member));
            async move {
                let pid = starting.await.expect("starts");
                system.lookup(pid.path()).expect("runs")
            }
        });
        let members: Vec<Ref<Member>> = within(stream::iter(starts).buffered(ASKS).collect()).await;
        transport.attach(&system).expect("the first");
        transport.share::<Member>();
        let roster: Vec<_> = members.iter().map(|member| transport.reference(member)).collect();
        transport.serve::<Roster, _, _>("roster", move |_, _| {
            let roster = roster.clone();
            async move { Ok(roster) }
        });
        Self { transport, system, members }
    }

    async fn roster_of(&self, node: &str) -> Vec<RemoteRef<Member>> {
        within(async {
            loop {
                // A connection that a stalled machine loses meanwhile comes back.
                if let Ok(roster) = self.transport.ask(node, "roster", &Roster, PATIENCE).await {
                    assert_eq!(roster.len(), ACTORS_PER_NODE);
                    return roster;
                }
            }
        })
        .await
    }

    /// Every member monitors its counterparts on these nodes.
    async fn watch(&self, nodes: [&str; 2]) {
        let (first, second) = (self.roster_of(nodes[0]).await, self.roster_of(nodes[1]).await);
        let pairs = self.members.iter().zip(first.into_iter().zip(second));
        let asks = pairs.map(|(member, (one, two))| member.ask(Watch(vec![one, two])));
        within(stream::iter(asks).for_each_concurrent(ASKS, |ask| async { ask.await.expect("lives") })).await;
    }

    /// All that this node has sent on its control lane to `node` was taken there, or is lost with its connection.
    async fn settled(&self, node: &str) {
        within(async {
            while self.transport.monitor(node, "nothing").await.reason != Exit::NoProc {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// What all monitors of all members have told, by member. Signals that are there are handled before the question.
    async fn downs(&self) -> Vec<Vec<(String, Exit)>> {
        let asks = self.members.iter().map(|member| member.ask(Downs));
        within(stream::iter(asks).buffered(ASKS).map(|downs| downs.expect("lives")).collect()).await
    }

    /// Each member has heard of its counterpart on `node`, once, and of nobody else.
    async fn assert_each_heard_once_of(&self, node: &str) {
        for (n, downs) in self.downs().await.into_iter().enumerate() {
            assert_eq!(downs, [(format!("members/m{n}@{node}"), Exit::NoConnection)], "member {n} of {}", self.name());
        }
    }

    fn name(&self) -> &str {
        self.transport.node()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_actors_on_three_nodes_lose_a_node_and_every_monitor_fires_exactly_once() {
    let ca = Ca::new();
    // Of two sides the shorter timeout counts: the survivors stay together however long this machine stalls. The third may
    // be lost for a moment by such a stall, and what is asserted holds all the same.
    let (quick, patient) = (Duration::from_secs(5), PATIENCE);
    let one = Node::start(&ca, "n1", 1, patient).await;
    let two = Node::start(&ca, "n2", 1, patient).await;
    let lost = Node::start(&ca, "n3", 1, quick).await;
    for (from, to) in [(&one, &two), (&one, &lost), (&two, &lost)] {
        connect(&from.transport, &to.transport).await;
    }
    let survivors = [(&one, "n2"), (&two, "n1")];
    for (node, other) in survivors {
        node.watch([other, "n3"]).await;
        node.settled("n3").await;
        node.settled(other).await;
    }
    let old = one.roster_of("n3").await;
    let mut events = survivors.map(|(node, _)| node.transport.events());

    // Not a packet more, and no hook of any actor runs.
    lost.transport.abort();
    lost.system.kill();
    for events in &mut events {
        // Comes after all monitors on that node have fired.
        event(events, |event| matches!(event, PeerEvent::Down { node, .. } if &**node == "n3")).await;
    }
    for (node, _) in survivors {
        node.assert_each_heard_once_of("n3").await;
    }

    // The same actors at the same paths with the same numbers, and another boot of their node.
    let back = Node::start(&ca, "n3", 2, quick).await;
    for ((node, _), events) in survivors.iter().zip(&mut events) {
        node.transport.set_peer("n3", back.transport.local_addr());
        event(events, |event| matches!(event, PeerEvent::Up { node, incarnation: 2 } if &**node == "n3")).await;
        node.settled("n3").await;
    }
    assert_eq!(old[7].address().id, back.members[7].pid().id());
    for member in &old {
        let path = member.address().path.to_string();
        assert_eq!(member.tell(Watch(vec![])), Err(SendError::NoProc { node: "n3".into(), path }));
    }
    for (node, other) in survivors {
        node.assert_each_heard_once_of("n3").await;
        assert!(node.transport.is_connected(other));
    }

    close(&[&one.transport, &two.transport, &back.transport]).await;
    // The survivors' monitors on each other have waited for this.
    for (node, _) in survivors {
        assert!(node.downs().await.iter().all(|downs| downs.len() == 2));
    }
    for node in [one, two, back] {
        within(node.system.shutdown()).await;
    }
}
