//! QUIC's tasks, which any thread may poll: whoever has written something on a connection can send its packets there and then,
//! instead of waking the transport's thread for it. That saves a question, and its answer, the way over one more thread each.
//!
//! ```text
//!            woken, nobody polls            polled                  woken while polled
//!   IDLE ──────▶ its task on the runtime ────▶ RUNNING ────────────────▶ AGAIN
//!     ▲     └──▶ inside `at_once`: here  ──────┘  │                        │
//!     └───────────────────────────────────────────┴──── polled once more ──┘
//! ```
//! Must never be polled by two threads at a time, nor lose what woke it. Spawned by `network`; polled here by `ask` and `link`.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::runtime::Handle;

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const AGAIN: u8 = 2;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// One of QUIC's tasks.
pub(crate) struct Driven {
    /// Locked by whoever has made it `RUNNING`. `None` once it has ended.
    future: Mutex<Option<Task>>,
    state: AtomicU8,
    ended: AtomicBool,
    /// Of its task on the runtime.
    task: AtomicWaker,
}

/// Its task on the runtime, with which it ends: QUIC keeps what wakes it, and so it would keep itself.
struct Owner(Arc<Driven>);

impl Drop for Owner {
    fn drop(&mut self) {
        let future = self.0.future.lock().take();
        // Outside of the lock, with whatever it owns.
        drop(future);
    }
}

thread_local! {
    /// What was woken inside `at_once`; `None` outside.
    static WOKEN: RefCell<Option<Vec<Arc<Driven>>>> = const { RefCell::new(None) };
}

impl Driven {
    /// Runs it on a runtime, where it is polled unless somebody else does.
    pub(crate) fn spawn(runtime: &Handle, future: Task) {
        let driven = Arc::new(Driven {
            future: Mutex::new(Some(future)),
            state: AtomicU8::new(IDLE),
            ended: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        let owner = Owner(driven);
        runtime.spawn(poll_fn(move |cx| {
            let Owner(driven) = &owner;
            // Before it is polled: who polls it now wakes this task afterwards, if there is more to do.
            driven.task.register(cx.waker());
            driven.poll();
            if driven.ended.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    /// Polls it here, or has whoever does so now see to it that it is polled again.
    fn poll(self: &Arc<Self>) {
        if !self.begin() {
            return;
        }
        let ended = {
            let mut future = self.future.lock();
            let waker = Waker::from(self.clone());
            let polled = future.as_mut().map(|future| {
                // As on a runtime, a panic is the end of the task, and of nobody else's.
                catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))))
            });
            let ended = !matches!(polled, Some(Ok(Poll::Pending)));
            if ended {
                *future = None;
            }
            ended
        };
        if ended {
            self.ended.store(true, Ordering::Release);
        }
        if self.state.swap(IDLE, Ordering::AcqRel) == AGAIN || ended {
            self.task.wake();
        }
    }

    /// Whether the caller is to poll it.
    fn begin(&self) -> bool {
        loop {
            let Err(state) = self.state.compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Acquire) else {
                return true;
            };
            if state == AGAIN || self.note() {
                return false;
            }
        }
    }

    /// Has whoever polls it now poll it again. False if nobody does.
    fn note(&self) -> bool {
        match self.state.compare_exchange(RUNNING, AGAIN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(AGAIN) => true,
            Err(_) => false,
        }
    }
}

impl Wake for Driven {
    fn wake(self: Arc<Self>) {
        if self.note() {
            return;
        }
        let elsewhere = WOKEN.with_borrow_mut(|woken| match woken {
            Some(woken) => {
                woken.push(self);
                None
            }
            None => Some(self),
        });
        if let Some(driven) = elsewhere {
            driven.task.wake();
        }
    }
}

/// Runs `f`, and polls what it wakes of QUIC before this returns.
fn at_once<R>(f: impl FnOnce() -> R) -> R {
    /// Also when `f` panics.
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            for driven in WOKEN.take().into_iter().flatten() {
                match std::thread::panicking() {
                    true => driven.task.wake(),
                    false => driven.poll(),
                }
            }
        }
    }
    if WOKEN.with_borrow(Option::is_some) {
        return f();
    }
    WOKEN.set(Some(vec![]));
    let _leave = Leave;
    f()
}

