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

use crate::actor::{Actor, MessageTo};
use crate::arbiter::{self, Arbiter, Heartbeat, Turn};
use crate::ctx::{Ctx, DEADLINE};
use crate::error::AskError;
use crate::exit::Exit;
use crate::inspect::Kind;
use crate::inspect::TreeEvent;
use crate::mailbox::{Parcel, Question, Ring};
use crate::note::{Looked, Note};
use crate::panic::{drop_guarded, guarded, guarded_inside, take_drop_panic};
use crate::pid::{Entered, KILL, Name, Pid, ROOM, Registered, SIGNAL, STOP, SUBTREE, Signal, doing};
use crate::refs::{Inbox, Ref};
use crate::supervisor::ChildReporter;
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

/// How many messages an actor handles before others of its arbiter get their turn: as many as tokio lets any task do.
const TURN_MESSAGES: u32 = 128;
/// How many signals it takes in a turn: one that watches the dead again has another one each time.
const TURN_SIGNALS: u32 = 64;

/// What an incarnation tells whoever started it.
#[derive(Debug)]
pub(crate) enum Report {
    Started,
    Exited(Exit),
}

/// Carries reports, or none.
#[derive(Default)]
pub(crate) enum Reporter {
    #[default]
    None,
    /// To the supervisor of a child: as there may be as many as there are pods, not a closure in a box.
    Child(ChildReporter),
    Call(Box<dyn FnMut(Report) + Send>),
}

impl Reporter {
    pub(crate) fn new(f: impl FnMut(Report) + Send + 'static) -> Self {
        Reporter::Call(Box::new(f))
    }

    pub(crate) fn tell(&mut self, report: Report) {
        match self {
            Reporter::None => {}
            Reporter::Child(child) => child.tell(report),
            Reporter::Call(f) => f(report),
        }
    }
}

/// The end of one incarnation: the registry, the watchers and whoever started it learn of it in this order, once. Dropped before the exit
/// was reported, it reports that the thread is gone: no child is ever lost.
pub(crate) struct ExitGuard {
    pid: Pid,
    system: Arc<Inner>,
}

impl ExitGuard {
    pub(crate) fn new(pid: Pid, system: Arc<Inner>, reporter: Reporter) -> Self {
        pid.set_reporter(reporter);
        ExitGuard { pid, system }
    }

    /// Of a pid that was made with its reporter.
    pub(crate) fn of(pid: Pid, system: Arc<Inner>) -> Self {
        ExitGuard { pid, system }
    }

    /// For what no supervisor started: its end is its end in the tree.
    pub(crate) fn rootless(self) -> Self {
        self.pid.set_rootless(true);
        self
    }

    pub(crate) fn started(&mut self) {
        if self.pid.claimed() {
            return;
        }
        self.pid.set_up();
        self.system.event(|| TreeEvent::Started { path: self.pid.path().to_owned(), pid: self.pid.clone() });
        self.pid.report_started();
    }

    pub(crate) fn exited(&mut self, exit: Exit) {
        // Not so when its thread was left behind: then the watchdog has told, or will.
        if self.pid.claim() {
            finish(&self.system, &self.pid, exit);
        }
    }
}

/// The end of an incarnation, by whoever has claimed it.
pub(crate) fn finish(system: &Inner, pid: &Pid, exit: Exit) {
    pid.set_ending();
    pid.close_backlog();
    let (path, id, dropped) = (pid.path(), pid.id(), pid.dropped());
    match &exit {
        Exit::ArbiterStuck { .. } => {
            // There may be many, and one line has said it of all.
            tracing::debug!(path, pid = id, %exit, dropped, "actor exited");
        }
        exit if exit.is_abnormal() && *exit != Exit::Killed => {
            tracing::warn!(path, pid = id, %exit, dropped, "actor exited");
        }
        _ => {}
    }
    system.registry.leave(pid, &exit);
    system.event(|| TreeEvent::Exited { path: path.to_owned(), pid: pid.clone(), exit: exit.clone() });
    if pid.rootless() {
        system.registry.forget(path);
    }
    pid.set_exit(&exit);
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        self.exited(if self.system.killed() { Exit::Killed } else { Exit::ArbiterGone });
    }
}

/// What makes the incarnations of one child.
pub(crate) trait Factory: Send + Sync {
    /// Starts an incarnation on an arbiter. How that goes, `exit` reports.
    fn start(self: Arc<Self>, pid: Pid, system: Arc<Inner>, arbiter: &Arbiter, exit: ExitGuard, restart: bool);
}

pub(crate) struct WorkerFactory<F>(F);

impl<F> WorkerFactory<F> {
    pub(crate) fn new(make: F) -> Self {
        WorkerFactory(make)
    }
}

