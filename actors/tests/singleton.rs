//! A singleton runs on one of several systems, on none while its lease is unsure, and never on two; in simulated time, with one lease for all.

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use phalanx_actors::testkit::*;
use phalanx_actors::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(3);
const STOP: Duration = Duration::from_millis(400);
const MARGIN: Duration = Duration::from_millis(100);

/// The lease of all candidates, as a store would keep it, and the network to it.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    holder: Option<(&'static str, u64)>,
    until: Option<Instant>,
    last_token: u64,
    /// Who does not reach the table.
    cut: BTreeSet<&'static str>,
    /// How long a request and an answer take each.
    delay: Duration,
    /// The token that was taken away last.
    revoked: watch::Sender<u64>,
}

struct Candidate(&'static str, Table);

impl Rows {
    fn ask(&mut self, node: &'static str, token: Option<u64>) -> Result<Grant, LeaseError> {
        let free = self.until.is_none_or(|until| until <= Instant::now());
        match token {
            Some(token) if self.holder == Some((node, token)) => {}
            None if free || self.holder.is_none_or(|(holder, _)| holder == node) => {
                self.last_token += 1;
                self.holder = Some((node, self.last_token));
            }
            _ => return Err(LeaseError::Taken { retry: None }),
        }
        self.until = Some(Instant::now() + TTL);
        Ok(Grant { token: token.unwrap_or(self.last_token), ttl: TTL })
    }
}

impl Candidate {
    fn ask(&self, token: Option<u64>) -> BoxFuture<'static, Result<Grant, LeaseError>> {
        let (node, table) = (self.0, self.1.clone());
        async move {
            let cut = |table: &Table| table.0.lock().cut.contains(node);
            let delay = table.0.lock().delay;
            tokio::time::sleep(delay).await;
            if cut(&table) {
                std::future::pending::<()>().await;
            }
            let answer = table.0.lock().ask(node, token);
            tokio::time::sleep(delay).await;
            if cut(&table) {
                std::future::pending::<()>().await;
            }
            answer
        }
        .boxed()
    }
}

impl Lease for Candidate {
    fn acquire(&self) -> BoxFuture<'static, Result<Grant, LeaseError>> {
        self.ask(None)
    }
    fn renew(&self, token: u64) -> BoxFuture<'static, Result<Grant, LeaseError>> {
        self.ask(Some(token))
    }
    fn release(&self, token: u64) {
        let mut rows = self.1.0.lock();
        if rows.holder == Some((self.0, token)) && !rows.cut.contains(self.0) {
            rows.holder = None;
        }
    }
    fn lost(&self, token: u64) -> BoxFuture<'static, ()> {
        let table = self.1.clone();
        async move {
            let mut revoked = table.0.lock().revoked.subscribe();
            let _ = revoked.wait_for(|revoked| *revoked == token).await;
        }
        .boxed()
    }
}

/// Who runs now, and whether there were ever two.
#[derive(Clone, Default)]
struct Stage(Arc<Mutex<OnStage>>);

#[derive(Default)]
struct OnStage {
    now: Vec<(&'static str, u64)>,
    most: usize,
    entries: u64,
}

impl Stage {
    /// Who runs; there must never have been two.
    #[track_caller]
    fn now(&self) -> Option<(&'static str, u64)> {
        let stage = self.0.lock();
        assert!(stage.most <= 1, "two ran at once");
        stage.now.first().copied()
    }

    fn node(&self) -> Option<&'static str> {
        self.now().map(|(node, _)| node)
    }
}

