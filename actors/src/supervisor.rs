//! The driver of the supervisor core: carries its actions out, brings it what happens, answers commands.
//!
//! Must never decide: what is restarted, when, and in which order is `core::supervisor`'s. Started by [`crate::System`], by
//! [`crate::Ctx::supervise`], and by another supervisor whose child it is.

use crate::core::supervisor::{Action, Asker, Child, ChildState, Event, Inc, Key, Policy, Supervisor, Timer};
use crate::error::ChildError;
use crate::exit::Exit;
use crate::inspect::{Kind, TreeEvent};
use crate::panic::{drop_guarded, guarded};
use crate::pid::{Entered, KILL, Pid, STOP};
use crate::shell::{ExitGuard, Report, Reporter};
use crate::spec::{ChildSpec, Start, Strategy, SupervisorSpec};
use crate::system::Inner;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

/// How many commands may wait at a supervisor; further callers wait for room.
const COMMANDS_WAITING: usize = 1_024;
/// How many events a supervisor handles before others of its arbiter get their turn.
const TURN_EVENTS: usize = 256;

/// A handle to a running supervisor.
#[derive(Clone, Debug)]
pub struct SupervisorRef {
    pid: Pid,
    commands: mpsc::Sender<Command>,
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

#[derive(Debug)]
enum Command {
    Start(ChildSpec, oneshot::Sender<Result<Pid, ChildError>>),
    Terminate(Arc<str>, oneshot::Sender<Result<(), ChildError>>),
    Restart(Arc<str>, oneshot::Sender<Result<Pid, ChildError>>),
    Delete(Arc<str>, oneshot::Sender<Result<(), ChildError>>),
    Which(oneshot::Sender<Vec<ChildInfo>>),
}

impl SupervisorRef {
    /// Its incarnation.
    pub fn pid(&self) -> Pid {
        self.pid.clone()
    }

    /// Its place in the tree.
    pub fn path(&self) -> &str {
        self.pid.path()
    }

    /// Adds a child and starts it; answers when it is up. A child that fails to start is not kept.
    pub async fn start_child(&self, spec: ChildSpec) -> Result<Pid, ChildError> {
        self.call(|reply| Command::Start(spec, reply)).await?
    }

    /// Stops a child, and answers when it has ended. It stays known, unless it is temporary or the supervisor dynamic.
    pub async fn terminate_child(&self, id: &str) -> Result<(), ChildError> {
        self.call(|reply| Command::Terminate(id.into(), reply)).await?
    }

    /// Starts a child that was terminated or ended for good.
    pub async fn restart_child(&self, id: &str) -> Result<Pid, ChildError> {
        self.call(|reply| Command::Restart(id.into(), reply)).await?
    }

    /// Forgets a child that does not run.
    pub async fn delete_child(&self, id: &str) -> Result<(), ChildError> {
        self.call(|reply| Command::Delete(id.into(), reply)).await?
    }

    /// All known children, in the order of their start.
    pub async fn which_children(&self) -> Result<Vec<ChildInfo>, ChildError> {
        self.call(Command::Which).await
    }

    /// How many children there are.
    pub async fn count_children(&self) -> Result<ChildCount, ChildError> {
        let mut count = ChildCount::default();
        for child in self.which_children().await? {
            count.specs += 1;
            count.active += usize::from(child.pid.is_some());
            match child.kind {
                Kind::Supervisor => count.supervisors += 1,
                Kind::Worker => count.workers += 1,
            }
        }
        Ok(count)
    }

    /// Stops it with all its children, in reverse order, and answers when they have ended.
    pub async fn stop(&self) -> Exit {
        self.pid.stop(Exit::Shutdown);
        self.pid.exited().await
    }

