//! The actors of a member: one keeps it acquainted with the others, one (on servers) takes and leaves the lead.
//!
//! Must never hold state that a restart would miss: each begins from the store, the transport and the disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_actors::{
    Actor, ChildError, ChildSpec, Ctx, Exit, Handler, Message, Reply, Strategy, SupervisorRef, SupervisorSpec,
};
use phalanx_transport::Transport;

use super::member::{Hello, MEMBERSHIP_PATH, Shared};
use super::membership::MEMBERS_PREFIX;
use crate::control::endpoint::NodeEvent;
use crate::control::node::{Look, NodeActor, NodeDeps, Standing, Standings, node_child};
use crate::control::session::assignments::Assignments;
use crate::control::session::server::Desk;
use crate::controllers::watches::Watches;
use crate::controllers::{ControlDeps, control_children};
use crate::registry::Recorder;
use crate::security::join::MemberRecord;
use crate::store::{Consistency, Leadership as Office, Store, prefix_end};

/// How often a member asks a server for news of the others.
const HELLO_EVERY: Duration = Duration::from_secs(2);
/// While nobody has answered yet.
const HELLO_RETRY: Duration = Duration::from_millis(100);
/// How long it waits for the answer.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// Tells the transport where the others are.
pub fn set_peers(transport: &Transport, members: &[MemberRecord], me: &str) {
    for member in members.iter().filter(|m| m.name != me) {
        // Empty until it has said where it is.
        if let Ok(addr) = member.transport.parse::<SocketAddr>() {
            transport.set_peer(&member.name, addr);
        }
    }
}

/// Says hello to a server now and then: where this member is, and who is there.
pub struct Refresh {
    shared: Arc<Shared>,
    next: usize,
}

impl Refresh {
    /// For one member.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, next: 0 }
    }

    fn hello(&mut self, ctx: &mut Ctx<Self>) {
        let servers = self.shared.servers.borrow().clone();
        let leader = self.shared.leases.status().borrow().leader.clone().map(|(name, _)| name);
        // The leader knows most; when it does not answer, another is asked next time.
        let server = match leader.filter(|_| self.next == 0) {
            Some(leader) => leader,
            None if servers.is_empty() => return,
            None => servers[self.next % servers.len()].clone(),
        };
        let me = &self.shared.node.member;
        let hello = Hello { transport: me.transport.clone(), api: me.api.clone() };
        let answer = self.shared.transport.ask(&server, MEMBERSHIP_PATH, &hello, HELLO_DEADLINE);
        ctx.pipe(answer, move |this, answer, ctx| {
            let pause = match answer {
                Ok(members) => {
                    this.next = 0;
                    this.shared.learn(members);
                    HELLO_EVERY
                }
                Err(error) => {
                    tracing::debug!(server, %error, "no news of the members");
                    this.next += 1;
                    HELLO_RETRY
                }
            };
            ctx.send_after(pause, Again);
        });
    }
}

struct Again;

impl Message for Again {
    type Reply = ();
}

impl Actor for Refresh {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        self.hello(ctx);
        Ok(())
    }
}

impl Handler<Again> for Refresh {
    fn handle(&mut self, _: Again, ctx: &mut Ctx<Self>) -> Reply<()> {
        self.hello(ctx);
        ().into()
    }
}

/// Restarts of the leader's parts before this server begins its term anew.
const CONTROL_INTENSITY: u32 = 10;
const CONTROL_PERIOD: Duration = Duration::from_secs(10);

/// Follows Raft: leads the leases and runs the control plane while this server leads, and follows whoever else does.
///
/// ```text
/// leadership
/// └── control (rest_for_one)     only on the leader
///     ├── nodes                  one Node actor a member
///     ├── scheduler
///     └── controllers
/// ```
pub struct Leadership {
    shared: Arc<Shared>,
    leading: Option<u64>,
    term: Option<Term>,
    /// Of the last term, which may still be ending.
    ending: Option<SupervisorRef>,
}

/// What runs for one term of leadership.
struct Term {
    control: SupervisorRef,
    standings: Standings,
    deps: NodeDeps,
    /// Feeds all of it; ends when it is dropped.
    _watches: Watches,
}

