//! Our own: everything under a supervisor.

use super::threads::Here;
use super::{BURST, INTENSITY, MAILBOX, PERIOD, TREE_WORKERS, counted};
use crate::contestant::{Outcome, Round};
use phalanx_actors::{
    Actor, ChildSpec, Ctx, Exit, Handler, Message, Ref, Reply, Strategy, SupervisorRef, SupervisorSpec, System,
    SystemBuilder,
};
use std::future::Future;
use std::hint::black_box;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

struct Counter {
    sum: u64,
    /// Says when it has started: whoever waits need not look again and again.
    announce: Option<UnboundedSender<()>>,
}

struct Add(u64);
/// Answers how much was added.
struct Sum;
struct Panic;

impl Actor for Counter {
    fn started(&mut self, _: &mut Ctx<Self>) -> Result<(), Exit> {
        if let Some(announce) = &self.announce {
            // Whoever waited may be gone.
            let _ = announce.send(());
        }
        Ok(())
    }
}
impl Message for Add {
    type Reply = ();
}
impl Message for Sum {
    type Reply = u64;
}
impl Message for Panic {
    type Reply = ();
}
impl Handler<Add> for Counter {
    fn handle(&mut self, add: Add, _: &mut Ctx<Self>) -> Reply<()> {
        self.sum += black_box(add.0);
        ().into()
    }
}
impl Handler<Sum> for Counter {
    fn handle(&mut self, _: Sum, _: &mut Ctx<Self>) -> Reply<u64> {
        self.sum.into()
    }
}
impl Handler<Panic> for Counter {
    fn handle(&mut self, _: Panic, _: &mut Ctx<Self>) -> Reply<()> {
        panic!("asked to")
    }
}

fn child(id: impl Into<String>, announce: Option<UnboundedSender<()>>) -> ChildSpec {
    ChildSpec::actor(id, move || Counter { sum: 0, announce: announce.clone() }).mailbox(MAILBOX)
}

fn top() -> SupervisorSpec {
    SupervisorSpec::new("top", Strategy::Dynamic).intensity(INTENSITY, PERIOD)
}

/// Runs work as a task of the arbiter's thread: where actors start others, as they do in a cluster.
struct Runner;
struct Run(Box<dyn FnOnce() + Send>);

impl Actor for Runner {}
impl Message for Run {
    type Reply = ();
}
impl Handler<Run> for Runner {
    fn handle(&mut self, run: Run, _: &mut Ctx<Self>) -> Reply<()> {
        run.0();
        ().into()
    }
}

/// A system with a thread of its own, which is all that works until `on_arbiter` returns.
struct There {
    system: System,
    runner: Ref<Runner>,
}

impl There {
    fn new(here: &Here) -> Self {
        let system = here.run(async {
            let system = System::builder("n").build().expect("a system");
            let spec = SupervisorSpec::new("runs", Strategy::OneForOne).child(ChildSpec::actor("runner", || Runner));
            system.start(spec).await.expect("started");
            system
        });
        let runner = system.lookup::<Runner>("runs/runner").expect("runs");
        There { system, runner }
    }

    fn on_arbiter<T: Send + 'static, F: Future<Output = T> + 'static>(
        &self,
        work: impl FnOnce(System) -> F + Send + 'static,
    ) -> T {
        let (give, take) = std::sync::mpsc::channel();
        let system = self.system.clone();
        let run = move || {
            tokio::task::spawn_local(async move {
                // Waited for by whoever called.
                let _ = give.send(work(system).await);
            });
        };
        self.runner.tell(Run(Box::new(run))).expect("room");
        take.recv().expect("done")
    }
}

async fn system(builder: SystemBuilder) -> (System, SupervisorRef) {
    let system = builder.build().expect("a system");
    let top = system.start(top().child(child("counter", None))).await.expect("started");
    (system, top)
}

fn counter(system: &System) -> Ref<Counter> {
    system.lookup::<Counter>("top/counter").expect("runs")
}

async fn tell(counter: Ref<Counter>, bursts: u64) {
    for _ in 0..bursts {
        for _ in 0..BURST {
            counter.tell(Add(1)).expect("room");
        }
        black_box(counter.ask(Sum).await.expect("answered"));
    }
}