    async fn call<R>(&self, command: impl FnOnce(oneshot::Sender<R>) -> Command) -> Result<R, ChildError> {
        let (tx, rx) = oneshot::channel();
        self.commands.send(command(tx)).await.map_err(|_| ChildError::SupervisorDown)?;
        rx.await.map_err(|_| ChildError::SupervisorDown)
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
    let (commands, inbox) = mpsc::channel(COMMANDS_WAITING);
    let handle = SupervisorRef { pid: pid.clone(), commands };
    if !system.registry.enter(
        &pid,
        Some(Arc::new(handle.clone())),
        Kind::Supervisor,
        strategy_name(spec.strategy),
        restart,
    ) {
        exit.exited(Exit::Error(format!("`{}` is already running", pid.path())));
        return handle;
    }
    let mut core = Supervisor::new(spec.strategy, spec.intensity, pid.id());
    for child in spec.children {
        let (id, policy) = (child.id.clone(), policy(&child));
        if !core.add(id.clone(), policy, Data { spec: child, pid: None }) {
            exit.exited(Exit::Error(format!("`{}` has two children with the id `{id}`", pid.path())));
            return handle;
        }
    }
    let (reports, from_children) = mpsc::unbounded_channel();
    let mut driver = Driver {
        core,
        pid,
        system,
        exit,
        reports,
        from_children,
        commands: inbox,
        askers: HashMap::new(),
        next_asker: 0,
        timers: BTreeMap::new(),
        next_timer: 0,
        sleep: Box::pin(tokio::time::sleep_until(Instant::now())),
        epoch: Instant::now(),
        done: false,
    };
    driver.feed(Event::Boot);
    tokio::task::spawn_local(driver);
    handle
}

fn policy(spec: &ChildSpec) -> Policy {
    Policy { restart: spec.restart, shutdown: spec.shutdown, backoff: spec.backoff }
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::OneForOne => "one_for_one",
        Strategy::OneForAll => "one_for_all",
        Strategy::RestForOne => "rest_for_one",
        Strategy::Dynamic => "dynamic",
    }
}

struct Data {
    spec: ChildSpec,
    pid: Option<Pid>,
}

enum Waiting {
    Pid(oneshot::Sender<Result<Pid, ChildError>>),
    Done(oneshot::Sender<Result<(), ChildError>>),
}

struct Driver {
    core: Supervisor<Data>,
    pid: Pid,
    system: Arc<Inner>,
    exit: ExitGuard,
    /// At most two reports of each incarnation.
    reports: mpsc::UnboundedSender<(Key, Inc, Report)>,
    from_children: mpsc::UnboundedReceiver<(Key, Inc, Report)>,
    commands: mpsc::Receiver<Command>,
    askers: HashMap<Asker, Waiting>,
    next_asker: Asker,
    timers: BTreeMap<(Instant, u64), Timer>,
    next_timer: u64,
    sleep: Pin<Box<Sleep>>,
    epoch: Instant,
    done: bool,
}

impl Driver {
    fn feed(&mut self, event: Event<Data>) {
        let now = self.epoch.elapsed();
        for action in self.core.on_event(event, now) {
            self.apply(action);
        }
    }

