//! References to actors: to one incarnation ([`Ref`]), and to whoever runs at a path ([`Named`]).
//!
//! Must never show what engine carries the messages. Cheap to clone: one counter.

use crate::actor::{Actor, Answer, MessageTo};
use crate::error::{AskError, SendError};
use crate::exit::Exit;
use crate::mailbox::{Answerer, Asker, Letter, Parcel, Posted, Pull, Put, Question, Ring, Timed};
use crate::note::Note;
use crate::panic::drop_foreign;
use crate::pid::Pid;
use crate::recipient::Rejected;
use crate::shell::Host;
use crate::spec::Overflow;
use crate::system::Inner;
use futures::future::BoxFuture;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
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
        self.address.do_send(Parcel::new(Box::new(Pull)));
    }

    /// Not bounded by actix: the room was taken from the account of the pid.
    #[inline]
    fn put<M: MessageTo<A>>(&self, message: M, asker: Option<Asker<M>>, deadline: Option<Instant>) {
        match Note::for_message(&self.pid) {
            None if deadline.is_none() => self.address.do_send(Parcel::new(Question::boxed(message, asker))),
            note => {
                let question = Question::new(message, asker);
                self.address.do_send(Parcel::new(Box::new(Timed { question, deadline, note })));
            }
        }
    }

    /// Puts a message into the mailbox if there is room, or the oldest goes; else gives it back.
    #[inline]
    fn tell<M: MessageTo<A>>(&self, message: M) -> Result<(), (SendError, M)> {
        if let Some(ring) = &self.ring {
            return self.tell_ring(ring, message);
        }
        if let Err(error) = self.pid.reserve() {
            return Err((error, message));
        }
        self.put(message, None, None);
        Ok(())
    }

    #[inline(never)]
    fn tell_ring<M: MessageTo<A>>(&self, ring: &Ring<A>, message: M) -> Result<(), (SendError, M)> {
        if let Err(error) = self.reserve() {
            return Err((error, message));
        }
        let Err(letter) = self.post(ring, self.posted(message, None, None, None)) else { return Ok(()) };
        let letter = letter.into_any().downcast::<Posted<M>>();
        match letter.ok().and_then(|mut letter| letter.question.take().0) {
            Some(message) => Err((SendError::Closed, message)),
            // Not so: it is the letter that was put.
            None => Ok(()),
        }
    }

    /// Puts a letter into the ring, where room was reserved, or the oldest goes. Gives it back when the actor has ended.
    fn post(&self, ring: &Ring<A>, letter: Box<dyn Letter<A>>) -> Result<(), Box<dyn Letter<A>>> {
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
            Put::Closed(letter) => return Err(letter),
        }
        Ok(())
    }

    fn posted<M: MessageTo<A>>(
        &self,
        message: M,
        asker: Option<Asker<M>>,
        deadline: Option<Instant>,
        answerer: Option<Answerer>,
    ) -> Box<Posted<M>> {
        let note = Note::for_message(&self.pid);
        Box::new(Posted { question: Question::new(message, asker), deadline, answerer, note })
    }

    /// Takes room, if there is some at once and actix's channel is where the message goes.
    #[inline]
    fn reserved(&self) -> bool {
        self.ring.is_none() && self.pid.reserve().is_ok()
    }

    /// Takes room, unless it is made by dropping.
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
    pub fn tell<M: MessageTo<A>>(&self, message: M) -> Result<(), SendError> {
        self.0.tell(message).map_err(|(error, _)| error)
    }

    /// As [`Ref::tell`], and gives the message back when it is not taken.
    /// ```
    /// use phalanx_actors::testkit::simulate;
    /// use phalanx_actors::*;
    /// struct Printer;
    /// impl Actor for Printer {}
    /// struct Page(u32);
    /// messages!(Page => ());
    /// impl Handler<Page> for Printer {
    ///     fn handle(&mut self, _: Page, _: &mut Ctx<Self>) -> Reply<()> {
    ///         ().into()
    ///     }
    /// }
    /// simulate(0, |sim| async move {
    ///     let printer = ChildSpec::actor("printer", || Printer).mailbox(1);
    ///     sim.system().start(SupervisorSpec::new("office", Strategy::OneForOne).child(printer)).await.unwrap();
    ///     let printer = sim.system().lookup::<Printer>("office/printer").unwrap();
    ///     printer.tell(Page(1)).unwrap();
    ///     let Err(Rejected { error, message }) = printer.try_tell(Page(2)) else { panic!("it has room for one") };
    ///     assert_eq!((error, message.0), (SendError::Full, 2));
    ///     printer.send(message).await.unwrap(); // not lost: it waits for room now
    /// });
    /// ```
    pub fn try_tell<M: MessageTo<A>>(&self, message: M) -> Result<(), Rejected<M>> {
        self.0.tell(message).map_err(|(error, message)| Rejected { error, message })
    }

    /// As [`Ref::tell`], but waits while the mailbox is full, if its [`Overflow`] says so. A task that sends without end gives its
    /// thread back now and then, also when there is always room: it takes part in tokio's cooperative budget.
    pub async fn send<M: MessageTo<A>>(&self, message: M) -> Result<(), SendError> {
        tokio::task::coop::consume_budget().await;
        if !self.0.reserved() {
            // Boxed, here and below, so that the future of the many for whom there is room is small.
            return Box::pin(self.send_when_free(message)).await;
        }
        self.0.put(message, None, None);
        Ok(())
    }

    async fn send_when_free<M: MessageTo<A>>(&self, message: M) -> Result<(), SendError> {
        self.0.reserve_when_free().await?;
        match &self.0.ring {
            Some(ring) => {
                let letter = self.0.posted(message, None, None, None);
                self.0.post(ring, letter).map_err(|_| SendError::Closed)
            }
            None => {
                self.0.put(message, None, None);
                Ok(())
            }
        }
    }

    /// Waits for room in the mailbox, then for the answer (OTP `call` without a time limit). Dropped before it is ready, it takes the
    /// question back: one that waits in the mailbox then is not handled.
    pub async fn ask<M: MessageTo<A>>(&self, message: M) -> Result<M::Reply, AskError> {
        if !self.0.reserved() {
            return Box::pin(self.ask_when_free(message, None)).await;
        }
        let (tx, rx) = oneshot::channel();
        self.0.put(message, Some(tx), None);
        // Not through `answered`: a future within the future is what one would measure.
        if self.0.pid.watched() {
            return Box::pin(self.answered_watched(rx)).await;
        }
        match told(rx.await) {
            Some(told) => told,
            None => Err(ended(self.pid()).await),
        }
    }

    /// As [`Ref::ask`], for at most `limit`. See [`Ref::ask_until`].
    pub async fn ask_timeout<M: MessageTo<A>>(&self, message: M, limit: Duration) -> Result<M::Reply, AskError> {
        self.ask_until(message, Instant::now().checked_add(limit)).await
    }

    /// As [`Ref::ask`], until `deadline` at most; `None` is without limit. The actor knows the deadline: a question whose deadline has
    /// passed is not handled, and the handler of one finds it in [`Ctx::deadline`](crate::Ctx::deadline), so that the questions which
    /// it asks in turn can have the same.
    pub async fn ask_until<M: MessageTo<A>>(
        &self,
        message: M,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<M::Reply, AskError> {
        let Some(deadline) = deadline.into() else { return self.ask(message).await };
        if deadline <= Instant::now() {
            return Err(AskError::Timeout);
        }
        tokio::time::timeout_at(deadline, self.ask_due(message, deadline)).await.unwrap_or(Err(AskError::Timeout))
    }

    /// As [`Ref::ask_until`] for those who have a clock already and drop the wait when it rings: the actor knows the deadline, but the wait
    /// has no timer of its own.
    pub async fn ask_due<M: MessageTo<A>>(&self, message: M, deadline: Instant) -> Result<M::Reply, AskError> {
        if !self.0.reserved() {
            return Box::pin(self.ask_when_free(message, Some(deadline))).await;
        }
        let (tx, rx) = oneshot::channel();
        self.0.put(message, Some(tx), Some(deadline));
        self.answered(rx).await
    }

    async fn ask_when_free<M: MessageTo<A>>(
        &self,
        message: M,
        deadline: Option<Instant>,
    ) -> Result<M::Reply, AskError> {
        if let Err(refused) = self.0.reserve_when_free().await {
            return Err(self.refused(refused).await);
        }
        let (tx, rx) = oneshot::channel();
        let Some(ring) = &self.0.ring else {
            self.0.put(message, Some(tx), deadline);
            return self.answered(rx).await;
        };
        let answerer = self.0.pid.mailbox().keep.then(|| Arc::new(watch::Sender::new(self.pid())));
        // Before it is posted: it may be taken at once.
        let taken = answerer.as_ref().filter(|_| self.0.pid.watched()).map(|answerer| answerer.subscribe());
        let letter = self.0.posted(message, Some(tx), deadline, answerer.clone());
        if self.0.post(ring, letter).is_err() {
            return Err(self.refused(SendError::Closed).await);
        }
        match answerer {
            None => self.answered(rx).await,
            Some(answerer) => kept(rx, answerer, taken).await,
        }
    }

    /// Asks it to stop. See [`Pid::stop`].
    pub fn stop(&self, reason: Exit) {
        self.0.pid.stop(reason);
    }

    /// Ends it. See [`Pid::kill`].
    pub fn kill(&self) {
        self.0.pid.kill();
    }

    /// Waits for the answer of this incarnation.
    async fn answered<R>(&self, answer: oneshot::Receiver<Answer<R>>) -> Result<R, AskError> {
        if self.0.pid.watched() {
            return Box::pin(self.answered_watched(answer)).await;
        }
        match told(answer.await) {
            Some(told) => told,
            None => Err(ended(self.pid()).await),
        }
    }

    /// What a thread that was left behind holds is not dropped, and the sender of the answer with it; so the exit counts, too.
    async fn answered_watched<R>(&self, answer: oneshot::Receiver<Answer<R>>) -> Result<R, AskError> {
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            exit = self.0.pid.exited() => return Err(AskError::Exited(exit)),
        };
        match answer {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(why)) => Err(*why),
            Err(_) => Err(AskError::Exited(self.0.pid.exited().await)),
        }
    }

    async fn refused(&self, why: SendError) -> AskError {
        match self.0.pid.exit() {
            _ if why == SendError::Full => AskError::Full,
            Some(_) => AskError::NoProc,
            None => AskError::Exited(self.0.pid.exited().await),
        }
    }
}

