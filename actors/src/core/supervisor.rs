//! The supervisor's decisions (OTP `supervisor`): who is started, stopped, killed, restarted, when, in which order, and when to give up.
//!
//! A pure state machine. Must never wait, read a clock, or know what a child is: `D` is whatever the driver keeps for a child.
//! No event costs more than O(log children), except those that concern all children (group restart, own end, the end of a significant
//! child when all have to end).
//!
//! Each child has its own state; what concerns several in order is an operation ([`Op`]):
//! ```text
//!   Boot ──▶ Idle ◀───────────────────────────────────────────────────────┐
//!              │ one_for_all, rest_for_one                                │ all up, or one failed: tried again
//!              ├──▶ Group: Stopping (reverse) ──▶ Waiting (backoff) ──▶ Starting (in order)   through the inbox
//!              │
//!              └──▶ Closing (reverse, dynamic: all at once) ──▶ Done
//! ```
//! While an operation runs, exits of other children and retries are kept and handled after it, as OTP's are in the mailbox.

use super::child::{Child, ChildState, Spec, Why};
use super::children::Children;
pub(crate) use super::event::{Action, Asker, Event, Inc, Key, Timer};
use super::intensity::Intensity;
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::{AutoShutdown, Restart, Shutdown, Strategy};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const SIGNIFICANT_NEVER: &str = "a significant child needs a supervisor that shuts down for it: set its auto_shutdown";
const SIGNIFICANT_PERMANENT: &str =
    "a permanent child cannot be significant, since it always returns: make it transient";

#[derive(Debug)]
enum Op {
    None,
    Boot { cursor: Key },
    Group { from: Key, phase: Phase, delay: Duration },
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
    auto_shutdown: AutoShutdown,
    intensity: Intensity,
    children: Children<D>,
    ids: HashMap<Arc<str>, Key>,
    op: Op,
    /// How many children are starting, running or stopping.
    alive: usize,
    /// Those who asked for the termination of a child that is stopping.
    waiters: BTreeMap<Key, Vec<Asker>>,
    /// Children that died, or whose retry came due, while an operation ran; in that order.
    kept: VecDeque<(Key, Inc)>,
    next_key: Key,
    next_inc: Inc,
    /// Counts group waits, to recognise late timers.
    turn: u64,
    seed: u64,
}

impl<D: Spec> Supervisor<D> {
    /// `seed` decides the jitter of backoffs and nothing else.
    pub(crate) fn new(
        strategy: Strategy,
        auto_shutdown: AutoShutdown,
        intensity: Option<(u32, Duration)>,
        seed: u64,
    ) -> Self {
        Supervisor {
            strategy,
            auto_shutdown,
            intensity: Intensity::new(intensity),
            children: Children::new(),
            ids: HashMap::new(),
            op: Op::Boot { cursor: 0 },
            alive: 0,
            waiters: BTreeMap::new(),
            kept: VecDeque::new(),
            next_key: 0,
            next_inc: 0,
            turn: 0,
            seed,
        }
    }

    /// Adds a first child, before `Event::Boot`.
    pub(crate) fn add(&mut self, data: D) -> Result<(), ChildError> {
        self.check(&data)?;
        if self.ids.contains_key(data.id()) {
            return Err(ChildError::AlreadyPresent);
        }
        self.insert(data, ChildState::Queued);
        Ok(())
    }

