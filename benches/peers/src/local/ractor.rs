//! ractor with the features that it has by default. It tells a supervisor of failures and restarts nothing; the supervisor here does.

use super::threads::{Here, There};
use super::{BURST, TREE_WORKERS, counted};
use crate::contestant::{Outcome, Round};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

enum Letter {
    Add(u64),
    Sum(RpcReplyPort<u64>),
    Panic,
}

/// Where a counter says that it has started, and how to reach it.
type Announce = Option<UnboundedSender<ActorRef<Letter>>>;

struct Counter;

impl Actor for Counter {
    type Msg = Letter;
    type State = u64;
    type Arguments = Announce;

    async fn pre_start(&self, myself: ActorRef<Letter>, announce: Announce) -> Result<u64, ActorProcessingErr> {
        if let Some(announce) = &announce {
            // Whoever waited may be gone.
            let _ = announce.send(myself.clone());
        }
        Ok(0)
    }

    async fn handle(&self, _: ActorRef<Letter>, letter: Letter, sum: &mut u64) -> Result<(), ActorProcessingErr> {
        match letter {
            Letter::Add(n) => *sum += black_box(n),
            Letter::Sum(asker) => drop(asker.send(*sum)),
            Letter::Panic => panic!("asked to"),
        }
        Ok(())
    }
}

/// Starts another counter for each that failed.
struct Supervisor;

impl Actor for Supervisor {
    type Msg = ();
    type State = Announce;
    type Arguments = Announce;

    async fn pre_start(&self, _: ActorRef<()>, announce: Announce) -> Result<Announce, ActorProcessingErr> {
        Ok(announce)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        announce: &mut Announce,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(..) = event {
            Actor::spawn_linked(None, Counter, announce.clone(), myself.get_cell()).await?;
        }
        Ok(())
    }
}

/// One level of the deep tree: its children, in the order of their start.
struct Level;

impl Actor for Level {
    type Msg = ();
    type State = Vec<ActorCell>;
    type Arguments = u64;

    async fn pre_start(&self, myself: ActorRef<()>, depth: u64) -> Result<Vec<ActorCell>, ActorProcessingErr> {
        let mut children = Vec::new();
        for _ in 0..TREE_WORKERS {
            children.push(Actor::spawn_linked(None, Counter, None, myself.get_cell()).await?.0.get_cell());
        }
        if depth > 1 {
            children.push(level(depth - 1, myself.get_cell()).await);
        }
        Ok(children)
    }

    async fn post_stop(&self, _: ActorRef<()>, children: &mut Vec<ActorCell>) -> Result<(), ActorProcessingErr> {
        for child in children.iter().rev() {
            child.stop_and_wait(None, None).await?;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        _: SupervisionEvent,
        _: &mut Vec<ActorCell>,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

fn level(depth: u64, above: ActorCell) -> Pin<Box<dyn Future<Output = ActorCell> + Send>> {
    Box::pin(async move { Actor::spawn_linked(None, Level, depth, above).await.expect("started").0.get_cell() })
}

async fn start(announce: Announce) -> ActorRef<Letter> {
    Actor::spawn(None, Counter, announce).await.expect("started").0
}

async fn supervisor(announce: Announce) -> ActorRef<()> {
    Actor::spawn(None, Supervisor, announce).await.expect("started").0
}

async fn sum(counter: &ActorRef<Letter>) -> u64 {
    match counter.call(Letter::Sum, None).await {
        Ok(CallResult::Success(sum)) => sum,
        _ => panic!("not answered"),
    }
}

async fn tell(counter: ActorRef<Letter>, bursts: u64) {
    for _ in 0..bursts {
        for _ in 0..BURST {
            counter.cast(Letter::Add(1)).expect("alive");
        }
        black_box(sum(&counter).await);
    }
}

async fn ask(counter: ActorRef<Letter>, asks: u64) {
    for _ in 0..asks {
        black_box(sum(&counter).await);
    }
}

/// Counters under one supervisor, and where they and their successors announce themselves.
async fn supervised(size: u64) -> (ActorRef<()>, Vec<ActorRef<Letter>>, UnboundedReceiver<ActorRef<Letter>>) {
    let (announce, mut starts) = unbounded_channel();
    let top = supervisor(Some(announce.clone())).await;
    let mut counters = Vec::new();
    for _ in 0..size {
        let counter = Actor::spawn_linked(None, Counter, Some(announce.clone()), top.get_cell()).await;
        counters.push(counter.expect("started").0);
        starts.recv().await.expect("started");
    }
    (top, counters, starts)
}

pub fn prepare(operation: &str, size: u64) -> Option<Round> {
    let here = Here::new();
    Some(match operation {
        "tell" | "ask" | "tell-other" | "ask-other" => {
            let (there, counter) = if operation.ends_with("-other") {
                let (there, counter) = There::new(|| start(None));
                (Some(there), counter)
            } else {
                (None, here.run_send(start(None)))
            };
            let tells = operation.starts_with("tell");
            Box::new(move || {
                let operations = if tells { size * BURST } else { size };
                here.run_send(async move { if tells { tell(counter, size).await } else { ask(counter, size).await } });
                Outcome::new(operations, (here, there))
            })
        }
        "spawn" => {
            let top = here.run_send(supervisor(None));
            Box::new(move || {
                let started = here.run_send(start_all(top, size, false));
                Outcome::new(size, (started, here))
            })
        }
        "memory" => {
            let top = here.run_send(supervisor(None));
            counted(move || {
                let started = here.run_send(start_all(top, size, true));
                Outcome::new(size, (started, here))
            })
        }
        "restart" => {
            let (top, counters, mut starts) = here.run_send(supervised(1));
            Box::new(move || {
                here.run_send(async move {
                    let mut counter = counters[0].clone();
                    for _ in 0..size {
                        counter.cast(Letter::Panic).expect("alive");
                        counter = starts.recv().await.expect("started again");
                        black_box(sum(&counter).await);
                    }
                });
                Outcome::new(size, (top, here))
            })
        }
        "storm" => {
            let (top, counters, mut starts) = here.run_send(supervised(size));
            Box::new(move || {
                here.run_send(async move {
                    for counter in &counters {
                        counter.cast(Letter::Panic).expect("alive");
                    }
                    for _ in 0..counters.len() {
                        starts.recv().await.expect("started again");
                    }
                });
                Outcome::new(size, (top, here))
            })
        }
        "tree" => {
            let top = here.run_send(async move {
                let root = supervisor(None).await;
                level(size, root.get_cell()).await
            });
            Box::new(move || {
                here.run_send(async move { top.stop_and_wait(None, None).await.expect("stopped") });
                Outcome::new(size * (TREE_WORKERS + 1), here)
            })
        }
        _ => return None,
    })
}

async fn start_all(top: ActorRef<()>, size: u64, ask: bool) -> (ActorRef<()>, Vec<ActorRef<Letter>>) {
    let mut started = Vec::new();
    for _ in 0..size {
        let counter = Actor::spawn_linked(None, Counter, None, top.get_cell()).await.expect("started").0;
        if ask {
            black_box(sum(&counter).await);
        }
        started.push(counter);
    }
    (top, started)
}
