//! A value, and those who wait for it to change: tokio's `watch`, but waiters wake in the order in which they came.
//! tokio spreads them over lists at random, which is quicker for thousands of threads and cannot be replayed from a seed.
//! Whoever waits keeps the value alive, so there is no end to report.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::Notify;

#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

#[derive(Debug)]
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The last version that this receiver has looked at.
    seen: u64,
}

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// Written under the value's lock.
    version: AtomicU64,
    changed: Notify,
}

impl<T> Sender<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Shared { value: RwLock::new(value), version: AtomicU64::new(0), changed: Notify::new() }))
    }

    /// A receiver that has seen the present value.
    pub(crate) fn subscribe(&self) -> Receiver<T> {
        let shared = self.0.clone();
        let seen = shared.version.load(Ordering::Acquire);
        Receiver { shared, seen }
    }

    pub(crate) fn borrow(&self) -> RwLockReadGuard<'_, T> {
        self.0.value.read()
    }

    /// Puts another value in place and wakes everybody.
    pub(crate) fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_if_modified(|current| {
            std::mem::swap(current, &mut value);
            true
        });
        value
    }

    /// Changes the value; wakes everybody if `change` says that it did.
    pub(crate) fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = {
            let mut value = self.0.value.write();
            let modified = change(&mut value);
            if modified {
                self.0.version.fetch_add(1, Ordering::Release);
            }
            modified
        };
        if modified {
            self.0.changed.notify_waiters();
        }
        modified
    }
}

impl<T: Clone> Receiver<T> {
    pub(crate) fn borrow_and_update(&mut self) -> RwLockReadGuard<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.version.load(Ordering::Acquire);
        value
    }

    /// What is there now counts as seen.
    pub(crate) fn mark_unchanged(&mut self) {
        drop(self.borrow_and_update());
    }

    /// Waits until there is a value that was not seen.
    pub(crate) async fn changed(&mut self) {
        let seen = self.seen;
        let shared = self.shared.clone();
        shared.until(|shared| (shared.version.load(Ordering::Acquire) != seen).then_some(())).await;
        self.mark_unchanged();
    }

    /// Waits until the value is as `wanted`, and gives it; looks at the present one first.
    pub(crate) async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> T {
        let shared = self.shared.clone();
        let value = shared
            .until(|shared| {
                let value = shared.value.read();
                wanted(&value).then(|| value.clone())
            })
            .await;
        self.mark_unchanged();
        value
    }
}

impl<T> Shared<T> {
    async fn until<R>(&self, mut look: impl FnMut(&Self) -> Option<R>) -> R {
        loop {
            // Notified of every change from before the look on, so none falls between the two.
            let notified = self.changed.notified();
            if let Some(found) = look(self) {
                return found;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    #[tokio::test]
    async fn waiters_wake_in_the_order_in_which_they_came() {
        let sender = Sender::new(0);
        let (woken, looks) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicU64::new(0)));
        let mut waiters = JoinSet::new();
        for n in 0..100 {
            let (mut receiver, woken, looks) = (sender.subscribe(), woken.clone(), looks.clone());
            waiters.spawn(async move {
                let look = |value: &u64| {
                    looks.fetch_add(1, Ordering::Relaxed);
                    *value == 2
                };
                receiver.wait_for(look).await;
                woken.lock().push(n);
            });
        }
        for value in 1..=2 {
            // Until all have looked at the value before, and wait.
            while looks.load(Ordering::Relaxed) < 100 * value {
                tokio::task::yield_now().await;
            }
            sender.send_replace(value);
        }
        waiters.join_all().await;
        assert_eq!(*woken.lock(), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_is_reported_once_to_whom_has_not_seen_it() {
        let sender = Sender::new(0);
        let mut receiver = sender.subscribe();
        assert_eq!(sender.send_replace(1), 0);
        receiver.changed().await;
        assert!(timeout(Duration::from_millis(10), receiver.changed()).await.is_err());
        assert!(!sender.send_if_modified(|_| false));
        assert!(timeout(Duration::from_millis(10), receiver.changed()).await.is_err());
        sender.send_replace(2);
        assert_eq!(*receiver.borrow_and_update(), 2);
        assert!(timeout(Duration::from_millis(10), receiver.changed()).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_change_is_missed_between_threads() {
        let (ping, pong) = (Arc::new(Sender::new(0)), Arc::new(Sender::new(0)));
        let (mut pings, answers) = (ping.subscribe(), pong.clone());
        let answering = tokio::spawn(async move {
            for n in 1..=1_000 {
                pings.wait_for(|value| *value == n).await;
                answers.send_replace(n);
            }
        });
        let mut pongs = pong.subscribe();
        for n in 1..=1_000 {
            ping.send_replace(n);
            pongs.wait_for(|value| *value == n).await;
        }
        answering.await.expect("no panic");
    }
}
