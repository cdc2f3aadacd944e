//! Actors that other nodes may refer to: the attached system, and for each shared type of actor what it may be sent. Finds
//! and hands over; decides nothing about peers.

use std::{collections::HashMap, marker::PhantomData, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use phalanx_actors::{Actor, ActorType, AnyRef, Handler, Message, System};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    endpoint::Node,
    error::AttachError,
    refs,
    registry::{Failure, Outcome, encode_reply},
    remote::{Envelope, Remote, reader},
    tells::{ActorTeller, Teller},
};

/// An actor that other nodes may refer to, once its type is [shared](crate::Transport::share).
pub trait RemoteActor: Actor {
    /// Stable name of the type, the same in all builds.
    const NAME: &'static str;

    /// Names the messages that may come from other nodes. An actor may handle more than these.
    fn protocol(protocol: &mut Protocol<Self>);
}

/// The messages that an actor takes from other nodes.
pub struct Protocol<A: Actor> {
    messages: Vec<(Envelope<'static>, HandOver)>,
    actor: PhantomData<fn(A)>,
}

impl<A: Actor> Protocol<A> {
    /// Takes `M`. Several versions of one name are several types.
    pub fn message<M>(&mut self) -> &mut Self
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let envelope = Envelope::of::<M>();
        self.messages.retain(|(known, _)| (known.name, known.version) != (envelope.name, envelope.version));
        self.messages.push((envelope, HandOver::of::<A, M>()));
        self
    }
}

/// How a message is decoded and given to an actor.
#[derive(Clone, Copy)]
pub(crate) struct HandOver {
    pub(crate) ask: fn(Arc<Node>, AnyRef, Bytes, Instant) -> BoxFuture<'static, Outcome>,
    pub(crate) teller: fn(AnyRef) -> Result<Box<dyn Teller>, Failure>,
}

impl HandOver {
    fn of<A, M>() -> Self
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        Self { ask: ask::<A, M>, teller: teller::<A, M> }
    }
}

fn ask<A, M>(node: Arc<Node>, target: AnyRef, body: Bytes, deadline: Instant) -> BoxFuture<'static, Outcome>
where
    A: Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    Box::pin(async move {
        let message: M = refs::read(&node, &body)?;
        // A node that waits for its own actor would keep itself from closing.
        drop(node);
        let actor = target.downcast::<A>().ok_or(Failure::NoProc)?;
        answered(actor.ask_due(message, deadline).await)
    })
}

fn teller<A, M>(target: AnyRef) -> Result<Box<dyn Teller>, Failure>
where
    A: Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    let actor = target.downcast::<A>().ok_or(Failure::NoProc)?;
    Ok(Box::new(ActorTeller::<A, M>::new(actor)))
}

/// What the asker on another node gets of an actor's answer, or of its end.
pub(crate) fn answered<R: Serialize>(answer: Result<R, phalanx_actors::AskError>) -> Outcome {
    match answer {
        Ok(reply) => encode_reply(&reply),
        Err(phalanx_actors::AskError::NoReply) => Err(Failure::NoReply),
        Err(phalanx_actors::AskError::Exited(exit)) => Err(Failure::Exited(exit)),
        Err(error) => Err(Failure::from(error)),
    }
}

/// A type of actor.
struct Shared {
    name: &'static str,
    messages: Vec<(Envelope<'static>, HandOver)>,
}

/// What this node shares.
#[derive(Default)]
pub(crate) struct SharedActors {
    system: RwLock<Option<System>>,
    types: RwLock<HashMap<ActorType, Shared>>,
}

impl SharedActors {
    pub(crate) fn attach(&self, system: &System) -> Result<(), AttachError> {
        let mut attached = self.system.write();
        if attached.is_some() {
            return Err(AttachError::Attached);
        }
        *attached = Some(system.guest_handle());
        Ok(())
    }

    pub(crate) fn system(&self) -> Option<System> {
        self.system.read().clone()
    }

    pub(crate) fn share<A: RemoteActor>(&self) {
        if self.types.read().contains_key(&ActorType::of::<A>()) {
            return;
        }
        let mut protocol = Protocol { messages: vec![], actor: PhantomData };
        A::protocol(&mut protocol);
        let shared = Shared { name: A::NAME, messages: protocol.messages };
        self.types.write().insert(ActorType::of::<A>(), shared);
    }

    /// Forgets everything: actors may hold references, which hold the node that holds this.
    pub(crate) fn clear(&self) {
        let system = self.system.write().take();
        // Dropped outside of the lock.
        drop(system);
        self.types.write().clear();
    }

    /// The actor at a path, of this incarnation or of any. Only shared types are seen from other nodes.
    pub(crate) fn find(&self, path: &str, pid: Option<u64>) -> Option<AnyRef> {
        let found = self.any(path, pid)?;
        self.types.read().contains_key(&found.actor_type()).then_some(found)
    }

    /// As `find`, of whatever type.
    pub(crate) fn any(&self, path: &str, pid: Option<u64>) -> Option<AnyRef> {
        let found = self.system.read().as_ref()?.find(path)?;
        (pid.is_none_or(|pid| pid == found.pid().id())).then_some(found)
    }

    /// The name of an actor's type, if it is shared.
    pub(crate) fn type_name(&self, actor: &AnyRef) -> Option<&'static str> {
        Some(self.types.read().get(&actor.actor_type())?.name)
    }

    /// Who takes a message, and how.
    pub(crate) fn taker(
        &self,
        path: &str,
        pid: Option<u64>,
        message: &Envelope<'_>,
    ) -> Result<(HandOver, AnyRef), Failure> {
        let found = self.any(path, pid).ok_or(Failure::NoProc)?;
        let types = self.types.read();
        let shared = types.get(&found.actor_type()).ok_or(Failure::NoProc)?;
        let hand_over = *reader(&shared.messages, message).ok_or(Failure::UnknownMessage)?;
        drop(types);
        Ok((hand_over, found))
    }
}
