//! Leases on the wire: drives both pure cores (`lease`, `renewal`) on the transport's own thread, where no busy actor can
//! delay them.
//!
//! ```text
//!   every node                                        the leader
//!   Renewal ── Renew ─────────────────────────────▶ LeaseTable ──▶ NodeEvent::Lost / Back
//!      ▲  └─▶ LeaseStatus (leader, fenced)               │ Probe
//!      └────── Grant, Leader ─────────────────────────┘  ▼
//!   prober ── Ping ──▶ suspect                        three peers, and itself
//! ```
//! Must never block: handlers run inline on the transport's thread. Started once a member by `cluster`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use phalanx_transport::{Peer, PeerEvent, Transport};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::lease::{LeaseAction, LeaseEvent, LeaseState, LeaseTable, LeaseTimes, Millis};
use super::renewal::{Renewal, RenewalAction, RenewalEvent};
use super::wire::{LEASE_PATH, LeaseDatagram};
use crate::store::ElectionTimings;

/// The clock of both cores, in milliseconds. A fraction of the renewal period: it is the detector's coarseness.
const TICK_MS: u64 = 15;
/// Events of nodes that wait for the control plane. A cluster that loses more nodes at once than this has other troubles;
/// what does not fit is told again with the next change of leadership, and logged.
const NODE_EVENTS_MAX: usize = 16_384;
/// Pings that wait for their answer. A prober that has more refuses (the suspect counts as not reached by it).
const PINGS_MAX: usize = 4_096;

/// The store says that a server leads only while its quorum has answered what it sent within this time, and no other is
/// elected within this time of such an answer. In milliseconds.
fn leader_silence_ms() -> Millis {
    ElectionTimings::default().max_ms
}

/// What a node knows of its own lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The leader's node and Raft term.
    pub leader: Option<(String, u64)>,
    /// The lease is not held (not yet, or no more): exclusive pods must not run here.
    pub fenced: bool,
    /// How often it has lapsed: whoever looks late sees here that it did, though it is held again.
    pub lapses: u64,
}

impl Default for LeaseStatus {
    fn default() -> Self {
        Self { leader: None, fenced: true, lapses: 0 }
    }
}

/// What the leader's control plane is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// The node is gone; what it ran must be replaced.
    Lost {
        /// Which node.
        node: String,
        /// Its boot.
        incarnation: u64,
        /// How long it had been silent, in milliseconds.
        silent_ms: Millis,
    },
    /// The node renews its lease: new, or back.
    Back {
        /// Which node.
        node: String,
        /// Its boot.
        incarnation: u64,
    },
}

/// The lease as the leader sees it, for status displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Which node.
    pub node: String,
    /// Held, suspect or lost.
    pub state: LeaseState,
    /// Milliseconds since its last renewal.
    pub age_ms: Millis,
}

/// One member's end of the lease protocol. Cheap to clone.
#[derive(Clone)]
pub struct LeaseEndpoint(Arc<Shared>);

struct Shared {
    transport: Transport,
    times: LeaseTimes,
    servers: watch::Receiver<Vec<String>>,
    /// Whether this server's quorum has answered lately, asked of the store itself; none on agents.
    heard: Option<Heard>,
    epoch: Instant,
    status: watch::Sender<LeaseStatus>,
    state: Mutex<State>,
}

struct State {
    renewal: Renewal,
    /// Who leads, as this server's own Raft says; agents have none.
    known: Option<(String, u64)>,
    leading: Option<Leading>,
    /// Whether the quorum follows this server, so that nobody else can be leading. Without it nothing is granted and nobody
    /// is declared lost.
    quorum: bool,
    pings: HashMap<u64, Ping>,
    next_ping: u64,
}

struct Leading {
    term: u64,
    table: LeaseTable,
    events: mpsc::Sender<NodeEvent>,
    /// Servers that said that they follow, since the question.
    followers: Vec<String>,
}

struct Ping {
    node: String,
    /// Who asked for it; this node itself when it leads.
    asked_by: String,
    sent: Millis,
}

/// Tells whether the quorum has answered lately. Called on the transport's thread for each renewal that a leader is asked for.
pub type Heard = Arc<dyn Fn() -> bool + Send + Sync>;

/// What is to be sent once the lock is released.
type Outbox = Vec<(String, LeaseDatagram)>;

