//! What is promised of single actors: panics, mailboxes, asks, monitors, links, own subtrees, fair turns, the end of a system.

mod support;

use phalanx_actors::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use support::*;

async fn pair(log: &Log) -> (System, Ref<Probe>, Ref<Probe>) {
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne)
        .unlimited()
        .child(probe("a", log).restart(Restart::Temporary))
        .child(probe("b", log).restart(Restart::Temporary));
    system.start(spec).await.expect("started");
    log.take();
    let refs = (system.lookup("s/a").expect("a"), system.lookup("s/b").expect("b"));
    (system, refs.0, refs.1)
}

#[tokio::test]
async fn a_monitor_fires_exactly_once_also_for_the_dead() {
    let log = Log::default();
    let (system, a, b) = pair(&log).await;
    a.ask(Do::Monitor(b.pid())).await.expect("asked");
    b.ask(Do::Panic).await.expect_err("dies");
    a.ask(Do::Monitor(b.pid())).await.expect("asked");
    a.ask(Do::Ping).await.expect("lives");
    log.wait(2).await;
    let seen = log.take();
    assert!(seen.starts_with("down:s/b:panic at "), "{seen}");
    assert!(seen.ends_with("down:s/b:no such process"), "{seen}");
    system.shutdown().await;
}

#[tokio::test]
async fn a_linked_actor_dies_along_unless_it_traps_exits() {
    let log = Log::default();
    let (system, a, b) = pair(&log).await;
    a.ask(Do::Link(b.pid())).await.expect("linked");
    b.stop(Exit::Error("x".into()));
    assert_eq!(a.pid().exited().await, Exit::Error("x".into()));
    system.shutdown().await;

    let (system, a, b) = pair(&log).await;
    a.ask(Do::TrapAndLink(b.pid())).await.expect("linked");
    b.stop(Exit::Error("x".into()));
    b.pid().exited().await;
    a.ask(Do::Ping).await.expect("lives");
    assert!(log.take().ends_with("exit:s/b:x"));
    system.shutdown().await;

    let (system, a, b) = pair(&log).await;
    a.ask(Do::Link(b.pid())).await.expect("linked");
    b.stop(Exit::Normal);
    b.pid().exited().await;
    a.ask(Do::Ping).await.expect("a normal exit harms nobody");
    system.shutdown().await;
}

#[tokio::test]
async fn a_full_mailbox_refuses_tells_and_makes_senders_wait() {
    let log = Log::default();
    let system = System::builder("t").arbiters(2).build().expect("system");
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(probe("a", &log).mailbox(3));
    system.start(spec).await.expect("started");
    let a = system.lookup::<Probe>("s/a").expect("a");
    a.tell(Do::Hang(Duration::from_millis(100))).expect("told");
    while system.tree()[1].queue_len > 0 {
        tokio::task::yield_now().await;
    }
    for clone in [a.clone(), a.clone(), a.clone()] {
        clone.tell(Do::Ping).expect("room");
    }
    assert_eq!(a.clone().tell(Do::Ping), Err(SendError::Full), "a clone brings no room of its own");
    assert_eq!(system.tree()[1].queue_len, 3);
    a.send(Do::Ping).await.expect("waited");
    a.ask(Do::Ping).await.expect("waited");
    assert_eq!(system.tree()[1].messages, 6);
    system.shutdown().await;
}

#[tokio::test]
async fn an_ask_ends_with_the_exit_of_an_actor_that_dies() {
    let log = Log::default();
    let (system, a, _b) = pair(&log).await;
    let error = a.ask(Do::Panic).await.expect_err("dies");
    assert!(matches!(&error, AskError::Exited(Exit::Panic { message, .. }) if message == "asked to"), "{error}");
    assert_eq!(a.ask(Do::Ping).await, Err(AskError::NoProc));
    assert_eq!(a.tell(Do::Ping), Err(SendError::Closed));
    assert_eq!(system.named::<Probe>("s/nobody").tell(Do::Ping), Err(SendError::NoProc));
    system.shutdown().await;
}

#[tokio::test]
async fn a_panic_in_drop_while_a_panic_unwinds_ends_the_actor_only() {
    let log = Log::default();
    let system = system();
    let (own, count) = (log.clone(), Arc::new(AtomicU64::new(0)));
    let made = count.clone();
    let child = ChildSpec::actor("a", move || {
        let deaf = made.fetch_add(1, SeqCst) < 2;
        Probe { name: "a".into(), log: own.clone(), faults: Faults::default(), deaf }
    });
    system.start(SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(child)).await.expect("started");
    for _ in 0..2 {
        let old = system.whereis("s/a").expect("a");
        tell(&system, "s/a", Do::Panic).await;
        reborn(&system, "s/a", &old).await;
    }
    assert_eq!(count.load(SeqCst), 3);
    system.shutdown().await;
}

