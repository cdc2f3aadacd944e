//! References to actors: to one incarnation ([`Ref`]), and to whoever runs at a path ([`Named`]).
//!
//! Must never show what engine carries the messages. Cheap to clone: one counter.

use crate::actor::{Actor, Answer, Handler, Message};
use crate::error::{AskError, SendError};
use crate::exit::Exit;
use crate::mailbox::{Answerer, Letter, Parcel, Posted, Pull, Put, Question, Ring, Timed};
use crate::panic::drop_foreign;
use crate::pid::Pid;
use crate::shell::Host;
use crate::spec::Overflow;
use crate::system::Inner;
use actix::dev::EnvelopeProxy;
use parking_lot::Mutex;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The receiving end of one incarnation.
pub(crate) struct Inbox<A: Actor> {
    pid: Pid,
    address: actix::Addr<Host<A>>,
    /// Where the messages are, if not in actix's channel.
    ring: Option<Arc<Ring<A>>>,
}

impl<A: Actor> Inbox<A> {
    pub(crate) fn new(pid: Pid, address: actix::Addr<Host<A>>, ring: Option<Arc<Ring<A>>>) -> Self {
        let inbox = Inbox { pid, address, ring };
        if inbox.ring.as_ref().is_some_and(|ring| ring.adopt(&inbox.pid)) {
            inbox.pull();
        }
        inbox
    }

    pub(crate) fn address(&self) -> actix::Addr<Host<A>> {
        self.address.clone()
    }

    pub(crate) fn ring(&self) -> Option<&Ring<A>> {
        self.ring.as_deref()
    }

    /// Has the actor look into its ring.
    pub(crate) fn pull(&self) {
        self.address.do_send(Parcel::new(Pull));
    }

    /// Not bounded by actix: the room was taken from the account of the pid.
    fn put(&self, content: impl EnvelopeProxy<Host<A>> + Send + 'static) {
        self.address.do_send(Parcel::new(content));
    }

    /// Puts a letter into the ring; there is room, or the oldest goes.
    fn post(&self, ring: &Ring<A>, letter: Box<dyn Letter<A>>) -> Result<(), SendError> {
        let mailbox = self.pid.mailbox();
        let max = (mailbox.overflow == Overflow::DropOldest).then_some(mailbox.messages as usize);
        match ring.put(&self.pid, letter, max) {
            Put::Done { pull } => {
                if pull {
                    self.pull();
                }
            }
            Put::Instead(mut oldest) => {
                oldest.refuse(AskError::Dropped);
                drop_foreign(oldest);
            }
            Put::Closed => return Err(SendError::Closed),
        }
        Ok(())
    }

    /// Takes room in the ring, unless it is made by dropping.
    fn reserve(&self) -> Result<(), SendError> {
        match self.pid.mailbox().overflow {
            Overflow::DropOldest if self.pid.ending() => Err(SendError::Closed),
            Overflow::DropOldest => Ok(()),
            Overflow::Wait | Overflow::Fail => self.pid.reserve(),
        }
    }

    async fn reserve_when_free(&self) -> Result<(), SendError> {
        match self.reserve() {
            Err(SendError::Full) => self.pid.reserve_when_free().await,
            done => done,
        }
    }
}

/// A reference to one incarnation of an actor. After that has ended, all of its methods fail; a restarted actor has another.
pub struct Ref<A: Actor>(Arc<Inbox<A>>);

impl<A: Actor> Ref<A> {
    pub(crate) fn from_inbox(inbox: Arc<Inbox<A>>) -> Self {
        Ref(inbox)
    }

    pub(crate) fn inbox(&self) -> &Arc<Inbox<A>> {
        &self.0
    }

    /// The identity of the incarnation.
    pub fn pid(&self) -> Pid {
        self.0.pid.clone()
    }

    /// Puts a message into the mailbox, never waits (OTP `cast`). When the mailbox is full, its [`Overflow`] decides: the message is
    /// refused, or the oldest one that waits makes room. No promise that it is handled: the actor may end first.
    pub fn tell<M: Message>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
    {
        if let Some(ring) = &self.0.ring {
            self.0.reserve()?;
            return self.0.post(ring, posted(message, None, None, None));
        }
        self.0.pid.reserve()?;
        self.0.put(Question::new(message, None));
        Ok(())
    }