impl Leadership {
    /// For one server.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, leading: None, term: None, ending: None }
    }

    fn office(&mut self, office: Office, ctx: &mut Ctx<Self>) {
        if office.in_office {
            // A leader that does not hear from its quorum for a moment goes on, but grants no leases: what it writes needs
            // the quorum anyway, and beginning its term anew would cost more than the moment.
            self.shared.leases.quorum(office.is_self);
            if self.leading != Some(office.term) {
                self.leading = Some(office.term);
                self.lead(office.term, ctx);
            }
            return;
        }
        if self.leading.take().is_some() {
            tracing::info!("this server leads no more");
            self.step_down(ctx);
        }
        let members = self.shared.members.read();
        let leader = members.iter().find(|m| m.server_id.is_some() && m.server_id == office.leader);
        if let Some(leader) = leader {
            self.shared.leases.follow(&leader.name, office.term);
        }
    }

    fn step_down(&mut self, ctx: &mut Ctx<Self>) {
        self.shared.leases.step_down();
        if let Some(sessions) = &self.shared.sessions {
            sessions.close();
        }
        if let Some(term) = self.term.take() {
            let control = term.control;
            self.ending = Some(control.clone());
            ctx.spawn(async move { drop(control.stop().await) });
        }
    }

    fn lead(&mut self, term: u64, ctx: &mut Ctx<Self>) {
        // A term that follows its own predecessor.
        self.step_down(ctx);
        let Some(membership) = self.shared.membership() else { return };
        tracing::info!(term, "this server leads");
        if let Some(registry) = self.shared.registry() {
            ctx.spawn(async move {
                while let Err(error) = registry.ensure_bootstrap().await {
                    tracing::warn!(%error, "cannot make the first namespaces; trying again");
                    tokio::time::sleep(HELLO_RETRY).await;
                }
            });
        }
        let ending = self.ending.clone();
        let known = async move {
            if let Some(control) = ending {
                control.stop().await;
            }
            // What is read after this, and all that the watches begin with, has everything that was acknowledged before.
            let members = membership.members(Consistency::Linearizable).await;
            (members, membership.lost().await)
        };
        ctx.pipe(known, move |this, (members, lost), ctx| {
            if this.leading != Some(term) {
                return;
            }
            let (members, lost) = match (members, lost) {
                (Ok(members), Ok(lost)) => (members, lost),
                (Err(error), _) | (_, Err(error)) => {
                    // The supervisor starts this actor anew, and it begins with the present office.
                    return ctx.stop(Exit::Error(format!("cannot read the members: {error}")));
                }
            };
            let nodes: Vec<(String, u64)> = members.iter().map(|m| (m.name.clone(), 0)).collect();
            this.begin_term(term, &members, &lost, ctx);
            this.shared.learn(members);
            let mut events = this.shared.leases.lead(term, nodes, &lost);
            let me = ctx.self_ref();
            ctx.spawn(async move {
                while let Some(event) = events.recv().await {
                    if me.send(Changed { term, event }).await.is_err() {
                        return;
                    }
                }
            });
        });
    }
}

impl Leadership {
    /// Starts the scheduler, the controllers and the actors of the nodes, and serves the agents' sessions.
    fn begin_term(&mut self, term: u64, members: &[MemberRecord], lost: &[String], ctx: &mut Ctx<Self>) {
        let (Some(registry), Some(sessions)) = (self.shared.registry(), &self.shared.sessions) else { return };
        let runtime = self.shared.runtime.clone();
        let recorder = {
            let _entered = runtime.enter();
            Recorder::start(registry.clone())
        };
        let (registry_, recorder_, runtime_) = (registry.clone(), recorder.clone(), runtime.clone());
        let (children, watches) =
            control_children(&ControlDeps { registry: registry_, recorder: recorder_, runtime: runtime_, fault: None });
        let assignments = Assignments::start(&watches.pods, &runtime);
        let standings = Standings::default();
        for member in members {
            let is_lost = lost.contains(&member.name);
            standings.set(&member.name, if is_lost { Standing::Lost } else { Standing::Held });
        }
        let deps = NodeDeps {
            registry: registry.clone(),
            recorder: recorder.clone(),
            assignments: assignments.clone(),
            standings: standings.clone(),
            runtime,
        };
        let (names, node_deps): (Vec<String>, _) = (members.iter().map(|m| m.name.clone()).collect(), deps.clone());
        let nodes = ChildSpec::supervisor("nodes", move || {
            let nodes = SupervisorSpec::new("nodes", Strategy::OneForOne).unlimited();
            names.iter().fold(nodes, |nodes, name| nodes.child(node_child(name, &node_deps)))
        });
        let control = SupervisorSpec::new("control", Strategy::RestForOne)
            .intensity(CONTROL_INTENSITY, CONTROL_PERIOD)
            .child(nodes);
        let control = ctx.supervise(children.into_iter().fold(control, SupervisorSpec::child));
        let servers = self.shared.servers.subscribe();
        sessions.open(Desk {
            registry,
            recorder,
            assignments,
            standings: standings.clone(),
            term,
            is_server: Arc::new(move |node| servers.borrow().iter().any(|server| server == node)),
        });
        self.term = Some(Term { control, standings, deps, _watches: watches });
    }

