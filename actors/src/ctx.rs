//! What an actor can do while it runs: itself, its timers, its futures, its watches, its own subtrees.
//!
//! Must never outlive its actor or be used from elsewhere: handlers get it by `&mut`.

use crate::actor::{Actor, Handler, Message, Replier, Reply};
use crate::exit::Exit;
use crate::panic::drop_guarded;
use crate::pid::{Cancel, MonitorRef, Pid};
use crate::refs::Ref;
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::SupervisorSpec;
use crate::supervisor::{SupervisorRef, launch};
use crate::system::{Inner, System};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The context of a running actor.
pub struct Ctx<A: Actor> {
    pid: Pid,
    system: Arc<Inner>,
    me: Ref<A>,
    spawned: Vec<Box<dyn Step<A>>>,
    stop: Option<Exit>,
    traps: bool,
    subtrees: Vec<(u64, Pid)>,
    next_subtree: u64,
}

/// Something that a [`Ctx`] set going: a future, a timer. Dropping it changes nothing.
#[derive(Clone)]
pub struct TaskRef(Arc<Cancel>);

/// A timer is a task.
pub type TimerRef = TaskRef;

impl TaskRef {
    /// Ends it; what has not run yet never will.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

impl<A: Actor> Ctx<A> {
    pub(crate) fn new(pid: Pid, system: Arc<Inner>, me: Ref<A>) -> Self {
        Ctx { pid, system, me, spawned: Vec::new(), stop: None, traps: false, subtrees: Vec::new(), next_subtree: 0 }
    }

    /// A reference to this incarnation.
    pub fn self_ref(&self) -> Ref<A> {
        self.me.clone()
    }

    /// The identity of this incarnation (OTP `self()`).
    pub fn pid(&self) -> Pid {
        self.pid.clone()
    }

    /// The place in the tree.
    pub fn path(&self) -> &str {
        self.pid.path()
    }

    /// The system that it runs in. This handle does not keep the system alive.
    pub fn system(&self) -> System {
        System::guest(self.system.clone())
    }

    /// Ends the actor with this reason once the present call returns; messages that wait are dropped. The first reason counts.
    pub fn stop(&mut self, reason: Exit) {
        self.stop.get_or_insert(reason);
    }

    /// Runs a future beside the messages. It ends with the actor, and its panic is the actor's exit.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> TaskRef {
        self.pipe(future, |_, (), _| {})
    }

    /// Runs a future beside the messages and hands its output back to the actor.
    pub fn pipe<F, T>(&mut self, future: F, then: impl FnOnce(&mut A, T, &mut Ctx<A>) + 'static) -> TaskRef
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        let cancel = Arc::<Cancel>::default();
        let step = Pipe { work: Some((Box::pin(future), then)), cancel: cancel.clone() };
        self.spawned.push(Box::new(step));
        TaskRef(cancel)
    }

    /// Handles `message` after `delay`, ahead of what waits in the mailbox then (OTP `send_after`).
    pub fn send_after<M: Message>(&mut self, delay: Duration, message: M) -> TimerRef
    where
        A: Handler<M>,
    {
        self.pipe(tokio::time::sleep(delay), move |actor, (), ctx| actor.handle(message, ctx).resolve(None))
    }

    /// Runs `tick` every `period`, first after one period. Ticks that could not run in time are skipped, not made up for.
    pub fn interval(&mut self, period: Duration, tick: impl FnMut(&mut A, &mut Ctx<A>) + 'static) -> TimerRef {
        let cancel = Arc::<Cancel>::default();
        // A period of zero would never let others run.
        let period = period.max(Duration::from_millis(1));
        let sleep = Box::pin(tokio::time::sleep(period));
        self.spawned.push(Box::new(Interval { tick: Some(tick), sleep, period, cancel: cancel.clone() }));
        TaskRef(cancel)
    }

    /// Asks for one [`Actor::down`] when `pid` has ended; at once if it has.
    pub fn monitor(&mut self, pid: &Pid) -> MonitorRef {
        pid.monitored_by(&self.pid)
    }

    /// Takes a monitor back. Its `down` may be on the way already.
    pub fn demonitor(&mut self, monitor: &MonitorRef) {
        monitor.cancel();
    }

    /// Ties the fates of the two: when one exits other than [`Exit::Normal`], the other does, unless it traps exits (OTP `link`).
    pub fn link(&mut self, pid: &Pid) {
        self.pid.link(pid);
    }