    /// Whether commands must wait because an operation runs. Stop and kill never wait.
    pub(crate) fn busy(&self) -> bool {
        match &self.op {
            Op::None | Op::Closing { .. } | Op::Done => false,
            Op::Boot { .. } => true,
            Op::Group { phase, .. } => *phase != Phase::Waiting,
        }
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = (Key, &Child<D>)> {
        self.children.iter()
    }

    pub(crate) fn child(&self, key: Key) -> Option<&Child<D>> {
        self.children.get(key)
    }

    pub(crate) fn find(&self, id: &str) -> Option<(Key, &Child<D>)> {
        let key = *self.ids.get(id)?;
        Some((key, self.child(key)?))
    }

    pub(crate) fn data_mut(&mut self, key: Key) -> Option<&mut D> {
        self.children.get_mut(key).map(|c| &mut c.data)
    }

    /// Whether the child runs, or will be started again without being asked for.
    pub(crate) fn returns(&self, key: Key) -> bool {
        let Some(child) = self.children.get(key) else { return false };
        match self.op {
            // Its members show as idle until all of them have ended.
            Op::Group { from, phase: Phase::Stopping { .. }, .. } if key >= from => {
                child.data.policy().restart != Restart::Temporary
            }
            Op::Closing { .. } | Op::Done => child.state != ChildState::Idle,
            _ => child.state != ChildState::Idle || self.retried_with(key),
        }
    }

    /// Whether the restart of its group failed before its turn came, and will be tried again.
    fn retried_with(&self, key: Key) -> bool {
        let below = match self.strategy {
            Strategy::OneForOne | Strategy::Dynamic => return false,
            Strategy::OneForAll => self.next_key,
            Strategy::RestForOne => key + 1,
        };
        self.children.range(0, below).any(|(_, child)| matches!(child.state, ChildState::Waiting { failed: Some(_) }))
    }

    #[cfg(test)]
    pub(crate) fn on_event(&mut self, event: Event<D>, now: Duration) -> Vec<Action<D>> {
        let mut out = Vec::new();
        self.handle(event, now, &mut out);
        out
    }

    /// `now` is the time since some fixed moment and never goes back; it means nothing for events that are not [timed](Event::timed). What is to
    /// be done comes to what is in `out`.
    pub(crate) fn handle(&mut self, event: Event<D>, now: Duration, out: &mut Vec<Action<D>>) {
        match event {
            Event::Boot => self.proceed(now, out),
            Event::Started { key, inc } => self.on_started(key, inc, now, out),
            Event::Exited { key, inc, exit } => self.on_exited(key, inc, exit, now, out),
            Event::Timer(timer) => self.on_timer(timer, now, out),
            Event::Stop(reason) => self.close(reason, now, out),
            Event::Kill => self.kill(now, out),
            Event::StartChild { data, asker } => self.start_child(data, asker, out),
            Event::TerminateChild { id, asker } => self.terminate_child(&id, asker, out),
            Event::RestartChild { id, asker } => self.restart_child(&id, asker, out),
            Event::DeleteChild { id, asker } => self.delete_child(&id, asker, out),
        }
    }

    // ---- events of children ------------------------------------------------------------------------------------------------

    fn on_started(&mut self, key: Key, inc: Inc, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(key).filter(|c| c.inc == inc) else { return };
        let ChildState::Starting(why) = &child.state else { return };
        let why = *why;
        child.state = ChildState::running(now);
        match why {
            Why::Op => self.proceed(now, out),
            Why::Restart => {}
            Why::New(asker) | Why::Again(asker) => out.push(Action::Reply { asker, result: Ok(key) }),
        }
    }

    fn on_exited(&mut self, key: Key, inc: Inc, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(key).filter(|c| c.inc == inc) else { return };
        if !child.alive() {
            return;
        }
        self.alive -= 1;
        let policy = child.data.policy();
        let for_good = policy.restart == Restart::Temporary || self.strategy == Strategy::Dynamic;
        match std::mem::replace(&mut child.state, ChildState::Idle) {
            ChildState::Stopping { forget } => {
                let waiters = self.waiters.remove(&key).unwrap_or_default();
                let terminated = !waiters.is_empty();
                for asker in waiters {
                    out.push(Action::Reply { asker, result: Ok(key) });
                }
                self.leave(key, forget || (terminated && for_good), out);
                self.proceed(now, out);
            }
            ChildState::Starting(why) if exit == Exit::Ignore => {
                if let Why::New(asker) | Why::Again(asker) = why {
                    out.push(Action::Reply { asker, result: Ok(key) });
                }
                self.leave(key, for_good, out);
                self.proceed(now, out);
            }
            ChildState::Starting(why) => self.start_failed(key, why, exit, now, out),
            ChildState::Running { since_ns } => {
                if let Some(spec) = &policy.backoff {
                    child.attempts.ended(spec, now.saturating_sub(Duration::from_nanos(since_ns)));
                }
                match self.op {
                    Op::Closing { .. } | Op::Done => {
                        out.push(Action::Idle { key });
                        self.proceed(now, out);
                    }
                    Op::None | Op::Group { phase: Phase::Waiting, .. } => self.ended(key, exit, now, out),
                    Op::Boot { .. } | Op::Group { .. } => {
                        child.state = ChildState::Dead { exit: Box::new(exit) };
                        self.kept.push_back((key, inc));
                        self.proceed(now, out);
                    }
                }
            }
            state => child.state = state, // not alive; cannot be, see above
        }
    }

    /// A child that was up has ended by itself, and no operation is in the way.
    fn ended(&mut self, key: Key, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(key) else { return };
        child.state = ChildState::Idle;
        let (restart, significant) = (child.data.policy().restart, child.data.policy().significant);
        let again = match restart {
            Restart::Permanent => true,
            Restart::Transient => exit.is_abnormal(),
            Restart::Temporary => false,
        };
        if again {
            return self.restart(key, exit, now, out);
        }
        self.leave(key, restart == Restart::Temporary || self.strategy == Strategy::Dynamic, out);
        if significant && self.shuts_down() {
            self.close(Exit::Shutdown, now, out);
        }
    }

    /// Whether the end of a significant child, which is told, is the supervisor's (OTP `do_auto_shutdown`).
    fn shuts_down(&self) -> bool {
        match self.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => {
                !self.children.iter().any(|(_, c)| c.data.policy().significant && c.state != ChildState::Idle)
            }
        }
    }

