//! Tells that have arrived and wait for their handlers: one queue for each peer, lane and path, handled one after the
//! other, so that tells are handled in the order in which they were sent. Bounded; a path that takes nothing holds up its
//! lane for a while (backpressure), and then loses what comes for it, so that its neighbours go on.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

/// Which queue: two lanes are not ordered among each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    Control,
    Tells,
}

/// Lanes, and so maps of queues.
const LANES: usize = 2;

/// Jobs that a drain takes at once: the map is locked and its key hashed once for so many.
const DRAIN_JOBS: usize = 64;

/// The handling of one message. Made on arrival, started when its turn comes; must not panic.
pub(crate) type Job = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

#[derive(Debug)]
pub(crate) struct Inboxes {
    /// By lane, then by path: looked up without owning the path.
    queues: Mutex<[HashMap<Arc<str>, Queue>; LANES]>,
    runtime: Handle,
    messages_max: usize,
    bytes_max: usize,
    wait: Duration,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Job, usize)>,
    bytes: usize,
    /// Did not make room in time; messages are dropped without waiting until one fits again.
    overrun: bool,
    room: Arc<Room>,
}

/// Where a lane waits that finds its queue full.
#[derive(Default)]
struct Room {
    made: Notify,
    /// Jobs that the drain has taken and not begun: they are still in the queue, as far as its bound goes.
    taken: AtomicUsize,
    taken_bytes: AtomicUsize,
}

impl Queue {
    fn messages(&self) -> usize {
        self.jobs.len() + self.room.taken.load(Relaxed)
    }

    fn bytes(&self) -> usize {
        self.bytes + self.room.taken_bytes.load(Relaxed)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({})", self.messages())
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Queued,
    Dropped,
    /// Dropped, and the first to be.
    OverrunBegins,
}

enum Attempt {
    Queued,
    Full { job: Job, overrun: bool, room: Arc<Room> },
}

impl Inboxes {
    pub(crate) fn new(runtime: Handle, messages_max: usize, bytes_max: usize, wait: Duration) -> Self {
        Self { queues: Mutex::default(), runtime, messages_max, bytes_max, wait }
    }

    /// Queues a message, waiting for room on the tells lane, never on the control lane.
    pub(crate) async fn deliver(self: &Arc<Self>, lane: Lane, path: &str, body: &Bytes, job: Job) -> Delivery {
        let (mut job, overrun, mut room) = match self.attempt(lane, path, body.len(), job) {
            Attempt::Queued => return Delivery::Queued,
            Attempt::Full { job, overrun, room } => (job, overrun, room),
        };
        if overrun {
            return Delivery::Dropped;
        }
        if lane == Lane::Tells {
            let deadline = tokio::time::Instant::now() + self.wait;
            loop {
                if tokio::time::timeout_at(deadline, room.made.notified()).await.is_err() {
                    break;
                }
                match self.attempt(lane, path, body.len(), job) {
                    Attempt::Queued => return Delivery::Queued,
                    Attempt::Full { job: back, room: again, .. } => (job, room) = (back, again),
                }
            }
        }
        if let Some(queue) = self.queues.lock()[lane as usize].get_mut(path) {
            queue.overrun = true;
        }
        Delivery::OverrunBegins
    }

    /// Queues a message if there is room now; for senders that must not wait.
    pub(crate) fn try_deliver(self: &Arc<Self>, lane: Lane, path: &str, bytes: usize, job: Job) -> bool {
        matches!(self.attempt(lane, path, bytes, job), Attempt::Queued)
    }

    fn attempt(self: &Arc<Self>, lane: Lane, path: &str, bytes: usize, job: Job) -> Attempt {
        let mut queues = self.queues.lock();
        let queues = &mut queues[lane as usize];
        match queues.get_mut(path) {
            Some(queue) => {
                let messages = queue.messages();
                let full = messages >= self.messages_max || queue.bytes() + bytes > self.bytes_max;
                if full && messages > 0 {
                    return Attempt::Full { job, overrun: queue.overrun, room: queue.room.clone() };
                }
                queue.overrun = false;
                queue.bytes += bytes;
                queue.jobs.push_back((job, bytes));
            }
            None => {
                let mut queue = Queue { bytes, ..Queue::default() };
                queue.jobs.push_back((job, bytes));
                let (path, room) = (Arc::<str>::from(path), queue.room.clone());
                queues.insert(path.clone(), queue);
                let draining = Draining { inboxes: self.clone(), lane, path: Some(path), room, taken: VecDeque::new() };
                self.runtime.spawn(draining.run());
            }
        }
        Attempt::Queued
    }
}

/// Handles one queue until it is empty; a queue exists exactly as long as this does. If it is dropped, because its runtime ends, so is the
/// queue: its jobs own what owns the inboxes.
struct Draining {
    inboxes: Arc<Inboxes>,
    lane: Lane,
    /// `None` once the queue was empty and is gone.
    path: Option<Arc<str>>,
    room: Arc<Room>,
    taken: VecDeque<(Job, usize)>,
}

impl Draining {
    async fn run(mut self) {
        while let Some(job) = self.next() {
            self.room.made.notify_one();
            job().await;
        }
    }

