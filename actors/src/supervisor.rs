//! The driver of the supervisor core: carries its actions out, brings it what happens, answers commands.
//!
//! Must never decide: what is restarted, when, and in which order is `core::supervisor`'s. Started by [`crate::System`], by
//! [`crate::Ctx::supervise`], and by another supervisor whose child it is.

use crate::arbiter::{self, Heartbeat, Turn};
use crate::core::child::{Child, Spec};
use crate::core::supervisor::{Action, Asker, Event, Inc, Key, Supervisor, Timer};
use crate::error::ChildError;
use crate::exit::Exit;
use crate::far::later;
use crate::inspect::{Kind, TreeEvent};
use crate::panic::{drop_guarded, guarded, take_drop_panic};
use crate::pid::{Entered, KILL, Pid, Registered, STOP, doing};
use crate::registry::AnyInbox;
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::{ChildSpec, Policy, Start, Strategy, SupervisorSpec};
use crate::system::Inner;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, TryAcquireError, oneshot};
use tokio::time::{Instant, Sleep};

/// How many commands may wait at a supervisor; further callers wait for room.
const COMMANDS_WAITING: usize = 1_024;
/// How many events a supervisor handles before others of its arbiter get their turn.
const TURN_EVENTS: u32 = 256;
/// Questions, commands and timers.
const SOURCES: usize = 3;

/// A handle to a running supervisor.
#[derive(Clone)]
pub struct SupervisorRef(Arc<Post>);

impl std::fmt::Debug for SupervisorRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SupervisorRef({:?})", self.0.pid)
    }
}

/// One child, as [`SupervisorRef::which_children`] tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildInfo {
    /// Its id.
    pub id: String,
    /// Its incarnation; `None` while it does not run.
    pub pid: Option<Pid>,
    /// Actor or supervisor.
    pub kind: Kind,
    /// It does not run now, and will be started again.
    pub restarting: bool,
}

/// The children of a supervisor, counted (OTP `count_children`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChildCount {
    /// All known.
    pub specs: usize,
    /// Those that run.
    pub active: usize,
    /// Supervisors among all known.
    pub supervisors: usize,
    /// Actors among all known.
    pub workers: usize,
}

enum Command {
    Start(ChildSpec, oneshot::Sender<Result<Pid, ChildError>>),
    Terminate(Arc<str>, oneshot::Sender<Result<(), ChildError>>),
    Restart(Arc<str>, oneshot::Sender<Result<Pid, ChildError>>),
    Delete(Arc<str>, oneshot::Sender<Result<(), ChildError>>),
}

/// A question about what is known now.
enum Look {
    Count(oneshot::Sender<ChildCount>),
    Children(oneshot::Sender<Vec<ChildInfo>>),
    Spec(Arc<str>, oneshot::Sender<Result<ChildSpec, ChildError>>),
}

/// What reaches a driver. Nothing is allocated while nothing waits: there may be as many supervisors as there are pods.
struct Post {
    /// The supervisor's.
    pid: Pid,
    waiting: Mutex<Waiting>,
    /// Room for commands and questions.
    room: Semaphore,
}

#[derive(Default)]
struct Waiting {
    closed: bool,
    /// At most two of each incarnation.
    reports: VecDeque<(Key, Inc, Report)>,
    commands: VecDeque<Command>,
    /// Answered also while commands must wait.
    looks: VecDeque<Look>,
}

impl Waiting {
    fn any(&self) -> bool {
        !(self.reports.is_empty() && self.looks.is_empty() && self.commands.is_empty())
    }
}

impl Post {
    fn new(pid: Pid) -> Arc<Self> {
        Arc::new(Post { pid, waiting: Mutex::default(), room: Semaphore::new(COMMANDS_WAITING) })
    }

    /// False when the supervisor has ended; then nothing was put.
    fn put(&self, f: impl FnOnce(&mut Waiting)) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return false;
        }
        f(&mut waiting);
        drop(waiting);
        self.pid.wake();
        true
    }

    /// Whoever waits for an answer, or for room, learns that there will be none.
    fn close(&self) {
        let waiting = std::mem::replace(&mut *self.waiting.lock(), Waiting { closed: true, ..Waiting::default() });
        drop(waiting); // outside the lock: specs hold what is the user's
        self.room.close();
    }
}