    fn node_stands(&mut self, node: &str, standing: Standing, ctx: &mut Ctx<Self>) {
        let Some(term) = &self.term else { return };
        term.standings.set(node, standing);
        let path = format!("{}/nodes/{node}", term.control.path());
        let system = ctx.system();
        if system.named::<NodeActor>(&path).tell(Look).is_ok() {
            return;
        }
        // A node that is new, or whose actor is being restarted: that one finds the standing by itself.
        let (nodes, child) = (format!("{}/nodes", term.control.path()), node_child(node, &term.deps));
        ctx.spawn(async move {
            if let Some(nodes) = system.supervisor(&nodes) {
                match nodes.start_child(child).await {
                    Ok(_) | Err(ChildError::AlreadyStarted | ChildError::AlreadyPresent | ChildError::Restarting) => {}
                    Err(error) => tracing::warn!(path, %error, "cannot start the actor of a node"),
                }
            }
        });
    }
}

/// What the lease table of a term says.
struct Changed {
    term: u64,
    event: NodeEvent,
}

impl Message for Changed {
    type Reply = ();
}

impl Actor for Leadership {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        let Some(store) = self.shared.store.clone() else {
            return Err(Exit::Error("an agent never leads".into()));
        };
        let (mut offices, me) = (store.leadership(), ctx.self_ref());
        ctx.spawn(async move {
            loop {
                let office = offices.borrow_and_update().clone();
                if me.send(OfficeChanged(office)).await.is_err() || offices.changed().await.is_err() {
                    return;
                }
            }
        });
        // Servers see new members as soon as they are written.
        let shared = self.shared.clone();
        ctx.spawn(async move {
            loop {
                let Ok(mut watch) = store.watch(MEMBERS_PREFIX.into(), prefix_end(MEMBERS_PREFIX), 0) else { return };
                if let Some(membership) = shared.membership()
                    && let Ok(members) = membership.members(Consistency::Local).await
                    && !members.is_empty()
                {
                    shared.learn(members);
                }
                while let Some(Ok(_)) = watch.next().await {
                    if let Some(membership) = shared.membership()
                        && let Ok(members) = membership.members(Consistency::Local).await
                    {
                        shared.learn(members);
                    }
                }
                tokio::time::sleep(HELLO_RETRY).await;
            }
        });
        Ok(())
    }

    fn stopping(&mut self, _: &Exit, ctx: &mut Ctx<Self>) {
        self.step_down(ctx);
    }
}

struct OfficeChanged(Office);

impl Message for OfficeChanged {
    type Reply = ();
}

impl Handler<OfficeChanged> for Leadership {
    fn handle(&mut self, change: OfficeChanged, ctx: &mut Ctx<Self>) -> Reply<()> {
        self.office(change.0, ctx);
        ().into()
    }
}

impl Handler<Changed> for Leadership {
    fn handle(&mut self, Changed { term, event }: Changed, ctx: &mut Ctx<Self>) -> Reply<()> {
        // Of a term that is over: its successor has its own table.
        if self.leading != Some(term) {
            return ().into();
        }
        let Some(membership) = self.shared.membership() else { return ().into() };
        match &event {
            NodeEvent::Lost { node, .. } => self.node_stands(node, Standing::Lost, ctx),
            NodeEvent::Back { node, .. } => self.node_stands(node, Standing::Held, ctx),
        }
        ctx.spawn(async move {
            let done = match &event {
                NodeEvent::Lost { node, incarnation, .. } => membership.mark_lost(node, *incarnation).await,
                NodeEvent::Back { node, .. } => membership.mark_back(node).await,
            };
            if let Err(error) = done {
                // A new leader finds out by itself.
                tracing::warn!(?event, %error, "cannot record the state of a node");
            }
        });
        ().into()
    }
}
