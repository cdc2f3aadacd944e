//! What supervision costs: tell, ask, start and restart of a supervised actor beside bare actix and a bare tokio task with a channel, all in
//! one run. Each sample does [`OPERATIONS`] operations and waits until the last one has taken effect, so a time in us reads as ns each.
//!
//! Must never compare unlike things: all have a mailbox of the same bound where they have one, the same handler, and the same waiting.
//! Run with `cargo bench -p phalanx-actors --bench actors`; what came out is in `benches/README.md`.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use phalanx_actors as ours;
use std::future::Future;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

/// Operations of one sample. Fewer than a mailbox holds, so that no tell is refused.
const OPERATIONS: u64 = 1_000;
/// Messages that fit into a mailbox, in all that have a bound.
const MAILBOX: usize = ours::MAILBOX_MESSAGES;

fn main() {
    // Panics are what is measured; printing them is not. Set before the actors' own hook, which hands on to this one.
    std::panic::set_hook(Box::new(|_| {}));
    divan::main();
}

fn items() -> ItemsCount {
    ItemsCount::new(OPERATIONS)
}

// ---- where it runs -----------------------------------------------------------------------------------------------------------

/// One thread's runtime: who sends and who receives take turns on it, so wall time is processor time.
struct Here {
    local: LocalSet,
    runtime: Runtime,
}

impl Here {
    fn new() -> Self {
        Here { local: LocalSet::new(), runtime: runtime() }
    }

    /// As a task among the actors, as an actor would run: `block_on` itself may look for I/O between two of its turns.
    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.local
            .block_on(&self.runtime, self.local.spawn_local(future))
            .expect("the benchmark's own task does not panic")
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Another thread that runs what `setup` starts, until this is dropped.
struct There {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl There {
    fn new<T: Send + 'static>(setup: impl FnOnce() -> T + Send + 'static) -> (Self, T) {
        let (stop, stopped) = oneshot::channel::<()>();
        let (give, take) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            Here::new().run(async move {
                give.send(setup()).expect("the benchmark waits for it");
                let _ = stopped.await;
            });
        });
        let made = take.recv().expect("the other thread has set up");
        (There { stop: Some(stop), thread: Some(thread) }, made)
    }
}

impl Drop for There {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// ---- the same counter three times --------------------------------------------------------------------------------------------

struct Counter(u64);
struct Add(u64);
/// Answers how much was added.
struct Sum;
struct Panic;

impl ours::Actor for Counter {}
impl ours::Message for Add {
    type Reply = ();
}
impl ours::Message for Sum {
    type Reply = u64;
}
impl ours::Message for Panic {
    type Reply = ();
}
impl ours::Handler<Add> for Counter {
    fn handle(&mut self, add: Add, _: &mut ours::Ctx<Self>) -> ours::Reply<()> {
        self.0 += black_box(add.0);
        ().into()
    }
}
impl ours::Handler<Sum> for Counter {
    fn handle(&mut self, _: Sum, _: &mut ours::Ctx<Self>) -> ours::Reply<u64> {
        self.0.into()
    }
}
impl ours::Handler<Panic> for Counter {
    fn handle(&mut self, _: Panic, _: &mut ours::Ctx<Self>) -> ours::Reply<()> {
        panic!("asked to")
    }
}

fn child(id: impl Into<String>) -> ours::ChildSpec {
    ours::ChildSpec::actor(id, || Counter(0)).mailbox(MAILBOX)
}

fn top() -> ours::SupervisorSpec {
    ours::SupervisorSpec::new("top", ours::Strategy::Dynamic).unlimited()
}

async fn supervised(builder: ours::SystemBuilder) -> (ours::System, ours::SupervisorRef) {
    let system = builder.build().expect("a system");
    let supervisor = system.start(top().child(child("counter"))).await.expect("started");
    (system, supervisor)
}

mod bare {
    //! An actix actor as its documentation writes it.

    use super::{Add, Panic, Sum, black_box};

    pub struct Counter(pub u64);

    impl actix::Actor for Counter {
        type Context = actix::Context<Self>;

        fn started(&mut self, ctx: &mut Self::Context) {
            ctx.set_mailbox_capacity(super::MAILBOX);
        }
    }
    impl actix::Message for Add {
        type Result = ();
    }
    impl actix::Message for Sum {
        type Result = u64;
    }
    impl actix::Message for Panic {
        type Result = ();
    }
    impl actix::Handler<Add> for Counter {
        type Result = ();
        fn handle(&mut self, add: Add, _: &mut Self::Context) {
            self.0 += black_box(add.0);
        }
    }
    impl actix::Handler<Sum> for Counter {
        type Result = u64;
        fn handle(&mut self, _: Sum, _: &mut Self::Context) -> u64 {
            self.0
        }
    }
    impl actix::Handler<Panic> for Counter {
        type Result = ();
        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("asked to")
        }
    }
}

