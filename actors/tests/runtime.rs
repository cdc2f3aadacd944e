//! What is promised around the actors: time, tasks, panics in odd places, events, the end of a system, subtrees.

mod support;

use phalanx_actors::*;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use support::*;
use tokio::time::Instant;

/// Runs a test in simulated time with several orders of turns, each by its seed.
fn simulated<F: Future<Output = ()> + 'static>(test: impl Fn(System) -> F) {
    testkit::explore(0..8, |sim| test(sim.system().clone()));
}

/// An actor that runs a piece of code in its own context.
struct Any;
impl Actor for Any {}
type Code = Box<dyn FnOnce(&mut Ctx<Any>) + Send>;
struct Run(Code);
impl Message for Run {
    type Reply = ();
}
impl Handler<Run> for Any {
    fn handle(&mut self, run: Run, ctx: &mut Ctx<Self>) -> Reply<()> {
        (run.0)(ctx);
        ().into()
    }
}

async fn run(any: &Ref<Any>, code: impl FnOnce(&mut Ctx<Any>) + Send + 'static) {
    any.ask(Run(Box::new(code))).await.expect("run");
}

async fn any(system: &System) -> Ref<Any> {
    let child = ChildSpec::actor("any", || Any).restart(Restart::Temporary);
    system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
    system.lookup("s/any").expect("any")
}

fn bump(count: &AtomicU64) {
    count.fetch_add(1, SeqCst);
}

fn counter() -> (Arc<AtomicU64>, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    (count.clone(), count)
}

#[test]
fn an_interval_ticks_exactly_once_a_minute_for_an_hour_of_simulated_time() {
    simulated(|system| async move {
        let any = any(&system).await;
        let (ticks, seen) = counter();
        let began = Instant::now();
        run(&any, move |ctx| {
            ctx.interval(Duration::from_secs(60), move |_, _| {
                ticks.fetch_add(1, SeqCst);
            });
        })
        .await;
        tokio::time::sleep(Duration::from_millis(3_600_500)).await;
        assert_eq!(seen.load(SeqCst), 60);
        assert_eq!(began.elapsed(), Duration::from_millis(3_600_500));
        system.shutdown().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(seen.load(SeqCst), 60, "timers end with their actor");
    });
}

#[test]
fn an_interval_and_a_timer_without_end_never_come() {
    simulated(|system| async move {
        let any = any(&system).await;
        run(&any, |ctx| {
            ctx.interval(Duration::MAX, |_, _| panic!("it came"));
            ctx.send_after(Duration::MAX, Run(Box::new(|_| panic!("it came"))));
        })
        .await;
        tokio::time::sleep(Duration::from_secs(36_000)).await;
        run(&any, |_| {}).await;
        system.shutdown().await;
    });
}

#[test]
fn a_cancelled_timer_task_or_interval_never_reaches_the_actor() {
    simulated(|system| async move {
        let any = any(&system).await;
        let (late, seen) = counter();
        run(&any, move |ctx| {
            let (a, b, c) = (late.clone(), late.clone(), late);
            let tasks = [
                ctx.interval(Duration::from_secs(1), move |_, _| bump(&a)),
                ctx.pipe(std::future::ready(()), move |_, (), _| bump(&b)),
                ctx.send_after(Duration::from_secs(1), Run(Box::new(move |_| bump(&c)))),
            ];
            tasks.iter().for_each(TaskRef::cancel);
        })
        .await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(seen.load(SeqCst), 0);
        system.shutdown().await;
    });
}

#[test]
fn ten_thousand_tasks_of_one_actor_are_polled_when_woken_and_not_with_each_message() {
    simulated(|system| async move {
        let any = any(&system).await;
        let (polls, seen) = counter();
        run(&any, move |ctx| {
            for _ in 0..10_000 {
                let polls = polls.clone();
                ctx.spawn(std::future::poll_fn(move |_| {
                    polls.fetch_add(1, SeqCst);
                    std::task::Poll::<()>::Pending
                }));
            }
        })
        .await;
        for _ in 0..100 {
            run(&any, |_| {}).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(seen.load(SeqCst), 10_000);
        system.shutdown().await;
    });
}

/// Panics when it is dropped.
struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("bomb");
    }
}

