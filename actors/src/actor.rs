//! What a user writes: an actor, its messages, its handlers and their replies.
//!
//! Must never name actix: it is an implementation detail of this crate.

use crate::ctx::Ctx;
use crate::error::AskError;
use crate::exit::Exit;
use crate::pid::{MonitorRef, Pid};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

/// State and behaviour of one actor. It lives on one thread and handles one message at a time, so it need not be `Send`.
///
/// A panic in any of these methods, or in `Drop`, is the actor's exit ([`Exit::Panic`]) and reaches its supervisor.
/// ```
/// use phalanx_actors::testkit::simulate;
/// use phalanx_actors::*;
///
/// struct Till {
///     cents: u64,
/// }
/// impl Actor for Till {
///     fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
///         if self.cents == 0 {
///             return Err(Exit::Error(format!("{}: no change to give", ctx.path())));
///         }
///         Ok(())
///     }
///     fn stopping(&mut self, reason: &Exit, _: &mut Ctx<Self>) {
///         println!("{} cents at the end, which is a {reason}", self.cents);
///     }
/// }
///
/// /// What it is told.
/// struct Pay(u64);
/// impl Message for Pay {
///     type Reply = ();
/// }
/// impl Handler<Pay> for Till {
///     fn handle(&mut self, pay: Pay, _: &mut Ctx<Self>) -> Reply<()> {
///         self.cents += pay.0;
///         ().into()
///     }
/// }
///
/// /// What it is asked.
/// struct Balance;
/// impl Message for Balance {
///     type Reply = u64;
/// }
/// impl Handler<Balance> for Till {
///     fn handle(&mut self, _: Balance, _: &mut Ctx<Self>) -> Reply<u64> {
///         self.cents.into()
///     }
/// }
///
/// simulate(0, |sim| async move {
///     let shop = |cents| {
///         SupervisorSpec::new("shop", Strategy::OneForOne).child(ChildSpec::actor("till", move || Till { cents }))
///     };
///     let failed = sim.system().start(shop(0)).await.unwrap_err();
///     assert_eq!(failed.to_string(), "start failed: child `till` failed to start: shop/till: no change to give");
///
///     sim.system().start(shop(500)).await.unwrap();
///     let till: Ref<Till> = sim.system().lookup("shop/till").unwrap();
///     till.tell(Pay(250)).unwrap(); // goes on at once
///     assert_eq!(till.ask(Balance).await, Ok(750)); // messages of one sender keep their order
/// });
/// ```
#[allow(unused_variables)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an actor",
    label = "not an actor",
    note = "an actor is a type with `impl Actor for {Self} {{}}`; all of the trait's methods have defaults"
)]
pub trait Actor: Sized + 'static {
    /// Runs first, before any message (OTP `init`). An error means that the start failed: the supervisor is told so, and
    /// [`Actor::stopping`] is not run. [`Exit::Ignore`] is no failure: the actor had nothing to do (OTP `ignore`).
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        Ok(())
    }

    /// Runs last, when the actor stops in order and the subtrees it supervises have ended (OTP `terminate`). Not run after a panic or a kill.
    fn stopping(&mut self, reason: &Exit, ctx: &mut Ctx<Self>) {}

    /// What this actor monitors has ended.
    fn down(&mut self, down: Down, ctx: &mut Ctx<Self>) {}

    /// A linked actor has ended, and this one traps exits. See [`Ctx::trap_exit`].
    fn exit_signal(&mut self, from: Pid, reason: Exit, ctx: &mut Ctx<Self>) {}
}

/// Something that an actor can be told or asked.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message",
    label = "cannot be told or asked",
    note = "write `impl Message for {Self} {{ type Reply = ..; }}`, with `()` as the reply of what is only told"
)]
pub trait Message: Send + 'static {
    /// The answer; `()` for what is only told.
    type Reply: Send + 'static;
}

/// How an actor handles a message of type `M`.
#[diagnostic::on_unimplemented(
    message = "actor `{Self}` does not handle message `{M}`",
    label = "`{Self}` has no handler for `{M}`",
    note = "implement `Handler<{M}> for {Self}`"
)]
pub trait Handler<M: Message>: Actor {
    /// Handles one message. Must not block: other actors share the thread. Use [`Ctx::pipe`] and [`Ctx::defer`] for what takes time.
    fn handle(&mut self, msg: M, ctx: &mut Ctx<Self>) -> Reply<M::Reply>;
}

