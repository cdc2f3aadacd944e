//! A panic anywhere is an exit, and nothing aborts the process: streams, ticks, signals, and the two panics at once that end one of plain actix.

use futures::{StreamExt, stream};
use phalanx_actors::*;
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

/// Runs a test in simulated time, on one thread.
fn simulated<F: Future<Output = ()>>(test: impl FnOnce(System) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
    tokio::task::LocalSet::new()
        .block_on(&runtime, async { test(System::builder("t").local().build().expect("system")).await });
}

/// An actor that runs a piece of code in its own context.
struct Any;
impl Actor for Any {
    fn down(&mut self, down: Down, _: &mut Ctx<Self>) {
        panic!("in down of {}", down.pid.path());
    }
    fn exit_signal(&mut self, from: Pid, _: Exit, _: &mut Ctx<Self>) {
        panic!("in exit_signal of {}", from.path());
    }
}
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

async fn supervisor(system: &System) -> SupervisorRef {
    system.start(SupervisorSpec::new("s", Strategy::Dynamic).unlimited()).await.expect("started")
}

async fn any(system: &System, supervisor: &SupervisorRef, id: &str) -> Ref<Any> {
    supervisor.start_child(ChildSpec::actor(id, || Any).restart(Restart::Temporary)).await.expect("up");
    system.lookup(&format!("s/{id}")).expect("lives")
}

fn bump(count: &AtomicU64) {
    count.fetch_add(1, SeqCst);
}

/// Panics when it is dropped.
struct Bomb;
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("bomb");
    }
}

#[test]
fn a_panic_in_a_stream_a_tick_or_a_signal_is_the_exit_with_its_place() {
    simulated(|system| async move {
        let supervisor = supervisor(&system).await;
        let victim = any(&system, &supervisor, "victim").await.pid();
        let (monitored, linked) = (victim.clone(), victim.clone());
        let cases: [(&str, Code); 5] = [
            (
                "in the stream",
                Box::new(|ctx| {
                    drop(ctx.attach(stream::poll_fn(|_| -> Poll<Option<()>> { panic!("in the stream") }), |_, _, _| {}))
                }),
            ),
            ("for an item", Box::new(|ctx| drop(ctx.attach(stream::iter([1]), |_, _, _| panic!("for an item"))))),
            ("in a tick", Box::new(|ctx| drop(ctx.interval(Duration::from_secs(1), |_, _| panic!("in a tick"))))),
            ("in down of s/victim", Box::new(move |ctx| drop(ctx.monitor(&monitored)))),
            (
                "in exit_signal of s/victim",
                Box::new(move |ctx| {
                    ctx.trap_exit(true);
                    ctx.link(&linked);
                }),
            ),
        ];
        let mut waiting = Vec::new();
        for (i, (message, code)) in cases.into_iter().enumerate() {
            let any = any(&system, &supervisor, &i.to_string()).await;
            any.ask(Run(code)).await.expect("run");
            waiting.push((message, any.pid()));
        }
        victim.kill();
        for (message, pid) in waiting {
            let exit = pid.exited().await;
            let Exit::Panic { message: said, location: Some(at) } = &exit else { panic!("{message}: {exit}") };
            assert_eq!(said, message);
            assert!(at.contains("tests/panics.rs:"), "{at}");
        }
        system.shutdown().await;
    });
}

