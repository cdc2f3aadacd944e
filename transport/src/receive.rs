//! References to actors of any node as receivers of one type of message ([`Recipient`]): a pool, a group or a field that does not care what its
//! actors are does not care either where they run. Must never say more than a receiver within a system can: errors that only a network has are
//! told in its words, and logged.

use futures::future::BoxFuture;
use phalanx_actors::{
    AskError as LocalAskError, Exit, Handler, Message, Pid, Receive, Recipient, Rejected as LocalRejected,
    SendError as LocalSendError,
};

use crate::{
    error::{AskError, Rejected, SendError},
    named::RemoteNamed,
    refs::RemoteRef,
    remote::Remote,
    shared::RemoteActor,
};

impl<M> From<Rejected<M>> for LocalRejected<M> {
    fn from(Rejected { error, message }: Rejected<M>) -> Self {
        Self { error: local_send_error(error), message }
    }
}

impl<A, M> Receive<M> for RemoteRef<A>
where
    A: RemoteActor + Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn try_tell(&self, message: M) -> Result<(), LocalRejected<M>> {
        RemoteRef::try_tell(self, message).map_err(Into::into)
    }

    fn send(&self, message: M) -> BoxFuture<'static, Result<(), LocalSendError>> {
        let sending = RemoteRef::send(self, message);
        Box::pin(async move { sending.await.map_err(local_send_error) })
    }

    fn ask(&self, message: M) -> BoxFuture<'static, Result<<M as Message>::Reply, LocalAskError>> {
        let asking = RemoteRef::ask(self, message);
        Box::pin(async move { asking.await.map_err(local_ask_error) })
    }

    fn pid(&self) -> Option<Pid> {
        self.local().map(phalanx_actors::Ref::pid)
    }
}

impl<A, M> Receive<M> for RemoteNamed<A>
where
    A: RemoteActor + Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn try_tell(&self, message: M) -> Result<(), LocalRejected<M>> {
        RemoteNamed::try_tell(self, message).map_err(Into::into)
    }

    fn send(&self, message: M) -> BoxFuture<'static, Result<(), LocalSendError>> {
        let sending = RemoteNamed::send(self, message);
        Box::pin(async move { sending.await.map_err(local_send_error) })
    }

    fn ask(&self, message: M) -> BoxFuture<'static, Result<<M as Message>::Reply, LocalAskError>> {
        let asking = RemoteNamed::ask(self, message);
        Box::pin(async move { asking.await.map_err(local_ask_error) })
    }

    fn pid(&self) -> Option<Pid> {
        None
    }
}

impl<A, M> From<RemoteRef<A>> for Recipient<M>
where
    A: RemoteActor + Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn from(actor: RemoteRef<A>) -> Self {
        Recipient::new(actor)
    }
}

impl<A, M> From<RemoteNamed<A>> for Recipient<M>
where
    A: RemoteActor + Handler<M>,
    M: Remote + Message<Reply = <M as Remote>::Reply>,
{
    fn from(actor: RemoteNamed<A>) -> Self {
        Recipient::new(actor)
    }
}

/// What a transport's error is to whoever holds a receiver.
pub(crate) fn local_send_error(error: SendError) -> LocalSendError {
    match error {
        SendError::Full { .. } => LocalSendError::Full,
        SendError::Closed
        | SendError::NoConnection { .. }
        | SendError::NoProc { .. }
        | SendError::Unsupported { .. } => LocalSendError::Closed,
        SendError::TooLarge { .. } | SendError::Unencodable(_) => {
            // A single system has no word for it.
            tracing::warn!("a message to an actor elsewhere was not sent: {error}");
            LocalSendError::Closed
        }
    }
}

/// As [`local_send_error`].
pub(crate) fn local_ask_error(error: AskError) -> LocalAskError {
    match error {
        AskError::NoProc { .. } => LocalAskError::NoProc,
        AskError::Exited { exit, .. } => LocalAskError::Exited(exit),
        AskError::NoReply { .. } => LocalAskError::NoReply,
        AskError::Timeout { .. } => LocalAskError::Timeout,
        AskError::Closed | AskError::NoConnection { .. } | AskError::Refused { .. } => {
            LocalAskError::Exited(Exit::NoConnection)
        }
        AskError::BadMessage { .. }
        | AskError::BadReply { .. }
        | AskError::OtherType { .. }
        | AskError::Remote(_)
        | AskError::TooLarge { .. }
        | AskError::Unencodable(_)
        | AskError::Unsupported { .. }
        | AskError::UnknownMessage { .. } => {
            tracing::warn!("a question to an actor elsewhere has no answer: {error}");
            LocalAskError::NoReply
        }
    }
}