    fn apply(&mut self, action: Action<Data>) {
        match action {
            Action::Start { key, inc, restart } => self.start(key, inc, restart),
            Action::Stop { key } => {
                if let Some(pid) = self.child_pid(key) {
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
                self.system.event(TreeEvent::Restarting { path, in_ms, restarts });
            }
            Action::Idle { key } => {
                let Some(path) = self.child_path(key) else { return };
                self.system.registry.stopped(&path);
                self.system.event(TreeEvent::Stopped { path });
            }
            Action::Forget { data, .. } => {
                self.system.registry.forget(&self.path_of(&data.spec.id));
                drop_guarded(data);
            }
            Action::Timer { timer, after } => {
                self.timers.insert((Instant::now() + after, self.next_timer), timer);
                self.next_timer += 1;
            }
            Action::Reply { asker, result } => self.reply(asker, result),
            Action::Ready => self.exit.started(),
            Action::Exit(exit) => {
                self.done = true;
                // The children are part of it: none of them is left in the tree.
                let paths: Vec<String> = self.core.children().map(|(_, child)| self.path_of(&child.id)).collect();
                for path in paths {
                    self.system.registry.forget(&path);
                }
                self.exit.exited(exit);
            }
        }
    }

    fn start(&mut self, key: Key, inc: Inc, restart: bool) {
        let Some(child) = self.core.child(key) else { return };
        let spec = child.data.spec.clone();
        let pid = self.system.pid(self.path_of(&spec.id).into(), spec.mailbox);
        if let Some(data) = self.core.data_mut(key) {
            data.pid = Some(pid.clone());
        }
        let reports = self.reports.clone();
        let reporter = Reporter::new(move |report| {
            // The supervisor may be gone, when its arbiter is.
            let _ = reports.send((key, inc, report));
        });
        let system = self.system.clone();
        let mut exit = ExitGuard::new(pid.clone(), system.clone(), reporter);
        let arbiter = self.system.arbiter(spec.placement).clone();
        match spec.start {
            Start::Actor(factory) => {
                let type_name = factory.type_name();
                let (inbox, boot) = factory.prepare(&pid, &system);
                if !system.registry.enter(&pid, Some(inbox), Kind::Worker, type_name, restart) {
                    return exit.exited(Exit::Error(format!("`{}` is already running", pid.path())));
                }
                arbiter.run(Box::new(move || boot(exit)));
            }
            Start::Supervisor(make) => arbiter.run(Box::new(move || match guarded(|| make()) {
                Ok(spec) => {
                    launch(spec, pid, system, exit, restart);
                }
                Err(panic) => exit.exited(panic),
            })),
        }
    }

    fn reply(&mut self, asker: Asker, result: Result<Key, ChildError>) {
        let Some(waiting) = self.askers.remove(&asker) else { return };
        match waiting {
            Waiting::Pid(tx) => {
                let pid = result.and_then(|key| self.child_pid(key).ok_or(ChildError::NotFound));
                let _ = tx.send(pid);
            }
            Waiting::Done(tx) => {
                let _ = tx.send(result.map(|_| ()));
            }
        }
    }

    fn command(&mut self, command: Command) {
        let asker = self.next_asker;
        self.next_asker += 1;
        let event = match command {
            Command::Start(spec, tx) => {
                self.askers.insert(asker, Waiting::Pid(tx));
                let (id, policy) = (spec.id.clone(), policy(&spec));
                Event::StartChild { id, policy, data: Data { spec, pid: None }, asker }
            }
            Command::Terminate(id, tx) => {
                self.askers.insert(asker, Waiting::Done(tx));
                Event::TerminateChild { id, asker }
            }
            Command::Restart(id, tx) => {
                self.askers.insert(asker, Waiting::Pid(tx));
                Event::RestartChild { id, asker }
            }
            Command::Delete(id, tx) => {
                self.askers.insert(asker, Waiting::Done(tx));
                Event::DeleteChild { id, asker }
            }
            Command::Which(tx) => {
                let _ = tx.send(self.core.children().map(|(_, child)| info(child)).collect());
                return;
            }
        };
        self.feed(event);
    }

    fn child_pid(&self, key: Key) -> Option<Pid> {
        self.core.child(key)?.data.pid.clone()
    }

    fn child_path(&self, key: Key) -> Option<String> {
        Some(self.path_of(&self.core.child(key)?.id))
    }

    fn path_of(&self, id: &str) -> String {
        format!("{}/{id}", self.pid.path())
    }

    /// Handles one thing, if there is one.
    fn step(&mut self, cx: &mut Context<'_>) -> bool {
        let requests = self.pid.take_requests();
        if requests & KILL != 0 {
            self.feed(Event::Kill);
            return true;
        }
        if requests & STOP != 0 {
            let reason = self.pid.stop_reason();
            self.feed(Event::Stop(reason));
            return true;
        }
        if let Poll::Ready(Some((key, inc, report))) = self.from_children.poll_recv(cx) {
            self.feed(match report {
                Report::Started => Event::Started { key, inc },
                Report::Exited(exit) => Event::Exited { key, inc, exit },
            });
            return true;
        }
        if !self.core.busy()
            && let Poll::Ready(Some(command)) = self.commands.poll_recv(cx)
        {
            self.command(command);
            return true;
        }
        let Some((&(due, n), &timer)) = self.timers.first_key_value() else { return false };
        if due <= Instant::now() {
            self.timers.remove(&(due, n));
            self.feed(Event::Timer(timer));
            return true;
        }
        if self.sleep.deadline() != due {
            self.sleep.as_mut().reset(due);
        }
        self.sleep.as_mut().poll(cx).is_ready()
    }
}

fn info(child: &Child<Data>) -> ChildInfo {
    let alive =
        matches!(child.state, ChildState::Starting(_) | ChildState::Running { .. } | ChildState::Stopping { .. });
    ChildInfo {
        id: child.id.to_string(),
        pid: child.data.pid.clone().filter(|_| alive),
        kind: match child.data.spec.start {
            Start::Actor(_) => Kind::Worker,
            Start::Supervisor(_) => Kind::Supervisor,
        },
        restarting: matches!(child.state, ChildState::Waiting | ChildState::Queued | ChildState::Dead { .. }),
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let _entered = Entered::new(&this.pid);
        this.pid.register(cx.waker());
        for _ in 0..TURN_EVENTS {
            if this.done {
                return Poll::Ready(());
            }
            if !this.step(cx) {
                return if this.done { Poll::Ready(()) } else { Poll::Pending };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Its arbiter is gone; children on other arbiters must not outlive it.
        if !self.done {
            for (_, child) in self.core.children() {
                if let Some(pid) = &child.data.pid {
                    pid.kill();
                }
            }
        }
    }
}