    fn next(&mut self) -> Option<Job> {
        if self.taken.is_empty() {
            self.take()?;
        }
        let (job, bytes) = self.taken.pop_front()?;
        self.room.taken.fetch_sub(1, Relaxed);
        self.room.taken_bytes.fetch_sub(bytes, Relaxed);
        Some(job)
    }

    /// Takes the next jobs out of the queue, or the queue away when there are none.
    fn take(&mut self) -> Option<()> {
        let mut queues = self.inboxes.queues.lock();
        let queues = &mut queues[self.lane as usize];
        let queue = queues.get_mut(self.path.as_ref()?)?;
        if queue.jobs.is_empty() {
            queues.remove(&self.path.take()?);
            return None;
        }
        self.taken.extend(queue.jobs.drain(..queue.jobs.len().min(DRAIN_JOBS)));
        let bytes: usize = self.taken.iter().map(|(_, bytes)| bytes).sum();
        queue.bytes -= bytes;
        // Under the lock, as whoever looks whether there is room.
        self.room.taken.store(self.taken.len(), Relaxed);
        self.room.taken_bytes.store(bytes, Relaxed);
        Some(())
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let queue = self.inboxes.queues.lock()[self.lane as usize].remove(&path);
            // Outside of the lock, with whatever the jobs own.
            drop(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    fn inboxes(messages_max: usize, wait_ms: u64) -> Arc<Inboxes> {
        Arc::new(Inboxes::new(Handle::current(), messages_max, 1_000, Duration::from_millis(wait_ms)))
    }

    fn job(n: u32, gate: &Arc<Semaphore>, done: &mpsc::UnboundedSender<u32>) -> Job {
        let (gate, done) = (gate.clone(), done.clone());
        Box::new(move || {
            Box::pin(async move {
                if let Ok(permit) = gate.acquire().await {
                    permit.forget();
                }
                let _ = done.send(n);
            })
        })
    }

    #[tokio::test]
    async fn a_path_handles_in_order_and_another_path_does_not_wait_for_it() {
        let inboxes = inboxes(100, 1_000);
        let (done, mut handled) = mpsc::unbounded_channel();
        let (shut, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(99)));
        let body = Bytes::new();
        for n in 0..5 {
            let delivery = inboxes.deliver(Lane::Tells, "slow", &body, job(n, &shut, &done)).await;
            assert_eq!(delivery, Delivery::Queued);
        }
        inboxes.deliver(Lane::Tells, "quick", &body, job(100, &open, &done)).await;
        assert_eq!(handled.recv().await, Some(100));
        shut.add_permits(5);
        for n in 0..5 {
            assert_eq!(handled.recv().await, Some(n));
        }
    }

    #[tokio::test]
    async fn what_the_drain_has_taken_and_not_begun_still_takes_room() {
        let inboxes = inboxes(3, 1);
        let (done, mut handled) = mpsc::unbounded_channel();
        let shut = Arc::new(Semaphore::new(0));
        for n in 0..3 {
            assert!(inboxes.try_deliver(Lane::Tells, "p", 1, job(n, &shut, &done)));
        }
        // Full; then the drain takes all three and begins the first, so that there is room for one.
        assert!(!inboxes.try_deliver(Lane::Tells, "p", 1, job(3, &shut, &done)));
        tokio::task::yield_now().await;
        assert!(inboxes.try_deliver(Lane::Tells, "p", 1, job(3, &shut, &done)));
        assert!(!inboxes.try_deliver(Lane::Tells, "p", 1, job(4, &shut, &done)));
        shut.add_permits(4);
        for n in 0..4 {
            assert_eq!(handled.recv().await, Some(n));
        }
    }

    #[test]
    fn what_waits_is_let_go_with_its_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let owned = Arc::new(());
        let inboxes = {
            let _entered = runtime.enter();
            inboxes(100, 1_000)
        };
        for _ in 0..3 {
            let owned = owned.clone();
            let job: Job = Box::new(move || {
                Box::pin(async move {
                    std::future::pending::<()>().await;
                    drop(owned);
                })
            });
            assert!(inboxes.try_deliver(Lane::Tells, "p", 1, job));
        }
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(Arc::strong_count(&owned), 4);
        drop(runtime);
        assert_eq!(Arc::strong_count(&owned), 1);
    }

    #[tokio::test]
    async fn a_full_inbox_waits_then_drops_and_takes_again_once_there_is_room() {
        let inboxes = inboxes(2, 50);
        let (done, mut handled) = mpsc::unbounded_channel();
        let shut = Arc::new(Semaphore::new(0));
        let body = Bytes::new();
        let mut deliveries = vec![];
        for n in 0..6 {
            // Lets the first job leave the queue for its handler.
            tokio::task::yield_now().await;
            let job = job(n, &shut, &done);
            deliveries.push(inboxes.deliver(Lane::Tells, "p", &body, job).await);
        }
        use Delivery::{Dropped, OverrunBegins, Queued};
        assert_eq!(deliveries, [Queued, Queued, Queued, OverrunBegins, Dropped, Dropped]);
        shut.add_permits(100);
        for n in 0..3 {
            assert_eq!(handled.recv().await, Some(n));
        }
        let again = inboxes.deliver(Lane::Tells, "p", &body, job(7, &shut, &done)).await;
        assert_eq!((again, handled.recv().await), (Queued, Some(7)));
    }
}
