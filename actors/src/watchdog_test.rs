//! The watchdog by hand: the tests show it the time, so nobody is stuck who should not be, however loaded the machine is.

use super::*;
use crate::actor::{Actor, Down, Handler, Message, Reply};
use crate::ctx::Ctx;
use crate::error::AskError;
use crate::refs::{Named, Ref};
use crate::spec::{ChildSpec, Placement, Strategy, SupervisorSpec};
use crate::system::System;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc as blocking;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

// ---- what it decides -----------------------------------------------------------------------------------------------------------

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_same_turn_at_all_looks_within_the_limit_is_stuck_and_told_once() {
    let mut watch = Watch::new(s(8));
    assert_eq!(watch.every(), s(1));
    let mut told = Vec::new();
    for now in 0..100 {
        told.extend(watch.look(s(now), [2, 7, 7 + 2 * now]).into_iter().map(|overdue| (now, overdue)));
    }
    assert_eq!(told, [(8, Overdue { arbiter: 1, turn: 7, busy: s(8) })]);
}

#[test]
fn a_thread_that_is_idle_or_moves_on_is_never_stuck() {
    let mut watch = Watch::new(s(8));
    for now in 0..100 {
        assert_eq!(watch.look(s(now), [4, 1 + 2 * (now / 8)]), []);
    }
}

#[test]
fn a_pause_of_the_whole_process_condemns_nobody() {
    let mut watch = Watch::new(s(8));
    assert_eq!(watch.look(s(0), [1]), []);
    // An hour between two looks is the process's own, and counts as two seconds.
    assert_eq!(watch.look(s(3600), [1]), []);
    assert_eq!(watch.look(s(3605), [1]), []);
    assert_eq!(watch.look(s(3606), [1]), []);
    assert_eq!(watch.look(s(3607), [1]), []);
    assert_eq!(watch.look(s(3608), [1]), []);
    assert_eq!(watch.look(s(3609), [1]), [Overdue { arbiter: 0, turn: 1, busy: s(8) }]);
}

#[test]
fn a_fresh_thread_in_the_place_of_another_starts_over() {
    let mut watch = Watch::new(s(8));
    for now in 0..8 {
        assert_eq!(watch.look(s(now), [1]), []);
    }
    watch.replaced(0);
    for now in 8..16 {
        assert_eq!(watch.look(s(now), [1]), [], "{now}");
    }
    assert_eq!(watch.look(s(16), [1]).len(), 1);
}

// ---- what it does --------------------------------------------------------------------------------------------------------------

/// Counts its incarnations, and what was run of them.
#[derive(Default)]
struct Tally {
    started: AtomicU64,
    stopping: AtomicU64,
    handled: AtomicU64,
    dropped: AtomicU64,
}

struct Worker {
    tally: Arc<Tally>,
    told: mpsc::UnboundedSender<Exit>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tally.dropped.fetch_add(1, SeqCst);
    }
}

impl Actor for Worker {
    fn started(&mut self, _: &mut Ctx<Self>) -> Result<(), Exit> {
        self.tally.started.fetch_add(1, SeqCst);
        Ok(())
    }
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.tally.stopping.fetch_add(1, SeqCst);
    }
    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        let _ = self.told.send(down.reason);
    }
}

/// Which thread it runs on.
struct Where;
impl Message for Where {
    type Reply = std::thread::ThreadId;
}
impl Handler<Where> for Worker {
    fn handle(&mut self, _: Where, _: &mut Ctx<Self>) -> Reply<std::thread::ThreadId> {
        self.tally.handled.fetch_add(1, SeqCst);
        std::thread::current().id().into()
    }
}

struct Monitor(Pid);
impl Message for Monitor {
    type Reply = ();
}
impl Handler<Monitor> for Worker {
    fn handle(&mut self, monitor: Monitor, ctx: &mut Ctx<Self>) -> Reply<()> {
        ctx.monitor(&monitor.0);
        ().into()
    }
}

