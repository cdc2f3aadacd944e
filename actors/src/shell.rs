//! The future that runs one incarnation of an actor: it polls actix's mailbox where a panic cannot escape, takes signals out of band, and
//! reports one start at most and exactly one exit, whatever happens.
//!
//! ```text
//!   New ──started──▶ Running ──stop, escalation, link──▶ Ending (own subtrees end) ──stopping──▶ gone
//!                      └──────── panic, kill ──────────▶ Ending (subtrees are killed) ─────────▶ gone
//! ```
//! Of actix it uses the channel and the mailbox, not the `ContextFut` around them: that polls the actor once more when it is dropped, on
//! whatever state a panic left, and is larger than all the rest. Must never run user code of an actor that a panic has ended. Made
//! by [`WorkerFactory`], spawned on an arbiter.

use crate::actor::{Actor, Handler, Message};
use crate::arbiter::Heartbeat;
use crate::ctx::{Ctx, DEADLINE};
use crate::error::AskError;
use crate::exit::Exit;
use crate::inspect::TreeEvent;
use crate::mailbox::{Parcel, Question, Ring};
use crate::panic::{drop_guarded, guarded, guarded_inside, take_drop_panic};
use crate::pid::{Entered, KILL, Pid, SIGNAL, STOP, SUBTREE, Signal};
use crate::refs::{Inbox, Ref};
use crate::registry::AnyInbox;
use crate::system::Inner;
use actix::dev::channel::{AddressReceiver, channel};
use actix::dev::{Envelope, Mailbox, ToEnvelope};
use actix::{ActorContext, ActorState, AsyncContext, SpawnHandle};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// How many messages an actor handles before others of its arbiter get their turn.
const TURN_MESSAGES: u32 = 64;

/// What an incarnation tells whoever started it.
#[derive(Debug)]
pub(crate) enum Report {
    Started,
    Exited(Exit),
}

/// Carries reports. Dropped before the exit was reported, it reports that the thread is gone: no child is ever lost.
pub(crate) struct Reporter(Option<Box<dyn FnMut(Report) + Send>>);

impl Reporter {
    pub(crate) fn new(f: impl FnMut(Report) + Send + 'static) -> Self {
        Reporter(Some(Box::new(f)))
    }

    pub(crate) fn started(&mut self) {
        if let Some(f) = &mut self.0 {
            f(Report::Started);
        }
    }

    pub(crate) fn exited(&mut self, exit: Exit) {
        if let Some(mut f) = self.0.take() {
            f(Report::Exited(exit));
        }
    }
}

/// The end of one incarnation: the registry, the watchers and whoever started it learn of it in this order, once.
pub(crate) struct ExitGuard {
    pid: Pid,
    system: Arc<Inner>,
    reporter: Reporter,
    /// No supervisor keeps it in its list, so nobody else would take it out of the tree.
    rootless: bool,
    done: bool,
}

impl ExitGuard {
    pub(crate) fn new(pid: Pid, system: Arc<Inner>, reporter: Reporter) -> Self {
        ExitGuard { pid, system, reporter, rootless: false, done: false }
    }

    /// For what no supervisor started: its end is its end in the tree.
    pub(crate) fn rootless(mut self) -> Self {
        self.rootless = true;
        self
    }

    pub(crate) fn started(&mut self) {
        self.system.registry.running(&self.pid);
        self.system.event(|| TreeEvent::Started { path: self.pid.path().to_owned(), pid: self.pid.clone() });
        self.reporter.started();
    }

