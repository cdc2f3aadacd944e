//! The actor system: the arbiters, the registry and the top-level supervisors of one node.
//!
//! Must never be a global: many systems live in one process. Made by whoever embeds the crate.

use crate::actor::Actor;
use crate::any::AnyRef;
use crate::arbiter::{self, Arbiter, Heartbeat};
use crate::core::intensity::Intensity;
use crate::error::{BuildError, StartError};
use crate::exit::Exit;
use crate::groups::Groups;
use crate::inspect::{ActorInfo, ArbiterInfo, TREE_EVENTS, TreeEvent, ms};
use crate::observe::{self, Observer};
use crate::panic::{drop_guarded, install_hook, take_drop_panic};
use crate::pid::Pid;
use crate::refs::{Inbox, Named, Ref};
use crate::registry::Registry;
use crate::schedule::Schedule;
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::{Mailbox, Placement, SupervisorSpec};
use crate::supervisor::{SupervisorRef, launch};
use crate::watchdog::Watchdog;
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

/// A node's actors. Clones are the same system; when the last one made by [`System::builder`] is dropped, its threads end.
///
/// ```
/// use phalanx_actors::*;
/// # struct Lamp;
/// # impl Actor for Lamp {}
/// # struct Toggle;
/// # impl Message for Toggle { type Reply = (); }
/// # impl Handler<Toggle> for Lamp {
/// #     fn handle(&mut self, _: Toggle, _: &mut Ctx<Self>) -> Reply<()> {
/// #         panic!("burned out")
/// #     }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let system = System::builder("node").arbiters(2).build()?; // two threads for its actors
/// let mut events = system.subscribe();
/// let room = SupervisorSpec::new("room", Strategy::OneForOne).child(ChildSpec::actor("lamp", || Lamp));
/// system.start(room).await?;
///
/// // By path: whoever runs there whenever it is used. A `Ref` is one incarnation, and so is its `Pid`.
/// let lamp: Named<Lamp> = system.named("room/lamp");
/// let first: Ref<Lamp> = system.lookup("room/lamp").ok_or("no lamp")?;
/// let pid: Pid = first.pid();
/// lamp.tell(Toggle)?; // it panics, and is restarted
/// assert!(matches!(pid.exited().await, Exit::Panic { message, .. } if message == "burned out"));
///
/// let mut seen = Vec::new();
/// while seen.len() < 4 {
///     seen.push(match events.recv().await? {
///         TreeEvent::Started { path, .. } => format!("{path} started"),
///         TreeEvent::Exited { path, .. } => format!("{path} exited"),
///         TreeEvent::Restarting { path, in_ms, .. } => format!("{path} restarts in {in_ms} ms"), // with a backoff
///         TreeEvent::Stopped { path } => format!("{path} stopped"),
///         TreeEvent::Stuck { path, doing, .. } => format!("{path} is stuck in {doing}"),
///     });
/// }
/// assert_eq!(seen, ["room/lamp started", "room started", "room/lamp exited", "room/lamp started"]);
/// assert_ne!(system.whereis("room/lamp"), Some(pid));
/// assert!(first.tell(Toggle).is_err()); // that incarnation is gone
/// let info = system.tree().into_iter().find(|info| info.path == "room/lamp").ok_or("no lamp")?;
/// assert_eq!((info.state, info.restarts), (State::Running, 1));
/// system.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct System {
    pub(crate) inner: Arc<Inner>,
    /// `None` in handles that actors hold: they would keep the system, and so themselves, alive.
    _owner: Option<Arc<Owner>>,
}

pub(crate) struct Inner {
    name: String,
    pub(crate) registry: Registry,
    /// A thread that was left behind is replaced in its slot.
    arbiters: RwLock<Vec<Arc<Arbiter>>>,
    /// No threads: everything is on the `LocalSet` of whoever built it.
    local: bool,
    pub(crate) watchdog: Option<Watchdog>,
    next_arbiter: AtomicUsize,
    next_pid: AtomicU64,
    /// Made for the first subscriber: nobody pays for events that nobody reads.
    events: OnceLock<broadcast::Sender<TreeEvent>>,
    /// In the order of their start.
    tops: Mutex<Vec<Top>>,
    /// Nothing more may be started at the top.
    down: AtomicBool,
    killed: AtomicBool,
    groups: Arc<Groups>,
    /// Only in simulations.
    pub(crate) schedule: Option<Arc<Schedule>>,
}