/// Does not return before the test lets it.
struct Block {
    entered: blocking::Sender<()>,
    until: blocking::Receiver<()>,
    then_panic: bool,
}
impl Message for Block {
    type Reply = ();
}
impl Handler<Block> for Worker {
    fn handle(&mut self, block: Block, _: &mut Ctx<Self>) -> Reply<()> {
        let _ = block.entered.send(());
        let _ = block.until.recv();
        assert!(!block.then_panic, "asked to");
        ().into()
    }
}

struct House {
    system: System,
    told: mpsc::UnboundedReceiver<Exit>,
    tally: Arc<Tally>,
    tell: mpsc::UnboundedSender<Exit>,
    now: Duration,
}

impl House {
    fn new(arbiters: usize) -> Self {
        House::of(System::builder("t").arbiters(arbiters).watchdog(LIMIT).watched_by_hand().build().expect("system"))
    }

    fn of(system: System) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        House { system, told, tally: Arc::default(), tell, now: Duration::ZERO }
    }

    fn child(&self, id: &str, arbiter: usize) -> ChildSpec {
        let (tally, told) = (self.tally.clone(), self.tell.clone());
        ChildSpec::actor(id, move || Worker { tally: tally.clone(), told: told.clone() })
            .placement(Placement::Arbiter(arbiter))
    }

    fn worker(&self, path: &str) -> Named<Worker> {
        self.system.named(path)
    }

    fn live(&self, path: &str) -> Ref<Worker> {
        self.system.lookup(path).expect("lives")
    }

    /// Waits until an incarnation other than `old` is up there, and says on which thread.
    async fn again(&self, path: &str, old: &Pid) -> std::thread::ThreadId {
        let again = async {
            loop {
                if self.system.whereis(path).is_some_and(|pid| pid != *old)
                    && let Ok(thread) = self.worker(path).ask(Where).await
                {
                    return thread;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, again).await.expect("it is started again")
    }

    /// Blocks an actor in its handler. It returns when the sender is dropped.
    fn block(&self, path: &str, then_panic: bool) -> blocking::Sender<()> {
        let (entered, inside) = blocking::channel();
        let (free, until) = blocking::channel();
        self.live(path).tell(Block { entered, until, then_panic }).expect("told");
        inside.recv().expect("it is in its handler");
        free
    }

    /// Time passes, and the watchdog looks as often as it wants to.
    fn look(&mut self) -> Vec<Condemned> {
        let mut condemned = Vec::new();
        for _ in 0..=LOOKS {
            condemned.extend(look(&self.system.inner, self.now));
            self.now += LIMIT / LOOKS;
        }
        condemned
    }

    async fn replace(&mut self) {
        let condemned = self.look();
        assert_eq!(condemned.len(), 1, "one thread is stuck");
        for one in condemned {
            tokio::time::timeout(LONG, one.carry_out()).await.expect("ends");
        }
    }

    fn counts(&self) -> [u64; 3] {
        [&self.tally.started, &self.tally.stopping, &self.tally.dropped].map(|count| count.load(SeqCst))
    }
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("it comes true");
}

fn top() -> SupervisorSpec {
    SupervisorSpec::new("s", Strategy::OneForOne).intensity(10, LONG)
}

#[tokio::test]
async fn a_system_of_one_thread_goes_on_when_an_actor_blocks_it() {
    let mut house = House::new(1);
    let spec = top().child(house.child("slow", 0)).child(house.child("beside", 0));
    let supervisor = house.system.start(spec).await.expect("started");
    let (slow, beside) = (house.live("s/slow").pid(), house.live("s/beside").pid());
    let mut events = house.system.subscribe();
    let free = house.block("s/slow", false);
    // Asked before it was found, and never handled.
    let waiting = tokio::spawn({
        let beside = house.live("s/beside");
        async move { beside.ask(Where).await }
    });
    until(|| house.system.tree().iter().any(|row| row.path == "s/beside" && row.queue_len == 1)).await;
    let current = |system: &System, path: &str| {
        system.tree().into_iter().find(|row| row.path == path).and_then(|row| row.current)
    };
    let seen = current(&house.system, "s/slow").expect("in a handler");
    assert!(seen.doing.ends_with("::Block"), "{seen:?}");
    assert_eq!(current(&house.system, "s/beside"), None);

    house.replace().await;
    let exit = slow.exit().expect("ended");
    let Exit::ArbiterStuck { path, doing } = &exit else { panic!("{exit:?}") };
    assert_eq!(path, "s/slow");
    assert!(doing.ends_with("::Block"), "{doing}");
    assert_eq!((beside.exit(), supervisor.exited().await), (Some(exit.clone()), exit.clone()));
    assert_eq!(waiting.await.expect("joined"), Err(AskError::Exited(exit.clone())), "an asker learns it");
    assert_eq!(supervisor.count_children().await, Err(crate::ChildError::SupervisorDown));
    // All runs again, elsewhere, while the handler is still blocked.
    let there = house.worker("s/slow").ask(Where).await.expect("answered");
    assert_eq!(house.worker("s/beside").ask(Where).await, Ok(there));
    assert_eq!(house.counts(), [4, 0, 0]);
    let rows = house.system.tree();
    let row = |path: &str| rows.iter().find(|row| row.path == path).expect("in the tree");
    assert!(row("s/slow").stuck.as_ref().is_some_and(|stuck| stuck.doing.ends_with("::Block")));
    assert_eq!((row("s").restarts, row("s").last_exit.clone()), (1, Some(exit.clone())));
    assert_eq!(house.system.arbiters().len(), 1);
    assert!(house.system.arbiters()[0].alive);

    // The handler returns at last: nothing of the old thread runs any more, and its states are dropped.
    drop(free);
    until(|| house.counts()[2] == 2).await;
    assert_eq!(house.counts(), [4, 0, 2]);
    until(|| house.system.tree().iter().all(|row| row.stuck.is_none())).await;
    house.system.shutdown().await;
    assert_eq!(house.counts(), [4, 2, 4]);

    // Each incarnation has ended once, and the stuck one was named before it did.
    let mut exits = Vec::new();
    let mut stuck = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event {
            TreeEvent::Exited { pid, .. } => exits.push(pid),
            TreeEvent::Stuck { pid, doing, .. } => {
                assert!(exits.is_empty() && doing.ends_with("::Block"));
                stuck.push(pid);
            }
            _ => {}
        }
    }
    assert_eq!(stuck, [slow]);
    let all = exits.len();
    exits.sort_by_key(Pid::id);
    exits.dedup();
    assert_eq!((all, exits.len()), (6, 6));
}