impl SupervisorRef {
    /// Its incarnation.
    pub fn pid(&self) -> Pid {
        self.0.pid.clone()
    }

    /// Its place in the tree.
    pub fn path(&self) -> &str {
        self.0.pid.path()
    }

    /// Adds a child and starts it; answers when it is up. A child that fails to start is not kept.
    pub async fn start_child(&self, spec: ChildSpec) -> Result<Pid, ChildError> {
        self.command(|reply| Command::Start(spec, reply)).await
    }

    /// Stops a child, and answers when it has ended. It stays known, unless it is temporary or the supervisor dynamic.
    pub async fn terminate_child(&self, id: &str) -> Result<(), ChildError> {
        self.command(|reply| Command::Terminate(id.into(), reply)).await
    }

    /// Starts a child that was terminated or ended for good.
    pub async fn restart_child(&self, id: &str) -> Result<Pid, ChildError> {
        self.command(|reply| Command::Restart(id.into(), reply)).await
    }

    /// Forgets a child that does not run.
    pub async fn delete_child(&self, id: &str) -> Result<(), ChildError> {
        self.command(|reply| Command::Delete(id.into(), reply)).await
    }

    /// All known children, in the order of their start.
    pub async fn which_children(&self) -> Result<Vec<ChildInfo>, ChildError> {
        self.call(|waiting, reply| waiting.looks.push_back(Look::Children(reply))).await
    }

    /// The specification of a child (OTP `get_childspec`).
    pub async fn child_spec(&self, id: &str) -> Result<ChildSpec, ChildError> {
        self.call(|waiting, reply| waiting.looks.push_back(Look::Spec(id.into(), reply))).await?
    }

    /// How many children there are.
    pub async fn count_children(&self) -> Result<ChildCount, ChildError> {
        self.call(|waiting, reply| waiting.looks.push_back(Look::Count(reply))).await
    }

    /// Stops it with all its children, in reverse order, and answers when they have ended.
    pub async fn stop(&self) -> Exit {
        self.0.pid.stop(Exit::Shutdown);
        self.0.pid.exited().await
    }

    /// Waits until it has ended, and says why.
    pub async fn exited(&self) -> Exit {
        self.0.pid.exited().await
    }

    async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ChildError>>) -> Command,
    ) -> Result<T, ChildError> {
        self.call(|waiting, reply| waiting.commands.push_back(command(reply))).await?
    }

    async fn call<R>(&self, put: impl FnOnce(&mut Waiting, oneshot::Sender<R>)) -> Result<R, ChildError> {
        let (tx, rx) = oneshot::channel();
        match self.0.room.try_acquire() {
            Ok(room) => room.forget(),
            Err(TryAcquireError::Closed) => return Err(ChildError::SupervisorDown),
            Err(TryAcquireError::NoPermits) => {
                self.0.room.acquire().await.map_err(|_| ChildError::SupervisorDown)?.forget();
            }
        }
        if !self.0.put(|waiting| put(waiting, tx)) {
            return Err(ChildError::SupervisorDown);
        }
        if !self.0.pid.watched() {
            return rx.await.map_err(|_| ChildError::SupervisorDown);
        }
        // What a thread that was left behind holds is not dropped.
        tokio::select! {
            biased;
            answer = rx => answer.map_err(|_| ChildError::SupervisorDown),
            _ = self.0.pid.exited() => Err(ChildError::SupervisorDown),
        }
    }

    /// Nobody will answer any more: its thread was left behind.
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

