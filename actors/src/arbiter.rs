//! The threads that actors live on. An arbiter is one thread with a tokio runtime of its own; in local mode it is the caller's `LocalSet`.
//!
//! Must never be actix's `Arbiter`: that needs a process-wide `System`. Owned by [`crate::System`].

use crate::error::BuildError;
use crate::pid::Pid;
use crate::schedule::Schedule;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Longest time that a kill waits for a thread whose actor does not yield, in milliseconds. The thread is left behind then.
const KILL_JOIN_MS: u64 = 2_000;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
thread_local!(static CURRENT: Cell<u64> = const { Cell::new(0) });

type Job = Box<dyn FnOnce() + Send>;

/// Who runs on an arbiter now: two plain stores a turn. The same odd number at two looks means that one actor has not given its thread
/// back in between.
#[derive(Default)]
pub(crate) struct Heartbeat {
    turn: AtomicU64,
    pid: AtomicU64,
}

impl Heartbeat {
    pub(crate) fn enter(&self, pid: &Pid) {
        self.pid.store(pid.id(), Relaxed);
        self.turn.store(self.turn.load(Relaxed) + 1, Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.turn.store(self.turn.load(Relaxed) + 1, Relaxed);
    }

    /// The count, and the actor that has the thread.
    pub(crate) fn look(&self) -> (u64, Option<u64>) {
        let turn = self.turn.load(Relaxed);
        (turn, (turn % 2 == 1).then(|| self.pid.load(Relaxed)))
    }
}

/// One arbiter.
pub(crate) struct Arbiter {
    id: u64,
    pub(crate) heartbeat: Arc<Heartbeat>,
    /// At most one job for each start of a child.
    jobs: mpsc::UnboundedSender<Job>,
    stop: watch::Sender<bool>,
    /// Hangs up when the thread has ended; `None` in local mode.
    ended: parking_lot::Mutex<Option<blocking::Receiver<()>>>,
}

impl Arbiter {
    /// A thread of its own.
    pub(crate) fn thread(name: String) -> Result<Arc<Self>, BuildError> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let (ending, ended) = blocking::channel::<()>();
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| BuildError::Thread { name: name.clone(), source })?;
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _ending = ending;
                CURRENT.with(|current| current.set(id));
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, run(inbox, stopped, None));
                // Actors that still live are dropped here, on their own thread.
                let _entered = runtime.enter();
                drop(local);
            })
            .map_err(|source| BuildError::Thread { name, source })?;
        Ok(Arc::new(Arbiter { id, heartbeat: Arc::default(), jobs, stop, ended: parking_lot::Mutex::new(Some(ended)) }))
    }

    /// The `LocalSet` that this is called in. Jobs wait for their turn when there is a schedule.
    pub(crate) fn local(schedule: Option<Arc<Schedule>>) -> Arc<Self> {
        let (jobs, inbox) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let id = NEXT_ID.fetch_add(1, Relaxed);
        tokio::task::spawn_local(run(inbox, stopped, schedule));
        Arc::new(Arbiter { id, heartbeat: Arc::default(), jobs, stop, ended: parking_lot::Mutex::new(None) })
    }

    /// Whether its thread still takes jobs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Whether the caller runs on it.
    pub(crate) fn is_current(&self) -> bool {
        CURRENT.with(Cell::get) == self.id
    }

    /// Runs `job` on it: at once when the caller is there already. When the thread is gone, the job is dropped.
    pub(crate) fn run(&self, job: Job) {
        if self.is_current() {
            job();
        } else {
            let _ = self.jobs.send(job);
        }
    }

    /// Whether there is a thread to wait for; not so in local mode.
    pub(crate) fn has_thread(&self) -> bool {
        self.ended.lock().is_some()
    }

    /// The thread ends, and all its actors are dropped.
    pub(crate) fn stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Waits until the thread has ended; not for itself, and not for ever.
    pub(crate) fn join(&self) {
        if self.is_current() {
            return;
        }
        if let Some(ended) = self.ended.lock().take() {
            let _ = ended.recv_timeout(Duration::from_millis(KILL_JOIN_MS));
        }
    }
}

/// The number under which the starting of actors waits for its turn; no actor has it.
const STARTS: u64 = 0;

async fn run(
    mut jobs: mpsc::UnboundedReceiver<Job>,
    mut stopped: watch::Receiver<bool>,
    schedule: Option<Arc<Schedule>>,
) {
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return,
            job = jobs.recv() => match job {
                Some(job) => {
                    if let Some(schedule) = &schedule {
                        schedule.turn(STARTS).await;
                    }
                    job();
                }
                None => return,
            },
        }
    }
}
