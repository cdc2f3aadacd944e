//! The supervisor's decisions (OTP `supervisor`): who is started, stopped, killed, restarted, when, in which order, and when to give up.
//!
//! A pure state machine. Must never wait, read a clock, or know what a child is: `D` is whatever the driver keeps for a child.
//! No event costs more than O(log children), except those that concern all children (group restart, own end).
//!
//! Each child has its own state; what concerns several in order is an operation ([`Op`]):
//! ```text
//!   Boot ──▶ Idle ◀──────────────────────────┐
//!              │ one_for_all, rest_for_one   │ all up
//!              ├──▶ Group: Stopping (reverse) ──▶ Waiting (backoff) ──▶ Starting (in order)
//!              │            ▲                                              │ one failed: counted, tried again
//!              │            └──────────────────────────────────────────────┘
//!              └──▶ Closing (reverse, dynamic: all at once) ──▶ Done
//! ```
//! While an operation runs, exits of other children are kept and handled after it, as OTP's are in the mailbox.

use super::backoff::Attempts;
use super::intensity::Intensity;
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::{Backoff, Restart, Shutdown, Strategy};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A child of one supervisor. Grows with each child added, so its order is the order of start.
pub(crate) type Key = u64;
/// One start of a child. Events of an earlier incarnation are recognised by it and ignored.
pub(crate) type Inc = u64;
/// Whoever waits for the answer to a command; chosen by the driver.
pub(crate) type Asker = u64;

/// The part of a child's specification that decisions need.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) restart: Restart,
    pub(crate) shutdown: Shutdown,
    pub(crate) backoff: Option<Arc<Backoff>>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event<D> {
    /// The supervisor itself starts: its first children are to be started in order.
    Boot,
    /// A child is up: its `started` returned.
    Started {
        key: Key,
        inc: Inc,
    },
    /// A child ended, for whatever reason, whether it was up or not.
    Exited {
        key: Key,
        inc: Inc,
        exit: Exit,
    },
    /// A timer asked for with [`Action::Timer`] has run out.
    Timer(Timer),
    /// The supervisor is asked to end with this reason.
    Stop(Exit),
    /// The supervisor is killed.
    Kill,
    StartChild {
        id: Arc<str>,
        policy: Policy,
        data: D,
        asker: Asker,
    },
    TerminateChild {
        id: Arc<str>,
        asker: Asker,
    },
    RestartChild {
        id: Arc<str>,
        asker: Asker,
    },
    DeleteChild {
        id: Arc<str>,
        asker: Asker,
    },
}

/// What the driver has to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action<D> {
    /// Start an incarnation; answer with `Started`, and with exactly one `Exited` in the end.
    Start { key: Key, inc: Inc, restart: bool },
    /// Ask the child to stop.
    Stop { key: Key },
    /// End the child at once.
    Kill { key: Key },
    /// The child does not run and will be started after the delay. News for the tree.
    Restarting { key: Key, delay: Duration },
    /// The child does not run and stays in the list. News for the tree.
    Idle { key: Key },
    /// The child left the list.
    Forget { key: Key, data: D },
    /// Send `Event::Timer` after this time; zero means behind all events that wait now.
    Timer { timer: Timer, after: Duration },
    /// Answer a command: the child that it concerned.
    Reply { asker: Asker, result: Result<Key, ChildError> },
    /// All first children are up.
    Ready,
    /// All children have ended; so does the supervisor. Nothing follows.
    Exit(Exit),
}

/// Timers are never cancelled: one that comes too late is recognised and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The child had its time to stop.
    StopTimeout { key: Key, inc: Inc },
    /// The child's restart is due.
    Restart { key: Key, inc: Inc },
    /// The group's restart is due.
    Group { turn: u64 },
}

/// Where a child is in its life, as the core sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ChildState {
    /// Known, not running, and no one will start it.
    Idle,
    /// To be started by the operation that runs.
    Queued,
    Starting(Why),
    Running {
        since: Duration,
    },
    /// Asked to stop or killed, its exit is awaited.
    Stopping {
        forget: bool,
    },
    /// Ended while an operation ran; handled after it.
    Dead {
        exit: Exit,
    },
    /// Its restart timer runs.
    Waiting,
}

/// Who started a child that is not up yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Why {
    /// The operation.
    Op,
    /// Its own crash.
    Restart,
    /// `start_child`.
    New(Asker),
    /// `restart_child`.
    Again(Asker),
}