    /// A child ended before it was up.
    fn start_failed(&mut self, key: Key, why: Why, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        match why {
            Why::New(asker) | Why::Again(asker) => {
                out.push(Action::Reply { asker, result: Err(ChildError::StartFailed(exit)) });
                self.leave(key, matches!(why, Why::New(_)), out);
                self.proceed(now, out);
            }
            Why::Op if matches!(self.op, Op::Boot { .. }) => {
                out.push(Action::Idle { key });
                let child = self.children.get(key).map(|c| c.data.id().to_string()).unwrap_or_default();
                self.close(Exit::StartFailed { child, reason: Box::new(exit) }, now, out);
            }
            Why::Op | Why::Restart if self.down() => {
                out.push(Action::Idle { key });
                self.proceed(now, out);
            }
            Why::Op | Why::Restart => self.restart_failed(key, exit, now, out),
        }
    }

    /// A child that was up has crashed: a restart is counted and set going, now or after its backoff.
    fn restart(&mut self, key: Key, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        let delay = self.delay(key);
        if self.counted(key, exit, now, out) {
            self.set_going(key, delay, now, out);
        }
    }

    /// A restart has failed. The next try goes through the inbox, so that other events come between tries, and is counted when it is made
    /// (OTP `try_again_restart`). After a backoff, which OTP has not, it is counted before: nobody waits only to give up.
    fn restart_failed(&mut self, key: Key, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        let delay = self.delay(key);
        if !delay.is_zero() {
            if self.counted(key, exit, now, out) {
                self.set_going(key, delay, now, out);
            }
            return;
        }
        let Some(child) = self.children.get_mut(key) else { return };
        child.state = ChildState::Waiting { failed: Some(Box::new(exit)) };
        let inc = child.inc;
        out.push(Action::Restarting { key, delay });
        out.push(Action::Timer { timer: Timer::Restart { key, inc }, after: delay });
        if matches!(self.op, Op::Group { .. }) {
            // Those before it are up; those behind it have to wait until it was tried again.
            self.op = Op::None;
            for (key, child) in self.children.since_mut(key) {
                if child.state == ChildState::Queued {
                    child.state = ChildState::Idle;
                    out.push(Action::Idle { key });
                }
            }
            self.proceed(now, out);
        }
    }

