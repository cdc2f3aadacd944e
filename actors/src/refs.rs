//! References to actors: to one incarnation ([`Ref`]), and to whoever runs at a path ([`Named`]).
//!
//! Must never show what engine carries the messages. Cheap to clone: one counter.

use crate::actor::{Actor, Answer, Handler, Message};
use crate::error::{AskError, SendError};
use crate::exit::Exit;
use crate::note::Note;
use crate::panic::drop_guarded;
use crate::pid::Pid;
use crate::shell::Host;
use crate::system::Inner;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The receiving end of one incarnation.
pub(crate) struct Inbox<A: Actor> {
    pid: Pid,
    address: actix::Addr<Host<A>>,
}

impl<A: Actor> Inbox<A> {
    pub(crate) fn new(pid: Pid, address: actix::Addr<Host<A>>) -> Self {
        Inbox { pid, address }
    }
}

/// A message with the one who waits for its answer, if any.
pub(crate) struct Question<M: Message> {
    /// `None` only once it was taken.
    message: Option<M>,
    asker: Option<Asker<M>>,
    /// `None` while nobody looks.
    note: Option<Box<Note>>,
}

/// Whoever waits for an answer.
type Asker<M> = oneshot::Sender<Answer<<M as Message>::Reply>>;

impl<M: Message> Question<M> {
    /// Whoever asked does not wait any more: it would be work for nobody.
    pub(crate) fn given_up(&self) -> bool {
        self.asker.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    pub(crate) fn take_note(&mut self) -> Option<Box<Note>> {
        self.note.take()
    }

    pub(crate) fn into_parts(mut self) -> (Option<M>, Option<Asker<M>>) {
        (self.message.take(), self.asker.take())
    }
}

impl<M: Message> Drop for Question<M> {
    fn drop(&mut self) {
        // A panic in the Drop of one message must not lose those behind it, nor their askers.
        if let Some(message) = self.message.take() {
            drop_guarded(message);
        }
    }
}

/// A reference to one incarnation of an actor. After that has ended, all of its methods fail; a restarted actor has another.
pub struct Ref<A: Actor>(Arc<Inbox<A>>);

impl<A: Actor> Ref<A> {
    pub(crate) fn from_inbox(inbox: Arc<Inbox<A>>) -> Self {
        Ref(inbox)
    }

    /// The identity of the incarnation.
    pub fn pid(&self) -> Pid {
        self.0.pid.clone()
    }

    /// Puts a message into the mailbox, never waits (OTP `cast`). No promise that it is handled: the actor may end first.
    pub fn tell<M: Message>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
    {
        self.0.pid.reserve()?;
        self.put(message, None);
        Ok(())
    }

    /// As [`Ref::tell`], but waits while the mailbox is full. A task that sends without end gives its thread back now and then, also
    /// when there is always room: it takes part in tokio's cooperative budget.
    pub async fn send<M: Message>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
    {
        tokio::task::coop::consume_budget().await;
        self.0.pid.reserve_when_free().await?;
        self.put(message, None);
        Ok(())
    }

    /// Waits for room in the mailbox, then for the answer (OTP `call` without a time limit).
    pub async fn ask<M: Message>(&self, message: M) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        if self.0.pid.reserve_when_free().await.is_err() {
            return Err(self.gone().await);
        }
        let (tx, rx) = oneshot::channel();
        self.put(message, Some(tx));
        match rx.await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(AskError::NoReply),
            Err(_) => Err(AskError::Exited(self.0.pid.exited().await)),
        }
    }

    /// As [`Ref::ask`], for at most `limit`.
    pub async fn ask_timeout<M: Message>(&self, message: M, limit: Duration) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        tokio::time::timeout(limit, self.ask(message)).await.unwrap_or(Err(AskError::Timeout))
    }

    /// Asks it to stop. See [`Pid::stop`].
    pub fn stop(&self, reason: Exit) {
        self.0.pid.stop(reason);
    }

    /// Ends it. See [`Pid::kill`].
    pub fn kill(&self) {
        self.0.pid.kill();
    }

    async fn gone(&self) -> AskError {
        match self.0.pid.exit() {
            Some(_) => AskError::NoProc,
            None => AskError::Exited(self.0.pid.exited().await),
        }
    }

    fn put<M: Message>(&self, message: M, asker: Option<Asker<M>>)
    where
        A: Handler<M>,
    {
        // Not bounded by actix: the room was taken from the account of the pid.
        self.0.address.do_send(Question { message: Some(message), asker, note: Note::for_message() });
    }
}

impl<A: Actor> Clone for Ref<A> {
    fn clone(&self) -> Self {
        Ref(self.0.clone())
    }
}

impl<A: Actor> fmt::Debug for Ref<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ref({:?})", self.0.pid)
    }
}

/// A reference to whoever runs at a path; each call finds the present incarnation.
pub struct Named<A: Actor> {
    path: Arc<str>,
    system: Arc<Inner>,
    actor: PhantomData<fn(A)>,
}

impl<A: Actor> Named<A> {
    pub(crate) fn new(path: &str, system: Arc<Inner>) -> Self {
        Named { path: path.into(), system, actor: PhantomData }
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The present incarnation; `None` while none runs, or when it is an actor of another type.
    pub fn resolve(&self) -> Option<Ref<A>> {
        self.system.lookup(&self.path)
    }

    /// See [`Ref::tell`].
    pub fn tell<M: Message>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
    {
        self.resolve().ok_or(SendError::NoProc)?.tell(message)
    }

    /// See [`Ref::send`].
    pub async fn send<M: Message>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
    {
        self.resolve().ok_or(SendError::NoProc)?.send(message).await
    }

    /// See [`Ref::ask`].
    pub async fn ask<M: Message>(&self, message: M) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        self.resolve().ok_or(AskError::NoProc)?.ask(message).await
    }

    /// See [`Ref::ask_timeout`].
    pub async fn ask_timeout<M: Message>(&self, message: M, limit: Duration) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        self.resolve().ok_or(AskError::NoProc)?.ask_timeout(message, limit).await
    }

    /// The pid of the present incarnation.
    pub fn pid(&self) -> Option<Pid> {
        self.resolve().map(|found| found.pid())
    }

    /// Asks whoever runs here to stop. See [`Pid::stop`].
    pub fn stop(&self, reason: Exit) {
        if let Some(found) = self.resolve() {
            found.stop(reason);
        }
    }

    /// Ends whoever runs here. See [`Pid::kill`].
    pub fn kill(&self) {
        if let Some(found) = self.resolve() {
            found.kill();
        }
    }
}

impl<A: Actor> Clone for Named<A> {
    fn clone(&self) -> Self {
        Named { path: self.path.clone(), system: self.system.clone(), actor: PhantomData }
    }
}

impl<A: Actor> fmt::Debug for Named<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Named({})", self.path)
    }
}
