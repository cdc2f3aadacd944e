//! The core against an independent model of OTP's `supervisor.erl`: synchronous, recursive, without states or operations.
//!
//! Both are given the same script; all starts, failed starts, stops, answers, the final list of children and the exit must be the same.

use super::supervisor::*;
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::{Restart, Shutdown, Strategy};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

const PERIOD_MS: u64 = 5_000;

#[derive(Clone, Debug)]
enum Step {
    /// The child at this place (of those known) ends by itself.
    Crash(usize, bool),
    /// The next so many starts fail.
    Fail(u32),
    Add(Restart),
    Terminate(usize),
    Again(usize),
    Delete(usize),
    Wait(u64),
    Stop,
}

/// What both must agree on: `+c1` up, `!c1` failed to start, `-c1` stopped, then answers and exits in words.
type Trace = Vec<String>;

fn crash(abnormal: bool) -> Exit {
    if abnormal { Exit::Error("crash".into()) } else { Exit::Normal }
}

fn no_start() -> Exit {
    Exit::Error("no start".into())
}

fn answer(result: Result<(), ChildError>) -> String {
    format!("{result:?}")
}

// ---- the model -----------------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct ModelChild {
    id: String,
    restart: Restart,
    running: bool,
}

struct Model {
    strategy: Strategy,
    intensity: usize,
    children: Vec<ModelChild>,
    restarts: Vec<u64>,
    now: u64,
    fail: u32,
    added: usize,
    trace: Trace,
    over: bool,
}

impl Model {
    fn start(&mut self, at: usize) -> bool {
        let id = &self.children[at].id;
        if self.fail > 0 {
            self.fail -= 1;
            self.trace.push(format!("!{id}"));
            return false;
        }
        self.trace.push(format!("+{id}"));
        self.children[at].running = true;
        true
    }

    fn stop_from(&mut self, from: usize) {
        for at in (from..self.children.len()).rev() {
            if std::mem::take(&mut self.children[at].running) {
                self.trace.push(format!("-{}", self.children[at].id));
            }
        }
    }

    fn end(&mut self, exit: Exit) {
        if self.strategy == Strategy::Dynamic {
            // Asked all at once; the world answers in the order in which it was asked.
            for child in self.children.iter_mut().filter(|child| child.running) {
                child.running = false;
                self.trace.push(format!("-{}", child.id));
            }
        }
        self.stop_from(0);
        self.trace.push(format!("exit {exit}"));
        self.over = true;
    }

    fn boot(&mut self) {
        for at in 0..self.children.len() {
            if !self.start(at) {
                let child = self.children[at].id.clone();
                return self.end(Exit::StartFailed { child, reason: Box::new(no_start()) });
            }
        }
    }

    fn restart(&mut self, at: usize, last: Exit) {
        self.restarts.push(self.now);
        let now = self.now;
        self.restarts.retain(|then| now - then <= PERIOD_MS);
        if self.restarts.len() > self.intensity {
            let child = self.children[at].id.clone();
            return self.end(Exit::RestartIntensity { child, last: Box::new(last) });
        }
        let from = match self.strategy {
            Strategy::OneForOne | Strategy::Dynamic => {
                if !self.start(at) {
                    self.restart(at, no_start());
                }
                return;
            }
            Strategy::OneForAll => 0,
            Strategy::RestForOne => at,
        };
        self.stop_from(from);
        let mut kept = self.children.split_off(from);
        kept.retain(|child| child.restart != Restart::Temporary);
        self.children.append(&mut kept);
        for next in from..self.children.len() {
            if !self.start(next) {
                return self.restart(next, no_start());
            }
        }
    }

    fn ends_for_good(&self, at: usize) -> bool {
        self.children[at].restart == Restart::Temporary || self.strategy == Strategy::Dynamic
    }