/// What a bare task understands.
enum Letter {
    Add(u64),
    Sum(oneshot::Sender<u64>),
    Panic,
}

/// A bare task with a channel: the limit that any actor library stays above.
fn task() -> (mpsc::Sender<Letter>, tokio::task::JoinHandle<()>) {
    let (sender, mut inbox) = mpsc::channel(MAILBOX);
    let task = tokio::task::spawn_local(async move {
        let mut sum = 0;
        while let Some(letter) = inbox.recv().await {
            match letter {
                Letter::Add(n) => sum += black_box(n),
                Letter::Sum(asker) => {
                    let _ = asker.send(sum);
                }
                Letter::Panic => panic!("asked to"),
            }
        }
    });
    (sender, task)
}

async fn sum(task: &mpsc::Sender<Letter>) -> u64 {
    let (asker, answer) = oneshot::channel();
    task.send(Letter::Sum(asker)).await.expect("the task lives");
    answer.await.expect("answered")
}

// ---- tell --------------------------------------------------------------------------------------------------------------------

/// Messages without an answer, then one question whose answer proves that all were handled.
#[divan::bench_group(sample_count = 2000)]
mod tell {
    use super::*;

    fn told<C: Clone, F: Future<Output = u64> + 'static>(
        bencher: Bencher<'_, '_>,
        here: &Here,
        counter: C,
        round: impl Fn(C) -> F,
    ) {
        let mut before = here.run(round(counter.clone()));
        bencher.counter(items()).bench_local(|| {
            let after = here.run(round(counter.clone()));
            assert_eq!(after - before, OPERATIONS);
            before = after;
        });
    }

    async fn supervised_round(counter: ours::Ref<Counter>) -> u64 {
        for _ in 0..OPERATIONS {
            counter.tell(Add(1)).expect("room");
        }
        counter.ask(Sum).await.expect("answered")
    }

    async fn supervised_by_path_round(counter: ours::Named<Counter>) -> u64 {
        for _ in 0..OPERATIONS {
            counter.tell(Add(1)).expect("room");
        }
        counter.ask(Sum).await.expect("answered")
    }

    async fn actix_round(counter: actix::Addr<bare::Counter>) -> u64 {
        for _ in 0..OPERATIONS {
            counter.do_send(Add(1));
        }
        counter.send(Sum).await.expect("answered")
    }

    async fn tokio_round(counter: mpsc::Sender<Letter>) -> u64 {
        for _ in 0..OPERATIONS {
            assert!(counter.try_send(Letter::Add(1)).is_ok(), "room");
        }
        sum(&counter).await
    }

    mod same_thread {
        use super::*;

        #[divan::bench]
        fn supervised(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(async { super::supervised(ours::System::builder("n").local()).await });
            let counter = system.lookup::<Counter>("top/counter").expect("runs");
            told(bencher, &here, counter, supervised_round);
        }

        /// While someone looks: each message is timed.
        #[divan::bench]
        fn supervised_observed(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(async { super::supervised(ours::System::builder("n").local()).await });
            let counter = system.lookup::<Counter>("top/counter").expect("runs");
            let _observer = system.observe();
            told(bencher, &here, counter, supervised_round);
        }

        /// Someone has looked, and does not any more.
        #[divan::bench]
        fn supervised_no_longer_observed(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(async { super::supervised(ours::System::builder("n").local()).await });
            let counter = system.lookup::<Counter>("top/counter").expect("runs");
            let observer = system.observe();
            here.run(supervised_round(counter.clone()));
            drop(observer);
            told(bencher, &here, counter, supervised_round);
        }

        /// As most of Phalanx does it: the path is looked up for each message.
        #[divan::bench]
        fn supervised_by_path(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(async { super::supervised(ours::System::builder("n").local()).await });
            let counter = system.named::<Counter>("top/counter");
            told(bencher, &here, counter, supervised_by_path_round);
        }

        #[divan::bench]
        fn actix(bencher: Bencher) {
            let here = Here::new();
            let counter = here.run(async { ::actix::Actor::start(bare::Counter(0)) });
            told(bencher, &here, counter, actix_round);
        }

        #[divan::bench]
        fn tokio_mpsc(bencher: Bencher) {
            let here = Here::new();
            let (counter, _task) = here.run(async { task() });
            told(bencher, &here, counter, tokio_round);
        }
    }

    mod other_thread {
        use super::*;

        #[divan::bench]
        fn supervised(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(super::supervised(ours::System::builder("n")));
            let counter = system.lookup::<Counter>("top/counter").expect("runs");
            told(bencher, &here, counter, supervised_round);
        }

        #[divan::bench]
        fn actix(bencher: Bencher) {
            let here = Here::new();
            let (_there, counter) = There::new(|| ::actix::Actor::start(bare::Counter(0)));
            told(bencher, &here, counter, actix_round);
        }

        #[divan::bench]
        fn tokio_mpsc(bencher: Bencher) {
            let here = Here::new();
            let (_there, counter) = There::new(|| task().0);
            told(bencher, &here, counter, tokio_round);
        }
    }
}