/// A supervisor at the top. It is started again only when its thread was left behind.
struct Top {
    pid: Pid,
    /// What to start again; `None` without a watchdog. It may hold what the embedder wants back when the system has ended.
    again: Option<SupervisorSpec>,
    restarts: Intensity,
    since: Instant,
    /// Whoever started it knows that it is up, and does not wait for it any more.
    up: bool,
}

/// A supervisor at the top that will be started again.
pub(crate) struct TopRestart {
    pid: Pid,
    spec: SupervisorSpec,
    exit: ExitGuard,
    started: oneshot::Receiver<()>,
}

struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Settings of a new [`System`].
pub struct SystemBuilder {
    name: String,
    arbiters: usize,
    local: bool,
    schedule: Option<Arc<Schedule>>,
    watchdog: Option<Duration>,
    /// Tests look by hand.
    watched_by_hand: bool,
}

impl SystemBuilder {
    /// How many threads run actors; at least one, and one unless set.
    pub fn arbiters(mut self, threads: usize) -> Self {
        self.arbiters = threads.max(1);
        self
    }

    /// Everything runs on the tokio `LocalSet` that `build` is called in: no threads, and time can be simulated.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// As [`SystemBuilder::local`]; and among the actors that are ready, chance decides whose turn it is, the same way for the same seed.
    /// Finds races in tests, and costs some speed. [`crate::testkit::simulate`] brings the clock and the `LocalSet` with it.
    pub fn seed(self, seed: u64) -> Self {
        self.schedule(Arc::new(Schedule::new(seed)))
    }

    pub(crate) fn schedule(mut self, schedule: Arc<Schedule>) -> Self {
        self.schedule = Some(schedule);
        self.local()
    }

