//! What an actor can do while it runs: itself, its timers, its futures, its watches, its own subtrees.
//!
//! Must never outlive its actor or be used from elsewhere: handlers get it by `&mut`.

use crate::actor::{Actor, Handler, Message, Replier, Reply};
use crate::exit::Exit;
use crate::panic::drop_guarded;
use crate::pid::{Cancel, MonitorRef, Pid};
use crate::refs::{Inbox, Ref};
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::{Mailbox, SupervisorSpec};
use crate::supervisor::{SupervisorRef, launch};
use crate::system::{Inner, System};
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How many results of its own futures and timers an actor handles before others of its arbiter get their turn.
const TURN_EFFECTS: u32 = 64;
/// The shortest period of an interval, in milliseconds: one of nothing would never let others run.
const INTERVAL_MIN_MS: u64 = 1;

/// The context of a running actor.
pub struct Ctx<A: Actor> {
    pid: Pid,
    system: Arc<Inner>,
    me: Ref<A>,
    /// Each is polled only when it was woken, however many there are.
    tasks: Option<Box<FuturesUnordered<Task<A>>>>,
    monitors: HashSet<MonitorRef>,
    stop: Option<Box<Exit>>,
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

thread_local! {
    /// Of the question that this thread handles. Not in each context: there may be as many as there are pods.
    pub(crate) static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl<A: Actor> Ctx<A> {
    pub(crate) fn new(pid: Pid, system: Arc<Inner>, me: Ref<A>) -> Self {
        Ctx {
            pid,
            system,
            me,
            tasks: None,
            monitors: HashSet::new(),
            stop: None,
            traps: false,
            subtrees: Vec::new(),
            next_subtree: 0,
        }
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
        self.stop.get_or_insert_with(|| Box::new(reason));
    }

    /// Until when an answer to the question that is being handled is of use: the deadline of [`Ref::ask_until`] and
    /// [`Ref::ask_timeout`]. `None` for all else, and in what runs after the handler has returned; so take it there along, for example
    /// into [`Ref::ask_until`].
    pub fn deadline(&self) -> Option<Instant> {
        DEADLINE.get()
    }

    /// Runs a future beside the messages. It ends with the actor, and its panic is the actor's exit.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> TaskRef {
        self.run(Work::Once(Box::pin(async move {
            future.await;
            None
        })))
    }

    /// Runs a future beside the messages and hands its output back to the actor.
    pub fn pipe<F, T>(&mut self, future: F, then: impl FnOnce(&mut A, T, &mut Ctx<A>) + 'static) -> TaskRef
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        self.run(Work::Once(Box::pin(async move {
            let output = future.await;
            let apply: Apply<A> = Box::new(move |actor, ctx| then(actor, output, ctx));
            Some(apply)
        })))
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
        let period = period.max(Duration::from_millis(INTERVAL_MIN_MS));
        let mut ticker = tokio::time::interval_at(Instant::now() + period, period);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.run(Work::Every(Box::new(Every { ticker, tick: Box::new(tick) })))
    }

    fn run(&mut self, work: Work<A>) -> TaskRef {
        let cancel = Arc::<Cancel>::default();
        self.push(Task { work: Some(work), cancel: cancel.clone() });
        TaskRef(cancel)
    }

    fn push(&mut self, task: Task<A>) {
        self.tasks.get_or_insert_default().push(task);
    }

    /// Asks for one [`Actor::down`] when `pid` has ended; at once if it has.
    pub fn monitor(&mut self, pid: &Pid) -> MonitorRef {
        let monitor = pid.monitored_by(&self.pid);
        self.monitors.insert(monitor.clone());
        monitor
    }

    /// Takes a monitor back. Its `down` does not come after this, not even if it was on its way (OTP `demonitor` with `flush`).
    pub fn demonitor(&mut self, monitor: &MonitorRef) {
        if self.monitors.remove(monitor) {
            monitor.cancel();
        }
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
        let pid = self.system.pid(path, Mailbox::NONE);
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

    pub(crate) fn inbox(&self) -> Arc<Inbox<A>> {
        self.me.inbox().clone()
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.is_some()
    }

    pub(crate) fn take_stop(&mut self) -> Option<Exit> {
        self.stop.take().map(|reason| *reason)
    }

    pub(crate) fn traps_exits(&self) -> bool {
        self.traps
    }

    /// Whether a `down` is still wanted. Each is, once.
    pub(crate) fn expects(&mut self, monitor: &MonitorRef) -> bool {
        self.monitors.remove(monitor)
    }

    /// The actor has ended: those that it watched shall not keep a watcher that nobody reads.
    pub(crate) fn cancel_monitors(&mut self) {
        for monitor in self.monitors.drain() {
            monitor.cancel();
        }
    }

    /// Polls the tasks that were woken, and hands what they bring to the actor.
    pub(crate) fn pump(&mut self, actor: &mut A, cx: &mut Context<'_>) {
        for _ in 0..TURN_EFFECTS {
            if self.stop.is_some() {
                return;
            }
            let Some(tasks) = &mut self.tasks else { return };
            match tasks.poll_next_unpin(cx) {
                Poll::Ready(Some(Effect::None)) => {}
                Poll::Ready(Some(Effect::Apply(apply))) => apply(actor, self),
                Poll::Ready(Some(Effect::Tick(mut every, cancel))) => {
                    (every.tick)(actor, self);
                    self.push(Task { work: Some(Work::Every(every)), cancel });
                }
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    pub(crate) fn take_subtrees(&mut self) -> Vec<(u64, Pid)> {
        std::mem::take(&mut self.subtrees)
    }

    pub(crate) fn subtree_gone(&mut self, subtree: u64) {
        self.subtrees.retain(|(id, _)| *id != subtree);
    }
}

/// What a finished task does to its actor.
enum Effect<A: Actor> {
    None,
    Apply(Apply<A>),
    Tick(Box<Every<A>>, Arc<Cancel>),
}

type Apply<A> = Box<dyn FnOnce(&mut A, &mut Ctx<A>)>;
type Tick<A> = Box<dyn FnMut(&mut A, &mut Ctx<A>)>;

struct Every<A: Actor> {
    ticker: Interval,
    tick: Tick<A>,
}

enum Work<A: Actor> {
    Once(LocalBoxFuture<'static, Option<Apply<A>>>),
    Every(Box<Every<A>>),
}

/// A future, timer or interval. What it holds is the user's, so it is dropped with care.
struct Task<A: Actor> {
    work: Option<Work<A>>,
    cancel: Arc<Cancel>,
}

impl<A: Actor> Unpin for Task<A> {}

impl<A: Actor> Future for Task<A> {
    type Output = Effect<A>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Effect<A>> {
        if self.cancel.poll(cx.waker()) {
            return Poll::Ready(Effect::None);
        }
        match &mut self.work {
            None => Poll::Ready(Effect::None),
            Some(Work::Once(future)) => future.as_mut().poll(cx).map(|apply| apply.map_or(Effect::None, Effect::Apply)),
            Some(Work::Every(every)) => {
                if every.ticker.poll_tick(cx).is_pending() {
                    return Poll::Pending;
                }
                match self.work.take() {
                    Some(Work::Every(every)) => Poll::Ready(Effect::Tick(every, self.cancel.clone())),
                    _ => Poll::Ready(Effect::None),
                }
            }
        }
    }
}

impl<A: Actor> Drop for Task<A> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            drop_guarded(work);
        }
    }
}