#[derive(Debug)]
pub(crate) struct Child<D> {
    pub(crate) id: Arc<str>,
    policy: Policy,
    attempts: Attempts,
    pub(crate) state: ChildState,
    inc: Inc,
    /// Those who asked for its termination.
    waiters: Vec<Asker>,
    pub(crate) data: D,
}

impl<D> Child<D> {
    fn alive(&self) -> bool {
        matches!(self.state, ChildState::Starting(_) | ChildState::Running { .. } | ChildState::Stopping { .. })
    }
}

#[derive(Debug)]
enum Op {
    None,
    Boot,
    Group { from: Key, phase: Phase, delay: Duration, via_inbox: bool },
    Closing { reason: Exit, cursor: Key },
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Stopping { cursor: Key },
    Waiting,
    Starting { cursor: Key },
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Supervisor<D> {
    strategy: Strategy,
    intensity: Intensity,
    children: BTreeMap<Key, Box<Child<D>>>,
    ids: HashMap<Arc<str>, Key>,
    op: Op,
    /// How many children are starting, running or stopping.
    alive: usize,
    /// Children that died while an operation ran, in the order of death.
    dead: VecDeque<(Key, Inc)>,
    next_key: Key,
    next_inc: Inc,
    /// Counts group waits, to recognise late timers.
    turn: u64,
    seed: u64,
}

impl<D> Supervisor<D> {
    /// `seed` decides the jitter of backoffs and nothing else.
    pub(crate) fn new(strategy: Strategy, intensity: Option<(u32, Duration)>, seed: u64) -> Self {
        Supervisor {
            strategy,
            intensity: Intensity::new(intensity),
            children: BTreeMap::new(),
            ids: HashMap::new(),
            op: Op::Boot,
            alive: 0,
            dead: VecDeque::new(),
            next_key: 0,
            next_inc: 0,
            turn: 0,
            seed,
        }
    }

    /// Adds a first child, before `Event::Boot`. False when the id is taken.
    pub(crate) fn add(&mut self, id: Arc<str>, policy: Policy, data: D) -> bool {
        if self.ids.contains_key(&id) {
            return false;
        }
        self.insert(id, policy, data, ChildState::Queued);
        true
    }