/// As the future, and what its polls write on a connection is sent before they return.
pub(crate) async fn sending_at_once<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| at_once(|| future.as_mut().poll(cx))).await
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread, time::Duration};

    use tokio::sync::Notify;

    use super::*;

    /// Counts how often it was polled, and how many threads did so at the same time.
    #[derive(Default)]
    struct Polled {
        times: AtomicUsize,
        inside: AtomicUsize,
        most: AtomicUsize,
        /// Work to do, and done.
        wanted: AtomicUsize,
        done: AtomicUsize,
        waker: Mutex<Option<Waker>>,
        thread: Mutex<Option<thread::ThreadId>>,
    }

    impl Polled {
        fn spawn(self: &Arc<Self>, runtime: &Handle) {
            let polled = self.clone();
            Driven::spawn(
                runtime,
                Box::pin(poll_fn(move |cx| {
                    let inside = polled.inside.fetch_add(1, Ordering::SeqCst) + 1;
                    polled.most.fetch_max(inside, Ordering::SeqCst);
                    polled.times.fetch_add(1, Ordering::SeqCst);
                    *polled.thread.lock() = Some(thread::current().id());
                    *polled.waker.lock() = Some(cx.waker().clone());
                    polled.done.store(polled.wanted.load(Ordering::SeqCst), Ordering::SeqCst);
                    thread::yield_now();
                    polled.inside.fetch_sub(1, Ordering::SeqCst);
                    Poll::Pending
                })),
            );
        }

        /// As QUIC does: something is written, and whoever sends it is woken.
        fn write(&self) {
            self.wanted.fetch_add(1, Ordering::SeqCst);
            if let Some(waker) = self.waker.lock().take() {
                waker.wake();
            }
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime")
    }

    fn until(what: impl Fn() -> bool) {
        for _ in 0..10_000 {
            if what() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("it never came");
    }

    #[test]
    fn what_is_written_inside_is_sent_by_the_writer_and_else_by_its_runtime() {
        let (runtime, polled) = (runtime(), Arc::<Polled>::default());
        polled.spawn(runtime.handle());
        until(|| polled.times.load(Ordering::SeqCst) == 1);
        at_once(|| {
            polled.write();
            assert_eq!(polled.times.load(Ordering::SeqCst), 1, "not before it was written");
        });
        assert_eq!(polled.times.load(Ordering::SeqCst), 2);
        assert_eq!(*polled.thread.lock(), Some(thread::current().id()));
        polled.write();
        until(|| polled.times.load(Ordering::SeqCst) == 3);
        assert_ne!(*polled.thread.lock(), Some(thread::current().id()));
    }

    #[test]
    fn many_writers_lose_no_wake_and_never_poll_it_together() {
        let (runtime, polled) = (runtime(), Arc::<Polled>::default());
        polled.spawn(runtime.handle());
        until(|| polled.times.load(Ordering::SeqCst) == 1);
        let writers: Vec<_> = (0..4)
            .map(|n| {
                let polled = polled.clone();
                thread::spawn(move || {
                    for round in 0..2_000 {
                        if (round + n) % 3 == 0 {
                            polled.write();
                        } else {
                            at_once(|| polled.write());
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
        until(|| polled.done.load(Ordering::SeqCst) == 8_000);
        assert_eq!(polled.most.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn it_ends_with_its_runtime_also_when_it_holds_what_wakes_it() {
        let (runtime, polled) = (runtime(), Arc::<Polled>::default());
        polled.spawn(runtime.handle());
        until(|| polled.times.load(Ordering::SeqCst) == 1);
        assert!(polled.waker.lock().is_some() && Arc::strong_count(&polled) == 2);
        runtime.shutdown_timeout(Duration::from_secs(10));
        until(|| Arc::strong_count(&polled) == 1);
        // Nobody is polled any more.
        at_once(|| polled.write());
        assert_eq!(polled.times.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn its_end_and_its_panic_are_its_own() {
        let runtime = runtime();
        for panics in [false, true] {
            let (waker, gone) = (Arc::<Mutex<Option<Waker>>>::default(), Arc::new(Notify::new()));
            let (held, weak) = (waker.clone(), Arc::downgrade(&gone));
            let mut turns = 0;
            Driven::spawn(
                runtime.handle(),
                Box::pin(poll_fn(move |cx| {
                    let _gone = &gone;
                    turns += 1;
                    assert!(!(panics && turns > 1), "as it is meant to");
                    *held.lock() = Some(cx.waker().clone());
                    if turns > 1 { Poll::Ready(()) } else { Poll::Pending }
                })),
            );
            until(|| waker.lock().is_some());
            at_once(|| waker.lock().take().expect("polled").wake());
            assert!(weak.upgrade().is_none(), "it is dropped at its end");
        }
    }
}