#[tokio::test]
async fn a_supervisor_elsewhere_starts_what_was_on_a_stuck_thread_on_another_and_monitors_fire_once() {
    let mut house = House::new(2);
    let spec = top().child(house.child("slow", 1)).child(house.child("beside", 1)).child(house.child("other", 0));
    let supervisor = house.system.start(spec).await.expect("started");
    let other = house.live("s/other");
    let pids = [house.live("s/slow").pid(), house.live("s/beside").pid()];
    let before = house.worker("s/beside").ask(Where).await.expect("answered");
    for pid in &pids {
        other.ask(Monitor(pid.clone())).await.expect("monitored");
    }
    let free = house.block("s/slow", true);
    house.replace().await;
    for pid in &pids {
        assert!(matches!(house.told.recv().await, Some(Exit::ArbiterStuck { .. })));
        assert_ne!(house.again(pid.path(), pid).await, before);
    }
    assert!(supervisor.pid().is_alive() && other.pid().is_alive(), "who was not on the thread lives on");
    // Its panic, after all, is nobody's exit any more.
    drop(free);
    until(|| house.counts()[2] == 2).await;
    assert!(house.told.try_recv().is_err());
    assert!(pids.iter().all(|pid| matches!(pid.exit(), Some(Exit::ArbiterStuck { .. }))));
    assert_eq!(house.counts()[1], 0);
    house.system.shutdown().await;
}