/// State, tasks and messages that all panic when they are dropped.
struct Minefield(#[allow(dead_code)] Bomb);
impl Actor for Minefield {
    fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
        for _ in 0..3 {
            let bomb = Bomb;
            ctx.spawn(async move {
                std::future::pending::<()>().await;
                drop(bomb);
            });
        }
        Ok(())
    }
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        panic!("in stopping");
    }
}
struct Mine(#[allow(dead_code)] Bomb);
impl Message for Mine {
    type Reply = ();
}
impl Handler<Mine> for Minefield {
    fn handle(&mut self, mine: Mine, _: &mut Ctx<Self>) -> Reply<()> {
        std::thread::sleep(Duration::from_millis(50));
        std::mem::forget(mine);
        panic!("in the handler");
    }
}

#[tokio::test]
async fn panics_in_every_drop_at_once_neither_abort_the_process_nor_lose_an_asker() {
    let system = system();
    let child = ChildSpec::actor("m", || Minefield(Bomb)).restart(Restart::Temporary);
    let supervisor = system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
    let field = system.lookup::<Minefield>("s/m").expect("m");
    let asks = (0..4).map(|_| field.ask(Mine(Bomb)));
    for answer in futures::future::join_all(asks).await {
        let error = answer.expect_err("dead");
        assert!(
            matches!(&error, AskError::Exited(Exit::Panic { message, .. }) if message == "in the handler"),
            "{error}"
        );
    }
    // A panic in `stopping` is the exit of an actor that was to stop in order.
    supervisor.start_child(ChildSpec::actor("n", || Minefield(Bomb)).restart(Restart::Temporary)).await.expect("up");
    let pid = system.whereis("s/n").expect("n");
    pid.stop(Exit::Shutdown);
    assert!(matches!(pid.exited().await, Exit::Panic { message, .. } if message == "in stopping"));
    system.shutdown().await;
}

#[test]
fn a_panic_in_the_drop_of_one_actor_is_not_laid_to_its_neighbours() {
    simulated(|system| async move {
        struct Owner(#[allow(dead_code)] Bomb);
        impl Actor for Owner {
            fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
                ctx.supervise(SupervisorSpec::new("kids", Strategy::Dynamic));
                Ok(())
            }
        }
        let any = any(&system).await;
        let child = ChildSpec::actor("o", || Owner(Bomb)).restart(Restart::Temporary);
        system.start(SupervisorSpec::new("t", Strategy::OneForOne).child(child)).await.expect("started");
        let owner = system.whereis("t/o").expect("o");
        owner.kill();
        // The state is gone in this owner's turn, and its subtree only later: the neighbour has its turn in between.
        run(&any, |_| {}).await;
        assert_eq!(owner.exited().await, Exit::Killed);
        run(&any, |_| {}).await;
        system.shutdown().await;
    });
}

#[test]
fn a_kill_that_comes_with_the_end_of_a_subtree_waits_for_nothing() {
    simulated(|system| async move {
        let any = any(&system).await;
        let (tx, rx) = tokio::sync::oneshot::channel();
        run(&any, |ctx| drop(tx.send(ctx.supervise(SupervisorSpec::new("kids", Strategy::Dynamic))))).await;
        let kids = rx.await.expect("kids");
        kids.which_children().await.expect("up");
        kids.stop().await;
        any.kill();
        assert_eq!(any.pid().exited().await, Exit::Killed);
        system.shutdown().await;
    });
}

#[tokio::test]
async fn a_panic_in_a_future_a_timer_or_a_factory_is_the_exit_with_its_place() {
    let log = Log::default();
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::Dynamic).unlimited();
    let supervisor = system.start(spec).await.expect("started");
    for (id, what, message) in
        [("f", Do::PanicInFuture, "in a future"), ("t", Do::PanicInTimer, "in a timer"), ("h", Do::Panic, "asked to")]
    {
        let pid = supervisor.start_child(probe(id, &log).restart(Restart::Temporary)).await.expect("up");
        tell(&system, &format!("s/{id}"), what).await;
        let Exit::Panic { message: said, location } = pid.exited().await else { panic!("no panic") };
        assert_eq!(said, message);
        assert!(location.expect("a place").contains("support/mod.rs:"));
    }
    let broken = ChildSpec::actor("b", || -> Any { panic!("no actor") });
    let error = supervisor.start_child(broken).await.expect_err("no start");
    assert!(matches!(&error, ChildError::StartFailed(Exit::Panic { message, .. }) if message == "no actor"), "{error}");
    let broken = ChildSpec::supervisor("b", || -> SupervisorSpec { panic!("no spec") });
    let error = supervisor.start_child(broken).await.expect_err("no start");
    assert!(matches!(&error, ChildError::StartFailed(Exit::Panic { message, .. }) if message == "no spec"), "{error}");
    assert_eq!(supervisor.count_children().await.expect("counted").specs, 0);
    system.shutdown().await;
}

