//! The threads that actors live on. An arbiter is one thread with a tokio runtime of its own; in local mode it is the caller's `LocalSet`.
//!
//! Must never be actix's `Arbiter`: that needs a process-wide `System`. Owned by [`crate::System`].

use crate::error::BuildError;
use crate::pid::Pid;
use crate::schedule::Schedule;
use parking_lot::{Condvar, Mutex};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Longest time that a kill waits for a thread whose actor does not yield, in milliseconds. The thread is left behind then.
const KILL_JOIN_MS: u64 = 2_000;

static NEXT_ID: AtomicU32 = AtomicU32::new(1);
thread_local!(static CURRENT: RefCell<Option<(u32, Arc<Heartbeat>)>> = const { RefCell::new(None) });

type Job = Box<dyn FnOnce() + Send>;

/// In the count of turns: the thread was left behind in this turn, and no other follows.
const ABANDONED: u64 = 1 << 63;

/// Who runs on an arbiter now: two plain stores a turn. The same odd number at two looks means that one actor has not given its thread
/// back in between.
#[derive(Default)]
pub(crate) struct Heartbeat {
    turn: AtomicU64,
    pid: AtomicU64,
    /// Somebody may leave the thread behind, so the end of each turn is agreed upon.
    watched: bool,
    /// Whether everything that lived on the thread when it was left behind is claimed.
    sorted: Mutex<bool>,
    sorting: Condvar,
}

impl Heartbeat {
    fn new(watched: bool) -> Arc<Self> {
        Arc::new(Heartbeat { watched, ..Heartbeat::default() })
    }

    /// The code of `pid` begins; within that of another, the count stays. What is returned is for [`Heartbeat::leave`].
    pub(crate) fn enter(&self, pid: &Pid) -> Option<u64> {
        let turn = self.turn.load(Relaxed);
        let outer = (turn % 2 == 1).then(|| self.pid.load(Relaxed));
        self.pid.store(pid.id(), Relaxed);
        if outer.is_none() {
            self.turn.store(turn + 1, Release);
        }
        outer
    }

    pub(crate) fn leave(&self, outer: Option<u64>) {
        if let Some(outer) = outer {
            return self.pid.store(outer, Relaxed);
        }
        let turn = self.turn.load(Relaxed);
        if !self.watched {
            return self.turn.store(turn + 1, Release);
        }
        if self.turn.compare_exchange(turn & !ABANDONED, (turn & !ABANDONED) + 1, AcqRel, Acquire).is_err() {
            // Nothing of the thread's may run, or end, before it is claimed.
            let mut sorted = self.sorted.lock();
            while !*sorted {
                self.sorting.wait(&mut sorted);
            }
        }
    }

    /// The count, and the actor that has the thread.
    pub(crate) fn look(&self) -> (u64, Option<u64>) {
        let turn = self.turn.load(Acquire);
        (turn & !ABANDONED, (turn % 2 == 1).then(|| self.pid.load(Relaxed)))
    }

    /// Leaves the thread behind. False when it has left the turn, which is then no reason any more.
    pub(crate) fn abandon(&self, turn: u64) -> bool {
        self.turn.compare_exchange(turn, turn | ABANDONED, AcqRel, Acquire).is_ok()
    }

    pub(crate) fn abandoned(&self) -> bool {
        self.turn.load(Acquire) & ABANDONED != 0
    }

    /// All that lived on the abandoned thread is claimed.
    pub(crate) fn sorted(&self) {
        *self.sorted.lock() = true;
        self.sorting.notify_all();
    }
}

/// Whether the caller's thread was left behind: it runs nothing more of its actors.
pub(crate) fn abandoned() -> bool {
    CURRENT.with(|current| current.borrow().as_ref().is_some_and(|(_, heartbeat)| heartbeat.abandoned()))
}

/// The id of the arbiter that the caller runs on; 0 when it is none, as in local mode.
pub(crate) fn current() -> u32 {
    CURRENT.with(|current| current.borrow().as_ref().map_or(0, |(id, _)| *id))
}

/// The heartbeat of the arbiter that the caller runs on, also when that was left behind.
pub(crate) fn heartbeat() -> Option<Arc<Heartbeat>> {
    CURRENT.with(|current| current.borrow().as_ref().map(|(_, heartbeat)| heartbeat.clone()))
}

/// Code of an actor's that runs outside of its shell, until this is dropped.
pub(crate) struct Turn<'a> {
    heartbeat: &'a Heartbeat,
    outer: Option<u64>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(heartbeat: &'a Heartbeat, pid: &Pid) -> Self {
        Turn { heartbeat, outer: heartbeat.enter(pid) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.heartbeat.leave(self.outer);
    }
}

