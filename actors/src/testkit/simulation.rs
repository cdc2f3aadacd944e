//! One simulation: a runtime with a clock of its own, the systems in it, and what happened.
//!
//! ```text
//!  block_on ─▶ LocalSet (all actors, the test's body) ─▶ nothing is ready ─▶ someone waits for that: go on
//!     ▲                                                                 └──▶ nobody does: the clock jumps to the next timer
//!     └───────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Must never do I/O or read the real clock: its runtime has neither.

use crate::inspect::TreeEvent;
use crate::schedule::Schedule;
use crate::system::System;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};
use tokio::task::LocalSet;
use tokio::time::Instant;

/// Set to a number, it is the one seed that [`explore`] runs.
pub const SEED_VARIABLE: &str = "PHALANX_SEED";
/// How long a test's body may take, in seconds of simulated time, unless [`Simulation::limit`] says otherwise.
pub const SIMULATED_LIMIT_S: u64 = 86_400;
/// How many lines a journal keeps; older ones are dropped first.
pub const JOURNAL_LINES: usize = 10_000;
/// How many lines of its journal a failure shows.
const FAILURE_LINES: usize = 40;
/// How often what is left of a simulation is polled at its end, before it is dropped as it is.
const LAST_POLLS: usize = 10_000;
/// What a seed that does not repeat itself has to do with.
const OUTSIDE: &str = "the test depends on something outside of the simulation, such as a thread, the order of a hash map, or \
                       `tokio::select!` without `biased`";
/// The test's body draws for its turns like an actor; no actor has this number.
const BODY: u64 = u64::MAX;

/// Runs `body` to its end in simulated time, with the order of turns drawn from `seed`. See [`Simulation::run`].
pub fn simulate<T, F>(seed: u64, body: impl FnOnce(Sim) -> F) -> T
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    Simulation::new(seed).run(body)
}

/// Runs `body` once for each seed, and panics with the first seed that failed, after it has made sure that the seed fails in the same way
/// again. With [`SEED_VARIABLE`] set in the environment, it runs
/// that seed alone.
pub fn explore<F>(seeds: Range<u64>, body: impl Fn(Sim) -> F)
where
    F: Future<Output = ()> + 'static,
{
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        let seed = seed.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE} is `{seed}`: set it to a seed, a number"));
        return simulate(seed, body);
    }
    if let Some(failure) = first_failure(seeds, &body) {
        if first_failure(failure.seed..failure.seed.saturating_add(1), &body).as_ref() != Some(&failure) {
            panic!("{failure}\nbut it went another way when it was run again: {OUTSIDE}");
        }
        panic!("{failure}");
    }
}

/// Runs `body` once for each seed until it panics, and says with which.
pub fn first_failure<F>(seeds: Range<u64>, body: impl Fn(Sim) -> F) -> Option<Failure>
where
    F: Future<Output = ()> + 'static,
{
    seeds.into_iter().find_map(|seed| Simulation::new(seed).attempt(&body).err().map(|(failure, _)| failure))
}

/// A simulation that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Gives the same failure again.
    pub seed: u64,
    /// What the panic said.
    pub message: String,
    /// What happened until then. See [`Sim::note`].
    pub journal: Vec<String>,
    /// See [`Sim::fingerprint`].
    pub fingerprint: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} failed: {}", self.seed, self.message)?;
        let skipped = self.journal.len().saturating_sub(FAILURE_LINES);
        if skipped > 0 {
            writeln!(f, "  ({skipped} lines before)")?;
        }
        for line in &self.journal[skipped..] {
            writeln!(f, "  {line}")?;
        }
        write!(f, "run it again with {SEED_VARIABLE}={}", self.seed)
    }
}

/// Settings of a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    seed: u64,
    limit: Duration,
}

impl Simulation {
    /// With the usual limit.
    pub fn new(seed: u64) -> Self {
        Simulation { seed, limit: Duration::from_secs(SIMULATED_LIMIT_S) }
    }