    pub(crate) fn exited(&mut self, exit: Exit) {
        if std::mem::replace(&mut self.done, true) {
            return;
        }
        self.pid.set_ending();
        self.pid.close_backlog();
        if exit.is_abnormal() && exit != Exit::Killed {
            let dropped = self.pid.dropped();
            tracing::warn!(path = self.pid.path(), pid = self.pid.id(), %exit, dropped, "actor exited");
        }
        self.system.registry.leave(&self.pid, &exit);
        self.system.event(|| TreeEvent::Exited {
            path: self.pid.path().to_owned(),
            pid: self.pid.clone(),
            exit: exit.clone(),
        });
        if self.rootless {
            self.system.registry.forget(self.pid.path());
        }
        self.pid.set_exit(&exit);
        self.reporter.exited(exit);
    }
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.exited(if self.system.killed() { Exit::Killed } else { Exit::ArbiterGone });
    }
}

/// What makes the incarnations of one child.
pub(crate) trait Factory: Send + Sync {
    fn type_name(&self) -> &'static str;
    /// The mailbox of a new incarnation, and what starts it on its arbiter's thread.
    fn prepare(self: Arc<Self>, pid: &Pid, system: &Arc<Inner>) -> (AnyInbox, Boot);
}

/// Runs on the arbiter's thread.
pub(crate) type Boot = Box<dyn FnOnce(ExitGuard) + Send>;

pub(crate) struct WorkerFactory<F>(F);

impl<F> WorkerFactory<F> {
    pub(crate) fn new(make: F) -> Self {
        WorkerFactory(make)
    }
}

impl<A: Actor, F: Fn() -> A + Send + Sync + 'static> Factory for WorkerFactory<F> {
    fn type_name(&self) -> &'static str {
        std::any::type_name::<A>()
    }

    fn prepare(self: Arc<Self>, pid: &Pid, system: &Arc<Inner>) -> (AnyInbox, Boot) {
        // actix's own capacity does not matter: the account of the pid decides before it is asked.
        let (sender, receiver) = channel::<Host<A>>(16);
        let ring = pid.mailbox().has_ring().then(|| ring::<A>(pid));
        let inbox = Arc::new(Inbox::new(pid.clone(), actix::Addr::new(sender), ring));
        let (pid, system, own) = (pid.clone(), system.clone(), inbox.clone());
        let boot: Boot = Box::new(move |mut exit: ExitGuard| {
            let entered = Entered::new(&pid);
            let made = if system.killed() { Err(Exit::Killed) } else { guarded(|| (self.0)()) };
            drop(entered);
            match made {
                Ok(actor) => {
                    tokio::task::spawn_local(Shell::new(actor, pid, system, own, receiver, exit));
                }
                Err(panic) => exit.exited(panic),
            }
        });
        (inbox, boot)
    }
}

/// The ring of the incarnation before, or a new one.
fn ring<A: Actor>(pid: &Pid) -> Arc<Ring<A>> {
    if let Some(kept) = pid.backlog()
        && let Ok(ring) = kept.into_any().downcast()
    {
        return ring;
    }
    let ring = Arc::new(Ring::new());
    pid.set_backlog(ring.clone());
    ring
}

// ---- actix's side ------------------------------------------------------------------------------------------------------------

/// What actix takes for the actor. The state itself lies in the context, where the shell reaches it, too.
pub(crate) struct Host<A>(PhantomData<fn(A)>);

impl<A: Actor> actix::Actor for Host<A> {
    type Context = Engine<A>;
}

/// What actix takes for the context.
pub(crate) struct Engine<A: Actor> {
    /// `None` only once the state was dropped.
    actor: Option<Box<A>>,
    ctx: Ctx<A>,
    /// Messages left of this turn.
    left: u32,
    /// A handler's, caught close to it: unwinding through actix costs more than all the rest of a restart.
    panicked: Option<Box<Exit>>,
}

impl<A: Actor> Engine<A> {
    /// Whether no message is to be handled now: the turn is over, the actor ends, or a signal is first.
    #[inline]
    pub(crate) fn busy(&self) -> bool {
        self.left == 0 || self.ctx.stopping() || self.panicked.is_some() || self.ctx.pid_ref().requested()
    }

    pub(crate) fn pid(&self) -> &Pid {
        self.ctx.pid_ref()
    }

    pub(crate) fn inbox(&self) -> Arc<Inbox<A>> {
        self.ctx.inbox()
    }

