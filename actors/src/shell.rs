//! The future that runs one incarnation of an actor: it owns actix's, polls it where a panic cannot escape, takes signals out of band, and
//! reports one start at most and exactly one exit, whatever happens.
//!
//! ```text
//!   New ──started──▶ Running ──stop, escalation, link──▶ Ending (own subtrees end) ──stopping──▶ gone
//!                      └──────── panic, kill ──────────▶ Ending (subtrees are killed) ─────────▶ gone
//! ```
//! Must never drop a living `ContextFut`: actix would poll the actor once more on whatever state a panic left. Made by
//! [`WorkerFactory`], spawned on an arbiter.

use crate::actor::{Actor, Handler, Message};
use crate::arbiter::Heartbeat;
use crate::ctx::Ctx;
use crate::exit::Exit;
use crate::inspect::TreeEvent;
use crate::note::Looked;
use crate::panic::{drop_guarded, guarded, guarded_inside, take_drop_panic};
use crate::pid::{Entered, KILL, Pid, SIGNAL, STOP, SUBTREE, Signal};
use crate::refs::{Inbox, Question, Ref};
use crate::registry::AnyInbox;
use crate::system::Inner;
use actix::dev::channel::{AddressReceiver, channel};
use actix::dev::{AsyncContextParts, ContextFut, ContextParts, Envelope, Mailbox, ToEnvelope};
use actix::{ActorContext, ActorState, AsyncContext, SpawnHandle};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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
        if exit.is_abnormal() && exit != Exit::Killed {
            tracing::warn!(path = self.pid.path(), pid = self.pid.id(), %exit, "actor exited");
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
        let inbox = Arc::new(Inbox::new(pid.clone(), actix::Addr::new(sender)));
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

// ---- actix's side ------------------------------------------------------------------------------------------------------------

/// What actix takes for the actor. The state itself lies in the context, where the shell reaches it, too.
pub(crate) struct Host<A>(PhantomData<fn(A)>);

impl<A: Actor> actix::Actor for Host<A> {
    type Context = Engine<A>;
}

/// What actix takes for the context.
pub(crate) struct Engine<A: Actor> {
    parts: ContextParts<Host<A>>,
    /// `None` only once the state was dropped.
    actor: Option<Box<A>>,
    ctx: Ctx<A>,
    /// Messages left of this turn.
    left: u32,
    /// A handler's, caught close to it: unwinding through actix costs more than all the rest of a restart.
    panicked: Option<Box<Exit>>,
}

impl<A: Actor> Engine<A> {
    /// Has actix poll what the user's code has spawned.
    fn flush(&mut self) {
        if self.ctx.wants_pump() {
            self.parts.spawn(Pump);
        }
    }
}

impl<A: Actor> ActorContext for Engine<A> {
    fn stop(&mut self) {
        self.parts.stop();
    }
    fn terminate(&mut self) {
        self.parts.terminate();
    }
    fn state(&self) -> ActorState {
        self.parts.state()
    }
}

impl<A: Actor> AsyncContext<Host<A>> for Engine<A> {
    fn spawn<F: actix::ActorFuture<Host<A>, Output = ()> + 'static>(&mut self, fut: F) -> SpawnHandle {
        self.parts.spawn(fut)
    }
    fn wait<F: actix::ActorFuture<Host<A>, Output = ()> + 'static>(&mut self, fut: F) {
        self.parts.wait(fut);
    }
    fn waiting(&self) -> bool {
        // actix asks before it takes each message: this is where a turn ends.
        self.left == 0 || self.ctx.stopping() || self.panicked.is_some() || self.parts.waiting()
    }
    fn cancel_future(&mut self, handle: SpawnHandle) -> bool {
        self.parts.cancel_future(handle)
    }
    fn address(&self) -> actix::Addr<Host<A>> {
        self.parts.address()
    }
}

impl<A: Actor> AsyncContextParts<Host<A>> for Engine<A> {
    fn parts(&mut self) -> &mut ContextParts<Host<A>> {
        &mut self.parts
    }
}

/// A message on its way through actix.
impl<M: Message> actix::Message for Question<M> {
    type Result = ();
}

impl<A: Handler<M>, M: Message> actix::Handler<Question<M>> for Host<A> {
    type Result = ();

    fn handle(&mut self, mut question: Question<M>, engine: &mut Engine<A>) {
        engine.left = engine.left.saturating_sub(1);
        engine.ctx.pid_ref().release();
        if question.given_up() {
            return;
        }
        let note = question.take_note();
        let (Some(actor), (Some(message), asker)) = (&mut engine.actor, question.into_parts()) else { return };
        let ctx = &mut engine.ctx;
        let looked = Looked::wanted(&note).then(|| Looked::enter(ctx.pid_ref(), note, std::any::type_name::<M>()));
        if let Some(panic) = guarded_inside(|| actor.handle(message, ctx).resolve(asker)) {
            engine.panicked = Some(Box::new(panic));
        } else {
            engine.flush();
        }
        drop(looked);
    }
}