#[tokio::test]
async fn what_a_lost_supervisor_has_on_other_threads_ends_before_it_is_started_again() {
    let mut house = House::new(2);
    let (near, far) = (house.child("near", 1), house.child("far", 0));
    let sub = move || SupervisorSpec::new("sub", Strategy::OneForOne).child(near.clone()).child(far.clone());
    let sub = ChildSpec::supervisor("sub", sub).placement(Placement::Arbiter(1));
    house.system.start(top().child(house.child("first", 0)).child(sub)).await.expect("started");
    let far = house.live("s/sub/far").pid();
    let near = house.live("s/sub/near").pid();
    let free = house.block("s/sub/near", false);
    house.replace().await;
    assert_eq!(far.exit(), Some(Exit::Killed), "it was ended before its supervisor was reported");
    house.again("s/sub/near", &near).await;
    house.again("s/sub/far", &far).await;
    let rows = house.system.tree();
    let restarts = |path: &str| rows.iter().find(|row| row.path == path).expect("in the tree").restarts;
    assert_eq!(restarts("s/sub"), 1, "one restart was enough: nothing was in its way");
    drop(free);
    house.system.shutdown().await;
    until(|| house.counts()[2] == house.counts()[0]).await;
}

#[tokio::test]
async fn two_threads_that_are_stuck_at_once_and_lie_below_each_other_are_both_replaced() {
    let mut house = House::new(3);
    let (a, b) = (house.child("a", 1), house.child("b", 0));
    let inner = move || SupervisorSpec::new("inner", Strategy::OneForOne).child(a.clone());
    let inner = ChildSpec::supervisor("inner", inner).placement(Placement::Arbiter(0));
    let outer = move || SupervisorSpec::new("outer", Strategy::OneForOne).child(inner.clone()).child(b.clone());
    let outer = ChildSpec::supervisor("outer", outer).placement(Placement::Arbiter(1));
    let spec = SupervisorSpec::new("t", Strategy::OneForOne).intensity(10, LONG);
    house.system.start(spec.child(outer)).await.expect("started");
    let (a, b) = (house.live("t/outer/inner/a").pid(), house.live("t/outer/b").pid());
    let free = [house.block("t/outer/inner/a", false), house.block("t/outer/b", false)];
    let condemned = house.look();
    assert_eq!(condemned.len(), 2);
    let both = futures::future::join_all(condemned.into_iter().map(Condemned::carry_out));
    tokio::time::timeout(LONG, both).await.expect("neither waits for the other for ever");
    house.again(a.path(), &a).await;
    house.again(b.path(), &b).await;
    drop(free);
    house.system.shutdown().await;
    until(|| house.counts()[2] == house.counts()[0]).await;
}

#[tokio::test]
async fn a_factory_that_blocks_is_found_and_a_start_that_waits_for_it_fails() {
    let mut house = House::new(2);
    let supervisor = house.system.start(top()).await.expect("started");
    let (entered, inside) = blocking::channel();
    let (free, until_free) = blocking::channel::<()>();
    let until_free = Arc::new(Mutex::new(until_free));
    let first = Arc::new(AtomicU64::new(0));
    let spec = SupervisorSpec::new("blocked", Strategy::OneForOne).intensity(10, LONG);
    let make = move || {
        if first.fetch_add(1, SeqCst) == 0 {
            let _ = entered.send(());
            let _ = until_free.lock().recv();
        }
        spec.clone()
    };
    let child = ChildSpec::supervisor("blocked", make).placement(Placement::Arbiter(1));
    let start = tokio::spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.start_child(child).await }
    });
    tokio::task::spawn_blocking(move || inside.recv()).await.expect("joined").expect("it blocks");
    house.replace().await;
    let failed = start.await.expect("joined");
    let Err(crate::ChildError::StartFailed(Exit::ArbiterStuck { path, doing })) = failed else { panic!("{failed:?}") };
    assert_eq!((path.as_str(), doing.as_str()), ("s/blocked", "its start"));
    drop(free);
    house.system.shutdown().await;
}