    /// Whether commands must wait because an operation runs. Stop and kill never wait.
    pub(crate) fn busy(&self) -> bool {
        match &self.op {
            Op::None | Op::Closing { .. } | Op::Done => false,
            Op::Boot => true,
            Op::Group { phase, .. } => *phase != Phase::Waiting,
        }
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = (Key, &Child<D>)> {
        self.children.iter().map(|(key, child)| (*key, &**child))
    }

    pub(crate) fn child(&self, key: Key) -> Option<&Child<D>> {
        self.children.get(&key).map(|c| &**c)
    }

    pub(crate) fn data_mut(&mut self, key: Key) -> Option<&mut D> {
        self.children.get_mut(&key).map(|c| &mut c.data)
    }

    /// Whether the child runs, or will be started again without being asked for.
    pub(crate) fn returns(&self, key: Key) -> bool {
        let Some(child) = self.children.get(&key) else { return false };
        match self.op {
            // Its members show as idle until all of them have ended.
            Op::Group { from, phase: Phase::Stopping { .. }, .. } if key >= from => {
                child.policy.restart != Restart::Temporary
            }
            _ => child.state != ChildState::Idle,
        }
    }

    /// `now` is the time since some fixed moment and never goes back.
    pub(crate) fn on_event(&mut self, event: Event<D>, now: Duration) -> Vec<Action<D>> {
        let mut out = Vec::new();
        match event {
            Event::Boot => self.proceed(now, &mut out),
            Event::Started { key, inc } => self.on_started(key, inc, now, &mut out),
            Event::Exited { key, inc, exit } => self.on_exited(key, inc, exit, now, &mut out),
            Event::Timer(timer) => self.on_timer(timer, now, &mut out),
            Event::Stop(reason) => self.close(reason, now, &mut out),
            Event::Kill => self.kill(now, &mut out),
            Event::StartChild { id, policy, data, asker } => self.start_child(id, policy, data, asker, &mut out),
            Event::TerminateChild { id, asker } => self.terminate_child(&id, asker, &mut out),
            Event::RestartChild { id, asker } => self.restart_child(&id, asker, &mut out),
            Event::DeleteChild { id, asker } => self.delete_child(&id, asker, &mut out),
        }
        out
    }

    // ---- events of children ------------------------------------------------------------------------------------------------

    fn on_started(&mut self, key: Key, inc: Inc, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(&key).filter(|c| c.inc == inc) else { return };
        let ChildState::Starting(why) = &child.state else { return };
        let why = why.clone();
        child.state = ChildState::Running { since: now };
        match why {
            Why::Op => self.proceed(now, out),
            Why::Restart => {}
            Why::New(asker) | Why::Again(asker) => out.push(Action::Reply { asker, result: Ok(key) }),
        }
    }

    fn on_exited(&mut self, key: Key, inc: Inc, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(&key).filter(|c| c.inc == inc) else { return };
        if !child.alive() {
            return;
        }
        self.alive -= 1;
        match std::mem::replace(&mut child.state, ChildState::Idle) {
            ChildState::Stopping { forget } => {
                let waiters = std::mem::take(&mut child.waiters);
                let terminated = !waiters.is_empty();
                for asker in waiters {
                    out.push(Action::Reply { asker, result: Ok(key) });
                }
                let for_good =
                    terminated && (child.policy.restart == Restart::Temporary || self.strategy == Strategy::Dynamic);
                if forget || for_good {
                    self.forget(key, out);
                } else {
                    out.push(Action::Idle { key });
                }
                self.proceed(now, out);
            }
            ChildState::Starting(why) => self.start_failed(key, why, exit, now, out),
            ChildState::Running { since } => {
                if let Some(spec) = &child.policy.backoff {
                    child.attempts.ended(spec, now.saturating_sub(since));
                }
                match self.op {
                    Op::Closing { .. } | Op::Done => {
                        out.push(Action::Idle { key });
                        self.proceed(now, out);
                    }
                    Op::None | Op::Group { phase: Phase::Waiting, .. } => self.ended(key, exit, now, out),
                    Op::Boot | Op::Group { .. } => {
                        child.state = ChildState::Dead { exit };
                        self.dead.push_back((key, inc));
                        self.proceed(now, out);
                    }
                }
            }
            state => child.state = state, // not alive; cannot be, see above
        }
    }

    /// A child that was up has ended by itself, and no operation is in the way.
    fn ended(&mut self, key: Key, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(&key) else { return };
        child.state = ChildState::Idle;
        let again = match child.policy.restart {
            Restart::Permanent => true,
            Restart::Transient => exit.is_abnormal(),
            Restart::Temporary => false,
        };
        if again {
            self.restart(key, exit, false, now, out);
        } else if child.policy.restart == Restart::Temporary || self.strategy == Strategy::Dynamic {
            self.forget(key, out);
        } else {
            out.push(Action::Idle { key });
        }
    }

    /// A child ended before it was up.
    fn start_failed(&mut self, key: Key, why: Why, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        match why {
            Why::New(asker) => {
                out.push(Action::Reply { asker, result: Err(ChildError::StartFailed(exit)) });
                self.forget(key, out);
                self.proceed(now, out);
            }
            Why::Again(asker) => {
                out.push(Action::Reply { asker, result: Err(ChildError::StartFailed(exit)) });
                out.push(Action::Idle { key });
                self.proceed(now, out);
            }
            Why::Restart if matches!(self.op, Op::Closing { .. }) => out.push(Action::Idle { key }),
            Why::Restart => self.restart(key, exit, true, now, out),
            Why::Op if matches!(self.op, Op::Boot) => {
                out.push(Action::Idle { key });
                let child = self.children.get(&key).map(|c| c.id.to_string()).unwrap_or_default();
                self.close(Exit::StartFailed { child, reason: Box::new(exit) }, now, out);
            }
            Why::Op => self.restart(key, exit, true, now, out),
        }
    }

    /// Counts a restart of this child and sets it going, alone or with its group, or gives up. `failed`: it is a repeated try, which goes
    /// through the inbox so that other events come between tries (OTP `try_again_restart`).
    fn restart(&mut self, key: Key, exit: Exit, failed: bool, now: Duration, out: &mut Vec<Action<D>>) {
        let chance = self.chance();
        let Some(child) = self.children.get_mut(&key) else { return };
        if !self.intensity.allow(now) {
            let reason = Exit::RestartIntensity { child: child.id.to_string(), last: Box::new(exit) };
            out.push(Action::Idle { key });
            return self.close(reason, now, out);
        }
        let delay = match &child.policy.backoff {
            Some(spec) => child.attempts.next_delay(spec, chance),
            None => Duration::ZERO,
        };
        let from = match self.strategy {
            Strategy::OneForOne | Strategy::Dynamic => {
                if delay.is_zero() && !failed {
                    return self.start(key, Why::Restart, out);
                }
                child.state = ChildState::Waiting;
                let inc = child.inc;
                out.push(Action::Restarting { key, delay });
                out.push(Action::Timer { timer: Timer::Restart { key, inc }, after: delay });
                return;
            }
            Strategy::OneForAll => 0,
            Strategy::RestForOne => key,
        };
        // A group that waits already and is larger keeps its size.
        let from = match self.op {
            Op::Group { from: earlier, phase: Phase::Waiting, .. } => from.min(earlier),
            _ => from,
        };
        // The one that crashed is queued at once, so that it shows as restarting while the others stop.
        child.state = ChildState::Queued;
        out.push(Action::Restarting { key, delay });
        self.op = Op::Group { from, phase: Phase::Stopping { cursor: self.next_key }, delay, via_inbox: failed };
        self.proceed(now, out);
    }

    fn on_timer(&mut self, timer: Timer, now: Duration, out: &mut Vec<Action<D>>) {
        match timer {
            Timer::StopTimeout { key, inc } => {
                if self
                    .children
                    .get(&key)
                    .is_some_and(|c| c.inc == inc && matches!(c.state, ChildState::Stopping { .. }))
                {
                    out.push(Action::Kill { key });
                }
            }
            Timer::Restart { key, inc } => {
                if self.children.get(&key).is_some_and(|c| c.inc == inc && c.state == ChildState::Waiting) {
                    self.start(key, Why::Restart, out);
                }
            }
            Timer::Group { turn } => {
                let this_turn = self.turn == turn;
                if let Op::Group { from, phase: phase @ Phase::Waiting, .. } = &mut self.op
                    && this_turn
                {
                    *phase = Phase::Starting { cursor: *from };
                    self.proceed(now, out);
                }
            }
        }
    }

    // ---- operations --------------------------------------------------------------------------------------------------------

    /// Takes the operation as far as it goes without waiting, then handles what was kept meanwhile.
    fn proceed(&mut self, now: Duration, out: &mut Vec<Action<D>>) {
        loop {
            match self.op {
                Op::None => {
                    let Some((key, inc)) = self.dead.pop_front() else { return };
                    let exit = match self.children.get(&key).filter(|c| c.inc == inc).map(|c| &c.state) {
                        Some(ChildState::Dead { exit }) => exit.clone(),
                        _ => continue, // stopped or started again by the operation meanwhile
                    };
                    return self.ended_then_proceed(key, exit, now, out);
                }
                Op::Boot => match self.start_next(0, out) {
                    Some(_) => return,
                    None => {
                        self.op = Op::None;
                        out.push(Action::Ready);
                    }
                },
                Op::Group { phase: Phase::Waiting, .. } | Op::Done => return,
                Op::Group { from, phase: Phase::Stopping { cursor }, delay, via_inbox } => {
                    match self.stop_last(from, cursor, out) {
                        Some(at) => {
                            self.op = Op::Group { from, phase: Phase::Stopping { cursor: at + 1 }, delay, via_inbox };
                            return;
                        }
                        None => {
                            self.queue_group(from, delay, out);
                            if delay.is_zero() && !via_inbox {
                                self.op = Op::Group { from, phase: Phase::Starting { cursor: from }, delay, via_inbox };
                                continue;
                            }
                            self.turn += 1;
                            self.op = Op::Group { from, phase: Phase::Waiting, delay, via_inbox };
                            out.push(Action::Timer { timer: Timer::Group { turn: self.turn }, after: delay });
                            // Commands and exits are handled while the group waits.
                            while let Some((key, inc)) = self.dead.pop_front() {
                                if let Some(ChildState::Dead { exit }) =
                                    self.children.get(&key).filter(|c| c.inc == inc).map(|c| &c.state)
                                {
                                    let exit = exit.clone();
                                    return self.ended_then_proceed(key, exit, now, out);
                                }
                            }
                            return;
                        }
                    }
                }
                Op::Group { from, phase: Phase::Starting { cursor }, delay, via_inbox } => {
                    match self.start_next(cursor, out) {
                        Some(at) => {
                            self.op = Op::Group { from, phase: Phase::Starting { cursor: at }, delay, via_inbox };
                            return;
                        }
                        None => self.op = Op::None,
                    }
                }
                Op::Closing { cursor, .. } if self.strategy != Strategy::Dynamic && self.alive > 0 => {
                    let at = self.stop_last(0, cursor, out);
                    if let (Some(at), Op::Closing { cursor, .. }) = (at, &mut self.op) {
                        *cursor = at + 1;
                    }
                    return;
                }
                Op::Closing { .. } => {
                    if self.alive == 0
                        && let Op::Closing { reason, .. } = std::mem::replace(&mut self.op, Op::Done)
                    {
                        out.push(Action::Exit(reason));
                    }
                    return;
                }
            }
        }
    }

    fn ended_then_proceed(&mut self, key: Key, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        self.ended(key, exit, now, out);
        if matches!(self.op, Op::None) && !self.dead.is_empty() {
            self.proceed(now, out);
        }
    }

    /// Starts the first queued child from `cursor` on, or finds the one that is being started. `None`: all are up.
    fn start_next(&mut self, cursor: Key, out: &mut Vec<Action<D>>) -> Option<Key> {
        let (key, queued) = self.children.range(cursor..).find_map(|(key, child)| match child.state {
            ChildState::Queued => Some((*key, true)),
            ChildState::Starting(Why::Op) => Some((*key, false)),
            _ => None,
        })?;
        if queued {
            self.start(key, Why::Op, out);
        }
        Some(key)
    }

    /// Asks the last living child in `from..below` to stop, or finds the one that is stopping. `None`: none lives.
    fn stop_last(&mut self, from: Key, below: Key, out: &mut Vec<Action<D>>) -> Option<Key> {
        let (key, stopping) = self
            .children
            .range(from..below)
            .rev()
            .find(|(_, child)| child.alive())
            .map(|(key, child)| (*key, matches!(child.state, ChildState::Stopping { .. })))?;
        if !stopping {
            self.request_stop(key, false, out);
        }
        Some(key)
    }

    /// All of the group have ended: queue them for the start. Temporary ones are not started again (OTP).
    fn queue_group(&mut self, from: Key, delay: Duration, out: &mut Vec<Action<D>>) {
        let keys: Vec<Key> = self.children.range(from..).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(child) = self.children.get_mut(&key) else { continue };
            if child.policy.restart == Restart::Temporary {
                self.forget(key, out);
            } else if child.state != ChildState::Queued {
                child.state = ChildState::Queued;
                out.push(Action::Restarting { key, delay });
            }
        }
    }