    /// A message has reached the actor.
    #[inline]
    pub(crate) fn deliver<M: Message>(&mut self, question: &mut Question<M>, deadline: Option<Instant>)
    where
        A: Handler<M>,
    {
        self.left = self.left.saturating_sub(1);
        let pid = self.ctx.pid_ref();
        pid.release();
        if question.given_up() {
            return pid.count_dropped(1);
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            // Its asker will learn it from its own clock; perhaps that has no turn for a while.
            question.refuse(AskError::Timeout);
            return pid.count_dropped(1);
        }
        let (Some(actor), (Some(message), asker)) = (&mut self.actor, question.take()) else { return };
        pid.count_handled();
        if deadline.is_some() {
            DEADLINE.set(deadline);
        }
        let ctx = &mut self.ctx;
        if let Some(panic) = guarded_inside(|| actor.handle(message, ctx).resolve(asker)) {
            self.panicked = Some(Box::new(panic));
        }
        if deadline.is_some() {
            DEADLINE.set(None);
        }
    }
}

/// actix asks for it, and nobody uses it: what an actor spawns is run by its own [`Ctx`].
impl<A: Actor> ActorContext for Engine<A> {
    fn stop(&mut self) {}
    fn terminate(&mut self) {}
    fn state(&self) -> ActorState {
        ActorState::Running
    }
}

impl<A: Actor> AsyncContext<Host<A>> for Engine<A> {
    fn spawn<F: actix::ActorFuture<Host<A>, Output = ()> + 'static>(&mut self, _: F) -> SpawnHandle {
        SpawnHandle::default()
    }
    fn wait<F: actix::ActorFuture<Host<A>, Output = ()> + 'static>(&mut self, _: F) {}
    fn waiting(&self) -> bool {
        // The one question that matters: actix's mailbox asks it before it takes each message.
        self.busy()
    }
    fn cancel_future(&mut self, _: SpawnHandle) -> bool {
        false
    }
    fn address(&self) -> actix::Addr<Host<A>> {
        self.inbox().address()
    }
}

/// For the types only: a parcel's content handles itself.
impl<A: Actor> actix::Handler<Parcel<A>> for Host<A> {
    type Result = ();

    fn handle(&mut self, parcel: Parcel<A>, engine: &mut Engine<A>) {
        actix::dev::EnvelopeProxy::handle(&mut parcel.into_envelope(), self, engine);
    }
}

impl<A: Actor> ToEnvelope<Host<A>, Parcel<A>> for Engine<A> {
    fn pack(parcel: Parcel<A>, _: Option<tokio::sync::oneshot::Sender<()>>) -> Envelope<Host<A>> {
        parcel.into_envelope()
    }
}

// ---- the shell ---------------------------------------------------------------------------------------------------------------

enum Phase {
    New,
    Running,
    /// Own subtrees are ending; then `stopping` is run if `in_order`.
    Ending {
        exit: Box<Exit>,
        in_order: bool,
    },
}

/// What runs, until the actor has ended.
struct Run<A: Actor> {
    engine: Engine<A>,
    mailbox: Mailbox<Host<A>>,
}

struct Shell<A: Actor> {
    run: Option<Run<A>>,
    pid: Pid,
    heartbeat: Arc<Heartbeat>,
    phase: Phase,
    /// Subtrees that have not ended.
    subtrees: Vec<(u64, Pid)>,
    /// A panic in the Drop of the state.
    dropped: Option<Box<Exit>>,
    exit: ExitGuard,
}

impl<A: Actor> Shell<A> {
    fn new(
        actor: A,
        pid: Pid,
        system: Arc<Inner>,
        inbox: Arc<Inbox<A>>,
        receiver: AddressReceiver<Host<A>>,
        exit: ExitGuard,
    ) -> Self {
        let heartbeat = system.heartbeat();
        let ctx = Ctx::new(pid.clone(), system, Ref::from_inbox(inbox));
        let engine = Engine { actor: Some(Box::new(actor)), ctx, left: TURN_MESSAGES, panicked: None };
        let run = Some(Run { engine, mailbox: Mailbox::new(receiver) });
        Shell { run, pid, heartbeat, phase: Phase::New, subtrees: Vec::new(), dropped: None, exit }
    }

