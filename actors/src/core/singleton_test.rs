//! Random histories of candidates and one lease: lost, repeated, late and reordered messages, stops that take too long, late timers, crashes.
//! At most one child runs, at every moment; and when the faults end, one does.

use super::singleton::{Action, Answer, Event, Limits, Singleton};
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

const TTL_MS: u64 = 3_000;
const STOP_MS: u64 = 400;
const MARGIN_MS: u64 = 200;
/// The faults end then, and the history a while later.
const FAULTS_MS: u64 = 30_000;
const END_MS: u64 = FAULTS_MS + 5 * TTL_MS;

fn limits() -> Limits {
    let ms = Duration::from_millis;
    Limits { stop: ms(STOP_MS), margin: ms(MARGIN_MS), retry: ms(300), answer: ms(700) }
}

/// What may go wrong, each in thousandths or milliseconds.
#[derive(Clone, Copy, Debug)]
struct Faults {
    lost: u64,
    repeated: u64,
    delay_max_ms: u64,
    crash: u64,
    stand_down: u64,
    /// How long a child that was killed, and a timer, take at most. Together they are to stay below the margin.
    kill_max_ms: u64,
    late_max_ms: u64,
    stop_max_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ask {
    Acquire,
    Renew(u64),
    Release(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// A request reaches the lease.
    Asked {
        node: usize,
        life: u32,
        request: u64,
        ask: Ask,
    },
    /// Its answer reaches the candidate: a token, or no.
    Answered {
        node: usize,
        life: u32,
        request: u64,
        token: Option<u64>,
    },
    /// Only the last that was set counts.
    Timer {
        node: usize,
        life: u32,
        timer: u64,
    },
    ChildEnds {
        node: usize,
        life: u32,
        child: u64,
    },
    Chaos {
        node: usize,
    },
    Reboot {
        node: usize,
    },
}

struct Node {
    core: Singleton,
    /// A candidate that crashed and came back has another.
    life: u32,
    up: bool,
    /// Its clock shows this much more.
    skew_ms: u64,
    child: Option<u64>,
    timer: u64,
}

/// The lease itself, as a store would keep it.
#[derive(Default)]
struct Table {
    holder: Option<(usize, u64)>,
    until_ms: u64,
    last_token: u64,
}

struct World {
    now_ms: u64,
    draws: u64,
    faults: Faults,
    queue: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    next: u64,
    nodes: Vec<Node>,
    table: Table,
    children: u64,
    starts: u64,
    kills: u64,
}

impl World {
    fn new(seed: u64, nodes: usize, faults: Faults) -> Self {
        let mut world = World {
            now_ms: 0,
            draws: seed,
            faults,
            queue: BinaryHeap::new(),
            next: 0,
            nodes: Vec::new(),
            table: Table::default(),
            children: 0,
            starts: 0,
            kills: 0,
        };
        for node in 0..nodes {
            let skew_ms = world.below(1_000_000);
            world.nodes.push(Node {
                core: Singleton::new(limits()),
                life: 0,
                up: true,
                skew_ms,
                child: None,
                timer: 0,
            });
            let at = world.below(FAULTS_MS);
            world.at(at, Happens::Chaos { node });
        }
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.draws = self.draws.wrapping_add(1);
        crate::schedule::mix(self.draws).checked_rem(bound).unwrap_or(0)
    }

    fn chance(&mut self, thousandths: u64) -> bool {
        self.faulty() && self.below(1_000) < thousandths
    }

    fn faulty(&self) -> bool {
        self.now_ms < FAULTS_MS
    }

    fn at(&mut self, after_ms: u64, what: Happens) {
        self.queue.push(Reverse((self.now_ms + after_ms, self.next, what)));
        self.next += 1;
    }

    /// A message, with all that may happen to it.
    fn send(&mut self, what: Happens) {
        let copies = if self.chance(self.faults.lost) {
            0
        } else if self.chance(self.faults.repeated) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = if self.faulty() { self.below(self.faults.delay_max_ms + 1) } else { 5 };
            self.at(delay, what);
        }
    }

    fn feed(&mut self, node: usize, event: Event) {
        let now = Duration::from_millis(self.now_ms + self.nodes[node].skew_ms);
        let life = self.nodes[node].life;
        for action in self.nodes[node].core.on_event(event, now) {
            match action {
                Action::Acquire { request } => self.send(Happens::Asked { node, life, request, ask: Ask::Acquire }),
                Action::Renew { request, token } => {
                    self.send(Happens::Asked { node, life, request, ask: Ask::Renew(token) });
                }
                Action::Release { token } => {
                    self.send(Happens::Asked { node, life, request: 0, ask: Ask::Release(token) });
                }
                Action::Start { .. } => {
                    assert!(self.nodes[node].child.is_none(), "a second child on one node");
                    self.children += 1;
                    self.starts += 1;
                    self.nodes[node].child = Some(self.children);
                    let ends_itself = self.chance(200);
                    if ends_itself {
                        let after = self.below(TTL_MS);
                        self.at(after, Happens::ChildEnds { node, life, child: self.children });
                    }
                }
                Action::Stop => self.child_ends(node, self.faults.stop_max_ms),
                Action::Kill => {
                    self.kills += 1;
                    self.child_ends(node, self.faults.kill_max_ms);
                }
            }
        }
        if let Some(at) = self.nodes[node].core.wake_at(now) {
            let late = self.below(self.faults.late_max_ms + 1);
            let after = u64::try_from((at - now).as_millis()).expect("soon") + late;
            self.nodes[node].timer += 1;
            let timer = self.nodes[node].timer;
            self.at(after, Happens::Timer { node, life, timer });
        }
    }

    fn child_ends(&mut self, node: usize, within_ms: u64) {
        let (life, after) = (self.nodes[node].life, self.below(within_ms + 1));
        if let Some(child) = self.nodes[node].child {
            self.at(after, Happens::ChildEnds { node, life, child });
        }
    }

    fn answer(&mut self, node: usize, ask: Ask) -> Option<u64> {
        let free = self.table.until_ms <= self.now_ms;
        let table = &mut self.table;
        match ask {
            Ask::Acquire if free || table.holder.is_none_or(|(holder, _)| holder == node) => {
                table.last_token += 1;
                table.holder = Some((node, table.last_token));
            }
            Ask::Renew(token) if table.holder == Some((node, token)) => {}
            Ask::Release(token) => {
                if table.holder == Some((node, token)) {
                    table.holder = None;
                }
                return None;
            }
            _ => return None,
        }
        table.until_ms = self.now_ms + TTL_MS;
        table.holder.map(|(_, token)| token)
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::Asked { node, life, request, ask } => {
                let token = self.answer(node, ask);
                if !matches!(ask, Ask::Release(_)) {
                    self.send(Happens::Answered { node, life, request, token });
                }
            }
            Happens::Answered { node, life, request, token } if self.lives(node, life) => {
                let ttl = Duration::from_millis(TTL_MS);
                let answer = token.map_or(Answer::Refused { retry: None }, |token| Answer::Granted { token, ttl });
                self.feed(node, Event::Answer { request, answer });
            }
            Happens::Timer { node, life, timer } if self.lives(node, life) && timer == self.nodes[node].timer => {
                self.feed(node, Event::Timer);
            }
            Happens::ChildEnds { node, life, child }
                if self.lives(node, life) && self.nodes[node].child == Some(child) =>
            {
                self.nodes[node].child = None;
                self.feed(node, Event::ChildExited);
            }
            Happens::Chaos { node } if self.faulty() => {
                if self.nodes[node].up && self.chance(self.faults.crash) {
                    // The process dies, and what runs in it at the same moment.
                    let after = self.below(2 * TTL_MS);
                    let dead = &mut self.nodes[node];
                    (dead.up, dead.child, dead.life) = (false, None, dead.life + 1);
                    self.at(after, Happens::Reboot { node });
                } else if self.nodes[node].up && self.chance(self.faults.stand_down) {
                    let time = self.below(TTL_MS);
                    self.feed(node, Event::StandDown(Duration::from_millis(time)));
                }
                let next = self.below(TTL_MS);
                self.at(next, Happens::Chaos { node });
            }
            Happens::Reboot { node } => {
                self.nodes[node].core = Singleton::new(limits());
                self.nodes[node].up = true;
                self.feed(node, Event::Boot);
            }
            _ => {}
        }
    }