    /// Watches for actors that do not give their thread back within `limit`: that block, or never end. Such an actor is named in the log,
    /// in [`TreeEvent::Stuck`] and in [`ActorInfo::stuck`], with the message that it handles. It and all others of its thread exit with
    /// [`Exit::ArbiterStuck`] and are started on a fresh thread as their supervisors' specifications say; a supervisor at the top is started
    /// again by the system, as often as its own intensity allows. The old thread runs nothing more than the code that is stuck.
    ///
    /// Off unless set, because only who embeds it can know two things: how long a handler may take on its machines, and whether the
    /// replacement of an actor may run while the one it replaces is still inside its handler, since Rust cannot end a thread. Choose a
    /// limit far above the longest handler; 10 s is a good start. It takes one thread that looks eight times within the limit, and a few
    /// nanoseconds for each turn of an actor. In local mode there is no thread for it: use [`crate::Watch`] from outside.
    /// ```
    /// use phalanx_actors::*;
    /// use std::sync::mpsc::{Receiver, channel};
    /// use std::time::Duration;
    /// struct Worker;
    /// impl Actor for Worker {}
    /// struct Job(Receiver<()>);
    /// messages!(Job => ());
    /// impl Handler<Job> for Worker {
    ///     fn handle(&mut self, job: Job, _: &mut Ctx<Self>) -> Reply<()> {
    ///         let _ = job.0.recv(); // holds up its thread
    ///         ().into()
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let system = System::builder("node").watchdog(Duration::from_millis(500)).build()?;
    /// let top = SupervisorSpec::new("top", Strategy::OneForOne).child(ChildSpec::actor("worker", || Worker));
    /// system.start(top).await?;
    /// let worker = system.lookup::<Worker>("top/worker").ok_or("no worker")?;
    /// let (free, job) = channel();
    /// assert!(worker.ask(Job(job)).await.is_err());
    /// assert!(matches!(worker.pid().exited().await, Exit::ArbiterStuck { doing, .. } if doing.ends_with("::Job")));
    /// while system.whereis("top/worker").is_none() {
    ///     tokio::time::sleep(Duration::from_millis(1)).await; // it returns, on a fresh thread
    /// }
    /// drop(free); // the old thread ends, too
    /// system.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = Some(limit);
        self
    }

    #[cfg(test)]
    pub(crate) fn watched_by_hand(mut self) -> Self {
        self.watched_by_hand = true;
        self
    }

    /// Starts the threads.
    ///
    /// The first call in a process installs a panic hook, the one thing of this crate that is process-wide: a panic of supervised code is not
    /// printed, because its supervisor logs it as an exit, with its place; all other panics go to the hook that was there before. A hook
    /// that is installed later, and does not call this one, prints them, and hides their places from the exits.
    pub fn build(self) -> Result<System, BuildError> {
        install_hook();
        let watchdog = self.watchdog.filter(|_| !self.local).map(Watchdog::new);
        let arbiters = if self.local {
            // tokio panics outside a LocalSet: an error of the embedder's, which deserves a sentence.
            let local = || Arbiter::local(self.schedule.clone());
            vec![crate::panic::guarded(local).map_err(|_| BuildError::NoLocalSet)?]
        } else {
            (0..self.arbiters)
                .map(|i| Arbiter::thread(format!("{}-actors-{i}", self.name), watchdog.is_some()))
                .collect::<Result<_, _>>()?
        };
        let inner = Arc::new(Inner {
            name: self.name,
            registry: Registry::default(),
            arbiters: RwLock::new(arbiters),
            local: self.local,
            watchdog,
            next_arbiter: AtomicUsize::new(0),
            next_pid: AtomicU64::new(1),
            events: OnceLock::new(),
            tops: Mutex::default(),
            down: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            groups: Arc::default(),
            schedule: self.schedule,
        });
        let owner = Arc::new(Owner(inner.clone()));
        if !self.watched_by_hand {
            Watchdog::spawn(&inner)?;
        }
        Ok(System { inner, _owner: Some(owner) })
    }
}

impl System {
    /// A new system; `name` is the node's. What its panic hook does to the process is told at [`SystemBuilder::build`].
    pub fn builder(name: impl Into<String>) -> SystemBuilder {
        SystemBuilder {
            name: name.into(),
            arbiters: 1,
            local: false,
            schedule: None,
            watchdog: None,
            watched_by_hand: false,
        }
    }