/// Panics in its start, as often as it is told to.
struct Fragile(Arc<AtomicU64>);
impl Actor for Fragile {
    fn started(&mut self, _: &mut Ctx<Self>) -> Result<(), Exit> {
        let left = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "in started");
        Ok(())
    }
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        unreachable!("what a panic has ended is not stopped in order");
    }
}

#[test]
fn a_panic_in_started_is_a_start_that_fails_and_one_in_a_restart_is_tried_again() {
    simulated(|system| async move {
        let (panics, left) = counter();
        let child = ChildSpec::actor("a", move || Fragile(panics.clone()));
        let spec = || SupervisorSpec::new("s", Strategy::OneForOne).intensity(3, Duration::from_secs(60));
        left.store(1, SeqCst);
        let error = system.start(spec().child(child.clone())).await.expect_err("no start");
        let StartError::Failed(Exit::StartFailed { reason, .. }) = &error else { panic!("{error:?}") };
        let Exit::Panic { message, location: Some(at) } = &**reason else { panic!("{reason}") };
        assert!(message == "in started" && at.contains("tests/runtime.rs:"), "{message} {at}");
        assert!(system.tree().is_empty(), "nothing is left");

        let supervisor = system.start(spec().child(child)).await.expect("started");
        left.store(2, SeqCst);
        let first = system.whereis("s/a").expect("lives");
        first.kill();
        let again = reborn(&system, "s/a", &first).await;
        assert_eq!((left.load(SeqCst), supervisor.pid().is_alive()), (0, true), "three restarts of three");
        again.kill();
        assert!(matches!(supervisor.exited().await, Exit::RestartIntensity { .. }));
        system.shutdown().await;
    });
}