// ---- ask ---------------------------------------------------------------------------------------------------------------------

/// Questions one after another, each waiting for its answer.
#[divan::bench_group(sample_count = 500)]
mod ask {
    use super::*;

    fn asked<C: Clone, F: Future<Output = ()> + 'static>(
        bencher: Bencher<'_, '_>,
        here: &Here,
        counter: C,
        round: impl Fn(C) -> F,
    ) {
        bencher.counter(items()).bench_local(|| here.run(round(counter.clone())));
    }

    async fn supervised_round(counter: ours::Ref<Counter>) {
        for _ in 0..OPERATIONS {
            black_box(counter.ask(Sum).await.expect("answered"));
        }
    }

    async fn actix_round(counter: actix::Addr<bare::Counter>) {
        for _ in 0..OPERATIONS {
            black_box(counter.send(Sum).await.expect("answered"));
        }
    }

    async fn tokio_round(counter: mpsc::Sender<Letter>) {
        for _ in 0..OPERATIONS {
            black_box(sum(&counter).await);
        }
    }

    mod same_thread {
        use super::*;

        #[divan::bench]
        fn supervised(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(async { super::supervised(ours::System::builder("n").local()).await });
            let counter = system.lookup::<Counter>("top/counter").expect("runs");
            asked(bencher, &here, counter, supervised_round);
        }

        #[divan::bench]
        fn actix(bencher: Bencher) {
            let here = Here::new();
            let counter = here.run(async { ::actix::Actor::start(bare::Counter(0)) });
            asked(bencher, &here, counter, actix_round);
        }

        #[divan::bench]
        fn tokio_mpsc(bencher: Bencher) {
            let here = Here::new();
            let (counter, _task) = here.run(async { task() });
            asked(bencher, &here, counter, tokio_round);
        }
    }

    /// Two wake-ups of a sleeping thread each: what the kernel takes for them is most of it.
    #[divan::bench_group(sample_count = 100)]
    mod other_thread {
        use super::*;

        #[divan::bench]
        fn supervised(bencher: Bencher) {
            let here = Here::new();
            let (system, _top) = here.run(super::supervised(ours::System::builder("n")));
            let counter = system.lookup::<Counter>("top/counter").expect("runs");
            asked(bencher, &here, counter, supervised_round);
        }

        #[divan::bench]
        fn actix(bencher: Bencher) {
            let here = Here::new();
            let (_there, counter) = There::new(|| ::actix::Actor::start(bare::Counter(0)));
            asked(bencher, &here, counter, actix_round);
        }

        #[divan::bench]
        fn tokio_mpsc(bencher: Bencher) {
            let here = Here::new();
            let (_there, counter) = There::new(|| task().0);
            asked(bencher, &here, counter, tokio_round);
        }
    }
}

// ---- start -------------------------------------------------------------------------------------------------------------------

/// Starts, one after another, each waiting until the new actor is known to run. All live on; what a sample started is dropped unmeasured.
#[divan::bench_group(sample_count = 200, sample_size = 1)]
mod start {
    use super::*;

    #[divan::bench]
    fn supervised(bencher: Bencher) {
        bencher
            .counter(items())
            .with_inputs(|| {
                let here = Here::new();
                let running = here.run(async { super::supervised(ours::System::builder("n").local()).await });
                (here, running)
            })
            .bench_local_values(|(here, (system, top))| {
                let top = here.run(async {
                    for i in 0..OPERATIONS {
                        top.start_child(child(i.to_string())).await.expect("started");
                    }
                    top
                });
                (here, system, top)
            });
    }