    fn close(&mut self, reason: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        if matches!(self.op, Op::Closing { .. } | Op::Done) {
            return;
        }
        self.op = Op::Closing { reason, cursor: self.next_key };
        self.dead.clear();
        let dynamic = self.strategy == Strategy::Dynamic;
        let keys: Vec<Key> = self.children.keys().copied().collect();
        for key in keys {
            let Some(child) = self.children.get_mut(&key) else { continue };
            match child.state {
                ChildState::Queued | ChildState::Waiting | ChildState::Dead { .. } => {
                    child.state = ChildState::Idle;
                    out.push(Action::Idle { key });
                }
                ChildState::Starting(_) | ChildState::Running { .. } if dynamic => self.request_stop(key, false, out),
                _ => {}
            }
        }
        self.proceed(now, out);
    }

    fn kill(&mut self, now: Duration, out: &mut Vec<Action<D>>) {
        if matches!(self.op, Op::Done) {
            return;
        }
        self.close(Exit::Killed, now, out);
        if let Op::Closing { reason, .. } = &mut self.op {
            *reason = Exit::Killed;
        }
        let keys: Vec<Key> = self.children.iter().filter(|(_, c)| c.alive()).map(|(key, _)| *key).collect();
        for key in keys {
            self.request_stop(key, true, out);
        }
    }

