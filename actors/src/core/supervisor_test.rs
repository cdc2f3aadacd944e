//! The core against its own invariants: whatever happens, in whatever order.

use super::child::Spec;
use super::supervisor::*;
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::{AutoShutdown, Policy, Restart, Shutdown, Strategy};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq)]
struct Data(Arc<str>, Policy);

impl Spec for Data {
    fn id(&self) -> &Arc<str> {
        &self.0
    }
    fn policy(&self) -> &Policy {
        &self.1
    }
}

fn child(id: &str, restart: Restart) -> Data {
    Data(id.into(), Policy { restart, ..Policy::new(Shutdown::Timeout(Duration::from_millis(100))) })
}

/// A world that does what the core says, and checks that it may be said.
struct World {
    core: Supervisor<Data>,
    strategy: Strategy,
    now: Duration,
    /// Living incarnations, with whether they are up and whether they were asked to stop.
    living: BTreeMap<Key, (Inc, bool, bool)>,
    /// Those of them that were terminated by a command.
    by_hand: BTreeSet<Key>,
    timers: Vec<(Duration, Timer)>,
    /// Commands that were given, and how often each was answered.
    answers: Vec<u32>,
    exit: Option<Exit>,
}

impl World {
    fn new(strategy: Strategy, auto_shutdown: AutoShutdown, restarts: &[Restart], intensity: u32) -> Self {
        let mut core = Supervisor::new(strategy, auto_shutdown, Some((intensity, PERIOD)), 7);
        for (i, restart) in restarts.iter().enumerate() {
            assert_eq!(core.add(significant(auto_shutdown, child(&format!("c{i}"), *restart))), Ok(()));
        }
        let mut world = World {
            core,
            strategy,
            now: Duration::ZERO,
            living: BTreeMap::new(),
            by_hand: BTreeSet::new(),
            timers: vec![],
            answers: vec![],
            exit: None,
        };
        world.feed(Event::Boot);
        world
    }

    fn feed(&mut self, event: Event<Data>) {
        let by_hand = matches!(event, Event::TerminateChild { .. });
        for action in self.core.on_event(event, self.now) {
            assert!(self.exit.is_none(), "nothing follows the exit: {action:?}");
            match action {
                Action::Start { key, inc, .. } => {
                    if self.strategy != Strategy::Dynamic {
                        let stopping =
                            self.living.range(key..).any(|(k, (_, _, asked))| *asked && !self.by_hand.contains(k));
                        assert!(!stopping, "nothing starts while one behind it stops");
                    }
                    assert!(self.living.insert(key, (inc, false, false)).is_none(), "one incarnation at a time");
                    self.by_hand.remove(&key);
                }
                Action::Stop { key } => {
                    if by_hand {
                        self.by_hand.insert(key);
                    }
                    if !by_hand && matches!(self.strategy, Strategy::OneForAll | Strategy::RestForOne) {
                        assert_eq!(self.living.range(key + 1..).count(), 0, "the last started is stopped first");
                    }
                    self.living.get_mut(&key).expect("alive").2 = true;
                }
                Action::Kill { key } => self.living.get_mut(&key).expect("alive").2 = true,
                Action::Timer { timer, after } => self.timers.push((self.now + after, timer)),
                Action::Exit(exit) => {
                    assert!(self.living.is_empty(), "no child outlives its supervisor");
                    self.exit = Some(exit);
                }
                Action::Reply { asker, .. } => self.answers[asker as usize] += 1,
                Action::Ready | Action::Restarting { .. } | Action::Idle { .. } | Action::Forget { .. } => {}
            }
        }
    }