#[tokio::test]
async fn an_actors_own_subtree_ends_before_it_and_takes_it_along_when_it_gives_up() {
    let log = Log::default();
    let (system, a, b) = pair(&log).await;
    let inner = log.clone();
    let make = Arc::new(move || {
        SupervisorSpec::new("kids", Strategy::OneForOne).intensity(0, Duration::from_secs(5)).child(probe("k", &inner))
    });
    a.ask(Do::Supervise(make.clone())).await.expect("asked");
    b.ask(Do::Supervise(make)).await.expect("asked");
    log.wait(2).await;
    assert_eq!(log.take(), "+k +k");
    a.stop(Exit::Shutdown);
    assert_eq!(a.pid().exited().await, Exit::Shutdown);
    assert_eq!(log.take(), "-k -a", "the subtree first");
    tell(&system, "s/b/kids/k", Do::Panic).await;
    assert!(matches!(b.pid().exited().await, Exit::RestartIntensity { .. }));
    system.shutdown().await;
}

/// How many times `b` answers while `a` is sent 200,000 messages by a task that shares the asker's thread.
async fn answers_during_a_flood(a: Ref<Probe>, b: Ref<Probe>) -> u64 {
    let flood = tokio::spawn(async move {
        for _ in 0..200_000 {
            a.send(Do::Ping).await.expect("sent");
        }
    });
    let mut answered = 0;
    while !flood.is_finished() {
        b.ask(Do::Ping).await.expect("answered");
        answered += 1;
    }
    flood.await.expect("flooded");
    answered
}

#[tokio::test]
async fn a_flooded_actor_leaves_its_neighbours_their_turns() {
    // Each turn of the flooded actor is at most 64 messages; its neighbour needs one turn for each answer. What can lie between two
    // answers is a full mailbox (1,024), a turn, and what the flooding task sends before it gives its thread back (128).
    let bound = 200_000 / (1_024 + 64 + 128) / 2;
    let log = Log::default();
    let (system, a, b) = pair(&log).await;
    let answered = answers_during_a_flood(a, b).await;
    assert!(answered >= bound, "{answered} answers during 200,000 messages");
    system.shutdown().await;
}

#[tokio::test]
async fn a_task_that_sends_without_end_leaves_others_of_its_thread_their_turns() {
    // Nobody makes room, and there is room for all: only the sender itself can give its thread back.
    let log = Log::default();
    let system = system();
    let child = probe("a", &log).mailbox(usize::MAX);
    system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
    let a = system.lookup::<Probe>("s/a").expect("a");
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let flood = tokio::spawn(async move {
        for _ in 0..10_000 {
            a.send(Do::Ping).await.expect("sent");
            count.fetch_add(1, SeqCst);
        }
    });
    tokio::task::yield_now().await;
    let seen = sent.load(SeqCst);
    assert!((1..10_000).contains(&seen), "{seen} messages before another task had its turn");
    flood.await.expect("flooded");
    system.shutdown().await;
}

struct Later;
impl Actor for Later {}
struct Wait(Duration);
impl Message for Wait {
    type Reply = &'static str;
}
impl Handler<Wait> for Later {
    fn handle(&mut self, wait: Wait, ctx: &mut Ctx<Self>) -> Reply<&'static str> {
        let (reply, replier) = ctx.defer();
        if !wait.0.is_zero() {
            ctx.pipe(tokio::time::sleep(wait.0), |_, (), _| replier.reply("later"));
        }
        reply
    }
}

#[tokio::test]
async fn an_answer_may_come_later_or_never() {
    let system = system();
    let spec = SupervisorSpec::new("s", Strategy::OneForOne).child(ChildSpec::actor("l", || Later));
    system.start(spec).await.expect("started");
    let later = system.named::<Later>("s/l");
    assert_eq!(later.ask(Wait(Duration::from_millis(5))).await, Ok("later"));
    assert_eq!(later.ask(Wait(Duration::ZERO)).await, Err(AskError::NoReply));
    let short = later.ask_timeout(Wait(Duration::from_secs(60)), Duration::from_millis(5)).await;
    assert_eq!(short, Err(AskError::Timeout));
    system.shutdown().await;
}

