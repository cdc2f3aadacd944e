//! What an actor can do while it runs: itself, its timers, its futures, its watches, its own subtrees.
//!
//! Must never outlive its actor or be used from elsewhere: handlers get it by `&mut`.

use crate::actor::{Actor, Handler, Message, Replier, Reply};
use crate::exit::Exit;
use crate::far::later;
use crate::observe::Measure;
use crate::panic::drop_guarded;
use crate::pid::{MonitorRef, Pid, doing};
use crate::refs::{Inbox, Ref};
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::{Mailbox, SupervisorSpec};
use crate::supervisor::{SupervisorRef, launch};
use crate::system::{Inner, System};
use crate::trace::Trace;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use futures::{Stream, StreamExt};
use std::cell::Cell;
use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// How many results of its own futures and timers an actor handles before others of its arbiter get their turn.
const TURN_EFFECTS: u32 = 64;
/// The shortest period of an interval, in milliseconds: one of nothing would never let others run.
const INTERVAL_MIN_MS: u64 = 1;

/// The context of a running actor.
///
/// What takes time runs beside the messages, ends with the actor, and can panic like any of its code:
/// ```
/// use phalanx_actors::testkit::simulate;
/// use phalanx_actors::*;
/// use std::time::Duration;
///
/// #[derive(Default)]
/// struct Boiler {
///     degrees: u32,
///     log: Vec<String>,
/// }
/// impl Actor for Boiler {
///     fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
///         // Again and again.
///         ctx.interval(Duration::from_secs(1), |boiler, _| boiler.degrees += 10);
///         // Once, as a message to itself.
///         let alarm = ctx.send_after(Duration::from_secs(60), Note("too long"));
///         // A future, and what to do with its result.
///         ctx.pipe(tokio::time::sleep(Duration::from_millis(8_500)), move |boiler, (), _| {
///             boiler.log.push(format!("{} degrees", boiler.degrees));
///             alarm.cancel();
///         });
///         // A future whose result nobody needs.
///         ctx.spawn(async { tokio::task::yield_now().await });
///         // A future before which no message is handled.
///         ctx.wait(tokio::time::sleep(Duration::from_secs(1)), |boiler, (), _| boiler.log.push("warm".into()));
///         Ok(())
///     }
/// }
/// struct Note(&'static str);
/// impl Message for Note {
///     type Reply = Vec<String>;
/// }
/// impl Handler<Note> for Boiler {
///     fn handle(&mut self, note: Note, _: &mut Ctx<Self>) -> Reply<Vec<String>> {
///         self.log.push(note.0.into());
///         self.log.clone().into()
///     }
/// }
///
/// simulate(0, |sim| async move {
///     let boiler = ChildSpec::actor("boiler", Boiler::default);
///     sim.system().start(SupervisorSpec::new("house", Strategy::OneForOne).child(boiler)).await.unwrap();
///     let boiler = sim.system().named::<Boiler>("house/boiler");
///     boiler.tell(Note("hello")).unwrap();
///     sim.advance(Duration::from_secs(100)).await; // of simulated time
///     assert_eq!(boiler.ask(Note("bye")).await.unwrap(), ["warm", "hello", "80 degrees", "bye"]);
/// });
/// ```
///
/// It watches others, or shares their fate, and has children of its own:
/// ```
/// use phalanx_actors::testkit::{Probe, expect_exit, simulate};
/// use phalanx_actors::*;
///
/// #[derive(Clone, Copy)]
/// enum Tie {
///     Monitor,
///     Link,
///     LinkAndTrap,
/// }
/// struct Guard(Pid, Tie, Recipient<News>);
/// struct News(String);
/// impl Message for News {
///     type Reply = ();
/// }
/// impl Actor for Guard {
///     fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
///         match self.1 {
///             Tie::Monitor => drop(ctx.monitor(&self.0)),
///             Tie::Link => ctx.link(&self.0),
///             Tie::LinkAndTrap => {
///                 ctx.trap_exit(true);
///                 ctx.link(&self.0);
///             }
///         }
///         // Runs below this actor and never longer than it, at `<path>/own`.
///         let own = SupervisorSpec::new("own", Strategy::Dynamic);
///         assert_eq!(ctx.supervise(own).path(), format!("{}/own", ctx.path()));
///         Ok(())
///     }
///     fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
///         self.2.tell(News(format!("down: {}", down.reason))).unwrap();
///     }
///     fn exit_signal(&mut self, _: Pid, reason: Exit, _: &mut Ctx<Self>) {
///         self.2.tell(News(format!("signal: {reason}"))).unwrap();
///     }
/// }
/// struct Patient;
/// impl Actor for Patient {}
///
/// # impl std::fmt::Debug for News {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
/// #         f.write_str(&self.0)
/// #     }
/// # }
/// simulate(0, |sim| async move {
///     let mut probe = Probe::<News>::start(sim.system(), "probe").await;
///     let top = sim.system().start(SupervisorSpec::new("ward", Strategy::Dynamic)).await.unwrap();
///     let patient = top.start_child(ChildSpec::once("patient", || Patient)).await.unwrap();
///     let mut guards = Vec::new();
///     for (id, tie) in [("a", Tie::Monitor), ("b", Tie::LinkAndTrap), ("c", Tie::Link)] {
///         let (patient, news) = (patient.clone(), probe.recipient());
///         guards.push(top.start_child(ChildSpec::once(id, move || Guard(patient, tie, news))).await.unwrap());
///     }
///     patient.kill();
///     let mut news = [probe.expect_message().await.0, probe.expect_message().await.0];
///     news.sort();
///     assert_eq!(news, ["down: killed", "signal: killed"]);
///     assert_eq!(expect_exit(&guards[2]).await, Exit::Killed); // linked, and traps nothing
///     assert!(guards[0].is_alive() && guards[1].is_alive());
/// });
/// ```
pub struct Ctx<A: Actor> {
    pid: Pid,
    system: Arc<Inner>,
    me: Ref<A>,
    /// Each is polled only when it was woken, however many there are.
    tasks: Option<Box<FuturesUnordered<Task<A>>>>,
    #[allow(clippy::box_collection)] // few actors have monitors, and there may be as many actors as there are pods
    monitors: Option<Box<HashSet<MonitorRef>>>,
    stop: Option<Box<Exit>>,
    subtrees: Option<Box<Subtrees>>,
    /// Messages left of this turn; none when the actor stops or waits, so that one look tells all.
    pub(crate) left: u32,
    traps: bool,
    /// How many [`Ctx::wait`]s hold the messages back.
    waits: u32,
}