    fn lives(&self, node: usize, life: u32) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    /// How many run at once at most, until the end.
    fn run(&mut self) -> usize {
        for node in 0..self.nodes.len() {
            self.feed(node, Event::Boot);
        }
        let mut most = 0;
        while let Some(Reverse((at_ms, _, what))) = self.queue.pop().filter(|Reverse((at, ..))| *at <= END_MS) {
            self.now_ms = at_ms;
            self.happens(what);
            most = most.max(self.running());
        }
        most
    }

    fn running(&self) -> usize {
        self.nodes.iter().filter(|node| node.child.is_some()).count()
    }
}

fn faults() -> impl Strategy<Value = Faults> {
    let kill = 0..MARGIN_MS;
    (0..600u64, 0..300u64, 0..2 * TTL_MS, 0..300u64, 0..300u64, kill, 0..4 * STOP_MS).prop_map(
        |(lost, repeated, delay_max_ms, crash, stand_down, kill_max_ms, stop_max_ms)| Faults {
            lost,
            repeated,
            delay_max_ms,
            crash,
            stand_down,
            kill_max_ms,
            late_max_ms: MARGIN_MS - 1 - kill_max_ms,
            stop_max_ms,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn at_most_one_runs_at_every_moment_and_one_does_when_the_faults_are_over(
        seed in any::<u64>(),
        nodes in 1usize..6,
        faults in faults(),
    ) {
        let mut world = World::new(seed, nodes, faults);
        prop_assert!(world.run() <= 1, "two ran at once");
        prop_assert_eq!(world.running(), 1, "nobody runs");
    }
}

/// A history in which everything goes wrong often.
const ROUGH: Faults = Faults {
    lost: 300,
    repeated: 200,
    delay_max_ms: 1_500,
    crash: 100,
    stand_down: 200,
    kill_max_ms: 99,
    late_max_ms: 100,
    stop_max_ms: 1_600,
};

#[test]
fn the_histories_see_many_starts_and_kills() {
    let (mut starts, mut kills) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed << 32, 3, ROUGH);
        assert!(world.run() <= 1);
        (starts, kills) = (starts + world.starts, kills + world.kills);
    }
    assert!(starts > 400 && kills > 50, "{starts} starts, {kills} kills");
}

