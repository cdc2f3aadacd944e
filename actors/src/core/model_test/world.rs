//! A world for cores: carries out what they say, in simulated time. It runs the deepest first, and brings a supervisor that waits for a
//! child nothing else, as if it were blocked: an order that the driver may choose, and the one in which OTP's works.

use super::script::{Act, Command, Kind, Node, Outcome, PERIOD_MS, Sup};
use super::{Seen, Shown, What, is_dynamic, no_start};
use crate::core::child::{ChildState, Spec};
use crate::core::supervisor::{Action, Event, Inc, Key, Supervisor, Timer};
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::Policy;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Data(Arc<Node>);

impl Spec for Data {
    fn id(&self) -> &Arc<str> {
        &self.0.id
    }
    fn policy(&self) -> &Policy {
        &self.0.policy
    }
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) trace: Vec<Seen>,
    pub(super) answers: BTreeMap<usize, String>,
    /// The paths at which a dynamic supervisor ever ran.
    pub(super) dynamic: BTreeSet<String>,
    sups: BTreeMap<String, Proc>,
    workers: BTreeMap<String, Worker>,
    outcomes: VecDeque<Outcome>,
    timers: BTreeMap<(u64, u64), Due>,
    asked: usize,
    /// Numbers processes, mail, timers.
    counter: u64,
}

struct Proc {
    core: Supervisor<Data>,
    pid: u64,
    of: Option<Of>,
    /// The supervisor with which it was killed.
    swept: Option<String>,
    /// What it waits for, and what may not wait.
    urgent: VecDeque<(u64, Event<Data>)>,
    inbox: VecDeque<(u64, Event<Data>)>,
}

struct Worker {
    pid: u64,
    of: Of,
    stops_in_ms: u64,
}

/// Whose child it is.
#[derive(Clone)]
struct Of {
    path: String,
    key: Key,
    inc: Inc,
}

enum Due {
    Stopped { path: String, pid: u64 },
    Timer { path: String, pid: u64, timer: Timer },
}

impl World {
    pub(super) fn new() -> Self {
        World {
            now: 0,
            trace: vec![],
            answers: BTreeMap::new(),
            dynamic: BTreeSet::new(),
            sups: BTreeMap::new(),
            workers: BTreeMap::new(),
            outcomes: VecDeque::new(),
            timers: BTreeMap::new(),
            asked: 0,
            counter: 0,
        }
    }

    pub(super) fn boot(&mut self, top: &Arc<Sup>) {
        self.start_sup("r".into(), top, None);
        self.run();
    }

    pub(super) fn over(&self) -> bool {
        self.sups.is_empty()
    }

    pub(super) fn act(&mut self, act: &Act) {
        match act {
            Act::Outcomes(outcomes) => self.outcomes = outcomes.iter().copied().collect(),
            Act::Wait(ms) => {
                let until = self.now + ms;
                while self.timers.first_key_value().is_some_and(|((due, _), _)| *due <= until) {
                    self.tick();
                    self.run();
                }
                self.now = until;
            }
            Act::Ends(path, exit) => {
                if let Some(worker) = self.workers.remove(path) {
                    self.exited(Some(worker.of), exit.clone());
                } else if self.sups.contains_key(path) {
                    self.kill(path, path.clone());
                    let depth = depth(path);
                    while self.deliver(depth) {}
                }
            }
            Act::Command(path, command) => {
                self.asked += 1;
                let asker = self.asked as u64;
                let event = match command.clone() {
                    Command::Start(node) => Event::StartChild { data: Data(node), asker },
                    Command::Terminate(id) => Event::TerminateChild { id, asker },
                    Command::Restart(id) => Event::RestartChild { id, asker },
                    Command::Delete(id) => Event::DeleteChild { id, asker },
                };
                self.post(path, event);
            }
            Act::Stop(path, Exit::Killed) => self.kill(path, path.clone()),
            Act::Stop(path, reason) => self.urge(path, Event::Stop(reason.clone())),
        }
    }

    /// Until nothing moves. Time passes only as long as somebody waits for a child.
    pub(super) fn run(&mut self) {
        loop {
            while self.deliver(0) {}
            if self.sups.values().all(settled) {
                return;
            }
            self.tick();
        }
    }

    pub(super) fn shown(&self) -> BTreeMap<String, Vec<(String, Shown)>> {
        let shown = |sup: &Proc| {
            let children = sup.core.children().map(|(_, child)| {
                let shown = match child.state {
                    ChildState::Idle => Shown::Undefined,
                    ChildState::Running { .. } => Shown::Pid,
                    ChildState::Queued | ChildState::Waiting { .. } => Shown::Restarting,
                    ref state => panic!("it has settled, and {} is {state:?}", child.data.id()),
                };
                (child.data.id().to_string(), shown)
            });
            children.collect()
        };
        self.sups.iter().map(|(path, sup)| (path.clone(), shown(sup))).collect()
    }

