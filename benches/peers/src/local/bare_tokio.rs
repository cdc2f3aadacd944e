//! Bare tasks with channels: the limit that any actor library stays above.

use super::threads::{Here, There};
use super::{BURST, MAILBOX, TREE_WORKERS, counted};
use crate::contestant::{Outcome, Round};
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet, spawn_local};

/// What a task understands.
enum Letter {
    Add(u64),
    Sum(oneshot::Sender<u64>),
    Panic,
}

type Counter = mpsc::Sender<Letter>;

async fn count(mut inbox: mpsc::Receiver<Letter>) {
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
}

fn start() -> (Counter, JoinHandle<()>) {
    let (sender, inbox) = mpsc::channel(MAILBOX);
    (sender, spawn_local(count(inbox)))
}

async fn sum(counter: &Counter) -> u64 {
    let (asker, answer) = oneshot::channel();
    counter.send(Letter::Sum(asker)).await.expect("the task lives");
    answer.await.expect("answered")
}

async fn tell(counter: Counter, bursts: u64) {
    for _ in 0..bursts {
        for _ in 0..BURST {
            assert!(counter.try_send(Letter::Add(1)).is_ok(), "room");
        }
        black_box(sum(&counter).await);
    }
}

async fn ask(counter: Counter, asks: u64) {
    for _ in 0..asks {
        black_box(sum(&counter).await);
    }
}

/// One level of the deep tree: stops its own in reverse when it is told to, then itself.
fn level(depth: u64, up: oneshot::Sender<()>, stop: oneshot::Receiver<()>) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let workers: Vec<_> = (0..TREE_WORKERS).map(|_| start()).collect();
        let mut next = None;
        if depth > 1 {
            let ((up, is_up), (halt, halted)) = (oneshot::channel(), oneshot::channel());
            next = Some((halt, spawn_local(level(depth - 1, up, halted))));
            is_up.await.expect("started");
        }
        up.send(()).expect("waited for");
        let _ = stop.await;
        if let Some((halt, task)) = next {
            drop(halt);
            task.await.expect("stopped");
        }
        for (worker, task) in workers.into_iter().rev() {
            drop(worker);
            task.await.expect("stopped");
        }
    })
}

pub fn prepare(operation: &str, size: u64) -> Option<Round> {
    let here = Here::new();
    Some(match operation {
        "tell" | "ask" | "tell-other" | "ask-other" => {
            let (there, counter) = if operation.ends_with("-other") {
                let (there, counter) = There::new(|| async { start().0 });
                (Some(there), counter)
            } else {
                (None, here.run(async { start().0 }))
            };
            let tells = operation.starts_with("tell");
            Box::new(move || {
                let operations = if tells { size * BURST } else { size };
                let kept = counter.clone();
                here.run(async move { if tells { tell(counter, size).await } else { ask(counter, size).await } });
                Outcome::new(operations, (kept, here, there))
            })
        }
        "spawn" => Box::new(move || start_all(here, size)),
        "memory" => counted(move || start_all(here, size)),
        "restart" => {
            let running = here.run(async { start() });
            Box::new(move || {
                here.run(async move {
                    let (mut counter, mut task) = running;
                    for _ in 0..size {
                        counter.send(Letter::Panic).await.expect("the task lives");
                        assert!((&mut task).await.is_err());
                        (counter, task) = start();
                        black_box(sum(&counter).await);
                    }
                });
                Outcome::new(size, here)
            })
        }
        "storm" => {
            let (counters, tasks) = here.run(async move {
                let (mut counters, mut tasks) = (Vec::new(), JoinSet::new());
                for _ in 0..size {
                    let (sender, inbox) = mpsc::channel(MAILBOX);
                    tasks.spawn_local(count(inbox));
                    sum(&sender).await;
                    counters.push(sender);
                }
                (counters, tasks)
            });
            Box::new(move || {
                let restarted = here.run(async move {
                    let mut tasks = tasks;
                    for counter in &counters {
                        assert!(counter.try_send(Letter::Panic).is_ok(), "room");
                    }
                    let (announce, mut starts) = mpsc::unbounded_channel();
                    let mut restarted = Vec::new();
                    for _ in 0..counters.len() {
                        assert!(tasks.join_next().await.expect("one of them").is_err());
                        let (sender, inbox) = mpsc::channel(MAILBOX);
                        let announce = announce.clone();
                        restarted.push(sender);
                        spawn_local(async move {
                            announce.send(()).expect("waited for");
                            count(inbox).await;
                        });
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
            let (stop, task) = here.run(async move {
                let ((up, is_up), (stop, stopped)) = (oneshot::channel(), oneshot::channel());
                let task = spawn_local(level(size, up, stopped));
                is_up.await.expect("started");
                (stop, task)
            });
            Box::new(move || {
                here.run(async move {
                    drop(stop);
                    task.await.expect("stopped");
                });
                Outcome::new(size * (TREE_WORKERS + 1), here)
            })
        }
        _ => return None,
    })
}

fn start_all(here: Here, size: u64) -> Outcome {
    let started = here.run(async move {
        let mut started = Vec::new();
        for _ in 0..size {
            let (counter, _) = start();
            black_box(sum(&counter).await);
            started.push(counter);
        }
        started
    });
    Outcome::new(size, (started, here))
}
