//! The handling of tells that have arrived: who takes them at the end of a route, and what becomes of each. Runs on the handlers'
//! runtime, asked by `inbox` batch by batch; must never panic, and never let a handler's panic pass.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use futures::future::BoxFuture;
use phalanx_actors::{Actor, Ref, Trace};

use crate::{
    endpoint::Node,
    event::Peer,
    frame::{Route, Tell},
    guard::{guarded, panicked},
    inbox::{Receiver, Sink},
    link::Link,
    peer::Counters,
    refs::Reader,
    registry::Failure,
    remote::Remote,
};

/// What is left of the handling of a tell.
pub(crate) type Rest = BoxFuture<'static, Result<(), Failure>>;

/// Takes tells of one type of message, one after the other.
pub(crate) trait Teller: Send {
    /// Begins to handle one; gives what is left to wait for before the next. Without anybody to take it, `NoProc`.
    fn tell(&mut self, reader: &mut Reader, peer: &Peer, body: &[u8]) -> Result<Option<Rest>, Failure>;
}

/// Puts tells into the mailbox of an actor, and waits only while that is full.
pub(crate) struct ActorTeller<A: Actor, M> {
    actor: Ref<A>,
    message: std::marker::PhantomData<fn(M)>,
}

impl<A: Actor, M> ActorTeller<A, M> {
    pub(crate) fn new(actor: Ref<A>) -> Self {
        Self { actor, message: std::marker::PhantomData }
    }
}

impl<A, M> Teller for ActorTeller<A, M>
where
    A: phalanx_actors::Handler<M>,
    M: Remote + phalanx_actors::Message,
{
    fn tell(&mut self, reader: &mut Reader, _: &Peer, body: &[u8]) -> Result<Option<Rest>, Failure> {
        let message: M = reader.read(body)?;
        let Err(rejected) = self.actor.try_tell(message) else {
            return Ok(None);
        };
        if rejected.error != phalanx_actors::SendError::Full {
            return Err(Failure::NoProc);
        }
        let actor = self.actor.clone();
        Ok(Some(Box::pin(async move { actor.send(rejected.message).await.map_err(|_| Failure::NoProc) })))
    }
}

/// Where the tells of one sender to one path go.
pub(crate) struct TellRoute {
    node: Arc<Node>,
    peer: Peer,
    /// Where they come from; `None` for this node's own.
    link: Option<Arc<Link>>,
    /// Whether the sender hears when they leave the inbox.
    counted: bool,
    /// It has a number, and is counted with the routes.
    numbered: bool,
    path: Arc<str>,
    name: Box<str>,
    version: u16,
    version_min: u16,
    pid: Option<u64>,
}

impl TellRoute {
    /// The way of one tell. `link`: where it came from, and whether that hears when it leaves the inbox.
    pub(crate) fn of_tell(node: &Arc<Node>, peer: &Peer, link: Option<(&Arc<Link>, bool)>, tell: &Tell<'_>) -> Self {
        Self {
            node: node.clone(),
            peer: peer.clone(),
            link: link.map(|(link, _)| link.clone()),
            counted: link.is_some_and(|(_, counted)| counted),
            numbered: false,
            path: tell.path.into(),
            name: tell.name.into(),
            version: tell.version,
            version_min: tell.more.map_or(tell.version, |more| more.version_min),
            pid: tell.more.and_then(|more| more.pid),
        }
    }

    /// The way of all tells with a number.
    pub(crate) fn of_route(node: &Arc<Node>, link: &Arc<Link>, route: &Route<'_>) -> Self {
        Self {
            node: node.clone(),
            peer: link.peer.clone(),
            link: Some(link.clone()),
            counted: true,
            numbered: true,
            path: route.path.into(),
            name: route.name.into(),
            version: route.version,
            version_min: route.version_min,
            pid: route.pid,
        }
    }

    fn teller(&self) -> Result<Box<dyn Teller>, Failure> {
        self.node.teller(&self.path, &self.name, self.version, self.version_min, self.pid)
    }

    fn failed(&self, failure: &Failure) {
        if matches!(failure, Failure::BadMessage(_) | Failure::NoProc | Failure::UnknownMessage) {
            self.count_dropped();
        }
        tracing::debug!(node = %self.peer.node, path = %self.path, "a tell of {} failed: {failure:?}", self.name);
    }

    fn count_dropped(&self) {
        if let Some(link) = &self.link {
            Counters::add(&link.counters.dropped);
        }
    }

    /// The node is as if dead, or its peer is not let in any more.
    fn is_over(&self) -> bool {
        self.node.is_dead() || self.link.as_ref().is_some_and(|link| link.is_cast_out())
    }
}

impl Receiver for TellRoute {
    fn path(&self) -> &Arc<str> {
        &self.path
    }

    fn bytes(&self) -> usize {
        if self.numbered { 0 } else { self.path.len() + self.name.len() }
    }

    fn is_served(&self) -> bool {
        self.teller().is_ok()
    }

    fn sink(self: Arc<Self>) -> Box<dyn Sink> {
        Box::new(TellSink { teller: self.teller(), proven: false, reader: Reader::new(&self.node), route: self })
    }

    fn took(&self, messages: usize, body_bytes: usize) {
        if let Some(link) = self.link.as_ref().filter(|_| self.counted) {
            link.take_off(&self.path, messages, body_bytes);
        }
    }

    fn dropped(&self, body_bytes: usize, begins: bool) {
        self.took(1, body_bytes);
        self.count_dropped();
        if begins {
            let (path, node) = (&self.path, &self.peer.node);
            tracing::warn!(%node, %path, "inbox of {path} is full: dropping tells from {node} until there is room");
        }
    }
}

struct TellSink {
    route: Arc<TellRoute>,
    teller: Result<Box<dyn Teller>, Failure>,
    /// It has taken a message.
    proven: bool,
    reader: Reader,
}

impl TellSink {
    fn begin(&mut self, body: &[u8]) -> Result<Option<Rest>, Failure> {
        match &mut self.teller {
            Ok(teller) => teller.tell(&mut self.reader, &self.route.peer, body),
            Err(failure) => Err(failure.clone()),
        }
    }

    /// As `begin`. Whoever took the messages before may have ended, and another be in its place.
    fn begin_again(&mut self, body: &[u8]) -> Result<Option<Rest>, Failure> {
        let begun = self.begin(body);
        if matches!(begun, Err(Failure::NoProc)) && self.proven && self.route.pid.is_none() {
            self.teller = self.route.teller();
            self.proven = false;
            return self.begin(body);
        }
        self.proven |= begun.is_ok();
        begun
    }
}

impl Sink for TellSink {
    fn take(&mut self, trace: Option<&str>, body: &[u8]) -> Option<BoxFuture<'static, ()>> {
        if self.route.is_over() {
            return None;
        }
        let trace = trace.and_then(|trace| trace.parse::<Trace>().ok());
        let begun = catch_unwind(AssertUnwindSafe(|| match trace {
            Some(trace) => trace.scope(|| self.begin_again(body)),
            None => self.begin_again(body),
        }));
        let rest = match begun.unwrap_or_else(|panic| Err(panicked(&*panic))) {
            Ok(rest) => rest?,
            Err(failure) => {
                self.route.failed(&failure);
                return None;
            }
        };
        let route = self.route.clone();
        Some(Box::pin(async move {
            let handling = guarded(|| rest);
            let handled = match trace {
                Some(trace) => trace.scope_async(handling).await,
                None => handling.await,
            };
            if let Err(failure) = handled {
                route.failed(&failure);
            }
        }))
    }
}