async fn ask(counter: Ref<Counter>, asks: u64) {
    for _ in 0..asks {
        black_box(counter.ask(Sum).await.expect("answered"));
    }
}

/// A supervisor with its workers, and the next level as its last child.
fn level(id: String, depth: u64) -> SupervisorSpec {
    let mut spec = SupervisorSpec::new(id, Strategy::OneForOne);
    for worker in 0..TREE_WORKERS {
        spec = spec.child(child(worker.to_string(), None));
    }
    if depth > 1 {
        spec = spec.child(ChildSpec::supervisor("s", move || level("s".into(), depth - 1)));
    }
    spec
}

pub fn prepare(operation: &str, size: u64) -> Option<Round> {
    let here = Here::new();
    Some(match operation {
        "tell" | "ask" | "tell-other" | "ask-other" => {
            let other = operation.ends_with("-other");
            let running = here.run(async move {
                let builder = System::builder("n");
                system(if other { builder } else { builder.local() }).await
            });
            let counter = counter(&running.0);
            let tells = operation.starts_with("tell");
            Box::new(move || {
                let operations = if tells { size * BURST } else { size };
                here.run(async move { if tells { tell(counter, size).await } else { ask(counter, size).await } });
                Outcome::new(operations, (running, here))
            })
        }
        "spawn" => {
            let there = There::new(&here);
            let top = there.on_arbiter(|system| async move { system.start(top()).await.expect("started") });
            Box::new(move || {
                there.on_arbiter(move |_| async move {
                    for i in 0..size {
                        top.start_child(child(i.to_string(), None)).await.expect("started");
                    }
                });
                Outcome::new(size, (there, here))
            })
        }
        "memory" => {
            let there = There::new(&here);
            let top = there.on_arbiter(|system| async move { system.start(top()).await.expect("started") });
            counted(move || {
                there.on_arbiter(move |system| async move {
                    for i in 0..size {
                        let id = i.to_string();
                        top.start_child(child(id.as_str(), None)).await.expect("started");
                        let counter = system.lookup::<Counter>(&format!("top/{id}")).expect("runs");
                        black_box(counter.ask(Sum).await.expect("answered"));
                    }
                });
                Outcome::new(size, (there, here))
            })
        }
        "restart" => {
            let there = There::new(&here);
            let (announce, mut starts) = unbounded_channel();
            let (counter, mut starts) = there.on_arbiter(move |system| async move {
                system.start(top().child(child("counter", Some(announce)))).await.expect("started");
                starts.recv().await.expect("started");
                (system.named::<Counter>("top/counter"), starts)
            });
            Box::new(move || {
                there.on_arbiter(move |_| async move {
                    for _ in 0..size {
                        counter.tell(Panic).expect("room");
                        starts.recv().await.expect("started again");
                        black_box(counter.ask(Sum).await.expect("answered"));
                    }
                });
                Outcome::new(size, (there, here))
            })
        }
        "storm" => {
            let there = There::new(&here);
            let (announce, mut starts) = unbounded_channel();
            let (counters, mut starts) = there.on_arbiter(move |system| async move {
                let top = system.start(top()).await.expect("started");
                let mut counters = Vec::new();
                for i in 0..size {
                    top.start_child(child(i.to_string(), Some(announce.clone()))).await.expect("started");
                    counters.push(system.lookup::<Counter>(&format!("top/{i}")).expect("runs"));
                    starts.recv().await.expect("started");
                }
                (counters, starts)
            });
            Box::new(move || {
                there.on_arbiter(move |_| async move {
                    for counter in &counters {
                        counter.tell(Panic).expect("room");
                    }
                    for _ in 0..counters.len() {
                        starts.recv().await.expect("started again");
                    }
                });
                Outcome::new(size, (there, here))
            })
        }
        "tree" => {
            let there = There::new(&here);
            let top = there.on_arbiter(move |system| async move {
                system.start(level("top".into(), size)).await.expect("started")
            });
            Box::new(move || {
                there.on_arbiter(move |_| async move { top.stop().await });
                Outcome::new(size * (TREE_WORKERS + 1), (there, here))
            })
        }
        _ => return None,
    })
}