/// What an asker learns. `None`: there will be no answer, and nobody said why, so the one who had to answer has ended.
fn told<R>(answer: Result<Answer<R>, oneshot::error::RecvError>) -> Option<Result<R, AskError>> {
    Some(answer.ok()?.map_err(|why| *why))
}

/// Boxed: it is rare, and would make the future of every ask larger.
fn ended(pid: Pid) -> BoxFuture<'static, AskError> {
    Box::pin(async move { AskError::Exited(pid.exited().await) })
}

/// The exit of whoever had to answer.
async fn exited(answerer: &Answerer) -> AskError {
    let pid = answerer.borrow().clone();
    AskError::Exited(pid.exited().await)
}

/// Waits for the answer to a question that outlives the incarnation which was asked. `taken`, where the one that takes it may be left behind
/// with its thread, and then drops nothing: changes when it does.
async fn kept<R>(
    answer: oneshot::Receiver<Answer<R>>,
    answerer: Answerer,
    taken: Option<watch::Receiver<Pid>>,
) -> Result<R, AskError> {
    let answer = if let Some(mut taken) = taken {
        let exit = async {
            // It cannot hang up: we hold it.
            let _ = taken.changed().await;
            exited(&answerer).await
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            exit = exit => return Err(exit),
        }
    } else {
        answer.await
    };
    match answer {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(why)) => Err(*why),
        Err(_) => Err(exited(&answerer).await),
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
    pub fn tell<M: MessageTo<A>>(&self, message: M) -> Result<(), SendError> {
        self.resolve().ok_or(SendError::NoProc)?.tell(message)
    }

    /// See [`Ref::try_tell`].
    pub fn try_tell<M: MessageTo<A>>(&self, message: M) -> Result<(), Rejected<M>> {
        match self.resolve() {
            Some(found) => found.try_tell(message),
            None => Err(Rejected { error: SendError::NoProc, message }),
        }
    }

    /// See [`Ref::send`].
    pub async fn send<M: MessageTo<A>>(&self, message: M) -> Result<(), SendError> {
        self.resolve().ok_or(SendError::NoProc)?.send(message).await
    }

    /// See [`Ref::ask`].
    pub async fn ask<M: MessageTo<A>>(&self, message: M) -> Result<M::Reply, AskError> {
        self.resolve().ok_or(AskError::NoProc)?.ask(message).await
    }

    /// See [`Ref::ask_timeout`].
    pub async fn ask_timeout<M: MessageTo<A>>(&self, message: M, limit: Duration) -> Result<M::Reply, AskError> {
        self.resolve().ok_or(AskError::NoProc)?.ask_timeout(message, limit).await
    }

    /// See [`Ref::ask_until`].
    pub async fn ask_until<M: MessageTo<A>>(
        &self,
        message: M,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<M::Reply, AskError> {
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