#[test]
fn a_call_on_exit_that_panics_keeps_nobody_else_from_learning_of_the_end() {
    simulated(|system| async move {
        let supervisor = supervisor(&system).await;
        let victim = supervisor.start_child(ChildSpec::actor("victim", || Any)).await.expect("up");
        let linked = any(&system, &supervisor, "linked").await;
        let own = victim.clone();
        linked.ask(Run(Box::new(move |ctx| ctx.link(&own)))).await.expect("run");
        let _first = victim.on_exit(|_| panic!("in on_exit"));
        let (tx, called) = tokio::sync::oneshot::channel();
        let _second = victim.on_exit(move |exit| tx.send(exit.clone()).expect("waits"));
        victim.kill();
        assert_eq!(called.await, Ok(Exit::Killed));
        assert_eq!(linked.pid().exited().await, Exit::Killed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let again = system.whereis("s/victim").expect("its supervisor has learned of it");
        assert_ne!(again, victim);
        system.shutdown().await;
    });
}

#[test]
fn what_a_tick_or_a_stream_holds_may_panic_in_drop_while_it_panics() {
    simulated(|system| async move {
        let supervisor = supervisor(&system).await;
        let codes: [Code; 2] = [
            Box::new(|ctx| {
                let bomb = Bomb;
                ctx.interval(Duration::from_secs(1), move |_, _| {
                    let _held = &bomb;
                    panic!("first");
                });
            }),
            Box::new(|ctx| {
                let bomb = Bomb;
                let items = stream::iter([1]).map(move |item| {
                    let _held = &bomb;
                    item
                });
                ctx.attach(items, |_, _, _| panic!("first"));
            }),
        ];
        for (i, code) in codes.into_iter().enumerate() {
            let any = any(&system, &supervisor, &i.to_string()).await;
            any.ask(Run(code)).await.expect("run");
            let exit = any.pid().exited().await;
            assert!(matches!(&exit, Exit::Panic { message, .. } if message == "first"), "{exit}");
        }
        system.shutdown().await;
    });
}

#[test]
fn a_stream_is_asked_for_one_item_at_a_time_tells_its_end_once_and_ends_with_its_actor() {
    simulated(|system| async move {
        let supervisor = supervisor(&system).await;
        let reader = any(&system, &supervisor, "reader").await;
        let counts: [Arc<AtomicU64>; 4] = std::array::from_fn(|_| Arc::default());
        let [asked, taken, ended, dropped] = counts.clone();
        reader
            .ask(Run(Box::new(move |ctx| {
                let ahead = asked.clone();
                let finite = stream::iter(0..1_000).inspect(move |_| {
                    asked.fetch_add(1, SeqCst);
                });
                ctx.attach(finite, move |_, item, _| match item {
                    Some(item) => {
                        assert_eq!(taken.fetch_add(1, SeqCst), item, "in order");
                        assert_eq!(ahead.load(SeqCst), item + 1, "none is asked for before the one before is handled");
                    }
                    None => bump(&ended),
                });
                let held = Dropped(dropped);
                ctx.attach(stream::pending::<()>().chain(stream::once(async move { drop(held) })), |_, _, _| {});
            })))
            .await
            .expect("run");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(counts.each_ref().map(|count| count.load(SeqCst)), [1_000, 1_000, 1, 0]);
        reader.stop(Exit::Normal);
        assert_eq!(reader.pid().exited().await, Exit::Normal);
        assert_eq!(counts[3].load(SeqCst), 1, "what has not ended is dropped with its actor");
        system.shutdown().await;
    });
}

struct Dropped(Arc<AtomicU64>);
impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn an_endless_stream_leaves_its_actor_its_messages_and_can_be_cancelled() {
    simulated(|system| async move {
        let supervisor = supervisor(&system).await;
        let reader = any(&system, &supervisor, "reader").await;
        let taken = Arc::new(AtomicU64::new(0));
        let count = taken.clone();
        let (give, take) = tokio::sync::oneshot::channel();
        let code = move |ctx: &mut Ctx<Any>| {
            let task = ctx.attach(stream::repeat(()), move |_, _, _| bump(&count));
            let _ = give.send(task);
        };
        reader.ask(Run(Box::new(code))).await.expect("run");
        for _ in 0..10 {
            reader.ask(Run(Box::new(|_| {}))).await.expect("it has its turn");
        }
        take.await.expect("attached").cancel();
        reader.ask(Run(Box::new(|_| {}))).await.expect("run");
        let now = taken.load(SeqCst);
        assert!(now > 0);
        reader.ask(Run(Box::new(|_| {}))).await.expect("run");
        assert_eq!(taken.load(SeqCst), now);
        system.shutdown().await;
    });
}

// ---- beside plain actix --------------------------------------------------------------------------------------------------------

/// In the process that may abort: whose actor panics.
const WHOSE: &str = "PHALANX_TEST_TWO_PANICS";

/// State with a lock, as real ones have. The first panic poisons it, and whoever takes it after that panics again.
#[derive(Default)]
struct Locked(Mutex<u64>);

impl Locked {
    fn take(&self) -> u64 {
        *self.0.lock().unwrap()
    }
    fn panic(&self) {
        let _guard = self.0.lock().unwrap();
        panic!("the first");
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.take();
    }
}

struct Ours(Locked);
struct Break;
struct Ask;
impl Message for Break {
    type Reply = ();
}
impl Message for Ask {
    type Reply = u64;
}
impl Actor for Ours {
    fn stopping(&mut self, _: &Exit, _: &mut Ctx<Self>) {
        self.0.take();
    }
}
impl Handler<Break> for Ours {
    fn handle(&mut self, _: Break, _: &mut Ctx<Self>) -> Reply<()> {
        self.0.panic();
        ().into()
    }
}
impl Handler<Ask> for Ours {
    fn handle(&mut self, _: Ask, _: &mut Ctx<Self>) -> Reply<u64> {
        self.0.take().into()
    }
}

fn two_panics_of_ours() {
    simulated(|system| async move {
        let child = ChildSpec::actor("a", || Ours(Locked::default()));
        system.start(SupervisorSpec::new("s", Strategy::OneForOne).child(child)).await.expect("started");
        let first = system.lookup::<Ours>("s/a").expect("lives");
        match first.ask(Break).await {
            Err(AskError::Exited(Exit::Panic { message, .. })) => assert_eq!(message, "the first"),
            other => panic!("{other:?} instead of the exit"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(system.named::<Ours>("s/a").ask(Ask).await, Ok(0), "started again, with a lock of its own");
        system.shutdown().await;
    });
}

struct Plain(Locked);
impl actix::Message for Break {
    type Result = ();
}
impl actix::Actor for Plain {
    type Context = actix::Context<Self>;
    fn stopped(&mut self, _: &mut Self::Context) {
        self.0.take();
    }
}
impl actix::Handler<Break> for Plain {
    type Result = ();
    fn handle(&mut self, _: Break, _: &mut Self::Context) {
        self.0.panic();
    }
}

fn two_panics_of_actix() {
    use actix::Actor;
    actix::System::new().block_on(async {
        let plain = Plain(Locked::default()).start();
        assert!(plain.send(Break).await.is_err());
    });
}

/// What is left of a process in which one actor panics twice: this test again, in a process of its own.
fn process(whose: &str) -> std::process::ExitStatus {
    let test = std::env::current_exe().expect("this test");
    let name = "two_panics_at_once_abort_plain_actix_and_are_an_exit_here";
    // A process that aborts shall leave no core behind.
    let output = Command::new("sh")
        .args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""])
        .arg(test)
        .args(["--exact", name, "--nocapture"])
        .env(WHOSE, whose)
        .output()
        .expect("a process");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("two panics of {whose}")), "it ran the case: {said}");
    output.status
}

#[test]
fn two_panics_at_once_abort_plain_actix_and_are_an_exit_here() {
    const SIGABRT: i32 = 6;
    match std::env::var(WHOSE).as_deref() {
        Ok(whose) => {
            println!("two panics of {whose}");
            match whose {
                "actix" => two_panics_of_actix(),
                _ => two_panics_of_ours(),
            }
        }
        Err(_) => {
            assert_eq!(process("actix").signal(), Some(SIGABRT), "plain actix takes its process along");
            assert!(process("ours").success());
        }
    }
}
