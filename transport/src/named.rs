//! References to whoever runs at a path of a node: the remote counterpart of [`Named`]. Each call finds the present incarnation, of the actor and
//! of the node; keeps nothing. Given out by [`Transport::named`](crate::Transport::named).

use std::{fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use phalanx_actors::{Actor, Exit, Handler, Message, Named};
use tokio::time::Instant;

use crate::{
    ask::{Request, deadline_in},
    endpoint::Node,
    error::{AskError, Rejected, SendError},
    event::NodeName,
    frame::signal,
    refs::{RemoteRef, ask, ask_error, current_link, lookup, send, send_error, signal_to, tell},
    remote::{Envelope, Remote},
    shared::RemoteActor,
    ties::write_exit,
};

/// A reference to whoever runs at a path of a node; each call finds the present incarnation, of the actor and of the node.
pub struct RemoteNamed<A: Actor> {
    own: Arc<Node>,
    node: NodeName,
    path: Arc<str>,
    actor: PhantomData<fn(A)>,
}

impl<A: RemoteActor> RemoteNamed<A> {
    pub(crate) fn new(own: &Arc<Node>, node: &str, path: &str) -> Self {
        RemoteNamed { own: own.clone(), node: node.into(), path: path.into(), actor: PhantomData }
    }

    /// The node.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// The path there.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A reference to the present incarnation. Waits for a connection and for the answer of the node, for
    /// [`Timings::lookup_ms`](crate::Timings::lookup_ms) at most.
    ///
    /// # Errors
    /// [`AskError::NoProc`]: no shared actor runs there; [`AskError::OtherType`]: not one of type `A`.
    pub async fn resolve(&self) -> Result<RemoteRef<A>, AskError> {
        lookup(&self.own, &self.node, &self.path).await
    }

    /// See [`RemoteRef::tell`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn tell<M>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        self.try_tell(message).map_err(|rejected| rejected.error)
    }

    /// See [`RemoteRef::try_tell`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn try_tell<M>(&self, message: M) -> Result<(), Rejected<M>>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        if let Some(actor) = self.local() {
            return actor.try_tell(message).map_err(|rejected| Rejected {
                error: send_error(rejected.error, &self.node, &self.path),
                message: rejected.message,
            });
        }
        let told = current_link(&self.own, &self.node).and_then(|link| tell(&link, &self.path, None, &message));
        told.map_err(|error| Rejected { error, message })
    }

    /// See [`RemoteRef::send`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send<M>(&self, message: M) -> impl Future<Output = Result<(), SendError>> + Send + use<A, M>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let me = self.clone();
        async move {
            if let Some(actor) = me.local() {
                let sent = actor.send(message).await;
                return sent.map_err(|error| send_error(error, &me.node, &me.path));
            }
            send(current_link(&me.own, &me.node)?, &me.path, None, message).await
        }
    }

    /// See [`RemoteRef::ask`].
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask<M>(&self, message: M) -> impl Future<Output = Result<<M as Remote>::Reply, AskError>> + Send + use<A, M>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        self.ask_until(message, None)
    }

    /// See [`RemoteRef::ask_timeout`].
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask_timeout<M>(
        &self,
        message: M,
        limit: Duration,
    ) -> impl Future<Output = Result<<M as Remote>::Reply, AskError>> + Send + use<A, M>
    where
        A: Handler<M>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        self.ask_until(message, deadline_in(limit))
    }

    /// See [`RemoteRef::ask_until`].
    ///
    /// # Errors
    /// See [`AskError`].
    pub fn ask_until<M, D>(
        &self,
        message: M,
        deadline: D,
    ) -> impl Future<Output = Result<<M as Remote>::Reply, AskError>> + Send + use<A, M, D>
    where
        A: Handler<M>,
        D: Into<Option<Instant>>,
        M: Remote + Message<Reply = <M as Remote>::Reply>,
    {
        let (me, deadline) = (self.clone(), deadline.into());
        async move {
            if let Some(actor) = me.local() {
                let asked = actor.ask_until(message, deadline).await;
                return asked.map_err(|error| ask_error(error, &me.node, &me.path));
            }
            let request = Request::until(&me.own, &me.node, &me.path, Envelope::of::<M>(), deadline).at_once();
            ask(&me.own, request, &me.path, message).await
        }
    }

    /// Asks whoever runs there to stop. See [`Pid::stop`].
    ///
    /// # Errors
    /// No connection to the node now.
    pub fn stop(&self, reason: Exit) -> Result<(), SendError> {
        match self.local() {
            Some(actor) => actor.stop(reason),
            None => self.signal(signal::STOP, &write_exit(&reason))?,
        }
        Ok(())
    }

    /// Ends whoever runs there. See [`Pid::kill`].
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub fn kill(&self) -> Result<(), SendError> {
        match self.local() {
            Some(actor) => actor.kill(),
            None => self.signal(signal::KILL, &[])?,
        }
        Ok(())
    }

    /// On this node.
    fn local(&self) -> Option<Named<A>> {
        if self.node != self.own.me.node {
            return None;
        }
        Some(self.own.shared.system()?.named(&self.path))
    }

    fn signal(&self, what: u8, reason: &[u8]) -> Result<(), SendError> {
        signal_to(&*current_link(&self.own, &self.node)?, &self.path, None, what, reason)
    }
}

impl<A: Actor> Clone for RemoteNamed<A> {
    fn clone(&self) -> Self {
        RemoteNamed { own: self.own.clone(), node: self.node.clone(), path: self.path.clone(), actor: PhantomData }
    }
}

impl<A: Actor> fmt::Debug for RemoteNamed<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteNamed({}@{})", self.path, self.node)
    }
}