    /// How long the body may take in simulated time. A body that waits for what never comes fails then.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs `body` to its end: on a runtime of its own, without I/O, with a clock that moves when nothing else can. Then the systems
    /// of the simulation are killed. A panic of the body goes on in the caller, after what happened was printed.
    pub fn run<T, F>(self, body: impl FnOnce(Sim) -> F) -> T
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        self.attempt(body).unwrap_or_else(|(failure, panic)| {
            eprintln!("{failure}");
            resume_unwind(panic)
        })
    }

    fn attempt<T, F>(self, body: impl FnOnce(Sim) -> F) -> Result<T, (Failure, Box<dyn std::any::Any + Send>)>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("invariant: a runtime without I/O needs nothing of the system");
        // The clock is the runtime's.
        let _entered = runtime.enter();
        let schedule = Arc::new(Schedule::new(self.seed));
        let world = Rc::new(World {
            seed: self.seed,
            began: Instant::now(),
            schedule: schedule.clone(),
            quiet: RefCell::default(),
            nodes: RefCell::default(),
            journal: Journal::default(),
        });
        let mut local = LocalSet::new();
        let limit = self.limit;
        // Caught here: what the systems hold is dropped inside the runtime, whatever happened.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(drive(&mut local, &world, async {
                let sim = Sim { system: world.node("sim"), world: world.clone() };
                let body = body(sim);
                let body = async move {
                    let mut body = pin!(body);
                    // The body waits for its turn like an actor.
                    std::future::poll_fn(move |cx| {
                        if schedule.passes(BODY) {
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                        body.as_mut().poll(cx)
                    })
                    .await
                };
                tokio::task::spawn_local(tokio::time::timeout(limit, body)).await
            }))
        }));
        let journal = world.journal.lines();
        let fingerprint = world.schedule.fingerprint();
        for node in world.nodes.borrow().iter() {
            node.kill();
        }
        runtime.block_on(drive_out(&mut local));
        drop(local);
        let panic: Box<dyn std::any::Any + Send> = match outcome {
            Ok(Ok(Ok(result))) => return Ok(result),
            Ok(Ok(Err(_))) => Box::new(format!(
                "the test has not ended after {limit:?} of simulated time: it waits for something that never comes"
            )),
            Ok(Err(join)) if join.is_panic() => join.into_panic(),
            Ok(Err(join)) => Box::new(join.to_string()),
            Err(panic) => panic,
        };
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into());
        Err((Failure { seed: self.seed, message, journal, fingerprint }, panic))
    }
}

/// The simulation that a test's body runs in.
#[derive(Clone)]
pub struct Sim {
    system: System,
    world: Rc<World>,
}

struct World {
    seed: u64,
    began: Instant,
    schedule: Arc<Schedule>,
    /// Those who wait until nothing is ready. At most one for each task of the test.
    quiet: RefCell<Vec<oneshot::Sender<()>>>,
    nodes: RefCell<Vec<System>>,
    journal: Journal,
}

impl World {
    fn node(&self, name: &str) -> System {
        let system = System::builder(name)
            .schedule(self.schedule.clone())
            .build()
            .expect("invariant: a simulation runs in a LocalSet");
        self.journal.follow(&system, self.began);
        self.nodes.borrow_mut().push(system.clone());
        system
    }
}

impl Sim {
    /// The system of the simulation.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// One more system on the same clock and schedule, as another node.
    pub fn node(&self, name: &str) -> System {
        self.world.node(name)
    }

    /// What the simulation was started with.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// A number from 0 to below `bound`, drawn from the seed; 0 when `bound` is 0.
    pub fn random(&self, bound: u64) -> u64 {
        self.world.schedule.draw().checked_rem(bound).unwrap_or(0)
    }

    /// Lets `time` pass: all that is due until then runs, in its order and at its time, and what it sets going, too.
    pub async fn advance(&self, time: Duration) {
        let target = Instant::now() + time;
        tokio::time::sleep_until(target).await;
        self.settle().await;
    }

    /// Lets everything run that can run now, until all that is left waits for the clock.
    pub async fn settle(&self) {
        let (tx, rx) = oneshot::channel();
        self.world.quiet.borrow_mut().push(tx);
        // Hung up when the simulation ends first.
        let _ = rx.await;
    }

    /// Simulated time since the start.
    pub fn elapsed(&self) -> Duration {
        self.world.began.elapsed()
    }

    /// What happened: what the test notes, and all starts, exits and restarts of the simulation's systems.
    pub fn journal(&self) -> Journal {
        self.world.journal.clone()
    }

    /// A line for the journal.
    pub fn note(&self, line: impl fmt::Display) {
        self.world.journal.note(line);
    }

    /// A number that stands for all turns so far, in their order. Two runs of one seed give the same.
    pub fn fingerprint(&self) -> u64 {
        self.world.schedule.fingerprint()
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sim(seed {}, {:?})", self.world.seed, self.elapsed())
    }
}