    /// One step, chosen by two numbers.
    fn step(&mut self, what: u8, which: usize) {
        self.now += Duration::from_millis(u64::from(what) * 3);
        let keys: Vec<Key> = self.living.keys().copied().collect();
        let chosen = (!keys.is_empty()).then(|| keys[which % keys.len()]);
        match (what % 8, chosen) {
            (0..=2, Some(key)) => {
                let (inc, up, asked) = self.living[&key];
                if !up && !asked {
                    self.living.get_mut(&key).expect("alive").1 = true;
                    self.feed(Event::Started { key, inc });
                } else if asked {
                    self.living.remove(&key);
                    self.feed(Event::Exited { key, inc, exit: Exit::Shutdown });
                }
            }
            (3 | 4, Some(key)) => {
                let (inc, ..) = self.living.remove(&key).expect("alive");
                let exit = if what & 8 == 0 { Exit::Error("crash".into()) } else { Exit::Normal };
                self.feed(Event::Exited { key, inc, exit });
            }
            (5, Some(key)) => self.feed(Event::Exited { key, inc: 0, exit: Exit::Killed }), // of an earlier incarnation
            (6, _) => {
                self.timers.sort();
                if !self.timers.is_empty() {
                    let (due, timer) = self.timers.remove(0);
                    self.now = self.now.max(due);
                    self.feed(Event::Timer(timer));
                }
            }
            _ => {}
        }
    }

    /// One command, chosen by two numbers, when the supervisor takes one.
    fn command(&mut self, what: u8, which: usize) {
        if self.core.busy() || self.exit.is_some() {
            return;
        }
        let asker = self.answers.len() as u64;
        self.answers.push(0);
        let id: Arc<str> = format!("c{which}").into();
        let restart = [Restart::Permanent, Restart::Transient, Restart::Temporary][what as usize / 4 % 3];
        self.feed(match what % 4 {
            0 => Event::StartChild { data: child(&id, restart), asker },
            1 => Event::TerminateChild { id, asker },
            2 => Event::RestartChild { id, asker },
            _ => Event::DeleteChild { id, asker },
        });
    }

    /// Lets everything go its way until nothing moves.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.exit.is_some() {
                return;
            }
            let open = self.living.iter().find(|(_, (_, up, asked))| !up || *asked).map(|(k, l)| (*k, *l));
            match open {
                Some((key, (inc, _, true))) => {
                    self.living.remove(&key);
                    self.feed(Event::Exited { key, inc, exit: Exit::Shutdown });
                }
                Some((key, (inc, ..))) => {
                    self.living.get_mut(&key).expect("alive").1 = true;
                    self.feed(Event::Started { key, inc });
                }
                None if self.timers.is_empty() => return,
                None => {
                    self.timers.sort();
                    let (due, timer) = self.timers.remove(0);
                    self.now = self.now.max(due);
                    self.feed(Event::Timer(timer));
                }
            }
        }
        panic!("it never settles");
    }
}

/// Those that may be are significant.
fn significant(auto_shutdown: AutoShutdown, mut child: Data) -> Data {
    child.1.significant = auto_shutdown != AutoShutdown::Never && child.1.restart != Restart::Permanent;
    child
}

fn auto_shutdown() -> impl proptest::strategy::Strategy<Value = AutoShutdown> {
    prop_oneof![Just(AutoShutdown::Never), Just(AutoShutdown::AnySignificant), Just(AutoShutdown::AllSignificant)]
}

fn strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![
        Just(Strategy::OneForOne),
        Just(Strategy::OneForAll),
        Just(Strategy::RestForOne),
        Just(Strategy::Dynamic)
    ]
}