    /// Runs user code outside of messages; a panic ends the actor.
    fn with(&mut self, f: impl FnOnce(&mut A, &mut Ctx<A>)) {
        let Some(Run { engine, .. }) = &mut self.run else { return };
        let Some(actor) = &mut engine.actor else { return };
        if let Err(panic) = guarded(|| f(actor, &mut engine.ctx)) {
            self.end(panic, false);
        }
    }

    /// Takes signals from outside. Ends the actor when one says so.
    fn signals(&mut self) {
        let requests = self.pid.take_requests();
        if requests == 0 {
            return;
        }
        // Before a kill, which would wait for subtrees that have ended already.
        if requests & SUBTREE != 0 {
            while let Some((subtree, exit)) = self.pid.next_subtree_exit() {
                self.subtree_exited(subtree, exit);
            }
        }
        if requests & KILL != 0 {
            return self.end(Exit::Killed, false);
        }
        if !matches!(self.phase, Phase::New | Phase::Running) {
            return;
        }
        if requests & SIGNAL != 0 {
            while let Some(signal) = self.pid.next_signal() {
                match signal {
                    Signal::Down(down) => self.with(|actor, ctx| {
                        if ctx.expects(&down.monitor) {
                            actor.down(down, ctx);
                        }
                    }),
                    Signal::Exit { from, reason } => self.link_exited(from, reason),
                }
                if !matches!(self.phase, Phase::New | Phase::Running) {
                    return;
                }
            }
        }
        if requests & STOP != 0 {
            // What never started has nothing to stop in order.
            let started = matches!(self.phase, Phase::Running);
            self.end(self.pid.stop_reason(), started);
        }
    }

    fn link_exited(&mut self, from: Pid, reason: Exit) {
        let traps = self.run.as_ref().is_some_and(|run| run.engine.ctx.traps_exits());
        if traps {
            self.with(|actor, ctx| actor.exit_signal(from, reason, ctx));
        } else if reason != Exit::Normal {
            // OTP: an exit signal that is not trapped ends the process at once, without `terminate`.
            self.end(reason, false);
        }
    }

    fn subtree_exited(&mut self, subtree: u64, exit: Exit) {
        if let Some(run) = &mut self.run {
            run.engine.ctx.subtree_gone(subtree);
        }
        self.subtrees.retain(|(id, _)| *id != subtree);
        // One that was stopped by hand is no news; one that gave up takes its owner along.
        if matches!(self.phase, Phase::New | Phase::Running) && exit.is_abnormal() {
            self.end(exit, true);
        }
    }

    /// The end begins: no message is taken any more, the subtrees are stopped (or killed), last come first.
    fn end(&mut self, exit: Exit, in_order: bool) {
        if matches!(&self.phase, Phase::Ending { in_order: false, .. }) {
            return;
        }
        let exit = match std::mem::replace(&mut self.phase, Phase::New) {
            // A kill, or a panic, during an end in order.
            Phase::Ending { .. } | Phase::New | Phase::Running => exit,
        };
        self.pid.set_ending();
        self.exit.system.registry.stopping(&self.pid);
        if let Some(run) = &mut self.run {
            self.subtrees.extend(run.engine.ctx.take_subtrees());
        }
        if !in_order {
            self.drop_state();
        }
        self.phase = Phase::Ending { exit: Box::new(exit), in_order };
        for (_, pid) in self.subtrees.iter().rev() {
            if in_order {
                pid.stop(Exit::Shutdown);
            } else {
                pid.kill();
            }
        }
    }