impl<A: Actor, F: Fn() -> A + Send + Sync + 'static> Factory for WorkerFactory<F> {
    fn start(self: Arc<Self>, pid: Pid, system: Arc<Inner>, arbiter: &Arbiter, mut exit: ExitGuard, restart: bool) {
        // actix's own capacity does not matter: the account of the pid decides before it is asked.
        let (sender, receiver) = channel::<Host<A>>(16);
        let ring = pid.mailbox().has_ring().then(|| ring::<A>(&pid));
        let inbox = Arc::new(Inbox::new(pid.clone(), actix::Addr::new(sender), ring));
        let type_name = std::any::type_name::<A>();
        if !system.registry.enter(&pid, Some(inbox.clone()), Kind::Worker, type_name, restart) {
            return exit.exited(Exit::Error(format!("`{}` is already running", pid.path())));
        }
        // Looked at after it was entered, where the watchdog finds it: one of the two sees the other.
        if arbiter::abandoned() {
            return exit.exited(Exit::ArbiterGone);
        }
        arbiter.run(move || {
            pid.doing(doing::start);
            let heartbeat = system.heartbeat();
            let turn = Turn::new(&heartbeat, &pid);
            let entered = Entered::with(pid.clone());
            let made = if system.killed() { Err(Exit::Killed) } else { guarded(|| (self.0)()) };
            let own = entered.leave();
            drop(turn);
            match made {
                Ok(actor) => {
                    let ctx = Ctx::new(pid, system, Ref::from_inbox(inbox));
                    tokio::task::spawn_local(Shell::new(actor, ctx, own, heartbeat, receiver, exit));
                }
                Err(panic) => exit.exited(panic),
            }
        });
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
    /// A handler's, caught close to it: unwinding through actix costs more than all the rest of a restart.
    panicked: Option<Box<Exit>>,
}

impl<A: Actor> Engine<A> {
    /// Whether no message is to be handled now: the turn is over, the actor waits or ends, a signal is first, or its thread was left behind.
    #[inline]
    pub(crate) fn busy(&self) -> bool {
        self.ctx.left == 0 || self.ctx.pid_ref().interrupted()
    }

    pub(crate) fn pid(&self) -> &Pid {
        self.ctx.pid_ref()
    }

    pub(crate) fn inbox(&self) -> Arc<Inbox<A>> {
        self.ctx.inbox()
    }

    /// A message has reached the actor.
    #[inline]
    pub(crate) fn deliver<M: MessageTo<A>>(
        &mut self,
        question: &mut Question<M>,
        deadline: Option<Instant>,
        note: Option<Box<Note>>,
    ) {
        self.ctx.left = self.ctx.left.saturating_sub(1);
        let pid = self.ctx.pid_ref();
        pid.release();
        if question.given_up() {
            return pid.count_dropped(1);
        }
        if let Some(deadline) = deadline {
            return self.deliver_until(question, deadline, note);
        }
        self.hand_over(question, note);
    }

    #[inline(never)]
    fn deliver_until<M: MessageTo<A>>(
        &mut self,
        question: &mut Question<M>,
        deadline: Instant,
        note: Option<Box<Note>>,
    ) {
        if deadline <= Instant::now() {
            // Its asker will learn it from its own clock; perhaps that has no turn for a while.
            question.refuse(AskError::Timeout);
            return self.ctx.pid_ref().count_dropped(1);
        }
        DEADLINE.set(Some(deadline));
        self.hand_over(question, note);
        DEADLINE.set(None);
    }

    #[inline]
    fn hand_over<M: MessageTo<A>>(&mut self, question: &mut Question<M>, note: Option<Box<Note>>) {
        let Engine { actor: Some(actor), ctx, panicked } = self else { return };
        let (Some(message), asker) = question.take() else { return };
        let pid = ctx.pid_ref();
        pid.count_handled();
        pid.doing(std::any::type_name::<M>);
        let looked = match Looked::wanted(pid, &note) {
            false => None,
            true => Some(Looked::enter(pid, note, std::any::type_name::<M>())),
        };
        if let Some(panic) = guarded_inside(|| message.handled_by(actor, ctx).resolve(asker)) {
            *panicked = Some(panic);
            // Nothing more is handled.
            ctx.left = 0;
        }
        drop(looked);
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
    Ending(Box<Ending>),
}

/// Own subtrees are ending; then `stopping` is run if `in_order`.
struct Ending {
    exit: Exit,
    in_order: bool,
    /// Those that have not ended.
    subtrees: Vec<(u64, Pid)>,
}

/// What runs, until the actor has ended.
struct Run<A: Actor> {
    engine: Engine<A>,
    mailbox: Mailbox<Host<A>>,
}

struct Shell<A: Actor> {
    /// Becomes the current pid of the thread and back again, turn by turn.
    pid: Option<Pid>,
    registered: Registered,
    run: Option<Run<A>>,
    heartbeat: Arc<Heartbeat>,
    phase: Phase,
    exit: ExitGuard,
}

impl<A: Actor> Shell<A> {
    fn new(
        actor: A,
        ctx: Ctx<A>,
        pid: Option<Pid>,
        heartbeat: Arc<Heartbeat>,
        receiver: AddressReceiver<Host<A>>,
        exit: ExitGuard,
    ) -> Self {
        let engine = Engine { actor: Some(Box::new(actor)), ctx, panicked: None };
        let run = Some(Run { engine, mailbox: Mailbox::new(receiver) });
        Shell { pid, registered: Registered::default(), run, heartbeat, phase: Phase::New, exit }
    }