/// What was handed to an arbiter and has not begun; `None` once it takes nothing more. At most one job for each start of a child.
struct Jobs {
    waiting: Mutex<Option<VecDeque<Job>>>,
    /// That there is nothing more to be taken, for those who only want to know that.
    closed: AtomicBool,
    came: Notify,
}

impl Jobs {
    fn new() -> Arc<Self> {
        Arc::new(Jobs {
            waiting: Mutex::new(Some(VecDeque::new())),
            closed: AtomicBool::new(false),
            came: Notify::new(),
        })
    }

    fn close(&self) -> Option<VecDeque<Job>> {
        let mut waiting = self.waiting.lock();
        self.closed.store(true, Release);
        waiting.take()
    }
}

/// One arbiter.
pub(crate) struct Arbiter {
    id: u32,
    pub(crate) heartbeat: Arc<Heartbeat>,
    jobs: Arc<Jobs>,
    stop: watch::Sender<bool>,
    /// Hangs up when the thread has ended; `None` in local mode.
    ended: Mutex<Option<blocking::Receiver<()>>>,
}

impl Arbiter {
    /// A thread of its own. `watched`: it may be left behind.
    pub(crate) fn thread(name: String, watched: bool) -> Result<Arc<Self>, BuildError> {
        let jobs = Jobs::new();
        let (stop, stopped) = watch::channel(false);
        let (ending, ended) = blocking::channel::<()>();
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let heartbeat = Heartbeat::new(watched);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| BuildError::Thread { name: name.clone(), source })?;
        let (inbox, own) = (jobs.clone(), heartbeat.clone());
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _ending = ending;
                CURRENT.with(|current| *current.borrow_mut() = Some((id, own)));
                let local = tokio::task::LocalSet::new();
                local.block_on(&runtime, run(inbox, stopped, None));
                // Actors that still live are dropped here, on their own thread.
                let _entered = runtime.enter();
                drop(local);
            })
            .map_err(|source| BuildError::Thread { name, source })?;
        Ok(Arc::new(Arbiter { id, heartbeat, jobs, stop, ended: Mutex::new(Some(ended)) }))
    }

    /// The `LocalSet` that this is called in. Jobs wait for their turn when there is a schedule.
    pub(crate) fn local(schedule: Option<Arc<Schedule>>) -> Arc<Self> {
        let jobs = Jobs::new();
        let (stop, stopped) = watch::channel(false);
        let id = NEXT_ID.fetch_add(1, Relaxed);
        tokio::task::spawn_local(run(jobs.clone(), stopped, schedule));
        Arc::new(Arbiter { id, heartbeat: Heartbeat::new(false), jobs, stop, ended: Mutex::new(None) })
    }

    /// Unlike that of any other in this process.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether its thread still takes jobs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.jobs.closed.load(Acquire)
    }

    /// Whether the caller runs on it.
    pub(crate) fn is_current(&self) -> bool {
        current() == self.id
    }

    /// Runs `job` on it: at once when the caller is there already. When the thread is gone, the job is dropped.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        if self.is_current() {
            return job();
        }
        let job: Job = Box::new(job);
        let refused = match &mut *self.jobs.waiting.lock() {
            Some(waiting) => {
                waiting.push_back(job);
                None
            }
            None => Some(job),
        };
        self.jobs.came.notify_one();
        // Outside the lock: its exit is reported there and then.
        drop(refused);
    }

    /// Takes nothing more, and gives back what has not begun.
    pub(crate) fn close(&self) -> VecDeque<Job> {
        self.jobs.close().unwrap_or_default()
    }

    /// Whether its thread has ended; never so in local mode.
    pub(crate) fn has_ended(&self) -> bool {
        match &*self.ended.lock() {
            Some(ended) => ended.try_recv() == Err(blocking::TryRecvError::Disconnected),
            None => false,
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

async fn run(jobs: Arc<Jobs>, mut stopped: watch::Receiver<bool>, schedule: Option<Arc<Schedule>>) {
    /// Also when a job unwinds: whoever waits for its start learns that there will be none.
    struct Closing(Arc<Jobs>);
    impl Drop for Closing {
        fn drop(&mut self) {
            drop(self.0.close());
        }
    }
    let closing = Closing(jobs);
    let work = async {
        loop {
            let next = closing.0.waiting.lock().as_mut().and_then(VecDeque::pop_front);
            match next {
                Some(job) => {
                    if let Some(schedule) = &schedule {
                        schedule.turn(STARTS).await;
                    }
                    job();
                    // Many starts in a row leave the actors their turns.
                    tokio::task::coop::consume_budget().await;
                }
                None => closing.0.came.notified().await,
            }
        }
    };
    tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => {}
        () = work => {}
    }
}