/// Runs a supervisor on the present arbiter.
pub(crate) fn launch(
    spec: SupervisorSpec,
    pid: Pid,
    system: Arc<Inner>,
    mut exit: ExitGuard,
    restart: bool,
) -> SupervisorRef {
    let post = Post::new(pid.clone());
    let handle = SupervisorRef(post.clone());
    pid.set_arbiter(arbiter::current());
    let inbox: AnyInbox = Arc::new(handle.clone());
    if !system.registry.enter(&pid, Some(inbox), Kind::Supervisor, strategy_name(spec.strategy), restart) {
        post.close();
        exit.exited(Exit::Error(format!("`{}` is already running", pid.path())));
        return handle;
    }
    if arbiter::abandoned() {
        post.close();
        exit.exited(Exit::ArbiterGone);
        return handle;
    }
    let mut core = Supervisor::new(spec.strategy, spec.auto_shutdown, spec.intensity, pid.id());
    for child in spec.children {
        let id = child.id.clone();
        if let Err(error) = core.add(Data { spec: child, pid: None }) {
            post.close();
            exit.exited(Exit::Error(match error {
                ChildError::AlreadyPresent => format!("`{}` has two children with the id `{id}`", pid.path()),
                error => format!("`{}/{id}`: {error}", pid.path()),
            }));
            return handle;
        }
    }
    let heartbeat = system.heartbeat();
    pid.doing(doing::supervision);
    let beating = heartbeat.clone();
    let turn = Turn::new(&beating, &pid);
    let mut driver = Driver {
        core,
        heartbeat,
        pid,
        registered: Registered::default(),
        system,
        exit,
        post,
        askers: HashMap::default(),
        next_asker: 0,
        timers: BTreeMap::new(),
        next_timer: 0,
        source: 0,
        sleep: None,
        epoch: Instant::now(),
        killed: false,
        done: false,
    };
    driver.feed(Event::Boot);
    drop(turn);
    tokio::task::spawn_local(driver);
    handle
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::OneForOne => "one_for_one",
        Strategy::OneForAll => "one_for_all",
        Strategy::RestForOne => "rest_for_one",
        Strategy::Dynamic => "dynamic",
    }
}

/// Brings to a supervisor what becomes of one incarnation of a child.
pub(crate) struct ChildReporter {
    supervisor: Arc<Post>,
    key: Key,
    inc: Inc,
}

impl ChildReporter {
    pub(crate) fn tell(&self, report: Report) {
        // The supervisor may be gone, when its arbiter is.
        self.supervisor.put(|waiting| waiting.reports.push_back((self.key, self.inc, report)));
    }
}

struct Data {
    spec: ChildSpec,
    pid: Option<Pid>,
}

impl Spec for Data {
    fn id(&self) -> &Arc<str> {
        &self.spec.id
    }
    fn policy(&self) -> &Policy {
        &self.spec.policy
    }
}

/// For numbers that nobody else chooses.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// What a driver takes in turn.
enum Next {
    Look(Look),
    Command(Command),
    Timer,
}

enum Reply {
    Pid(oneshot::Sender<Result<Pid, ChildError>>),
    Done(oneshot::Sender<Result<(), ChildError>>),
}

/// Room for how many actions a thread keeps from one event to the next: most events have fewer.
const ACTIONS_KEPT: usize = 16;
thread_local!(static ACTIONS: Cell<Vec<Action<Data>>> = const { Cell::new(Vec::new()) });

struct Driver {
    core: Supervisor<Data>,
    heartbeat: Arc<Heartbeat>,
    pid: Pid,
    registered: Registered,
    system: Arc<Inner>,
    exit: ExitGuard,
    post: Arc<Post>,
    askers: HashMap<Asker, Reply, BuildHasherDefault<NumberHasher>>,
    next_asker: Asker,
    timers: BTreeMap<(Instant, u64), Timer>,
    next_timer: u64,
    /// Which of the [`SOURCES`] is looked at first in the next step.
    source: usize,
    /// Set for the first timer, once there is one.
    sleep: Option<Pin<Box<Sleep>>>,
    epoch: Instant,
    /// The whole system was.
    killed: bool,
    done: bool,
}

impl Driver {
    fn feed(&mut self, event: Event<Data>) {
        let now = if event.timed() { self.epoch.elapsed() } else { Duration::ZERO };
        let mut all = ACTIONS.take();
        self.core.handle(event, now, &mut all);
        let mut actions = all.drain(..);
        while let Some(action) = actions.next() {
            match action {
                Action::Reply { asker, result } => self.reply(asker, result, actions.as_slice()),
                action => self.apply(action),
            }
        }
        drop(actions);
        if all.capacity() <= ACTIONS_KEPT {
            ACTIONS.set(all);
        }
    }