fn restarts() -> impl proptest::strategy::Strategy<Value = Vec<Restart>> {
    let one = prop_oneof![Just(Restart::Permanent), Just(Restart::Transient), Just(Restart::Temporary)];
    prop::collection::vec(one, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// After any history the supervisor settles: either it has ended and no child lives, or every permanent child is up.
    #[test]
    fn permanent_children_run_or_the_supervisor_has_ended(
        strategy in strategy(),
        auto_shutdown in auto_shutdown(),
        restarts in restarts(),
        intensity in 0u32..6,
        steps in prop::collection::vec((any::<u8>(), 0usize..8), 0..80),
    ) {
        let mut world = World::new(strategy, auto_shutdown, &restarts, intensity);
        for (what, which) in steps {
            if world.exit.is_some() {
                break;
            }
            world.step(what, which);
        }
        world.settle();
        if world.exit.is_none() {
            for (key, child) in world.core.children() {
                let up = world.living.get(&key).is_some_and(|l| l.1);
                prop_assert!(up || restarts[key as usize] != Restart::Permanent, "{} is {:?}", child.data.id(), child.state);
            }
        }
    }

    /// A stop always ends it, with everything below, whatever it was doing; and whoever asked for something has been answered once.
    #[test]
    fn a_stop_always_ends_it_and_everybody_is_answered(
        strategy in strategy(),
        auto_shutdown in auto_shutdown(),
        restarts in restarts(),
        kill in any::<bool>(),
        steps in prop::collection::vec((any::<u8>(), 0usize..8, prop::bool::weighted(0.3)), 0..60),
    ) {
        let mut world = World::new(strategy, auto_shutdown, &restarts, 5);
        for (what, which, command) in steps {
            if world.exit.is_some() {
                break;
            }
            if command {
                world.command(what, which);
            } else {
                world.step(what, which);
            }
        }
        if world.exit.is_none() {
            world.feed(if kill { Event::Kill } else { Event::Stop(Exit::Shutdown) });
            world.settle();
        }
        prop_assert!(world.exit.is_some());
        prop_assert!(world.answers.iter().all(|times| *times == 1), "{:?}", world.answers);
    }
}

/// Feeds one event and returns what is to be done, without who and when.
fn act(core: &mut Supervisor<Data>, event: Event<Data>) -> Vec<Action<Data>> {
    core.on_event(event, Duration::ZERO)
}

/// A supervisor whose first children are all up; child `i` has key `i` and incarnation `i + 1`.
fn up(strategy: Strategy, restarts: &[Restart]) -> Supervisor<Data> {
    let mut core = Supervisor::new(strategy, AutoShutdown::Never, Some((3, PERIOD)), 1);
    for (i, restart) in restarts.iter().enumerate() {
        assert_eq!(core.add(child(&format!("c{i}"), *restart)), Ok(()));
    }
    act(&mut core, Event::Boot);
    for key in 0..restarts.len() as u64 {
        act(&mut core, Event::Started { key, inc: key + 1 });
    }
    core
}

#[test]
fn dynamic_children_are_asked_to_stop_all_at_once() {
    let mut core = up(Strategy::Dynamic, &[Restart::Permanent; 3]);
    let asked = act(&mut core, Event::Stop(Exit::Shutdown));
    let asked: Vec<_> = asked.iter().filter(|a| matches!(a, Action::Stop { .. })).collect();
    assert_eq!(asked.len(), 3);
    for key in 0..2 {
        assert_eq!(
            act(&mut core, Event::Exited { key, inc: key + 1, exit: Exit::Shutdown }).last(),
            Some(&Action::Idle { key })
        );
    }
    let last = act(&mut core, Event::Exited { key: 2, inc: 3, exit: Exit::Shutdown });
    assert_eq!(last.last(), Some(&Action::Exit(Exit::Shutdown)));
}

#[test]
fn others_are_asked_to_stop_one_after_the_other() {
    let mut core = up(Strategy::OneForOne, &[Restart::Permanent; 2]);
    assert_eq!(act(&mut core, Event::Stop(Exit::Shutdown))[0], Action::Stop { key: 1 });
    assert!(act(&mut core, Event::Exited { key: 1, inc: 2, exit: Exit::Shutdown }).contains(&Action::Stop { key: 0 }));
}

#[test]
fn a_child_that_has_had_its_time_is_killed_and_a_late_timer_is_ignored() {
    let mut core = up(Strategy::OneForOne, &[Restart::Permanent]);
    act(&mut core, Event::TerminateChild { id: "c0".into(), asker: 1 });
    let timeout = Timer::StopTimeout { key: 0, inc: 1 };
    assert_eq!(act(&mut core, Event::Timer(timeout)), [Action::Kill { key: 0 }]);
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Killed });
    act(&mut core, Event::RestartChild { id: "c0".into(), asker: 2 });
    act(&mut core, Event::Started { key: 0, inc: 2 });
    assert_eq!(act(&mut core, Event::Timer(timeout)), []);
}