    /// Runs user code outside of messages; a panic ends the actor.
    fn with(&mut self, doing: Name, f: impl FnOnce(&mut A, &mut Ctx<A>)) {
        if self.exit.pid.claimed() {
            return;
        }
        self.exit.pid.doing(doing);
        let Some(Run { engine, .. }) = &mut self.run else { return };
        let Some(actor) = &mut engine.actor else { return };
        if let Err(panic) = guarded(|| f(actor, &mut engine.ctx)) {
            self.end(panic, false);
        }
    }

    /// Takes signals from outside. Ends the actor when one says so.
    fn signals(&mut self) {
        let requests = self.exit.pid.take_requests();
        if requests == 0 {
            return;
        }
        if requests & ROOM != 0 {
            self.exit.pid.offer_all_room();
        }
        // Before a kill, which would wait for subtrees that have ended already.
        if requests & SUBTREE != 0 {
            while let Some((subtree, exit)) = self.exit.pid.next_subtree_exit() {
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
            let mut left = TURN_SIGNALS;
            while let Some(signal) = self.exit.pid.next_signal() {
                left -= 1;
                match signal {
                    Signal::Down(down) => self.with(doing::signal, |actor, ctx| {
                        if ctx.expects(&down.monitor) {
                            actor.down(down, ctx);
                        }
                    }),
                    Signal::Exit { from, reason } => self.link_exited(from, reason),
                }
                if !matches!(self.phase, Phase::New | Phase::Running) {
                    return;
                }
                if left == 0 {
                    // In the next turn. A stop does not wait for those, or it could wait for ever.
                    self.exit.pid.raise(SIGNAL);
                    break;
                }
            }
        }
        if requests & STOP != 0 {
            // What never started has nothing to stop in order.
            let started = matches!(self.phase, Phase::Running);
            self.end(self.exit.pid.stop_reason(), started);
        }
    }

    fn link_exited(&mut self, from: Pid, reason: Exit) {
        let traps = self.run.as_ref().is_some_and(|run| run.engine.ctx.traps_exits());
        if traps {
            self.with(doing::signal, |actor, ctx| actor.exit_signal(from, reason, ctx));
        } else if reason != Exit::Normal {
            // OTP: an exit signal that is not trapped ends the process at once, without `terminate`.
            self.end(reason, false);
        }
    }

    fn subtree_exited(&mut self, subtree: u64, exit: Exit) {
        if let Some(run) = &mut self.run {
            run.engine.ctx.subtree_gone(subtree);
        }
        if let Phase::Ending(ending) = &mut self.phase {
            ending.subtrees.retain(|(id, _)| *id != subtree);
        }
        // One that was stopped by hand is no news; one that gave up takes its owner along.
        if matches!(self.phase, Phase::New | Phase::Running) && exit.is_abnormal() {
            self.end(exit, true);
        }
    }

    /// The end begins: no message is taken any more, the subtrees are stopped (or killed), last come first.
    fn end(&mut self, exit: Exit, in_order: bool) {
        // A kill, or a panic, comes during an end in order; nothing comes after those.
        let mut subtrees = match std::mem::replace(&mut self.phase, Phase::New) {
            Phase::Ending(ending) if !ending.in_order => return self.phase = Phase::Ending(ending),
            Phase::Ending(ending) => ending.subtrees,
            Phase::New | Phase::Running => Vec::new(),
        };
        self.exit.pid.set_ending();
        self.exit.system.registry.stopping(&self.exit.pid);
        if let Some(run) = &mut self.run {
            subtrees.extend(run.engine.ctx.take_subtrees());
        }
        let exit = if in_order { exit } else { self.drop_state(exit) };
        for (_, pid) in subtrees.iter().rev() {
            if in_order {
                pid.stop(Exit::Shutdown);
            } else {
                pid.kill();
            }
        }
        self.phase = Phase::Ending(Box::new(Ending { exit, in_order, subtrees }));
    }

    /// A panic in a Drop spoils an end in order, and hides no earlier reason.
    fn drop_state(&mut self, exit: Exit) -> Exit {
        if let Some(Run { mut engine, mailbox }) = self.run.take() {
            engine.ctx.cancel_monitors();
            let _entered = Entered::new(&self.exit.pid);
            self.exit.pid.doing(doing::stop);
            // One by one: two panics in one unwinding would abort the process.
            drop_guarded(engine.actor.take());
            drop_guarded(engine);
            drop_guarded(mailbox);
            self.exit.pid.close_backlog();
            // Taken at once: on this thread others have their turn before this one has ended.
            if let Some(panic) = take_drop_panic().filter(|_| !exit.is_abnormal()) {
                return panic;
            }
        }
        exit
    }

    /// All subtrees have ended.
    fn finish(&mut self) {
        let Phase::Ending(ending) = std::mem::replace(&mut self.phase, Phase::New) else { return };
        let Ending { mut exit, in_order, .. } = *ending;
        self.exit.pid.doing(doing::stop);
        if in_order
            && !self.exit.pid.claimed()
            && let Some(Run { engine, .. }) = &mut self.run
        {
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
        let exit = self.drop_state(exit);
        self.exit.exited(exit);
    }

    /// One turn of the actor itself: its messages, then what its own futures bring.
    fn turn(&mut self, cx: &mut Context<'_>) {
        let Some(Run { engine, mailbox }) = &mut self.run else { return };
        let turn = match &self.exit.system.schedule {
            None => TURN_MESSAGES,
            Some(schedule) => schedule.messages(TURN_MESSAGES),
        };
        engine.ctx.left = if engine.ctx.holds() { 0 } else { turn };
        // What others of this thread left behind is not this actor's.
        take_drop_panic();
        let result = guarded(|| {
            mailbox.poll(&mut Host(PhantomData), engine, cx);
            // What a panic left behind runs no more.
            if let Some(actor) = engine.actor.as_mut().filter(|_| engine.panicked.is_none()) {
                engine.ctx.pid_ref().doing(doing::task);
                engine.ctx.pump(actor, cx);
            }
        });
        if let Err(panic) = result {
            return self.end(panic, false);
        }
        if let Some(panic) = engine.panicked.take() {
            return self.end(*panic, false);
        }
        // Who waits is woken by what it waits for.
        if engine.ctx.left == 0 && !engine.ctx.waits() {
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
        // Dropping it is all that is left to do.
        if this.heartbeat.abandoned() {
            return Poll::Ready(());
        }
        if let Some(schedule) = &this.exit.system.schedule
            && schedule.passes(this.exit.pid.id())
        {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let entered = match this.pid.take() {
            Some(pid) => Entered::with(pid),
            None => Entered::new(&this.exit.pid),
        };
        let outer = this.heartbeat.enter(&this.exit.pid);
        let done = this.advance(cx);
        this.heartbeat.leave(outer);
        this.pid = entered.leave();
        if this.heartbeat.abandoned() { Poll::Ready(()) } else { done }
    }
}

impl<A: Actor> Shell<A> {
    /// Signals, then messages, then the end as far as it goes without waiting.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.registered.renew(&self.exit.pid, cx.waker());
        if self.exit.system.killed() {
            self.end(Exit::Killed, false);
        }
        self.signals();
        if matches!(self.phase, Phase::New) {
            self.phase = Phase::Running;
            let mut failed = None;
            self.with(doing::start, |actor, ctx| failed = actor.started(ctx).err());
            match (failed, &self.phase) {
                (Some(exit), _) => self.end(exit, false),
                (None, Phase::Running) => self.exit.started(),
                _ => {}
            }
        }
        if matches!(self.phase, Phase::Running) {
            self.turn(cx);
        }
        if matches!(self.phase, Phase::Ending(_)) {
            // Exits of subtrees that came meanwhile.
            self.signals();
            if matches!(&self.phase, Phase::Ending(ending) if ending.subtrees.is_empty()) {
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
        let mut subtrees = match std::mem::replace(&mut self.phase, Phase::New) {
            Phase::Ending(ending) => ending.subtrees,
            Phase::New | Phase::Running => Vec::new(),
        };
        if let Some(run) = &mut self.run {
            subtrees.extend(run.engine.ctx.take_subtrees());
        }
        for (_, pid) in subtrees {
            pid.kill();
        }
        // The guard behind it says why it ended.
        self.drop_state(Exit::ArbiterGone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Idle;
    impl Actor for Idle {}

    /// tokio rounds a task up to a multiple of 128 bytes, and with what it adds this one is just below 256; who makes it larger should know.
    #[test]
    fn the_shell_of_an_actor_stays_small() {
        assert!(size_of::<Shell<Idle>>() <= 152, "{}", size_of::<Shell<Idle>>());
    }
}