    fn apply(&mut self, action: Action<Data>) {
        match action {
            Action::Start { key, inc, restart } => self.start(key, inc, restart),
            Action::Stop { key } => {
                if let Some(pid) = self.child_pid(key) {
                    self.system.registry.stopping(&pid);
                    pid.stop(Exit::Shutdown);
                }
            }
            Action::Kill { key } => {
                if let Some(pid) = self.child_pid(key) {
                    pid.kill();
                }
            }
            Action::Restarting { key, delay } => {
                let Some(path) = self.child_path(key) else { return };
                let restarts = self.system.registry.restarting(&path, delay);
                let in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                self.system.event(|| TreeEvent::Restarting { path, in_ms, restarts });
            }
            Action::Idle { key } => {
                let Some(path) = self.child_path(key) else { return };
                if !self.core.returns(key)
                    && let Some(pid) = self.child_pid(key)
                {
                    self.drop_backlog(&pid);
                }
                self.system.registry.stopped(&path);
                self.system.event(|| TreeEvent::Stopped { path });
            }
            Action::Forget { data, .. } => {
                if let Some(pid) = &data.pid {
                    self.drop_backlog(pid);
                }
                let path = self.path_of(&data.spec.id);
                self.system.registry.forget(&path);
                self.system.event(|| TreeEvent::Stopped { path });
                drop_guarded(data);
                // Not a panic of anyone who could exit with it.
                take_drop_panic();
            }
            Action::Timer { timer, after } => {
                self.timers.insert((later(Instant::now(), after), self.next_timer), timer);
                self.next_timer += 1;
            }
            Action::Reply { .. } => {} // see `feed`
            Action::Ready => self.exit.started(),
            Action::Exit(exit) => {
                self.done = true;
                self.post.close();
                self.drop_backlogs();
                // The children are part of it: none of them is left in the tree.
                let paths: Vec<String> = self.core.children().map(|(_, child)| self.path_of(child.data.id())).collect();
                for path in paths {
                    self.system.registry.forget(&path);
                }
                self.exit.exited(exit);
            }
        }
    }

    /// The child will not be started again: the messages that its last incarnation left will be nobody's.
    fn drop_backlog(&self, pid: &Pid) {
        let Some(backlog) = pid.take_backlog() else { return };
        let dropped = backlog.abandon(Some(&pid.exit().unwrap_or(Exit::Killed)));
        self.system.registry.dropped(pid.path(), dropped as u64);
        // Not a panic of anyone who could exit with it.
        take_drop_panic();
    }

    fn drop_backlogs(&self) {
        for (_, child) in self.core.children() {
            if let Some(pid) = &child.data.pid {
                self.drop_backlog(pid);
            }
        }
    }

    fn start(&mut self, key: Key, inc: Inc, restart: bool) {
        let Some(data) = self.core.data_mut(key) else { return };
        // The path is the same for all incarnations.
        let path = match &data.pid {
            Some(before) => before.arc_path().clone(),
            None => [self.pid.path(), "/", &*data.spec.id].concat().into(),
        };
        let reporter = Reporter::Child(ChildReporter { supervisor: self.post.clone(), key, inc });
        let pid = self.system.child_pid(path, data.spec.mailbox, reporter);
        let (start, placed) = (data.spec.start.clone(), data.spec.placed());
        // At once, so that nothing that happens to the new incarnation loses what the old one left.
        if let Some(backlog) = data.pid.replace(pid.clone()).and_then(|before| before.take_backlog()) {
            pid.set_backlog(backlog);
        }
        let system = self.system.clone();
        let mut exit = ExitGuard::of(pid.clone(), system.clone());
        if system.killed() {
            return exit.exited(Exit::Killed);
        }
        let arbiter = self.system.arbiter(placed);
        pid.set_arbiter(arbiter.id());
        match start {
            Start::Actor(factory) => factory.start(pid, system, &arbiter, exit, restart),
            Start::Supervisor(make) => {
                // Its handle and its strategy come with its spec.
                if !system.registry.enter(&pid, None, Kind::Supervisor, "supervisor", restart) {
                    return exit.exited(Exit::Error(format!("`{}` is already running", pid.path())));
                }
                if arbiter::abandoned() {
                    return exit.exited(Exit::ArbiterGone);
                }
                arbiter.run(move || {
                    pid.doing(doing::start);
                    let heartbeat = system.heartbeat();
                    let turn = Turn::new(&heartbeat, &pid);
                    let made = guarded(|| make());
                    drop(turn);
                    match made {
                        Ok(spec) => {
                            launch(spec, pid, system, exit, false);
                        }
                        Err(panic) => exit.exited(panic),
                    }
                });
            }
        }
    }