    /// Counts a restart. False when it is one too many: then the supervisor gives up.
    fn counted(&mut self, key: Key, exit: Exit, now: Duration, out: &mut Vec<Action<D>>) -> bool {
        if self.intensity.allow(now) {
            return true;
        }
        let Some(child) = self.children.get_mut(key) else { return false };
        child.state = ChildState::Idle;
        let reason = Exit::RestartIntensity { child: child.data.id().to_string(), last: Box::new(exit) };
        out.push(Action::Idle { key });
        self.close(reason, now, out);
        false
    }

    fn delay(&mut self, key: Key) -> Duration {
        let chance = self.chance();
        let Some(child) = self.children.get_mut(key) else { return Duration::ZERO };
        match &child.data.policy().backoff {
            Some(spec) => child.attempts.next_delay(spec, chance),
            None => Duration::ZERO,
        }
    }

    /// Restarts a child, alone or with its group, after a delay.
    fn set_going(&mut self, key: Key, delay: Duration, now: Duration, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(key) else { return };
        let from = match self.strategy {
            Strategy::OneForOne | Strategy::Dynamic if delay.is_zero() => return self.start(key, Why::Restart, out),
            Strategy::OneForOne | Strategy::Dynamic => {
                child.state = ChildState::Waiting { failed: None };
                let inc = child.inc;
                out.push(Action::Restarting { key, delay });
                return out.push(Action::Timer { timer: Timer::Restart { key, inc }, after: delay });
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
        self.op = Op::Group { from, phase: Phase::Stopping { cursor: self.next_key }, delay };
        self.proceed(now, out);
    }

    fn on_timer(&mut self, timer: Timer, now: Duration, out: &mut Vec<Action<D>>) {
        match timer {
            Timer::StopTimeout { key, inc } => {
                if self
                    .children
                    .get(key)
                    .is_some_and(|c| c.inc == inc && matches!(c.state, ChildState::Stopping { .. }))
                {
                    out.push(Action::Kill { key });
                }
            }
            Timer::Restart { key, inc } => {
                self.kept.push_back((key, inc));
                self.proceed(now, out);
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
                    if !self.handle_kept(now, out) {
                        return;
                    }
                }
                Op::Boot { cursor } => match self.start_next(cursor, out) {
                    Some(at) => {
                        self.op = Op::Boot { cursor: at };
                        return;
                    }
                    None => {
                        self.op = Op::None;
                        out.push(Action::Ready);
                    }
                },
                // Commands, exits and retries are handled while the group waits.
                Op::Group { phase: Phase::Waiting, .. } => {
                    if !self.handle_kept(now, out) {
                        return;
                    }
                }
                Op::Done => return,
                Op::Group { from, phase: Phase::Stopping { cursor }, delay } => {
                    match self.stop_last(from, cursor, out) {
                        Some(at) => {
                            self.op = Op::Group { from, phase: Phase::Stopping { cursor: at + 1 }, delay };
                            return;
                        }
                        None => {
                            self.queue_group(from, delay, out);
                            if delay.is_zero() {
                                self.op = Op::Group { from, phase: Phase::Starting { cursor: from }, delay };
                                continue;
                            }
                            self.turn += 1;
                            self.op = Op::Group { from, phase: Phase::Waiting, delay };
                            out.push(Action::Timer { timer: Timer::Group { turn: self.turn }, after: delay });
                        }
                    }
                }
                Op::Group { from, phase: Phase::Starting { cursor }, delay } => match self.start_next(cursor, out) {
                    Some(at) => {
                        self.op = Op::Group { from, phase: Phase::Starting { cursor: at }, delay };
                        return;
                    }
                    None => self.op = Op::None,
                },
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

    /// Handles the first thing that was kept. False when nothing is left.
    fn handle_kept(&mut self, now: Duration, out: &mut Vec<Action<D>>) -> bool {
        let Some((key, inc)) = self.kept.pop_front() else { return false };
        let Some(child) = self.children.get_mut(key).filter(|c| c.inc == inc) else { return true };
        match std::mem::replace(&mut child.state, ChildState::Idle) {
            ChildState::Dead { exit } => self.ended(key, *exit, now, out),
            ChildState::Waiting { failed: None } => self.start(key, Why::Restart, out),
            ChildState::Waiting { failed: Some(exit) } => {
                if self.counted(key, *exit, now, out) {
                    self.set_going(key, Duration::ZERO, now, out);
                }
            }
            // Terminated, or started again by an operation, meanwhile.
            state => child.state = state,
        }
        true
    }

    /// Starts the first queued child from `cursor` on, or finds the one that is being started. `None`: all are up.
    fn start_next(&mut self, cursor: Key, out: &mut Vec<Action<D>>) -> Option<Key> {
        let (key, queued) = self.children.range(cursor, self.next_key).find_map(|(key, child)| match child.state {
            ChildState::Queued => Some((key, true)),
            ChildState::Starting(Why::Op) => Some((key, false)),
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
            .range(from, below)
            .rev()
            .find(|(_, child)| child.alive())
            .map(|(key, child)| (key, matches!(child.state, ChildState::Stopping { .. })))?;
        if !stopping {
            self.request_stop(key, false, out);
        }
        Some(key)
    }

    /// All of the group have ended: queue them for the start. Temporary ones are not started again (OTP).
    fn queue_group(&mut self, from: Key, delay: Duration, out: &mut Vec<Action<D>>) {
        let keys: Vec<Key> = self.children.range(from, self.next_key).map(|(key, _)| key).collect();
        for key in keys {
            let Some(child) = self.children.get_mut(key) else { continue };
            if child.data.policy().restart == Restart::Temporary {
                self.forget(key, out);
            } else if child.state != ChildState::Queued {
                child.state = ChildState::Queued;
                out.push(Action::Restarting { key, delay });
            }
        }
    }

    fn close(&mut self, reason: Exit, now: Duration, out: &mut Vec<Action<D>>) {
        if !self.down() {
            self.begin_end(reason, out);
            if self.strategy == Strategy::Dynamic {
                self.request_stop_of_all(false, out);
            }
            self.proceed(now, out);
        }
    }

    fn kill(&mut self, now: Duration, out: &mut Vec<Action<D>>) {
        match &mut self.op {
            Op::Done => return,
            Op::Closing { reason, .. } => *reason = Exit::Killed,
            _ => self.begin_end(Exit::Killed, out),
        }
        self.request_stop_of_all(true, out);
        self.proceed(now, out);
    }

    /// From now on nothing is started.
    fn begin_end(&mut self, reason: Exit, out: &mut Vec<Action<D>>) {
        self.op = Op::Closing { reason, cursor: self.next_key };
        self.kept.clear();
        for (key, child) in self.children.iter_mut().filter(|(_, child)| !child.alive()) {
            if child.state != ChildState::Idle {
                child.state = ChildState::Idle;
                out.push(Action::Idle { key });
            }
        }
    }

    fn request_stop_of_all(&mut self, kill: bool, out: &mut Vec<Action<D>>) {
        let to_stop = |child: &Child<D>| child.alive() && (kill || !matches!(child.state, ChildState::Stopping { .. }));
        let keys: Vec<Key> = self.children.iter().filter(|(_, child)| to_stop(child)).map(|(key, _)| key).collect();
        for key in keys {
            self.request_stop(key, kill, out);
        }
    }

    // ---- commands ----------------------------------------------------------------------------------------------------------

    /// A significant child is one whose end can be the supervisor's end (OTP `bad_combination`).
    fn check(&self, data: &D) -> Result<(), ChildError> {
        if data.policy().significant && self.auto_shutdown == AutoShutdown::Never {
            return Err(ChildError::BadCombination(SIGNIFICANT_NEVER));
        }
        if data.policy().significant && data.policy().restart == Restart::Permanent {
            return Err(ChildError::BadCombination(SIGNIFICANT_PERMANENT));
        }
        Ok(())
    }

    fn start_child(&mut self, data: D, asker: Asker, out: &mut Vec<Action<D>>) {
        let refused = match (self.check(&data), self.find(data.id())) {
            _ if self.down() => Some(ChildError::SupervisorDown),
            (Err(refused), _) => Some(refused),
            (_, None) => None,
            // OTP: what does not run is present, whether someone will start it again or not.
            (_, Some((_, child))) if child.restarting() || child.state == ChildState::Idle => {
                Some(ChildError::AlreadyPresent)
            }
            (_, Some(_)) => Some(ChildError::AlreadyStarted),
        };
        if let Some(error) = refused {
            return out.push(Action::Reply { asker, result: Err(error) });
        }
        let key = self.insert(data, ChildState::Idle);
        self.start(key, Why::New(asker), out);
    }

    fn terminate_child(&mut self, id: &Arc<str>, asker: Asker, out: &mut Vec<Action<D>>) {
        let Some(key) = self.ids.get(id).copied().filter(|_| !self.down()) else {
            let error = if self.down() { ChildError::SupervisorDown } else { ChildError::NotFound };
            return out.push(Action::Reply { asker, result: Err(error) });
        };
        let Some(child) = self.children.get_mut(key) else { return };
        match child.state {
            ChildState::Stopping { .. } => self.waiters.entry(key).or_default().push(asker),
            ChildState::Starting(_) | ChildState::Running { .. } => {
                self.waiters.entry(key).or_default().push(asker);
                self.request_stop(key, false, out);
            }
            ChildState::Idle | ChildState::Queued | ChildState::Waiting { .. } | ChildState::Dead { .. } => {
                let retried = matches!(child.state, ChildState::Waiting { failed: Some(_) });
                child.state = ChildState::Idle;
                let for_good = child.data.policy().restart == Restart::Temporary || self.strategy == Strategy::Dynamic;
                out.push(Action::Reply { asker, result: Ok(key) });
                self.leave(key, for_good, out);
                if retried && matches!(self.strategy, Strategy::OneForAll | Strategy::RestForOne) {
                    // Those who waited for its retry will not be started by it.
                    let behind = self
                        .children
                        .range(key + 1, self.next_key)
                        .filter(|(_, child)| child.state == ChildState::Idle);
                    out.extend(behind.map(|(key, _)| Action::Idle { key }));
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
        let (key, child) = match self.find(id) {
            _ if self.down() => return Err(ChildError::SupervisorDown),
            None => return Err(ChildError::NotFound),
            Some(found) => found,
        };
        match child.state {
            ChildState::Idle => Ok(key),
            _ if child.restarting() => Err(ChildError::Restarting),
            _ => Err(ChildError::Running),
        }
    }

    // ---- single steps ------------------------------------------------------------------------------------------------------

    fn insert(&mut self, data: D, state: ChildState) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        self.ids.insert(data.id().clone(), key);
        self.children.push(key, Child::new(data, state));
        key
    }

    fn start(&mut self, key: Key, why: Why, out: &mut Vec<Action<D>>) {
        let Some(child) = self.children.get_mut(key) else { return };
        let restart = match why {
            Why::Op => !matches!(self.op, Op::Boot { .. }),
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
        let Some(child) = self.children.get_mut(key) else { return };
        let mut forget = matches!(child.state, ChildState::Stopping { forget: true });
        if let ChildState::Starting(Why::New(asker) | Why::Again(asker)) = child.state {
            // A child whose start was refused is not kept; one that was there before is.
            forget = matches!(child.state, ChildState::Starting(Why::New(_)));
            out.push(Action::Reply { asker, result: Err(ChildError::Stopped) });
        }
        child.state = ChildState::Stopping { forget };
        match child.data.policy().shutdown {
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
        if let Some(child) = self.children.remove(key) {
            self.ids.remove(child.data.id());
            out.push(Action::Forget { key, data: child.data });
        }
    }

    /// A child does not run, and nobody will start it by itself.
    fn leave(&mut self, key: Key, forget: bool, out: &mut Vec<Action<D>>) {
        if forget {
            self.forget(key, out);
        } else {
            out.push(Action::Idle { key });
        }
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