/// The singleton itself: on stage from its making to its drop, whatever ends it.
struct Solo(&'static str, u64, Stage);

impl Solo {
    fn new(node: &'static str, token: u64, stage: &Stage) -> Self {
        let mut on = stage.0.lock();
        on.now.push((node, token));
        on.most = on.most.max(on.now.len());
        on.entries += 1;
        drop(on);
        Solo(node, token, stage.clone())
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        self.2.0.lock().now.retain(|who| *who != (self.0, self.1));
    }
}

struct Crash;
impl Message for Crash {
    type Reply = ();
}
impl Actor for Solo {}
impl Handler<Crash> for Solo {
    fn handle(&mut self, _: Crash, _: &mut Ctx<Self>) -> Reply<()> {
        panic!("asked to")
    }
}

const SETTINGS: SingletonSettings = SingletonSettings {
    stop: STOP,
    margin: MARGIN,
    retry: Duration::from_millis(500),
    answer: Duration::from_millis(700),
};

/// A node that may run the singleton.
async fn node(sim: &Sim, name: &'static str, table: &Table, stage: &Stage) -> System {
    let system = sim.node(name);
    let stage = stage.clone();
    let singleton = Singleton::child("singleton", SETTINGS, Candidate(name, table.clone()), move |token| {
        let stage = stage.clone();
        let solo = ChildSpec::actor("solo", move || Solo::new(name, token, &stage));
        SupervisorSpec::new("held", Strategy::OneForOne).child(solo)
    });
    system.start(SupervisorSpec::new("top", Strategy::OneForOne).unlimited().child(singleton)).await.expect("started");
    system
}

fn candidate(system: &System) -> Named<Singleton> {
    system.named("top/singleton")
}

#[test]
fn one_of_two_runs_it_and_the_other_takes_over_when_its_node_stops_or_dies() {
    explore(0..20, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let a = node(&sim, "a", &table, &stage).await;
        sim.settle().await;
        assert_eq!(stage.now(), Some(("a", 1)));
        let b = node(&sim, "b", &table, &stage).await;
        sim.advance(Duration::from_secs(60)).await;
        assert_eq!(stage.now(), Some(("a", 1)), "who has it keeps it");

        // In order: the lease is given back, and the next try of the other gets it.
        let stopped = sim.elapsed();
        a.shutdown().await;
        assert_eq!(stage.now(), None);
        sim.advance(SETTINGS.retry).await;
        assert_eq!(stage.node(), Some("b"));
        assert!(sim.elapsed() <= stopped + SETTINGS.retry);

        // Not in order: the lease has to run out.
        let _c = node(&sim, "c", &table, &stage).await;
        sim.advance(Duration::from_secs(10)).await;
        b.kill();
        sim.settle().await;
        assert_eq!(stage.now(), None);
        sim.advance(TTL + SETTINGS.retry).await;
        assert_eq!(stage.node(), Some("c"));
    });
}

#[test]
fn a_holder_that_is_cut_off_has_stopped_before_another_starts_and_waits_when_it_is_back() {
    explore(0..20, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let a = node(&sim, "a", &table, &stage).await;
        sim.settle().await;
        let _b = node(&sim, "b", &table, &stage).await;
        sim.advance(Duration::from_secs(20)).await;
        table.0.lock().cut.insert("a");
        sim.advance(TTL - STOP - MARGIN).await;
        assert_eq!(stage.now(), None, "it stops while the lease is still its own");
        sim.advance(STOP + MARGIN + SETTINGS.retry).await;
        assert_eq!(stage.node(), Some("b"));
        table.0.lock().cut.clear();
        sim.advance(Duration::from_secs(20)).await;
        assert_eq!(stage.node(), Some("b"));
        let status = candidate(&a).ask(SingletonStatus).await.expect("runs");
        assert_eq!(status, SingletonState { token: None, runs: false });
    });
}

#[test]
fn a_slow_lease_is_kept_as_long_as_its_answers_come_in_time() {
    explore(0..20, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        table.0.lock().delay = Duration::from_millis(300);
        let _a = node(&sim, "a", &table, &stage).await;
        sim.advance(Duration::from_secs(120)).await;
        assert_eq!((stage.now(), stage.0.lock().entries), (Some(("a", 1)), 1));
    });
}

#[test]
fn a_lease_that_is_taken_away_kills_it_at_once() {
    explore(0..20, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let a = node(&sim, "a", &table, &stage).await;
        sim.settle().await;
        let held = a.whereis("top/singleton/held").expect("runs");
        {
            let mut rows = table.0.lock();
            rows.revoked.send_replace(1);
            rows.holder = Some(("operator", 0));
        }
        sim.settle().await;
        assert_eq!(stage.now(), None);
        assert_eq!(held.exit(), Some(Exit::Killed));
    });
}