    /// As [`Ref::tell`], but waits while the mailbox is full, if its [`Overflow`] says so. A task that sends without end gives its
    /// thread back now and then, also when there is always room: it takes part in tokio's cooperative budget.
    pub async fn send<M: Message>(&self, message: M) -> Result<(), SendError>
    where
        A: Handler<M>,
    {
        tokio::task::coop::consume_budget().await;
        if let Some(ring) = &self.0.ring {
            self.0.reserve_when_free().await?;
            return self.0.post(ring, posted(message, None, None, None));
        }
        self.0.pid.reserve_when_free().await?;
        self.0.put(Question::new(message, None));
        Ok(())
    }

    /// Waits for room in the mailbox, then for the answer (OTP `call` without a time limit). Dropped before it is ready, it takes the
    /// question back: one that waits in the mailbox then is not handled.
    pub async fn ask<M: Message>(&self, message: M) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        if let Some(ring) = &self.0.ring {
            return Box::pin(self.ask_ring(ring, message, None)).await;
        }
        if let Err(refused) = self.0.pid.reserve_when_free().await {
            return Err(self.refused(refused).await);
        }
        let (tx, rx) = oneshot::channel();
        self.0.put(Question::new(message, Some(tx)));
        answered(rx, || self.0.pid.clone()).await
    }

    /// As [`Ref::ask`], for at most `limit`. See [`Ref::ask_until`].
    pub async fn ask_timeout<M: Message>(&self, message: M, limit: Duration) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        self.ask_until(message, Instant::now().checked_add(limit)).await
    }

    /// As [`Ref::ask`], until `deadline` at most; `None` is without limit. The actor knows the deadline: a question whose deadline has
    /// passed is not handled, and the handler of one finds it in [`Ctx::deadline`](crate::Ctx::deadline), so that the questions which
    /// it asks in turn can have the same.
    pub async fn ask_until<M: Message>(
        &self,
        message: M,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        let Some(deadline) = deadline.into() else { return self.ask(message).await };
        if deadline <= Instant::now() {
            return Err(AskError::Timeout);
        }
        let asked = async {
            if let Some(ring) = &self.0.ring {
                return Box::pin(self.ask_ring(ring, message, Some(deadline))).await;
            }
            if let Err(refused) = self.0.pid.reserve_when_free().await {
                return Err(self.refused(refused).await);
            }
            let (tx, rx) = oneshot::channel();
            self.0.put(Timed { question: Question::new(message, Some(tx)), deadline });
            answered(rx, || self.0.pid.clone()).await
        };
        tokio::time::timeout_at(deadline, asked).await.unwrap_or(Err(AskError::Timeout))
    }

    async fn ask_ring<M: Message>(
        &self,
        ring: &Ring<A>,
        message: M,
        deadline: Option<Instant>,
    ) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        if let Err(refused) = self.0.reserve_when_free().await {
            return Err(self.refused(refused).await);
        }
        let (tx, rx) = oneshot::channel();
        let answerer = self.0.pid.mailbox().keep.then(|| Arc::new(Mutex::new(self.0.pid.clone())));
        if let Err(refused) = self.0.post(ring, posted(message, Some(tx), deadline, answerer.clone())) {
            return Err(self.refused(refused).await);
        }
        answered(rx, || answerer.map_or_else(|| self.0.pid.clone(), |answerer| answerer.lock().clone())).await
    }

    /// Asks it to stop. See [`Pid::stop`].
    pub fn stop(&self, reason: Exit) {
        self.0.pid.stop(reason);
    }

    /// Ends it. See [`Pid::kill`].
    pub fn kill(&self) {
        self.0.pid.kill();
    }

    async fn refused(&self, why: SendError) -> AskError {
        match self.0.pid.exit() {
            _ if why == SendError::Full => AskError::Full,
            Some(_) => AskError::NoProc,
            None => AskError::Exited(self.0.pid.exited().await),
        }
    }
}

fn posted<A: Handler<M>, M: Message>(
    message: M,
    asker: Option<oneshot::Sender<Answer<M::Reply>>>,
    deadline: Option<Instant>,
    answerer: Option<Answerer>,
) -> Box<dyn Letter<A>> {
    Box::new(Posted { question: Question::new(message, asker), deadline, answerer })
}

/// Waits for the answer. When there will be none, and nobody said why, the one who had to answer has ended.
async fn answered<R>(answer: oneshot::Receiver<Answer<R>>, answerer: impl FnOnce() -> Pid) -> Result<R, AskError> {
    match answer.await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(why)) => Err(*why),
        Err(_) => Err(AskError::Exited(answerer().exited().await)),
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

    /// See [`Ref::ask_until`].
    pub async fn ask_until<M: Message>(
        &self,
        message: M,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<M::Reply, AskError>
    where
        A: Handler<M>,
    {
        self.resolve().ok_or(AskError::NoProc)?.ask_until(message, deadline).await
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