    fn reply(&mut self, asker: Asker, result: Result<Key, ChildError>, rest: &[Action<Data>]) {
        match self.askers.remove(&asker) {
            Some(Reply::Pid(tx)) => {
                // A child that had nothing to do may have left the list already.
                let pid = |key| self.child_pid(key).or_else(|| forgotten(key, rest));
                drop(tx.send(result.and_then(|key| pid(key).ok_or(ChildError::NotFound))));
            }
            Some(Reply::Done(tx)) => drop(tx.send(result.map(|_| ()))),
            None => {}
        }
    }

    fn command(&mut self, command: Command) {
        let asker = self.next_asker;
        self.next_asker += 1;
        let event = match command {
            Command::Start(spec, tx) => {
                self.askers.insert(asker, Reply::Pid(tx));
                Event::StartChild { data: Data { spec, pid: None }, asker }
            }
            Command::Terminate(id, tx) => {
                self.askers.insert(asker, Reply::Done(tx));
                Event::TerminateChild { id, asker }
            }
            Command::Restart(id, tx) => {
                self.askers.insert(asker, Reply::Pid(tx));
                Event::RestartChild { id, asker }
            }
            Command::Delete(id, tx) => {
                self.askers.insert(asker, Reply::Done(tx));
                Event::DeleteChild { id, asker }
            }
        };
        self.feed(event);
    }

    fn child_pid(&self, key: Key) -> Option<Pid> {
        self.core.child(key)?.data.pid.clone()
    }

    fn child_path(&self, key: Key) -> Option<String> {
        Some(self.path_of(self.core.child(key)?.data.id()))
    }

    fn path_of(&self, id: &str) -> String {
        [self.pid.path(), "/", id].concat()
    }

    /// Handles one thing, if there is one. `posted`: something may wait. What is put there later wakes this, so it need not look for it again.
    fn step(&mut self, posted: &mut bool, cx: &mut Context<'_>) -> bool {
        let requests = self.pid.take_requests();
        if requests & KILL != 0 {
            self.feed(Event::Kill);
            return true;
        }
        if requests & STOP != 0 {
            let reason = self.pid.stop_reason();
            self.system.registry.stopping(&self.pid);
            self.feed(Event::Stop(reason));
            return true;
        }
        if !*posted {
            return self.timer(cx);
        }
        let mut waiting = self.post.waiting.lock();
        if let Some((key, inc, report)) = waiting.reports.pop_front() {
            *posted = waiting.any();
            drop(waiting);
            self.feed(match report {
                Report::Started => Event::Started { key, inc },
                Report::Exited(exit) => Event::Exited { key, inc, exit },
            });
            return true;
        }
        // In turn: none of these waits for as long as there is something of another.
        let busy = self.core.busy();
        let found = (self.source..).take(SOURCES).find_map(|source| {
            let next = match source % SOURCES {
                0 => waiting.looks.pop_front().map(Next::Look),
                1 if !busy => waiting.commands.pop_front().map(Next::Command),
                2 if self.due() => Some(Next::Timer),
                _ => None,
            };
            Some((source, next?))
        });
        *posted = waiting.any();
        drop(waiting);
        let Some((source, next)) = found else { return self.timer(cx) };
        self.source = (source + 1) % SOURCES;
        match next {
            Next::Timer => return self.timer(cx),
            Next::Look(look) => self.look(look),
            Next::Command(command) => self.command(command),
        }
        self.post.room.add_permits(1);
        true
    }