impl LeaseEndpoint {
    /// Starts renewing on the transport's thread. `servers` are the nodes that may lead. `heard` is what a server's leases
    /// depend on: asked here and not told by an actor, which a slow disk may hold up while leases run on.
    pub fn start(
        transport: Transport,
        times: LeaseTimes,
        servers: watch::Receiver<Vec<String>>,
        heard: Option<Heard>,
    ) -> Self {
        let shared = Arc::new(Shared {
            times: times.clone(),
            servers,
            heard,
            epoch: Instant::now(),
            status: watch::Sender::default(),
            state: Mutex::new(State {
                renewal: Renewal::new(times, 0),
                known: None,
                leading: None,
                quorum: true,
                pings: HashMap::new(),
                next_ping: 0,
            }),
            transport,
        });
        // Weak, so that the transport's handler does not keep the transport alive.
        let weak = Arc::downgrade(&shared);
        shared.transport.serve_datagram(LEASE_PATH, move |peer, body| {
            if let (Some(shared), Some(datagram)) = (weak.upgrade(), LeaseDatagram::decode(&body)) {
                shared.take(&peer, datagram);
            }
        });
        let (weak, events) = (Arc::downgrade(&shared), shared.transport.events());
        shared.transport.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut events = Some(events);
            loop {
                tokio::select! {
                    _ = ticks.tick() => match weak.upgrade() {
                        Some(shared) => shared.tick(),
                        None => return,
                    },
                    event = next(&mut events) => {
                        let Some(shared) = weak.upgrade() else { return };
                        if let PeerEvent::Down { node, .. } = event {
                            shared.link_closed(&node);
                        }
                    }
                }
            }
        });
        LeaseEndpoint(shared)
    }

    /// The node's own lease, and who grants it.
    pub fn status(&self) -> watch::Receiver<LeaseStatus> {
        self.0.status.subscribe()
    }

    /// Leads from now on, in this Raft term: every node of `nodes` (name, boot) is granted a lease. `lost` names those that
    /// an earlier leader declared lost already. Events end when another call of this, or [`LeaseEndpoint::step_down`], comes.
    pub fn lead(
        &self,
        term: u64,
        nodes: impl IntoIterator<Item = (String, u64)>,
        lost: &[String],
    ) -> mpsc::Receiver<NodeEvent> {
        let (events, receiver) = mpsc::channel(NODE_EVENTS_MAX);
        let me = self.0.transport.node().to_string();
        let mut table = LeaseTable::new(&me, self.0.times.clone(), nodes, self.0.now());
        {
            let mut state = self.0.state.lock();
            // Only when nobody led in between, who might have granted that node a lease a moment ago.
            if let Some((leader, _)) = state.known.as_ref().filter(|(leader, led)| *leader != me && led + 1 == term) {
                table.deposed(leader, leader_silence_ms());
            }
            for node in lost {
                table.mark_lost(node);
            }
            state.known = Some((me.clone(), term));
            state.leading = Some(Leading { term, table, events, followers: Vec::new() });
        }
        // Nobody waits for its next renewal to learn it: the new leader's first question is who is still there.
        for peer in self.0.transport.peers() {
            self.0.send(&peer.node, &LeaseDatagram::Leader { leader: me.clone(), term });
        }
        self.0.renewal(RenewalEvent::Leader { leader: me, term });
        receiver
    }

    /// Leads no more. A leader that hands over must call this before it does.
    pub fn step_down(&self) {
        let led = self.0.state.lock().leading.take();
        if led.is_some() {
            self.0.renewal(RenewalEvent::Deposed { silent_ms: leader_silence_ms() });
        }
    }

    /// The leader's quorum answers, or does not answer any more. Without it nothing is granted, not even to itself.
    pub fn quorum(&self, heard: bool) {
        self.0.quorum(heard);
    }

    /// A server's Raft says who leads. Of itself it says so before it can grant anything: that waits for
    /// [`LeaseEndpoint::lead`].
    pub fn follow(&self, leader: &str, term: u64) {
        if leader == &**self.0.transport.node() {
            return;
        }
        self.0.state.lock().known = Some((leader.to_owned(), term));
        self.0.renewal(RenewalEvent::Leader { leader: leader.to_owned(), term });
    }

    /// All leases, on the leader; empty elsewhere.
    pub fn leases(&self) -> Vec<LeaseView> {
        let now = self.0.now();
        let state = self.0.state.lock();
        let Some(leading) = &state.leading else { return Vec::new() };
        let view = |(node, state, age_ms): (&str, _, _)| LeaseView { node: node.to_owned(), state, age_ms };
        leading.table.iter(now).map(view).collect()
    }

    /// A node has left the cluster for good.
    pub fn forget(&self, node: &str) {
        self.0.lease(LeaseEvent::Removed { node: node.to_owned() });
    }
}

async fn next(events: &mut Option<broadcast::Receiver<PeerEvent>>) -> PeerEvent {
    loop {
        let Some(receiver) = events else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(event) => return event,
            // A hint that was missed is made up for by the missing renewals.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => *events = None,
        }
    }
}