    // ---- mail --------------------------------------------------------------------------------------------------------------------

    /// Gives one of those at this depth or deeper one thing, if there is one.
    fn deliver(&mut self, deeper_than: usize) -> bool {
        let next = self
            .sups
            .iter()
            .filter(|(path, _)| depth(path) >= deeper_than)
            .filter_map(|(path, sup)| Some((std::cmp::Reverse(depth(path)), sup.next()?, path.clone())))
            .min();
        let Some((_, number, path)) = next else { return false };
        let sup = self.sups.get_mut(&path).expect("it runs");
        let boxes = [&mut sup.urgent, &mut sup.inbox];
        let event = boxes.into_iter().find_map(|mail| {
            let at = mail.iter().position(|(n, _)| *n == number)?;
            mail.remove(at)
        });
        let (_, event) = event.expect("it is there");
        let command =
            matches!(event, Event::StartChild { .. } | Event::RestartChild { .. } | Event::DeleteChild { .. });
        assert!(!command || !sup.core.busy(), "a settled supervisor takes commands");
        self.feed(&path, event);
        true
    }

    fn feed(&mut self, path: &str, event: Event<Data>) {
        let now = Duration::from_millis(self.now);
        let Some(sup) = self.sups.get_mut(path) else { return };
        for action in sup.core.on_event(event, now) {
            self.apply(path, action);
        }
    }

    fn post(&mut self, path: &str, event: Event<Data>) {
        let number = self.count();
        if let Some(sup) = self.sups.get_mut(path) {
            sup.inbox.push_back((number, event));
        }
    }

    fn urge(&mut self, path: &str, event: Event<Data>) {
        let number = self.count();
        if let Some(sup) = self.sups.get_mut(path) {
            sup.urgent.push_back((number, event));
        }
    }

    fn exited(&mut self, of: Option<Of>, exit: Exit) {
        if let Some(Of { path, key, inc }) = of {
            self.post(&path, Event::Exited { key, inc, exit });
        }
    }

    // ---- actions -----------------------------------------------------------------------------------------------------------------

    fn apply(&mut self, path: &str, action: Action<Data>) {
        match action {
            Action::Start { key, inc, .. } => self.start(path, key, inc),
            Action::Stop { key } => self.end(path, key, false),
            Action::Kill { key } => self.end(path, key, true),
            Action::Timer { timer, after } if after.is_zero() => self.post(path, Event::Timer(timer)),
            Action::Timer { timer, after } => {
                let due = self.now + after.as_millis() as u64;
                let (path, pid) = (path.to_owned(), self.sups[path].pid);
                self.later(due, Due::Timer { path, pid, timer });
            }
            Action::Reply { asker, result } => {
                let answer = format!("{:?}", result.map(|_| ()));
                assert!(self.answers.insert(asker as usize, answer).is_none(), "each is answered once");
            }
            Action::Ready => {
                self.see(path, What::Up);
                if let Some(Of { path, key, inc }) = self.sups[path].of.clone() {
                    self.urge(&path, Event::Started { key, inc });
                }
            }
            Action::Exit(exit) => {
                let killed = exit == Exit::Killed;
                let sup = self.sups.remove(path).expect("it runs");
                self.see(path, sup.swept.filter(|_| killed).map_or(What::Exit(exit.to_string()), What::Swept));
                let below = format!("{path}/");
                let left = self.sups.keys().chain(self.workers.keys()).find(|other| other.starts_with(&below));
                assert_eq!(left, None, "no child outlives its supervisor");
                for (_, event) in sup.inbox {
                    if let Event::StartChild { asker, .. }
                    | Event::TerminateChild { asker, .. }
                    | Event::RestartChild { asker, .. }
                    | Event::DeleteChild { asker, .. } = event
                    {
                        let down = Err::<(), _>(ChildError::SupervisorDown);
                        self.answers.insert(asker as usize, format!("{down:?}"));
                    }
                }
                self.exited(sup.of, exit);
            }
            Action::Restarting { .. } | Action::Idle { .. } | Action::Forget { .. } => {}
        }
    }