    #[divan::bench]
    fn actix(bencher: Bencher) {
        bencher.counter(items()).with_inputs(Here::new).bench_local_values(|here| {
            let started = here.run(async {
                let mut started = Vec::new();
                for _ in 0..OPERATIONS {
                    let counter = ::actix::Actor::start(bare::Counter(0));
                    counter.send(Sum).await.expect("answered");
                    started.push(counter);
                }
                started
            });
            (started, here)
        });
    }

    #[divan::bench]
    fn tokio_task(bencher: Bencher) {
        bencher.counter(items()).with_inputs(Here::new).bench_local_values(|here| {
            let started = here.run(async {
                let mut started = Vec::new();
                for _ in 0..OPERATIONS {
                    let (counter, _) = task();
                    sum(&counter).await;
                    started.push(counter);
                }
                started
            });
            (started, here)
        });
    }
}

// ---- restart -----------------------------------------------------------------------------------------------------------------

/// From the message that makes an actor panic to the first answer of its next incarnation. actix and tokio restart nothing: there the
/// one who asked notices, and starts another by hand; the reference that others hold stays dead.
#[divan::bench_group(sample_count = 100)]
mod restart {
    use super::*;

    /// Says when it has started: whoever waits need not look again and again.
    struct Announced(mpsc::UnboundedSender<()>);

    impl ours::Actor for Announced {
        fn started(&mut self, _: &mut ours::Ctx<Self>) -> Result<(), ours::Exit> {
            self.0.send(()).map_err(|_| ours::Exit::Shutdown)
        }
    }
    impl ours::Handler<Sum> for Announced {
        fn handle(&mut self, _: Sum, _: &mut ours::Ctx<Self>) -> ours::Reply<u64> {
            0.into()
        }
    }
    impl ours::Handler<Panic> for Announced {
        fn handle(&mut self, _: Panic, _: &mut ours::Ctx<Self>) -> ours::Reply<()> {
            panic!("asked to")
        }
    }

    #[divan::bench]
    fn supervised(bencher: Bencher) {
        let here = Here::new();
        let (announce, mut starts) = mpsc::unbounded_channel();
        let system = here.run(async move {
            let system = ours::System::builder("n").local().build().expect("a system");
            let actor = ours::ChildSpec::actor("counter", move || Announced(announce.clone()));
            system.start(top().child(actor)).await.expect("started");
            system
        });
        let counter = system.named::<Announced>("top/counter");
        starts.try_recv().expect("started");
        let mut starts = Some(starts);
        let mut rounds = 0;
        bencher.counter(items()).bench_local(|| {
            let counter = counter.clone();
            let mut taken = starts.take().expect("given back");
            starts = here.run(async move {
                for _ in 0..OPERATIONS {
                    counter.tell(Panic).expect("room");
                    taken.recv().await.expect("started again");
                    black_box(counter.ask(Sum).await.expect("answered"));
                }
                Some(taken)
            });
            rounds += 1;
        });
        let restarts = system.tree().iter().find(|info| info.path == "top/counter").expect("is there").restarts;
        assert_eq!(u64::from(restarts), rounds * OPERATIONS);
    }

    #[divan::bench]
    fn actix_by_hand(bencher: Bencher) {
        let here = Here::new();
        bencher.counter(items()).bench_local(|| {
            here.run(async {
                let mut counter = ::actix::Actor::start(bare::Counter(0));
                for _ in 0..OPERATIONS {
                    assert!(counter.send(Panic).await.is_err());
                    counter = ::actix::Actor::start(bare::Counter(0));
                    counter.send(Sum).await.expect("answered");
                }
            });
        });
    }

    #[divan::bench]
    fn tokio_by_hand(bencher: Bencher) {
        let here = Here::new();
        bencher.counter(items()).bench_local(|| {
            here.run(async {
                let (mut counter, mut running) = task();
                for _ in 0..OPERATIONS {
                    counter.send(Letter::Panic).await.expect("the task lives");
                    assert!((&mut running).await.is_err());
                    (counter, running) = task();
                    sum(&counter).await;
                }
            });
        });
    }

    /// What Rust itself takes for a panic that is caught; a part of each of the others.
    #[divan::bench]
    fn caught_panic_alone(bencher: Bencher) {
        bencher.counter(items()).bench_local(|| {
            for _ in 0..OPERATIONS {
                assert!(std::panic::catch_unwind(|| panic!("asked to")).is_err());
            }
        });
    }
}