    pub(crate) fn guest(inner: Arc<Inner>) -> Self {
        System { inner, _owner: None }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Starts a top-level supervisor at the path `<id>` and waits until all its first children are up. When it gives up later, that is
    /// logged and seen through [`SupervisorRef::pid`]; nobody restarts it, unless its thread was left behind: see
    /// [`SystemBuilder::watchdog`].
    pub async fn start(&self, spec: SupervisorSpec) -> Result<SupervisorRef, StartError> {
        if self.inner.down.load(SeqCst) {
            return Err(StartError::SystemDown);
        }
        let path: Arc<str> = spec.id().into();
        if self.inner.registry.find(&path).is_some() {
            return Err(StartError::AlreadyRunning(path.to_string()));
        }
        let pid = self.inner.pid(path, Mailbox::NONE);
        let (reporter, started) = up();
        {
            let mut tops = self.inner.tops.lock();
            // Looked at again where a shutdown looks for what it has to stop.
            if self.inner.down.load(SeqCst) {
                return Err(StartError::SystemDown);
            }
            tops.retain(|top| top.pid.is_alive());
            let restarts = Intensity::new(spec.intensity);
            let again = self.inner.watchdog.is_some().then(|| spec.clone());
            tops.push(Top { pid: pid.clone(), again, restarts, since: Instant::now(), up: false });
        }
        let exit = ExitGuard::new(pid.clone(), self.inner.clone(), reporter).rootless();
        let (inner, own) = (self.inner.clone(), pid.clone());
        let (give, take) = oneshot::channel();
        self.inner.arbiter(Placement::Spread).run(move || {
            let _ = give.send(launch(spec, own, inner, exit, false));
        });
        let Ok(supervisor) = take.await else {
            // Its thread was left behind before it came to it.
            let down = self.inner.down.load(SeqCst);
            return Err(if down { StartError::SystemDown } else { StartError::Failed(pid.exited().await) });
        };
        if started.await.is_ok() && self.inner.top_is_up(&pid) {
            return Ok(supervisor);
        }
        Err(StartError::Failed(pid.exited().await))
    }

    /// Who runs at a path now.
    pub fn whereis(&self, path: &str) -> Option<Pid> {
        self.inner.registry.find(path)
    }

    /// The actor of type `A` that runs at a path now.
    pub fn lookup<A: Actor>(&self, path: &str) -> Option<Ref<A>> {
        self.inner.lookup(path)
    }

    /// The process that runs at a path now, of whatever type; a supervisor too.
    pub fn find(&self, path: &str) -> Option<AnyRef> {
        self.inner.registry.found(path).map(|(pid, inbox)| AnyRef::new(pid, inbox))
    }

    /// A handle that does not keep the system alive, for what lives inside of it or beside it.
    pub fn guest_handle(&self) -> System {
        System::guest(self.inner.clone())
    }

    /// The supervisor that runs at a path now: how an actor reaches a dynamic supervisor that is its sibling.
    pub fn supervisor(&self, path: &str) -> Option<SupervisorRef> {
        let handle = self.inner.registry.inbox(path)?.downcast::<SupervisorRef>().ok()?;
        Some(SupervisorRef::clone(&handle))
    }

    /// A reference to whoever runs at a path whenever it is used.
    pub fn named<A: Actor>(&self, path: &str) -> Named<A> {
        Named::new(path, self.inner.clone())
    }

    /// All actors and supervisors, in the order of their paths.
    pub fn tree(&self) -> Vec<ActorInfo> {
        let watchdog = self.inner.watchdog.as_ref();
        let running = self.inner.arbiters().into_iter().enumerate().filter_map(|(slot, arbiter)| {
            let (turn, running) = arbiter.heartbeat.look();
            Some((running?, watchdog.map_or(0, |watchdog| ms(watchdog.busy(slot, turn)))))
        });
        let mut tree = self.inner.registry.tree(&running.collect::<Vec<_>>());
        for (path, stuck) in watchdog.map(Watchdog::stuck).unwrap_or_default() {
            if let Some(row) = tree.iter_mut().find(|row| row.path == path) {
                row.stuck = Some(stuck);
            }
        }
        tree
    }

    /// What the arbiters do at this moment. The same odd count at two looks: an actor blocks its neighbours.
    pub fn arbiters(&self) -> Vec<ArbiterInfo> {
        let look = |arbiter: &Arc<Arbiter>| {
            let (turns, running) = arbiter.heartbeat.look();
            ArbiterInfo { alive: arbiter.is_alive(), turns, running }
        };
        self.inner.arbiters().iter().map(look).collect()
    }

    pub(crate) fn all_groups(&self) -> &Arc<Groups> {
        &self.inner.groups
    }

    /// What changes in the tree from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<TreeEvent> {
        self.inner.events.get_or_init(|| broadcast::Sender::new(TREE_EVENTS)).subscribe()
    }