impl Shared {
    fn now(&self) -> Millis {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn send(&self, node: &str, datagram: &LeaseDatagram) {
        if let Err(error) = self.transport.datagram(node, LEASE_PATH, datagram.encode()) {
            // As lost as any datagram may be; the cores count on that.
            tracing::trace!(node, %error, "lease datagram not sent");
        }
    }

    fn send_all(&self, outbox: Outbox) {
        for (node, datagram) in outbox {
            self.send(&node, &datagram);
        }
    }

    fn take(&self, peer: &Peer, datagram: LeaseDatagram) {
        match datagram {
            LeaseDatagram::Renew { seq } => self.renewed(peer, seq),
            // Only servers know who leads: an agent's word must not move anybody. The leader may be so new that only the others
            // have heard of it.
            LeaseDatagram::Grant { term, seq } if self.is_server(&peer.node) || self.follows(&peer.node) => {
                self.renewal(RenewalEvent::Granted { leader: peer.node.to_string(), term, seq });
            }
            LeaseDatagram::Leader { leader, term } if self.is_server(&peer.node) => {
                self.renewal(RenewalEvent::Leader { leader, term });
            }
            LeaseDatagram::Grant { .. } | LeaseDatagram::Leader { .. } => {
                tracing::debug!(node = %peer.node, "who is no known server says who leads; not believed");
            }
            LeaseDatagram::Probe { node } => self.ping(node, peer.node.to_string()),
            LeaseDatagram::Probed { node, reached } => {
                self.lease(LeaseEvent::Probed { node, by: peer.node.to_string(), reached });
            }
            LeaseDatagram::Ping { id } => self.send(&peer.node, &LeaseDatagram::Pong { id }),
            LeaseDatagram::Pong { id } => {
                let ping = {
                    let mut state = self.state.lock();
                    // Only the one who was asked may answer.
                    match state.pings.get(&id) {
                        Some(ping) if *ping.node == *peer.node => state.pings.remove(&id),
                        _ => None,
                    }
                };
                if let Some(ping) = ping {
                    self.report(ping, true);
                }
            }
            LeaseDatagram::Confirm { term } => {
                let follows = self.state.lock().known == Some((peer.node.to_string(), term));
                self.send(&peer.node, &LeaseDatagram::Confirmed { term, follows });
            }
            LeaseDatagram::Confirmed { term, follows } => self.confirmed(&peer.node, term, follows),
        }
    }

    fn follows(&self, node: &str) -> bool {
        self.state.lock().renewal.leader() == Some(node)
    }

    fn is_server(&self, node: &str) -> bool {
        self.servers.borrow().iter().any(|server| server == node)
    }

    fn quorum(&self, heard: bool) {
        let before = {
            let mut state = self.state.lock();
            // Of a server that does not lead it says nothing.
            if state.leading.is_none() {
                state.quorum = true;
                return;
            }
            std::mem::replace(&mut state.quorum, heard)
        };
        match (before, heard) {
            (true, false) => self.renewal(RenewalEvent::Deposed { silent_ms: leader_silence_ms() }),
            (false, true) => self.lease(LeaseEvent::Resumed),
            _ => {}
        }
    }

    fn ask_quorum(&self) {
        if let Some(heard) = &self.heard
            && self.state.lock().leading.is_some()
        {
            self.quorum(heard());
        }
    }

    fn renewed(&self, peer: &Peer, seq: u64) {
        self.ask_quorum();
        let answer = {
            let state = self.state.lock();
            match (&state.leading, &state.known) {
                (Some(_), _) if !state.quorum => None,
                (Some(leading), _) => Some(LeaseDatagram::Grant { term: leading.term, seq }),
                (None, Some((leader, term))) => Some(LeaseDatagram::Leader { leader: leader.clone(), term: *term }),
                (None, None) => None,
            }
        };
        let granted = matches!(answer, Some(LeaseDatagram::Grant { .. }));
        if let Some(answer) = answer {
            self.send(&peer.node, &answer);
        }
        if granted {
            let (node, incarnation) = (peer.node.to_string(), peer.incarnation);
            self.lease(LeaseEvent::Renewed { node, incarnation });
        }
    }

    fn link_closed(&self, node: &str) {
        self.lease(LeaseEvent::LinkClosed { node: node.to_owned() });
    }

    fn tick(&self) {
        self.ask_quorum();
        self.renewal(RenewalEvent::Tick);
        self.lease(LeaseEvent::Tick);
        let now = self.now();
        let late: Vec<Ping> = {
            let mut state = self.state.lock();
            let limit = self.times.probe_ms;
            state.pings.extract_if(|_, ping| now.saturating_sub(ping.sent) >= limit).map(|(_, ping)| ping).collect()
        };
        for ping in late {
            self.report(ping, false);
        }
    }

    /// Brings an event to the node's core and does what it says.
    fn renewal(&self, event: RenewalEvent) {
        let now = self.now();
        let actions = self.state.lock().renewal.on_event(event, now);
        for action in actions {
            match action {
                RenewalAction::Renew { to, seq } => self.send(&to, &LeaseDatagram::Renew { seq }),
                RenewalAction::RenewAll { seq } => {
                    let servers = self.servers.borrow().clone();
                    for server in servers {
                        self.send(&server, &LeaseDatagram::Renew { seq });
                    }
                }
                RenewalAction::Fence => {
                    tracing::warn!("the lease has lapsed: this node may be declared lost");
                    self.status.send_modify(|status| {
                        status.fenced = true;
                        status.lapses += 1;
                    });
                }
                RenewalAction::Unfence => self.status.send_modify(|status| status.fenced = false),
                RenewalAction::Follow { leader, term } => {
                    // Two threads may come here in either order.
                    self.status.send_if_modified(|status| {
                        let newer = status.leader.as_ref().is_none_or(|(_, known)| *known < term);
                        if newer {
                            status.leader = Some((leader, term));
                        }
                        newer
                    });
                }
            }
        }
    }

    /// Brings an event to the leader's core, if this leads, and does what it says.
    fn lease(&self, event: LeaseEvent) {
        let now = self.now();
        let mut outbox = Outbox::new();
        let mut own = Vec::new();
        {
            let mut state = self.state.lock();
            if !state.quorum {
                return;
            }
            let Some(leading) = &mut state.leading else { return };
            for action in leading.table.on_event(event, now) {
                match action {
                    LeaseAction::Probe { node, via } => {
                        for peer in via {
                            outbox.push((peer, LeaseDatagram::Probe { node: node.clone() }));
                        }
                        own.push(node);
                    }
                    LeaseAction::Lost { node, incarnation, silent_ms } => {
                        tracing::warn!(node, incarnation, silent_ms, "node lost");
                        leading.tell(NodeEvent::Lost { node, incarnation, silent_ms });
                    }
                    LeaseAction::Back { node, incarnation } => {
                        tracing::info!(node, incarnation, "node renews its lease");
                        leading.tell(NodeEvent::Back { node, incarnation });
                    }
                    LeaseAction::Confirm => {
                        leading.followers.clear();
                        for server in self.servers.borrow().iter() {
                            outbox.push((server.clone(), LeaseDatagram::Confirm { term: leading.term }));
                        }
                    }
                }
            }
        }
        self.send_all(outbox);
        let me = self.transport.node().to_string();
        for node in own {
            self.ping(node, me.clone());
        }
    }

    fn confirmed(&self, server: &str, term: u64, follows: bool) {
        let majority = {
            // A copy: elsewhere the state is locked first.
            let servers = self.servers.borrow().clone();
            let mut state = self.state.lock();
            let Some(leading) = state.leading.as_mut().filter(|leading| leading.term == term && follows) else {
                return;
            };
            if !servers.iter().any(|s| s == server) || leading.followers.iter().any(|s| s == server) {
                return;
            }
            leading.followers.push(server.to_owned());
            // Its own answer comes back to it by loopback and counts like the others'.
            leading.followers.len() * 2 > servers.len()
        };
        if majority {
            self.lease(LeaseEvent::Confirmed { majority });
        }
    }

    fn ping(&self, node: String, asked_by: String) {
        let id = {
            let mut state = self.state.lock();
            if state.pings.len() >= PINGS_MAX {
                return;
            }
            let id = state.next_ping;
            state.next_ping += 1;
            let ping = Ping { node: node.clone(), asked_by, sent: self.now() };
            state.pings.insert(id, ping);
            id
        };
        self.send(&node, &LeaseDatagram::Ping { id });
    }

    fn report(&self, ping: Ping, reached: bool) {
        if *ping.asked_by == **self.transport.node() {
            self.lease(LeaseEvent::Probed { node: ping.node, by: ping.asked_by, reached });
        } else {
            self.send(&ping.asked_by, &LeaseDatagram::Probed { node: ping.node, reached });
        }
    }
}

impl Leading {
    fn tell(&self, event: NodeEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            tracing::error!(?event, "the control plane does not keep up with lost and returning nodes");
        }
    }
}

#[cfg(test)]
#[path = "endpoint_test.rs"]
mod tests;