    fn step(&mut self, step: &Step) {
        let at = |n: &usize| (!self.children.is_empty()).then(|| n % self.children.len());
        match step {
            Step::Wait(ms) => self.now += ms,
            Step::Fail(n) => self.fail = *n,
            Step::Stop => self.end(Exit::Shutdown),
            Step::Crash(n, abnormal) => {
                let Some(at) = at(n).filter(|at| self.children[*at].running) else { return };
                self.children[at].running = false;
                let again = match self.children[at].restart {
                    Restart::Permanent => true,
                    Restart::Transient => *abnormal,
                    Restart::Temporary => false,
                };
                if again {
                    self.restart(at, crash(*abnormal));
                } else if self.ends_for_good(at) {
                    self.children.remove(at);
                }
            }
            Step::Add(restart) => {
                let id = format!("n{}", self.added);
                self.added += 1;
                self.children.push(ModelChild { id, restart: *restart, running: false });
                let up = self.start(self.children.len() - 1);
                if !up {
                    self.children.pop();
                }
                self.trace.push(answer(up.then_some(()).ok_or(ChildError::StartFailed(no_start()))));
            }
            Step::Terminate(n) => {
                let Some(at) = at(n) else { return };
                if std::mem::take(&mut self.children[at].running) {
                    self.trace.push(format!("-{}", self.children[at].id));
                }
                if self.ends_for_good(at) {
                    self.children.remove(at);
                }
                self.trace.push(answer(Ok(())));
            }
            Step::Again(n) => {
                let Some(at) = at(n) else { return };
                let result = if self.children[at].running {
                    Err(ChildError::Running)
                } else {
                    self.start(at).then_some(()).ok_or(ChildError::StartFailed(no_start()))
                };
                self.trace.push(answer(result));
            }
            Step::Delete(n) => {
                let Some(at) = at(n) else { return };
                let running = self.children[at].running;
                if !running {
                    self.children.remove(at);
                }
                self.trace.push(answer(if running { Err(ChildError::Running) } else { Ok(()) }));
            }
        }
    }

    fn list(&self) -> Vec<(String, bool)> {
        self.children.iter().map(|child| (child.id.clone(), child.running)).collect()
    }
}

// ---- the core, in a world that answers at once -------------------------------------------------------------------------------------

struct Real {
    core: Supervisor<String>,
    running: BTreeMap<Key, Inc>,
    now: u64,
    fail: u32,
    added: usize,
    asked: Asker,
    trace: Trace,
    over: bool,
}