/// What happened in a simulation, line by line with its time. Clones are the same journal; actors may hold one.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    began: Option<Instant>,
    lines: VecDeque<String>,
    followed: Vec<(String, broadcast::Receiver<TreeEvent>)>,
}

impl Journal {
    /// Adds a line.
    pub fn note(&self, line: impl fmt::Display) {
        let line = line.to_string();
        let mut entries = self.0.lock();
        entries.catch_up();
        entries.push(&line);
    }

    /// All lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        let mut entries = self.0.lock();
        entries.catch_up();
        entries.lines.iter().cloned().collect()
    }

    /// Writes down what happens in `system` from now on.
    fn follow(&self, system: &System, began: Instant) {
        let mut news = system.subscribe();
        {
            let mut entries = self.0.lock();
            entries.began = Some(began);
            entries.followed.push((system.name().to_owned(), system.subscribe()));
        }
        let journal = self.clone();
        // So that each line has the time of its event, also when nobody looks for long.
        tokio::task::spawn_local(async move {
            while !matches!(news.recv().await, Err(broadcast::error::RecvError::Closed)) {
                journal.0.lock().catch_up();
            }
        });
    }
}

impl Entries {
    fn catch_up(&mut self) {
        for at in 0..self.followed.len() {
            loop {
                let (name, events) = &mut self.followed[at];
                let line = match events.try_recv() {
                    Ok(event) => format!("{name}: {}", describe(&event)),
                    Err(broadcast::error::TryRecvError::Lagged(lost)) => format!("{name}: {lost} events lost"),
                    Err(_) => break,
                };
                self.push(&line);
            }
        }
    }

    fn push(&mut self, line: &str) {
        if self.lines.len() == JOURNAL_LINES {
            self.lines.pop_front();
        }
        let at = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        self.lines.push_back(format!("[{:>10.3} s] {line}", at.as_secs_f64()));
    }
}

fn describe(event: &TreeEvent) -> String {
    match event {
        TreeEvent::Started { pid, .. } => format!("{pid} started"),
        TreeEvent::Exited { pid, exit, .. } => format!("{pid} exited: {exit}"),
        TreeEvent::Restarting { path, in_ms, .. } => format!("{path} restarts in {in_ms} ms"),
        TreeEvent::Stopped { path } => format!("{path} stopped"),
        TreeEvent::Stuck { path, doing, .. } => format!("{path} is stuck in {doing}"),
    }
}

// ---- the loop ------------------------------------------------------------------------------------------------------------------

/// Knows whether anything of the `LocalSet` was woken.
#[derive(Default)]
struct Stir {
    stirred: AtomicBool,
    outer: AtomicWaker,
}

impl Wake for Stir {
    fn wake(self: Arc<Self>) {
        self.stirred.store(true, SeqCst);
        self.outer.wake();
    }
}

/// Polls `local` and, in it, `main`, until `main` is done. Whoever waits for quiet is answered when nothing is ready.
async fn drive<T>(local: &mut LocalSet, world: &World, main: impl Future<Output = T>) -> T {
    let stir = Arc::<Stir>::default();
    let waker = Waker::from(stir.clone());
    let mut main = pin!(main);
    let mut asked_runtime = false;
    std::future::poll_fn(move |cx| {
        stir.outer.register(cx.waker());
        if stir.stirred.swap(false, SeqCst) {
            asked_runtime = false;
        }
        let mut inner = Context::from_waker(&waker);
        // In the set, so that it can spawn there.
        let mut entered = pin!(local.run_until(main.as_mut()));
        if let Poll::Ready(result) = entered.as_mut().poll(&mut inner) {
            return Poll::Ready(result);
        }
        if stir.stirred.load(SeqCst) {
            return Poll::Pending;
        }
        if !world.quiet.borrow().is_empty() {
            if asked_runtime {
                asked_runtime = false;
                world.quiet.borrow_mut().drain(..).for_each(|waiter| _ = waiter.send(()));
            } else {
                // Tasks that yielded are woken by the runtime, and so are timers that are due. Woken ourselves, it does not move the clock.
                asked_runtime = true;
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    })
    .await
}

/// Lets what was killed run out, as far as it does without waiting.
async fn drive_out(local: &mut LocalSet) {
    let stir = Arc::<Stir>::default();
    let waker = Waker::from(stir.clone());
    for _ in 0..LAST_POLLS {
        stir.stirred.store(false, SeqCst);
        let done = Pin::new(&mut *local).poll(&mut Context::from_waker(&waker)).is_ready();
        if done || !stir.stirred.load(SeqCst) {
            return;
        }
    }
}