#[test]
fn a_stop_comes_between_the_tries_of_a_failing_restart() {
    let mut core = up(Strategy::OneForOne, &[Restart::Permanent]);
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Killed });
    let failed = act(&mut core, Event::Exited { key: 0, inc: 2, exit: Exit::Error("no".into()) });
    let retry = Timer::Restart { key: 0, inc: 2 };
    assert_eq!(failed.last(), Some(&Action::Timer { timer: retry, after: Duration::ZERO }));
    let stopped = act(&mut core, Event::Stop(Exit::Shutdown));
    assert_eq!(stopped.last(), Some(&Action::Exit(Exit::Shutdown)));
    assert_eq!(act(&mut core, Event::Timer(retry)), [], "it is over");
}

#[test]
fn two_that_wait_for_the_same_termination_are_both_answered() {
    let mut core = up(Strategy::OneForOne, &[Restart::Temporary]);
    act(&mut core, Event::TerminateChild { id: "c0".into(), asker: 1 });
    act(&mut core, Event::TerminateChild { id: "c0".into(), asker: 2 });
    let out = act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Shutdown });
    let replies = out.iter().filter(|a| matches!(a, Action::Reply { result: Ok(0), .. })).count();
    assert_eq!(replies, 2);
    assert!(matches!(out.last(), Some(Action::Forget { key: 0, .. })));
}

#[test]
fn a_start_that_is_terminated_meanwhile_answers_both() {
    let mut core = up(Strategy::Dynamic, &[]);
    let start = Event::StartChild { data: child("x", Restart::Permanent), asker: 1 };
    assert_eq!(act(&mut core, start), [Action::Start { key: 0, inc: 1, restart: false }]);
    let out = act(&mut core, Event::TerminateChild { id: "x".into(), asker: 2 });
    assert_eq!(out[0], Action::Reply { asker: 1, result: Err(ChildError::Stopped) });
    let out = act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Shutdown });
    assert_eq!(out[0], Action::Reply { asker: 2, result: Ok(0) });
    assert_eq!(core.children().count(), 0);
}

#[test]
fn a_killed_supervisor_asks_none_of_its_children() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne, Strategy::Dynamic] {
        let mut core = up(strategy, &[Restart::Permanent; 3]);
        let expected: Vec<_> = (0..3).map(|key| Action::Kill { key }).collect();
        assert_eq!(act(&mut core, Event::Kill), expected);
    }
}

#[test]
fn a_kill_overtakes_a_stop() {
    let mut core = up(Strategy::OneForOne, &[Restart::Permanent; 2]);
    act(&mut core, Event::Stop(Exit::Shutdown));
    assert_eq!(act(&mut core, Event::Kill), [Action::Kill { key: 0 }, Action::Kill { key: 1 }]);
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Killed });
    let last = act(&mut core, Event::Exited { key: 1, inc: 2, exit: Exit::Killed });
    assert_eq!(last.last(), Some(&Action::Exit(Exit::Killed)));
}

#[test]
fn dynamic_children_have_their_time_to_stop_side_by_side_and_each_its_own() {
    let mut core = Supervisor::new(Strategy::Dynamic, AutoShutdown::Never, None, 1);
    for ms in [100, 200] {
        let shutdown = Shutdown::Timeout(Duration::from_millis(ms));
        core.add(Data(format!("c{ms}").into(), Policy::new(shutdown))).expect("added");
    }
    act(&mut core, Event::Boot);
    (0..2).for_each(|key| drop(act(&mut core, Event::Started { key, inc: key + 1 })));
    let timeout = |key: u64| Timer::StopTimeout { key, inc: key + 1 };
    let timer = |key, ms| Action::Timer { timer: timeout(key), after: Duration::from_millis(ms) };
    let asked = act(&mut core, Event::Stop(Exit::Shutdown));
    assert_eq!(asked, [Action::Stop { key: 0 }, timer(0, 100), Action::Stop { key: 1 }, timer(1, 200)]);
    assert_eq!(act(&mut core, Event::Timer(timeout(0))), [Action::Kill { key: 0 }]);
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Killed });
    assert_eq!(act(&mut core, Event::Timer(timeout(1))), [Action::Kill { key: 1 }]);
}