    // ---- commands ----------------------------------------------------------------------------------------------------------

    fn start_child(&mut self, id: Arc<str>, policy: Policy, data: D, asker: Asker, out: &mut Vec<Action<D>>) {
        let refused = match self.find(&id) {
            _ if self.down() => Some(ChildError::SupervisorDown),
            Some((_, ChildState::Idle)) => Some(ChildError::AlreadyPresent),
            Some(_) => Some(ChildError::AlreadyStarted),
            None => None,
        };
        if let Some(error) = refused {
            return out.push(Action::Reply { asker, result: Err(error) });
        }
        let key = self.insert(id, policy, data, ChildState::Idle);
        self.start(key, Why::New(asker), out);
    }

    fn terminate_child(&mut self, id: &Arc<str>, asker: Asker, out: &mut Vec<Action<D>>) {
        let Some(key) = self.ids.get(id).copied().filter(|_| !self.down()) else {
            let error = if self.down() { ChildError::SupervisorDown } else { ChildError::NotFound };
            return out.push(Action::Reply { asker, result: Err(error) });
        };
        let Some(child) = self.children.get_mut(&key) else { return };
        match child.state {
            ChildState::Stopping { .. } => child.waiters.push(asker),
            ChildState::Starting(_) | ChildState::Running { .. } => {
                child.waiters.push(asker);
                self.request_stop(key, false, out);
            }
            ChildState::Idle | ChildState::Queued | ChildState::Waiting | ChildState::Dead { .. } => {
                child.state = ChildState::Idle;
                out.push(Action::Reply { asker, result: Ok(key) });
                if child.policy.restart == Restart::Temporary || self.strategy == Strategy::Dynamic {
                    self.forget(key, out);
                } else {
                    out.push(Action::Idle { key });
                }
            }
        }
    }

