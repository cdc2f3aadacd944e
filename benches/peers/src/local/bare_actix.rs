//! actix as its documentation writes it; nothing is restarted unless by hand.

use super::threads::{Here, There};
use super::{BURST, MAILBOX, TREE_WORKERS, counted};
use crate::contestant::{Outcome, Round};
use actix::{Actor, ActorContext, ActorFutureExt, Addr, Context, Handler, Message, ResponseActFuture, WrapFuture};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::hint::black_box;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

struct Counter {
    sum: u64,
    announce: Option<UnboundedSender<()>>,
}

struct Add(u64);
struct Sum;
struct Panic;
struct Stop;

impl Actor for Counter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(announce) = &self.announce {
            // Whoever waited may be gone.
            let _ = announce.send(());
        }
    }
}
impl Message for Add {
    type Result = ();
}
impl Message for Sum {
    type Result = u64;
}
impl Message for Panic {
    type Result = ();
}
impl Message for Stop {
    type Result = ();
}
impl Handler<Add> for Counter {
    type Result = ();
    fn handle(&mut self, add: Add, _: &mut Self::Context) {
        self.sum += black_box(add.0);
    }
}
impl Handler<Sum> for Counter {
    type Result = u64;
    fn handle(&mut self, _: Sum, _: &mut Self::Context) -> u64 {
        self.sum
    }
}
impl Handler<Panic> for Counter {
    type Result = ();
    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("asked to")
    }
}
impl Handler<Stop> for Counter {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

fn start() -> Addr<Counter> {
    Counter { sum: 0, announce: None }.start()
}

/// One level of the deep tree.
struct Level {
    workers: Vec<Addr<Counter>>,
    next: Option<Addr<Level>>,
}

impl Actor for Level {
    type Context = Context<Self>;
}

impl Handler<Stop> for Level {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Stop, _: &mut Self::Context) -> Self::Result {
        let (workers, next) = (std::mem::take(&mut self.workers), self.next.take());
        let stopping = async move {
            if let Some(next) = next {
                next.send(Stop).await.expect("stopped");
            }
            for worker in workers.iter().rev() {
                worker.send(Stop).await.expect("stopped");
            }
        };
        Box::pin(stopping.into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}

fn level(depth: u64) -> Addr<Level> {
    let workers = (0..TREE_WORKERS).map(|_| start()).collect();
    Level { workers, next: (depth > 1).then(|| level(depth - 1)) }.start()
}

async fn tell(counter: Addr<Counter>, bursts: u64) {
    for _ in 0..bursts {
        for _ in 0..BURST {
            counter.do_send(Add(1));
        }
        black_box(counter.send(Sum).await.expect("answered"));
    }
}

async fn ask(counter: Addr<Counter>, asks: u64) {
    for _ in 0..asks {
        black_box(counter.send(Sum).await.expect("answered"));
    }
}

pub fn prepare(operation: &str, size: u64) -> Option<Round> {
    let here = Here::new();
    Some(match operation {
        "tell" | "ask" | "tell-other" | "ask-other" => {
            let (there, counter) = if operation.ends_with("-other") {
                let (there, counter) = There::new(|| async { start() });
                (Some(there), counter)
            } else {
                (None, here.run(async { start() }))
            };
            let tells = operation.starts_with("tell");
            Box::new(move || {
                let operations = if tells { size * BURST } else { size };
                here.run(async move { if tells { tell(counter, size).await } else { ask(counter, size).await } });
                Outcome::new(operations, (here, there))
            })
        }
        "spawn" => Box::new(move || {
            let started = here.run(async move {
                let mut started = Vec::new();
                for _ in 0..size {
                    let counter = start();
                    black_box(counter.send(Sum).await.expect("answered"));
                    started.push(counter);
                }
                started
            });
            Outcome::new(size, (started, here))
        }),
        "memory" => counted(move || {
            let started = here.run(async move {
                let mut started = Vec::new();
                for _ in 0..size {
                    let counter = start();
                    black_box(counter.send(Sum).await.expect("answered"));
                    started.push(counter);
                }
                started
            });
            Outcome::new(size, (started, here))
        }),
        "restart" => {
            let counter = here.run(async { start() });
            Box::new(move || {
                here.run(async move {
                    let mut counter = counter;
                    for _ in 0..size {
                        assert!(counter.send(Panic).await.is_err());
                        counter = start();
                        black_box(counter.send(Sum).await.expect("answered"));
                    }
                });
                Outcome::new(size, here)
            })
        }
        "storm" => {
            let counters: Vec<_> = here.run(async move {
                let mut counters = Vec::new();
                for _ in 0..size {
                    let counter = start();
                    counter.send(Sum).await.expect("answered");
                    counters.push(counter);
                }
                counters
            });
            Box::new(move || {
                let restarted = here.run(async move {
                    let (announce, mut starts) = unbounded_channel();
                    let mut crashing: FuturesUnordered<_> =
                        counters.iter().map(|counter| counter.send(Panic)).collect();
                    let mut restarted = Vec::new();
                    while let Some(crashed) = crashing.next().await {
                        assert!(crashed.is_err());
                        restarted.push(Counter { sum: 0, announce: Some(announce.clone()) }.start());
                    }
                    for _ in 0..counters.len() {
                        starts.recv().await.expect("started again");
                    }
                    restarted
                });
                Outcome::new(size, (restarted, here))
            })
        }
        "tree" => {
            let top = here.run(async move { level(size) });
            Box::new(move || {
                here.run(async move { top.send(Stop).await.expect("stopped") });
                Outcome::new(size * (TREE_WORKERS + 1), here)
            })
        }
        _ => return None,
    })
}