/// A message that actors of type `A` handle: every `M` with `A: Handler<M>`, and nothing else. Not to be implemented by hand.
///
/// It stands where a message is sent, in place of [`Handler`], for the sake of what the compiler says: asked for `A: Handler<M>` alone, it
/// guesses the message from the one handler that an actor has, and then calls the message that was sent a mismatched type.
#[diagnostic::on_unimplemented(
    message = "actor `{A}` does not handle message `{Self}`",
    label = "`{A}` has no handler for `{Self}`",
    note = "implement `Handler<{Self}> for {A}`"
)]
pub trait MessageTo<A: Actor>: Message {
    /// See [`Handler::handle`].
    #[doc(hidden)]
    fn handled_by(self, actor: &mut A, ctx: &mut Ctx<A>) -> Reply<Self::Reply>;
}

impl<A: Handler<M>, M: Message> MessageTo<A> for M {
    #[inline]
    fn handled_by(self, actor: &mut A, ctx: &mut Ctx<A>) -> Reply<M::Reply> {
        actor.handle(self, ctx)
    }
}

/// What an actor's monitor reports, exactly once for each monitor (OTP `DOWN`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// What [`Ctx::monitor`] returned.
    pub monitor: MonitorRef,
    /// Who ended.
    pub pid: Pid,
    /// Why; [`Exit::NoProc`] when it had ended before it was monitored.
    pub reason: Exit,
}

/// The result of handling a message.
pub enum Reply<R> {
    /// The answer.
    Now(R),
    /// The answer comes later, through the [`Replier`] (OTP `{noreply, State}`). Made by [`Ctx::defer`].
    Later(Later<R>),
}

impl<R> From<R> for Reply<R> {
    fn from(reply: R) -> Self {
        Reply::Now(reply)
    }
}

/// The place where a late answer meets the one who asked.
pub struct Later<R>(Arc<Mutex<Slot<R>>>);

/// Answers a message after its handler has returned (OTP `gen_server:reply`). Dropped unused, the asker gets
/// [`crate::AskError::NoReply`].
pub struct Replier<R> {
    slot: Option<Arc<Mutex<Slot<R>>>>,
    pid: Pid,
}

/// An answer on its way, or the news that there will be none. Boxed, because answers are many and such news are few.
pub(crate) type Answer<R> = Result<R, Box<AskError>>;

enum Slot<R> {
    Empty,
    Asker(oneshot::Sender<Answer<R>>),
    Answer(Answer<R>),
    Done,
}

impl<R> Reply<R> {
    pub(crate) fn later(pid: Pid) -> (Self, Replier<R>) {
        let slot = Arc::new(Mutex::new(Slot::Empty));
        (Reply::Later(Later(slot.clone())), Replier { slot: Some(slot), pid })
    }

    /// Brings the answer to the asker, if there is one.
    #[inline]
    pub(crate) fn resolve(self, asker: Option<oneshot::Sender<Answer<R>>>) {
        match (self, asker) {
            (Reply::Now(_), None) => {}
            (Reply::Now(reply), Some(asker)) => {
                // The asker may have given up.
                let _ = asker.send(Ok(reply));
            }
            (Reply::Later(later), asker) => later.resolve(asker),
        }
    }
}

impl<R> Later<R> {
    fn resolve(self, asker: Option<oneshot::Sender<Answer<R>>>) {
        let Some(asker) = asker else { return };
        let mut slot = self.0.lock();
        match std::mem::replace(&mut *slot, Slot::Done) {
            Slot::Answer(answer) => {
                let _ = asker.send(answer);
            }
            _ => *slot = Slot::Asker(asker),
        }
    }
}

impl<R> Replier<R> {
    /// Answers. Does nothing when the message was told, or the asker has given up.
    pub fn reply(mut self, reply: R) {
        self.give(Ok(reply));
    }

    fn give(&mut self, answer: Answer<R>) {
        let Some(slot) = self.slot.take() else { return };
        let mut slot = slot.lock();
        match std::mem::replace(&mut *slot, Slot::Done) {
            Slot::Asker(asker) => {
                let _ = asker.send(answer);
            }
            _ => *slot = Slot::Answer(answer),
        }
    }
}

impl<R> Drop for Replier<R> {
    fn drop(&mut self) {
        // When the actor ends, the asker shall learn its exit: the closed channel leads it there.
        if !std::thread::panicking() && !self.pid.ending() {
            self.give(Err(Box::new(AskError::NoReply)));
        }
    }
}