impl Real {
    fn feed(&mut self, event: Event<String>) {
        let mut events = VecDeque::from([event]);
        // Timers of no delay come after all that waits.
        let mut timers = VecDeque::new();
        while let Some(event) = events.pop_front().or_else(|| timers.pop_front().map(Event::Timer)) {
            for action in self.core.on_event(event, Duration::from_millis(self.now)) {
                match action {
                    Action::Start { key, inc, .. } => {
                        let id = self.core.child(key).expect("known").id.clone();
                        if self.fail > 0 {
                            self.fail -= 1;
                            self.trace.push(format!("!{id}"));
                            events.push_back(Event::Exited { key, inc, exit: no_start() });
                        } else {
                            self.trace.push(format!("+{id}"));
                            assert!(self.running.insert(key, inc).is_none());
                            events.push_back(Event::Started { key, inc });
                        }
                    }
                    Action::Stop { key } | Action::Kill { key } => {
                        let inc = self.running.remove(&key).expect("only what runs is stopped");
                        self.trace.push(format!("-{}", self.core.child(key).expect("known").id));
                        events.push_back(Event::Exited { key, inc, exit: Exit::Shutdown });
                    }
                    Action::Timer { timer, after } if after.is_zero() => timers.push_back(timer),
                    Action::Reply { result, .. } => self.trace.push(answer(result.map(|_| ()))),
                    Action::Exit(exit) => {
                        self.trace.push(format!("exit {exit}"));
                        self.over = true;
                    }
                    Action::Timer { .. }
                    | Action::Restarting { .. }
                    | Action::Idle { .. }
                    | Action::Forget { .. }
                    | Action::Ready => {}
                }
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let children: Vec<_> = self.core.children().map(|(key, child)| (key, child.id.clone())).collect();
        let at = |n: &usize| (!children.is_empty()).then(|| children[n % children.len()].clone());
        self.asked += 1;
        let asker = self.asked;
        match step {
            Step::Wait(ms) => self.now += ms,
            Step::Fail(n) => self.fail = *n,
            Step::Stop => self.feed(Event::Stop(Exit::Shutdown)),
            Step::Crash(n, abnormal) => {
                let Some((key, _)) = at(n) else { return };
                let Some(inc) = self.running.remove(&key) else { return };
                self.feed(Event::Exited { key, inc, exit: crash(*abnormal) });
            }
            Step::Add(restart) => {
                let id = format!("n{}", self.added);
                self.added += 1;
                let data = id.clone();
                self.feed(Event::StartChild { id: id.into(), policy: policy(*restart), data, asker });
            }
            Step::Terminate(n) => {
                let Some((_, id)) = at(n) else { return };
                self.feed(Event::TerminateChild { id, asker });
            }
            Step::Again(n) => {
                let Some((_, id)) = at(n) else { return };
                self.feed(Event::RestartChild { id, asker });
            }
            Step::Delete(n) => {
                let Some((_, id)) = at(n) else { return };
                self.feed(Event::DeleteChild { id, asker });
            }
        }
    }

    fn list(&self) -> Vec<(String, bool)> {
        let list = self.core.children().map(|(key, child)| (child.id.to_string(), self.running.contains_key(&key)));
        list.collect()
    }
}

fn policy(restart: Restart) -> Policy {
    Policy { restart, shutdown: Shutdown::Infinity, backoff: None }
}

// ---- the comparison ------------------------------------------------------------------------------------------------------------

fn restart() -> impl proptest::strategy::Strategy<Value = Restart> {
    prop_oneof![Just(Restart::Permanent), Just(Restart::Transient), Just(Restart::Temporary)]
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..8, any::<bool>()).prop_map(|(n, abnormal)| Step::Crash(n, abnormal)),
        1 => (1u32..4).prop_map(Step::Fail),
        2 => restart().prop_map(Step::Add),
        2 => (0usize..8).prop_map(Step::Terminate),
        2 => (0usize..8).prop_map(Step::Again),
        1 => (0usize..8).prop_map(Step::Delete),
        4 => (0u64..4_000).prop_map(Step::Wait),
        1 => Just(Step::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_otp_does(
        strategy in prop_oneof![
            Just(Strategy::OneForOne),
            Just(Strategy::OneForAll),
            Just(Strategy::RestForOne),
            Just(Strategy::Dynamic)
        ],
        first in prop::collection::vec(restart(), 0..5),
        intensity in 0u32..5,
        fail in prop_oneof![9 => Just(0u32), 1 => Just(1u32)],
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let limit = Some((intensity, Duration::from_millis(PERIOD_MS)));
        let mut real = Real {
            core: Supervisor::new(strategy, limit, 1),
            running: BTreeMap::new(),
            now: 0,
            fail: 0,
            added: 0,
            asked: 0,
            trace: vec![],
            over: false,
        };
        let mut model = Model {
            strategy,
            intensity: intensity as usize,
            children: vec![],
            restarts: vec![],
            now: 0,
            fail: 0,
            added: 0,
            trace: vec![],
            over: false,
        };
        for (i, restart) in first.iter().enumerate() {
            let id = format!("c{i}");
            prop_assert!(real.core.add(id.as_str().into(), policy(*restart), id.clone()));
            model.children.push(ModelChild { id, restart: *restart, running: false });
        }
        // The first start may fail too, at a place that depends on how many children there are.
        if fail > 0 && !first.is_empty() {
            (real.fail, model.fail) = (fail, fail);
        }
        real.feed(Event::Boot);
        model.boot();
        for step in &steps {
            prop_assert_eq!(&real.trace, &model.trace);
            prop_assert_eq!(real.over, model.over);
            if real.over {
                break;
            }
            prop_assert_eq!(real.list(), model.list(), "before {:?}", step);
            real.step(step);
            model.step(step);
        }
        prop_assert_eq!(&real.trace, &model.trace);
    }
}
