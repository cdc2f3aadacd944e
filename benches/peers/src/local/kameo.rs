//! kameo with the features that it has by default, and its own supervision.

use super::threads::{Here, There};
use super::{BURST, INTENSITY, MAILBOX, PERIOD, TREE_WORKERS, counted};
use crate::contestant::{Outcome, Round};
use kameo::Actor;
use kameo::actor::{ActorRef, Spawn};
use kameo::error::Infallible;
use kameo::mailbox;
use kameo::message::{Context, Message};
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

struct Counter(u64);
struct Add(u64);
struct Sum;
struct Panic;

type Announce = Option<UnboundedSender<()>>;

impl Actor for Counter {
    type Args = Announce;
    type Error = Infallible;

    async fn on_start(announce: Announce, _: ActorRef<Self>) -> Result<Self, Infallible> {
        if let Some(announce) = &announce {
            // Whoever waited may be gone.
            let _ = announce.send(());
        }
        Ok(Counter(0))
    }
}
impl Message<Add> for Counter {
    type Reply = ();
    async fn handle(&mut self, add: Add, _: &mut Context<Self, ()>) {
        self.0 += black_box(add.0);
    }
}
impl Message<Sum> for Counter {
    type Reply = u64;
    async fn handle(&mut self, _: Sum, _: &mut Context<Self, u64>) -> u64 {
        self.0
    }
}
impl Message<Panic> for Counter {
    type Reply = ();
    async fn handle(&mut self, _: Panic, _: &mut Context<Self, ()>) {
        panic!("asked to")
    }
}

/// Restarts its counters, by kameo's own supervision.
struct Supervisor;

impl Actor for Supervisor {
    type Args = ();
    type Error = Infallible;

    async fn on_start((): (), _: ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(Supervisor)
    }
}

/// One level of the deep tree.
struct Level;

impl Actor for Level {
    type Args = u64;
    type Error = Infallible;

    async fn on_start(depth: u64, myself: ActorRef<Self>) -> Result<Self, Infallible> {
        for _ in 0..TREE_WORKERS {
            child(&myself, None).await;
        }
        if depth > 1 {
            next_level(&myself, depth - 1).await;
        }
        Ok(Level)
    }
}

fn next_level(above: &ActorRef<Level>, depth: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
    Box::pin(async move { Level::supervise(above, depth).spawn().await.wait_for_startup().await })
}

/// A counter under a supervisor, that has started.
async fn child<S: Actor>(supervisor: &ActorRef<S>, announce: Announce) -> ActorRef<Counter> {
    let counter = Counter::supervise(supervisor, announce)
        .restart_limit(INTENSITY, PERIOD)
        .spawn_with_mailbox(mailbox::bounded(MAILBOX))
        .await;
    counter.wait_for_startup().await;
    counter
}

async fn start() -> ActorRef<Counter> {
    let counter = Counter::spawn_with_mailbox(None, mailbox::bounded(MAILBOX));
    counter.wait_for_startup().await;
    counter
}

async fn tell(counter: ActorRef<Counter>, bursts: u64) {
    for _ in 0..bursts {
        for _ in 0..BURST {
            counter.tell(Add(1)).try_send().expect("room");
        }
        black_box(counter.ask(Sum).await.expect("answered"));
    }
}

async fn ask(counter: ActorRef<Counter>, asks: u64) {
    for _ in 0..asks {
        black_box(counter.ask(Sum).await.expect("answered"));
    }
}

async fn supervised(size: u64) -> (ActorRef<Supervisor>, Vec<ActorRef<Counter>>, UnboundedReceiver<()>) {
    let (announce, mut starts) = unbounded_channel();
    let top = Supervisor::spawn(());
    let mut counters = Vec::new();
    for _ in 0..size {
        counters.push(child(&top, Some(announce.clone())).await);
        starts.recv().await.expect("started");
    }
    (top, counters, starts)
}

pub fn prepare(operation: &str, size: u64) -> Option<Round> {
    let here = Here::new();
    Some(match operation {
        "tell" | "ask" | "tell-other" | "ask-other" => {
            let (there, counter) = if operation.ends_with("-other") {
                let (there, counter) = There::new(start);
                (Some(there), counter)
            } else {
                (None, here.run_send(start()))
            };
            let tells = operation.starts_with("tell");
            Box::new(move || {
                let operations = if tells { size * BURST } else { size };
                let kept = counter.clone();
                here.run_send(async move { if tells { tell(counter, size).await } else { ask(counter, size).await } });
                Outcome::new(operations, (kept, here, there))
            })
        }
        "spawn" => {
            let top = here.run_send(async { Supervisor::spawn(()) });
            Box::new(move || {
                let started = here.run_send(start_all(top, size, false));
                Outcome::new(size, (started, here))
            })
        }
        "memory" => {
            let top = here.run_send(async { Supervisor::spawn(()) });
            counted(move || {
                let started = here.run_send(start_all(top, size, true));
                Outcome::new(size, (started, here))
            })
        }
        "restart" => {
            let (top, counters, mut starts) = here.run_send(supervised(1));
            Box::new(move || {
                here.run_send(async move {
                    let counter = &counters[0];
                    for _ in 0..size {
                        counter.tell(Panic).try_send().expect("room");
                        starts.recv().await.expect("started again");
                        black_box(counter.ask(Sum).await.expect("answered"));
                    }
                });
                Outcome::new(size, (top, here))
            })
        }
        "storm" => {
            let (top, counters, mut starts) = here.run_send(supervised(size));
            Box::new(move || {
                let counters = here.run_send(async move {
                    for counter in &counters {
                        counter.tell(Panic).try_send().expect("room");
                    }
                    for _ in 0..counters.len() {
                        starts.recv().await.expect("started again");
                    }
                    counters
                });
                Outcome::new(size, (top, counters, here))
            })
        }
        "tree" => {
            let top = here.run_send(async move {
                let top = Level::spawn(size);
                top.wait_for_startup().await;
                top
            });
            Box::new(move || {
                here.run_send(async move {
                    top.stop_gracefully().await.expect("alive");
                    top.wait_for_shutdown().await;
                });
                Outcome::new(size * (TREE_WORKERS + 1), here)
            })
        }
        _ => return None,
    })
}

async fn start_all(top: ActorRef<Supervisor>, size: u64, ask: bool) -> (ActorRef<Supervisor>, Vec<ActorRef<Counter>>) {
    let mut started = Vec::new();
    for _ in 0..size {
        let counter = child(&top, None).await;
        if ask {
            black_box(counter.ask(Sum).await.expect("answered"));
        }
        started.push(counter);
    }
    (top, started)
}
