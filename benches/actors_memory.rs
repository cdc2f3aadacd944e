//! What a supervised actor takes in memory, beside a bare actix actor and a bare tokio task with a channel.
//!
//! Apart from `actors.rs`, because counting allocations costs time. Each sample starts [`ACTORS`] actors and keeps them; the table's
//! `max alloc` counts what was asked for and lived at once, so a figure in kB reads as bytes each. Counted without what the
//! allocator adds. Run with `cargo bench -p phalanx-actors --bench actors_memory`.

use divan::{AllocProfiler, Bencher};
use phalanx_actors as ours;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Actors of one sample.
const ACTORS: u64 = 1_000;

fn main() {
    divan::main();
}

struct Counter(u64);
struct Add(u64);

impl ours::Actor for Counter {}
impl ours::Message for Add {
    type Reply = u64;
}
impl ours::Handler<Add> for Counter {
    fn handle(&mut self, add: Add, _: &mut ours::Ctx<Self>) -> ours::Reply<u64> {
        self.0 += add.0;
        self.0.into()
    }
}

struct Bare(u64);
impl actix::Actor for Bare {
    type Context = actix::Context<Self>;
}
impl actix::Message for Add {
    type Result = u64;
}
impl actix::Handler<Add> for Bare {
    type Result = u64;
    fn handle(&mut self, add: Add, _: &mut Self::Context) -> u64 {
        self.0 += add.0;
        self.0
    }
}

type Here = (LocalSet, tokio::runtime::Runtime);

fn here() -> Here {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    (LocalSet::new(), runtime)
}

/// With its place in the tree, its spec in the supervisor, its mailbox, and one message handled.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn supervised(bencher: Bencher) {
    bencher
        .with_inputs(|| {
            let (local, runtime) = here();
            let spec = ours::SupervisorSpec::new("top", ours::Strategy::Dynamic);
            let (system, top) = local.block_on(&runtime, async {
                let system = ours::System::builder("n").local().build().expect("a system");
                let top = system.start(spec).await.expect("started");
                (system, top)
            });
            (local, runtime, system, top)
        })
        .bench_local_values(|(local, runtime, system, top)| {
            local.block_on(&runtime, async {
                for i in 0..ACTORS {
                    top.start_child(ours::ChildSpec::actor(i.to_string(), || Counter(0))).await.expect("started");
                    let counter = system.lookup::<Counter>(&format!("top/{i}")).expect("runs");
                    assert_eq!(counter.ask(Add(1)).await, Ok(1));
                }
            });
            (local, runtime, system, top)
        });
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn actix_bare(bencher: Bencher) {
    bencher.with_inputs(here).bench_local_values(|(local, runtime)| {
        let actors = local.block_on(&runtime, async {
            let mut actors = Vec::with_capacity(ACTORS as usize);
            for _ in 0..ACTORS {
                let counter = actix::Actor::start(Bare(0));
                assert_eq!(counter.send(Add(1)).await.expect("answered"), 1);
                actors.push(counter);
            }
            actors
        });
        (actors, local, runtime)
    });
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn tokio_task(bencher: Bencher) {
    bencher.with_inputs(here).bench_local_values(|(local, runtime)| {
        let tasks = local.block_on(&runtime, async {
            let mut tasks = Vec::with_capacity(ACTORS as usize);
            for _ in 0..ACTORS {
                let (sender, mut inbox) =
                    mpsc::channel::<(u64, tokio::sync::oneshot::Sender<u64>)>(ours::MAILBOX_MESSAGES);
                tokio::task::spawn_local(async move {
                    let mut sum = 0;
                    while let Some((add, asker)) = inbox.recv().await {
                        sum += add;
                        let _ = asker.send(sum);
                    }
                });
                let (asker, answer) = tokio::sync::oneshot::channel();
                assert!(sender.send((1, asker)).await.is_ok());
                assert_eq!(answer.await, Ok(1));
                tasks.push(sender);
            }
            tasks
        });
        (tasks, local, runtime)
    });
}