    fn restart_child(&mut self, id: &Arc<str>, asker: Asker, out: &mut Vec<Action<D>>) {
        match self.idle(id) {
            Ok(key) => self.start(key, Why::Again(asker), out),
            Err(error) => out.push(Action::Reply { asker, result: Err(error) }),
        }
    }

    fn delete_child(&mut self, id: &Arc<str>, asker: Asker, out: &mut Vec<Action<D>>) {
        match self.idle(id) {
            Ok(key) => {
                out.push(Action::Reply { asker, result: Ok(key) });
                self.forget(key, out);
            }
            Err(error) => out.push(Action::Reply { asker, result: Err(error) }),
        }
    }

    /// The child, if it is one that can be restarted or deleted by hand.
    fn idle(&self, id: &Arc<str>) -> Result<Key, ChildError> {
        match self.find(id) {
            _ if self.down() => Err(ChildError::SupervisorDown),
            None => Err(ChildError::NotFound),
            Some((key, ChildState::Idle)) => Ok(key),
            Some((_, ChildState::Waiting | ChildState::Queued | ChildState::Dead { .. })) => {
                Err(ChildError::Restarting)
            }
            Some(_) => Err(ChildError::Running),
        }
    }

    // ---- single steps ------------------------------------------------------------------------------------------------------

    fn insert(&mut self, id: Arc<str>, policy: Policy, data: D, state: ChildState) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        self.ids.insert(id.clone(), key);
        let child = Child { id, policy, attempts: Attempts::default(), state, inc: 0, waiters: Vec::new(), data };
        self.children.insert(key, Box::new(child));
        key
    }

    fn start(&mut self, key: Key, why: Why, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(&key) else { return };
        let restart = match why {
            Why::Op => !matches!(self.op, Op::Boot),
            Why::Restart | Why::Again(_) => true,
            Why::New(_) => false,
        };
        self.next_inc += 1;
        child.inc = self.next_inc;
        child.state = ChildState::Starting(why);
        self.alive += 1;
        out.push(Action::Start { key, inc: child.inc, restart });
    }

    fn request_stop(&mut self, key: Key, kill: bool, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(&key) else { return };
        let mut forget = matches!(child.state, ChildState::Stopping { forget: true });
        if let ChildState::Starting(Why::New(asker) | Why::Again(asker)) = child.state {
            // A child whose start was refused is not kept; one that was there before is.
            forget = matches!(child.state, ChildState::Starting(Why::New(_)));
            out.push(Action::Reply { asker, result: Err(ChildError::Stopped) });
        }
        child.state = ChildState::Stopping { forget };
        match child.policy.shutdown {
            _ if kill => out.push(Action::Kill { key }),
            Shutdown::Brutal => out.push(Action::Kill { key }),
            Shutdown::Infinity => out.push(Action::Stop { key }),
            Shutdown::Timeout(after) => {
                out.push(Action::Stop { key });
                out.push(Action::Timer { timer: Timer::StopTimeout { key, inc: child.inc }, after });
            }
        }
    }

    fn forget(&mut self, key: Key, out: &mut Vec<Action<D>>) {
        if let Some(child) = self.children.remove(&key) {
            self.ids.remove(&child.id);
            out.push(Action::Forget { key, data: child.data });
        }
    }

    fn find(&self, id: &Arc<str>) -> Option<(Key, &ChildState)> {
        let key = *self.ids.get(id)?;
        Some((key, &self.children.get(&key)?.state))
    }

    fn down(&self) -> bool {
        matches!(self.op, Op::Closing { .. } | Op::Done)
    }

    /// The next pseudo-random number in 0.0..1.0 (splitmix64, Steele et al. 2014).
    fn chance(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