#[tokio::test]
async fn a_supervisor_at_the_top_that_is_lost_too_often_is_given_up() {
    let mut house = House::new(1);
    let spec = top().intensity(1, LONG).child(house.child("slow", 0));
    house.system.start(spec).await.expect("started");
    let mut blocked = vec![house.block("s/slow", false)];
    house.replace().await;
    blocked.push(house.block("s/slow", false));
    house.replace().await;
    assert_eq!(house.system.whereis("s"), None);
    assert_eq!(house.system.tree(), [], "it left nothing behind");
    drop(blocked);
    until(|| house.counts()[2] == 2).await;
    // The system itself is as good as new.
    house.system.start(top().child(house.child("slow", 0))).await.expect("started");
    house.worker("s/slow").ask(Where).await.expect("answered");
    house.system.shutdown().await;
}

#[tokio::test]
async fn a_handler_that_returns_just_when_it_is_found_is_left_alone() {
    let mut house = House::new(1);
    house.system.start(top().child(house.child("slow", 0))).await.expect("started");
    let slow = house.live("s/slow");
    let free = house.block("s/slow", false);
    let arbiter = house.system.inner.arbiters().remove(0);
    let (turn, Some(_)) = arbiter.heartbeat.look() else { panic!("in a turn") };
    drop(free);
    slow.ask(Where).await.expect("it moves on");
    until(|| arbiter.heartbeat.look().0 != turn).await;
    let watchdog = house.system.inner.watchdog.as_ref().expect("watched");
    let late = Overdue { arbiter: 0, turn, busy: LIMIT };
    assert!(condemn(&house.system.inner, watchdog, late, &arbiter).is_none());
    assert!(slow.pid().is_alive() && house.look().is_empty());
    house.system.shutdown().await;
    assert_eq!(house.counts(), [1, 1, 1]);
}

#[tokio::test]
async fn no_more_threads_are_left_behind_than_the_limit() {
    let mut house = House::new(1);
    house.system.start(top().unlimited().child(house.child("slow", 0))).await.expect("started");
    let mut blocked = Vec::new();
    for _ in 0..STUCK_THREADS {
        blocked.push(house.block("s/slow", false));
        house.replace().await;
    }
    let last = house.block("s/slow", false);
    assert!(house.look().is_empty(), "it stays where it is");
    let slow = house.live("s/slow").pid();
    drop(last);
    house.worker("s/slow").ask(Where).await.expect("answered");
    assert!(slow.is_alive());
    drop(blocked);
    house.system.shutdown().await;
    until(|| house.counts()[2] == house.counts()[0]).await;
}

/// With the thread of its own. On a loaded machine an innocent actor may exceed the limit too: it is started again then, so nothing here
/// depends on who is blamed first.
#[tokio::test]
async fn a_watchdog_finds_a_stuck_actor_by_itself() {
    let system = System::builder("t").watchdog(Duration::from_secs(1)).build().expect("system");
    let house = House::of(system);
    while house.system.start(top().unlimited().child(house.child("slow", 0))).await.is_err() {}
    let (slow, _free) = loop {
        let (entered, inside) = blocking::channel();
        let (free, until) = blocking::channel::<()>();
        if let Some(slow) = house.system.lookup::<Worker>("s/slow")
            && slow.tell(Block { entered, until, then_panic: false }).is_ok()
            && inside.recv().is_ok()
        {
            break (slow.pid(), free);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let exit = tokio::time::timeout(LONG, slow.exited()).await.expect("found");
    assert!(matches!(exit, Exit::ArbiterStuck { .. }), "{exit:?}");
    house.again("s/slow", &slow).await;
    house.system.shutdown().await;
}