    fn start(&mut self, path: &str, key: Key, inc: Inc) {
        let node = self.sups[path].core.child(key).expect("known").data.0.clone();
        let of = Of { path: path.to_owned(), key, inc };
        let child = format!("{path}/{}", node.id);
        match &node.kind {
            Kind::Sup(spec) => self.start_sup(child, spec, Some(of)),
            Kind::Worker { stops_in_ms } => match self.outcomes.pop_front().unwrap_or(Outcome::Up) {
                Outcome::Up => {
                    self.see(&child, What::Up);
                    let worker = Worker { pid: self.count(), of, stops_in_ms: *stops_in_ms };
                    assert!(self.workers.insert(child, worker).is_none(), "one incarnation at a time");
                    self.urge(path, Event::Started { key, inc });
                }
                Outcome::Ignores => {
                    self.see(&child, What::Ignored);
                    self.exited(Some(of), Exit::Ignore);
                }
                Outcome::Fails => {
                    self.see(&child, What::NoStart);
                    self.exited(Some(of), no_start());
                }
            },
        }
    }

    fn start_sup(&mut self, path: String, spec: &Sup, of: Option<Of>) {
        if is_dynamic(spec.strategy) {
            self.dynamic.insert(path.clone());
        }
        let limit = Some((spec.intensity, Duration::from_millis(PERIOD_MS)));
        let pid = self.count();
        let mut core = Supervisor::new(spec.strategy, spec.auto_shutdown, limit, pid);
        for node in &spec.children {
            core.add(Data(node.clone())).expect("a child that may be");
        }
        let proc = Proc { core, pid, of, swept: None, urgent: VecDeque::new(), inbox: VecDeque::new() };
        assert!(self.sups.insert(path.clone(), proc).is_none(), "one incarnation at a time");
        self.urge(&path, Event::Boot);
    }

    fn end(&mut self, path: &str, key: Key, kill: bool) {
        let id = &self.sups[path].core.child(key).expect("known").data.0.id;
        let child = format!("{path}/{id}");
        if self.sups.contains_key(&child) {
            let swept = self.sups[path].swept.clone().unwrap_or(child.clone());
            return if kill { self.kill(&child, swept) } else { self.urge(&child, Event::Stop(Exit::Shutdown)) };
        }
        // It may have ended by itself just before.
        let Some(worker) = self.workers.get(&child) else { return };
        if !kill && worker.stops_in_ms > 0 {
            let (due, pid) = (self.now + worker.stops_in_ms, worker.pid);
            return self.later(due, Due::Stopped { path: child, pid });
        }
        let of = self.workers.remove(&child).map(|worker| worker.of);
        let what = match self.sups[path].swept.clone() {
            _ if !kill => What::Stopped,
            Some(of) => What::Swept(of),
            None => What::Killed,
        };
        self.see(&child, what);
        self.exited(of, if kill { Exit::Killed } else { Exit::Shutdown });
    }

    fn kill(&mut self, path: &str, swept: String) {
        if let Some(sup) = self.sups.get_mut(path) {
            sup.swept.get_or_insert(swept);
        }
        self.urge(path, Event::Kill);
    }

    // ---- time --------------------------------------------------------------------------------------------------------------------

    fn later(&mut self, due: u64, what: Due) {
        let number = self.count();
        self.timers.insert((due, number), what);
    }

    fn tick(&mut self) {
        let ((due, _), what) = self.timers.pop_first().expect("somebody waits, so something will come");
        self.now = due;
        match what {
            Due::Stopped { path, pid } => {
                if self.workers.get(&path).is_some_and(|worker| worker.pid == pid) {
                    let of = self.workers.remove(&path).map(|worker| worker.of);
                    self.see(&path, What::Stopped);
                    self.exited(of, Exit::Shutdown);
                }
            }
            Due::Timer { path, pid, timer } => {
                if self.sups.get(&path).is_some_and(|sup| sup.pid == pid) {
                    match timer {
                        Timer::StopTimeout { .. } => self.urge(&path, Event::Timer(timer)),
                        Timer::Restart { .. } | Timer::Group { .. } => self.post(&path, Event::Timer(timer)),
                    }
                }
            }
        }
    }

    fn see(&mut self, path: &str, what: What) {
        self.trace.push(Seen { at_ms: self.now, path: path.to_owned(), what });
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

fn depth(path: &str) -> usize {
    path.matches('/').count()
}

/// It waits for no child.
fn settled(sup: &Proc) -> bool {
    !sup.core.children().any(|(_, child)| waited_for(&child.state))
}

fn waited_for(state: &ChildState) -> bool {
    matches!(state, ChildState::Starting(_) | ChildState::Stopping { .. })
}

impl Proc {
    /// The number of what it takes next.
    fn next(&self) -> Option<u64> {
        if let Some((number, _)) = self.urgent.front() {
            return Some(*number);
        }
        let awaited = self.inbox.iter().find(|(_, event)| match event {
            Event::Exited { key, .. } => self.core.child(*key).is_some_and(|child| waited_for(&child.state)),
            _ => false,
        });
        let next = awaited.or_else(|| self.inbox.front().filter(|_| settled(self)));
        next.map(|(number, _)| *number)
    }
}
