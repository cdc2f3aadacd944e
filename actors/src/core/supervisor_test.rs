//! The core against its own invariants: whatever happens, in whatever order.

use super::child::Spec;
use super::supervisor::*;
use crate::error::ChildError;
use crate::exit::Exit;
use crate::spec::{AutoShutdown, Policy, Restart, Shutdown, Strategy};
use proptest::prelude::*;
use std::collections::BTreeMap;
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
    timers: Vec<(Duration, Timer)>,
    exit: Option<Exit>,
}

impl World {
    fn new(strategy: Strategy, restarts: &[Restart], intensity: u32) -> Self {
        let mut core = Supervisor::new(strategy, AutoShutdown::Never, Some((intensity, PERIOD)), 7);
        for (i, restart) in restarts.iter().enumerate() {
            assert_eq!(core.add(child(&format!("c{i}"), *restart)), Ok(()));
        }
        let mut world =
            World { core, strategy, now: Duration::ZERO, living: BTreeMap::new(), timers: vec![], exit: None };
        world.feed(Event::Boot);
        world
    }

    fn feed(&mut self, event: Event<Data>) {
        for action in self.core.on_event(event, self.now) {
            assert!(self.exit.is_none(), "nothing follows the exit: {action:?}");
            match action {
                Action::Start { key, inc, .. } => {
                    if self.strategy != Strategy::Dynamic {
                        let stopping = self.living.range(key..).any(|(_, (_, _, asked))| *asked);
                        assert!(!stopping, "nothing starts while one behind it stops");
                    }
                    assert!(self.living.insert(key, (inc, false, false)).is_none(), "one incarnation at a time");
                }
                Action::Stop { key } => {
                    if matches!(self.strategy, Strategy::OneForAll | Strategy::RestForOne) {
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
                Action::Reply { .. }
                | Action::Ready
                | Action::Restarting { .. }
                | Action::Idle { .. }
                | Action::Forget { .. } => {}
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
        restarts in restarts(),
        intensity in 0u32..6,
        steps in prop::collection::vec((any::<u8>(), 0usize..8), 0..80),
    ) {
        let mut world = World::new(strategy, &restarts, intensity);
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

    /// A stop always ends it, with everything below, whatever it was doing.
    #[test]
    fn a_stop_always_ends_it(
        strategy in strategy(),
        restarts in restarts(),
        kill in any::<bool>(),
        steps in prop::collection::vec((any::<u8>(), 0usize..8), 0..40),
    ) {
        let mut world = World::new(strategy, &restarts, 5);
        for (what, which) in steps {
            if world.exit.is_some() {
                return Ok(());
            }
            world.step(what, which);
        }
        if world.exit.is_none() {
            world.feed(if kill { Event::Kill } else { Event::Stop(Exit::Shutdown) });
            world.settle();
        }
        prop_assert!(world.exit.is_some());
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
