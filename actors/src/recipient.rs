//! Whoever handles messages of one type, whatever else it is: how a group, a pool or a test holds actors of different types.
//!
//! Must never know where the receiver runs: [`Receive`] is also what a reference to an actor on another machine implements.

use crate::actor::{Actor, Handler, Message};
use crate::error::{AskError, SendError};
use crate::pid::Pid;
use crate::refs::Ref;
use futures::future::BoxFuture;
use std::fmt;
use std::sync::Arc;

/// A message that was not taken, with the reason.
#[derive(Debug)]
pub struct Rejected<M> {
    /// Why.
    pub error: SendError,
    /// What was to be told.
    pub message: M,
}

/// What a [`Recipient`] stands for. Implemented by [`Ref`], and by whoever brings messages elsewhere.
pub trait Receive<M: Message>: Send + Sync + 'static {
    /// Takes the message or gives it back; never waits.
    fn try_tell(&self, message: M) -> Result<(), Rejected<M>>;
    /// Waits for room.
    fn send(&self, message: M) -> BoxFuture<'static, Result<(), SendError>>;
    /// Waits for room, then for the answer.
    fn ask(&self, message: M) -> BoxFuture<'static, Result<M::Reply, AskError>>;
    /// The incarnation; `None` when it does not run in this process.
    fn pid(&self) -> Option<Pid>;
}

impl<A: Handler<M>, M: Message> Receive<M> for Ref<A> {
    fn try_tell(&self, message: M) -> Result<(), Rejected<M>> {
        Ref::try_tell(self, message)
    }

    fn send(&self, message: M) -> BoxFuture<'static, Result<(), SendError>> {
        let receiver = self.clone();
        Box::pin(async move { Ref::send(&receiver, message).await })
    }

    fn ask(&self, message: M) -> BoxFuture<'static, Result<M::Reply, AskError>> {
        let receiver = self.clone();
        Box::pin(async move { Ref::ask(&receiver, message).await })
    }

    fn pid(&self) -> Option<Pid> {
        Some(Ref::pid(self))
    }
}

/// A reference to one receiver of messages of type `M`. Cheap to clone: one counter.
///
/// ```
/// use phalanx_actors::*;
/// struct Tick;
/// impl Message for Tick {
///     type Reply = ();
/// }
/// struct Clock {
///     display: Recipient<Tick>,
/// }
/// fn of<A: Handler<Tick>>(actor: Ref<A>) -> Clock {
///     Clock { display: actor.into() }
/// }
/// ```
pub struct Recipient<M: Message>(Arc<dyn Receive<M>>);

impl<M: Message> Recipient<M> {
    /// Of anything that receives.
    pub fn new(receiver: impl Receive<M>) -> Self {
        Recipient(Arc::new(receiver))
    }

    /// Puts a message into the mailbox, never waits. See [`Ref::tell`].
    pub fn tell(&self, message: M) -> Result<(), SendError> {
        self.0.try_tell(message).map_err(|rejected| rejected.error)
    }

    /// As [`Recipient::tell`], and gives the message back when it is not taken.
    pub fn try_tell(&self, message: M) -> Result<(), Rejected<M>> {
        self.0.try_tell(message)
    }

    /// As [`Recipient::tell`], but waits while the mailbox is full. See [`Ref::send`].
    pub async fn send(&self, message: M) -> Result<(), SendError> {
        self.0.send(message).await
    }

    /// Waits for room in the mailbox, then for the answer. See [`Ref::ask`].
    pub async fn ask(&self, message: M) -> Result<M::Reply, AskError> {
        self.0.ask(message).await
    }

    /// The incarnation; `None` when it does not run in this process.
    pub fn pid(&self) -> Option<Pid> {
        self.0.pid()
    }
}

impl<A: Handler<M>, M: Message> From<Ref<A>> for Recipient<M> {
    fn from(actor: Ref<A>) -> Self {
        Recipient::new(actor)
    }
}

impl<A: Actor> Ref<A> {
    /// The same receiver, known only by one type of message.
    pub fn recipient<M: Message>(&self) -> Recipient<M>
    where
        A: Handler<M>,
    {
        Recipient::new(self.clone())
    }
}

impl<M: Message> Clone for Recipient<M> {
    fn clone(&self) -> Self {
        Recipient(self.0.clone())
    }
}

impl<M: Message> fmt::Debug for Recipient<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid() {
            Some(pid) => write!(f, "Recipient({pid:?})"),
            None => f.write_str("Recipient(elsewhere)"),
        }
    }
}