    /// Takes a link back.
    pub fn unlink(&mut self, pid: &Pid) {
        self.pid.unlink(pid);
    }

    /// Whether exits of linked actors arrive in [`Actor::exit_signal`] instead of ending this one (OTP `trap_exit`). Off at first.
    pub fn trap_exit(&mut self, on: bool) {
        self.traps = on;
    }

    /// For handlers that answer later: return the first, keep the second.
    pub fn defer<R>(&mut self) -> (Reply<R>, Replier<R>) {
        Reply::later(self.pid.clone())
    }

    /// Starts a subtree of this actor's own at `<path>/<id>`. It starts in the background, on this actor's thread; it is stopped before this actor's exit is
    /// reported; and when it gives up, or cannot start, its exit is this actor's.
    pub fn supervise(&mut self, spec: SupervisorSpec) -> SupervisorRef {
        let subtree = self.next_subtree;
        self.next_subtree += 1;
        let path: Arc<str> = format!("{}/{}", self.pid.path(), spec.id()).into();
        let pid = self.system.pid(path, 0);
        let owner = self.pid.clone();
        let reporter = Reporter::new(move |report| {
            if let Report::Exited(exit) = report {
                owner.subtree_exited(subtree, exit);
            }
        });
        self.subtrees.push((subtree, pid.clone()));
        let exit = ExitGuard::new(pid.clone(), self.system.clone(), reporter).rootless();
        launch(spec, pid, self.system.clone(), exit, false)
    }

    // ---- for the shell -----------------------------------------------------------------------------------------------------

    pub(crate) fn pid_ref(&self) -> &Pid {
        &self.pid
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.is_some()
    }

    pub(crate) fn take_stop(&mut self) -> Option<Exit> {
        self.stop.take()
    }

    pub(crate) fn traps_exits(&self) -> bool {
        self.traps
    }

    pub(crate) fn take_spawned(&mut self) -> Vec<Box<dyn Step<A>>> {
        std::mem::take(&mut self.spawned)
    }

    pub(crate) fn take_subtrees(&mut self) -> Vec<(u64, Pid)> {
        std::mem::take(&mut self.subtrees)
    }

    pub(crate) fn subtree_gone(&mut self, subtree: u64) {
        self.subtrees.retain(|(id, _)| *id != subtree);
    }
}

/// Work beside the messages: polled with the actor's state at hand.
pub(crate) trait Step<A: Actor> {
    fn poll(&mut self, actor: &mut A, ctx: &mut Ctx<A>, cx: &mut Context<'_>) -> Poll<()>;
}

struct Pipe<F, T> {
    work: Option<(Pin<Box<F>>, T)>,
    cancel: Arc<Cancel>,
}

impl<A, F, T, O> Step<A> for Pipe<F, T>
where
    A: Actor,
    F: Future<Output = O>,
    T: FnOnce(&mut A, O, &mut Ctx<A>),
{
    fn poll(&mut self, actor: &mut A, ctx: &mut Ctx<A>, cx: &mut Context<'_>) -> Poll<()> {
        if self.cancel.poll(cx.waker()) {
            drop_guarded(self.work.take());
            return Poll::Ready(());
        }
        let Some((future, _)) = &mut self.work else { return Poll::Ready(()) };
        let Poll::Ready(output) = future.as_mut().poll(cx) else { return Poll::Pending };
        if let Some((_, then)) = self.work.take() {
            then(actor, output, ctx);
        }
        Poll::Ready(())
    }
}

struct Interval<F> {
    tick: Option<F>,
    sleep: Pin<Box<Sleep>>,
    period: Duration,
    cancel: Arc<Cancel>,
}

impl<A: Actor, F: FnMut(&mut A, &mut Ctx<A>)> Step<A> for Interval<F> {
    fn poll(&mut self, actor: &mut A, ctx: &mut Ctx<A>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.cancel.poll(cx.waker()) {
                drop_guarded(self.tick.take());
                return Poll::Ready(());
            }
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let next = (self.sleep.deadline() + self.period).max(Instant::now());
            self.sleep.as_mut().reset(next);
            if let Some(tick) = &mut self.tick {
                tick(actor, ctx);
            }
            if ctx.stopping() {
                return Poll::Pending;
            }
        }
    }
}