/// Those that the actor supervises.
#[derive(Default)]
struct Subtrees {
    alive: Vec<(u64, Pid)>,
    next: u64,
}

/// Something that a [`Ctx`] set going: a future, a timer, a stream. Dropping it changes nothing.
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
            monitors: None,
            stop: None,
            subtrees: None,
            left: 0,
            traps: false,
            waits: 0,
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
        self.left = 0;
    }

    /// Until when an answer to the question that is being handled is of use: the deadline of [`Ref::ask_until`] and
    /// [`Ref::ask_timeout`]. `None` for all else, and in what runs after the handler has returned; so take it there along, for example
    /// into [`Ref::ask_until`].
    pub fn deadline(&self) -> Option<Instant> {
        DEADLINE.get()
    }

    /// Runs a future beside the messages. It ends with the actor, and its panic is the actor's exit. It goes on under the
    /// [`Trace`] that is current now, as [`Ctx::pipe`] and [`Ctx::send_after`] do.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> TaskRef {
        let future = async move {
            future.await;
            None
        };
        self.run(Work::Once(match Trace::current() {
            Some(trace) => Box::pin(trace.scope_async(future)),
            None => Box::pin(future),
        }))
    }

    /// Runs a future beside the messages and hands its output back to the actor.
    pub fn pipe<F, T>(&mut self, future: F, then: impl FnOnce(&mut A, T, &mut Ctx<A>) + 'static) -> TaskRef
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        let trace = Trace::current();
        let future = async move {
            let output = future.await;
            let apply: Apply<A> = match trace {
                Some(trace) => Box::new(move |actor, ctx| trace.scope(|| then(actor, output, ctx))),
                None => Box::new(move |actor, ctx| then(actor, output, ctx)),
            };
            Some(apply)
        };
        self.run(Work::Once(match trace {
            Some(trace) => Box::pin(trace.scope_async(future)),
            None => Box::pin(future),
        }))
    }

    /// As [`Ctx::pipe`], and no message is handled until `then` has run: those that come stay in the mailbox, and when it is full, whoever
    /// [sends](Ref::send) waits. So a slow actor slows down those before it, and no memory fills up. Signals, timers and other futures of the
    /// actor are not held back.
    pub fn wait<F, T>(&mut self, future: F, then: impl FnOnce(&mut A, T, &mut Ctx<A>) + 'static)
    where
        F: Future<Output = T> + 'static,
        T: 'static,
    {
        self.waits += 1;
        self.left = 0;
        self.pipe(future, |actor, output, ctx| {
            ctx.waits -= 1;
            then(actor, output, ctx);
        });
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
        let mut ticker = tokio::time::interval_at(later(Instant::now(), period), period);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.run(Work::Source(Box::new(Every { ticker, tick })))
    }

    /// Hands each item of a stream to the actor, and `None` once when the stream has ended. The next item is asked for when the one before
    /// was handled: nothing is queued, and a slow actor slows its stream. It ends with the actor, and its panic is the actor's exit.
    /// ```
    /// use phalanx_actors::testkit::simulate;
    /// use phalanx_actors::*;
    /// struct Sum(u64);
    /// impl Actor for Sum {
    ///     fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
    ///         ctx.attach(futures::stream::iter([1, 2, 3]), |sum, number, ctx| match number {
    ///             Some(number) => sum.0 += number,
    ///             None => ctx.stop(Exit::ShutdownWith(sum.0.to_string())),
    ///         });
    ///         Ok(())
    ///     }
    /// }
    /// simulate(0, |sim| async move {
    ///     let sum = ChildSpec::actor("sum", || Sum(0)).restart(Restart::Transient);
    ///     sim.system().start(SupervisorSpec::new("top", Strategy::OneForOne).child(sum)).await.unwrap();
    ///     sim.settle().await;
    ///     let row = sim.system().tree().into_iter().find(|row| row.path == "top/sum").unwrap();
    ///     assert_eq!(row.last_exit, Some(Exit::ShutdownWith("6".into())));
    /// });
    /// ```
    pub fn attach<S>(&mut self, stream: S, each: impl FnMut(&mut A, Option<S::Item>, &mut Ctx<A>) + 'static) -> TaskRef
    where
        S: Stream + 'static,
    {
        self.run(Work::Source(Box::new(Items { stream: Box::pin(stream), next: None, each })))
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
        self.monitors.get_or_insert_default().insert(monitor.clone());
        monitor
    }

    /// Takes a monitor back. Its `down` does not come after this, not even if it was on its way (OTP `demonitor` with `flush`).
    pub fn demonitor(&mut self, monitor: &MonitorRef) {
        if self.expects(monitor) {
            monitor.cancel();
        }
    }

    /// Ties the fates of the two: when one exits other than [`Exit::Normal`], the other does, unless it traps exits (OTP `link`).
    pub fn link(&mut self, pid: &Pid) {
        self.pid.link(pid);
    }

    /// Takes a link back. No exit of `pid` comes through it after this, not even one that was on its way: neither ends it this actor, nor does it
    /// reach [`Actor::exit_signal`] (OTP `unlink`, and a flush of what was trapped).
    pub fn unlink(&mut self, pid: &Pid) {
        self.pid.unlink(pid);
    }

    /// Whether exits of linked actors arrive in [`Actor::exit_signal`] instead of ending this one (OTP `trap_exit`). Off at first.
    pub fn trap_exit(&mut self, on: bool) {
        self.traps = on;
    }

    /// For handlers that answer later: return the first, keep the second.
    /// ```
    /// use phalanx_actors::*;
    /// struct Sensor;
    /// impl Actor for Sensor {}
    /// struct Measure;
    /// impl Message for Measure {
    ///     type Reply = f64;
    /// }
    /// async fn measured() -> f64 {
    ///     21.5
    /// }
    /// impl Handler<Measure> for Sensor {
    ///     fn handle(&mut self, _: Measure, ctx: &mut Ctx<Self>) -> Reply<f64> {
    ///         let (reply, replier) = ctx.defer();
    ///         // Other messages are handled meanwhile.
    ///         ctx.pipe(measured(), |_, degrees, _| replier.reply(degrees));
    ///         reply
    ///     }
    /// }
    /// ```
    pub fn defer<R>(&mut self) -> (Reply<R>, Replier<R>) {
        Reply::later(self.pid.clone())
    }

    /// Starts a subtree of this actor's own at `<path>/<id>`. It starts in the background, on this actor's thread; it is stopped before this actor's exit is
    /// reported; and when it gives up, or cannot start, its exit is this actor's.
    pub fn supervise(&mut self, spec: SupervisorSpec) -> SupervisorRef {
        let subtrees = self.subtrees.get_or_insert_default();
        let subtree = subtrees.next;
        subtrees.next += 1;
        let path: Arc<str> = format!("{}/{}", self.pid.path(), spec.id()).into();
        let pid = self.system.pid(path, Mailbox::NONE);
        let owner = self.pid.clone();
        let reporter = Reporter::new(move |report| {
            if let Report::Exited(exit) = report {
                owner.subtree_exited(subtree, exit);
            }
        });
        self.subtrees.get_or_insert_default().alive.push((subtree, pid.clone()));
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

    /// Whether messages are to stay in the mailbox.
    pub(crate) fn holds(&self) -> bool {
        self.waits() || self.stop.is_some()
    }

    /// Whether it waits for a future before it handles another message.
    pub(crate) fn waits(&self) -> bool {
        self.waits > 0
    }

    pub(crate) fn take_stop(&mut self) -> Option<Exit> {
        self.stop.take().map(|reason| *reason)
    }

    pub(crate) fn traps_exits(&self) -> bool {
        self.traps
    }

    /// Whether a `down` is still wanted. Each is, once.
    pub(crate) fn expects(&mut self, monitor: &MonitorRef) -> bool {
        self.monitors.as_mut().is_some_and(|monitors| monitors.remove(monitor))
    }

    /// The actor has ended: those that it watched shall not keep a watcher that nobody reads.
    pub(crate) fn cancel_monitors(&mut self) {
        for monitor in self.monitors.take().into_iter().flat_map(|monitors| *monitors) {
            monitor.cancel();
        }
    }

    /// Polls the tasks that were woken, and hands what they bring to the actor.
    pub(crate) fn pump(&mut self, actor: &mut A, cx: &mut Context<'_>) {
        for _ in 0..TURN_EFFECTS {
            if self.stop.is_some() || self.pid.claimed() {
                return;
            }
            let Some(tasks) = &mut self.tasks else { return };
            match tasks.poll_next_unpin(cx) {
                Poll::Ready(Some(Effect::None)) => {}
                Poll::Ready(Some(Effect::Apply(apply))) => {
                    let _measure = self.measure();
                    let waited = self.waits();
                    apply(actor, self);
                    if waited && !self.waits() {
                        // The messages had their turn before the futures, and got nothing of it.
                        cx.waker().wake_by_ref();
                    }
                }
                Poll::Ready(Some(Effect::Deliver(mut task))) => {
                    let _measure = self.measure();
                    if let Some(Work::Source(source)) = &mut task.work
                        && source.deliver(actor, self)
                    {
                        self.push(task);
                    }
                }
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    fn measure(&self) -> Option<Measure> {
        self.pid.observed().then(|| Measure::new(&self.pid, doing::task(), Duration::ZERO))
    }

    pub(crate) fn take_subtrees(&mut self) -> Vec<(u64, Pid)> {
        self.subtrees.as_mut().map(|subtrees| std::mem::take(&mut subtrees.alive)).unwrap_or_default()
    }

    pub(crate) fn subtree_gone(&mut self, subtree: u64) {
        if let Some(subtrees) = &mut self.subtrees {
            subtrees.alive.retain(|(id, _)| *id != subtree);
        }
    }
}

/// A switch that a timer or task looks at before it runs; shared with its [`crate::TaskRef`].
#[derive(Default)]
struct Cancel {
    cancelled: AtomicBool,
    waker: AtomicWaker,
}

impl Cancel {
    fn cancel(&self) {
        self.cancelled.store(true, SeqCst);
        self.waker.wake();
    }

    /// Whether it is cancelled; if not, `waker` is woken when it will be.
    fn poll(&self, waker: &Waker) -> bool {
        self.waker.register(waker);
        self.cancelled.load(SeqCst)
    }
}

/// What a finished task does to its actor.
enum Effect<A: Actor> {
    None,
    Apply(Apply<A>),
    /// As a task, which is dropped with care also when what it delivers panics.
    Deliver(Task<A>),
}

type Apply<A> = Box<dyn FnOnce(&mut A, &mut Ctx<A>)>;

/// What has something for the actor again and again.
trait Source<A: Actor> {
    /// Ready when there is something to deliver.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Delivers it. False when nothing follows.
    fn deliver(&mut self, actor: &mut A, ctx: &mut Ctx<A>) -> bool;
}

struct Every<F> {
    ticker: Interval,
    tick: F,
}

impl<A: Actor, F: FnMut(&mut A, &mut Ctx<A>)> Source<A> for Every<F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ticker.poll_tick(cx).map(drop)
    }
    fn deliver(&mut self, actor: &mut A, ctx: &mut Ctx<A>) -> bool {
        (self.tick)(actor, ctx);
        true
    }
}

struct Items<S: Stream, F> {
    stream: Pin<Box<S>>,
    /// What the stream gave last, until it is delivered.
    next: Option<S::Item>,
    each: F,
}

impl<A: Actor, S: Stream, F: FnMut(&mut A, Option<S::Item>, &mut Ctx<A>)> Source<A> for Items<S, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.as_mut().poll_next(cx).map(|next| self.next = next)
    }
    fn deliver(&mut self, actor: &mut A, ctx: &mut Ctx<A>) -> bool {
        let next = self.next.take();
        let more = next.is_some();
        (self.each)(actor, next, ctx);
        more
    }
}

enum Work<A: Actor> {
    Once(LocalBoxFuture<'static, Option<Apply<A>>>),
    Source(Box<dyn Source<A>>),
}

/// A future, timer, interval or stream. What it holds is the user's, so it is dropped with care.
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
            Some(Work::Source(source)) => {
                if source.poll(cx).is_pending() {
                    return Poll::Pending;
                }
                Poll::Ready(Effect::Deliver(Task { work: self.work.take(), cancel: self.cancel.clone() }))
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