#[test]
fn a_retry_that_comes_due_while_another_group_restarts_is_made_after_that() {
    let mut core = up(Strategy::RestForOne, &[Restart::Permanent]);
    let crash = || Exit::Error("crash".into());
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: crash() });
    act(&mut core, Event::Exited { key: 0, inc: 2, exit: crash() });
    let retry = Timer::Restart { key: 0, inc: 2 };
    // Before it is tried again, another is added behind it, and crashes.
    act(&mut core, Event::StartChild { data: child("new", Restart::Permanent), asker: 1 });
    act(&mut core, Event::Started { key: 1, inc: 3 });
    let restarted = act(&mut core, Event::Exited { key: 1, inc: 3, exit: crash() });
    assert_eq!(restarted.last(), Some(&Action::Start { key: 1, inc: 4, restart: true }));
    assert_eq!(act(&mut core, Event::Timer(retry)), [], "not now");
    let stopped = act(&mut core, Event::Started { key: 1, inc: 4 });
    assert!(stopped.contains(&Action::Stop { key: 1 }), "now, and the group with it: {stopped:?}");
    let started = act(&mut core, Event::Exited { key: 1, inc: 4, exit: Exit::Shutdown });
    assert_eq!(started.last(), Some(&Action::Start { key: 0, inc: 5, restart: true }));
}

#[test]
fn a_retry_of_a_child_that_was_started_with_a_group_meanwhile_is_not_made() {
    let mut core = up(Strategy::RestForOne, &[Restart::Permanent; 2]);
    let crash = || Exit::Error("crash".into());
    act(&mut core, Event::Exited { key: 1, inc: 2, exit: crash() });
    act(&mut core, Event::Exited { key: 1, inc: 3, exit: crash() });
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: crash() });
    act(&mut core, Event::Started { key: 0, inc: 4 });
    act(&mut core, Event::Started { key: 1, inc: 5 });
    assert_eq!(act(&mut core, Event::Timer(Timer::Restart { key: 1, inc: 3 })), []);
}

#[test]
fn a_retry_is_counted_when_it_is_made() {
    let mut core = Supervisor::new(Strategy::OneForOne, AutoShutdown::Never, Some((1, PERIOD)), 1);
    core.add(child("c0", Restart::Permanent)).expect("added");
    act(&mut core, Event::Boot);
    act(&mut core, Event::Started { key: 0, inc: 1 });
    act(&mut core, Event::Exited { key: 0, inc: 1, exit: Exit::Killed });
    act(&mut core, Event::Exited { key: 0, inc: 2, exit: Exit::Error("no".into()) });
    // The next would be one too many; it is not made, since the child was terminated before it.
    act(&mut core, Event::TerminateChild { id: "c0".into(), asker: 1 });
    assert_eq!(act(&mut core, Event::Timer(Timer::Restart { key: 0, inc: 2 })), []);
    assert_eq!(core.children().count(), 1, "it goes on");
}

#[test]
fn the_jitter_of_a_backoff_is_decided_by_the_seed_alone() {
    let delays = |seed| {
        let mut core = Supervisor::new(Strategy::OneForOne, AutoShutdown::Never, None, seed);
        let mut one = child("c0", Restart::Permanent);
        one.1.backoff = Some(Arc::new(crate::spec::Backoff { jitter: 1.0, ..Default::default() }));
        core.add(one).expect("added");
        act(&mut core, Event::Boot);
        let mut delays = vec![];
        for inc in 1..20 {
            act(&mut core, Event::Started { key: 0, inc });
            for action in act(&mut core, Event::Exited { key: 0, inc, exit: Exit::Killed }) {
                if let Action::Timer { timer, after } = action {
                    delays.push(after);
                    act(&mut core, Event::Timer(timer));
                }
            }
        }
        delays
    };
    assert_eq!(delays(1).len(), 18, "all but the first wait");
    assert_eq!(delays(1), delays(1));
    assert_ne!(delays(1), delays(2));
}