#[test]
fn a_kill_that_takes_longer_than_its_margin_is_seen_as_two_that_run() {
    // So the check can fail.
    let slow = Faults { kill_max_ms: 4 * TTL_MS, stop_max_ms: 8 * TTL_MS, ..ROUGH };
    let most = (0..200).map(|seed| World::new(seed << 32, 3, slow).run()).max();
    assert!(most > Some(1));
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn granted(core: &mut Singleton, request: u64, now: u64) -> Vec<Action> {
    let answer = Answer::Granted { token: 7, ttl: ms(TTL_MS) };
    core.on_event(Event::Answer { request, answer }, ms(now))
}

/// Boots at 0, and is granted the lease at 50.
fn running() -> Singleton {
    let mut core = Singleton::new(limits());
    assert_eq!(core.on_event(Event::Boot, ms(0)), [Action::Acquire { request: 0 }]);
    assert_eq!(granted(&mut core, 0, 50), [Action::Start { token: 7 }]);
    core
}

#[test]
fn the_lease_counts_from_the_moment_of_asking_and_the_child_is_stopped_and_killed_before_it_ends() {
    let mut core = running();
    assert_eq!(core.kill_at(), Some(ms(TTL_MS - MARGIN_MS)));
    assert_eq!(core.on_event(Event::Timer, ms(1_000)), [Action::Renew { request: 1, token: 7 }]);
    // No answer comes: asked again and again.
    assert_eq!(core.on_event(Event::Timer, ms(1_700)), [Action::Renew { request: 2, token: 7 }]);
    assert_eq!(core.on_event(Event::Timer, ms(2_399)), []);
    assert_eq!(core.on_event(Event::Timer, ms(2_400)), [Action::Stop, Action::Renew { request: 3, token: 7 }]);
    assert_eq!(core.on_event(Event::Timer, ms(2_799)), []);
    assert_eq!(core.on_event(Event::Timer, ms(2_800)), [Action::Kill]);
    assert_eq!(core.on_event(Event::ChildExited, ms(2_900)), []);
    assert!(core.on_event(Event::Timer, ms(3_000)).contains(&Action::Acquire { request: 4 }));
}

#[test]
fn a_renewal_in_time_keeps_the_child_and_one_that_comes_while_it_stops_starts_it_again() {
    let mut core = running();
    assert_eq!(core.on_event(Event::Timer, ms(1_000)), [Action::Renew { request: 1, token: 7 }]);
    assert_eq!(granted(&mut core, 1, 1_600), []);
    assert_eq!(core.kill_at(), Some(ms(4_000 - MARGIN_MS)));
    assert_eq!(core.on_event(Event::Timer, ms(3_400)), [Action::Stop, Action::Renew { request: 2, token: 7 }]);
    assert_eq!(granted(&mut core, 2, 3_500), []);
    assert_eq!(core.on_event(Event::ChildExited, ms(3_600)), [Action::Start { token: 7 }]);
}

#[test]
fn a_refused_renewal_stops_the_child_and_a_lost_lease_kills_it() {
    let mut core = running();
    core.on_event(Event::Timer, ms(1_000));
    let refused = Event::Answer { request: 1, answer: Answer::Refused { retry: None } };
    assert_eq!(core.on_event(refused, ms(1_100)), [Action::Stop]);
    assert_eq!(core.on_event(Event::Timer, ms(1_500)), [Action::Kill]);
    let mut core = running();
    assert_eq!(core.on_event(Event::Lost { token: 6 }, ms(100)), []);
    assert_eq!(core.on_event(Event::Lost { token: 7 }, ms(100)), [Action::Kill]);
    assert_eq!(core.on_event(Event::ChildExited, ms(101)), []);
    assert_eq!(core.on_event(Event::Timer, ms(401)), [Action::Acquire { request: 1 }]);
}

#[test]
fn who_stands_down_stops_the_child_gives_the_lease_back_and_keeps_away() {
    let mut core = running();
    assert_eq!(core.on_event(Event::StandDown(ms(10_000)), ms(100)), [Action::Stop]);
    assert_eq!(core.on_event(Event::ChildExited, ms(200)), [Action::Release { token: 7 }]);
    assert!(core.idle());
    assert_eq!(core.on_event(Event::Timer, ms(10_099)), []);
    assert_eq!(core.on_event(Event::Timer, ms(10_100)), [Action::Acquire { request: 1 }]);
}

#[test]
fn an_answer_that_came_too_late_to_stop_in_time_starts_nothing() {
    let mut core = Singleton::new(Limits { answer: ms(10_000), ..limits() });
    core.on_event(Event::Boot, ms(0));
    let actions = granted(&mut core, 0, TTL_MS - STOP_MS - MARGIN_MS);
    assert_eq!(actions, [Action::Renew { request: 1, token: 7 }]);
}

#[test]
fn a_stop_that_begins_late_ends_no_later() {
    let mut core = running();
    core.on_event(Event::Timer, ms(1_000));
    let late = core.on_event(Event::Timer, ms(2_600));
    assert_eq!(late[0], Action::Stop);
    assert_eq!(core.kill_at(), Some(ms(TTL_MS - MARGIN_MS)));
    assert!(!core.on_event(Event::Timer, ms(2_799)).contains(&Action::Kill));
    assert!(core.on_event(Event::Timer, ms(2_800)).contains(&Action::Kill));
    // Who stands down has time to stop, but not until the end of the lease.
    let mut core = running();
    core.on_event(Event::StandDown(ms(10_000)), ms(100));
    assert_eq!(core.on_event(Event::Timer, ms(499)), []);
    assert_eq!(core.on_event(Event::Timer, ms(500)), [Action::Kill]);
}

#[test]
fn times_without_end_are_as_good_as_never() {
    let ever = Duration::MAX;
    let mut core = running();
    assert_eq!(core.on_event(Event::StandDown(ever), ms(100)), [Action::Stop]);
    assert_eq!(core.on_event(Event::ChildExited, ms(200)), [Action::Release { token: 7 }]);
    assert_eq!(core.on_event(Event::Timer, ms(1 << 40)), []);
    let mut core = Singleton::new(Limits { stop: ever, margin: ever, retry: ever, answer: ever });
    core.on_event(Event::Boot, ms(1));
    let refused = Event::Answer { request: 0, answer: Answer::Refused { retry: Some(ever) } };
    assert_eq!(core.on_event(refused, ms(2)), []);
    assert_eq!(core.wake_at(ms(3)), Some(ever));
    let mut core = Singleton::new(Limits { retry: ever, answer: ever, ..limits() });
    core.on_event(Event::Boot, ms(1));
    let answer = Answer::Granted { token: 7, ttl: ever };
    assert_eq!(core.on_event(Event::Answer { request: 0, answer }, ms(2)), [Action::Start { token: 7 }]);
    assert_eq!(core.on_event(Event::ChildExited, ms(3)), []);
    assert_eq!(core.kill_at(), None);
}