#[test]
fn who_stands_down_answers_when_nothing_runs_there_and_another_takes_over() {
    explore(0..20, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let a = node(&sim, "a", &table, &stage).await;
        sim.settle().await;
        let b = node(&sim, "b", &table, &stage).await;
        candidate(&a).ask(StandDown(Duration::from_secs(30))).await.expect("answered");
        assert!(stage.node() != Some("a"));
        sim.advance(SETTINGS.retry).await;
        assert_eq!(stage.node(), Some("b"));
        candidate(&b).ask(StandDown(Duration::from_secs(60))).await.expect("answered");
        sim.advance(Duration::from_secs(20)).await;
        assert_eq!(stage.now(), None, "both stand down");
        sim.advance(Duration::from_secs(10)).await;
        assert_eq!(stage.node(), Some("a"));
    });
}

#[test]
fn who_stands_down_for_ever_is_a_candidate_no_more_and_lives() {
    explore(0..4, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let a = node(&sim, "a", &table, &stage).await;
        sim.settle().await;
        let pid = candidate(&a).ask(SingletonStatus).await.map(|_| a.whereis("top/singleton")).expect("answered");
        candidate(&a).ask(StandDown(Duration::MAX)).await.expect("answered");
        sim.advance(Duration::from_secs(36_000)).await;
        assert_eq!((stage.now(), a.whereis("top/singleton")), (None, pid));
    });
}

#[test]
fn a_crash_of_the_singleton_is_its_own_supervisors_matter_and_one_that_gives_up_its_candidates() {
    explore(0..20, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let a = node(&sim, "a", &table, &stage).await;
        sim.settle().await;
        let solo = a.named::<Solo>("top/singleton/held/solo");
        let _ = solo.ask(Crash).await;
        sim.settle().await;
        assert_eq!((stage.now(), stage.0.lock().entries), (Some(("a", 1)), 2), "restarted under the same lease");
        let before = candidate(&a).pid();
        let _ = solo.ask(Crash).await;
        sim.settle().await;
        assert_ne!(candidate(&a).pid(), before, "the candidate gave up with it, and is back");
        sim.advance(TTL + SETTINGS.retry).await;
        assert_eq!(stage.node(), Some("a"));
    });
}

#[test]
fn a_lease_too_short_to_stop_in_is_an_error_that_says_so() {
    struct Short;
    impl Lease for Short {
        fn acquire(&self) -> BoxFuture<'static, Result<Grant, LeaseError>> {
            async { Ok(Grant { token: 1, ttl: STOP }) }.boxed()
        }
        fn renew(&self, _: u64) -> BoxFuture<'static, Result<Grant, LeaseError>> {
            self.acquire()
        }
        fn release(&self, _: u64) {}
    }
    simulate(0, |sim| async move {
        let child = Singleton::child("singleton", SETTINGS, Short, |_| unreachable!("must not start"));
        let child = child.restart(Restart::Temporary);
        sim.system().start(SupervisorSpec::new("top", Strategy::OneForOne).child(child)).await.expect("started");
        let Some(pid) = sim.system().whereis("top/singleton") else { return };
        let exit = expect_exit(&pid).await.to_string();
        assert_eq!(exit, "`top/singleton`: a lease of 400ms leaves no time beside 500ms for stopping");
    });
}

#[test]
fn whatever_is_cut_slowed_killed_or_moved_at_most_one_runs_and_one_does_afterwards() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    explore(0..60, |sim| async move {
        let (table, stage) = (Table::default(), Stage::default());
        let mut nodes = Vec::new();
        for name in NAMES {
            nodes.push(node(&sim, name, &table, &stage).await);
        }
        for _ in 0..40 {
            let at = sim.random(3) as usize;
            let name = NAMES[at];
            match sim.random(7) {
                0 => drop(table.0.lock().cut.insert(name)),
                1 | 2 => drop(table.0.lock().cut.remove(name)),
                3 => table.0.lock().delay = Duration::from_millis(sim.random(400)),
                4 => {
                    // The machine dies, and comes back.
                    nodes[at].kill();
                    sim.settle().await;
                    nodes[at] = node(&sim, name, &table, &stage).await;
                }
                5 => drop(candidate(&nodes[at]).tell(StandDown(Duration::from_millis(sim.random(4_000))))),
                _ => drop(nodes[at].named::<Solo>("top/singleton/held/solo").tell(Crash)),
            }
            sim.advance(Duration::from_millis(sim.random(3_000))).await;
            stage.now();
        }
        table.0.lock().cut.clear();
        table.0.lock().delay = Duration::ZERO;
        sim.advance(Duration::from_secs(30)).await;
        assert!(stage.now().is_some(), "nobody runs it");
    });
}