    /// Measures queues and handlers of all actors while what is returned lives: [`ActorInfo::queue_oldest_ms`] and
    /// [`ActorInfo::by_message`] are filled then.
    /// ```
    /// use phalanx_actors::testkit::simulate;
    /// use phalanx_actors::*;
    /// struct Lamp;
    /// impl Actor for Lamp {}
    /// struct Toggle;
    /// messages!(Toggle => ());
    /// impl Handler<Toggle> for Lamp {
    ///     fn handle(&mut self, _: Toggle, _: &mut Ctx<Self>) -> Reply<()> {
    ///         ().into()
    ///     }
    /// }
    /// simulate(0, |sim| async move {
    ///     let room = SupervisorSpec::new("room", Strategy::OneForOne).child(ChildSpec::actor("lamp", || Lamp));
    ///     sim.system().start(room).await.unwrap();
    ///     let lamp = sim.system().lookup::<Lamp>("room/lamp").unwrap();
    ///     let observer = sim.system().observe();
    ///     lamp.tell(Toggle).unwrap();
    ///     let row = |tree: Vec<ActorInfo>| tree.into_iter().find(|row| row.path == "room/lamp").unwrap();
    ///     let waiting = row(observer.tree());
    ///     assert_eq!((waiting.queue_len, waiting.queue_oldest_ms), (1, Some(0)));
    ///     sim.settle().await;
    ///     let handled = row(observer.tree());
    ///     assert!(handled.by_message[0].name.ends_with("::Toggle") && handled.by_message[0].count == 1);
    ///     // The same accounts, by type of actor, for whatever recorder of the `metrics` crate is installed.
    ///     metrics::with_local_recorder(&metrics::NoopRecorder, || sim.system().record_metrics());
    ///     drop(observer);
    ///     assert!(row(sim.system().tree()).by_message.is_empty());
    /// });
    /// ```
    pub fn observe(&self) -> Observer {
        Observer::new(self.inner.clone())
    }

    /// Records what there is to count with the recorder of the `metrics` crate; call it as often as metrics are read, as costly as
    /// [`System::tree`]. Nothing is recorded otherwise. All have the labels `system` and `type` (of the actor):
    ///
    /// | name, all with `phalanx_actors_` before | kind | counts |
    /// |---|---|---|
    /// | `running` | gauge | incarnations that live |
    /// | `messages_total` | counter | messages handled |
    /// | `restarts_total` | counter | restarts by supervisors |
    /// | `exits_total` | counter | incarnations that ended, by `reason` |
    /// | `queued_messages` | gauge | messages that wait, together |
    /// | `queue_length` | histogram | messages that wait, of each actor |
    /// | `queue_oldest_seconds` | gauge | age of the oldest message that waits, while observed |
    /// | `handled_total` | counter | messages handled by `message`, while observed |
    /// | `busy_microseconds_total` | counter | time in handlers by `message`, while observed |
    /// | `waited_microseconds_total` | counter | time in mailboxes by `message`, while observed |
    pub fn record_metrics(&self) {
        observe::record(&self.inner.name, &self.inner.registry);
    }

    /// Stops the top-level supervisors, last come first, then the threads. It may be called more than once, and dropped: whoever calls
    /// it waits for what still runs.
    ///
    /// A handler that blocks its thread holds it up for as long as it blocks, because a thread cannot be ended from outside, whatever
    /// [`Shutdown`](crate::Shutdown) says; unless there is a [watchdog](SystemBuilder::watchdog), which leaves such a thread behind.
    /// [`System::kill`] waits for it only a short while.
    pub async fn shutdown(&self) {
        self.inner.down.store(true, SeqCst);
        // Each is known until it has exited: another call finds it, and waits for it, too.
        while let Some(pid) = self.inner.last_top() {
            pid.stop(Exit::Shutdown);
            pid.exited().await;
            self.inner.forget_top(&pid);
        }
        if let Some(watchdog) = &self.inner.watchdog {
            watchdog.stop();
        }
        let mut arbiters = self.inner.arbiters();
        for arbiter in &arbiters {
            arbiter.stop();
        }
        // In simulated time no other thread may have a say in what happens when.
        arbiters.retain(|arbiter| arbiter.has_thread());
        if arbiters.is_empty() {
            return;
        }
        // Joining blocks, and the caller may share its thread with others.
        let _ = tokio::task::spawn_blocking(move || arbiters.iter().for_each(|arbiter| arbiter.join())).await;
    }

    /// Ends everything at once, as if the process had died: nothing is asked, no `stopping` runs.
    pub fn kill(&self) {
        self.inner.kill();
        for arbiter in self.inner.arbiters() {
            arbiter.join();
        }
    }
}

impl Inner {
    pub(crate) fn pid(&self, path: Arc<str>, mailbox: Mailbox) -> Pid {
        self.child_pid(path, mailbox, Reporter::None)
    }