impl<A: Handler<M>, M: Message> ToEnvelope<Host<A>, Question<M>> for Engine<A> {
    fn pack(message: Question<M>, asker: Option<tokio::sync::oneshot::Sender<()>>) -> Envelope<Host<A>> {
        Envelope::new(message, asker)
    }
}

/// The one future that actix runs in each actor that has tasks: actix polls all of its futures in each turn, ours only those woken.
struct Pump;

impl<A: Actor> actix::ActorFuture<Host<A>> for Pump {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Host<A>, engine: &mut Engine<A>, cx: &mut Context<'_>) -> Poll<()> {
        // What a panic left behind runs no more.
        if let Some(actor) = engine.actor.as_mut().filter(|_| engine.panicked.is_none()) {
            engine.ctx.pump(actor, cx);
        }
        Poll::Pending
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

struct Shell<A: Actor> {
    fut: Option<ContextFut<Host<A>, Engine<A>>>,
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
        let mailbox = Mailbox::new(receiver);
        let parts = ContextParts::new(mailbox.sender_producer());
        let heartbeat = system.heartbeat();
        let ctx = Ctx::new(pid.clone(), system, Ref::from_inbox(inbox));
        let engine = Engine { parts, actor: Some(Box::new(actor)), ctx, left: TURN_MESSAGES, panicked: None };
        let fut = ContextFut::new(engine, Host(PhantomData), mailbox);
        Shell { fut: Some(fut), pid, heartbeat, phase: Phase::New, subtrees: Vec::new(), dropped: None, exit }
    }

    /// Runs user code outside actix; what it spawned is handed on, a panic ends the actor.
    fn with(&mut self, f: impl FnOnce(&mut A, &mut Ctx<A>)) {
        let Some(fut) = &mut self.fut else { return };
        let engine = fut.ctx();
        let Some(actor) = &mut engine.actor else { return };
        let result = guarded(|| f(actor, &mut engine.ctx));
        engine.flush();
        if let Err(panic) = result {
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
        let traps = self.fut.as_mut().is_some_and(|fut| fut.ctx().ctx.traps_exits());
        if traps {
            self.with(|actor, ctx| actor.exit_signal(from, reason, ctx));
        } else if reason != Exit::Normal {
            // OTP: an exit signal that is not trapped ends the process at once, without `terminate`.
            self.end(reason, false);
        }
    }

    fn subtree_exited(&mut self, subtree: u64, exit: Exit) {
        if let Some(fut) = &mut self.fut {
            fut.ctx().ctx.subtree_gone(subtree);
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
        if let Some(fut) = &mut self.fut {
            self.subtrees.extend(fut.ctx().ctx.take_subtrees());
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
        if let Some(mut fut) = self.fut.take() {
            // Terminated, its drop is a plain drop: actix would else poll the actor again.
            let engine = fut.ctx();
            engine.terminate();
            engine.ctx.cancel_monitors();
            let _entered = Entered::new(&self.pid);
            // One by one: two panics in one unwinding would abort the process.
            drop_guarded(engine.actor.take());
            drop_guarded(fut);
            // Kept here: on this thread others have their turn before this one has ended.
            self.dropped = take_drop_panic().map(Box::new);
        }
    }

    /// All subtrees have ended.
    fn finish(&mut self) {
        let Phase::Ending { exit, in_order } = std::mem::replace(&mut self.phase, Phase::New) else { return };
        let mut exit = *exit;
        if in_order && let Some(fut) = &mut self.fut {
            let engine = fut.ctx();
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

    /// One turn of the actor itself.
    fn turn(&mut self, cx: &mut Context<'_>) {
        let Some(fut) = &mut self.fut else { return };
        fut.ctx().left = TURN_MESSAGES;
        // What others of this thread left behind is not this actor's.
        take_drop_panic();
        let result = guarded(|| Pin::new(&mut *fut).poll(cx));
        match result {
            Err(panic) => return self.end(panic, false),
            // actix ends when no sender is left; we hold one, so this is for safety only.
            Ok(Poll::Ready(())) => return self.end(Exit::Normal, true),
            Ok(Poll::Pending) => {}
        }
        if let Some(panic) = fut.ctx().panicked.take() {
            return self.end(*panic, false);
        }
        if fut.ctx().left == 0 {
            cx.waker().wake_by_ref();
        }
        // A Drop of the user's that panicked inside a guarded drop, such as a message's.
        if let Some(panic) = take_drop_panic() {
            return self.end(panic, false);
        }
        if let Some(reason) = fut.ctx().ctx.take_stop() {
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
        if let Some(fut) = &mut self.fut {
            self.subtrees.extend(fut.ctx().ctx.take_subtrees());
        }
        for (_, pid) in &self.subtrees {
            pid.kill();
        }
        self.drop_state();
    }
}