    fn drop_state(&mut self) {
        if let Some(Run { mut engine, mailbox }) = self.run.take() {
            engine.ctx.cancel_monitors();
            let _entered = Entered::new(&self.pid);
            // One by one: two panics in one unwinding would abort the process.
            drop_guarded(engine.actor.take());
            drop_guarded(engine);
            drop_guarded(mailbox);
            self.pid.close_backlog();
            // Kept here: on this thread others have their turn before this one has ended.
            self.dropped = take_drop_panic().map(Box::new);
        }
    }

    /// All subtrees have ended.
    fn finish(&mut self) {
        let Phase::Ending { exit, in_order } = std::mem::replace(&mut self.phase, Phase::New) else { return };
        let mut exit = *exit;
        if in_order && let Some(Run { engine, .. }) = &mut self.run {
            if let Some(actor) = &mut engine.actor
                && let Err(panic) = guarded(|| actor.stopping(&exit, &mut engine.ctx))
            {
                exit = panic;
            }
            // Subtrees that `stopping` started have nobody any more.
            for (_, pid) in engine.ctx.take_subtrees() {
                pid.kill();
            }
        }
        self.drop_state();
        // A panic in Drop spoils an end in order, and hides no earlier reason.
        if let Some(panic) = self.dropped.take().filter(|_| !exit.is_abnormal()) {
            exit = *panic;
        }
        self.exit.exited(exit);
    }

    /// One turn of the actor itself: its messages, then what its own futures bring.
    fn turn(&mut self, cx: &mut Context<'_>) {
        let Some(Run { engine, mailbox }) = &mut self.run else { return };
        engine.left = TURN_MESSAGES;
        // What others of this thread left behind is not this actor's.
        take_drop_panic();
        let result = guarded(|| {
            mailbox.poll(&mut Host(PhantomData), engine, cx);
            // What a panic left behind runs no more.
            if let Some(actor) = engine.actor.as_mut().filter(|_| engine.panicked.is_none()) {
                engine.ctx.pump(actor, cx);
            }
        });
        if let Err(panic) = result {
            return self.end(panic, false);
        }
        if let Some(panic) = engine.panicked.take() {
            return self.end(*panic, false);
        }
        if engine.left == 0 {
            cx.waker().wake_by_ref();
        }
        // A Drop of the user's that panicked inside a guarded drop, such as a message's.
        if let Some(panic) = take_drop_panic() {
            return self.end(panic, false);
        }
        if let Some(reason) = engine.ctx.take_stop() {
            self.end(reason, true);
        }
    }
}

impl<A: Actor> Future for Shell<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let _entered = Entered::new(&this.pid);
        this.heartbeat.enter(&this.pid);
        let done = this.advance(cx);
        this.heartbeat.leave();
        done
    }
}

impl<A: Actor> Shell<A> {
    /// Signals, then messages, then the end as far as it goes without waiting.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pid.register(cx.waker());
        if self.exit.system.killed() {
            self.end(Exit::Killed, false);
        }
        self.signals();
        if matches!(self.phase, Phase::New) {
            self.phase = Phase::Running;
            let mut failed = None;
            self.with(|actor, ctx| failed = actor.started(ctx).err());
            match (failed, &self.phase) {
                (Some(exit), _) => self.end(exit, false),
                (None, Phase::Running) => self.exit.started(),
                _ => {}
            }
        }
        if matches!(self.phase, Phase::Running) {
            self.turn(cx);
        }
        if matches!(self.phase, Phase::Ending { .. }) {
            // Exits of subtrees that came meanwhile.
            self.signals();
            if self.subtrees.is_empty() {
                self.finish();
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl<A: Actor> Drop for Shell<A> {
    fn drop(&mut self) {
        // Its arbiter is gone, or the system was killed. The subtrees live on threads that may still run.
        if let Some(run) = &mut self.run {
            self.subtrees.extend(run.engine.ctx.take_subtrees());
        }
        for (_, pid) in &self.subtrees {
            pid.kill();
        }
        self.drop_state();
    }
}