    pub(crate) fn child_pid(&self, path: Arc<str>, mailbox: Mailbox, reporter: Reporter) -> Pid {
        let pid = Pid::with_reporter(self.next_pid.fetch_add(1, Relaxed), path, mailbox, reporter);
        if self.watchdog.is_some() {
            pid.watch();
        }
        pid
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn arbiters(&self) -> Vec<Arc<Arbiter>> {
        self.arbiters.read().clone()
    }

    /// A fresh thread takes the place of one that was left behind.
    pub(crate) fn replace_arbiter(&self, slot: usize) -> Result<(), BuildError> {
        let fresh = Arbiter::thread(format!("{}-actors-{slot}", self.name), true)?;
        self.arbiters.write()[slot] = fresh.clone();
        // A kill may have stopped those that it found before.
        if self.killed() {
            fresh.stop();
        }
        Ok(())
    }

    fn last_top(&self) -> Option<Pid> {
        self.tops.lock().last().map(|top| top.pid.clone())
    }

    fn forget_top(&self, pid: &Pid) {
        let mut tops = self.tops.lock();
        let top = tops.iter().position(|top| top.pid == *pid).map(|at| tops.remove(at));
        // Outside of the lock, for its spec is the user's.
        drop(tops);
        drop_guarded(top);
        // Not a panic of anyone who could exit with it.
        take_drop_panic();
    }

    /// Whoever starts a supervisor at the top knows that it is up. False when its thread was left behind before.
    fn top_is_up(&self, pid: &Pid) -> bool {
        let mut tops = self.tops.lock();
        let top = tops.iter_mut().find(|top| top.pid == *pid).filter(|_| !pid.claimed());
        top.map(|top| top.up = true).is_some()
    }

    /// Those of the supervisors at the top that will be started again, in the order of their first start. All others of them are gone.
    pub(crate) fn restarts_of(self: &Arc<Self>, victims: &[Pid]) -> Vec<TopRestart> {
        let mut again = Vec::new();
        // Whoever shuts it down waits for the end of those that are known.
        if self.down.load(SeqCst) {
            return again;
        }
        for top in self.tops.lock().iter_mut().filter(|top| top.up && victims.contains(&top.pid)) {
            let Some(spec) = top.again.clone() else { continue };
            if !top.restarts.allow(top.since.elapsed()) {
                tracing::error!(path = top.pid.path(), "supervisor is not started again: too many restarts");
                continue;
            }
            // Its place in the tree stays, and counts the restart.
            top.pid.set_rootless(false);
            let (reporter, started) = up();
            top.pid = self.pid(top.pid.arc_path().clone(), Mailbox::NONE);
            let exit = ExitGuard::new(top.pid.clone(), self.clone(), reporter).rootless();
            again.push(TopRestart { pid: top.pid.clone(), spec, exit, started });
        }
        again
    }

    /// Starts a supervisor at the top again, and waits until it is up or has failed.
    pub(crate) async fn start_again(self: &Arc<Self>, restart: TopRestart, slot: usize) {
        let TopRestart { pid, spec, exit, started } = restart;
        let (inner, own) = (self.clone(), pid.clone());
        self.arbiter(Placement::Arbiter(slot)).run(move || {
            launch(spec, own, inner, exit, true);
        });
        if started.await.is_err() {
            let exit = pid.exited().await;
            tracing::error!(path = pid.path(), %exit, "supervisor could not be started again");
        }
    }

    pub(crate) fn event(&self, event: impl FnOnce() -> TreeEvent) {
        if let Some(events) = self.events.get().filter(|events| events.receiver_count() > 0) {
            // The last one may have gone meanwhile.
            let _ = events.send(event());
        }
    }

    /// Whether all of it is to vanish as if its process had died.
    pub(crate) fn killed(&self) -> bool {
        self.killed.load(SeqCst)
    }

    fn kill(&self) {
        self.down.store(true, SeqCst);
        // First, so that nothing is started while the others die.
        self.killed.store(true, SeqCst);
        let mut live = self.registry.live();
        // In simulated time what happens must not hang on the order of a hash map.
        live.sort_unstable_by_key(Pid::id);
        for pid in live {
            pid.kill();
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.stop();
        }
        for arbiter in self.arbiters() {
            arbiter.stop();
        }
        // Handles of actors outlive the system, and shall not keep what its specs hold. Outside of the lock, for that is the user's.
        let tops = std::mem::take(&mut *self.tops.lock());
        drop_guarded(tops);
    }

    pub(crate) fn lookup<A: Actor>(&self, path: &str) -> Option<Ref<A>> {
        self.registry.inbox(path)?.downcast::<Inbox<A>>().ok().map(Ref::from_inbox)
    }

    /// The heartbeat of the arbiter that the caller runs on.
    pub(crate) fn heartbeat(&self) -> Arc<Heartbeat> {
        // That of a thread that was left behind is in no slot any more.
        let own = if self.local { None } else { arbiter::heartbeat() };
        own.unwrap_or_else(|| self.arbiters.read()[0].heartbeat.clone())
    }

    pub(crate) fn arbiter(&self, placement: Placement) -> Arc<Arbiter> {
        let arbiters = self.arbiters.read();
        let n = arbiters.len();
        let index = match placement {
            // In local mode, and outside of all, the first.
            Placement::Inherit => arbiters.iter().position(|arbiter| arbiter.is_current()).unwrap_or(0),
            Placement::Spread => self.next_arbiter.fetch_add(1, Relaxed) % n,
            Placement::Arbiter(i) => i % n,
        };
        // One that is gone would only report that, again and again.
        let alive = (0..n).map(|step| (index + step) % n).find(|i| arbiters[*i].is_alive());
        arbiters[alive.unwrap_or(index)].clone()
    }
}

/// For a supervisor at the top: who starts it learns that it is up, or by a hang-up that it will not be.
fn up() -> (Reporter, oneshot::Receiver<()>) {
    let (up, started) = oneshot::channel();
    let mut up = Some(up);
    let reporter = Reporter::new(move |report| {
        if let (Report::Started, Some(up)) = (report, up.take()) {
            let _ = up.send(());
        }
    });
    (reporter, started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ChildSpec, Placement, Strategy};
    use std::time::Duration;

    struct Idle;
    impl Actor for Idle {}

    fn spec() -> SupervisorSpec {
        let child = |id: &str, arbiter| ChildSpec::actor(id, || Idle).placement(Placement::Arbiter(arbiter));
        SupervisorSpec::new("s", Strategy::OneForOne).child(child("a", 0)).child(child("b", 1))
    }

    #[tokio::test]
    async fn an_actor_whose_thread_dies_exits_with_arbiter_gone_and_is_restarted_on_another() {
        let system = System::builder("t").arbiters(2).build().expect("system");
        system.start(spec()).await.expect("started");
        let b = system.whereis("s/b").expect("b");
        // Not through an actor: those panics are caught. This one is the runtime's own death.
        system.inner.arbiters()[1].run(|| {
            std::panic::resume_unwind(Box::new("dies"));
        });
        assert_eq!(b.exited().await, Exit::ArbiterGone);
        let again = async {
            while system.whereis("s/b").is_none_or(|pid| pid == b) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), again).await.expect("restarted");
        assert!(system.arbiters()[0].alive && !system.arbiters()[1].alive);
        system.shutdown().await;
    }

    #[test]
    fn a_heartbeat_names_the_actor_that_has_the_thread() {
        let heartbeat = Heartbeat::default();
        let (pid, child) = (Pid::new(7, "a".into(), Mailbox::NONE), Pid::new(8, "a/b".into(), Mailbox::NONE));
        assert_eq!(heartbeat.look(), (0, None));
        let outer = heartbeat.enter(&pid);
        assert_eq!(heartbeat.look(), (1, Some(7)));
        let inner = heartbeat.enter(&child);
        assert_eq!(heartbeat.look(), (1, Some(8)));
        heartbeat.leave(inner);
        assert_eq!(heartbeat.look(), (1, Some(7)));
        heartbeat.leave(outer);
        assert_eq!(heartbeat.look(), (2, None));
    }
}