#[test]
fn a_panic_in_the_handler_of_what_a_timer_sends_is_the_exit_with_its_place() {
    simulated(|system| async move {
        let any = any(&system).await;
        run(&any, |ctx| {
            let late = ctx.send_after(Duration::from_secs(2), Run(Box::new(|_| unreachable!("it has ended"))));
            ctx.send_after(Duration::from_secs(1), Run(Box::new(|_| panic!("when it was due"))));
            drop(late);
        })
        .await;
        let Exit::Panic { message, location: Some(at) } = any.pid().exited().await else { panic!("no panic") };
        assert!(message == "when it was due" && at.contains("tests/runtime.rs:"), "{message} {at}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        system.shutdown().await;
    });
}

#[tokio::test]
async fn what_is_stopped_before_it_started_runs_neither_started_nor_stopping() {
    let log = Log::default();
    let system = system();
    let supervisor = system.start(SupervisorSpec::new("s", Strategy::Dynamic)).await.expect("started");
    let own = log.clone();
    let child = ChildSpec::actor("a", move || {
        Pid::current().expect("self").stop(Exit::Shutdown);
        Probe { name: "a".into(), log: own.clone(), faults: Faults::default(), deaf: false }
    });
    assert_eq!(supervisor.start_child(child).await, Err(ChildError::StartFailed(Exit::Shutdown)));
    assert_eq!(log.take(), "");
    system.shutdown().await;
}

struct Watcher {
    downs: Arc<AtomicU64>,
}
impl Actor for Watcher {
    fn down(&mut self, _: Down, _: &mut Ctx<Self>) {
        self.downs.fetch_add(1, SeqCst);
    }
}
struct Watch(Pid, bool);
impl Message for Watch {
    type Reply = ();
}
impl Handler<Watch> for Watcher {
    fn handle(&mut self, watch: Watch, ctx: &mut Ctx<Self>) -> Reply<()> {
        let monitor = ctx.monitor(&watch.0);
        // Ends before the monitor is taken back, so that its `down` is on its way.
        watch.0.kill();
        if watch.1 {
            while watch.0.is_alive() {
                std::thread::yield_now();
            }
            ctx.demonitor(&monitor);
        }
        ().into()
    }
}

#[tokio::test]
async fn a_monitor_taken_back_reports_nothing_even_if_it_was_on_its_way() {
    let log = Log::default();
    let system = System::builder("t").arbiters(2).build().expect("system");
    let (downs, seen) = counter();
    let watcher = ChildSpec::actor("w", move || Watcher { downs: downs.clone() }).placement(Placement::Arbiter(0));
    let target = |id: &str| probe(id, &log).restart(Restart::Temporary).placement(Placement::Arbiter(1));
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(watcher).child(target("a")).child(target("b"));
    system.start(spec).await.expect("started");
    let watcher = system.lookup::<Watcher>("s/w").expect("w");
    watcher.ask(Watch(system.whereis("s/a").expect("a"), true)).await.expect("watched");
    let b = system.whereis("s/b").expect("b");
    watcher.ask(Watch(b.clone(), false)).await.expect("watched");
    b.exited().await;
    while seen.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    watcher.ask(Watch(b, false)).await.expect("watched");
    while seen.load(SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    system.shutdown().await;
    assert_eq!(seen.load(SeqCst), 2, "one for each monitor that was not taken back");
}

#[test]
fn subscribers_see_each_start_exit_and_restart_and_who_lags_is_told() {
    simulated(|system| async move {
        let log = Log::default();
        let mut events = system.subscribe();
        let backoff = Backoff { initial: Duration::from_millis(250), jitter: 0.0, ..Backoff::default() };
        let child = probe("a", &log).restart(Restart::Transient).backoff(backoff);
        let supervisor =
            system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
        tell(&system, "s/a", Do::Panic).await;
        // The asker learns of the exit before the supervisor has decided.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let restarting = system.tree().into_iter().find(|i| i.path == "s/a").expect("a");
        assert_eq!(restarting.state, State::Restarting { in_ms: 249 });
        assert!(matches!(restarting.last_exit, Some(Exit::Panic { .. })));
        assert!(supervisor.which_children().await.expect("children")[0].restarting);
        tokio::time::sleep(Duration::from_millis(251)).await;
        assert_eq!(system.tree()[1].restarts, 1);
        tell(&system, "s/a", Do::Stop(Exit::Normal)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut seen = Vec::new();
        while let Ok(event) = events.try_recv() {
            seen.push(match event {
                TreeEvent::Started { path, .. } => format!("+{path}"),
                TreeEvent::Exited { path, exit: Exit::Panic { .. }, .. } => format!("!{path}"),
                TreeEvent::Exited { path, exit, .. } => format!("-{path} {exit}"),
                TreeEvent::Restarting { path, in_ms, restarts } => format!("~{path} {in_ms} {restarts}"),
                TreeEvent::Stopped { path } => format!(".{path}"),
                TreeEvent::Stuck { path, .. } => format!("?{path}"),
            });
        }
        assert_eq!(seen.join(", "), "+s/a, +s, !s/a, ~s/a 250 0, +s/a, -s/a normal, .s/a");
        for _ in 0..TREE_EVENTS {
            supervisor.restart_child("a").await.expect("up");
            supervisor.terminate_child("a").await.expect("down");
        }
        let lagged = events.recv().await.expect_err("too far behind");
        assert!(matches!(lagged, tokio::sync::broadcast::error::RecvError::Lagged(n) if n > 0));
        system.shutdown().await;
    });
}

struct Eager(Arc<AtomicU64>);
impl Actor for Eager {
    fn started(&mut self, _: &mut Ctx<Self>) -> Result<(), Exit> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.0.fetch_add(1_000_000, SeqCst);
    }
}

#[test]
fn a_killed_local_system_runs_nothing_of_its_actors_any_more() {
    simulated(|system| async move {
        let (hooks, seen) = counter();
        let child = |i: u32, hooks: Arc<AtomicU64>| ChildSpec::actor(format!("c{i}"), move || Eager(hooks.clone()));
        let spec = (0..100).fold(SupervisorSpec::new("s", Strategy::OneForAll).unlimited(), |spec, i| {
            spec.child(child(i, hooks.clone()))
        });
        let supervisor = system.start(spec).await.expect("started");
        let pids: Vec<Pid> = system.tree().iter().filter_map(|info| system.whereis(&info.path)).collect();
        assert_eq!((pids.len(), seen.load(SeqCst)), (101, 100));
        system.kill();
        for pid in &pids {
            assert_eq!(pid.exited().await, Exit::Killed);
        }
        assert_eq!(supervisor.which_children().await, Err(ChildError::SupervisorDown));
        assert_eq!(seen.load(SeqCst), 100, "no hook, no restart");
        assert_eq!(system.tree(), []);
    });
}

#[tokio::test]
async fn a_kill_of_a_system_under_a_restart_storm_leaves_nobody_alive() {
    for _ in 0..20 {
        let (starts, seen) = counter();
        let system = System::builder("t").arbiters(2).build().expect("system");
        let spec = (0..50).fold(SupervisorSpec::new("s", Strategy::OneForOne).unlimited(), |spec, i| {
            let starts = starts.clone();
            spec.child(ChildSpec::actor(format!("c{i}"), move || Eager(starts.clone())).placement(Placement::Spread))
        });
        system.start(spec).await.expect("started");
        for i in 0..50 {
            system.named::<Eager>(&format!("s/c{i}")).kill();
        }
        system.kill();
        let after = seen.load(SeqCst);
        assert!(after < 1_000_000, "no `stopping` ran");
        assert!(system.tree().iter().all(|info| info.id.is_none()), "{:?}", system.tree());
        assert_eq!(seen.load(SeqCst), after);
    }
}

#[test]
fn a_panicking_owner_kills_its_subtree_and_a_restarted_one_builds_it_again() {
    simulated(|system| async move {
        let log = Log::default();
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(probe("a", &log));
        system.start(spec).await.expect("started");
        let kids = log.clone();
        let make = Arc::new(move || SupervisorSpec::new("kids", Strategy::OneForOne).child(probe("k", &kids)));
        tell(&system, "s/a", Do::Supervise(make.clone())).await;
        log.wait(2).await;
        let (a, k) = (system.whereis("s/a").expect("a"), system.whereis("s/a/kids/k").expect("k"));
        tell(&system, "s/a", Do::Panic).await;
        assert!(matches!(a.exited().await, Exit::Panic { .. }));
        assert_eq!(k.exit(), Some(Exit::Killed), "gone before its owner's exit is known");
        reborn(&system, "s/a", &a).await;
        tell(&system, "s/a", Do::Supervise(make)).await;
        log.wait(4).await;
        assert_eq!(log.take(), "+a +k +a +k");
        assert_ne!(system.whereis("s/a/kids/k"), Some(k));
        system.shutdown().await;
        assert_eq!(log.take(), "-k -a");
        assert_eq!(system.tree(), []);
    });
}

#[test]
fn a_supervisor_is_found_by_its_path_and_not_taken_for_an_actor() {
    simulated(|system| async move {
        let log = Log::default();
        let pods = ChildSpec::supervisor("pods", || SupervisorSpec::new("", Strategy::Dynamic));
        let spec = SupervisorSpec::new("agent", Strategy::RestForOne).unlimited().child(pods).child(probe("a", &log));
        system.start(spec).await.expect("started");
        let pods = system.supervisor("agent/pods").expect("found");
        pods.start_child(probe("web", &log)).await.expect("up");
        assert!(system.whereis("agent/pods/web").is_some());
        assert!(system.supervisor("agent/a").is_none() && system.supervisor("agent/none").is_none());
        assert!(system.lookup::<Probe>("agent/pods").is_none());
        pods.pid().kill();
        assert_eq!(pods.exited().await, Exit::Killed);
        let again = reborn(&system, "agent/pods", &pods.pid()).await;
        assert_eq!(system.supervisor("agent/pods").expect("found").pid(), again);
        assert_eq!(pods.start_child(probe("web", &log)).await, Err(ChildError::SupervisorDown));
        system.shutdown().await;
    });
}

#[test]
fn a_panic_in_drop_spoils_an_end_in_order() {
    simulated(|system| async move {
        struct Full(#[allow(dead_code)] Bomb);
        impl Actor for Full {}
        let child = ChildSpec::actor("f", || Full(Bomb)).restart(Restart::Temporary);
        system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
        let pid = system.whereis("s/f").expect("f");
        pid.stop(Exit::Normal);
        assert!(matches!(pid.exited().await, Exit::Panic { message, .. } if message == "bomb"));
        system.shutdown().await;
    });
}

#[test]
fn two_subtrees_of_one_name_end_their_owner_with_a_sentence() {
    simulated(|system| async move {
        let any = any(&system).await;
        run(&any, |ctx| {
            ctx.supervise(SupervisorSpec::new("kids", Strategy::Dynamic));
            ctx.supervise(SupervisorSpec::new("kids", Strategy::Dynamic));
        })
        .await;
        assert_eq!(any.pid().exited().await, Exit::Error("`s/any/kids` is already running".into()));
        system.shutdown().await;
    });
}

#[test]
fn two_children_of_one_id_and_a_taken_path_are_refused_with_a_sentence() {
    simulated(|system| async move {
        let log = Log::default();
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(probe("a", &log)).child(probe("a", &log));
        let error = system.start(spec).await.expect_err("refused");
        assert_eq!(error, StartError::Failed(Exit::Error("`s` has two children with the id `a`".into())));
        let spec = SupervisorSpec::new("s", Strategy::Dynamic).child(probe("a/b", &log));
        system.start(spec).await.expect("started");
        let spec = SupervisorSpec::new("s/a", Strategy::Dynamic).child(probe("b", &log));
        let error = system.start(spec).await.expect_err("refused");
        let reason = Box::new(Exit::Error("`s/a/b` is already running".into()));
        assert_eq!(error, StartError::Failed(Exit::StartFailed { child: "b".into(), reason }));
        assert!(system.whereis("s/a/b").is_some(), "whoever was there first stays");
        system.shutdown().await;
    });
}

#[tokio::test]
async fn a_hundred_thousand_dynamic_children_start_end_and_are_forgotten() {
    let (starts, seen) = counter();
    let system = system();
    let supervisor = system.start(SupervisorSpec::new("s", Strategy::Dynamic).unlimited()).await.expect("started");
    let starting = (0..100_000).map(|i| {
        let (supervisor, starts) = (supervisor.clone(), starts.clone());
        let child = ChildSpec::actor(format!("c{i}"), move || Eager(starts.clone())).restart(Restart::Transient);
        async move { supervisor.start_child(child).await.expect("up") }
    });
    let pids = futures::future::join_all(starting).await;
    assert_eq!(seen.load(SeqCst), 100_000);
    assert_eq!(supervisor.count_children().await.expect("counted").active, 100_000);
    for pid in &pids {
        pid.stop(Exit::Normal);
    }
    for pid in &pids {
        assert_eq!(pid.exited().await, Exit::Normal);
    }
    while supervisor.count_children().await.expect("counted").specs > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(system.tree().len(), 1, "what ended for good is forgotten");
    system.shutdown().await;
}

#[tokio::test]
async fn a_system_outlives_none_of_its_handles_and_an_actor_that_holds_one() {
    struct Holder(#[allow(dead_code)] Option<System>, Arc<AtomicBool>);
    impl Actor for Holder {
        fn started(&mut self, ctx: &mut Ctx<Self>) -> Result<(), Exit> {
            self.0 = Some(ctx.system());
            Ok(())
        }
    }
    impl Drop for Holder {
        fn drop(&mut self) {
            self.1.store(true, SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let flag = dropped.clone();
    let system = system();
    let child = ChildSpec::actor("h", move || Holder(None, flag.clone()));
    system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
    let pid = system.whereis("s/h").expect("h");
    drop(system);
    assert_eq!(pid.exited().await, Exit::Killed);
    assert!(dropped.load(SeqCst));
}

#[tokio::test]
async fn a_second_shutdown_and_one_after_a_cancelled_first_stop_everything_in_order() {
    for cancelled in [false, true] {
        let (log, system) = (Log::default(), system());
        for top in ["s", "t"] {
            let child = probe(&format!("{top}a"), &log);
            system.start(SupervisorSpec::new(top, Strategy::OneForOne).child(child)).await.expect("started");
        }
        let pids = ["s", "t", "s/sa", "t/ta"].map(|path| system.whereis(path).expect("lives"));
        log.take();
        // The first has to wait for a handler that has begun; a stop would overtake it.
        system.named::<Probe>("t/ta").tell(Do::Hang(Duration::from_millis(200))).expect("told");
        while !system.tree().iter().any(|row| row.path == "t/ta" && row.messages == 1) {
            tokio::task::yield_now().await;
        }
        if cancelled {
            tokio::time::timeout(Duration::from_millis(20), system.shutdown()).await.expect_err("it waits");
            system.shutdown().await;
        } else {
            tokio::join!(system.shutdown(), system.shutdown());
        }
        assert_eq!(pids.map(|pid| pid.exit()), [const { Some(Exit::Shutdown) }; 4]);
        assert_eq!(log.take(), "-ta -sa");
    }
}

#[tokio::test]
async fn after_an_unlink_no_exit_signal_comes_also_if_it_was_on_its_way() {
    let system = System::builder("t").arbiters(2).build().expect("system");
    let any = any(&system).await;
    let others = SupervisorSpec::new("others", Strategy::Dynamic);
    let others = system.start(others).await.expect("started");
    let other = ChildSpec::actor("o", || Any).restart(Restart::Temporary).placement(Placement::Arbiter(1));
    let other = others.start_child(other).await.expect("up");
    let own = other.clone();
    // In one handler, so that nothing is taken in between.
    run(&any, move |ctx| {
        ctx.link(&own);
        own.kill();
        assert_eq!(futures::executor::block_on(own.exited()), Exit::Killed);
        // Its links learn of it after those who wait for its exit.
        std::thread::sleep(Duration::from_millis(20));
        ctx.unlink(&own);
        // What is dead sends a signal at once.
        ctx.link(&own);
        ctx.unlink(&own);
    })
    .await;
    run(&any, |_| {}).await;
    // And a link made after that is one again.
    any.tell(Run(Box::new(move |ctx| ctx.link(&other)))).expect("told");
    assert_eq!(any.pid().exited().await, Exit::NoProc);
    system.shutdown().await;
}

/// Watches again whatever has ended.
struct Again {
    downs: Arc<AtomicU64>,
}
impl Actor for Again {
    fn down(&mut self, down: Down, ctx: &mut Ctx<Self>) {
        bump(&self.downs);
        ctx.monitor(&down.pid);
    }
}
impl Handler<Watch> for Again {
    fn handle(&mut self, watch: Watch, ctx: &mut Ctx<Self>) -> Reply<()> {
        ctx.monitor(&watch.0);
        ().into()
    }
}

#[tokio::test]
async fn who_watches_the_dead_again_and_again_leaves_others_their_turns_and_can_be_stopped() {
    let (log, system) = (Log::default(), system());
    let (downs, seen) = counter();
    let again = ChildSpec::actor("again", move || Again { downs: downs.clone() });
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(again).child(probe("a", &log));
    let supervisor = system.start(spec.child(probe("dead", &log).restart(Restart::Temporary))).await.expect("started");
    let dead = system.whereis("s/dead").expect("lives");
    dead.kill();
    dead.exited().await;
    let again = system.lookup::<Again>("s/again").expect("lives");
    again.ask(Watch(dead, false)).await.expect("handled");
    let neighbour = system.named::<Probe>("s/a");
    let soon = Duration::from_secs(20);
    while seen.load(SeqCst) < 1_000 {
        neighbour.ask_timeout(Do::Ping, soon).await.expect("it has its turns");
    }
    tokio::time::timeout(soon, supervisor.terminate_child("again")).await.expect("stopped").expect("known");
    assert_eq!(again.pid().exit(), Some(Exit::Shutdown));
    system.shutdown().await;
}