    /// Answers a question.
    fn look(&self, look: Look) {
        match look {
            Look::Count(tx) => drop(tx.send(self.count())),
            Look::Children(tx) => drop(tx.send(self.core.children().map(|(_, child)| info(child)).collect())),
            Look::Spec(id, tx) => {
                let found = self.core.find(&id).map(|(_, child)| child.data.spec.clone());
                drop(tx.send(found.ok_or(ChildError::NotFound)));
            }
        }
    }

    fn count(&self) -> ChildCount {
        let mut count = ChildCount::default();
        for (_, child) in self.core.children() {
            count.specs += 1;
            count.active += usize::from(runs(child) && child.data.pid.is_some());
            match child.data.spec.kind() {
                Kind::Supervisor => count.supervisors += 1,
                Kind::Worker => count.workers += 1,
            }
        }
        count
    }

    /// Whether it is time for a timer.
    fn due(&self) -> bool {
        self.timers.first_key_value().is_some_and(|((due, _), _)| *due <= Instant::now())
    }

    /// Handles the first timer if it is due; else sees to it that it wakes this.
    fn timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((&(due, n), &timer)) = self.timers.first_key_value() else {
            self.sleep = None;
            return false;
        };
        if due <= Instant::now() {
            self.timers.remove(&(due, n));
            self.feed(Event::Timer(timer));
            return true;
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        let ready = sleep.as_mut().poll(cx).is_ready();
        if ready {
            // Polled again, a sleep that is over would be ready for ever.
            self.sleep = None;
        }
        ready
    }
}

/// The last incarnation of a child that is about to be forgotten.
fn forgotten(key: Key, actions: &[Action<Data>]) -> Option<Pid> {
    actions.iter().find_map(|action| match action {
        Action::Forget { key: of, data } if *of == key => data.pid.clone(),
        _ => None,
    })
}

fn runs(child: &Child<Data>) -> bool {
    child.alive() && !child.restarting()
}

fn info(child: &Child<Data>) -> ChildInfo {
    ChildInfo {
        id: child.data.id().to_string(),
        pid: child.data.pid.clone().filter(|_| runs(child)),
        kind: child.data.spec.kind(),
        restarting: child.restarting(),
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // Dropping it is all that is left to do.
        if this.heartbeat.abandoned() {
            return Poll::Ready(());
        }
        if let Some(schedule) = &this.system.schedule
            && schedule.passes(this.pid.id())
        {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let _entered = Entered::new(&this.pid);
        this.pid.doing(doing::supervision);
        let outer = this.heartbeat.enter(&this.pid);
        let done = this.advance(cx);
        this.heartbeat.leave(outer);
        if this.heartbeat.abandoned() { Poll::Ready(()) } else { done }
    }
}

impl Driver {
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let this = self;
        this.registered.renew(&this.pid, cx.waker());
        if this.system.killed() && !this.done && !std::mem::replace(&mut this.killed, true) {
            this.feed(Event::Kill);
        }
        let turn = match &this.system.schedule {
            None => TURN_EVENTS,
            Some(schedule) => schedule.messages(TURN_EVENTS),
        };
        let mut posted = true;
        for _ in 0..turn {
            if this.done {
                return Poll::Ready(());
            }
            if !this.step(&mut posted, cx) {
                return if this.done { Poll::Ready(()) } else { Poll::Pending };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.post.close();
        // Its arbiter is gone; children on other arbiters must not outlive it.
        if !self.done {
            for (_, child) in self.core.children() {
                if let Some(pid) = &child.data.pid {
                    pid.kill();
                }
            }
            self.drop_backlogs();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There may be as many children as there are pods; who makes one larger should know.
    #[test]
    fn the_record_of_a_child_stays_small() {
        let sizes = (size_of::<ChildSpec>(), size_of::<Child<Data>>());
        assert!(sizes <= (88, 128), "{sizes:?}");
    }
}