#[tokio::test]
async fn a_killed_system_asks_nobody_and_its_threads_end() {
    let log = Log::default();
    let (system, a, b) = pair(&log).await;
    system.kill();
    a.pid().exited().await;
    b.pid().exited().await;
    assert_eq!(log.take(), "", "no `stopping` ran");
    assert_eq!(system.start(SupervisorSpec::new("x", Strategy::OneForOne)).await.err(), Some(StartError::SystemDown));
}

#[tokio::test]
async fn a_dropped_system_ends_its_actors() {
    let log = Log::default();
    let (system, a, _b) = pair(&log).await;
    drop(system);
    assert_eq!(a.pid().exited().await, Exit::Killed);
}

#[test]
fn a_local_system_needs_no_thread_and_a_local_set() {
    assert!(matches!(System::builder("t").local().build(), Err(BuildError::NoLocalSet)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let log = Log::default();
        let system = System::builder("t").local().build().expect("system");
        let spec = SupervisorSpec::new("s", Strategy::OneForOne).unlimited().child(probe("a", &log));
        system.start(spec).await.expect("started");
        let old = system.whereis("s/a").expect("a");
        tell(&system, "s/a", Do::Panic).await;
        reborn(&system, "s/a", &old).await;
        system.shutdown().await;
        assert_eq!(log.take(), "+a +a -a");
    });
}

#[tokio::test]
async fn two_supervisors_of_one_name_do_not_run_together() {
    let log = Log::default();
    let (system, ..) = pair(&log).await;
    let error = system.start(SupervisorSpec::new("s", Strategy::OneForOne)).await.expect_err("taken");
    assert_eq!(error, StartError::AlreadyRunning("s".into()));
    system.shutdown().await;
}

/// Handles each number after a while of simulated time, one at a time.
struct OneAtATime(Vec<u64>);
struct Take(u64);
impl Message for Take {
    type Reply = ();
}
struct Taken;
impl Message for Taken {
    type Reply = Vec<u64>;
}
impl Actor for OneAtATime {}
impl Handler<Take> for OneAtATime {
    fn handle(&mut self, take: Take, ctx: &mut Ctx<Self>) -> Reply<()> {
        ctx.wait(tokio::time::sleep(Duration::from_secs(1)), move |actor, (), _| actor.0.push(take.0));
        ().into()
    }
}
impl Handler<Taken> for OneAtATime {
    fn handle(&mut self, _: Taken, _: &mut Ctx<Self>) -> Reply<Vec<u64>> {
        self.0.clone().into()
    }
}

#[test]
fn an_actor_that_waits_leaves_its_messages_in_the_mailbox_and_can_be_stopped_meanwhile() {
    testkit::explore(0..20, |sim| async move {
        let child = ChildSpec::actor("it", || OneAtATime(Vec::new())).mailbox(3);
        sim.system().start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
        let actor = sim.system().lookup::<OneAtATime>("s/it").expect("runs");
        for n in 1..=6 {
            actor.send(Take(n)).await.expect("sent");
        }
        // One is being handled and three wait: the sixth found room when the second was taken out, a second after the first.
        assert_eq!(sim.elapsed(), Duration::from_secs(2));
        assert_eq!(actor.tell(Take(7)), Err(SendError::Full));
        let seen = actor.ask(Taken).await.expect("answered");
        assert_eq!((seen, sim.elapsed()), ((1..=6).collect(), Duration::from_secs(6)));
        actor.tell(Take(8)).expect("room");
        sim.settle().await;
        actor.stop(Exit::Normal);
        assert_eq!(testkit::expect_exit(&actor.pid()).await, Exit::Normal);
        assert_eq!(sim.elapsed(), Duration::from_secs(6));
    });
}

#[tokio::test]
async fn a_system_that_has_ended_holds_nothing_of_its_specifications() {
    for (watchdog, kill) in [(false, true), (false, false), (true, true), (true, false)] {
        let builder = System::builder("t");
        let builder = if watchdog { builder.watchdog(Duration::from_secs(600)) } else { builder };
        let system = builder.build().expect("system");
        let held = Arc::new(());
        let own = held.clone();
        let child = ChildSpec::actor("l", move || {
            let _own = &own;
            Later
        });
        system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
        let later = system.named::<Later>("s/l");
        match kill {
            true => system.kill(),
            false => system.shutdown().await,
        }
        assert_eq!(Arc::strong_count(&held), 1, "watchdog {watchdog}, killed {kill}");
        drop(later);
    }
}
