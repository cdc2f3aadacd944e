//! The actors of a member: one keeps it acquainted with the others, one (on servers) takes and leaves the lead.
//!
//! Must never hold state that a restart would miss: each begins from the store, the transport and the disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_actors::{Actor, Ctx, Exit, Handler, Message, Reply};
use phalanx_transport::Transport;

use super::member::{Hello, MEMBERSHIP_PATH, Shared};
use super::membership::MEMBERS_PREFIX;
use crate::control::endpoint::NodeEvent;
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

/// Follows Raft: leads the leases while this server leads, and follows whoever else does.
pub struct Leadership {
    shared: Arc<Shared>,
    leading: Option<u64>,
}

impl Leadership {
    /// For one server.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, leading: None }
    }

    fn office(&mut self, office: Office, ctx: &mut Ctx<Self>) {
        if office.is_self {
            if self.leading != Some(office.term) {
                self.leading = Some(office.term);
                self.lead(office.term, ctx);
            }
            return;
        }
        if self.leading.take().is_some() {
            tracing::info!("this server leads no more");
            self.shared.leases.step_down();
        }
        let members = self.shared.members.read();
        let leader = members.iter().find(|m| m.server_id.is_some() && m.server_id == office.leader);
        if let Some(leader) = leader {
            self.shared.leases.follow(&leader.name, office.term);
        }
    }

    fn lead(&mut self, term: u64, ctx: &mut Ctx<Self>) {
        let Some(membership) = self.shared.membership() else { return };
        tracing::info!(term, "this server leads");
        if let Some(registry) = self.shared.registry() {
            ctx.spawn(async move {
                if let Err(error) = registry.ensure_bootstrap().await {
                    tracing::warn!(%error, "cannot make the first namespaces; the next leader will");
                }
            });
        }
        let known = async move {
            // Local: a leader that accepts writes has applied all that was acknowledged before.
            let members = membership.members(Consistency::Local).await;
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
            this.shared.learn(members);
            let mut events = this.shared.leases.lead(term, nodes, &lost);
            let me = ctx.self_ref();
            ctx.spawn(async move {
                while let Some(event) = events.recv().await {
                    if me.send(Changed(event)).await.is_err() {
                        return;
                    }
                }
            });
        });
    }
}

struct Changed(NodeEvent);

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

    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.shared.leases.step_down();
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
    fn handle(&mut self, Changed(event): Changed, ctx: &mut Ctx<Self>) -> Reply<()> {
        let Some(membership) = self.shared.membership() else { return ().into() };
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
